"""``configs/`` and the command line's overrides, composed by Hydra; its errors become sentences.

Hydra and OmegaConf are imported where they are used, so importing this module is cheap.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgmbench.config.feature_nets import read_net
from dgmbench.config.files import check_own_files, config_dir, options, search_path
from dgmbench.config.habits import understood
from dgmbench.config.overrides import OBJECTS, quoted, rewrite
from dgmbench.config.signatures import show
from dgmbench.config.sweeps import require_harmless
from dgmbench.errors import UserError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig


def compose(config_name: str, overrides: Sequence[str] = (), *, config_dirs: Iterable[str | Path] = ()) -> "DictConfig":
    """Compose ``configs/<config_name>.yaml`` with the command line's ``overrides``.

    The names of the chosen configurations are stored under ``names``.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf, open_dict

    config_dirs = list(config_dirs)
    check_own_files(config_dirs)
    overrides = [understood(text, config_dirs) for text in overrides]  # errors speak of these words
    rewritten = rewrite(overrides, config_dirs=config_dirs)
    with (
        hydra_errors(config_name, overrides, config_dirs),
        _hydra_at_rest(),
        initialize_config_dir(str(config_dir()), job_name="dgm", version_base="1.3"),
    ):
        cfg = hydra_compose(config_name, [*search_path_override(config_dirs), *rewritten], return_hydra_config=True)
        require_harmless(OmegaConf.to_container(cfg.hydra))  # type: ignore[arg-type]
        chosen = cfg.hydra.runtime.choices
        names = {group: str(chosen[group]) for group in OBJECTS if chosen.get(group) is not None}
    with open_dict(cfg):
        del cfg["hydra"]
        if config_name == "train":
            cfg.names = names
        _read_features(cfg, config_dirs)
    return cfg


def _read_features(cfg: "DictConfig", config_dirs: list[str | Path]) -> None:
    """Put the configurations of ``features/`` in place of the names that the protocol gives."""
    from omegaconf import OmegaConf

    named = OmegaConf.select(cfg, "protocol.quality.features", default=None)
    if OmegaConf.is_list(named) and any(isinstance(entry, str) for entry in named):
        cfg.protocol.quality.features = [read_net(e, config_dirs) if isinstance(e, str) else e for e in named]


@contextmanager
def _hydra_at_rest() -> Iterator[None]:
    """Put an active Hydra aside for the block: a job of a sweep composes too."""
    from hydra.core.global_hydra import GlobalHydra

    active = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = active


@contextmanager
def hydra_errors(config_name: str, overrides: Sequence[str], config_dirs: Iterable[str | Path]) -> Iterator[None]:
    """Turn the exceptions of Hydra and OmegaConf within the block into sentences."""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise _translated(error, config_name, list(overrides), list(config_dirs)) from error
    except yaml.YAMLError as error:
        raise UserError(f"A configuration is not valid YAML: {' '.join(str(error).split())}.") from error


def search_path_override(config_dirs: Iterable[str | Path]) -> list[str]:
    """The Hydra override that adds the user's own folders of configurations."""
    own = search_path(config_dirs)[:-1]
    return [f"hydra.searchpath=[{','.join(quoted(f'file://{folder}') for folder in own)}]"] if own else []


def _translated(error: Exception, config_name: str, overrides: list[str], config_dirs: list[str | Path]) -> UserError:
    """One clear sentence for an exception of Hydra or OmegaConf."""
    message = str(error) or str(error.__cause__)
    first = message.splitlines()[0] if message else type(error).__name__
    if match := re.search(r"You must specify '(\S+)'", first):
        group = match[1]
        if group == "model":
            return UserError("No model is chosen: add model=NAME ('dgm list' shows the names).")
        return UserError(f"No {group} is chosen: add {group}=NAME, one of: {', '.join(options(group, config_dirs))}.")
    if match := re.search(r"Could not override '([^'@]+)\S*'\. No match in the defaults list", first):
        return UserError(f"There is no {match[1]} to choose in this configuration.")
    if match := re.search(r"Could not override '((?!hydra)[^']+)'", first):
        key = match[1]
        others = [text for text in overrides if not re.match(rf"\+*{re.escape(key)}\s*=", text)]
        return _unknown_key(key, compose(config_name, others, config_dirs=config_dirs) if others != overrides else {})
    if match := re.search(r"(?:In '([^']+)': )?Could not (?:find|load) '([^']+)'", first):
        group, _, name = match[2].rpartition("/")
        known = options(group, config_dirs) or re.findall(r"^\t(\S+)$", message, re.MULTILINE)
        problem = nearest(name, known, what=group or "configuration")
        return UserError(problem if group.startswith("hydra") else f"configs/{match[1] or config_name}.yaml: {problem}")
    return UserError(f"The configuration cannot be composed: {first.rstrip('.')}.")


def _unknown_key(key: str, cfg: Mapping[str, Any]) -> UserError:
    *parents, name = key.split(".")
    node: Any = cfg
    for i, parent in enumerate(parents):
        if not isinstance(node, Mapping) or parent not in node:
            return _unknown_key(".".join(parents[: i + 1]), cfg)
        node = node[parent]
    if not isinstance(node, Mapping):
        return UserError(f"{'.'.join(parents)}={show(node)} is a single value: it has no key '{name}'.")
    where = ".".join(parents)
    return UserError(
        nearest(name, [name for name in node if name not in ("names", "hydra")], what=f"{where} setting".lstrip())
    )
