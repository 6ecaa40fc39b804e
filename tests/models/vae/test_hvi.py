"""Hamiltonian variational inference: its steps as a map, and its weights against the evidence of a linear model."""

import math

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.hvi import Hvi
from dgmbench.models.vae.vae import Vae

BINARY = DataSpec((1, 2, 3), "binary")
REAL = DataSpec((3,), "real")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(spec: DataSpec = BINARY, **settings: object) -> Hvi:
    torch.manual_seed(1)
    small = {"leapfrog": 3, "step_size": 0.3, "features": 3, "reverse_sizes": (6,), "hidden_sizes": (8,), "latent": 2}
    return Hvi(spec, **{**small, **settings}).double()  # type: ignore[arg-type]


def images(n: int = 8) -> Tensor:
    return torch.randint(2, (n, 1, 2, 3), generator=seeded(3)).byte()


def linear() -> tuple[Hvi, MultivariateNormal]:
    """A linear decoder with a fixed sigma, so that p(x) is a Gaussian that can be written down."""
    model = make(REAL, hidden_sizes=(), sigma=0.5, step_size=0.15)
    weight, bias = model.decoder[0].weight, model.decoder[0].bias
    with torch.no_grad():
        weight.mul_(2.0)
        model.log_sigma_v.copy_(torch.tensor([0.2, -0.3]))
        model.reverse[-1].weight.mul_(5.0)
        posterior = (torch.eye(2, dtype=torch.float64) + weight.T @ weight / 0.25).inverse()
        model.encoder[1].weight[:2] = 0.9 * posterior @ weight.T / 0.25  # near the posterior, and wider
        model.encoder[1].bias[:2] = -model.encoder[1].weight[:2] @ bias
        model.encoder[1].weight[2:] = 0.0
        model.encoder[1].bias[2:] = posterior.diagonal().log() + 0.7
    covariance = weight @ weight.T + 0.25 * torch.eye(3, dtype=torch.float64)
    return model, MultivariateNormal(bias.detach(), covariance.detach())


@torch.no_grad()
def test_without_steps_it_is_the_vae() -> None:
    model = make(leapfrog=0)
    vae = Vae(BINARY, hidden_sizes=(8,), latent=2).double()
    vae.load_state_dict(model.state_dict())
    x = images()
    assert torch.equal(model.elbo(x, generator=seeded()), vae.elbo(x, generator=seeded()))
    assert torch.equal(model.log_weights(x, 4, generator=seeded()), vae.log_weights(x, 4, generator=seeded()))
    assert torch.equal(model.encode(x), vae.encode(x))


def test_the_steps_keep_volumes_and_can_be_taken_back() -> None:
    model, x = make(), images(1)
    start = torch.randn(4, generator=seeded(), dtype=torch.float64)

    def carried(both: Tensor) -> Tensor:
        z, v = model._carried(x, both[:2].view(1, 1, 2), both[2:].view(1, 1, 2))
        return torch.cat([z.flatten(), v.flatten()])

    jacobian = torch.autograd.functional.jacobian(carried, start)
    assert jacobian.det().item() == pytest.approx(1, abs=1e-10)
    assert (jacobian - torch.eye(4)).abs().max() > 0.1
    with torch.no_grad():
        end = carried(start)
        back = carried(torch.cat([end[:2], -end[2:]]))
    torch.testing.assert_close(torch.cat([back[:2], -back[2:]]), start)


@torch.no_grad()
def test_weights_average_to_the_evidence_and_the_bound_lies_below_it() -> None:
    """A dropped q(v) or r(v) would move the mean of the weights."""
    model, evidence = linear()
    for x in evidence.sample((3,)).float():
        exact = evidence.log_prob(x.double()).item()
        log_w = model.log_weights(x[None], 40_000, generator=seeded())[:, 0]
        ratio = (log_w - exact).exp()
        assert ratio.std() / 200 < 0.03
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / 200
        elbo = model.elbo(x.expand(20_000, -1), generator=seeded(1))
        assert exact - elbo.mean() > 4 * elbo.std() / math.sqrt(20_000)
        assert abs(elbo.mean() - log_w.mean()) < 4 * (elbo.std() / math.sqrt(20_000) + log_w.std() / 200)


def test_learned_steps_tighten_the_bound_of_a_poor_encoder() -> None:
    model, evidence = linear()
    x = evidence.sample((200,)).float()
    own = [model.log_step, model.log_sigma_v, *model.reader.parameters(), *model.reverse.parameters()]
    with torch.no_grad():
        model.encoder[1].weight.zero_()  # the encoder says nothing
        model.encoder[1].bias.zero_()
        none = make(REAL, hidden_sizes=(), sigma=0.5, leapfrog=0)
        none.load_state_dict(model.state_dict(), strict=False)
        before = none.elbo(x.repeat(10, 1), generator=seeded()).mean().item()
    optimiser = torch.optim.Adam(own, 0.02)
    for step in range(150):
        loss, _ = model.loss("model", Batch(x), seeded(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        after = model.elbo(x.repeat(10, 1), generator=seeded()).mean().item()
        exact = evidence.log_prob(x.double()).mean().item()
    assert before < after < exact
    assert exact - after < 0.5 * (exact - before)


@torch.no_grad()
def test_the_gradient_is_that_of_the_bound() -> None:
    """By central differences in the step sizes, which the force's own gradient enters."""
    model, x = make(), images()
    with torch.enable_grad():
        loss, _ = model.loss("model", Batch(x), seeded())
        (found,) = torch.autograd.grad(loss, model.log_step)
    for i in range(2):
        ends = []
        for change in (1e-5, -2e-5):
            model.log_step[i] += change
            ends.append(model.loss("model", Batch(x), seeded())[0].item())
        model.log_step[i] += 1e-5
        assert found[i].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)
        assert abs(found[i]) > 1e-3


def test_bad_settings_end_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"leapfrog=-1"):
        make(leapfrog=-1)
    with pytest.raises(UserError, match=r"step_size=0\.0"):
        make(step_size=0.0)
