"""Train the classifiers of the embedded digits that ship inside the package, and write their accuracy and hash.

    python scripts/train_digits_classifiers.py

Run it again after a change of ``dgmbench/evaluation/features/classifier.py`` that changes its key (its tests say so).
"""

from pathlib import Path

import torch

from dgmbench.config import compose, resolve
from dgmbench.data import load
from dgmbench.evaluation.features.build import build_net
from dgmbench.evaluation.features.classifier import SHIPPED, Classifier


def main() -> None:
    """Write one pair of files for each set."""
    torch.set_num_threads(1)
    for name in ("digits", "digits_binary"):
        for file in SHIPPED.glob(f"{name}.*"):
            file.unlink()
        data = load(resolve(compose("train", ["model=made", f"data={name}"]))["data"], Path())
        net = build_net({"_target_": "dgmbench.evaluation.features.classifier.Classifier", "name": "classifier"}, data,
                        folder=None, device=torch.device("cpu"), note=print)  # fmt: skip
        assert isinstance(net, Classifier)
        net.save(data, SHIPPED / name)
        print(name, net.accuracy, (SHIPPED / f"{name}.npz").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
