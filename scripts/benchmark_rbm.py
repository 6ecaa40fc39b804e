"""Time of one RBM epoch beside scikit-learn and learnergy at equal settings: 784 x 500 units, batches of 100, 1 thread.

    python scripts/benchmark_rbm.py [--examples 5000] [--epochs 3] [--learnergy DIR]

All of them do one Gibbs step a batch: PCD-1 for scikit-learn, CD-1 for learnergy, both for dgmbench with torch's SGD.
The figures are the best of ``--epochs`` epochs after one to warm up, in seconds for ``--examples`` examples of random
bits. learnergy is optional: ``pip install --no-deps --target DIR learnergy``, then ``--learnergy DIR``.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.boltzmann.estimators import CD, PCD, Estimator
from dgmbench.models.boltzmann.rbm import Rbm

VISIBLE, HIDDEN, BATCH, RATE = 784, 500, 100, 0.01


def dgmbench_epoch(x: torch.Tensor, estimator: Estimator) -> Callable[[], None]:
    """One epoch of our RBM under torch's SGD."""
    rbm = Rbm(DataSpec((VISIBLE,), "binary"), hidden=HIDDEN, estimator=estimator)
    g = torch.Generator().manual_seed(0)
    rbm.initialise(Batch(x), g)
    optimiser = torch.optim.SGD(rbm.parameters(), lr=RATE)

    def epoch() -> None:
        for index in torch.randperm(len(x), generator=g).split(BATCH):
            batch = Batch(x[index])
            optimiser.zero_grad()
            rbm.loss("model", batch, g)[0].backward()
            optimiser.step()
            rbm.after_step("model", batch, g)

    return epoch


def sklearn_epoch(x: torch.Tensor, dtype: type) -> Callable[[], None]:
    """One epoch of scikit-learn's BernoulliRBM."""
    from sklearn.neural_network import BernoulliRBM

    rbm = BernoulliRBM(n_components=HIDDEN, learning_rate=RATE, batch_size=BATCH, n_iter=1, random_state=0)
    values = x.numpy().astype(dtype)
    return lambda: rbm.fit(values) and None


def learnergy_epoch(x: torch.Tensor, folder: str) -> Callable[[], None]:
    """One epoch of learnergy's RBM."""
    sys.path.insert(0, folder)
    from learnergy.models.bernoulli import RBM
    from torch.utils.data import TensorDataset

    data = TensorDataset(x.float(), torch.zeros(len(x)))
    rbm = RBM(n_visible=VISIBLE, n_hidden=HIDDEN, steps=1, learning_rate=RATE, momentum=0, decay=0)
    return lambda: rbm.fit(data, batch_size=BATCH, epochs=1) and None


def best(epoch: Callable[[], None], repeats: int) -> float:
    """Seconds of the fastest epoch, after one to warm up."""
    epoch()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        epoch()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learnergy", metavar="DIR", help="folder that learnergy was installed to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.from_numpy((np.random.default_rng(0).random((args.examples, VISIBLE)) < 0.2).astype(np.uint8))
    rows = {
        "scikit-learn PCD-1, float64": sklearn_epoch(x, np.float64),
        "scikit-learn PCD-1, float32": sklearn_epoch(x, np.float32),
        "dgmbench PCD-1, float32": dgmbench_epoch(x, PCD(chains=BATCH)),
        "dgmbench CD-1, float32": dgmbench_epoch(x, CD()),
    }
    if args.learnergy:
        try:
            rows["learnergy CD-1, float32"] = learnergy_epoch(x, args.learnergy)
        except (ImportError, RuntimeError) as error:
            warnings.warn(f"learnergy is left out: it cannot be imported here ({error}).", stacklevel=1)
    seconds = {name: best(epoch, args.epochs) for name, epoch in rows.items()}
    ours = seconds["dgmbench PCD-1, float32"]
    for name, value in seconds.items():
        print(f"{name:30s} {value:8.3f} s an epoch   {value / ours:6.2f} x dgmbench PCD-1")


if __name__ == "__main__":
    main()
