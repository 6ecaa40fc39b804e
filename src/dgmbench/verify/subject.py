"""The model under test, a small data set for it, and the reference training loop that the proofs rest on.

The loop is the training contract written out in one screen: players take turns, only the player's parameters require
gradients during its loss, and every random number is a function of (seed, step, player).
"""

import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Generator, Tensor

from dgmbench.data.batches import picked
from dgmbench.data.lines import Lines
from dgmbench.data.policy import Places, places
from dgmbench.data.random import keyed_generator, keyed_seed
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.contract import Facts, Model, Stage, player_parameters
from dgmbench.nn.sequences import within

BATCH = 16
EXAMPLES = 128
UPDATES = 12


@dataclass(frozen=True)
class Subject:
    """A factory of one model, the data space and the kind of its likelihood."""

    build: Callable[[], Model]
    spec: DataSpec
    likelihood: str
    seed: int = 0

    def model(self, copy: int = 0) -> Model:
        """A new model; other values of ``copy`` give other initial parameters."""
        torch.default_generator.manual_seed(keyed_seed("verify", self.seed, "build", copy))
        model = self.build()
        return model.double() if torch.get_default_dtype() == torch.float64 else model

    @cached_property
    def specimen(self) -> Model:
        """A model that is only asked what it can do and wants: nothing trains or runs it."""
        return self.model()

    def generator(self, *keys: int | str) -> Generator:
        """The random stream of these keys."""
        return keyed_generator("verify", self.seed, *keys)

    @cached_property
    def data(self) -> Batch:
        """A small structured data set: two random templates, each example one of them with noise.

        What is given decides which one; a quarter of the labels is unknown, and sequences are padded.
        """
        g, spec, n = self.generator("data"), self.spec, EXAMPLES
        which = torch.randint(2, (n,), generator=g)
        given = None if spec.given is None else _some_of(spec.given, which, self.generator("given"))
        if spec.kind == "real":
            centres = torch.randn((2, *spec.shape), generator=g)
            x = centres[which] + 0.5 * torch.randn((n, *spec.shape), generator=g)
        else:
            levels = spec.levels or 6
            templates = torch.randint(levels, (2, *spec.shape), generator=g)
            other = torch.randint(levels, (n, *spec.shape), generator=g)
            noisy = torch.rand((n, *spec.shape), generator=g) < 0.3
            x = torch.where(noisy, other, templates[which])
        if spec.end is not None:  # only ends follow an end
            x = x.masked_fill(((x == spec.end).cumsum(1) > 0), spec.end)
        steps = spec.shape[:1] if spec.step_labels else ()
        y = torch.randint(spec.num_classes, (n, *steps), generator=g) if spec.num_classes else None
        if y is not None:
            y = y.masked_fill(torch.rand(y.shape, generator=g) < 0.25, -1)
        length = None
        if spec.lengths:
            length = torch.randint(1, spec.shape[0] + 1, (n,), generator=g)
            padding = ~within(length, spec.shape[0])
            x = x.masked_fill(padding.view(n, -1, *[1] * (x.dim() - 2)), 0)
            y = y.masked_fill(padding, -1) if y is not None and spec.step_labels else y
        return Batch(x.to(spec.dtype), y, torch.arange(n), given, length)

    @cached_property
    def double(self) -> "Subject":
        """The same subject for use in double precision, with data of its own dtype."""
        return replace(self)

    @cached_property
    def trained(self) -> tuple["Training", dict[int, bytes]]:
        """The reference training at its end, and what it saved at each of its cuts."""
        training = Training(self.model(), self)
        saved = {cut: training.run(cut).save() for cut in training.cuts}
        return training.run(), saved

    @cached_property
    def states(self) -> list[tuple[str, Model]]:
        """The model at its initial parameters and after some training, in eval mode."""
        training = Training(self.model(), self, learning_rate=0.05, least=UPDATES)
        label = f"after {len(training.plan)} updates"
        return [("initial", self.model().eval()), (label, training.run().model.eval())]

    @cached_property
    def _known(self) -> dict[tuple[int, str], tuple[object, Tensor]]:
        return {}

    def once(self, model: object, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """What several checks need of one state of the model, computed for the first of them."""
        key = (id(model), what)
        if key not in self._known:
            self._known[key] = model, compute()  # with the model, whose id is then no other's
        return self._known[key][1]

    def batch(self, step: int) -> Batch:
        """The batch of update ``step``."""
        if self.places is not None:
            return picked(self.data, self.places.index(step * BATCH, (step + 1) * BATCH))
        return picked(self.data, torch.randperm(EXAMPLES, generator=self.generator("batch", step))[:BATCH])

    @cached_property
    def learned(self) -> Batch:
        """The examples that batches are made of: all, unless the model wants some alone."""
        return self.data if self.places is None else picked(self.data, self.places.examples)

    @cached_property
    def places(self) -> Places | Lines | None:
        """How the model wants its batches made, if it cares."""
        y = None if self.data.y is None else self.data.y.numpy()
        policy = self.specimen.batch_policy()
        return places(policy, y, self.spec, batch_size=BATCH, world_size=1, seed=self.seed)


def _some_of(spec: DataSpec, which: Tensor, g: Generator) -> Tensor:
    """Conditions: one random value or the other, by ``which`` (n,), a third of them changed at random."""
    shape, levels = (2 + len(which), *spec.shape), spec.levels or 6
    values = torch.randn(shape, generator=g) if spec.kind == "real" else torch.randint(levels, shape, generator=g)
    ends, others = values[:2], values[2:]
    changed = (torch.rand(len(which), generator=g) < 1 / 3).view(-1, *[1] * len(spec.shape))
    return torch.where(changed, others, ends[which]).to(spec.dtype)


class Watch(Protocol):
    """What looks on while a training runs."""

    def before(self, training: "Training", player: str, batch: Batch) -> None:
        """Called when only the player's parameters require gradients, before its loss."""

    def after(self, training: "Training", player: str, batch: Batch) -> None:
        """Called after the player's step and ``after_step``; the gradients are still there."""


class Training:
    """Trains a model for a few updates a stage: enough that every player steps at least twice in each."""

    def __init__(self, model: Model, subject: Subject, *, learning_rate: float = 1e-2, least: int = 6) -> None:
        self.model, self.subject, self.step = model, subject, 0
        self.value = torch.tensor(0.0)  # of the last turn's loss
        self.players = player_parameters(model)
        self.optimisers = {
            name: torch.optim.Adam(parameters, lr=learning_rate) for name, parameters in self.players.items()
        }
        self.learning = {id(p) for p in model.parameters() if p.requires_grad}
        self.plan: list[tuple[Stage, bool]] = []  # the stage of each update, and whether the stage begins there
        for stage in model.stages():
            turns = dict.fromkeys(stage.players, 0)
            for update in range(200):
                for player in model.turn(len(self.plan), stage):
                    turns[player] = turns.get(player, 0) + 1
                self.plan.append((stage, update == 0))
                if update + 1 >= least and min(turns.values(), default=2) >= 2:
                    break

    @property
    def facts(self) -> Facts:
        """What the model is told of this training."""
        return Facts(examples=EXAMPLES, updates=Counter(stage.name for stage, _ in self.plan))

    @property
    def cuts(self) -> list[int]:
        """Updates at which a resume is worth a test: inside the first two stages, and where a stage begins."""
        starts = [step for step, (_, first) in enumerate(self.plan) if first] + [len(self.plan)]
        inside = [(a + b) // 2 for a, b in itertools.pairwise(starts)]
        return sorted({*inside[:2], *starts[1:3]} - {len(self.plan)})

    def run(self, until: int | None = None, watch: Watch | None = None) -> "Training":
        """Train up to update ``until``, or to the end."""
        model = self.model.train()
        while self.step < (len(self.plan) if until is None else until):
            stage, first = self.plan[self.step]
            with torch.no_grad():
                if self.step == 0:
                    model.prepare(self.facts)
                    self._seed("initialise")
                    model.initialise(self.subject.data, self._generator("initialise"))
                if first:
                    self._seed("stage")
                    model.enter_stage(stage, self._generator("stage"))
                    model.advance(stage, 0.0)
                batch = self.subject.batch(self.step)
                if stage.view is not None:
                    batch = stage.view(batch, self._generator("view"))
            for player in model.turn(self.step, stage):
                self._turn(player, batch, watch)
            self.step += 1
            done = sum(other is stage for other, _ in self.plan[: self.step])
            model.advance(stage, done / self.facts.updates[stage.name])
        return self

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Generator]:
        """The player's loss, always with the same random numbers at one update, and the generator after it."""
        self._seed(player)
        generator = self._generator(player)
        return self.model.loss(player, batch, generator)[0], generator

    @contextmanager
    def only(self, player: str) -> Iterator[None]:
        """Inside, only the player's own parameters require gradients."""
        own = {id(p) for p in self.players[player]}
        try:
            for p in self.model.parameters():
                p.requires_grad_(id(p) in own & self.learning)
            yield
        finally:
            for p in self.model.parameters():
                p.requires_grad_(id(p) in self.learning)

    @torch.enable_grad()
    def _turn(self, player: str, batch: Batch, watch: Watch | None) -> None:
        self.model.zero_grad()
        with self.only(player):
            if watch is not None:
                watch.before(self, player, batch)
            loss, generator = self.loss(player, batch)
            loss.backward()
            self.value = loss.detach()
            self.optimisers[player].step()
            with torch.no_grad():
                self.model.after_step(player, batch, generator)
        if watch is not None:
            watch.after(self, player, batch)

    def _seed(self, what: str) -> None:
        torch.default_generator.manual_seed(keyed_seed("verify", self.subject.seed, self.step, what, "default"))

    def _generator(self, what: str) -> Generator:
        return self.subject.generator(self.step, what)

    def save(self) -> bytes:
        """Everything that a resume needs, as a file's bytes."""
        file = io.BytesIO()
        optimisers = {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}
        torch.save({"model": self.model.state_dict(), "optimisers": optimisers, "step": self.step}, file)
        return file.getvalue()

    def load(self, saved: bytes) -> "Training":
        """Continue from ``save``, read as a checkpoint from a stranger would be: data only, no code."""
        state = torch.load(io.BytesIO(saved), weights_only=True)
        self.model.load_state_dict(state["model"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.step = state["step"]
        return self


def tensors(model: Model) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, also of those that are not saved."""
    return {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def same(a: Tensor, b: Tensor) -> bool:
    """Equal shape, dtype and values, where nan equals nan."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)))


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """The names that differ between two dictionaries of tensors."""
    return [n for n in {**before, **after} if n not in before or n not in after or not same(before[n], after[n])]


def listed(names: list[str], most: int = 3) -> str:
    """A few names for a note."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
