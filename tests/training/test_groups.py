"""Groups of parameters within a player: their settings, schedules, averages and resume."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from dgmbench.config import complete, compose
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Logs, Model, player_parameters
from dgmbench.runs.build import optimizer_factory
from dgmbench.training.module import Training
from dgmbench.training.update import Hooks

from .test_module import SPEC, fit


class Styled(Model):
    """A generator in two groups: each parameter's gradient is 1 at every step, so that a step is its learning rate."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.mapping, self.main, self.critic = (nn.Parameter(torch.zeros(2)) for _ in range(3))

    def players(self) -> Mapping[str, Any]:
        return {"generator": {"mapping": [self.mapping], "main": [self.main]}, "critic": [self.critic]}

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return (self.mapping + self.main).sum() if player == "generator" else self.critic.sum(), {}


def optimizer(*overrides: str) -> dict[str, Any]:
    return complete(compose("train", ["model=gan", "optimizer=sgd", "optimizer.lr=0.1", *overrides]))["optimizer"]


GROUP = "optimizer.players.generator.groups.mapping"


def trained(*overrides: str, **settings: Any) -> tuple[Styled, Training]:
    model = Styled(SPEC)
    make = optimizer_factory(optimizer(*overrides), model)
    module = fit(model, factory=make, **settings)
    return model, module


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        ((), (0.1, 0.1, 0.1)),
        ((f"{GROUP}.lr_multiplier=0.01",), (0.001, 0.1, 0.1)),
        ((f"{GROUP}.lr=0.02",), (0.02, 0.1, 0.1)),
        ((f"{GROUP}.lr_multiplier=0.5", "optimizer.players.generator.lr=0.04"), (0.02, 0.04, 0.1)),
        ((f"{GROUP}.lr=0.03", "optimizer.players.critic.lr=0.2"), (0.03, 0.1, 0.2)),
    ],
)
def test_settings_reach_their_group(overrides: tuple[str, ...], rates: tuple[float, ...]) -> None:
    model, module = trained(*overrides, budget="10ba")
    steps = [-p[0].item() / 10 for p in (model.mapping, model.main, model.critic)]
    assert steps == pytest.approx(rates, rel=1e-5)
    assert [group["name"] for group in module._optimizers["generator"].param_groups] == ["mapping", "main"]
    assert player_parameters(model) == {"generator": [model.mapping, model.main], "critic": [model.critic]}


def test_a_schedule_keeps_the_ratio_of_the_groups() -> None:
    ratios: list[float] = []

    def look(module: Training) -> None:
        first, second = module._optimizers["generator"].param_groups
        ratios.append(first["lr"] / second["lr"])

    model, _ = trained(f"{GROUP}.lr_multiplier=0.01", schedule="linear", warmup="3ba", hooks=Hooks(advanced=look))
    assert ratios == pytest.approx([0.01] * 12)
    assert model.mapping[0].item() == pytest.approx(0.01 * model.main[0].item(), rel=1e-5)
    # warm-up of 3, then 9 steps down to zero: (1 + 2 + 3) / 3 + (9 + 8 + ... + 1) / 9 steps' worth
    assert -model.main[0].item() == pytest.approx(0.1 * (2 + 5), rel=1e-5)


def test_other_settings_of_a_group_and_its_average() -> None:
    model, module = trained(f"{GROUP}.weight_decay=0.5", budget="3ba", ema=0.9)
    decayed = 0.0
    for _ in range(3):
        decayed -= 0.1 * (1 + 0.5 * decayed)
    assert model.mapping[0].item() == pytest.approx(decayed)
    assert model.main[0].item() == pytest.approx(-0.3)
    assert module.ema is not None
    assert [s.shape for s in module.ema.shadow["generator"]] == [(2,), (2,)]
    assert module.ema.shadow["generator"][1][0] != 0


def test_groups_resume_bit_for_bit() -> None:
    overrides = (f"{GROUP}.lr_multiplier=0.01", f"{GROUP}.momentum=0.9", "optimizer.momentum=0.5")
    settings = {"schedule": "cosine", "ema": 0.9}
    saved: list[dict[str, Any]] = []

    def save(module: Training) -> None:
        checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(checkpoint)
        saved.append(copy.deepcopy(checkpoint))

    whole, module = trained(*overrides, hooks=Hooks(checkpoint=save), checkpoint="5ba", **settings)
    assert [checkpoint["dgmbench"]["clock"]["batches"] for checkpoint in saved] == [5, 10, 12]
    resumed, again = trained(*overrides, resume=saved[0], **settings)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert module.ema is not None
    assert again.ema is not None
    for a, b in zip(module.ema.shadow["generator"], again.ema.shadow["generator"], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optimizer.players.generator.groups.maping.lr=1",), "model, named 'maping'; did you mean mapping"),
        (("optimizer.players.critic.groups.main.lr=1",), "critic.groups is set, but this player of the model has no"),
        ((f"{GROUP}.lrr=1",), f"There is no {GROUP} setting 'lrr'; did you mean lr"),
        ((f"{GROUP}.lr_multiplie=1",), "did you mean lr_multiplier"),
        (("optimizer.players.generator.group.mapping.lr=1",), "did you mean groups"),
        ((f"{GROUP}.lr=1", f"{GROUP}.lr_multiplier=1"), "gives both lr and lr_multiplier"),
        ((f"{GROUP}.lr_multiplier=-1",), "must be zero or more"),
        ((f"{GROUP}.lr_multiplier=x",), "must be a number"),
        ((f"{GROUP}.lr=-1",), "Invalid learning rate: -1.0"),
        (("optimizer.players.generator.groups=3",), "optimizer.players.generator.groups=3 must be a mapping"),
    ],
)  # fmt: skip
def test_wrong_settings_are_explained(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        trained(*overrides)
    assert message in str(caught.value)
