"""Time and memory of the sample-quality measures beside torchmetrics, scipy and numpy on the same features.

    python scripts/benchmark_quality.py [--examples 10000] [--features 2048] [--threads 2] [--peers]

Random float32 features stand for those of a network: the measures do not care. With ``--peers``, torchmetrics' Frechet
distance and KID run with a feature module that passes features through (torchmetrics' own KID draws 100 overlapping
subsets; it is given as many as we have blocks), the matrix root is scipy's, and the neighbourhoods are a plain numpy
version with all distances at once.
"""

import argparse
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgmbench.evaluation.quality.frechet import Moments, frechet, frechet_distance
from dgmbench.evaluation.quality.kid import kid
from dgmbench.evaluation.quality.mmd import mmd
from dgmbench.evaluation.quality.prdc import neighbourhoods
from dgmbench.evaluation.quality.sliced_wasserstein import sliced_wasserstein


def torchmetrics_frechet(x: Tensor, y: Tensor) -> float:
    """Its streaming sums and eigenvalues of the product of covariances."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=Pass(x.shape[1]), input_img_size=(1, 1, x.shape[1]), normalize=True)
    return _streamed(metric, x, y)


def torchmetrics_kid(x: Tensor, y: Tensor, blocks: int) -> float:
    """Its polynomial kernel on random subsets of 1000."""
    from torchmetrics.image.kid import KernelInceptionDistance

    metric = KernelInceptionDistance(feature=Pass(x.shape[1]), subsets=blocks, subset_size=1000, normalize=True)
    return _streamed(metric, x, y)


class Pass(nn.Module):
    """Features pass through in the shape of images."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).float()


def _streamed(metric: Any, x: Tensor, y: Tensor) -> float:
    metric.used_custom_model = True
    for part in x.split(500):
        metric.update(part[:, None, None], real=True)
    for part in y.split(500):
        metric.update(part[:, None, None], real=False)
    value = metric.compute()
    return float(value[0] if isinstance(value, tuple) else value)


def scipy_frechet(x: Tensor, y: Tensor) -> float:
    """The square root of the product of covariances, as the first implementations do."""
    import scipy.linalg

    a, b = Moments.of(x), Moments.of(y)
    s, t = a.covariance.numpy(), b.covariance.numpy()
    root = scipy.linalg.sqrtm(s @ t)
    return float((a.mean - b.mean).square().sum() + np.trace(s) + np.trace(t) - 2 * np.trace(root.real))


def numpy_prdc(x: Tensor, y: Tensor, k: int = 5) -> float:
    """Coverage, after precision, recall and density, from three matrices of all distances."""
    from scipy.spatial.distance import cdist

    rr, ff, rf = cdist(x, x), cdist(y, y), cdist(x, y)
    ball_r, ball_f = np.partition(rr, k, 1)[:, k], np.partition(ff, k, 1)[:, k]
    (rf <= ball_r[:, None]).any(0).mean(), (rf <= ball_f[None]).any(1).mean(), (rf <= ball_r[:, None]).sum()
    return float((rf.min(1) <= ball_r).mean())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="words of the names of the measures to run")
    parser.add_argument("--peers", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    g = torch.Generator().manual_seed(0)
    x = torch.rand((args.examples, args.features), generator=g)
    y = 0.9 * torch.rand((args.examples, args.features), generator=g) + 0.03
    blocks = max(5, args.examples // 1000)
    rows: dict[str, Callable[[], float]] = {
        "Frechet distance": lambda: frechet_distance(Moments.of(x), Moments.of(y)),
        "Frechet distance with its standard error and bias": lambda: frechet(x, y).value,
        "KID": lambda: kid(x, y).value,
        "MMD": lambda: mmd(x, y).value,
        "sliced Wasserstein": lambda: sliced_wasserstein(x, y).value,
        "precision, recall, density, coverage, 1-NN": lambda: neighbourhoods(x, y).means()["coverage"],
    }
    peers: dict[str, tuple[str, Callable[[], float]]] = {
        "torchmetrics Frechet distance": ("Frechet distance", lambda: torchmetrics_frechet(x, y)),
        "scipy sqrtm": ("Frechet distance", lambda: scipy_frechet(x, y)),
        "torchmetrics KID": ("KID", lambda: torchmetrics_kid(x, y, blocks)),
        "scipy cdist": ("precision, recall, density, coverage, 1-NN", lambda: numpy_prdc(x, y)),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{args.examples} x {args.features} against as many, {args.threads} threads; {before:.0f} MiB before")
    seconds = {}
    for name, run in rows.items():
        if args.only and not any(word in name for word in args.only):
            continue
        seconds[name] = report(name, run)
    for name, (ours, run) in peers.items() if args.peers and not args.only else ():
        try:
            print(f"{'':50s} {report(name, run) / seconds[ours]:9.2f} x ours")
        except (ImportError, RuntimeError, MemoryError) as error:
            warnings.warn(f"{name} is left out: {error}", stacklevel=1)


def report(name: str, run: Callable[[], float]) -> float:
    """Seconds of wall and processor time, the peak memory of the process so far, and the value."""
    start, cpu = time.perf_counter(), time.process_time()
    value = run()
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:50s} {wall:7.2f} s wall {used:7.2f} s cpu  peak {peak:6.0f} MiB   value {value:.6g}")
    return used


if __name__ == "__main__":
    main()
