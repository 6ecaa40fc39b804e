"""What there is to choose from, as plain text, told from the files alone: no class is imported."""

import ast
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import dgmbench
from dgmbench.config.cards import Card, by_family, family_title, read_cards, read_data_cards
from dgmbench.config.files import options, read_settings, search_path
from dgmbench.errors import UserError, nearest

Folders = Iterable[str | Path]


def listing(word: str, config_dirs: Folders = ()) -> str:
    """The text for ``dgm list WORD``: a group, or ``model=NAME``."""
    group, equals, name = word.partition("=")
    if equals:
        if group != "model":
            raise UserError(f"'dgm list' shows one model, model=NAME, or a whole group: dgm list {group}.")
        cards = read_cards(config_dirs)
        if name not in cards:
            raise UserError(nearest(name, cards, what="model") + " 'dgm list' shows them all.")
        return model_page(cards[name])
    known = groups(config_dirs)
    if group not in known:
        if group in (cards := read_cards(config_dirs)):
            return model_page(cards[group])
        for other in known:
            if group in options(other, config_dirs):
                raise UserError(f"'{group}' is one of {other}: dgm list {other} shows them all.")
        raise UserError(nearest(group, known, what="group"))
    if group == "model":
        return model_list(read_cards(config_dirs))
    if group == "data":
        rows = [
            (card.name, card.kind or "as given", _size(card.shape), card.source, card.summary)
            for card in read_data_cards(config_dirs).values()
        ]
        return columns([("data", "kind", "shape", "source", ""), *rows])
    return "\n".join(_option_line(group, name, config_dirs) for name in options(group, config_dirs))


def groups(config_dirs: Folders = ()) -> list[str]:
    """The names of the configuration groups, sub-groups as ``model/estimator``."""
    found = {
        str(file.parent.relative_to(folder))
        for folder in search_path(config_dirs)
        for file in (*folder.glob("*/*.yaml"), *folder.glob("*/*/*.yaml"))
    }
    return sorted(group for group in found if not any(part.startswith("_") for part in group.split("/")))


def model_list(cards: dict[str, Card]) -> str:
    """All models by family: name, data kinds, likelihood, default data, summary."""
    rows: list[tuple[str, ...]] = [("model", "takes", "likelihood", "default data", "")]
    for family, group in by_family(cards).items():
        rows += [(), (family_title(family),)]
        for card in group:
            takes = ", ".join(card.kinds) + (" images" if card.image else "")
            rows.append((f"  {card.name}", takes, card.likelihood, card.data, card.summary))
    return columns(rows) + "\n\n'dgm list model=NAME' shows one of them, 'dgm list data' the data sets."


def model_page(card: Card) -> str:
    """One model's card and the arguments that its configuration sets or leaves at the class's defaults."""
    target = str(card.settings.get("_target_"))
    paper = card.paper
    lines = [
        f"{card.name}: {card.summary}",
        "",
        *columns(
            [
                *([("paper", f"{paper.authors} {paper.year}: {paper.title}"), ("", paper.link)] if paper else []),
                ("family", family_title(card.family) + (f" (survey section {card.survey})" if card.survey else "")),
                ("takes", ", ".join(card.kinds) + (" images" if card.image else "")),
                ("likelihood", card.likelihood),
                ("data", f"{card.data} by default"),
                ("class", target),
            ]
        ).splitlines(),
    ]
    own = {name: str(value) for name, value in card.settings.items() if name != "_target_"}
    arguments = dict(arguments_of(target)) | dict(card.choices) | own
    if arguments:
        lines += ["", "arguments:"]
        lines += columns([(f"  model.{name}", value) for name, value in arguments.items()]).splitlines()
    return "\n".join([*lines, "", f"dgm train model={card.name}"])


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned text; a row of one cell does not widen its column."""
    full = [row for row in rows if len(row) > 1]
    widths = [max(len(row[i]) for row in full if i < len(row)) for i in range(max(map(len, full)))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows)
    return "\n".join(lines)


def _size(shape: Sequence[int] | None) -> str:
    """The shape, with ``${data.size}`` as the name of the setting that decides it."""
    names = (re.sub(r"\$\{data\.(\w+)\}", r"\1", str(size)) for size in shape or ())
    return ", ".join(names) or "as given"


def _option_line(group: str, name: str, config_dirs: Folders) -> str:
    settings = read_settings(group, name, config_dirs)
    if group == "suite":
        return f"{name:<16} {settings.get('title', '')}".rstrip()
    if group == "experiment":
        paper = settings.get("paper") or {}
        return f"{name:<48} {paper.get('value')} {paper.get('unit')}, {paper.get('source')}"
    inside = ", ".join(f"{key}={value}" for key, value in settings.items() if key not in ("defaults", "card"))
    return f"{name:<16} {inside}".rstrip()


def arguments_of(target: str) -> list[tuple[str, str]]:
    """The keyword arguments of the class named by ``target`` with their defaults, read from its source file."""
    module, _, name = target.rpartition(".")
    relative = Path(*module.split(".")).with_suffix(".py") if module else Path()
    roots = [Path(dgmbench.__file__).resolve().parent.parent, *map(Path, sys.path)]
    file = next((root / relative for root in roots if (root / relative).is_file()), None)
    if file is None:
        return []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    pairs = zip(method.args.kwonlyargs, method.args.kw_defaults, strict=True)
                    return [(a.arg, "(required)" if d is None else ast.unparse(d)) for a, d in pairs]
    return []
