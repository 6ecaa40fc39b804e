"""SAGAN: attention and spectral norm in both networks, labels by batch-norm and projection, two learning rates."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from dgmbench.config import complete, compose
from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import player_parameters
from dgmbench.models.gan.sagan import SaGan
from dgmbench.nn.attention import SelfAttention
from dgmbench.nn.batchnorm import BatchNorm, ConditionalBatchNorm
from dgmbench.runs.build import optimizer_factory

from .alphabet import seeded

SPEC = DataSpec((1, 16, 16), "discrete", levels=4, num_classes=3)
X = torch.randint(4, (6, 1, 16, 16), generator=seeded()).to(torch.uint8)
Y = torch.arange(6) % 3


def made(spec: DataSpec = SPEC, **arguments: object) -> SaGan:
    torch.manual_seed(0)
    settings: dict[str, object] = {"latent": 3, "channels": 1} | arguments
    return SaGan(spec, **settings)  # type: ignore[arg-type]


def test_both_networks_attend_and_every_weight_but_the_labels_scales_has_norm_one() -> None:
    model = made(channels=4)
    for net in (model.generator, model.discriminator):
        layers = [m for m in net.modules() if isinstance(m, SelfAttention)]
        assert len(layers) == 1
        free = {id(part) for m in net.modules() if isinstance(m, ConditionalBatchNorm) for part in m.modules()}
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                assert parametrize.is_parametrized(module, "weight") != (id(module) in free)
                if id(module) not in free:
                    top = torch.linalg.svdvals(module.weight.detach().flatten(1))[0]
                    assert top.item() == pytest.approx(1, abs=0.1)
    assert not any(isinstance(m, BatchNorm) for m in model.discriminator.modules())
    for side in (8, 16):
        seen: list[int] = []
        model = made(attention=8) if side == 8 else made(DataSpec((1, 32, 32), "binary", num_classes=3))
        for net in (model.generator, model.discriminator):
            (layer,) = (m for m in net.modules() if isinstance(m, SelfAttention))
            layer.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.shape[-1]))
        model.judged(model.generated(torch.zeros(2, 3), Y[:2]), Y[:2])
        assert seen == [side, side], "half of the image's side, or what was asked for"


def test_the_game_is_the_hinge_on_outputs_under_the_label() -> None:
    model = made()
    g = seeded()
    c = torch.multinomial(model.class_log_prior.exp(), 6, replacement=True, generator=g)
    samples = model.generator(torch.randn(6, 3, generator=g), torch.eye(3)[c])
    d = model.discriminator

    def outputs(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        phi = F.relu(d.net.trunk(x)).sum((2, 3))  # type: ignore[operator,union-attr]
        own = d.embedding.weight.T[y]
        return (phi @ d.net.head.weight.T)[:, 0] + d.net.head.bias + (phi * own).sum(1)  # type: ignore[union-attr]

    real, fake = outputs(X / 1.5 - 1, Y), outputs(samples, c)
    torch.testing.assert_close(
        model.loss("discriminator", Batch(X, Y), seeded())[0], F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    )
    torch.testing.assert_close(model.loss("generator", Batch(X, Y), seeded())[0], -fake.mean())


def test_the_label_moves_samples_and_outputs() -> None:
    model = made().eval()
    z = torch.randn(2, 3, generator=seeded())
    for module in model.generator.modules():
        if isinstance(module, ConditionalBatchNorm):  # which starts without the label
            assert torch.equal(model.generated(z, Y[:2]), model.generated(z, Y[1:3]))
            nn.init.normal_(module.scale.weight)
            break
    assert not torch.allclose(model.generated(z, Y[:2]), model.generated(z, Y[1:3]))
    assert not torch.allclose(model.judged(X.float(), Y), model.judged(X.float(), (Y + 1) % 3))


def test_two_learning_rates_reach_the_two_optimisers() -> None:
    settings = complete(compose("train", ["model=sagan"]))["optimizer"]
    make = optimizer_factory(settings, model := made())
    rates = {name: make(name, own).param_groups[0]["lr"] for name, own in player_parameters(model).items()}
    assert rates["discriminator"] == pytest.approx(4 * rates["generator"])


def test_a_step_moves_singular_vectors_and_statistics_of_its_own_network() -> None:
    model = made()
    for player, other in (("discriminator", "generator"), ("generator", "discriminator")):
        before = {name: b.clone() for name, b in model.named_buffers()}
        for parameter in getattr(model, player).parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=seeded()))
        model.loss(player, Batch(X, Y), seeded())
        model.after_step(player, Batch(X, Y), seeded())
        moved = {name for name, b in model.named_buffers() if not torch.equal(b, before[name])}
        assert any(name.startswith(player) and name.endswith(".u") for name in moved)
        assert not any(name.startswith(other) for name in moved)
    assert any(name.endswith("running_mean") for name in moved)


def test_labels_turns_and_bad_input() -> None:
    assert made().batch_policy() == BatchPolicy(labelled=1.0)
    stage = made().stages()[0]
    assert [tuple(made(n_critic=2).turn(k, stage)) for k in (0, 1)] == [
        ("discriminator",),
        ("discriminator", "generator"),
    ]
    with pytest.raises(UserError, match="n_critic"):
        made(n_critic=0)
    with pytest.raises(UserError, match="looks at data"):
        made(loss="relativistic_average")
    with pytest.raises(UserError, match="has none"):
        made(DataSpec((1, 16, 16), "binary"))
    with pytest.raises(UserError, match="side of 16"):
        made(DataSpec((1, 8, 8), "binary", num_classes=2))
    with pytest.raises(UserError, match=r"attention=5 must be one of \[8, 16\]"):
        made(attention=5)
    with pytest.raises(UserError, match=r"attention=16 must be one of \[8\]"):
        made(attention=16)
    with pytest.raises(UserError, match="up to 256"):
        made(DataSpec((1, 512, 512), "binary", num_classes=2))
