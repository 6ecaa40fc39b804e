"""Improved GAN: K+1 classes by an explicit softmax, feature matching, and the other techniques."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.improved_gan import ImprovedGan
from dgmbench.nn.batchnorm import BatchNorm

from .alphabet import seeded

SPEC = DataSpec((1, 4, 4), "discrete", levels=4, num_classes=3)
Y = torch.tensor([0, -1, 2, -1, 1, -1])
X = torch.randint(4, (6, 1, 4, 4), generator=seeded()).to(torch.uint8)


def made(spec: DataSpec = SPEC, **arguments: object) -> ImprovedGan:
    torch.manual_seed(0)
    settings: dict[str, object] = {"latent": 2, "hidden_sizes": (8, 6), "generator_sizes": (8,), "noise": (0.0, 0.0)}
    return ImprovedGan(spec, **settings | arguments)  # type: ignore[arg-type]


def scores(model: ImprovedGan, x: Tensor) -> Tensor:
    """l_k, layer by layer, of scaled values."""
    h = x.flatten(1)
    for layer in model.discriminator.layers:
        h = F.relu(F.linear(h, layer.weight, layer.bias))  # type: ignore[arg-type]
    return F.linear(h, model.discriminator.head.weight, model.discriminator.head.bias)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_losses_are_those_of_a_softmax_over_the_classes_and_samples_as_one_more(smoothing: float) -> None:
    """With all K + 1 scores written out, shifted by any constant: log p(K+1 | x) and log(1 - p(K+1 | x))."""
    model = made(objective="adversarial", unsupervised=0.7, label_smoothing=smoothing)
    samples = model.generator(torch.randn(6, 2, generator=seeded()))
    data = X / 1.5 - 1
    p = [
        torch.cat([scores(model, x), torch.zeros(6, 1)], 1).add(shift).softmax(1)
        for x, shift in ((data, 1.3), (samples, -0.4))
    ]
    known = Y >= 0
    labels = -torch.log(p[0][known, Y[known]] / p[0][known, :3].sum(1)).mean()
    of_data, of_samples = p[0][~known, 3], p[1][:, 3]
    smoothed = (1 - smoothing) * torch.log(1 - of_data).mean() + smoothing * of_data.log().mean()
    expected = {
        "discriminator": labels - 0.7 * (smoothed + of_samples.log().mean()),
        "generator": -torch.log(1 - of_samples).mean(),
    }
    for player, own in model.players().items():
        found = model.loss(player, Batch(X, Y), seeded())[0]
        torch.testing.assert_close(found, expected[player])
        for ours, theirs in zip(
            torch.autograd.grad(found, own), torch.autograd.grad(expected[player], own, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_feature_matching_is_the_squared_distance_of_mean_features() -> None:
    model = made()
    f = model.discriminator.features
    samples = model.generator(torch.randn(6, 2, generator=seeded()))
    expected = (f(X[Y < 0] / 1.5 - 1).mean(0) - f(samples).mean(0)).square().sum()
    torch.testing.assert_close(model.loss("generator", Batch(X, Y), seeded())[0], expected)
    last = F.relu(F.linear(f.__self__.layers[0](samples.flatten(1)).relu(), *_last(model)))  # type: ignore[attr-defined]
    torch.testing.assert_close(f(samples), last)


def _last(model: ImprovedGan) -> tuple[Tensor, Tensor]:
    layer = model.discriminator.layers[-1]
    return layer.weight, layer.bias  # type: ignore[return-value]


def test_noise_is_on_every_layer_in_training_alone() -> None:
    model = made(noise=(0.3, 0.5))
    d, x = model.discriminator, torch.zeros(4000, 16)
    g = seeded()
    h = F.relu(d.layers[0](0.3 * torch.randn(x.shape, generator=g)))
    h = F.relu(d.layers[1](h + 0.5 * torch.randn(h.shape, generator=g)))
    torch.testing.assert_close(d.features(x, seeded()), h)
    noise = 0.5 * torch.randn(h.shape, generator=g)
    torch.testing.assert_close(d.scores(h, _after(d, x)), d.head(h + noise))
    model.eval()
    torch.testing.assert_close(d.scores(d.features(x[:6])), scores(model, x[:6]))


def _after(d: torch.nn.Module, x: Tensor) -> torch.Generator:
    g = seeded()
    d.features(x, g)  # type: ignore[operator]
    return g


def test_historical_averaging_by_hand() -> None:
    """The penalty at theta[3] is the squared distance to the mean of theta[1] ... theta[3], of its own player alone."""
    model, g = made(history=0.5), seeded()
    own = model.players()["discriminator"]
    batch, past = Batch(X, Y), []
    for _ in range(3):
        for parameter in own:
            parameter.data.add_(torch.randn(parameter.shape, generator=g))
        past.append([p.detach().clone() for p in own])
        model.after_step("discriminator", batch, g)
    means = [torch.stack(each).mean(0) for each in zip(*past, strict=True)]
    expected = sum((p - mean).square().sum() for p, mean in zip(own, means, strict=True))
    torch.testing.assert_close(model.distance("discriminator"), expected)
    assert model.distance("generator") == 0
    with_history = model.loss("discriminator", batch, seeded())[0]
    model.history = 0.0
    torch.testing.assert_close(with_history - model.loss("discriminator", batch, seeded())[0], 0.5 * expected)


def test_virtual_batch_norm_makes_samples_independent_of_their_batch() -> None:
    z = torch.randn(5, 2, generator=seeded())
    virtual, plain = made(norm="virtual"), made()
    torch.testing.assert_close(virtual.generator(z)[:2], virtual.generator(z[:2]))
    assert not torch.allclose(plain.generator(z)[:2], plain.generator(z[:2]))
    assert torch.equal(virtual.generator(z), virtual.eval().generator(z)), "no statistics run"
    assert not any(isinstance(m, BatchNorm) for m in virtual.generator.modules())


def test_closeness_tells_data_from_samples_and_names_no_class() -> None:
    model = made(kernels=4)
    d, f = model.discriminator, torch.randn(5, 6, generator=seeded())
    apart, together = d.scores(f), d.scores(f[:1].expand(5, -1))
    torch.testing.assert_close(apart.log_softmax(1), d.head(f).log_softmax(1))
    assert abs((together[0] - apart[0]).mean()) > 1e-3, "the same features in another batch"
    spread = (together[0] - apart[0]).std()
    assert spread < 1e-5, "the same for all classes"
    many = X.repeat(2, 1, 1, 1)
    torch.testing.assert_close(model.eval().classify(many)[:6], model.classify(X))


def test_what_is_validated_and_what_is_in_a_batch() -> None:
    model = made().eval()
    assert model.batch_policy() == BatchPolicy(labelled=0.5)
    wrong = model.held_out(Batch(X, Y))["label_error"]
    assert torch.equal(wrong.isnan(), Y < 0)
    truth = model.classify(X).argmax(1)
    assert model.held_out(Batch(X, truth))["label_error"].sum() == 0
    assert model.held_out(Batch(X, (truth + 1) % 3))["label_error"].sum() == 6
    every = made().loss("discriminator", Batch(X, Y.clamp_min(0)), seeded())[0]
    assert every.isfinite(), "all labelled: they serve the game, too"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": (0.3,)}, "two deviations"),
        ({"noise": (0.3, -1.0)}, "noise"),
        ({"labelled": 0.0}, "labelled"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"kernels": -1}, "kernels"),
        ({"history": -0.1}, "history"),
        ({"unsupervised": -1.0}, "unsupervised"),
    ],
)
def test_bad_input(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(SPEC, **arguments)


def test_data_without_labels_are_refused() -> None:
    with pytest.raises(UserError, match="has none"):
        made(DataSpec((2,), "real"))
