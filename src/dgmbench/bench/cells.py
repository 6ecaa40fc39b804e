"""Cells: what a suite comes down to, one `dgm train` each. Told from the cards alone, without torch and Hydra."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgmbench.bench.suite import Block, Folders, Suite, merge, read_experiment, value_of
from dgmbench.cards import Card, read_cards, read_data_cards
from dgmbench.errors import UserError, nearest

FAILURES = ("failed", "oom", "timeout")


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


def make_cells(suite: Suite, outputs: Path, *, overrides: Sequence[str] = (), config_dirs: Folders = ()) -> list[Cell]:
    """All cells of a suite in its order, each once; ``overrides`` are added to every one and win."""
    config_dirs = list(config_dirs)
    cards, data_cards = read_cards(config_dirs), read_data_cards(config_dirs)
    cells: list[Cell] = []
    seen: set[tuple[str, ...]] = set()
    ids: dict[str, int] = {}
    for block in suite.blocks:
        for model, data, seed, settings, experiment, paper in _expand(block, cards, overrides, config_dirs):
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


def _expand(
    block: Block, cards: Mapping[str, Card], extra: Sequence[str], config_dirs: Folders
) -> Iterable[tuple[str, str, int, list[str], str | None, dict[str, Any] | None]]:
    for name in block.experiments:
        experiment = read_experiment(name, config_dirs)
        model = value_of(experiment.overrides, "model") or ""
        data = value_of(experiment.overrides, "data") or (cards[model].data if model in cards else "")
        for seed in _seeds(block, extra):
            base = [f"model={model}", f"data={data}", f"seed={seed}"]
            own = [text for text in experiment.overrides if text.partition("=")[0] not in ("model", "data", "seed")]
            paper = dict(experiment.paper)
            if changed := [*block.overrides, *_settings(extra)]:
                # a cell that was shortened or changed does not repeat the paper any more
                differs = [paper["differs"], f"settings were changed: {' '.join(changed)}"]
                paper["differs"] = "; ".join(text for text in differs if text)
            settings = merge([*base, *block.shared, *own, *block.overrides, *_settings(extra)])
            yield model, data, seed, settings, name, paper
    for model in block.models:
        chosen = value_of(extra, "data")
        default = cards[model].data if model in cards else "default"
        for data in [chosen] if chosen else block.data or (default,):
            seeds = _seeds(block, extra)
            for seed in seeds if model in cards else seeds[:1]:
                base = [f"model={model}", f"data={data}", f"seed={seed}"]
                yield model, data, seed, merge([*base, *block.shared, *block.overrides, *_settings(extra)]), None, None


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
