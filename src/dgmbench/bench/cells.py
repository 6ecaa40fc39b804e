"""Cells: what a suite comes down to, one `dgm train` each. Told from the cards alone, without torch and Hydra."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgmbench.bench.suite import Block, Folders, Suite, merge, read_experiment, value_of
from dgmbench.config.cards import Card, read_cards, read_data_cards
from dgmbench.config.files import read_settings
from dgmbench.errors import UserError, nearest

MOST_CELLS = 100_000
FAILURES = ("failed", "oom", "timeout")
WITHOUT_EFFECT = ("paths", "hardware", "logger", "executor")
"""Groups of settings that cannot change a number; only ``hardware.precision`` can."""
WITHOUT_EFFECT_KEYS = (
    "seed",
    "trainer.progress",
    "trainer.checkpoint",
    "trainer.samples",
    "data.download",
    "data.verify",
)


@dataclass(kw_only=True)
class Cell:
    """One cell and where it stands, as it is stored in ``cells.json``."""

    id: str
    model: str
    data: str
    seed: int
    family: str | None
    overrides: list[str]
    command: str
    experiment: str | None = None
    paper: dict[str, Any] | None = None
    run: str | None = None
    status: str = "planned"
    """planned, running, done, failed, oom, timeout, stale, skipped or not built."""
    reason: str | None = None
    seconds: float | None = None
    fingerprint: str = ""
    """What the cell's identity depends on: its settings and the configuration files they choose from."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def make_cells(
    suite: Suite,
    outputs: Path,
    *,
    overrides: Sequence[str] = (),
    models: str | None = None,
    config_dirs: Folders = (),
) -> list[Cell]:
    """All cells of a suite in its order, each once.

    ``overrides`` are added to every one and win, or only to those of ``models`` (``made,vae``) if these are given.
    """
    config_dirs = list(config_dirs)
    cards, data_cards = read_cards(config_dirs), read_data_cards(config_dirs)
    for name in (value_of(overrides, "data") or "").split(",") if value_of(overrides, "data") is not None else ():
        if name not in data_cards:
            raise UserError(nearest(name, data_cards, what="data"))
    wanted = None if models is None else models.split(",")
    _require_few(suite, overrides)
    cells: list[Cell] = []
    seen: set[tuple[str, ...]] = set()
    ids: dict[str, int] = {}
    for block in suite.blocks:
        for model, data, seed, settings, experiment, paper in _expand(block, cards, overrides, wanted, config_dirs):
            key = (experiment or "", *sorted(settings))
            if key in seen:
                continue
            seen.add(key)
            name = f"{model}-{data}-s{seed}" + (f"-{experiment}" if experiment else "")
            ids[name] = ids.get(name, 0) + 1
            cell = Cell(
                id=name if ids[name] == 1 else f"{name}-{ids[name]}",
                model=model,
                data=data,
                seed=seed,
                family=cards[model].family if model in cards else block.family,
                overrides=settings,
                command=command(settings, outputs, config_dirs),
                experiment=experiment,
                paper=paper,
            )
            if model not in cards:
                cell.status, cell.reason = "not built", f"there is no model={model} yet"
            elif data not in data_cards:
                cell.status, cell.reason = "not built", f"there is no data={data} yet"
            cells.append(cell)
    return cells


def _require_few(suite: Suite, overrides: Sequence[str]) -> None:
    """Refuse a suite of more cells than anybody runs, before they are written out."""
    seeds, data = value_of(overrides, "seed"), value_of(overrides, "data")
    total = 0
    for block in suite.blocks:
        sets = len(data.split(",")) if data else max(1, len(block.data))
        each = len(block.models) * sets + len(block.experiments)
        total += each * (len(seeds.split(",")) if seeds else len(block.seeds))
    if total > MOST_CELLS:
        raise UserError(
            f"suite={suite.name} has up to {total:,} cells; one suite has at most {MOST_CELLS:,}: give fewer seeds, "
            "models or data sets, or several suites."
        )


def _expand(
    block: Block, cards: Mapping[str, Card], given: Sequence[str], wanted: Sequence[str] | None, config_dirs: Folders
) -> Iterable[tuple[str, str, int, list[str], str | None, dict[str, Any] | None]]:
    for name in block.experiments:
        experiment = read_experiment(name, config_dirs)
        model = value_of(experiment.overrides, "model") or ""
        data = value_of(experiment.overrides, "data") or (cards[model].data if model in cards else "")
        extra = given if wanted is None or model in wanted else ()
        for seed in _seeds(block, extra):
            base = [f"model={model}", f"data={data}", f"seed={seed}"]
            own = [text for text in experiment.overrides if text.partition("=")[0] not in ("model", "data", "seed")]
            paper = dict(experiment.paper)
            settings = merge([*base, *block.shared, *own, *block.overrides, *_settings(extra)])
            unchanged = {*base, *own}
            if changed := [text for text in settings if text not in unchanged and _matters(text, config_dirs)]:
                # a cell that was shortened or changed does not repeat the paper any more
                differs = [paper["differs"], f"settings were changed: {' '.join(changed)}"]
                paper["differs"] = "; ".join(text for text in differs if text)
            yield model, data, seed, settings, name, paper
    for model in block.models:
        extra = given if wanted is None or model in wanted else ()
        chosen = value_of(extra, "data")
        default = cards[model].data if model in cards else "default"
        for data in dict.fromkeys(chosen.split(",")) if chosen else block.data or (default,):
            seeds = _seeds(block, extra)
            for seed in seeds if model in cards else seeds[:1]:
                base = [f"model={model}", f"data={data}", f"seed={seed}"]
                yield model, data, seed, merge([*base, *block.shared, *block.overrides, *_settings(extra)]), None, None


def _matters(text: str, config_dirs: Folders) -> bool:
    """Whether a setting can change a number."""
    key, _, value = text.partition("=")
    key = key.lstrip("+").replace("/", ".")
    if key == "hardware":
        return str(read_settings("hardware", value, config_dirs).get("precision", "32")) != "32"
    if key == "hardware.precision":
        return True
    return key not in WITHOUT_EFFECT_KEYS and key.partition(".")[0] not in WITHOUT_EFFECT


def check_one_process(cells: Iterable[Cell], config_dirs: Folders = ()) -> None:
    """Refuse cells that ask for several processes."""
    config_dirs = list(config_dirs)
    files: dict[str, dict[str, Any]] = {}
    for cell in cells:
        settings = [text.lstrip("+") for text in cell.overrides]
        name = value_of(settings, "hardware")
        if name is not None and name not in files:
            files[name] = read_settings("hardware", name, config_dirs)
        for key in ("devices", "nodes"):
            value = value_of(settings, f"hardware.{key}")
            if value is not None:
                require_one(key, value.strip("'\""), f"hardware.{key}={value}")
            elif name is not None:
                require_one(key, files[name].get(key, 1), f"hardware={name}")


def require_one(key: str, value: object, given: str) -> None:
    """Refuse another number of ``devices`` or ``nodes`` than 1; ``given`` is the setting that asks for it."""
    if str(value) != "1":
        raise UserError(
            f"{given} asks for several processes, but a benchmark runs each cell in one: leave hardware.{key} at 1, "
            "or train the cell alone with dgm train."
        )


def _seeds(block: Block, extra: Sequence[str]) -> Sequence[int]:
    text = value_of(extra, "seed")
    if text is None:
        return block.seeds
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise UserError(f"seed={text} must be one whole number or several: seed=0,1,2.") from error


def _settings(extra: Sequence[str]) -> list[str]:
    return [text for text in extra if text.partition("=")[0] not in ("model", "data", "seed")]


def choose(cells: list[Cell], models: str | None) -> list[Cell]:
    """The cells of some models only (``model=made,vae``); the others stay in the ledger as they are."""
    if models is None:
        return cells
    known = {cell.model for cell in cells}
    wanted = models.split(",")
    for name in wanted:
        if name not in known:
            raise UserError(nearest(name, known, what="model in this suite"))
    return [cell for cell in cells if cell.model in wanted]


def command(overrides: Sequence[str], outputs: Path, config_dirs: Folders) -> str:
    """The `dgm train` command that makes the same run by hand."""
    flags = [word for folder in config_dirs for word in ("--config-dir", str(folder))]
    return shlex.join(["dgm", "train", *flags, *overrides, f"paths.outputs={outputs}"])
