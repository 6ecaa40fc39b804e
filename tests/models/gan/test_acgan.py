"""ACGAN: both losses by hand, a discriminator that sees no label, and samples that are of their class."""

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.acgan import AcGan
from dgmbench.nn.labels import label_nll

from .four_digits import FourDigits

TWO = DataSpec((1, 4, 4), "discrete", levels=4, num_classes=2)


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def made(**arguments: object) -> AcGan:
    torch.manual_seed(0)
    return AcGan(TWO, latent=3, hidden_sizes=(8,), **arguments)  # type: ignore[arg-type]


def two_classes(y: list[int]) -> Batch:
    return Batch(torch.randint(4, (len(y), 1, 4, 4), generator=seeded()).to(torch.uint8), torch.tensor(y))


@pytest.mark.parametrize("loss", ["minimax", "non_saturating"])
def test_both_losses_by_hand_on_a_batch_of_two_classes(loss: str) -> None:
    """D minimises -(L_S + L_C), G minimises L_S - L_C, or the non-saturating form of L_S; gradients too."""
    model, batch = made(loss=loss), two_classes([0, 1, 1, 0, 1])
    g = seeded()
    c = torch.multinomial(model.class_log_prior.exp(), 5, replacement=True, generator=g)
    samples = model.generator(torch.randn(5, 3, generator=g), torch.eye(2)[c])
    at_data, at_samples = model.discriminator(batch.x.float() / 1.5 - 1), model.discriminator(samples)
    source_data, source_samples = torch.sigmoid(at_data[:, 0]), torch.sigmoid(at_samples[:, 0])
    share = lambda outputs, label: (outputs[:, 1:].exp() / outputs[:, 1:].exp().sum(1, keepdim=True))[range(5), label]
    class_samples = share(at_samples, c).log().mean()
    l_s = source_data.log().mean() + (1 - source_samples).log().mean()
    l_c = share(at_data, batch.y).log().mean() + class_samples
    saturating = (1 - source_samples).log().mean() - class_samples  # L_S - L_C in what depends on G
    wanted = {
        "discriminator": -(l_s + l_c),
        "generator": saturating if loss == "minimax" else -source_samples.log().mean() - class_samples,
    }
    for player, expected in wanted.items():
        found = model.loss(player, batch, seeded())[0]
        torch.testing.assert_close(found, expected)
        own = model.players()[player]
        gradients = torch.autograd.grad(expected, own, retain_graph=True)
        for ours, theirs in zip(torch.autograd.grad(found, own), gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_discriminator_does_not_see_labels() -> None:
    """Other labels of the same pictures change L_C, and no output."""
    model = made()
    logs = [model.loss("discriminator", two_classes(y), seeded())[1] for y in ([0, 1, 0, 0], [1, 0, 1, 1])]
    assert torch.equal(logs[0]["real"], logs[1]["real"])
    assert torch.equal(logs[0]["fake"], logs[1]["fake"])
    assert torch.equal(logs[0]["source"], logs[1]["source"])
    assert logs[0]["class"] != logs[1]["class"]


def test_unlabelled_examples_take_part_in_the_source_alone() -> None:
    model = made()
    whole = two_classes([0, 1, 1, 0])
    some = whole._replace(y=torch.tensor([0, 1, -1, -1]))
    loss, logs = model.loss("discriminator", some, seeded())
    assert torch.equal(logs["source"], model.loss("discriminator", whole, seeded())[1]["source"])
    scores = model.judged(model.scaling(whole.x))[1]
    known = -scores.log_softmax(1)[[0, 1], [0, 1]].mean()
    unknown = whole._replace(y=torch.full((4,), -1))
    of_samples = model.loss("discriminator", unknown, seeded())[1]["class"]
    torch.testing.assert_close(logs["class"], (of_samples + known).detach())
    assert loss.isfinite()
    assert model.batch_policy() == BatchPolicy(labelled=0.5)


def test_nll_of_labels_is_the_mean_over_known_ones() -> None:
    logits, y = torch.randn(6, 3, generator=seeded()), torch.tensor([0, -1, 2, 2, -1, 1])
    expected = -sum(float(logits[i].log_softmax(0)[y[i]]) for i in (0, 2, 3, 5)) / 4
    assert label_nll(logits, y).item() == pytest.approx(expected, rel=1e-5)
    assert label_nll(logits, torch.full((6,), -1)).item() == 0


def test_labels_for_samples_are_as_frequent_as_known_labels() -> None:
    model = made()
    model.initialise(two_classes([0] * 29 + [1] * 9 + [-1] * 62), seeded())
    share = model.drawn("discriminator", 20_000, seeded())[1].double().mean().item()
    assert share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 20_000) ** 0.5)


def trained(x: Tensor, y: Tensor) -> AcGan:
    torch.manual_seed(0)
    model = AcGan(DataSpec((1, 8, 8), "discrete", levels=17, num_classes=4), latent=8, hidden_sizes=(64, 64))
    players = model.players()
    optimisers = {name: torch.optim.Adam(own, lr=5e-3, betas=(0.5, 0.999)) for name, own in players.items()}
    g = seeded()
    for _ in range(150):
        chosen = torch.randint(len(x), (64,), generator=g)
        for name, optimiser in optimisers.items():
            loss = model.loss(name, Batch(x[chosen], y[chosen]), g)[0]
            for parameter, gradient in zip(players[name], torch.autograd.grad(loss, players[name]), strict=True):
                parameter.grad = gradient
            optimiser.step()
    return model.eval()


def test_samples_are_of_their_class_and_shuffled_labels_teach_none() -> None:
    """By an independent classifier; chance is 1/4, and 500 samples leave a standard error of 0.02."""
    digits = FourDigits()
    model = trained(digits.x, digits.y)
    assert digits.accuracy(model) >= 0.8
    assert (model.classify(digits.x).argmax(1) == digits.y).double().mean() >= 0.9
    assert digits.accuracy(trained(digits.x, digits.shuffled)) == pytest.approx(0.25, abs=0.08)


def test_data_without_labels_are_refused() -> None:
    with pytest.raises(UserError, match="has none"):
        AcGan(DataSpec((2,), "real"))
    with pytest.raises(UserError, match="has none"):
        made().loss("discriminator", two_classes([0, 1])._replace(y=None), seeded())
