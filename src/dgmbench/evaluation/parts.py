"""What a part of the evaluation gets and gives: one part measures one side of a model, if the model has that side.

``protocol.parts`` names parts of the user's own, such as ``my_metric.brightness``.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from dgmbench.config.completion import require_part
from dgmbench.data import DataSet
from dgmbench.data.dataset import SplitName
from dgmbench.data.random import keyed_generator
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import CHUNK, Chunks
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.names import CONDITIONAL
from dgmbench.models.conditions import under
from dgmbench.models.contract import CanSample, Model
from dgmbench.source import hash_of_files, source_files
from dgmbench.training.ranks import Ranks

# Name, number, and what the number depends on besides what all numbers of an evaluation share. None takes out one of
# these: a number belongs under one protocol id with all that were measured alike, and no others.
Found = tuple[str, Metric, dict[str, Any]]
Note = Callable[[str], None]
WITHOUT_NOISE: dict[str, Any] = {"noise": None}
"""Of numbers that nothing is drawn for."""
WITHOUT_EXAMPLES: dict[str, Any] = {"examples": None}
"""Of numbers that look at no example of the split."""


# Samples are drawn in chunks of this many, each with a stream of noise of its own.
SAMPLE_CHUNK = 250
SAMPLES = 1000  # where the protocol does not say how many


@dataclass(frozen=True)
class Context:
    """The data, the split that is measured, the protocol (the keys of ``configs/protocol``), and where to compute."""

    data: DataSet
    protocol: Mapping[str, Any]
    split: SplitName
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)
    folder: Path | None = None
    """Where features of data and trained feature nets are kept; None keeps nothing on disk."""
    _drawn: dict[tuple[CanSample, int, int], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def seed(self) -> int:
        """The seed of all noise."""
        return self.protocol["seed"]

    @property
    def common(self) -> dict[str, Any]:
        """What all numbers depend on, if they do not say otherwise."""
        few = self.protocol["max_examples"]
        n, dynamic = self.data.size(self.split), self.data.binarise == "dynamic"
        examples: dict[str, Any] = {} if few is None or few >= n else {"random": few}
        return {
            "split": self.split,
            "data_hash": self.data.content_hash,
            "binarise": self.data.binarise,
            "examples": (examples | {"seed": self.seed}) if examples or dynamic else "all",
            "noise": {"seed": self.seed, "chunk": CHUNK},
        }

    def named(self, name: str) -> str:
        """The name of a likelihood: of conditional data it says that it is one of p(x | given)."""
        return name if self.data.spec.given is None else f"{CONDITIONAL}{name}"

    def settings(self, name: str) -> Mapping[str, Any]:
        """A group of the protocol's settings; empty if the protocol does not name it."""
        return self.protocol.get(name) or {}

    @property
    def chunks(self) -> Chunks:
        """The examples of the split, at most ``protocol.max_examples`` of them."""
        return self.few(None)

    def other(self) -> SplitName:
        """The split that settings are chosen on: validation, or training where validation itself is measured."""
        return "train" if self.split == "valid" else "valid"

    def labelled(self, most: int | None = None, split: SplitName | None = None) -> Chunks | None:
        """The examples whose label is known; None where there is none, or one at each step instead."""
        chunks = self.few(most, split).labelled()
        known = self.data.splits[chunks.split].y is not None and not self.data.spec.step_labels
        return chunks if known and chunks.examples else None

    def unlabelled(self, split: SplitName | None = None) -> dict[str, Any]:
        """How many examples of a split a number leaves out because they have no label, for its protocol."""
        skipped = self.data.unlabelled(split or self.split)
        return {"unlabelled": skipped} if skipped else {}

    def few(self, most: int | None, split: SplitName | None = None) -> Chunks:
        """The same, at most ``most`` of them, of this split or another."""
        limits = [limit for limit in (self.protocol["max_examples"], most) if limit is not None]
        return Chunks(
            self.data,
            split or self.split,
            seed=self.seed,
            limit=min(limits, default=None),
            device=self.device,
            ranks=self.ranks,
        )

    def generator(self, *keys: int | str) -> Generator:
        """A stream of noise on the device, one for each ``keys``."""
        name, *others = keys
        return keyed_generator(name, self.seed, *others, device=self.device)

    @property
    def samples(self) -> int:
        """How many samples a task draws: as many as the protocol asks for, at most one under each example's own."""
        return min(self.settings("quality").get("samples", SAMPLES), self.chunks.examples)

    def draw(self, model: CanSample, n: int, note: Note) -> Tensor:
        """n samples (n, *shape) on the CPU, in chunks whose noise depends on the seed and their number alone.

        Of conditional data they are drawn under the conditions of the split's examples, in a random order.
        They are drawn once, however many parts ask for them, for as long as ``measuring`` goes on.
        """
        parts = []
        for number, start in enumerate(range(0, n, SAMPLE_CHUNK)):
            size = min(SAMPLE_CHUNK, n - start)
            key = (model, number, size)
            if key not in self._drawn:
                note(f"sample {start} of {n}")
                own = under(model, self.chunks.beside(start, size))
                self._drawn[key] = own.sample(size, generator=self.generator("samples", number)).cpu()
            parts.append(self._drawn[key])
        return torch.cat(parts)

    def measuring(self) -> "Context":
        """The same, with no samples yet: for one look at a model, whose weights stay as they are meanwhile."""
        return replace(self, _drawn={})


Part = Callable[[Model, Context, Note], Iterator[Found]]


def own_part(name: str) -> Part:
    """A user's part by its dotted name; every number it yields says in its protocol whose it is, and of which code."""
    part = require_part(name)
    made_by = {"part": name, "part_source": hash_of_files(source_files(Path(inspect.getfile(part))))}

    def measured(model: Model, context: Context, note: Note) -> Iterator[Found]:
        try:
            for found in part(model, context, note):
                if not _is_found(found):
                    what = f"{type(found).__name__} {str(found)[:60]}"
                    raise UserError(f"protocol.parts={name} yields {what}, not (name, Metric, dict).")
                yield found[0], found[1], {**found[2], **made_by}
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"protocol.parts={name} fails: {type(error).__name__}: {error}.") from error

    return measured


def _is_found(found: object) -> bool:
    kinds = (str, Metric, dict)
    return isinstance(found, tuple) and len(found) == 3 and all(map(isinstance, found, kinds))
