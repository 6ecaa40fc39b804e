"""The lossy autoencoder: its prior by quadrature, its bound in the other coordinates, its decoder by perturbation."""

import math

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal, Normal

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.vlae import Vlae

SPEC = DataSpec((1, 2, 3), "binary")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(spec: DataSpec = SPEC, **settings: object) -> Vlae:
    torch.manual_seed(2)
    small = {"net": "mlp", "hidden_sizes": (8,), "latent": 2, "flow_sizes": (12,), "condition": 3, "features": 6}
    model = Vlae(spec, **{**small, "blocks": 1, "kernel": 3, "head": 6, **settings}).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.prior.parameters():
            p.mul_(2.5)
    return model


def images(n: int = 6, spec: DataSpec = SPEC) -> Tensor:
    return torch.randint(spec.levels or 2, (n, *spec.shape), generator=seeded(3)).byte()


@torch.no_grad()
def test_the_priors_density_integrates_to_1_and_is_no_gaussian() -> None:
    model = make()
    side = torch.linspace(-12, 12, 601, dtype=torch.float64)
    density = model.log_prior(torch.cartesian_prod(side, side)[None]).exp().view(601, 601)
    assert torch.trapezoid(torch.trapezoid(density, side), side).item() == pytest.approx(1, abs=1e-4)
    z = model.prior.inverse(torch.randn(20_000, 2, generator=seeded(), dtype=torch.float64))[0]
    fitted = MultivariateNormal(z.mean(0), z.T.cov())
    assert (model.log_prior(z[None])[0] - fitted.log_prob(z)).mean() > 0.01, "more than mean and covariance"


def test_an_autoregressive_prior_is_an_inverse_autoregressive_posterior() -> None:
    """u = f(z) has prior N(0, I) and a posterior whose density is q(z | x) over the determinant, found here densely."""
    model, x = make(), images()
    q = model.posterior(x)
    noise = torch.randn(1, 6, 2, generator=seeded(5), dtype=torch.float64)
    z = (q.mean + q.log_sigma.exp() * noise)[0].detach()
    jacobians = torch.stack(
        [torch.autograd.functional.jacobian(lambda v: model.prior(v[None])[0][0], row) for row in z]
    )
    with torch.no_grad():
        u = model.prior(z)[0]
        log_q_u = Normal(q.mean, q.log_sigma.exp()).log_prob(z).sum(1) - jacobians.det().abs().log()
        back = model.prior.inverse(u)[0]
        torch.testing.assert_close(back, z)
        of_x = model.decoder.log_prob(x, model.map_of(back))
        wanted = of_x + Normal(0.0, 1.0).log_prob(u).sum(1) - log_q_u
        torch.testing.assert_close(model.log_weights(x, 1, generator=seeded(5))[0], wanted)
    assert (jacobians - torch.eye(2)).abs().max() > 0.1
    assert jacobians.diagonal(dim1=1, dim2=2).std(0).max() > 0.005, "a scale that depends on z"


@torch.no_grad()
def test_the_elbo_is_the_mean_log_weight_and_lies_below_the_evidence() -> None:
    model, x = make(), images(4)
    side = torch.linspace(-9, 9, 121, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)[:, None].expand(-1, 4, -1)
    joint = model._log_likelihood(x, z) + model.log_prior(z)
    exact = joint.logsumexp(0) + 2 * math.log(side[1] - side[0])
    log_w = model.log_weights(x, 20_000, generator=seeded())
    elbo = model.elbo(x.repeat(5_000, 1, 1, 1), generator=seeded(1)).view(5_000, 4)
    error = (elbo.var(0) / 5_000 + log_w.var(0) / 20_000).sqrt()
    assert ((elbo.mean(0) - log_w.mean(0)).abs() < 4 * error).all()
    assert (elbo.mean(0) < exact - 4 * elbo.std(0) / 5_000**0.5).all()
    ratio = (log_w - exact).exp()
    assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / 20_000**0.5 + 1e-3).all()


@pytest.mark.parametrize(("blocks", "kernel"), [(1, 3), (2, 5)])
@torch.no_grad()
def test_the_decoder_sees_nothing_outside_its_window_and_z_everywhere(blocks: int, kernel: int) -> None:
    spec = DataSpec((1, 9, 11), "binary")
    model = make(spec, blocks=blocks, kernel=kernel, features=24)
    x, window = images(1, spec), kernel // 2 + blocks
    maps = model.map_of(torch.zeros(1, 2, dtype=torch.float64))
    base = model.decoder.given(x, maps)[0, :, 0].view(9, 11)
    for row, column in ((4, 5), (0, 0), (2, 9)):
        other = x.clone()
        other[0, 0, row, column] ^= 1
        moved = (model.decoder.given(other, maps)[0, :, 0].view(9, 11) - base).abs() > 0
        rows, columns = moved.nonzero().T
        assert len(rows)
        assert ((rows > row) | ((rows == row) & (columns > column))).all(), "only later pixels"
        assert (rows - row).max() <= window
        assert (columns - column).abs().max() <= window
    z = torch.randn(10, 2, generator=seeded(), dtype=torch.float64)
    far = model.decoder.given(x.expand(10, -1, -1, -1), model.map_of(z))[..., 0].view(10, 9, 11)
    assert (far != base).any(0).all(), "z reaches every pixel"


@torch.no_grad()
def test_samples_follow_the_weights() -> None:
    model = make(DataSpec((1, 1, 3), "binary"))
    model.encoder[-1].bias[2:] = 2.5  # wider than the prior, so that the weights' variance is finite
    every = torch.tensor([[[[i >> 2 & 1, i >> 1 & 1, i & 1]]] for i in range(8)]).byte()
    p = model.log_weights(every, 20_000, generator=seeded()).exp()
    drawn = model.sample(8_000, generator=seeded(1)).flatten(1).long()
    share = torch.bincount((drawn * torch.tensor([4, 2, 1])).sum(1), minlength=8) / 8_000
    error = (p.var(0) / 20_000 + p.mean(0) / 8_000).sqrt()
    assert ((share - p.mean(0)).abs() < 4 * error).all()


@torch.no_grad()
def test_samples_begin_with_a_draw_of_the_prior() -> None:
    model, g = make(), seeded(4)
    z, _ = model.prior.inverse(torch.randn(500, 2, generator=g, dtype=torch.float64))
    wanted = model.decoder.sample(500, model.map_of(z), generator=g)
    assert torch.equal(model.sample(500, generator=seeded(4)), wanted)


def test_gradients_and_free_bits() -> None:
    model, batch = make(free_bits=100.0), Batch(images())
    loss, logs = model.loss("model", batch, seeded())
    assert loss.item() == pytest.approx(100.0 - logs["reconstruction"].item())
    assert logs["elbo"].item() == pytest.approx((logs["reconstruction"] - logs["kl"]).item())


def test_bad_settings_end_in_a_sentence() -> None:
    with pytest.raises(UserError, match="takes binary or discrete images"):
        make(DataSpec((4,), "binary"))
    with pytest.raises(UserError, match="kernel=4 must be odd"):
        make(kernel=4)
    with pytest.raises(UserError, match="steps=-1"):
        make(steps=-1)
