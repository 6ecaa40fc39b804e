"""The terms of the KL against a data set of five points, a Gaussian aggregate, and the VAE's own loss."""

import itertools
import math

import pytest
import torch
from scipy.stats import qmc
from torch import Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Facts
from dgmbench.models.vae.aggregate import KlTerms
from dgmbench.models.vae.beta_tcvae import BetaTcVae
from dgmbench.models.vae.vae import Draws, Vae
from dgmbench.nn.aggregate_posterior import log_mixtures, log_shares

SPEC = DataSpec((1, 3, 3), "binary")
N, DIM = 5, 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(mean: Tensor, log_sigma: Tensor, seed: int = 1) -> Draws:
    z = mean + log_sigma.exp() * torch.randn(mean.shape, generator=generator(seed), dtype=mean.dtype)
    return Draws(mean, log_sigma, z[None], z[None], z.new_zeros(1, len(z), 1))


def five() -> Draws:
    """A draw of each of five posteriors in three dimensions."""
    mean, spread = torch.randn(2, N, DIM, generator=generator(), dtype=torch.float64)
    return draws(mean, 0.5 * spread - 0.5)


def exact(q: Draws, at: Tensor) -> tuple[Tensor, Tensor]:
    """Log q(z) and log q(z_j) of all N points by the definition."""
    each = torch.distributions.Normal(q.mean, q.log_sigma.exp()).log_prob(at[:, None])
    n = math.log(len(q.mean))
    return each.sum(2).logsumexp(1) - n, each.logsumexp(1) - n


def estimate(q: Draws, sampling: str, chosen: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Log q(z) and log q(z_j) at the first example of a batch of chosen ones, from that batch."""
    mean, log_sigma, z = q.mean[list(chosen)], q.log_sigma[list(chosen)], q.z[0][list(chosen)]
    shares = log_shares(sampling, len(chosen), N, z)  # type: ignore[arg-type]

    def pairs(at: Tensor) -> Tensor:
        return torch.distributions.Normal(mean, log_sigma.exp()).log_prob(at[:, None])

    found = log_mixtures(pairs, [z], shares)
    return found.whole[0], found.parts[0]


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_stratified_sampling_has_the_mean_q_over_all_batches_with_the_own_example(size: int) -> None:
    q = five()
    whole, parts = exact(q, q.z[0])
    for own in range(N):
        others = itertools.permutations([i for i in range(N) if i != own], size - 1)
        found = [estimate(q, "mss", (own, *rest)) for rest in others]
        assert torch.stack([w.exp() for w, _ in found]).mean() == pytest.approx(whole[own].exp().item(), rel=1e-10)
        mean_parts = torch.stack([p.exp() for _, p in found]).mean(0)
        assert torch.allclose(mean_parts, parts[own].exp(), rtol=1e-10)


def test_stratified_sampling_of_everything_is_exact_and_weighted_sampling_off_by_a_constant() -> None:
    q = five()
    whole, parts = exact(q, q.z[0])
    for own in range(N):
        everything = (own, *(i for i in range(N) if i != own))
        found = estimate(q, "mss", everything)
        assert torch.allclose(found[0], whole[own], atol=1e-12)
        assert torch.allclose(found[1], parts[own], atol=1e-12)
        found = estimate(q, "mws", everything)
        assert torch.allclose(found[0], whole[own] - math.log(N), atol=1e-12)
        assert torch.allclose(found[1], parts[own] - math.log(N), atol=1e-12)


def made(**settings: object) -> BetaTcVae:
    torch.manual_seed(0)
    return BetaTcVae(SPEC, **{"hidden_sizes": (8,), "latent": 3, **settings}).double()  # type: ignore[arg-type]


def terms(q: Draws, sampling: str) -> KlTerms:
    model = made(sampling=sampling, latent=q.mean.shape[1])
    model.prepare(Facts(len(q.mean), {}))
    return model.kl_terms(q)


def test_the_terms_of_five_points_and_the_offsets_of_weighted_sampling() -> None:
    q = five()
    whole, parts = exact(q, q.z[0])
    own = torch.distributions.Normal(q.mean, q.log_sigma.exp()).log_prob(q.z[0]).sum(1)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(q.z[0]).sum(1)
    wanted = KlTerms(own - whole, whole - parts.sum(1), parts.sum(1) - prior)
    for found, value, offset in zip(terms(q, "mws"), wanted, (1, DIM - 1, -DIM), strict=True):
        assert torch.allclose(found, value + offset * math.log(N), atol=1e-12)
    for found, value in zip(terms(q, "mss"), wanted, strict=True):
        assert torch.allclose(found, value, atol=1e-12)
    gradients = []
    for sampling in ("mws", "mss"):
        mean = q.mean.clone().requires_grad_()
        correlation = terms(draws(mean, q.log_sigma), sampling).total_correlation.sum()
        gradients.append(torch.autograd.grad(correlation, mean)[0])
    assert torch.allclose(*gradients, atol=1e-12)
    assert gradients[0].abs().max() > 0.1


@pytest.mark.parametrize("rho", [0.0, 0.6, -0.8])
def test_total_correlation_of_a_gaussian_aggregate(rho: float) -> None:
    """Means on the quantiles of a Gaussian and one sigma make an aggregate N(0, C): TC = -log(1 - rho^2) / 2."""
    n, sigma = 1024, 0.4
    standard = torch.special.ndtri(torch.tensor(qmc.Sobol(2, seed=0).random(n)).clamp(1e-4, 1 - 1e-4))
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64) - sigma**2 * torch.eye(2)
    means = standard @ torch.linalg.cholesky(covariance).T
    found = terms(draws(means, torch.full_like(means, math.log(sigma))), "mss").total_correlation
    error = found.std() / n**0.5
    assert abs(found.mean() + 0.5 * math.log(1 - rho**2)) < 4 * error + 0.005, "0.005: the quantiles end somewhere"


def images() -> Batch:
    return Batch(torch.randint(2, (20, 1, 3, 3), generator=generator(1)).byte())


def gradient(model: Vae) -> Tensor:
    model.prepare(Facts(100, {}))
    loss = model.loss("model", images(), generator(2))[0]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("sampling", ["mws", "mss"])
def test_weights_of_one_give_the_vaes_gradient_and_each_weight_its_own_terms(sampling: str) -> None:
    torch.manual_seed(0)
    vae = Vae(SPEC, hidden_sizes=(8,), latent=3).double()
    plain = gradient(vae)
    assert torch.allclose(gradient(made(beta=1.0, sampling=sampling)), plain, atol=1e-12)
    for index, name in enumerate(("alpha", "beta", "gamma")):
        model = made(**{"beta": 1.0, name: 3.0, "sampling": sampling})
        found = gradient(model)
        value = model.kl_terms(model._draw(images().x, 1, generator(2)))[index].mean()
        own = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, materialize_grads=True)
        assert torch.allclose(found, plain + 2 * torch.cat([g.flatten() for g in own]), atol=1e-12)
        assert (found - plain).abs().max() > 1e-3


def test_logs_are_the_bound_and_the_terms() -> None:
    model = made()
    loss, logs = model.loss("model", images(), generator(2))
    assert logs["elbo"].item() == pytest.approx((logs["reconstruction"] - logs["kl"]).item())
    assert loss.item() == pytest.approx((5 * logs["total_correlation"] - logs["elbo"]).item())
    torch.manual_seed(0)
    expected = Vae(SPEC, hidden_sizes=(8,), latent=3).double().loss("model", images(), generator(2))[1]
    assert {name: logs[name].item() for name in expected} == {name: v.item() for name, v in expected.items()}


def test_blocks_change_neither_values_nor_gradients() -> None:
    results = []
    for block in (2**22, 7 * 3 * 2):  # of the second, two rows at a time
        mean = torch.randn(7, 3, generator=generator(), dtype=torch.float64).requires_grad_()

        def pairs(at: Tensor, mean: Tensor = mean) -> Tensor:
            return torch.distributions.Normal(mean, 0.5).log_prob(at[:, None])

        shares = log_shares("mss", 7, 50, mean)
        found = log_mixtures(pairs, [mean + 0.1], shares, groups=(2, 1), block=block)
        gradient = torch.autograd.grad(sum(part.square().sum() for part in found), mean)[0]
        results.append((*found, gradient))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    whole, groups, parts = results[0][:3]
    assert groups.shape == (7, 2)
    assert torch.equal(groups[:, 1], parts[:, 2]), "a group of one part is that part"
    assert not torch.allclose(groups.sum(1), whole)


@pytest.mark.parametrize(("settings", "sentence"), [({"beta": -1.0}, "beta=-1.0"), ({"alpha": -0.5}, "alpha=-0.5")])
def test_wrong_arguments_are_explained(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        made(**settings)
