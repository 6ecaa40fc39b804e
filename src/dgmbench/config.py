"""From the command line's overrides to the complete configuration of a run, its objects, its hash and its name.

``compose`` reads ``configs/`` with Hydra, ``complete`` checks every key and fills in the defaults that live in the
classes' signatures, ``instantiate`` builds the objects; nothing else in dgmbench calls Hydra or resolves a
``_target_``. Hydra, OmegaConf and torch are imported where they are used, so importing this module is cheap.
"""

import dataclasses
import hashlib
import inspect
import json
import os
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgmbench import settings
from dgmbench.errors import UserError, nearest
from dgmbench.signatures import TARGET, build, check_arguments, coerce, complete_node, locate, show

if TYPE_CHECKING:
    from omegaconf import DictConfig

PATHS = ("run", "paths.outputs", "paths.data", "data.path")  # taken literally: no need to quote their special signs
OBJECTS = ("model", "data", "optimizer")  # groups whose nodes are built from a class
SUPPLIED = {"model": ("spec",), "data": (), "optimizer": ("params",)}
METADATA = {"model": ("card",), "data": ("card", "name", "binarise"), "optimizer": ("players", "schedule")}
ROLES = {"Model": "model", "Reader": "data", "Optimizer": "optimizer"}  # base classes and the groups they make
# What cannot change a run's result: keys of groups, and whole groups. Of the hardware, precision and the number of
# processes count.
NOT_HASHED = {
    "model": ("card",),
    "data": ("card", "path", "download", "verify"),
    "trainer": ("progress", "checkpoint", "samples"),
}
GROUPS_NOT_HASHED = ("paths", "logger", "protocol", "names")
TOP_LEVEL = (*OBJECTS, "trainer", "hardware", "logger", "protocol", "seed", "paths", "names")


def config_dir() -> Path:
    """The folder of the shipped configurations: inside the installed package, else in the checkout."""
    package = Path(__file__).resolve().parent
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


def compose(config_name: str, overrides: Sequence[str] = (), *, config_dirs: Iterable[str | Path] = ()) -> "DictConfig":
    """Compose ``configs/<config_name>.yaml`` with the command line's ``overrides``.

    The names of the chosen configurations are stored under ``names``.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import open_dict

    config_dirs = list(config_dirs)
    rewritten = rewrite(overrides, config_dirs=config_dirs)
    with (
        hydra_errors(config_name, overrides, config_dirs),
        _hydra_at_rest(),
        initialize_config_dir(str(config_dir()), job_name="dgm", version_base="1.3"),
    ):
        cfg = hydra_compose(config_name, [*search_path_override(config_dirs), *rewritten], return_hydra_config=True)
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
        from dgmbench.evaluation.features.build import read_net  # it imports this module

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


def quoted(value: object) -> str:
    """The value as Hydra's grammar takes it literally, whatever signs it has."""
    return "'{}'".format(str(value).replace("'", r"\'"))


def rewrite(overrides: Sequence[str], *, multirun: bool = False, config_dirs: Iterable[str | Path] = ()) -> list[str]:
    """Check the overrides' names and bring them to the form that Hydra needs.

    ``model.hidden=3`` works whether or not the YAML has the key (``complete`` checks it against the signature), and
    ``model.estimator=pcd`` chooses a configuration of the sub-group ``model/estimator``; in ``[cd,pcd]`` each name
    stands for the contents of its configuration.
    """
    config_dirs = list(config_dirs)
    return [one for text in overrides for one in _rewritten(text, multirun, config_dirs)]


def _rewritten(text: str, multirun: bool, config_dirs: list[str | Path]) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = text.partition("=")
    if equals and key.lstrip("+") in PATHS and value[:1] not in ("'", '"') and not (multirun and "," in value):
        text = f"{key}={quoted(value)}"
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        if "=" not in text and not text.startswith("~"):
            raise UserError(
                f"'{text}' is not of the form key=value, such as model=vae or trainer.budget=5ep."
            ) from error
        reason = str(error).splitlines()[0]
        raise UserError(f"'{text}' cannot be read ({reason}); put quotes around values with special signs.") from error
    key = override.key_or_group
    if override.is_sweep_override() and not multirun:
        raise UserError(f"{text} asks for several runs: add -m (dgm train -m {text}), or give one value.")
    if (
        key.startswith("hydra")
        or override.is_delete()
        or (text.startswith("++") and isinstance(override.value(), dict))
    ):
        return [text]  # the last is half of what a list of names becomes: a sweep's jobs are rewritten twice
    group = key.replace(".", "/")
    chosen = [show(value) for value in _values(override)]
    known = options(group, config_dirs)
    if known and group == key:
        _choose(key, chosen, known)
    elif known and all(re.fullmatch(r"[\w-]+", value) for value in chosen):
        _choose(key, chosen, known)
        return [text.replace(key, group, 1)]
    elif known and (names := _names_in_list(override)):
        _choose(key, names, known)
        nodes = ",".join(_written(_contents(group, name, config_dirs)) for name in names)
        parent, _, name = key.rpartition(".")
        # a list cannot be merged into the default's mapping, and sweepers keep one override a key
        return [f"++{parent}={{{name}:null}}", f"++{key}=[{nodes}]"]
    if key.split(".")[0] in OBJECTS and "." in key and "/" not in key:
        return ["++" + text.lstrip("+")]
    return [text]


def _values(override: Any) -> list[Any]:
    from hydra.core.override_parser.types import ChoiceSweep

    value = override.value()
    return list(value.list) if isinstance(value, ChoiceSweep) else [] if override.is_sweep_override() else [value]


def _names_in_list(override: Any) -> list[str]:
    """The names in ``key=[name,name]``, or nothing if that is not what the value is."""
    value = override.value()
    named = isinstance(value, list) and all(isinstance(item, str) and re.fullmatch(r"[\w-]+", item) for item in value)
    return value if named else []


def _contents(group: str, name: str, config_dirs: list[str | Path]) -> dict[str, Any]:
    from dgmbench.cards import read_settings  # it imports this module

    contents = read_settings(group, name, config_dirs)
    if "defaults" in contents:
        raise UserError(f"{group}={name} is made of other configurations, so it cannot stand in a list.")
    return contents


def _written(value: Any) -> str:
    """A plain value in Hydra's grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return quoted(value) if isinstance(value, str) else show(value)


def _choose(group: str, chosen: list[str], known: list[str]) -> None:
    for name in chosen:
        if name not in known:
            hint = " 'dgm list' shows them all." if group == "model" else ""
            raise UserError(nearest(name, known, what=group.replace("/", " ").replace(".", " ")) + hint)


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


def complete(cfg: "DictConfig | Mapping[str, Any]") -> dict[str, Any]:
    """Return the resolved configuration of a run as a plain container, checked and with all defaults filled in.

    Every node with a ``_target_`` is checked against the target's signature, every other group against its schema.
    """
    plain = resolve(cfg)
    for key in plain:
        if key not in TOP_LEVEL:
            raise UserError(nearest(key, [name for name in TOP_LEVEL if name != "names"], what="setting"))
    for key in TOP_LEVEL[:-1]:
        if key not in plain:
            raise UserError(f"The configuration has no {key}: it was not composed from train.yaml.")
    seed = plain["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed={show(seed)} must be a whole number, zero or more.")
    done: dict[str, Any] = {group: _complete_object(plain[group], group) for group in OBJECTS}
    done["data"]["binarise"] = coerce(done["data"].get("binarise", "none"), settings.Binarise, "data.binarise")
    done["optimizer"] |= {
        "players": _complete_players(done["optimizer"]),
        "schedule": checked(done["optimizer"].get("schedule", {}), settings.Schedule, "optimizer.schedule"),
    }
    done["trainer"] = checked(plain["trainer"], settings.Trainer, "trainer")
    done["hardware"] = checked(plain["hardware"], settings.Hardware, "hardware")
    done["logger"] = _complete_logger(plain["logger"])
    done["protocol"] = complete_protocol(plain["protocol"])
    done["seed"] = seed
    done["paths"] = complete_paths(plain["paths"])
    done["names"] = {**{group: _class_name(done[group]) for group in OBJECTS}, **plain.get("names", {})}
    return done


def resolve(cfg: "DictConfig | Mapping[str, Any]") -> dict[str, Any]:
    """The configuration as plain dicts, lists and values, with its interpolations resolved."""
    from omegaconf import Container, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        node: Any = cfg if isinstance(cfg, Container) else OmegaConf.create(dict(cfg))
        plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        if type(error).__name__ == "MissingMandatoryValue":
            raise UserError(f"{key} must be given: add {key}=VALUE.") from error
        raise UserError(f"The value of {key} cannot be resolved: {str(error).splitlines()[0].rstrip('.')}.") from error
    return typing.cast(dict[str, Any], plain)


def _complete_object(node: Any, group: str) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        raise UserError(f"{group}={show(node)} is not the configuration of a {group}: choose one by its name.")
    if group == "optimizer" and TARGET in node:
        _check_optimizer(node[TARGET])
    return complete_node(node, group, supplied=SUPPLIED[group], metadata=METADATA[group])


def _check_optimizer(name: str) -> None:
    """Refuse optimisers that ask for more of a training than gradients and a step."""
    target = locate(name, "optimizer")
    if not isinstance(target, type):
        return
    step = getattr(target, "step", None)
    if step is None:
        raise UserError(f"optimizer._target_={name} is no optimiser: it has no step.")
    closure = inspect.signature(step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UserError(
            f"optimizer._target_={name} evaluates the loss several times a step, which training by turns does not "
            "offer; choose an optimiser that steps on one gradient, such as optimizer=adam."
        )
    if "Sparse" in target.__name__:
        raise UserError(f"optimizer._target_={name} takes sparse gradients only; use another, such as optimizer=adam.")


def _complete_players(node: Mapping[str, Any]) -> dict[str, Any]:
    target = locate(node[TARGET], "optimizer")
    players = coerce(node.get("players", {}), dict[str, dict[str, Any]], "optimizer.players")
    return {
        name: _complete_player(arguments, target, f"optimizer.players.{name}") for name, arguments in players.items()
    }


def _complete_player(arguments: Mapping[str, Any], target: Callable[..., Any], where: str) -> dict[str, Any]:
    """The optimiser's arguments for one player, and under ``groups`` those for its groups of parameters."""
    own = {key: value for key, value in arguments.items() if key != "groups"}
    done = check_arguments(own, target, where, supplied=SUPPLIED["optimizer"], also=("groups",))
    if "groups" not in arguments:
        return done
    groups = coerce(arguments["groups"], dict[str, dict[str, Any]], f"{where}.groups")
    return done | {"groups": {name: _complete_group(g, target, f"{where}.groups.{name}") for name, g in groups.items()}}


def _complete_group(arguments: Mapping[str, Any], target: Callable[..., Any], where: str) -> dict[str, Any]:
    own = {key: value for key, value in arguments.items() if key != "lr_multiplier"}
    done = check_arguments(own, target, where, supplied=SUPPLIED["optimizer"], also=("lr_multiplier",))
    if "lr_multiplier" not in arguments:
        return done
    multiplier = coerce(arguments["lr_multiplier"], float, f"{where}.lr_multiplier")
    if "lr" in own:
        raise UserError(f"{where} gives both lr and lr_multiplier, a factor on the player's lr; keep one.")
    if multiplier < 0:
        raise UserError(f"{where}.lr_multiplier={multiplier} must be zero or more.")
    return done | {"lr_multiplier": multiplier}


def _complete_logger(node: Any) -> dict[str, Any]:
    name = node.get("name") if isinstance(node, Mapping) else node
    if name not in settings.LOGGERS:
        raise UserError(nearest(str(name), settings.LOGGERS, what="logger"))
    return checked(node, settings.LOGGERS[name], "logger")


def complete_protocol(node: Any) -> dict[str, Any]:
    """Check the protocol of an evaluation."""
    done = checked(node, settings.Protocol, "protocol")
    groups = {
        "ais": settings.Ais,
        "decoder_ais": settings.DecoderAis,
        "parzen": settings.Parzen,
        "semi_supervised": settings.SemiSupervised,
    }
    done |= {name: checked(done[name], schema, f"protocol.{name}") for name, schema in groups.items()}
    return done | {"quality": _complete_quality(done["quality"])}


def _complete_quality(node: Mapping[str, Any]) -> dict[str, Any]:
    """Names of feature nets become their configurations, completed with the defaults of their classes."""
    features = node.get("features")
    quality = checked({**node, "features": None}, settings.Quality, "protocol.quality")
    if features is None:
        return quality
    if not isinstance(features, list) or not all(isinstance(entry, str | Mapping) for entry in features):
        raise UserError(
            f"protocol.quality.features={show(features)} must be a list of names of configs/features, such as "
            "[classifier,random_conv], or of nodes of the same form."
        )
    from dgmbench.evaluation.features.build import check_names, complete_net  # it imports this module

    nodes = [complete_net(entry) for entry in features]
    check_names(nodes)
    return quality | {"features": nodes}


def complete_hardware(node: Any) -> dict[str, Any]:
    """Check the hardware settings of an evaluation."""
    return checked(node, settings.Hardware, "hardware")


def complete_paths(node: Any) -> dict[str, str]:
    """Check the folders, and write out ``~``."""
    paths = coerce(node, dict[str, str], "paths")
    for key in paths:
        if key not in ("outputs", "data"):
            raise UserError(nearest(key, ["outputs", "data"], what="paths setting"))
        if not paths[key].strip():
            raise UserError(f"paths.{key} is empty: name a folder, such as paths.{key}=DIR.")
    return {key: os.path.expanduser(value) for key, value in paths.items()}


def checked(node: Any, schema: type, where: str) -> dict[str, Any]:
    """Check a group without a class against its dataclass, and return it with its values brought to their types."""
    hints = typing.get_type_hints(schema)
    if not isinstance(node, Mapping):
        advice = f"write {where}.name={show(node)}" if "." in where and "name" in hints else "choose one by its name"
        raise UserError(f"{where}={show(node)} is not a group of settings: {advice}.")
    for key in node:
        if key not in hints:
            raise UserError(nearest(key, hints, what=f"{where} setting".lstrip()))
    for field in dataclasses.fields(schema):
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in node and not optional:
            raise UserError(f"{where}.{field.name} must be given: {where}'s configuration lacks it.")
    dotted = f"{where}." if where else ""
    return dataclasses.asdict(schema(**{key: coerce(value, hints[key], dotted + key) for key, value in node.items()}))


def _class_name(node: Mapping[str, Any]) -> str:
    return str(node[TARGET]).rpartition(".")[2].lower()


def instantiate(node: "DictConfig | Mapping[str, Any]", *args: Any, **kwargs: Any) -> Any:
    """Build the object of a node with a ``_target_`` (nested nodes too), with ``args`` and ``kwargs`` added.

    The only place where configuration becomes objects. Metadata (``card``, ``players``, ...) are left out.
    """
    plain = resolve(node)
    target = locate(plain.get(TARGET), "")
    accepted = inspect.signature(target).parameters
    metadata = {key for keys in METADATA.values() for key in keys if key not in accepted}
    bases = [base.__name__ for base in target.__mro__] if isinstance(target, type) else []
    where = next((ROLES[name] for name in bases if name in ROLES), str(plain[TARGET]).rpartition(".")[2])
    return build({key: value for key, value in plain.items() if key not in metadata}, where, args, kwargs)


def config_hash(completed: Mapping[str, Any], data_hash: str) -> str:
    """8 hex digits that identify a run by its content.

    Covers the whole configuration and the data's content, but for what cannot change the result: folders, logger,
    the hardware other than precision and number of processes, the progress bar, the periods of checkpoints and sample
    pictures, the card, the names of the chosen files, and the evaluation's protocol.
    """
    content = {
        key: {name: item for name, item in value.items() if name not in NOT_HASHED.get(key, ())}
        if isinstance(value, Mapping)
        else value
        for key, value in completed.items()
        if key not in (*GROUPS_NOT_HASHED, "hardware")
    }
    hardware = completed["hardware"]
    content["hardware"] = {"precision": hardware["precision"], "processes": hardware["devices"] * hardware["nodes"]}
    content["data_hash"] = data_hash
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def run_name(completed: Mapping[str, Any], data_hash: str) -> str:
    """The name of the run's folder: ``<model>-<data>-s<seed>-<8 hex>``."""
    names = completed["names"]
    return f"{names['model']}-{names['data']}-s{completed['seed']}-{config_hash(completed, data_hash)}"
