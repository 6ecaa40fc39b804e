"""Run by torchrun in two processes: each adds its uneven share of both sets, and writes what it measures."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed

from dgmbench.evaluation.quality.frechet import FrechetDistance
from dgmbench.evaluation.quality.inception_score import InceptionScore
from dgmbench.evaluation.quality.kid import KernelDistance
from dgmbench.evaluation.quality.prdc import PrecisionRecall

if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    x, y = torch.load(folder / "sets.pt")
    share = slice(0, 40) if rank == 0 else slice(40, None)
    found = {}
    for metric in (FrechetDistance(5), KernelDistance(block=20), PrecisionRecall(), InceptionScore(classes=5)):
        if isinstance(metric, InceptionScore):
            metric.update(y[share])
        else:
            metric.update(x[share], real=True)
            metric.update(y[share], real=False)
        value = metric.compute()
        each = value if isinstance(value, dict) else {"value": value}
        found |= {f"{type(metric).__name__}.{key}": float(value) for key, value in each.items()}
    torch.save(found, folder / f"found{rank}.pt")
    torch.distributed.destroy_process_group()
