"""The VAE against a linear-Gaussian model with known evidence, enumeration, quadrature and closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.vae import Vae

DIM, LATENT, SIGMA = 5, 2, 0.5


class LinearGaussian:
    """p(x) = N(b, W W' + sigma^2 I) with q(z | x) = N(A (x - b), diag(s^2)), as a VAE with linear nets."""

    def __init__(self, *, orthogonal: bool, optimal: bool) -> None:
        torch.manual_seed(0)
        weight = torch.linalg.qr(torch.randn(DIM, LATENT, dtype=torch.float64)).Q * torch.tensor([1.5, 0.8])
        if not orthogonal:
            weight = weight @ torch.tensor([[1.0, 0.7], [0.0, 1.0]], dtype=torch.float64)
        self.weight, self.bias = weight, torch.randn(DIM, dtype=torch.float64)
        precision = weight.T @ weight / SIGMA**2 + torch.eye(LATENT, dtype=torch.float64)
        self.matrix = torch.linalg.solve(precision, weight.T) / SIGMA**2
        self.log_sigma = -0.5 * precision.diagonal().log()  # the best diagonal posterior
        if not optimal:
            self.matrix = 0.7 * self.matrix
            self.log_sigma = self.log_sigma + 0.4
        self.vae = Vae(
            DataSpec((DIM,), "real"), hidden_sizes=(), latent=LATENT, observation="gaussian", sigma=SIGMA
        ).double()
        decoder, encoder = self.vae.decoder[0], self.vae.encoder[1]
        with torch.no_grad():
            decoder.weight.copy_(weight)
            decoder.bias.copy_(self.bias)
            encoder.weight.copy_(torch.cat((self.matrix, torch.zeros_like(self.matrix))))
            encoder.bias.copy_(torch.cat((-self.matrix @ self.bias, 2 * self.log_sigma)))
        self.evidence = MultivariateNormal(
            self.bias, weight @ weight.T + SIGMA**2 * torch.eye(DIM, dtype=torch.float64)
        )

    def draws(self, n: int) -> torch.Tensor:
        return self.evidence.sample((n,)).float()

    def elbo(self, x: torch.Tensor) -> torch.Tensor:
        """E_q[log p(x | z)] - KL in closed form, differentiable in the VAE's parameters."""
        mean, log_sigma = self.vae.posterior(x)
        decoder = self.vae.decoder[0]
        error = (x.double() - mean @ decoder.weight.T - decoder.bias).square().sum(1)
        spread = ((2 * log_sigma).exp() * decoder.weight.square().sum(0)).sum(1)
        likelihood = -0.5 * (error + spread) / SIGMA**2 - DIM * (math.log(SIGMA) + 0.5 * math.log(2 * math.pi))
        kl = 0.5 * (mean.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(1)
        return likelihood - kl


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def standard_error(values):
    return (values.std() / len(values) ** 0.5).item()


@pytest.mark.parametrize("orthogonal", [True, False])
@torch.no_grad()
def test_elbo_below_importance_bound_below_evidence(orthogonal):
    model, k, n = LinearGaussian(orthogonal=orthogonal, optimal=False), 5, 20_000
    for x in model.draws(3):
        exact = model.evidence.log_prob(x.double()).item()
        elbo = model.vae.elbo(x.expand(n, -1), generator=generator(1))
        bound = model.vae.log_weights(x.expand(n, -1), k, generator=generator(2)).logsumexp(0) - math.log(k)
        assert abs(elbo.mean().item() - model.elbo(x[None]).item()) < 3 * standard_error(elbo)
        assert elbo.mean().item() <= bound.mean().item() + 3 * (standard_error(elbo) + standard_error(bound))
        assert bound.mean().item() <= exact + 3 * standard_error(bound)
        assert exact - elbo.mean().item() > 0.1, "the encoder is off on purpose, so the gap must be seen"
        assert (exact - bound.mean().item()) < 0.8 * (exact - elbo.mean().item())


@torch.no_grad()
def test_many_importance_samples_reach_the_evidence():
    model = LinearGaussian(orthogonal=False, optimal=False)
    x = model.draws(4)
    weights = model.vae.log_weights(x, 100_000, generator=generator()).exp()
    exact = model.evidence.log_prob(x.double()).exp()
    assert ((weights.mean(0) - exact).abs() < 4 * weights.std(0) / 100_000**0.5).all()


@torch.no_grad()
def test_bound_is_tight_at_the_ppca_optimum_with_orthogonal_columns():
    model = LinearGaussian(orthogonal=True, optimal=True)
    x = model.draws(8)
    exact = model.evidence.log_prob(x.double())
    assert torch.allclose(model.elbo(x), exact, rtol=1e-9)
    weights = model.vae.log_weights(x, 6, generator=generator())
    assert torch.allclose(weights, exact.expand(6, -1), rtol=1e-9), "q is the posterior, so weights are constant"
    elbo = model.vae.elbo(x[:1].expand(20_000, -1), generator=generator())
    assert abs(elbo.mean().item() - exact[0].item()) < 3 * standard_error(elbo)
    skewed = LinearGaussian(orthogonal=False, optimal=True)
    y = skewed.draws(8)
    assert (skewed.elbo(y) < skewed.evidence.log_prob(y.double()) - 0.01).all()


def test_training_finds_ppca():
    """Gradient ascent on the bound ends at the maximum likelihood of probabilistic PCA, known from eigenvalues."""
    torch.manual_seed(0)
    x = LinearGaussian(orthogonal=True, optimal=True).draws(500)
    centred = (x - x.mean(0)).double()
    values = torch.linalg.eigvalsh(centred.T @ centred / len(x)).flip(0)
    model = values[:LATENT].clamp(min=SIGMA**2).log().sum() + (DIM - LATENT) * math.log(SIGMA**2)
    fit = (values[:LATENT] / values[:LATENT].clamp(min=SIGMA**2)).sum() + values[LATENT:].sum() / SIGMA**2
    best = -0.5 * (DIM * math.log(2 * math.pi) + model + fit).item()
    vae = Vae(DataSpec((DIM,), "real"), hidden_sizes=(), latent=LATENT, sigma=SIGMA, samples=4)
    optimiser = torch.optim.Adam(vae.parameters(), lr=0.02)
    noise = generator()
    for step in range(600):
        optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / 600)
        optimiser.zero_grad()
        vae.loss("model", Batch(x), noise)[0].backward()
        optimiser.step()
    with torch.no_grad():
        elbo = torch.stack([vae.elbo(x, generator=noise).mean() for _ in range(50)])
    assert elbo.mean().item() == pytest.approx(best, abs=0.01 + 3 * standard_error(elbo))


def test_reparametrised_gradient_against_the_closed_form():
    model, n, chunks = LinearGaussian(orthogonal=False, optimal=False), 2000, 60
    x = model.draws(1)
    parameters = list(model.vae.parameters())
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(-model.elbo(x).mean(), parameters)])
    noise, draws = generator(), []
    for _ in range(chunks):
        loss, _ = model.vae.loss("model", Batch(x.expand(n, -1)), noise)
        draws.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    got = torch.stack(draws)
    z = (got.mean(0) - wanted) / (got.std(0) / chunks**0.5 + 1e-9)
    assert z.abs().max() < 4.5, "20 to 35 coordinates, 60 independent estimates"
    assert wanted.abs().max() > 0.5


@torch.no_grad()
def test_analytic_kl_against_monte_carlo():
    model, n = LinearGaussian(orthogonal=False, optimal=False), 100_000
    x = model.draws(1)
    mean, log_sigma = model.vae.posterior(x)
    kl = model.vae._terms(x, 1, generator())[1]
    q = torch.distributions.Normal(mean, log_sigma.exp())
    p = torch.distributions.Normal(0.0, 1.0)
    z = mean + log_sigma.exp() * torch.randn(n, LATENT, generator=generator(), dtype=torch.float64)
    draws = q.log_prob(z) - p.log_prob(z)
    assert ((draws.mean(0) - kl[0]).abs() < 3.5 * draws.std(0) / n**0.5).all()
    assert torch.allclose(torch.distributions.kl_divergence(q, p), kl)


def tiny(**kwargs):
    """A VAE over 3 x 3 binary images with strong dependencies, and all 512 images."""
    torch.manual_seed(3)
    spec = DataSpec((1, 3, 3), "binary")
    vae = Vae(spec, **{"hidden_sizes": (8,), "latent": 2, **kwargs}).double()
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(2.0)
    images = torch.tensor(list(itertools.product((0, 1), repeat=9)), dtype=torch.uint8).reshape(-1, 1, 3, 3)
    return vae, images


@torch.no_grad()
def probabilities(vae, images):
    """p(x) = integral of p(x | z) N(z; 0, I) by Gauss-Hermite quadrature over the two latent dimensions."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    nodes, weights = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    z = torch.cartesian_prod(nodes, nodes)
    joint = vae.observation.log_prob(vae.decoder(z)[:, None], images).exp()
    return (joint * (weights[:, None] * weights).reshape(-1, 1)).sum(0)


@torch.no_grad()
def test_sums_to_one_and_weights_average_to_the_probability():
    vae, images = tiny()
    vae.encoder[-1].weight.mul_(0.3)
    vae.encoder[-1].bias[2:] = 0.5  # a posterior wider than the prior keeps the weights' variance finite
    exact = probabilities(vae, images)
    assert exact.sum().item() == pytest.approx(1.0, abs=1e-8)
    weights = vae.log_weights(images, 2000, generator=generator()).exp()
    z = (weights.mean(0) - exact) / (weights.std(0) / 2000**0.5)
    assert abs(z.mean().item()) < 4 / 512**0.5
    assert z.abs().max() < 6
    assert abs(weights.mean(0).sum().item() - 1) < 4 * (weights.var(0) / 2000).sum().sqrt().item()


@torch.no_grad()
def test_sample_frequencies_match_the_probabilities():
    vae, images = tiny()
    n = 50_000
    x = vae.sample(n, generator=generator())
    assert x.dtype == torch.uint8
    assert x.shape == (n, 1, 3, 3)
    place = 2 ** torch.arange(8, -1, -1)
    counts = torch.bincount((x.flatten(1).long() * place).sum(1), minlength=512)
    assert stats.chisquare(counts.numpy(), (n * probabilities(vae, images)).numpy()).pvalue > 1e-3


@torch.no_grad()
def test_elbo_of_binary_images_is_below_the_probability():
    vae, images = tiny()
    exact = probabilities(vae, images).log()
    elbo = torch.stack([vae.elbo(images, generator=generator(seed)) for seed in range(200)])
    assert (elbo.mean(0) < exact + 3 * elbo.std(0) / 200**0.5).all()


def test_logs_are_the_bound_and_its_terms():
    vae, images = tiny(samples=3)
    loss, logs = vae.loss("model", Batch(images), generator())
    assert set(logs) == {"elbo", "reconstruction", "kl"}
    assert logs["elbo"].item() == pytest.approx(-loss.item())
    assert logs["elbo"].item() == pytest.approx((logs["reconstruction"] - logs["kl"]).item())
    assert not any(value.requires_grad for value in logs.values())
    reconstruction, kl = vae._terms(images, 3, generator())
    assert logs["kl"].item() == pytest.approx(kl.sum(1).mean().item())
    assert logs["reconstruction"].item() == pytest.approx(reconstruction.mean().item())


def test_free_bits_by_hand():
    vae, images = tiny(free_bits=0.3)
    kl = vae._terms(images, 1, generator())[1].mean(0)
    assert kl.min() < 0.3 < kl.max(), "one dimension below and one above the threshold"
    loss, logs = vae.loss("model", Batch(images), generator())
    assert loss.item() == pytest.approx((-logs["reconstruction"] + 0.3 + kl.max()).item())
    assert logs["elbo"].item() == pytest.approx((logs["reconstruction"] - kl.sum()).item()), "the log stays a bound"


def test_warm_up_by_hand():
    vae, images = tiny(kl_warmup=4)
    batch = Batch(images)
    for beta in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0):
        before = vae.step.clone()
        loss, logs = vae.loss("model", batch, generator())
        assert torch.equal(vae.step, before), "the loss changes no state"
        assert loss.item() == pytest.approx((-logs["reconstruction"] + beta * logs["kl"]).item())
        assert logs["elbo"].item() == pytest.approx((logs["reconstruction"] - logs["kl"]).item())
        vae.after_step("model", batch, generator())
    assert vae.state_dict()["step"].item() == 6, "the counter is a buffer, so it is saved"


@torch.no_grad()
def test_more_samples_lower_the_variance():
    x = tiny()[1][:1].expand(4000, 1, 3, 3)
    one, nine = [tiny(samples=s)[0]._terms(x, s, generator())[0] for s in (1, 9)]
    assert (one.var() / nine.var()).item() == pytest.approx(9, rel=0.2)
    assert abs(one.mean() - nine.mean()).item() < 3 * (standard_error(one) + standard_error(nine))


@torch.no_grad()
def test_codes_and_reconstructions():
    vae, images = tiny()
    mean, log_sigma = vae.posterior(images)
    assert torch.equal(vae.encode(images), mean)
    draws = torch.stack([vae.reconstruct(images[:5], generator=generator(s)) for s in range(300)])
    z = mean[:5] + log_sigma[:5].exp() * torch.randn(300, 5, 2, generator=generator(), dtype=torch.float64)
    expected = vae.decode(z.flatten(0, 1)).unflatten(0, (300, 5))
    tolerance = 4 * (draws.var(0) / 300 + expected.var(0) / 300).sqrt()
    assert ((draws.mean(0) - expected.mean(0)).abs() < tolerance).all()


@pytest.mark.parametrize("net", ["mlp", "conv", "resnet"])
@pytest.mark.parametrize(
    "spec",
    [
        DataSpec((1, 8, 8), "discrete", 17),
        DataSpec((1, 28, 28), "binary"),
        DataSpec((3, 32, 32), "discrete", 256),
        DataSpec((3, 64, 64), "real"),
    ],
    ids=str,
)
def test_every_network_on_every_kind_of_image(net, spec):
    torch.manual_seed(0)
    vae = Vae(spec, net=net, hidden_sizes=(8, 6), channels=4, latent=3, components=2)
    x = torch.randn(2, *spec.shape) if spec.kind == "real" else torch.randint(spec.levels, (2, *spec.shape)).byte()
    loss, _ = vae.loss("model", Batch(x), generator())
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in vae.parameters())
    assert vae.sample(2).shape == vae.reconstruct(x).shape == x.shape
    assert vae.sample(2).dtype == spec.dtype
    assert vae.log_weights(x, 3).shape == (3, 2)
    assert vae.elbo(x).shape == (2,)
    assert torch.equal(vae.sample(2, generator=generator()), vae.sample(2, generator=generator()))


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"latent": 0}, "latent=0"),
        ({"samples": 0}, "samples=0"),
        ({"free_bits": -1.0}, "free_bits=-1.0"),
        ({"kl_warmup": -1}, "kl_warmup=-1"),
        ({"net": "conv"}, "takes images"),
    ],
)
def test_wrong_arguments_are_explained(kwargs, sentence):
    with pytest.raises(UserError, match=sentence):
        Vae(DataSpec((4,), "binary"), **kwargs)
