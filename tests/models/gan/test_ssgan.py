"""SSGAN: both games by hand, and unlabelled examples that reach the first of them alone."""

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.ssgan import SsGan
from dgmbench.nn.adversarial_losses import RelativisticAverage
from dgmbench.nn.batchnorm import BatchNorm

SPEC = DataSpec((1, 4, 4), "discrete", levels=4, num_classes=3)
Y = [0, -1, 2, -1, 1, 2, -1, 0]


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def made(spec: DataSpec = SPEC, **arguments: object) -> SsGan:
    torch.manual_seed(0)
    return SsGan(spec, latent=3, hidden_sizes=(8, 6), **arguments)  # type: ignore[arg-type]


def batch(side: int = 4) -> Batch:
    x = torch.randint(4, (len(Y), 1, side, side), generator=seeded()).to(torch.uint8)
    return Batch(x, torch.tensor(Y))


def outputs(model: SsGan, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """D_u(x) and D_s(h(x), y) as probabilities, from the networks' layers."""
    marginal, conditional = model.discriminator.marginal, model.discriminator.conditional
    h = marginal.trunk(x.flatten(1))
    return torch.sigmoid(marginal.head(h))[:, 0], torch.sigmoid(conditional(torch.cat([h, labels], 1)))[:, 0]


@pytest.mark.parametrize("loss", ["minimax", "non_saturating"])
def test_both_games_by_hand(loss: str) -> None:
    model, g = made(loss=loss, alpha=0.6), seeded()
    c = torch.multinomial(model.class_log_prior.exp(), len(Y), replacement=True, generator=g)
    samples = model.generator(torch.randn(len(Y), 3, generator=g), torch.eye(3)[c])
    x, known = batch().x / 1.5 - 1, [i for i, y in enumerate(Y) if y >= 0]
    real_u = outputs(model, x, torch.zeros(len(Y), 3))[0]
    real_s = outputs(model, x[known], torch.eye(3)[[Y[i] for i in known]])[1]
    fake_u, fake_s = outputs(model, samples, torch.eye(3)[c])
    value_u = real_u.log().mean() + (1 - fake_u).log().mean()
    value_s = real_s.log().mean() + (1 - fake_s).log().mean()
    if loss == "minimax":
        of_generator = (1 - fake_u).log().mean() + 0.6 * (1 - fake_s).log().mean()
    else:
        of_generator = -fake_u.log().mean() - 0.6 * fake_s.log().mean()
    for player, expected in (("discriminator", -value_u - 0.6 * value_s), ("generator", of_generator)):
        found = model.loss(player, batch(), seeded())[0]
        torch.testing.assert_close(found, expected)
        own = model.players()[player]
        gradients = torch.autograd.grad(expected, own, retain_graph=True)
        for ours, theirs in zip(torch.autograd.grad(found, own), gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_unlabelled_examples_reach_the_first_discriminator_alone() -> None:
    """Other unlabelled pictures change D_u's loss, and neither D_s's loss nor its gradients."""
    model, one = made(), batch()
    other = one.x.clone()
    other[one.y < 0] = 3 - other[one.y < 0]
    found = []
    for x in (one.x, other):
        loss, logs = model.loss("discriminator", one._replace(x=x), seeded())
        found.append((logs, torch.autograd.grad(loss, list(model.discriminator.conditional.parameters()))))
    (logs, gradients), (other_logs, other_gradients) = found
    torch.testing.assert_close(logs["labels"], other_logs["labels"], rtol=0, atol=1e-7)
    assert (logs["data"] - other_logs["data"]).abs() > 1e-4
    for a, b in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
    labelled = one.x.clone()
    labelled[0] = 3 - labelled[0]
    changed = model.loss("discriminator", one._replace(x=labelled), seeded())[1]
    assert (changed["labels"] - logs["labels"]).abs() > 1e-5


def test_the_first_discriminator_sees_no_label() -> None:
    model, one = made(), batch()
    renamed = one._replace(y=torch.where(one.y >= 0, (one.y + 1) % 3, -1))
    logs = [model.loss("discriminator", each, seeded())[1] for each in (one, renamed)]
    assert torch.equal(logs[0]["data"], logs[1]["data"])
    assert not torch.equal(logs[0]["labels"], logs[1]["labels"])


def test_a_relativistic_generator_looks_at_data_in_both_games() -> None:
    model = made(loss="relativistic_average")
    assert isinstance(model.adversarial, RelativisticAverage)
    logs = [
        model.loss("generator", each, seeded())[1] for each in (batch(), batch()._replace(x=(3 - batch().x).byte()))
    ]
    assert not torch.equal(logs[0]["data"], logs[1]["data"])
    assert not torch.equal(logs[0]["labels"], logs[1]["labels"])


def test_statistics_are_those_of_all_data_in_the_discriminator_and_of_samples_in_the_generator() -> None:
    model = made(DataSpec((1, 16, 16), "discrete", levels=4, num_classes=3), net="dcgan", channels=2)
    data = batch(16)
    samples, _ = model.drawn("discriminator", len(Y), seeded())
    for player in model.players():
        model.loss(player, data, seeded())
        model.after_step(player, data, seeded())
    marginal = model.discriminator.marginal
    layer = next(m for m in marginal.modules() if isinstance(m, BatchNorm))
    expected = marginal.trunk[:3](model.scaling(data.x)).mean((0, 2, 3))  # type: ignore[index]
    torch.testing.assert_close(layer.running_mean, 0.1 * expected)
    last = [m for m in model.generator.modules() if isinstance(m, BatchNorm)][-1]
    assert last.running_mean.abs().max() > 0
    assert samples.shape == (len(Y), 1, 16, 16)


def test_what_it_needs_of_labels() -> None:
    assert made().batch_policy() == BatchPolicy(labelled=0.5)
    with pytest.raises(UserError, match="has none"):
        SsGan(DataSpec((2,), "real"))
    with pytest.raises(UserError, match="labelled examples in every batch"):
        made().loss("generator", batch()._replace(y=torch.full((len(Y),), -1)), seeded())
    with pytest.raises(UserError, match="alpha"):
        made(alpha=0.0)
