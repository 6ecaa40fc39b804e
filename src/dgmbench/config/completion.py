"""From a composed configuration to the complete one of a run: every key checked, every default filled in."""

import dataclasses
import inspect
import os
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dgmbench.config import schemas
from dgmbench.config.feature_nets import check_names, complete_net
from dgmbench.config.objects import METADATA, resolve
from dgmbench.config.overrides import OBJECTS
from dgmbench.config.signatures import check_arguments, coerce, complete_node, show
from dgmbench.config.targets import EVALUATION, TARGET, locate
from dgmbench.errors import UserError, harmless, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig


SUPPLIED = {"model": ("spec",), "data": (), "optimizer": ("params",)}
TOP_LEVEL = (*OBJECTS, "trainer", "hardware", "logger", "protocol", "seed", "paths")
OPTIONAL = ("names", "origin")


def complete(cfg: "DictConfig | Mapping[str, Any]") -> dict[str, Any]:
    """Return the resolved configuration of a run as a plain container, checked and with all defaults filled in.

    Every node with a ``_target_`` is checked against the target's signature, every other group against its schema.
    """
    plain = resolve(cfg)
    for key in plain:
        if key not in (*TOP_LEVEL, *OPTIONAL):
            raise UserError(nearest(key, TOP_LEVEL, what="setting"))
    for key in TOP_LEVEL:
        if key not in plain:
            raise UserError(f"The configuration has no {key}: it was not composed from train.yaml.")
    seed = plain["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed={show(seed)} must be a whole number, zero or more.")
    done: dict[str, Any] = {
        group: complete_data(plain[group]) if group == "data" else _complete_object(plain[group], group)
        for group in OBJECTS
    }
    done["optimizer"] |= {
        "players": _complete_players(done["optimizer"]),
        "schedule": checked(done["optimizer"].get("schedule", {}), schemas.Schedule, "optimizer.schedule"),
    }
    done["trainer"] = checked(plain["trainer"], schemas.Trainer, "trainer")
    done["hardware"] = checked(plain["hardware"], schemas.Hardware, "hardware")
    done["logger"] = _complete_logger(plain["logger"])
    done["protocol"] = complete_protocol(plain["protocol"])
    done["seed"] = seed
    done["paths"] = complete_paths(plain["paths"])
    done["names"] = {**{group: _class_name(done[group]) for group in OBJECTS}, **plain.get("names", {})}
    if plain.get("origin"):
        done["origin"] = _complete_origin(plain["origin"])
    return done


def _complete_origin(node: Any) -> dict[str, dict[str, Any]]:
    """What a run's configuration says of the runs that it comes from."""
    records = coerce(node, dict[str, dict[str, Any]], "origin")
    for how, record in records.items():
        if how not in ("started", "continued") or not isinstance(record.get("sha256"), str):
            raise UserError(f"origin.{how}={show(record)} is nothing that a run's configuration says of its origin.")
    return records


def complete_data(node: Any) -> dict[str, Any]:
    """Check the settings of a data set."""
    done = _complete_object(node, "data")
    return done | {"binarise": coerce(done.get("binarise", "none"), schemas.Binarise, "data.binarise")}


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
    if name not in schemas.LOGGERS:
        raise UserError(nearest(str(name), schemas.LOGGERS, what="logger"))
    return checked(node, schemas.LOGGERS[name], "logger")


def complete_protocol(node: Any) -> dict[str, Any]:
    """Check the protocol of an evaluation."""
    done = checked(node, schemas.Protocol, "protocol")
    groups = {
        "ais": schemas.Ais,
        "decoder_ais": schemas.DecoderAis,
        "parzen": schemas.Parzen,
        "semi_supervised": schemas.SemiSupervised,
    }
    done |= {name: checked(done[name], schema, f"protocol.{name}") for name, schema in groups.items()}
    for name in done["parts"]:
        require_part(name)
    return done | {"quality": _complete_quality(done["quality"])}


def require_part(name: str) -> Callable[..., Any]:
    """The function that a dotted name of ``protocol.parts`` stands for; refuses what is no part of an evaluation."""
    part = locate(name, "protocol", EVALUATION, key="parts")
    try:
        inspect.signature(part).bind(None, None, None)
    except TypeError:
        accepted = False
    else:
        accepted = inspect.isgeneratorfunction(part)
    if not accepted:
        raise UserError(
            f"protocol.parts={name} is no part of an evaluation: it must be a generator function of (model, context, "
            "note) that yields (name, Metric, dict)."
        )
    return part


def _complete_quality(node: Mapping[str, Any]) -> dict[str, Any]:
    """Names of feature nets become their configurations, completed with the defaults of their classes."""
    features = node.get("features")
    quality = checked({**node, "features": None}, schemas.Quality, "protocol.quality")
    if features is None:
        return quality
    if not isinstance(features, list) or not all(isinstance(entry, str | Mapping) for entry in features):
        raise UserError(
            f"protocol.quality.features={show(features)} must be a list of names of configs/features, such as "
            "[classifier,random_conv], or of nodes of the same form."
        )
    nodes = [complete_net(entry) for entry in features]
    check_names(nodes)
    return quality | {"features": nodes}


def complete_hardware(node: Any) -> dict[str, Any]:
    """Check the hardware settings of an evaluation."""
    return checked(node, schemas.Hardware, "hardware")


def complete_paths(node: Any) -> dict[str, str]:
    """Check the folders, and write out ``~``."""
    paths = coerce(node, dict[str, str], "paths")
    for key in paths:
        if key not in ("outputs", "data"):
            raise UserError(nearest(key, ["outputs", "data"], what="paths setting"))
        if not paths[key].isprintable() and paths[key] != paths[key].encode("utf-8", "replace").decode("utf-8"):
            raise UserError(f"paths.{key} is no name in UTF-8: choose another folder by paths.{key}=DIR.")
        if paths[key] != harmless(paths[key], lines=False):
            raise UserError(
                f"paths.{key}={paths[key]!r} has signs in its name that no line of text has (ends of lines, commands "
                f"to the terminal); choose another folder by paths.{key}=DIR."
            )
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
