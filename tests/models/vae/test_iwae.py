"""IWAE against a linear-Gaussian model with known evidence, the VAE's ELBO, and gradients by two other routes."""

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.iwae import Iwae
from dgmbench.models.vae.vae import Vae

REAL = DataSpec((3,), "real")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(layers: int, k: int = 5, gradient: str = "iwae") -> tuple[Iwae, MultivariateNormal]:
    """Linear nets and constant variances below the top, so that p(x) is a Gaussian that can be written down."""
    torch.manual_seed(1)
    latent = (2, 2)[:layers]
    model = Iwae(REAL, k=k, latent=latent, hidden_sizes=(), upper_sizes=(), sigma=0.5, gradient=gradient).double()
    with torch.no_grad():
        for net in (model.encoder, *model.upwards, *model.downwards):
            net[-1].weight[2:] = 0.0
            net[-1].bias[2:] = -0.5
    covariance, mean = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for net in reversed(model.downwards):
        weight, bias = net[-1].weight[:2], net[-1].bias
        mean = weight @ mean + bias[:2]
        covariance = weight @ covariance @ weight.T + bias[2:].exp().diag()
    weight, bias = model.decoder[0].weight, model.decoder[0].bias
    covariance = weight @ covariance @ weight.T + 0.25 * torch.eye(3, dtype=torch.float64)
    return model, MultivariateNormal((weight @ mean + bias).detach(), covariance.detach())


def bounds(model: Iwae, x: torch.Tensor, k: int, n: int = 20_000) -> torch.Tensor:
    return model.log_weights(x.expand(n, -1), k, generator=generator(k)).logsumexp(0) - math.log(k)


@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_bound_grows_with_k_and_stays_below_the_evidence(layers):
    model, evidence = linear(layers)
    for x in evidence.sample((2,)).float():
        exact = evidence.log_prob(x.double()).item()
        found = [bounds(model, x, k) for k in (1, 3, 10)]
        errors = [(b.std() / len(b) ** 0.5).item() for b in found]
        means = [b.mean().item() for b in found]
        assert exact - means[0] > 0.1, "the encoder is not the posterior, so there is a gap"
        for (low, a), (high, b) in itertools.pairwise([*zip(means, errors, strict=True), (exact, 0.0)]):
            assert low < high + 4 * math.hypot(a, b)
        assert exact - means[2] < 0.5 * (exact - means[0])
        weights = model.log_weights(x[None], 200_000, generator=generator()).exp()[:, 0]
        assert abs(weights.mean() - math.exp(exact)) < 4 * weights.std() / len(weights) ** 0.5


@torch.no_grad()
def test_k_1_equals_the_elbo_estimator():
    """One draw: the loss is the negative mean ELBO draw by draw; its mean is the VAE's ELBO with the same nets."""
    torch.manual_seed(0)
    spec = DataSpec((1, 3, 3), "binary")
    model = Iwae(spec, k=1, hidden_sizes=(8,), latent=(2,)).double()
    vae = Vae(spec, hidden_sizes=(8,), latent=2).double()
    vae.encoder.load_state_dict(model.encoder.state_dict())
    vae.decoder.load_state_dict(model.decoder.state_dict())
    x = torch.randint(2, (4, 1, 3, 3), generator=generator()).byte()
    loss, logs = model.loss("model", Batch(x), generator(3))
    assert loss.item() == pytest.approx(-model.elbo(x, generator=generator(3)).mean().item(), abs=1e-12)
    assert logs["bound"].item() == logs["elbo"].item() == pytest.approx(-loss.item(), abs=1e-12)
    repeated = x.repeat(5000, 1, 1, 1)
    ours, theirs = (m.elbo(repeated, generator=generator(7)).view(5000, 4).mean(1) for m in (model, vae))
    error = math.hypot(ours.std(), theirs.std()) / 5000**0.5
    assert abs(ours.mean() - theirs.mean()).item() < 4 * error


@pytest.mark.parametrize("gradient", ["iwae", "dreg"])
@torch.no_grad()
def test_the_logged_value_is_the_bound_itself(gradient):
    """Not the self-normalised surrogate sum_i w~_i log w_i, which lies above it by KL(w~ || uniform)."""
    model, evidence = linear(2, k=5, gradient=gradient)
    x = evidence.sample((50,)).float()
    log_w = model.log_weights(x, 5, generator=generator(2))
    bound = (log_w.exp().mean(0)).log().mean().item()
    surrogate = (log_w.softmax(0) * log_w).sum(0).mean().item()
    loss, logs = model.loss("model", Batch(x), generator(2))
    assert logs["bound"].item() == pytest.approx(bound, abs=1e-10)
    assert loss.item() == pytest.approx(-bound, abs=1e-10)
    assert logs["elbo"].item() == pytest.approx(log_w.mean().item(), abs=1e-10)
    assert surrogate > bound + 0.05


def gradients(model: Iwae, x: torch.Tensor, repeats: int, chunks: int) -> torch.Tensor:
    draws, noise = [], generator(11)
    for _ in range(chunks):
        loss = model.loss("model", Batch(x.expand(repeats, -1)), noise)[0]
        draws.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(draws)


@pytest.mark.parametrize("layers", [1, 2])
def test_dreg_has_the_mean_of_the_plain_gradient_and_less_variance(layers):
    plain, evidence = linear(layers, k=8)
    other, _ = linear(layers, k=8, gradient="dreg")
    x = evidence.sample((1,)).float()
    a, b = gradients(plain, x, 500, 100), gradients(other, x, 500, 100)
    error = ((a.var(0) + b.var(0)) / 100).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() <= 4.5 * error + 1e-12).all()
    assert a.mean(0).abs().max() > 0.1
    encoder = [name.startswith(("encoder", "upwards")) for name, _ in plain.named_parameters()]
    sizes = [p.numel() for p in plain.parameters()]
    mine = torch.cat([torch.full((n,), flag) for n, flag in zip(sizes, encoder, strict=True)])
    assert b[:, mine].var(0).sum() < 0.7 * a[:, mine].var(0).sum()
    assert torch.allclose(a[:, ~mine], b[:, ~mine]), "the decoder's gradient is that of the bound in both"


def test_dreg_vanishes_draw_by_draw_where_the_encoder_is_the_posterior():
    """At the exact posterior all weights are equal to p(x): the plain encoder gradient is noise, DReG's is zero."""
    for gradient, wanted in (("dreg", True), ("iwae", False)):
        model = Iwae(DataSpec((1,), "real"), k=4, latent=(1,), hidden_sizes=(), sigma=0.5, gradient=gradient).double()
        with torch.no_grad():
            model.decoder[0].weight.fill_(1.5)
            model.decoder[0].bias.fill_(0.2)
            precision = 1 + 1.5**2 / 0.25
            mean = 1.5 / 0.25 / precision
            model.encoder[1].weight.copy_(torch.tensor([[mean], [0.0]], dtype=torch.float64))
            model.encoder[1].bias.copy_(torch.tensor([-0.2 * mean, -math.log(precision)], dtype=torch.float64))
        x = torch.tensor([[0.7], [-1.0]])
        model.loss("model", Batch(x), generator())[0].backward()
        found = max(p.grad.abs().max().item() for p in model.encoder.parameters())
        assert (found < 1e-12) is wanted


def test_published_sizes():
    spec = DataSpec((1, 28, 28), "binary")
    one, two = Iwae(spec), Iwae(spec, latent=(100, 50))
    widths = lambda net: [m.out_features for m in net if isinstance(m, torch.nn.Linear)]
    assert widths(one.encoder) == [200, 200, 2 * 50]
    assert widths(one.decoder) == [200, 200, 784]
    assert widths(two.encoder) == [200, 200, 2 * 100]
    assert widths(two.upwards[0]) == [100, 100, 2 * 50]
    assert widths(two.downwards[0]) == [100, 100, 2 * 100]
    assert one.k == 50


@torch.no_grad()
def test_samples_follow_the_evidence_of_two_layers():
    model, evidence = linear(2)
    x = model.sample(40_000, generator=generator()).double()
    error = (evidence.covariance_matrix.diagonal() / len(x)).sqrt()
    assert ((x.mean(0) - evidence.mean).abs() < 4.5 * error).all()
    assert torch.allclose(x.T.cov(), evidence.covariance_matrix, atol=0.05 * evidence.covariance_matrix.max())


@pytest.mark.parametrize("net", ["mlp", "conv"])
@pytest.mark.parametrize("latent", [(3,), (4, 3)])
def test_shapes_and_codes(net, latent):
    model = Iwae(DataSpec((1, 8, 8), "discrete", 17), net=net, hidden_sizes=(8,), channels=4, latent=latent, k=3)
    x = torch.randint(17, (2, 1, 8, 8)).byte()
    model.loss("model", Batch(x), generator())[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert model.encode(x).shape == (2, 3)
    assert model.reconstruct(x).shape == x.shape
    assert model.sample(5).shape == (5, 1, 8, 8)
    assert model.log_weights(x, 4).shape == (4, 2)


@pytest.mark.parametrize(("settings", "sentence"), [({"k": 0}, "k=0"), ({"latent": ()}, "latent")])
def test_wrong_arguments_are_explained(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Iwae(REAL, **settings)
