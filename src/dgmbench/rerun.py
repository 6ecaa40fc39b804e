"""Whether the code that made a run's result is the code of now."""

import hashlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from dgmbench import __version__
from dgmbench.signatures import TARGET, locate

if TYPE_CHECKING:
    from dgmbench.training.folder import RunFolder


def source_hash(model: type) -> str:
    """16 hex digits of the SHA-256 of the file that defines a model's class."""
    return hashlib.sha256(Path(inspect.getfile(model)).read_bytes()).hexdigest()[:16]


def version_warning(folder: "RunFolder") -> str | None:
    """A sentence if a finished run's result may differ today; None if it may not, or there is no result."""
    result = folder.read_result()
    if result is None:
        return None
    then = result["versions"]
    if then["dgmbench"] != __version__:
        return f"warning: the run was made by dgmbench {then['dgmbench']}, this is {__version__}: results may differ."
    target = locate(folder.read_config()["model"][TARGET], "model")
    if isinstance(target, type) and then["model_source"] != source_hash(target):
        name = Path(inspect.getfile(target)).name
        return f"warning: {name} has changed since the run was made: results may differ."
    return None
