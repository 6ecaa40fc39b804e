"""The LightningModule against hand-computed updates: players, accumulation, clipping, EMA, schedules, the clock."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from dgmbench.data import BatchStream, DataSet, DataSpec, Split
from dgmbench.data.spec import Batch
from dgmbench.errors import RunFailed, UserError
from dgmbench.models.contract import Model, Stage, player_parameters
from dgmbench.runs.progress import quiet_lightning
from dgmbench.training.ema import Ema
from dgmbench.training.module import Training
from dgmbench.training.plan import Plan, make_plan
from dgmbench.training.schedule import Schedule
from dgmbench.training.update import Hooks

from .toys import Duel, MeanModel

TRAINER: dict[str, Any] = {
    "budget": "12ba", "batch_size": 10, "validate": "100ba", "samples": "100ba", "checkpoint": "100ba",
    "clip": None, "accumulate": 1, "ema": 0.0, "progress": False,
}  # fmt: skip
SPEC = DataSpec((4,), "binary")


def data(n: int = 25) -> DataSet:
    x = np.random.RandomState(0).randint(0, 2, (n, 4)).astype(np.uint8)
    split = Split(x, None)
    return DataSet("toy", SPEC, {"train": split, "valid": split, "test": split}, "0" * 64)


def fit(model: Model, *, hooks: Hooks | None = None, schedule: str = "constant", warmup: str = "0ba", lr: float = 0.1,
        optimizer: Any = torch.optim.SGD, factory: Any = None, resume: Any = None,
        **trainer: Any) -> Training:  # fmt: skip
    settings = TRAINER | trainer
    dataset = data()
    plan = make_plan(settings, images_per_epoch=25, stages=model.stages())
    stream = BatchStream(dataset, batch_size=plan.batch_size, seed=3)
    module = Training(
        model, plan=plan, stream=stream, initial=lambda: stream.batch(0), seed=3,
        optimizers=factory or (lambda player, parameters: optimizer(parameters, lr=lr)),
        schedule=Schedule({"name": schedule, "warmup": warmup, "final": 0.0}, images_per_epoch=25,
                          batch_size=plan.batch_size, accumulate=plan.accumulate),
        hooks=hooks,
    )  # fmt: skip
    if resume is not None:
        module.resume_from(resume)
    with quiet_lightning():
        trainer_ = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
                              enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0)  # fmt: skip
        trainer_.fit(module)
    return module


def gradient(mean: torch.Tensor, stream: BatchStream, batches: range) -> torch.Tensor:
    return mean - torch.cat([stream.batch(b).x for b in batches]).float().mean(0)


def test_the_clock_counts_batches_and_images_whatever_the_number_of_players() -> None:
    # Lightning's own counter would stand at 12 + 4 optimiser steps
    model = Duel(SPEC, n_critic=3)
    module = fit(model)
    assert (module.clock.update, module.clock.batches, module.clock.images) == (12, 12, 120)
    assert [player for player, *_ in model.moves] == (["a"] * 3 + ["b"]) * 4


def test_every_critic_step_takes_a_batch_of_its_own_and_the_generator_the_last() -> None:
    model = Duel(SPEC, n_critic=3)
    module = fit(model)
    stream = module.stream
    expected = []
    for b in range(12):
        index = tuple(stream.batch(b).index.tolist())  # type: ignore[union-attr]
        expected.append(("a", 10, index))
        if b % 3 == 2:
            expected.append(("b", 10, index))
    assert model.moves == expected


def test_plain_updates_equal_the_hand_computed_ones() -> None:
    model = MeanModel(SPEC)
    module = fit(model)
    mean = torch.zeros(4)
    for b in range(12):
        mean = mean - 0.1 * gradient(mean, module.stream, range(b, b + 1))
    torch.testing.assert_close(model.mean.detach(), mean)
    assert int(model.steps) == 12


def test_accumulation_is_one_step_on_the_mean_of_its_batches_and_the_last_group_may_be_short() -> None:
    model = MeanModel(SPEC)
    module = fit(model, accumulate=5)
    mean = torch.zeros(4)
    for group in (range(0, 5), range(5, 10), range(10, 12)):
        mean = mean - 0.1 * gradient(mean, module.stream, group)
    torch.testing.assert_close(model.mean.detach(), mean)
    assert (module.clock.update, module.clock.batches, module.clock.images) == (3, 12, 120)


def test_accumulation_hands_after_step_the_whole_group() -> None:
    model = Duel(SPEC)
    fit(model, accumulate=5)
    assert [n for player, n, _ in model.moves if player == "a"] == [50, 50, 20]


def test_clipping_bounds_the_norm_of_each_players_gradient() -> None:
    model = MeanModel(SPEC)
    module = fit(model, clip=0.05, budget="1ba")
    g = gradient(torch.zeros(4), module.stream, range(1))
    assert g.norm() > 0.05
    torch.testing.assert_close(model.mean.detach(), -0.1 * g * 0.05 / (g.norm() + 1e-6))


def test_gradients_reach_only_the_player_whose_loss_it_is() -> None:
    class Watched(Duel):
        def after_step(self, player: str, batch: Any, generator: torch.Generator) -> None:
            other = self.b if player == "a" else self.a
            assert other.requires_grad
            (self.a if player == "a" else self.b).grad.zero_()  # type: ignore[union-attr]
            assert other.grad is None or not other.grad.any()

    fit(Watched(SPEC))


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_ema_equals_the_recursion_with_two_players_too(decay: float) -> None:
    states = []
    model = Duel(SPEC, n_critic=2)
    hooks = Hooks(advanced=lambda module: states.append(model.a.detach().clone()))
    module = fit(model, hooks=hooks, ema=decay)
    shadow = torch.zeros(3)
    for t, state in enumerate(states):
        d = min(decay, (1 + t) / (10 + t))
        shadow = d * shadow + (1 - d) * state
    assert module.ema is not None
    assert module.ema.steps == {"a": 12, "b": 6}
    torch.testing.assert_close(module.ema.shadow["a"][0], shadow)


def test_averaged_weights_are_lent_for_a_block_only() -> None:
    model = MeanModel(SPEC)
    ema = Ema(player_parameters(model), 0.9)
    with torch.no_grad():
        model.mean.fill_(2.0)
    with ema.applied():
        assert not model.mean.any()
    assert (model.mean == 2.0).all()


def test_schedules_against_their_formulas() -> None:
    def factors(name: str, final: float, warmup: str = "0ba") -> list[float]:
        schedule = Schedule(
            {"name": name, "warmup": warmup, "final": final}, images_per_epoch=100, batch_size=10, accumulate=1
        )
        return [schedule.factor(u, 10) for u in range(10)]

    assert factors("constant", 0.0) == [1.0] * 10
    assert factors("linear", 0.0) == pytest.approx([1 - u / 10 for u in range(10)])
    assert factors("cosine", 0.2) == pytest.approx(
        [0.2 + 0.8 * (1 + math.cos(math.pi * u / 10)) / 2 for u in range(10)]
    )
    assert factors("linear", 0.0, "4ba") == pytest.approx([0.25, 0.5, 0.75, 1.0, *[1 - u / 6 for u in range(6)]])


def test_the_schedule_reaches_the_optimiser() -> None:
    model = MeanModel(SPEC)
    module = fit(model, schedule="linear")
    mean = torch.zeros(4)
    for b in range(12):
        mean = mean - 0.1 * (1 - b / 12) * gradient(mean, module.stream, range(b, b + 1))
    torch.testing.assert_close(model.mean.detach(), mean)


def test_stages_share_the_budget_in_order_and_see_their_view() -> None:
    entered: list[tuple[str, int]] = []

    class Staged(Duel):
        def stages(self) -> tuple[Stage, ...]:
            def inverted(batch: Any, generator: torch.Generator) -> Any:
                return batch._replace(x=1 - batch.x)

            return (Stage("first", ("a",), 1.0), Stage("second", ("b",), 2.0, inverted), Stage("never", ("a",), 0.0))

        def turn(self, step: int, stage: Stage) -> Any:
            return stage.players

        def enter_stage(self, stage: Stage, generator: torch.Generator) -> None:
            entered.append((stage.name, len(self.moves)))

        def after_step(self, player: str, batch: Any, generator: torch.Generator) -> None:
            raw = torch.from_numpy(data().splits["train"].x)[batch.index]
            assert torch.equal(batch.x, raw if player == "a" else 1 - raw)
            super().after_step(player, batch, generator)

    model = Staged(SPEC)
    fit(model)
    assert entered == [("first", 0), ("second", 4)]
    assert [player for player, *_ in model.moves] == ["a"] * 4 + ["b"] * 8


def test_a_budget_too_small_for_the_stages_says_so() -> None:
    stages = (Stage("one", ("a",)), Stage("two", ("a",)), Stage("three", ("a",)))
    with pytest.raises(UserError, match=r"trains in 3 stages; raise the budget to at least 3ba"):
        make_plan(TRAINER | {"budget": "2ba"}, images_per_epoch=25, stages=stages)


def test_stage_starts_cover_the_budget_for_any_shares() -> None:
    for shares in ([1.0, 1.0, 1.0], [5.0, 1.0, 1.0], [0.01, 1.0, 0.01], [1.0, 0.0, 2.0]):
        stages = tuple(Stage(str(i), ("a",), share) for i, share in enumerate(shares))
        for budget in range(3, 40):
            plan: Plan = make_plan(TRAINER | {"budget": f"{budget}ba"}, images_per_epoch=25, stages=stages)
            lengths = [len(plan.stage_updates(i)) for i in range(len(plan.stages))]
            assert sum(lengths) == budget
            assert min(lengths) >= 1


def test_validation_and_samples_do_not_disturb_training() -> None:
    def drawing(module: Training) -> None:
        torch.rand(17)
        assert not module.model.training

    quiet, busy = Duel(SPEC), Duel(SPEC)
    fit(quiet)
    fit(busy, hooks=Hooks(validate=drawing, samples=drawing), validate="1ba", samples="2ba")
    torch.testing.assert_close(quiet.a, busy.a, rtol=0, atol=0)


def test_a_loss_that_is_not_finite_stops_before_the_optimiser_moves() -> None:
    class Broken(MeanModel):
        def loss(self, player: str, batch: Any, generator: torch.Generator) -> Any:
            value, logs = super().loss(player, batch, generator)
            return (value * torch.inf if int(self.steps) == 4 else value), logs

    model = Broken(SPEC)
    with pytest.raises(RunFailed, match=r"'model' became inf at batch 4 \(40 images\)"):
        fit(model)
    assert int(model.steps) == 4
    assert torch.isfinite(model.mean).all()


def test_parameters_that_are_not_finite_are_never_saved() -> None:
    class Exploding(MeanModel):
        def after_step(self, player: str, batch: Any, generator: torch.Generator) -> None:
            super().after_step(player, batch, generator)
            if int(self.steps) == 12:
                self.mean.fill_(torch.nan)

    saved: list[int] = []
    with pytest.raises(RunFailed, match="became nan"):
        fit(
            Exploding(SPEC), hooks=Hooks(checkpoint=lambda module: saved.append(module.clock.batches)), checkpoint="6ba"
        )
    assert saved == [6]


def test_noise_of_a_step_is_a_function_of_seed_and_update_only() -> None:
    rows: list[dict[str, Any]] = []
    fit(Duel(SPEC), hooks=Hooks(row=rows.append))
    again: list[dict[str, Any]] = []
    torch.rand(5)
    fit(Duel(SPEC), hooks=Hooks(row=again.append))
    assert [row["a/noise"] for row in rows] == [row["a/noise"] for row in again]
    assert len({row["a/noise"] for row in rows}) == 12
    assert all(row["a/noise"] != row["b/noise"] for row in rows)


def test_a_frozen_parameter_stays_frozen() -> None:
    class Frozen(MeanModel):
        def __init__(self, spec: DataSpec) -> None:
            super().__init__(spec)
            self.fixed = torch.nn.Parameter(torch.ones(2), requires_grad=False)

        def players(self) -> dict[str, list[torch.nn.Parameter]]:
            return {"model": [self.mean]}

    model = Frozen(SPEC)
    fit(model)
    assert not model.fixed.requires_grad
    assert (model.fixed == 1).all()


class Settling(MeanModel):
    """Keeps the mean of the whole training set, and the weight it had when it was asked to."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.register_buffer("whole", torch.zeros(spec.dim))
        self.calls: list[tuple[bool, bool, float]] = []

    def settle(self, batches: Iterator[Batch], generator: torch.Generator) -> None:
        self.calls.append((self.training, torch.is_grad_enabled(), self.mean[0].item()))
        self.whole.copy_(torch.cat([batch.x for batch in batches]).float().mean(0))


def test_a_model_settles_on_the_whole_training_set_before_each_validation() -> None:
    model, seen = Settling(SPEC), []
    fit(model, hooks=Hooks(validate=lambda module: seen.append(model.whole.clone())), validate="5ba", ema=0.9)
    whole = torch.from_numpy(data().splits["train"].x).float().mean(0)
    assert len(seen) == len(model.calls) == 3, "after 5, 10 and 12 batches"
    assert all(torch.equal(value, whole) for value in seen)
    assert all(not training and not gradients for training, gradients, _ in model.calls)
    assert model.calls[-1][2] != model.mean[0].item(), "it sees the averaged weights"
