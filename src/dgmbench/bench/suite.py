"""Suites and experiments: the YAML files that say which cells a benchmark has. Read without torch and Hydra."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dgmbench.config import options, search_path
from dgmbench.config.budget import Amount
from dgmbench.config.cards import wrong_family
from dgmbench.config.files import read_yaml
from dgmbench.errors import UserError, nearest

Folders = Iterable[str | Path]

SUITE_KEYS = ("title", "survey", "overrides", "cells")
BLOCK_KEYS = ("family", "models", "data", "seeds", "budget", "overrides", "experiments")
UNION_KEYS = ("suites", "seeds", "budget", "overrides")
EXPERIMENT_KEYS = ("overrides", "paper")
PAPER_KEYS: dict[str, type | tuple[type, ...]] = {
    "value": (int, float),
    "unit": str,
    "metric": str,
    "table": str,
    "protocol": str,
    "tolerance": (int, float),
    "source": str,
    "differs": (str, type(None)),
}


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block of a suite: every model with every data set and seed, or named experiments with every seed."""

    where: str
    """The file and the block's number, for error messages."""
    models: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    """Empty for each model's own default."""
    seeds: tuple[int, ...] = (0,)
    shared: tuple[str, ...] = ()
    """Settings of every block of the suite; an experiment's own come after them, the block's ``overrides`` last."""
    overrides: tuple[str, ...] = ()
    family: str | None = None
    """The family of models that are not built yet, and so have no card."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What ``configs/suite/NAME.yaml`` says."""

    name: str
    title: str
    survey: str | None
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A published cell: the settings of ``dgm train`` that repeat it, and the number in the paper."""

    name: str
    overrides: tuple[str, ...]
    paper: Mapping[str, Any]


def read_suite(name: str, config_dirs: Folders = ()) -> Suite:
    """Read ``suite=name``; whatever is wrong with it ends in a sentence with the file and the key."""
    return _read_suite(name, list(config_dirs), ())


def _read_suite(name: str, config_dirs: list[str | Path], within: tuple[str, ...]) -> Suite:
    """The same of a suite that is a part of those ``within`` which it is named."""
    file = _find("suite", name, config_dirs)
    if name in within:
        raise UserError(f"{file}: the suite is a part of itself ({' > '.join([*within, name])}).")
    content = read_yaml(file)
    _known(file, "", content, SUITE_KEYS)
    title = _typed(file, "title", content.get("title"), str, "text")
    survey = content.get("survey")
    if survey is not None:
        _typed(file, "survey", survey, str, 'text, such as "3, table 2"')
    shared = _overrides(file, "overrides", content.get("overrides"))
    blocks = content.get("cells")
    if not isinstance(blocks, list) or not blocks:
        raise UserError(f"{file}: cells must be a list of blocks, each with models or experiments.")
    return Suite(
        name=name,
        title=title,
        survey=survey,
        blocks=tuple(
            each
            for i, block in enumerate(blocks)
            for each in (
                _union(file, f"cells[{i}]", block, shared, config_dirs, (*within, name))
                if isinstance(block, dict) and "suites" in block
                else [_block(file, f"cells[{i}]", block, shared)]
            )
        ),
    )


def read_experiment(name: str, config_dirs: Folders = ()) -> Experiment:
    """Read ``configs/experiment/name.yaml``."""
    file = _find("experiment", name, config_dirs)
    content = read_yaml(file)
    _known(file, "", content, EXPERIMENT_KEYS)
    overrides = _overrides(file, "overrides", content.get("overrides"))
    if value_of(overrides, "model") is None:
        raise UserError(f"{file}: overrides must choose a model: add model=NAME.")
    paper = _typed(file, "paper", content.get("paper"), dict, "a block with the published value")
    _known(file, "paper.", paper, PAPER_KEYS)
    for key, kinds in PAPER_KEYS.items():
        if key not in paper and key != "differs":
            raise UserError(f"{file}: paper.{key} is missing.")
        if not isinstance(paper.get(key), kinds):
            raise UserError(f"{file}: paper.{key}={paper[key]} must be {'text' if kinds is str else 'a number'}.")
    return Experiment(name=name, overrides=overrides, paper={"differs": None, **paper})


def expand_experiments(words: Sequence[str], config_dirs: Folders = ()) -> list[str]:
    """Put an experiment's settings in the place of ``experiment=NAME``; settings given besides it win."""
    config_dirs = list(config_dirs)
    names = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    if not names:
        return list(words)
    own = [text for name in names for text in read_experiment(name, config_dirs).overrides]
    return merge([*own, *(word for word in words if not word.startswith("experiment="))])


def merge(overrides: Iterable[str]) -> list[str]:
    """The overrides with each key once, at its first place and with its last value."""
    found: dict[str, str] = {}
    for text in overrides:
        found[text.partition("=")[0].lstrip("+").replace("/", ".")] = text
    return list(found.values())


def value_of(overrides: Iterable[str], key: str) -> str | None:
    """The value that the overrides give to a key, or None."""
    values = [text.partition("=")[2] for text in overrides if text.partition("=")[0] == key]
    return values[-1] if values else None


def _find(group: str, name: str, config_dirs: Folders) -> Path:
    config_dirs = list(config_dirs)
    known = options(group, config_dirs)
    if name not in known:
        raise UserError(nearest(name, known, what=group))
    return next(file for folder in search_path(config_dirs) if (file := folder / group / f"{name}.yaml").is_file())


def _block(file: Path, where: str, block: Any, shared: tuple[str, ...]) -> Block:
    if not isinstance(block, dict):
        raise UserError(f"{file}: {where} must be a block with models or experiments.")
    _known(file, f"{where}.", block, BLOCK_KEYS)
    models, experiments = _names(file, where, block, "models"), _names(file, where, block, "experiments")
    if bool(models) == bool(experiments):
        raise UserError(f"{file}: {where} must have either models or experiments.")
    if experiments and "data" in block:
        raise UserError(f"{file}: {where}.data has no place beside experiments, which choose their data.")
    seeds = _seeds(file, where, block)
    family = block.get("family")
    if family is not None and (wrong := wrong_family(str(family))):
        raise UserError(f"{file}: {where}.{wrong}")
    return Block(
        where=f"{file}: {where}",
        models=models,
        experiments=experiments,
        data=_names(file, where, block, "data"),
        seeds=(0,) if seeds is None else seeds,
        shared=shared,
        overrides=_own(file, where, block),
        family=family,
    )


def _union(
    file: Path,
    where: str,
    block: Mapping[str, Any],
    shared: tuple[str, ...],
    folders: list[str | Path],
    within: tuple[str, ...],
) -> Iterator[Block]:
    """The blocks of other suites, with seeds and settings of this block on top."""
    _known(file, f"{where}.", block, UNION_KEYS)
    seeds, own = _seeds(file, where, block), _own(file, where, block)
    for name in _names(file, where, block, "suites"):
        for each in _read_suite(name, folders, within).blocks:
            settings = (*each.overrides, *shared, *own)
            yield replace(each, overrides=settings, seeds=each.seeds if seeds is None else seeds)


def _seeds(file: Path, where: str, block: Mapping[str, Any]) -> tuple[int, ...] | None:
    seeds = block.get("seeds")
    if seeds is None:
        return None
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{file}: {where}.seeds={seeds} must be a list of whole numbers, such as [0, 1, 2].")
    return tuple(seeds)


def _own(file: Path, where: str, block: Mapping[str, Any]) -> tuple[str, ...]:
    """The block's budget and settings."""
    budget: tuple[str, ...] = ()
    if (amount := block.get("budget")) is not None:
        Amount.parse(amount, what=f"{file}: {where}.budget")
        budget = (f"trainer.budget={amount}",)
    return (*budget, *_overrides(file, f"{where}.overrides", block.get("overrides")))


def _names(file: Path, where: str, block: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = block.get(key, [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file}: {where}.{key}={names} must be a list of names, such as [made, vae].")
    return tuple(names)


def _overrides(file: Path, where: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) and "=" in text for text in value):
        raise UserError(f"{file}: {where}={value} must be a list of settings, such as [protocol=demo].")
    return tuple(value)


def _typed(file: Path, where: str, value: Any, kind: type, words: str) -> Any:
    if not isinstance(value, kind):
        raise UserError(
            f"{file}: {where} is missing." if value is None else f"{file}: {where}={value} must be {words}."
        )
    return value


def _known(file: Path, where: str, content: Mapping[str, Any], keys: Iterable[str]) -> None:
    for key in content:
        if key not in keys:
            raise UserError(f"{file}: {where}{key}: {nearest(str(key), keys, what='key')}")
