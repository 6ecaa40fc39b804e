"""Generalised denoising autoencoder: the shipped settings of the GSN, and one step that corrupts and then draws."""

import torch

from dgmbench.config import complete, compose, instantiate
from dgmbench.models.gsn.gsn import Gsn

from .alphabet import ALPHABET, DATA, LETTERS, Exact, corruption_matrix, generator, learnt_posterior, stationary, train
from .alphabet import total_variation as distance


def shipped(spec=LETTERS, *overrides: str) -> Gsn:
    """The model of ``configs/model/gdae.yaml`` on another space."""
    torch.manual_seed(0)
    node = complete(compose("train", ["model=gdae", *overrides]))["model"]
    return instantiate({key: value for key, value in node.items() if key != "card"}, spec)


@torch.no_grad()
def test_one_layer_without_noise_so_that_x_alone_is_the_chain():
    model = shipped()
    assert len(model.weights) == 1
    assert model.hidden_noise == 0
    assert model.walkback == 1
    states = [torch.randn(5, 500, generator=generator(seed)) for seed in (1, 2)]
    first, second = (model.denoise(ALPHABET, [state])[0] for state in states)
    assert torch.equal(first, second), "what is drawn depends on the corrupted x alone, not on what went before"


@torch.no_grad()
def test_corrupt_then_draw_keeps_the_distribution_and_corrupt_then_mean_does_not():
    exact = Exact(LETTERS, hidden_sizes=(3,), hidden_noise=0.0, corruption=0.3)
    n = 40_000
    x = torch.multinomial(DATA, n, replacement=True, generator=generator())[:, None].byte()
    drawn, _ = exact.chain_step(x, exact.rest(n), generator=generator(1))
    found = torch.bincount(drawn.flatten().long(), minlength=5) / n
    assert ((found - DATA).abs() < 4.5 * (DATA * (1 - DATA) / n).sqrt()).all()
    # the mean letter, rounded to a letter, as a chain that reconstructs would take it
    log_p, _ = exact.denoise(exact.corrupt(x, generator=generator(2)), exact.rest(n))
    mean = (log_p.exp()[:, 0] @ torch.arange(5, dtype=torch.float64)).round().long()
    kept = torch.bincount(mean, minlength=5) / n
    assert distance(kept, DATA) > 0.1


def test_the_trained_chain_is_near_the_data_with_walk_back_as_an_option():
    for walkback in (1, 3):
        model = shipped(LETTERS, "model.corruption=0.5", f"model.walkback={walkback}", "model.hidden_sizes=[20]")
        before = distance(stationary(corruption_matrix(0.5) @ learnt_posterior(model)), DATA)
        train(model, generator(), updates=200)
        after = distance(stationary(corruption_matrix(0.5) @ learnt_posterior(model)), DATA)
        assert after < min(0.05, before / 3)
