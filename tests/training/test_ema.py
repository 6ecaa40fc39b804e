"""The moving average in the time of each player, and batch-norm's statistics at the averaged weights."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.contract import Logs, Model, Stage
from dgmbench.nn.batchnorm import BatchNorm, absorb_statistics, statistics_of
from dgmbench.runs.build import load_weights
from dgmbench.training.ema import Ema
from dgmbench.training.module import Training
from dgmbench.training.update import Hooks

from .test_module import SPEC, fit
from .toys import Duel


def recursion(states: Sequence[Tensor], decay: float) -> Tensor:
    """The average of the states after a player's steps, the first being its start."""
    shadow = states[0]
    for t, state in enumerate(states[1:]):
        d = min(decay, (1 + t) / (10 + t))
        shadow = d * shadow + (1 - d) * state
    return shadow


@pytest.mark.parametrize("decay", [0.15, 0.9])
def test_the_average_moves_with_the_steps_of_its_own_player(decay: float) -> None:
    """With three critic steps to one of its own, a generator's average counts its four steps, not twelve updates."""
    states: dict[str, list[Tensor]] = {"a": [torch.zeros(3)], "b": [torch.zeros(3)]}
    model = Duel(SPEC, n_critic=3)

    def keep(module: Training) -> None:
        states["a"].append(model.a.detach().clone())
        if module.clock.update % 3 == 0:
            states["b"].append(model.b.detach().clone())

    module = fit(model, hooks=Hooks(advanced=keep), ema=decay)
    assert module.ema is not None
    assert module.ema.steps == {"a": 12, "b": 4}
    for player in ("a", "b"):
        torch.testing.assert_close(module.ema.shadow[player][0], recursion(states[player], decay))


def test_the_average_restarts_with_each_stage() -> None:
    class Staged(Duel):
        def stages(self) -> tuple[Stage, ...]:
            return (Stage("first", ("a",)), Stage("second", ("a", "b")))

        def turn(self, step: int, stage: Stage) -> Sequence[str]:
            return stage.players

        def enter_stage(self, stage: Stage, generator: Generator) -> None:
            self.b.fill_(5.0 if stage.name == "second" else 1.0)

    states: list[Tensor] = []
    model = Staged(SPEC)
    module = fit(model, hooks=Hooks(advanced=lambda module: states.append(model.a.detach().clone())), ema=0.9)
    assert module.ema is not None
    assert module.ema.steps == {"a": 6, "b": 6}
    torch.testing.assert_close(module.ema.shadow["a"][0], recursion(states[5:], 0.9))  # the sixth state starts it


def test_parameters_of_no_player_are_used_as_they_are_and_shared_ones_have_one_average() -> None:
    model = nn.Module()
    model.own, model.shared, model.none = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    ema = Ema({"a": [model.own, model.shared], "b": [model.shared]}, 0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    ema.update("a")
    ema.update("b")
    with ema.applied():
        assert model.own.item() == pytest.approx(0.9)  # d = 1/10 at the first step
        assert model.shared.item() == pytest.approx(0.99)
        assert model.none.item() == 1.0
    assert all(p.item() == 1.0 for p in model.parameters())
    other = Ema({"a": [model.own, model.shared], "b": [model.shared]}, 0.5)
    other.load_state_dict(copy.deepcopy(ema.state_dict()))
    assert other.steps == ema.steps
    assert other.shadow["a"][1] is other.shadow["b"][0]


# --- batch-norm ------------------------------------------------------------------------------------------------------


class Scaled(Model):
    """x = w z + b through a batch-norm: its input has mean b and variance w^2 at any weights, known without passes."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.weight, self.shift = nn.Parameter(torch.full((spec.dim,), 1.0)), nn.Parameter(torch.zeros(spec.dim))
        self.norm = BatchNorm(spec.dim)

    def net(self, z: Tensor) -> Tensor:
        return self.norm(self.weight * z + self.shift)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        with statistics_of(self):
            y = self.net(torch.randn(200, self.spec.dim, generator=generator))
        # pulls the weights far from where they were: to 4 and to 2
        return (self.weight - 4).square().sum() + (self.shift - 2).square().sum() + 0 * y.sum(), {}

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        absorb_statistics(self)

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return self.net(torch.randn(n, self.spec.dim, generator=generator))


def standard(x: Tensor) -> bool:
    """Whether what left the batch-norm has mean 0 and variance 1, as when its statistics are those of its input."""
    return bool(x.mean(0).abs().max() < 0.15) and bool((x.std(0) - 1).abs().max() < 0.1)


def test_averaged_weights_are_evaluated_with_statistics_of_their_own() -> None:
    """The running ones are far off, since the weights still move."""
    model, seen, checkpoints = Scaled(SPEC), [], []

    def look(module: Training) -> None:
        seen.append((model.weight[0].item(), model.sample(4000, generator=torch.Generator().manual_seed(1))))

    def save(module: Training) -> None:
        checkpoint = {"state_dict": {f"model.{k}": v.clone() for k, v in model.state_dict().items()}}
        module.on_save_checkpoint(checkpoint)
        checkpoints.append(copy.deepcopy(checkpoint))

    live: list[Tensor] = []
    hooks = Hooks(
        validate=look, samples=look, checkpoint=save, advanced=lambda m: live.append(model.norm.running_mean.clone())
    )
    module = fit(model, hooks=hooks, ema=0.97, validate="6ba", samples="6ba", checkpoint="5ba")
    assert all(standard(x) for _, x in seen)
    assert seen[0][0] < 0.8 * model.weight[0].item()
    assert torch.equal(model.norm.running_mean, live[-1]), (
        "the running statistics go on as if nothing had been measured"
    )
    assert module.ema is not None
    with module.ema.applied():
        assert not standard(model.eval().sample(4000)), "with the running statistics it would not be standard"
    # a checkpoint saved in between has the statistics of its own weights
    assert len(checkpoints) == 3
    for checkpoint in checkpoints:
        other = Scaled(SPEC)
        load_weights(other, checkpoint)
        assert standard(other.sample(4000, generator=torch.Generator().manual_seed(2)))
        assert other.weight[0] != checkpoint["state_dict"]["model.weight"][0]


def test_measuring_statistics_does_not_disturb_a_training() -> None:
    def run(**settings: object) -> Model:
        model = Scaled(SPEC)
        fit(model, ema=0.9, **settings)
        return model

    quiet, busy = run(), run(validate="1ba", samples="2ba", checkpoint="3ba")
    for a, b in zip(quiet.state_dict().values(), busy.state_dict().values(), strict=True):
        assert torch.equal(a, b)
