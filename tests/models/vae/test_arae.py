"""The adversarially regularised autoencoder: who learns from the critic, and which way; sentences against a bigram."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Generator, Tensor

from dgmbench.data import load
from dgmbench.data.grammar import ENGLISH
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.data.text import decode_tokens
from dgmbench.errors import UserError
from dgmbench.models.vae.arae import Arae

CONFIG = Path(__file__).parents[3] / "configs" / "data" / "text_small.yaml"
SPEC = DataSpec((4,), "tokens", 4, end=0)
STEPS = 130
SMALL = {"width": 3, "hidden": 6, "latent": 3, "noise_dim": 2, "game_sizes": (6,)}
X = torch.tensor([[1, 2, 0, 0], [3, 3, 1, 2], [0, 0, 0, 0], [2, 1, 3, 0], [1, 1, 1, 0]])


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(**settings: object) -> Arae:
    torch.manual_seed(0)
    return Arae(SPEC, **{**SMALL, **settings}).double()  # type: ignore[arg-type]


def gradients(model: Arae, loss: Tensor, net: torch.nn.Module) -> Tensor:
    found = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
    return torch.cat([torch.zeros(1).double() if g is None else g.flatten() for g in found])


def test_the_critics_gradient_reaches_the_encoder_downhill_and_not_the_decoder() -> None:
    with_it, without = make(weight=3.0), make(weight=0.0)
    losses = [model.loss("autoencoder", Batch(X), seeded())[0] for model in (with_it, without)]
    judged = with_it.judged(with_it.encode(X)).mean()
    change = gradients(with_it, losses[0], with_it.encoder) - gradients(without, losses[1], without.encoder)
    torch.testing.assert_close(change, 3 * gradients(with_it, judged, with_it.encoder))
    assert change.abs().amax() > 1e-4
    of_decoder = [gradients(m, loss, m.decoder) for m, loss in zip((with_it, without), losses, strict=True)]
    torch.testing.assert_close(*of_decoder, rtol=0, atol=0)
    # a step of the encoder makes codes of sentences look less like such to the critic, one of the generator its own so
    model, noise = make(weight=1e6), torch.randn(5, 2, generator=seeded(1), dtype=torch.float64)

    def of_sentences() -> Tensor:
        return model.judged(model.encode(X)).mean()

    def of_noise() -> Tensor:
        return model.judged(model.generated(noise)).mean()

    for player, net, output, sign in (
        ("autoencoder", model.encoder, of_sentences, -1), ("generator", model.generator, of_noise, 1),
    ):  # fmt: skip
        before = output().item()
        slopes = torch.autograd.grad(model.loss(player, Batch(X), seeded(1))[0], list(net.parameters()))
        steepest = max(float(slope.abs().amax()) for slope in slopes)
        with torch.no_grad():
            for p, slope in zip(net.parameters(), slopes, strict=True):
                p -= 1e-3 / steepest * slope
        assert sign * (output().item() - before) > 0


def test_the_losses_by_hand() -> None:
    model = make(weight=2.0, penalty_weight=0.0)
    g = seeded(3)
    noise = torch.randn(5, 2, generator=g, dtype=torch.float64)
    real, fake = model.encode(X), model.generated(noise)
    critic = model.loss("critic", Batch(X), seeded(3))[0]
    assert critic.item() == pytest.approx((model.judged(fake).mean() - model.judged(real).mean()).item())
    assert gradients(model, critic, model.encoder).eq(0).all()
    assert gradients(model, critic, model.generator).eq(0).all()
    assert model.loss("generator", Batch(X), seeded(3))[0].item() == pytest.approx(-model.judged(fake).mean().item())
    blur = torch.randn(5, 3, generator=seeded(4), dtype=torch.float64)
    for share, scale in ((0.0, 0.2), (0.75, 0.05), (1.0, 0.0)):  # the noise falls to nothing
        model.advance(model.stages()[0], share)
        reconstruction = model.decoder.log_prob(X, real + scale * blur).mean()
        loss, logs = model.loss("autoencoder", Batch(X), seeded(4))
        assert logs["reconstruction"].item() == pytest.approx(reconstruction.item())
        assert loss.item() == pytest.approx((2 * model.judged(real).mean() - reconstruction).item())
    torch.testing.assert_close(model.reconstruction_log_prob(X), model.decoder.log_prob(X, real))
    # a critic a(z) = w z has slope |w| everywhere, so the penalty is (|w| - 1)^2
    straight = make(penalty_weight=7.0)
    straight.judged = lambda code: 3 * code[:, 0]  # type: ignore[method-assign]
    _, logs = straight.loss("critic", Batch(X), seeded())
    assert logs["penalty"].item() == pytest.approx(4.0)


def test_codes_lie_on_the_sphere_and_the_generator_waits() -> None:
    model = make(n_critic=3)
    for code in (model.encode(X), model.generated(torch.randn(50, 2).double())):
        torch.testing.assert_close(code.norm(dim=1), torch.ones(len(code), dtype=torch.float64))
    assert torch.equal(model.decode(5 * model.encode(X)), model.reconstruct(X))
    (stage,) = model.stages()
    turns = [model.turn(step, stage) for step in range(6)]
    assert [step for step, players in enumerate(turns) if "generator" in players] == [2, 5]
    assert all(players[:2] == ("critic", "autoencoder") for players in turns)


def test_sentences_are_drawn_of_the_generators_codes() -> None:
    model, n = make(), 4000
    noise = torch.randn(1, 2, generator=seeded(5), dtype=torch.float64)
    every = torch.cartesian_prod(*[torch.arange(4)] * 4)
    every = every[~((every == 0).int().diff(dim=1) < 0).any(1)]
    p = model.log_prob_given(every, noise.expand(len(every), -1)).exp()
    assert p.sum().item() == pytest.approx(1.0)
    torch.testing.assert_close(p.log(), model.decoder.log_prob(every, model.generated(noise).expand(len(every), -1)))
    drawn = Counter(map(tuple, model.sample_given(noise.expand(n, -1), generator=seeded(6)).tolist()))
    expected = n * p.detach().numpy()
    counts = np.array([drawn[tuple(row)] for row in every.tolist()])
    often = expected > 5
    chi2 = ((counts - expected)[often] ** 2 / expected[often]).sum()
    assert chi2 < often.sum() + 4.5 * math.sqrt(2 * often.sum())


def bigram(x: Tensor, tokens: int, n: int) -> Tensor:
    """Draws of a bigram model with the frequencies of x (m, t); token 0 ends."""
    counts = np.zeros((tokens + 1, tokens))
    for row in x.tolist():
        for a, b in zip([tokens, *row[:-1]], row, strict=True):
            if a != 0:
                counts[a, b] += 1
    rng, drawn = np.random.RandomState(0), torch.zeros(n, x.shape[1], dtype=torch.int64)
    for row in drawn:
        word = tokens
        for t in range(len(row)):
            word = int(rng.choice(tokens, p=counts[word] / counts[word].sum()))
            row[t] = word
            if word == 0:
                break
    return drawn


def test_more_sentences_are_grammatical_than_a_bigrams_and_they_differ() -> None:
    data = load({**yaml.safe_load(CONFIG.read_text()), "train": 2000, "valid": 10, "test": 400}, Path("/nonexistent"))
    train, test = (torch.from_numpy(data.splits[name].x[:]) for name in ("train", "test"))
    torch.manual_seed(0)
    model = Arae(
        data.spec, width=24, hidden=32, latent=8, noise_dim=8, game_sizes=(32, 32), n_critic=2, weight=0.3
    )  # fmt: skip
    (stage,), g = model.stages(), seeded()
    optimisers = {name: torch.optim.Adam(own, lr=1e-2) for name, own in model.players().items()}
    for step in range(STEPS):
        batch = Batch(train[torch.randint(len(train), (50,), generator=g)])
        for player in model.turn(step, stage):
            optimisers[player].zero_grad()
            model.loss(player, batch, g)[0].backward()
            optimisers[player].step()
        model.advance(stage, (step + 1) / STEPS)
    model.eval()

    def scores(x: Tensor) -> tuple[float, float]:
        lines = decode_tokens(x.numpy(), data.spec)
        possible = [math.isfinite(ENGLISH.log_prob(line.split())) for line in lines]
        return float(np.mean(possible)), len(set(lines)) / len(lines)

    (of_words, _), (_, of_data) = scores(bigram(train, 33, 400)), scores(test)
    accepted, distinct = scores(model.sample(400, generator=seeded(1)))
    assert accepted > of_words + 4 * math.sqrt(0.25 * 2 / 400)
    assert distinct >= of_data / 2


@pytest.mark.parametrize(
    ("spec", "arguments", "said"),
    [
        (DataSpec((1, 2, 2), "binary", 2), {}, "sequences of tokens"),
        (SPEC, {"latent": 1}, "model.latent=1"),
        (SPEC, {"n_critic": 0}, "model.n_critic=0"),
        (SPEC, {"noise": -0.1}, "model.noise=-0.1"),
    ],
)
def test_what_it_does_not_take(spec, arguments, said) -> None:
    with pytest.raises(UserError, match=said):
        Arae(spec, **arguments)
