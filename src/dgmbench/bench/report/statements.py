"""Which of a model's many numbers say most: patterns of metrics' names, and their order."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatch

from dgmbench.bench.report.numbers import HEADLINES
from dgmbench.runs.metric_names import bound_samples, is_called

LIKELIHOODS = tuple(name for name in HEADLINES if not name.endswith("energy_distance"))
TASKS = (
    "classification_error",
    "translation_*accuracy",
    "enhanced_psnr",
    "caption_agreement",
    "frame_change_ratio",
    "word_error",
    "prediction_*",
    "predictive_nll",
)
SAMPLES = (
    "*oracle_nll",
    "fd_*",
    "energy_distance",
    "patch_energy_distance",
    "sample_diversity",
    "precision_*",
    "recall_*",
)
CODES = ("linear_probe_error", "mig", "reconstruction_psnr", "reconstruction_mse", "reconstruction_token_error")
ASIDE = ("*_bias", "*_inf", "*_ess", "*_tail_index", "*_train", "*_gap", "log_z_*", "*_acceptance", "*_sigma")
"""What says something about another number; of the sample measures these are other variants."""


def statements(names: Iterable[str]) -> list[str]:
    """What is said about likelihood, the strongest statement first; of several importance-weighted bounds the one of
    most samples.

    >>> statements(["elbo", "iw_bound_k5", "fd_classifier", "iw_bound_k50"])
    ['iw_bound_k50', 'elbo']
    """
    names, found = list(names), []
    for wanted in LIKELIHOODS:
        called = [name for name in names if is_called(name, wanted)]
        found += [max(called, key=lambda name: bound_samples(name) or 0)] if called else []
    return found


def first_of_each(names: Iterable[str], patterns: Iterable[str]) -> Iterator[str]:
    """The first name for each pattern that says something itself."""
    names = [name for name in names if not is_aside(name)]
    for pattern in patterns:
        yield from [name for name in names if fnmatch(name, pattern)][:1]


def is_aside(name: str) -> bool:
    """Whether a number says something about another number only."""
    return any(fnmatch(name, pattern) for pattern in ASIDE)
