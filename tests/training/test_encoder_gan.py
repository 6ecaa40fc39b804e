"""A GAN with an encoder, written as docs/gan.md says: three players, a discriminator of pairs, batch-norm everywhere.

It stands for models that nobody here has seen: it trains, resumes bit for bit, keeps the statistics of the right
passes, and each loss reaches its own player only; ``verify`` notices a pass that was chosen wrongly.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Logs, Model, player_parameters
from dgmbench.nn.adversarial_losses import AdversarialLoss, adversarial_loss
from dgmbench.nn.adversarial_pairs import JointDiscriminator
from dgmbench.nn.batchnorm import BatchNorm, absorb_statistics, statistics_of
from dgmbench.nn.scaling import Scaling
from dgmbench.training.module import Training
from dgmbench.training.update import Hooks
from dgmbench.verify import statistics, verify_model
from dgmbench.verify.subject import Subject

from .test_module import SPEC, fit

PLAYERS = ("discriminator", "generator", "encoder")
IMAGES = DataSpec((1, 4, 4), "discrete", levels=4)


def layers(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(before, 16), BatchNorm(16), nn.LeakyReLU(0.2), nn.Linear(16, after))


class EncoderGan(Model):
    """D tells (x, E(x)) from (G(z), z); G and E, players of their own, train against it (Donahue et al. 2017)."""

    latent = 2

    def __init__(self, spec: DataSpec, *, loss: str | AdversarialLoss = "non_saturating") -> None:
        super().__init__(spec)
        self.scaling, self.adversarial = Scaling(spec), adversarial_loss(loss)
        self.encoder, self.generator = layers(spec.dim, self.latent), layers(self.latent, spec.dim)
        view = nn.Sequential(nn.Flatten(), nn.Linear(spec.dim, 16, bias=False), BatchNorm(16), nn.LeakyReLU(0.2))
        self.discriminator = JointDiscriminator(view, 16, latent=self.latent, hidden_sizes=(16,))

    def players(self) -> dict[str, list[nn.Parameter]]:
        return {player: list(getattr(self, player).parameters()) for player in PLAYERS}

    def decoded(self, z: Tensor) -> Tensor:
        return torch.tanh(self.generator(z)).view(-1, *self.spec.shape)

    def critic(self, x: Tensor, z: Tensor) -> Tensor:
        return self.discriminator(x, code=z).squeeze(1)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        x, z = self.scaling(batch.x), torch.randn(len(batch.x), self.latent, generator=generator)
        if player == "generator":
            with statistics_of(self.generator):
                samples = self.decoded(z)
            return self.adversarial.generator(self.critic(samples, z)), {}
        if player == "encoder":
            with statistics_of(self.encoder):
                codes = self.encoder(x)
            return self.adversarial.encoder(self.critic(x, codes)), {}
        with torch.no_grad():
            samples, codes = self.decoded(z), self.encoder(x)
        fake = self.critic(samples, z)
        with statistics_of(self.discriminator):
            real = self.critic(x, codes)
        return self.adversarial.discriminator(real, fake), {}

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        absorb_statistics(getattr(self, player))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return self.scaling.inverse(self.decoded(torch.randn(n, self.latent, generator=generator)))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(self.scaling(x))


def made(spec: DataSpec = SPEC, kind: type[EncoderGan] = EncoderGan, **arguments: Any) -> EncoderGan:
    torch.manual_seed(0)
    return kind(spec, **arguments)


def batch(n: int = 32) -> Batch:
    return Batch(torch.randint(4, (n, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8))


@pytest.mark.parametrize("loss", ["non_saturating", "wasserstein", "hinge"])
@pytest.mark.parametrize("player", PLAYERS)
def test_each_loss_reaches_its_own_player_and_is_that_of_the_formula(player: str, loss: str) -> None:
    model, own = made(IMAGES, loss=loss), player_parameters(made(IMAGES))
    for name, parameters in player_parameters(model).items():
        for parameter in parameters:
            parameter.requires_grad_(name == player)
    value = model.loss(player, batch(), torch.Generator().manual_seed(1))[0]
    value.backward()
    for name, parameters in player_parameters(model).items():
        reached = [p.grad is not None and bool(p.grad.any()) for p in parameters]
        assert sum(reached) >= len(own[player]) - 3 if name == player else not any(reached)
    x, z = model.scaling(batch().x), torch.randn(32, 2, generator=torch.Generator().manual_seed(1))
    real, fake = model.critic(x, model.encoder(x)), model.critic(model.decoded(z), z)
    softplus, relu = nn.functional.softplus, nn.functional.relu
    formulas = {
        "non_saturating": (
            softplus(-real).mean() + softplus(fake).mean(), softplus(-fake).mean(), softplus(real).mean(),
        ),
        "wasserstein": (fake.mean() - real.mean(), -fake.mean(), real.mean()),
        "hinge": (relu(1 - real).mean() + relu(1 + fake).mean(), -fake.mean(), real.mean()),
    }  # fmt: skip
    torch.testing.assert_close(value, formulas[loss][PLAYERS.index(player)])


def test_running_statistics_come_from_the_right_passes() -> None:
    model = made(IMAGES)
    x, z = model.scaling(batch().x), torch.randn(32, 2, generator=torch.Generator().manual_seed(1))
    inputs = {
        "discriminator": model.discriminator.view[1](x.flatten(1)),  # type: ignore[index]
        "generator": model.generator[1](z),
        "encoder": model.encoder[1](x.flatten(1)),
    }
    for player in PLAYERS:
        model.loss(player, batch(), torch.Generator().manual_seed(1))
        model.after_step(player, batch(), torch.Generator())
        layer = next(m for m in getattr(model, player).modules() if isinstance(m, BatchNorm))
        torch.testing.assert_close(layer.running_mean, 0.1 * inputs[player].mean(0))
        torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * inputs[player].var(0))


def test_it_trains_towards_the_data_and_resumes_bit_for_bit() -> None:
    saved: list[dict[str, Any]] = []

    def save(module: Training) -> None:
        checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(checkpoint)
        saved.append(copy.deepcopy(checkpoint))

    settings: dict[str, Any] = {
        "optimizer": torch.optim.Adam, "lr": 0.01, "ema": 0.9, "budget": "60ba", "validate": "20ba", "samples": "15ba",
    }  # fmt: skip
    whole, resumed = made(), made()
    module = fit(whole, hooks=Hooks(checkpoint=save), checkpoint="23ba", **settings)
    assert saved[0]["dgmbench"]["clock"]["batches"] == 23
    again = fit(resumed, resume=saved[0], **settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    first, second = module.ema, again.ema
    assert first is not None
    assert second is not None
    assert first.steps == second.steps == dict.fromkeys(PLAYERS, 60)
    for player in PLAYERS:
        assert all(torch.equal(a, b) for a, b in zip(first.shadow[player], second.shadow[player], strict=True))
    with module.evaluating(), again.evaluating():
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name
        share = whole.sample(2000, generator=torch.Generator().manual_seed(0)).float().mean(0)
    data = module.stream.dataset.splits["train"].x.mean(0)
    before = made().eval().sample(2000, generator=torch.Generator().manual_seed(0)).float().mean(0)
    assert (share - torch.from_numpy(data)).abs().mean() < (before - torch.from_numpy(data)).abs().mean()


def test_verify_proves_it() -> None:
    wrong = [check for check in verify_model(lambda: made(IMAGES), IMAGES, "none") if check.passed is False]
    assert not wrong


class WrongEncoder(EncoderGan):
    """The encoder also looks at samples, as in a cycle, and keeps the statistics of that pass."""

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        if player != "encoder":
            return super().loss(player, batch, generator)
        x, z = self.scaling(batch.x), torch.randn(len(batch.x), self.latent, generator=generator)
        with statistics_of(self.encoder):
            back = self.encoder(self.decoded(z).detach())
        return self.adversarial.encoder(self.critic(x, self.encoder(x))) + (back - z).square().mean(), {}


class WrongGenerator(EncoderGan):
    """The generator also decodes codes of data, and keeps the statistics of that pass."""

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        if player != "generator":
            return super().loss(player, batch, generator)
        x, z = self.scaling(batch.x), torch.randn(len(batch.x), self.latent, generator=generator)
        with statistics_of(self.generator):
            back = self.decoded(3 + self.encoder(x))
        return self.adversarial.generator(self.critic(self.decoded(z), z)) + (back - x).square().mean(), {}


@pytest.mark.parametrize(("kind", "layer"), [(WrongEncoder, "encoder"), (WrongGenerator, "generator")])
def test_verify_notices_the_wrong_pass(kind: type[EncoderGan], layer: str) -> None:
    (check,) = statistics.checks(Subject(lambda: made(IMAGES, kind), IMAGES, "none"))
    assert check.passed is False
    assert f"{layer}.2: name that one with statistics_of(net)" in check.note


def test_verify_passes_the_right_pass_and_leaves_open_what_no_pass_fits() -> None:
    class Narrow(EncoderGan):
        """Samples from a part of the prior: no fault of the statistics."""

        def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
            return self.scaling.inverse(self.decoded(5 + torch.randn(n, self.latent, generator=generator)))

    (right,) = statistics.checks(Subject(lambda: made(IMAGES), IMAGES, "none"))
    assert right.passed
    assert "2 layers" in right.note
    (narrow,) = statistics.checks(Subject(lambda: made(IMAGES, Narrow), IMAGES, "none"))
    assert narrow.passed is None
    assert "generator.2" in narrow.note


def test_a_pass_that_nobody_named_is_an_error_at_the_first_step() -> None:
    class Nameless(EncoderGan):
        def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
            x = self.scaling(batch.x)
            return self.critic(x, self.encoder(x)).mean() + self.decoded(self.encoder(x)).mean(), {}

    with pytest.raises(UserError, match=r"JointDiscriminator has no statistics .* statistics_of\(net\)"):
        fit(made(kind=Nameless))
