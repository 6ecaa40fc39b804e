"""dgmbench: train, sample, measure and compare the deep generative models of one survey under one evaluator."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgmbench.runs.load import Run as Run
    from dgmbench.runs.load import load_run as load_run

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``load_run`` and ``Run``, imported when they are asked for: they bring torch, and ``dgm --help`` does without."""
    if name in ("load_run", "Run"):
        from dgmbench.runs import load

        return getattr(load, name)
    raise AttributeError(f"module 'dgmbench' has no attribute {name!r}")
