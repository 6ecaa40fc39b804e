"""Cards: what each model and data set is, read from ``configs/`` without importing torch or Hydra."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
    given: bool | Literal["optional"] = False
    """Whether it models x given a condition: data need one, and data with one need such a model. ``optional``: it takes
    data with and without.
    """
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
    """The card of a model's file; what is wrong with it is told all at once."""
    block = content.get("card")
    if not isinstance(block, Mapping):
        raise UserError(f"{file} has no card: add a block 'card:' with family, summary, paper, kinds, likelihood, ....")
    if wrong := [*_wrong_fields(block), *_wrong_values(block)]:
        several = f" ({len(wrong)} things are wrong with the card)" if len(wrong) > 1 else ""
        raise UserError(f"{file}: {' '.join(wrong)}{several}")
    fields = dict(block)
    if "paper" in block:
        fields["paper"] = Paper(**block["paper"])
    tiny = block.get("tiny", [])
    tiny = tuple(tiny) if isinstance(tiny, list) else (tiny,)
    fields |= {"kinds": tuple(block["kinds"]), "sizes": tuple(block.get("sizes", ())), "tiny": tiny}
    settings = {key: value for key, value in content.items() if key not in ("card", "defaults")}
    return Card(name=name, settings=settings, choices=_choices(content.get("defaults")), **fields)


REQUIRED: dict[str, type] = {"family": str, "summary": str, "kinds": list, "likelihood": str, "data": str}
OPTIONAL: dict[str, type] = {
    "survey": str,
    "paper": Mapping,
    "tiny": object,
    "image": bool,
    "labels": bool,
    "given": object,
    "lengths": bool,
    "sizes": list,
}
PAPER: dict[str, type] = {"authors": str, "year": int, "title": str, "link": str}
_WORDS = {str: "text", list: "a list", bool: "true or false", Mapping: "a mapping", int: "a whole number"}


def _wrong_fields(block: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each field that is unknown, lacks or has the wrong type."""
    known = REQUIRED | OPTIONAL
    yield from (nearest(key, known, what="card field") for key in block if key not in known)
    for key, kind in known.items():
        if key in REQUIRED and key not in block:
            yield f"The card lacks '{key}'."
        elif key in block and not isinstance(block[key], kind):
            yield f"card.{key}={block[key]} must be {_WORDS[kind]}."


def _wrong_values(block: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each value of the right type that is no possible one."""
    if isinstance(family := block.get("family"), str) and (wrong := wrong_family(family)):
        yield f"card.{wrong}"
    if isinstance(likelihood := block.get("likelihood"), str) and likelihood not in LIKELIHOODS:
        yield f"card.likelihood={likelihood} must be one of {', '.join(LIKELIHOODS)}."
    if block.get("given", False) not in (True, False, "optional"):
        yield f"card.given={block['given']} must be true, false or optional."
    kinds = block.get("kinds")
    for kind in kinds if isinstance(kinds, list) else ():
        if kind not in KINDS:
            yield f"card.kinds={kind} must be one of {', '.join(KINDS)}."
    if isinstance(paper := block.get("paper"), Mapping):
        form = "{authors: A, B, year: 2014, title: ..., link: https://...}"
        for key in paper:
            if key not in PAPER:
                yield f"{nearest(str(key), PAPER, what='field of card.paper')}"
        for key, type_ in PAPER.items():
            if key not in paper:
                yield f"card.paper lacks '{key}': it must be {form}."
            elif not isinstance(paper[key], type_):
                yield f"card.paper.{key}={paper[key]} must be {_WORDS[type_]}."
    tiny = block.get("tiny", [])
    for instance in tiny if isinstance(tiny, list) else (tiny,):
        if not isinstance(instance, Mapping) or not {"shape", "kind"} <= set(instance):
            yield "card.tiny must be {shape: [1, 3, 3], kind: binary, ...} or a list of these."
        elif instance["kind"] not in KINDS:
            yield f"card.tiny.kind={instance['kind']} must be one of {', '.join(KINDS)}."


def wrong_family(name: str) -> str | None:
    """What is wrong with the name of a family, None if nothing: one of the survey's, or a new one's that is not nearly
    one of them.
    """
    if name in FAMILIES:
        return None
    close = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.6)
    if close or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        advice = f"; did you mean {close[0]}?" if close else "."
        return (
            f"family={name} must be one of {', '.join(FAMILIES)}, or the name of a new family in small letters{advice}"
        )
    return None


def family_title(name: str) -> str:
    """The heading of a family: ``diffusion`` becomes Diffusion."""
    return FAMILIES.get(name, name.replace("_", " ").capitalize())


def _choices(defaults: Any) -> dict[str, str]:
    """The sub-groups and their options in a defaults list, family bases and overrides of other groups left out."""
    entries = (entry for entry in defaults or () if isinstance(entry, Mapping))
    chosen = ((str(key), str(value)) for entry in entries for key, value in entry.items())
    return {key: value for key, value in chosen if not key.startswith("override ") and "@" not in key}


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
    """The cards grouped by family, in the survey's order; families of one's own come last."""
    new = sorted({card.family for card in cards.values()} - set(FAMILIES))
    groups = {family: [card for card in cards.values() if card.family == family] for family in (*FAMILIES, *new)}
    return {family: group for family, group in groups.items() if group}


def model_table_markdown(cards: Mapping[str, Card] | None = None) -> str:
    """The README's table of models."""
    lines = ["| model | what it is | paper | data | likelihood |", "|---|---|---|---|---|"]
    for family, group in by_family(read_cards() if cards is None else cards).items():
        lines.append(f"| **{family_title(family)}** | | | | |")
        for card in group:
            paper = f"[{card.paper.authors} {card.paper.year}]({card.paper.link})" if card.paper else ""
            kinds = ", ".join(card.kinds) + (" images" if card.image else "")
            lines.append(f"| `{card.name}` | {card.summary} | {paper} | {kinds} | {card.likelihood} |")
    return "\n".join(lines)
