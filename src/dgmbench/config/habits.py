"""Words that people bring along from other tools, and what they are called here."""

import re
from collections.abc import Iterable
from pathlib import Path

from dgmbench.config.files import options

EPOCHS = ("epochs", "max_epochs", "num_epochs", "n_epochs", "trainer.epochs", "trainer.max_epochs")
STEPS = ("steps", "max_steps", "trainer.steps", "trainer.max_steps")
RATES = ("lr", "learning_rate", "trainer.lr", "trainer.learning_rate", "optimizer.learning_rate")
HABITS: dict[str, tuple[str, str]] = {
    **{word: ("trainer.budget", "ep") for word in EPOCHS},
    **{word: ("trainer.budget", "ba") for word in STEPS},
    **{word: ("optimizer.lr", "") for word in RATES},
    "batch_size": ("trainer.batch_size", ""),
    "data.batch_size": ("trainer.batch_size", ""),
    "budget": ("trainer.budget", ""),
    "patience": ("trainer.patience", ""),
    "dry_run": ("trainer.dry_run", ""),
    "weight_decay": ("optimizer.weight_decay", ""),
    "dataset": ("data", ""),
    "device": ("hardware", ""),
    "precision": ("hardware.precision", ""),
    "output_dir": ("paths.outputs", ""),
    "data_dir": ("paths.data", ""),
    "y": ("label", ""),
}
"""A word, the key that it means, and the unit that a bare number of it has."""
VALUES = {"hardware": {"cuda": "gpu"}}


def understood(text: str, config_dirs: Iterable[str | Path] = ()) -> str:
    """An override in this software's words; unchanged if it is that, or no habit.

    >>> understood("max_epochs=20"), understood("lr=1e-3,3e-4"), understood("trainer.budget=5ep")
    ('trainer.budget=20ep', 'optimizer.lr=1e-3,3e-4', 'trainer.budget=5ep')
    """
    word, equals, value = text.partition("=")
    if not equals or word.lstrip("+") not in HABITS or options(word.replace(".", "/"), config_dirs):
        return text
    key, unit = HABITS[word.lstrip("+")]
    values = [VALUES.get(key, {}).get(each, each) for each in value.split(",")]
    return f"{key}={','.join(each + unit if re.fullmatch(r'[0-9.e]+', each) else each for each in values)}"
