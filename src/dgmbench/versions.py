"""What produced a number: versions of the code and of the packages that it rests on."""

import platform
from importlib.metadata import PackageNotFoundError, version

from dgmbench import __version__
from dgmbench.source import evaluation_hash, source_hash

PACKAGES = ("torch", "pytorch-lightning", "hydra-core", "omegaconf", "torchmetrics", "numpy", "scikit-learn")


def versions(model: type) -> dict[str, str]:
    """Code and package versions that a result depends on.

    ``model_source`` changes with the mathematics of the model's class, ``evaluation_source`` with the evaluation.
    """
    *others, (evaluation, source) = evaluation_versions().items()
    return {**dict(others), "model_source": source_hash(model), evaluation: source}


def evaluation_versions() -> dict[str, str]:
    """The same without a model."""
    found = {"dgmbench": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {**found, "evaluation_source": evaluation_hash()}
