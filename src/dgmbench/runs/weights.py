"""A run's checkpoints: whose they are, from which time of the run, and their weights in a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgmbench.errors import UserError
from dgmbench.models.contract import Model
from dgmbench.runs.build import load_weights
from dgmbench.runs.folder import RunFolder
from dgmbench.runs.share import read_shared
from dgmbench.training.files import read_checkpoint
from dgmbench.training.update import Clock

PARTS = {"state_dict", "dgmbench", "run"}


def own_checkpoint(path: Path, run: str | None, checkpoint: dict[str, Any] | None = None) -> dict[str, Any]:
    """A checkpoint of the run of this name; another run's, that is also another model's, size's or seed's, is refused.

    One from before checkpoints named their runs is taken for what it should be, and so is any if ``run`` is None.
    ``checkpoint`` is what has been read of it already.
    """
    checkpoint = checkpoint or read_checkpoint(path)
    if not checkpoint.keys() >= PARTS or not all(isinstance(checkpoint[part], Mapping) for part in PARTS):
        raise UserError(f"{path} is no checkpoint of dgm: put the run's own in its place, or train the run again.")
    owner = checkpoint["run"].get("name", run)
    if run is not None and owner != run:
        raise UserError(
            f"The checkpoint {path} belongs to the run {owner}, but by its configuration and data this folder is the "
            f"run {run}: put the run's own checkpoint in its place, or train the run again."
        )
    return checkpoint


def resumable(path: Path, run: str) -> dict[str, Any]:
    """A run's last checkpoint with all that a resume puts back; one that another version has saved may lack some of it,
    and what was left out would begin anew without a word.
    """
    checkpoint = own_checkpoint(path, run)
    state, clock = checkpoint["dgmbench"], checkpoint["dgmbench"].get("clock")
    counters = set(Clock().state_dict())
    lacks = [f"run.{key}" for key in ("log_length", "threads") if key not in checkpoint["run"]]
    lacks += [key for key in ("clock", "optimizers", "ema", "windows", "rng") if key not in state]
    if isinstance(clock, Mapping):
        lacks += [f"clock.{key}" for key in sorted(counters ^ set(clock))]
    if lacks:
        raise UserError(
            f"{path} was saved by another version of dgm, or is none of its checkpoints (it differs in "
            f"{', '.join(map(str, lacks))}): finish the run with that version, or move {path.parent} away to train it "
            "from the beginning."
        )
    return checkpoint


def weights_of(
    folder: RunFolder, rule: str, run: str | None, result: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The checkpoint with a run's ``best`` or ``final`` weights, before any model is built by its configuration.

    ``result`` of a finished run says after how many images they were the best ones, and the last ones.
    """
    path = folder.checkpoint(rule)
    checkpoint = own_checkpoint(path, run, read_shared(folder, rule) if folder.is_shared else None)
    try:
        images = checkpoint["dgmbench"]["clock"]["images"]
        known = {} if result is None else result["objective"] if rule == "best" else result["cost"]
        expected = known.get("images", images)
        if images == expected:
            return checkpoint
        sentence = (
            f"The checkpoint {path} was saved after {images:,} images, but the run's {rule} weights are those after "
            f"{expected:,}: put the right checkpoint in its place, or train the run again."
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} does not say from which time of the run it is; train it again.") from error
    raise UserError(sentence)


def load_own(model: Model, folder: RunFolder, rule: str, checkpoint: Mapping[str, Any]) -> None:
    """Put the weights of a run's checkpoint into its model."""
    try:
        load_weights(model, checkpoint)
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(":. ")
        raise UserError(
            f"The checkpoint {folder.checkpoint(rule)} does not fit {type(model).__name__} as {folder.config} has it "
            f"({type(error).__name__}: {reason}): put the run's own in its place, or train the run again."
        ) from error
