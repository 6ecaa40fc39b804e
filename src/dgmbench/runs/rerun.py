"""Whether a run's folder can be gone on with: its name, and the code that made its result."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from dgmbench import __version__
from dgmbench.config.targets import TARGET, locate
from dgmbench.errors import UserError
from dgmbench.source import source_hash

if TYPE_CHECKING:
    from dgmbench.runs.folder import RunFolder


def check_name(folder: "RunFolder") -> None:
    """Refuse a folder that is not called what its configuration says: training would start beside it."""
    from dgmbench.config import complete, run_name
    from dgmbench.runs.build import count_devices, load_data, settle

    completed = complete(folder.read_config())
    completed["hardware"]["devices"] = count_devices(completed["hardware"])
    data = load_data(completed)
    settle(completed, data.spec)
    name = run_name(completed, data.content_hash)
    if name != folder.path.absolute().name:
        raise UserError(
            f"The folder {folder.path} holds the run {name} by its configuration and data of now: rename it to that to "
            "go on with it, or train it anew by --fresh OUTPUTS."
        )


def version_warning(folder: "RunFolder") -> str | None:
    """A sentence if a finished run's result may differ today; None if it may not, or there is no result."""
    result = folder.read_result()
    if result is None:
        return None
    then = result["versions"]
    if (version := then.get("dgmbench")) != __version__:
        made = "an unknown version of dgmbench" if version is None else f"dgmbench {version}"
        return f"warning: the run was made by {made}, this is {__version__}: results may differ."
    target = locate(folder.read_config()["model"][TARGET], "model")
    if isinstance(target, type) and then.get("model_source") != source_hash(target):
        name = Path(inspect.getfile(target)).name
        return f"warning: {name} or what it imports has changed since the run was made: results may differ."
    return None
