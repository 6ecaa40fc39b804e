"""Run by torchrun in two processes: each adds its uneven share of both sets, and writes what it measures.

Likelihoods are shared out by the evaluation itself, chunk by chunk.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.evaluation.likelihood import bounds
from dgmbench.evaluation.likelihood.measure import likelihood
from dgmbench.evaluation.parts import Context
from dgmbench.evaluation.quality.feature_set import SetMeasure
from dgmbench.evaluation.quality.frechet import FrechetDistance
from dgmbench.evaluation.quality.inception_score import InceptionScore
from dgmbench.evaluation.quality.kid import KernelDistance
from dgmbench.evaluation.quality.mmd import GaussianDistance
from dgmbench.evaluation.quality.prdc import PrecisionRecall
from dgmbench.evaluation.quality.sliced_wasserstein import SlicedWasserstein
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.flow.glow import Glow
from dgmbench.training.ranks import Ranks


@torch.no_grad()
def likelihoods(ranks: Ranks) -> dict[str, float]:
    """All likelihoods of a conditional flow and of an RBM on three chunks of labelled examples, and some one by one."""
    spec = DataSpec((1, 4, 6), "binary", num_classes=2)
    random = np.random.RandomState(0)
    split = Split(random.randint(0, 2, (230, *spec.shape)).astype(np.uint8), random.randint(0, 2, 230))
    data = DataSet("toy", spec, {"train": split, "valid": split, "test": split}, "1" * 64)
    ais = {"chains": 20, "temperatures": 30, "burn_in": 10}
    protocol = {"seed": 0, "k": [1, 20], "ais": ais, "max_examples": None}
    context = Context(data, protocol, "test", torch.device("cpu"), ranks)
    torch.manual_seed(3)
    flow, rbm = Glow(spec, steps=1, width=4, conditional=True).eval(), Rbm(spec, hidden=21, weight_std=0.5)
    values = {"unlabelled": bounds.elbo(flow, context.chunks), "labelled": bounds.given_labels(flow, context.chunks)}
    found = {f"{name}.{n}": float(value) for name, of in values.items() for n, value in enumerate(of.values)}
    for model in (flow, rbm):
        for name, metric, _ in likelihood(model, context, lambda text: None):
            for what in ("value", "se", "se_draws"):
                number = getattr(metric, what)
                if number is not None:
                    found[f"{type(model).__name__}.{name}.{what}"] = number
    return found


def measures(x: Tensor, y: Tensor, own: Callable[[str], slice]) -> dict[str, float]:
    """Every measure of data x and samples y, of which this process has a share."""
    metrics: dict[str, SetMeasure] = {
        "fd": FrechetDistance(5),
        "kid": KernelDistance(block=20),
        "mmd": GaussianDistance(block=20),
        "swd": SlicedWasserstein(directions=16),
        "prdc": PrecisionRecall(),
        "score": InceptionScore(classes=5),
        "score in splits": InceptionScore(classes=5, splits=7),
        "all on one: kid": KernelDistance(block=20),
        "all on one: prdc": PrecisionRecall(),
    }
    found = {}
    for name, metric in metrics.items():
        mine = own(name)
        if isinstance(metric, InceptionScore):
            metric.update(y[mine], torch.arange(len(y))[mine])
        elif len(x[mine]):  # a process without examples adds none
            metric.update(x[mine], real=True)
            metric.update(y[mine], real=False)
        value = metric.compute()
        each = value if isinstance(value, dict) else {"value": value}
        found |= {f"{name}.{key}": float(value) for key, value in each.items()}
    return found


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    x, y = torch.load(folder / "sets.pt")
    share = slice(0, 40) if rank == 0 else slice(40, None)
    found = likelihoods(Ranks(rank, rank, 2))
    everything_on_one = slice(0, None if rank else 0)
    found |= measures(x, y, lambda name: everything_on_one if name.startswith("all on one") else share)
    torch.save(found, folder / f"found{rank}.pt")
    torch.distributed.destroy_process_group()
