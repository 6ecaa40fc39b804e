"""Cards: what each model and data set is, read from ``configs/`` without importing torch or Hydra."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgmbench.config.files import group_files
from dgmbench.errors import UserError, nearest

FAMILIES = {
    "boltzmann": "Boltzmann machines",
    "vae": "Variational autoencoders",
    "gan": "Generative adversarial networks",
    "gsn": "Generative stochastic networks",
    "moment_matching": "Moment matching",
    "flow": "Normalizing flows",
    "autoregressive": "Autoregressive models",
    "other": "Models beyond the survey",
}
KINDS = ("binary", "discrete", "real", "counts", "tokens")
LIKELIHOODS = ("exact", "lower bound", "AIS estimate", "none")


@dataclass(frozen=True)
class Paper:
    """Where a model was published."""

    authors: str
    year: int
    title: str
    link: str


@dataclass(frozen=True)
class Card:
    """What a model is: the ``card:`` block of ``configs/model/NAME.yaml``."""

    name: str
    family: str
    summary: str
    kinds: tuple[str, ...]
    likelihood: str
    data: str
    survey: str = ""
    paper: Paper | None = None
    tiny: tuple[Mapping[str, Any], ...] = ()
    """The instances that ``dgm verify`` proves things about; in the file one block or a list of them."""
    image: bool = False
    labels: bool = False
    """Whether the model needs data with labels."""
    given: bool = False
    """Whether it models x given a condition: data need one, and data with one need such a model."""
    lengths: bool = False
    """Whether it takes sequences of different lengths."""
    sizes: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The file's other keys: ``_target_`` and the arguments that differ from the class signature."""
    choices: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What the file's defaults list chooses for the model's parts, such as an estimator."""


@dataclass(frozen=True)
class DataCard:
    """What a data set is: the ``card:`` block of ``configs/data/NAME.yaml``."""

    name: str
    summary: str
    kind: str | None
    shape: tuple[int, ...] | None
    source: str


def read_cards(config_dirs: Iterable[str | Path] = ()) -> dict[str, Card]:
    """The cards of all models by name, the user's own included."""
    return {name: _card(name, text, file) for name, (text, file) in group_files("model", config_dirs).items()}


def read_data_cards(config_dirs: Iterable[str | Path] = ()) -> dict[str, DataCard]:
    """The cards of all data sets by name."""
    return {name: _data_card(name, text) for name, (text, _) in group_files("data", config_dirs).items()}


def _card(name: str, content: dict[str, Any], file: Path) -> Card:
    block = content.get("card")
    if not isinstance(block, Mapping):
        raise UserError(f"{file} has no card: add a block 'card:' with family, summary, paper, kinds, likelihood, ....")
    required = {"family": str, "summary": str, "kinds": list, "likelihood": str, "data": str}
    optional = {"survey": str, "paper": Mapping, "tiny": object, "image": bool, "labels": bool}
    optional |= {"given": bool, "lengths": bool, "sizes": list}
    for key in block:
        if key not in required | optional:
            raise UserError(f"{file}: {nearest(key, required | optional, what='card field')}")
    for key, kind in (required | optional).items():
        if key in required and key not in block:
            raise UserError(f"{file}: the card lacks '{key}'.")
        if key in block and not isinstance(block[key], kind):
            words = {str: "text", list: "a list", bool: "true or false", Mapping: "a mapping"}
            raise UserError(f"{file}: card.{key}={block[key]} must be {words[kind]}.")
    _choice(file, "family", block["family"], FAMILIES)
    _choice(file, "likelihood", block["likelihood"], LIKELIHOODS)
    for kind in block["kinds"]:
        _choice(file, "kinds", kind, KINDS)
    fields = dict(block)
    if (paper := block.get("paper")) is not None:
        if set(paper) != {"authors", "year", "title", "link"} or not isinstance(paper["year"], int):
            raise UserError(f"{file}: card.paper must be {{authors: ..., year: 2014, title: ..., link: ...}}.")
        fields["paper"] = Paper(**paper)
    tiny = block.get("tiny", [])
    tiny = tuple(tiny) if isinstance(tiny, list) else (tiny,)
    for instance in tiny:
        if not isinstance(instance, Mapping) or not {"shape", "kind"} <= set(instance):
            raise UserError(f"{file}: card.tiny must be {{shape: [1, 3, 3], kind: binary, ...}} or a list of these.")
        _choice(file, "tiny.kind", instance["kind"], KINDS)
    fields |= {"kinds": tuple(block["kinds"]), "sizes": tuple(block.get("sizes", ())), "tiny": tiny}
    settings = {key: value for key, value in content.items() if key not in ("card", "defaults")}
    return Card(name=name, settings=settings, choices=_choices(content.get("defaults")), **fields)


def _choices(defaults: Any) -> dict[str, str]:
    """The sub-groups and their options in a defaults list, family bases and overrides of other groups left out."""
    entries = (entry for entry in defaults or () if isinstance(entry, Mapping))
    chosen = ((str(key), str(value)) for entry in entries for key, value in entry.items())
    return {key: value for key, value in chosen if not key.startswith("override ") and "@" not in key}


def _choice(file: Path, key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UserError(f"{file}: card.{key}={value} must be one of {', '.join(known)}.")


def _data_card(name: str, content: dict[str, Any]) -> DataCard:
    block = content.get("card") or {}
    shape = block.get("shape")
    return DataCard(
        name=name,
        summary=str(block.get("summary", "")),
        kind=block.get("kind"),
        shape=None if shape is None else tuple(shape),
        source=str(block.get("source", "")),
    )


def by_family(cards: Mapping[str, Card]) -> dict[str, list[Card]]:
    """The cards grouped by family, in the survey's order."""
    groups = {family: [card for card in cards.values() if card.family == family] for family in FAMILIES}
    return {family: group for family, group in groups.items() if group}


def model_table_markdown(cards: Mapping[str, Card] | None = None) -> str:
    """The README's table of models."""
    lines = ["| model | what it is | paper | data | likelihood |", "|---|---|---|---|---|"]
    for family, group in by_family(read_cards() if cards is None else cards).items():
        lines.append(f"| **{FAMILIES[family]}** | | | | |")
        for card in group:
            paper = f"[{card.paper.authors} {card.paper.year}]({card.paper.link})" if card.paper else ""
            kinds = ", ".join(card.kinds) + (" images" if card.image else "")
            lines.append(f"| `{card.name}` | {card.summary} | {paper} | {kinds} | {card.likelihood} |")
    return "\n".join(lines)
