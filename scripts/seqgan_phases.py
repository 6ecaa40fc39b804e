"""What the adversarial stage of SeqGAN does to the generator: both directions and the entropy, before and after it.

    python scripts/seqgan_phases.py [--seeds 0 1 2 3 4] [--epochs 6] [model.mle=0.68 ...]

Trains as the configuration says, stage by stage, and measures the generator where each ends, in nats a sequence: the
oracle's NLL of 10,000 samples (a collapse lowers it), the generator's NLL of the test sequences (a collapse raises it),
the generator's entropy, and the difference of the first and the last, KL(G || oracle). A row for each seed and stage,
then the mean change of the last stage with its standard error. Other words are settings of ``dgm train``.
"""

import argparse
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Generator

from dgmbench.config import complete, compose
from dgmbench.data import DataSet
from dgmbench.data.spec import Batch
from dgmbench.models.contract import Model, Stage, player_parameters
from dgmbench.runs.build import build_model, load_data, optimizer_factory
from dgmbench.training.schedule import SHAPES

NAMES = ("oracle_nll", "data_nll", "entropy", "kl")


@torch.no_grad()
def measured(model: Model, data: DataSet, x: torch.Tensor) -> np.ndarray:
    """The four numbers of NAMES, on the same noise each time."""
    drawn = model.eval().sample(10_000, generator=Generator().manual_seed(99))
    oracle, entropy = -data.oracle(drawn.numpy()).mean(), -float(model.log_prob(drawn).mean())
    return np.array([oracle, -float(model.log_prob(x).mean()), entropy, oracle - entropy])


def train(model: Model, stage: Stage, updates: int, completed: Mapping[str, Any], x: torch.Tensor, seed: int) -> None:
    """One stage, on batches drawn with replacement."""
    parameters, settings = model.players(), completed["optimizer"]
    optimizers = {player: optimizer_factory(settings, model)(player, parameters[player]) for player in stage.players}
    rates = {player: [group["lr"] for group in each.param_groups] for player, each in optimizers.items()}
    g, own = Generator().manual_seed(seed), player_parameters(model)
    size, schedule = stage.batch_size or completed["trainer"]["batch_size"], settings["schedule"]
    model.train()
    for update in range(updates):
        batch = Batch(x[torch.randint(len(x), (size,), generator=g)])
        for player in model.turn(update, stage):
            loss, _ = model.loss(player, batch, g)
            optimizer = optimizers[player]
            optimizer.zero_grad()
            loss.backward(inputs=own[player])
            factor = SHAPES[schedule["name"]](update / updates, schedule["final"])
            for group, rate in zip(optimizer.param_groups, rates[player], strict=True):
                group["lr"] = rate * factor
            optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    completed = complete(compose("train", ["model=seqgan", *args.words]))
    data = load_data(completed)
    x, test = (torch.as_tensor(np.asarray(data.splits[name].x)) for name in ("train", "test"))
    changes = []
    print(f"{'seed':>4} {'after':<12}" + "".join(f"{name:>11}" for name in NAMES))
    for seed in args.seeds:
        torch.manual_seed(seed)  # of dropout
        model = build_model({**completed, "seed": seed}, data.spec)
        found = []
        for stage in model.stages():
            size = stage.batch_size or completed["trainer"]["batch_size"]
            train(model, stage, round(stage.share * args.epochs * len(x) / size), completed, x, seed)
            found.append(measured(model, data, test))
            print(f"{seed:>4} {stage.name:<12}" + "".join(f"{value:>11.2f}" for value in found[-1]), flush=True)
        changes += [after - before for before, after in list(pairwise(found))[-1:]]
    if len(changes) > 1:
        mean, error = np.mean(changes, 0), np.std(changes, 0, ddof=1) / len(changes) ** 0.5
        both = zip(NAMES, mean, error, strict=True)
        print("last stage: " + ", ".join(f"{name} {m:+.2f} +- {e:.2f}" for name, m, e in both))


if __name__ == "__main__":
    main()
