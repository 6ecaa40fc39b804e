"""GSN: the stationary law of its chain, with exact and with learnt conditionals; what walk-back visits and targets."""

import pytest
import torch

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gsn.gsn import Gsn

from .alphabet import (
    ALPHABET,
    DATA,
    LETTERS,
    Exact,
    corruption_matrix,
    exact_posterior,
    generator,
    learnt_posterior,
    stationary,
    total_variation,
    train,
)


def letters(**settings) -> Gsn:
    """The generalised denoising autoencoder: one layer, no hidden noise."""
    torch.manual_seed(0)
    return Gsn(LETTERS, **{"hidden_sizes": (20,), "hidden_noise": 0.0, "walkback": 1, "corruption": 0.5, **settings})


def test_chain_with_the_exact_posterior_keeps_the_data_distribution():
    for p in (0.2, 0.5, 0.9):
        corruption = corruption_matrix(p)
        transition = corruption @ exact_posterior(corruption)
        assert total_variation(stationary(transition), DATA) < 1e-10
        mean_free = corruption @ torch.eye(5, dtype=torch.float64)[exact_posterior(corruption).argmax(1)]
        assert total_variation(DATA @ mean_free, DATA) > 0.02, "the likeliest letter in place of a draw breaks it"


@torch.no_grad()
def test_one_step_corrupts_and_then_draws():
    """Frequencies of the model's own step from each letter are C times P(x | x~), for the exact and a trained model."""
    n = 40_000
    exact = Exact(LETTERS, hidden_sizes=(3,), corruption=0.5)
    for model, posterior in (
        (exact, exact_posterior(corruption_matrix(0.5))),
        (letters(), learnt_posterior(letters())),
    ):
        expected = corruption_matrix(0.5) @ posterior
        for letter in range(5):
            x = ALPHABET[letter : letter + 1].expand(n, 1)
            ends, _ = model.chain_step(x, model.rest(n), generator=generator(letter))
            found = torch.bincount(ends.flatten().long(), minlength=5) / n
            error = (expected[letter] * (1 - expected[letter]) / n).sqrt()
            assert ((found - expected[letter]).abs() < 4.5 * error).all()
    start = torch.multinomial(DATA, n, replacement=True, generator=generator())[:, None].byte()
    x = start
    for step in range(5):
        x, _ = exact.chain_step(x, exact.rest(n), generator=generator(50 + step))
    found = torch.bincount(x.flatten().long(), minlength=5) / n
    assert ((found - DATA).abs() < 4.5 * (DATA * (1 - DATA) / n).sqrt()).all()
    assert (x != start).double().mean() > 0.3


@torch.no_grad()
def test_corruption_is_the_known_one():
    n = 40_000
    model = letters(corruption=0.3)
    found = torch.bincount(model.corrupt(torch.full((n, 1), 2).byte(), generator=generator()).flatten().long()) / n
    expected = corruption_matrix(0.3)[2]
    assert ((found - expected).abs() < 4.5 * (expected * (1 - expected) / n).sqrt()).all()


def test_chain_with_the_trained_denoiser_is_near_the_data_and_nearer_than_an_untrained_one():
    model, noise = letters(), generator()
    untrained = stationary(corruption_matrix(0.5) @ learnt_posterior(model))
    train(model, noise, updates=300)
    learnt = stationary(corruption_matrix(0.5) @ learnt_posterior(model))
    before, after = total_variation(untrained, DATA), total_variation(learnt, DATA)
    assert after < 0.05
    assert after < before / 3
    samples = model.sample(20_000, generator=generator())
    found = torch.bincount(samples.flatten().long(), minlength=5) / 20_000
    assert ((found - learnt).abs() < 4.5 * (learnt * (1 - learnt) / 20_000).sqrt()).all()


class Recorder(Gsn):
    """Keeps what is corrupted, and what the conditionals were."""

    def corrupt(self, x, *, generator=None):
        self.visited.append(x.clone())
        return super().corrupt(x, generator=generator)

    def denoise(self, corrupted, hidden, *, noisy=True, generator=None):
        log_p, states = super().denoise(corrupted, hidden, noisy=noisy, generator=generator)
        self.conditionals.append(log_p)
        return log_p, states


@pytest.mark.parametrize("k", [1, 3, 5])
def test_walkback_visits_k_corruptions_and_always_targets_the_clean_x(k):
    torch.manual_seed(0)
    spec = DataSpec((6,), "discrete", levels=3)
    model = Recorder(spec, hidden_sizes=(5, 4), walkback=k, hidden_noise=0.1)
    model.visited, model.conditionals = [], []
    clean = torch.randint(3, (7, 6), generator=generator(1)).byte()
    loss, logs = model.loss("model", Batch(clean), generator())
    assert len(model.visited) == len(model.conditionals) == k
    assert torch.equal(model.visited[0], clean)
    assert all(not torch.equal(x, clean) for x in model.visited[1:]), "later steps start at the chain's own draws"
    errors = [-sum(p[b, d, int(clean[b, d])] for b in range(7) for d in range(6)) / 7 for p in model.conditionals]
    assert loss.item() == pytest.approx(sum(e.item() for e in errors) / k, rel=1e-5)
    assert logs["first_step"].item() == pytest.approx(errors[0].item(), rel=1e-5)
    assert logs["last_step"].item() == pytest.approx(errors[-1].item(), rel=1e-5)
    loss.backward()
    if k > 1:
        assert model.weights[1].grad.any(), "the top layer is reached through the hidden states of the walk"


@torch.no_grad()
def test_one_update_by_hand():
    """Three layers, no noise: odd layers from the old even ones, then even layers from the new odd ones."""
    torch.manual_seed(0)
    model = Gsn(DataSpec((4,), "binary"), hidden_sizes=(3, 5, 2), hidden_noise=0.0)
    for bias in model.biases:
        bias.normal_()
    v, (h1, h2, h3) = torch.tensor([[1, 0, 1, 1]]).byte(), (torch.randn(1, n) for n in (3, 5, 2))
    w, b = list(model.weights), list(model.biases)
    n1 = torch.tanh(v.float() @ w[0] + h2 @ w[1].T + b[1])
    n3 = torch.tanh(h2 @ w[2] + b[3])
    n2 = torch.tanh(n1 @ w[1] + n3 @ w[2].T + b[2])
    p = (n1 @ w[0].T + b[0]).sigmoid()
    log_p, states = model.denoise(v, [h1, h2, h3])
    for found, wanted in zip(states, (n1, n2, n3), strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)
    assert torch.allclose(log_p.exp(), torch.stack([1 - p, p], -1), atol=1e-6)


@torch.no_grad()
def test_hidden_noise_goes_before_and_after_the_tanh():
    torch.manual_seed(0)
    model = Gsn(DataSpec((2,), "binary"), hidden_sizes=(1,), hidden_noise=0.7)
    x = torch.zeros(100_000, 2).byte()
    h = model.denoise(x, model.rest(len(x)), generator=generator())[1][0]
    a = torch.tanh(0.7 * torch.randn(100_000, generator=generator(9)))
    assert h.var().item() == pytest.approx(a.var().item() + 0.49, rel=0.02)
    still = model.denoise(x, model.rest(len(x)), noisy=False)[1][0]
    assert not still.any()


@torch.no_grad()
def test_draws_follow_the_probabilities():
    model = Gsn(DataSpec((2,), "discrete", levels=3), hidden_sizes=(2,))
    p = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.1, 0.9]])
    x = model.draw(p.log().expand(50_000, 2, 3), generator=generator())
    for d in range(2):
        found = torch.bincount(x[:, d].long(), minlength=3) / 50_000
        assert ((found - p[d]).abs() <= 4 * (p[d] * (1 - p[d]) / 50_000).sqrt()).all()


@torch.no_grad()
def test_initialise_keeps_the_frequencies_and_sets_visible_biases():
    model = Gsn(DataSpec((2,), "binary"), hidden_sizes=(3,))
    x = torch.tensor([[1, 0]] * 6 + [[0, 0]] * 2).byte()
    model.initialise(Batch(x), generator())
    assert torch.allclose(model.frequencies[:, 1], torch.tensor([0.7, 0.1]))
    assert torch.allclose(model.biases[0].sigmoid(), torch.tensor([0.7, 0.1]))


@pytest.mark.parametrize("spec", [DataSpec((1, 4, 4), "binary"), DataSpec((3, 2), "discrete", levels=4)], ids=str)
def test_shapes(spec):
    model = Gsn(spec, hidden_sizes=(6, 5), sample_steps=3)
    x = torch.randint(spec.levels, (4, *spec.shape)).byte()
    assert model.loss("model", Batch(x), generator())[0].isfinite()
    assert model.sample(5).shape == (5, *spec.shape)
    assert model.sample(5).dtype == torch.uint8
    r = model.reconstruct(x)
    assert r.shape == x.shape
    assert 0 <= r.min() <= r.max() <= spec.levels - 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"hidden_sizes": ()}, "hidden layer"), ({"corruption": 0.0}, "corruption=0.0"), ({"walkback": 0}, "walkback=0")],
)
def test_wrong_arguments_are_explained(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Gsn(LETTERS, **settings)


def test_real_data_is_refused():
    with pytest.raises(UserError, match="real 2"):
        Gsn(DataSpec((2,), "real"))
