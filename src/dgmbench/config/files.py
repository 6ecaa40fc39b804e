"""Where configurations lie, and what their YAML files say: read without importing torch or Hydra."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dgmbench.config.bounded import Excessive, load_yaml, read_bytes
from dgmbench.config.targets import in_a_run
from dgmbench.errors import UserError


def config_dir() -> Path:
    """The folder of the shipped configurations: inside the installed package, else in the checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "configs", package.parent.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"The configurations are missing from the installation at {package}: install dgmbench again.")


def search_path(config_dirs: Iterable[str | Path] = ()) -> list[Path]:
    """All folders of configurations: the user's own (given, and ``DGM_CONFIG_DIR``), then the shipped ones."""
    from_environment = [entry for entry in os.environ.get("DGM_CONFIG_DIR", "").split(os.pathsep) if entry]
    folders = [Path(entry).expanduser().absolute() for entry in (*config_dirs, *from_environment)]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"The configuration folder {folder} does not exist.")
    return [*dict.fromkeys(folders), config_dir()]


def options(group: str, config_dirs: Iterable[str | Path] = ()) -> list[str]:
    """The names that can be chosen for ``group`` (``model``, ``model/estimator``, ...)."""
    files = (file for folder in search_path(config_dirs) for file in (folder / group).glob("*.yaml"))
    return sorted({file.stem for file in files if not file.stem.startswith("_")})


def import_from(folders: Sequence[Path]) -> None:
    """Let the user's own classes be imported from ``folders`` and the current one; installed packages come first.

    A run's folder is nobody's own: from there nothing is imported, not even an optional package of that name.
    """
    for entry in (*map(str, folders), os.getcwd()):
        if entry not in sys.path and not in_a_run(Path(entry)):
            sys.path.append(entry)


def group_files(group: str, config_dirs: Iterable[str | Path]) -> dict[str, tuple[dict[str, Any], Path]]:
    """The contents and the path of every configuration of a group by name, the user's own before the shipped ones."""
    found: dict[str, tuple[dict[str, Any], Path]] = {}
    for folder in search_path(config_dirs):
        for file in sorted((folder / group).glob("*.yaml")):
            if not file.stem.startswith("_"):
                found.setdefault(file.stem, (read_yaml(file), file))
    return dict(sorted(found.items()))


def read_settings(group: str, name: str, config_dirs: Iterable[str | Path] = ()) -> dict[str, Any]:
    """The file ``configs/<group>/<name>.yaml`` as it stands, or nothing if there is none."""
    return group_files(group, config_dirs).get(name, ({}, None))[0]


def check_own_files(config_dirs: Iterable[str | Path]) -> None:
    """Refuse configurations of the user's folders that are more than they look, before Hydra reads any of them."""
    groups = [path.name for path in config_dir().iterdir() if path.is_dir()]
    for folder in search_path(config_dirs)[:-1]:
        for file in (*folder.glob("*.yaml"), *(file for group in groups for file in (folder / group).rglob("*.yaml"))):
            try:
                read_yaml(file)
            except Excessive:
                raise
            except UserError:
                pass  # it may never be chosen


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; anything else ends in a sentence that names the file."""
    try:
        content = load_yaml(read_bytes(file), file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must be a mapping of keys to values.")
    return content
