"""``dgm train run=DIR``: the settings of a finished run with a larger budget."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgmbench.errors import UserError

ALLOWED = (
    "trainer.budget", "trainer.patience", "trainer.progress", "trainer.samples", "trainer.checkpoint", "paths.outputs",
    "paths.data", "hardware.accelerator", "hardware.threads",
)  # fmt: skip
"""What may be set: how long, where, and what changes no result."""


def longer(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of the run that goes on from ``run=DIR``; it lies beside that one unless told otherwise."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from dgmbench.config import rewrite
    from dgmbench.runs.folder import RunFolder

    parsed = OverridesParser.create().parse_overrides(rewrite(overrides))
    given = {override.get_key_element(): override.value() for override in parsed}
    path = Path(str(given.pop("run"))).expanduser()
    folder = RunFolder.existing(path)
    if folder.path.is_dir() and not folder.last.exists():
        raise UserError(f"run={path} has no {folder.last.name} to go on from; trainer.start_from=DIR takes weights.")
    for key in given:
        if key not in ALLOWED:
            raise UserError(
                f"{key}={given[key]} cannot be changed of a run that goes on: only {', '.join(ALLOWED)} can. "
                f"trainer.start_from={path} starts another run from its weights."
            )
    if "trainer.budget" not in given:
        raise UserError(f"Say how far run={path} is to go, in all: trainer.budget=40ep, for instance.")
    cfg: dict[str, Any] = folder.read_config()
    cfg.pop("origin", None)
    cfg["paths"]["outputs"] = str(folder.path.absolute().parent)
    for key, value in given.items():
        group, _, name = key.partition(".")
        cfg[group][name] = value
    cfg["trainer"]["continue_from"] = str(path)
    return cfg
