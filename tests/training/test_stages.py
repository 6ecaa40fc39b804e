"""Training in stages: what happens between two, what a model is told of the clock, batches and shapes of their own."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

from dgmbench.data import BatchStream
from dgmbench.data.spec import Batch
from dgmbench.models.contract import Facts, Stage
from dgmbench.training.module import Training
from dgmbench.training.plan import make_plan
from dgmbench.training.update import Hooks

from .test_module import SPEC, TRAINER, data, fit
from .toys import Duel, MeanModel


class Staged(MeanModel):
    """Stages of one player; keeps what it was told in buffers and lists."""

    parts: tuple[Stage, ...] = (Stage("first", ("model",), 1.0), Stage("second", ("model",), 2.0))

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.register_buffer("share", torch.zeros(()))
        self.told: list[tuple[str, float]] = []
        self.seen: list[tuple[int, ...]] = []
        self.facts: Facts | None = None

    def stages(self) -> tuple[Stage, ...]:
        return self.parts

    def prepare(self, facts: Facts) -> None:
        self.facts = facts

    def initialise(self, batch: Batch, generator: Generator) -> None:
        assert self.facts is not None

    def advance(self, stage: Stage, share: float) -> None:
        self.share.fill_(share)
        self.told.append((stage.name, share))

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        self.seen.append(tuple(batch.index.tolist()))  # type: ignore[union-attr]


def test_the_state_at_a_stages_end_is_validated_sampled_and_saved_before_the_next_begins() -> None:
    events: list[tuple[str, str, int]] = []

    class Watched(Staged):
        def enter_stage(self, stage: Stage, generator: Generator) -> None:
            events.append(("enter", stage.name, len(self.seen)))

    def note(what: str) -> Any:
        def event(module: Training) -> None:
            assert what == "checkpoint" or not module.model.training
            events.append((what, module.position()["stage"], module.clock.batches))

        return event

    rows: list[dict[str, Any]] = []
    hooks = Hooks(validate=note("validate"), samples=note("samples"), checkpoint=note("checkpoint"), row=rows.append)
    every = {"validate": "2000ba", "samples": "2000ba", "checkpoint": "2000ba"}
    fit(Watched(SPEC), hooks=hooks, budget="3000ba", **every)  # a row every third update; stage two starts at 1000
    assert events == [
        ("enter", "first", 0),
        ("samples", "first", 0),
        ("validate", "first", 1000),
        ("samples", "first", 1000),
        ("checkpoint", "first", 1000),
        ("enter", "second", 1000),
        *((what, "second", 2000) for what in ("validate", "samples", "checkpoint")),
        *((what, "second", 3000) for what in ("validate", "samples", "checkpoint")),
    ]
    ending = [row for row in rows if row["stage"] == "first"][-1]
    assert ending["batches"] == 1000, "a row never mixes two stages: what was open at the end is written"
    assert 1001 <= next(row for row in rows if row["stage"] == "second")["batches"] <= 1002


def test_what_is_due_at_a_stages_end_anyway_is_done_once() -> None:
    validated: list[int] = []
    hooks = Hooks(validate=lambda module: validated.append(module.clock.batches))
    fit(Staged(SPEC), hooks=hooks, validate="2ba")
    assert validated == [2, 4, 6, 8, 10, 12], "stage two starts at 4"


def test_a_model_knows_how_far_its_stage_has_come_and_how_large_the_training_set_is() -> None:
    model, at_validation = Staged(SPEC), {}
    hooks = Hooks(validate=lambda module: at_validation.update({module.clock.batches: float(model.share)}))
    fit(model, hooks=hooks, validate="3ba")
    assert model.told == [("first", u / 4) for u in range(5)] + [("second", u / 8) for u in range(9)]
    assert at_validation == {3: 3 / 4, 4: 1.0, 6: 2 / 8, 9: 5 / 8, 12: 1.0}
    assert model.facts == Facts(examples=25, updates={"first": 4, "second": 8})


def test_a_resume_tells_the_model_the_facts_again_and_keeps_its_progress() -> None:
    saved: dict[str, Any] = {}

    def save(module: Training) -> None:
        if module.clock.batches == 6:
            checkpoint: dict[str, Any] = {}
            module.on_save_checkpoint(checkpoint)
            saved.update(checkpoint, state_dict={k: v.clone() for k, v in module.state_dict().items()})

    whole = fit(Staged(SPEC), hooks=Hooks(checkpoint=save), checkpoint="6ba")
    model = Staged(SPEC)
    again = fit(model, resume=saved, checkpoint="6ba")
    assert model.facts == Facts(examples=25, updates={"first": 4, "second": 8})
    assert model.told == [("second", u / 8) for u in range(3, 9)]
    assert torch.equal(model.mean, whole.model.mean)
    assert again.clock.images == whole.clock.images == 120


def test_averages_begin_again_with_each_stage() -> None:
    class Jumping(Staged):
        def enter_stage(self, stage: Stage, generator: Generator) -> None:
            self.mean.fill_(0.0 if stage.name == "first" else 100.0)

    model, seen = Jumping(SPEC), []

    def look(module: Training) -> None:
        assert module.ema is not None
        if module.clock.batches == 5:  # the first update of the second stage
            seen.append((module.ema.steps["model"], module.ema.shadow["model"][0].clone(), model.mean.detach().clone()))

    fit(model, hooks=Hooks(advanced=look), ema=0.999, lr=1e-3)
    ((updates, shadow, now),) = seen
    assert updates == 1
    # one update with decay (1 + 0) / (10 + 0): 0.1 of the start of the stage and 0.9 of what followed
    torch.testing.assert_close(shadow, 0.1 * torch.full((4,), 100.0) + 0.9 * now)


@pytest.mark.parametrize("warmup", ["0ba", "2ba"])
def test_the_learning_rate_follows_its_schedule_in_each_stage(warmup: str) -> None:
    model, rates = Staged(SPEC), []

    def look(module: Training) -> None:
        rates.append(module._optimizers["model"].param_groups[0]["lr"])

    fit(model, hooks=Hooks(advanced=look), schedule="linear", warmup=warmup)
    w = int(warmup[0])

    def stage(n: int) -> list[float]:
        return [0.1 * (u + 1) / w if u < w else 0.1 * (1 - (u - w) / (n - w)) for u in range(n)]

    assert rates == pytest.approx([*stage(4), *stage(8)])


def test_a_stage_may_have_batches_of_its_own_and_its_share_is_of_images() -> None:
    class Growing(Staged):
        parts = (Stage("small", ("model",), 1.0, batch_size=20), Stage("large", ("model",), 1.0, batch_size=5))

    model = Growing(SPEC)
    module = fit(model, budget="12ba")  # of 10: 120 images, 60 a stage
    assert [len(indices) for indices in model.seen] == [20] * 3 + [5] * 12
    assert (module.clock.batches, module.clock.images, module.plan.images) == (15, 120, 120)
    stream = BatchStream(data(), batch_size=30, seed=3)  # the same images, cut otherwise
    images = [i for b in range(4) for i in stream.batch(b).index.tolist()]  # type: ignore[union-attr]
    assert [i for indices in model.seen for i in indices] == images


def test_plans_without_batch_sizes_of_stages_are_what_they_were() -> None:
    stages = tuple(Stage(str(i), ("a",), share) for i, share in enumerate([0.3, 0.0, 0.5, 0.1]))
    same = tuple(Stage(s.name, s.players, s.share, batch_size=10) for s in stages)
    plans = [make_plan(TRAINER | {"budget": "37ba"}, images_per_epoch=25, stages=each) for each in (stages, same)]
    assert plans[0].stage_starts == plans[1].stage_starts == (0, 12, 33)
    assert plans[0].batches == plans[1].batches == 37
    assert plans[0].images == 370


def test_accumulated_batches_of_a_stage_follow_one_another() -> None:
    class Small(Staged):
        parts = (Stage("small", ("model",), 1.0, batch_size=5),)

    model = Small(SPEC)
    module = fit(model, budget="5ba", accumulate=4)
    assert [len(indices) for indices in model.seen] == [20, 20, 10]
    assert module.plan.images == module.clock.images == 50
    stream = BatchStream(data(), batch_size=50, seed=3)
    assert [i for indices in model.seen for i in indices] == stream.batch(0).index.tolist()  # type: ignore[union-attr]


def test_a_view_may_have_another_shape() -> None:
    shapes: list[tuple[int, ...]] = []

    class Halved(Duel):
        def stages(self) -> tuple[Stage, ...]:
            def halves(batch: Batch, generator: Generator) -> Batch:
                return batch._replace(x=batch.x.view(-1, 2, 2).sum(2))

            return (Stage("coarse", ("a", "b"), view=halves), Stage("fine", ("a", "b")))

        def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
            shapes.append(tuple(batch.x.shape))

    fit(Halved(SPEC), accumulate=2)
    assert shapes == [(20, 2)] * 6 + [(20, 4)] * 6


def test_a_resume_restores_the_generators_of_python_numpy_and_torch() -> None:
    """Of models that draw from them behind the trainer's back, between the steps that seed torch's own."""

    class Drawing(Staged):
        def __init__(self, spec: Any) -> None:
            super().__init__(spec)
            self.drawn: list[tuple[float, float, float]] = []

        def turn(self, step: int, stage: Stage) -> Any:
            self.drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
            return super().turn(step, stage)

    saved: dict[str, Any] = {}

    def save(module: Training) -> None:
        if module.clock.batches == 6:
            checkpoint: dict[str, Any] = {}
            module.on_save_checkpoint(checkpoint)
            saved.update(checkpoint, state_dict=module.state_dict())

    whole = Drawing(SPEC)
    fit(whole, hooks=Hooks(checkpoint=save), checkpoint="6ba")
    again = Drawing(SPEC)
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    fit(again, resume=saved, checkpoint="6ba")
    assert len(set(whole.drawn)) == 12
    assert again.drawn == whole.drawn[6:]
