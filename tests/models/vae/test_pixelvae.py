"""PixelVAE: its masks by perturbation, both levels against quadrature, and what z adds to its PixelCNN on digits."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.config import compose, resolve
from dgmbench.data import load
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Model
from dgmbench.models.vae.pixel_decoder import PixelDecoder
from dgmbench.models.vae.pixelvae import PixelVae
from dgmbench.models.vae.vae import Vae

SPEC = DataSpec((1, 2, 2), "binary")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(spec: DataSpec = SPEC, **settings: object) -> PixelVae:
    torch.manual_seed(2)
    small = {"net": "mlp", "hidden_sizes": (8,), "latent": 1, "channels": 4, "condition": 3, "features": 12, "head": 6}
    model = PixelVae(spec, **{**small, "blocks": 1, "kernel": 3, **settings}).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    return model


def images(n: int = 4, spec: DataSpec = SPEC) -> Tensor:
    return torch.randint(spec.levels or 2, (n, *spec.shape), generator=seeded(3)).byte()


@pytest.mark.parametrize("maps", [0, 2])
@torch.no_grad()
def test_pixels_see_those_before_them_and_the_latents_reach_all(maps: int) -> None:
    spec = DataSpec((2, 3, 4), "discrete", levels=3)
    model, x = make(spec, maps=maps, features=32, channels=16, blocks=2, head=32), images(1, spec)
    size = (1, 2, 2, 2) if maps else (1, 1)
    z = torch.randn(8, *size[1:], generator=seeded(), dtype=torch.float64)
    given = model.between.grow(z) if model.between is not None else model.map_of(z)
    every = model.decoder.given(x.expand(8, -1, -1, -1), given)
    assert (every.std(0) > 1e-9).any(-1).all(), "z reaches every value"
    order = model.decoder.ordering()
    for dimension in range(spec.dim):
        other = x.clone().flatten()
        other[dimension] = (other[dimension] + 1) % 3
        moved = (model.decoder.given(other.view(x.shape), given[:1]) - every[:1]).abs().amax((0, 2)) > 1e-12
        assert (order[moved] > order[dimension]).all()
        assert moved.any() or order[dimension] >= spec.dim - 1


@torch.no_grad()
def test_a_place_of_the_level_between_sees_those_before_it_and_is_sampled_so() -> None:
    model = make(DataSpec((1, 4, 6), "binary"), maps=2)
    between = model.between
    assert between is not None
    above = torch.randn(1, 1, generator=seeded(), dtype=torch.float64)
    z = torch.randn(1, 2, 2, 3, generator=seeded(1), dtype=torch.float64)
    base = torch.cat([each.flatten(2) for each in between.prior(z, above)], 1)
    for place in range(6):
        other = z.clone().flatten(2)
        other[0, :, place] += 1.0
        moved = (
            (torch.cat([e.flatten(2) for e in between.prior(other.view(z.shape), above)], 1) - base).abs().amax((0, 1))
        )
        assert not (moved[: place + 1] > 1e-12).any()
        assert place == 5 or (moved[place + 1 :] > 1e-12).any()
    drawn = between.sample(above, seeded(7))
    noise = torch.randn(drawn.shape, generator=seeded(7), dtype=torch.float64)
    mean, log_sigma = between.prior(drawn, above)
    torch.testing.assert_close(drawn, mean + log_sigma.exp() * noise)


@pytest.mark.parametrize("maps", [0, 1])
@torch.no_grad()
def test_weights_average_to_the_evidence_and_the_elbo_is_their_mean_logarithm(maps: int) -> None:
    """By quadrature over z; with the level between, a map of one place, over both."""
    spec = DataSpec((1, 1, 2), "binary")
    model, x = make(spec, maps=maps), torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).byte().view(4, 1, 1, 2)
    side = torch.linspace(-8, 8, 101, dtype=torch.float64)
    cell = math.log(side[1] - side[0])
    prior = -0.5 * side.square() - 0.5 * math.log(2 * math.pi) + cell
    if model.between is None:
        joint = model._log_likelihood(x, side.view(-1, 1, 1).expand(-1, 4, 1)) + prior[:, None]
    else:
        z, z1 = torch.cartesian_prod(side, side).T[:, :, None]
        mean, log_sigma = model.between.prior(z1.view(-1, 1, 1, 1), z)
        log_p1 = -0.5 * ((z1 - mean[:, :, 0, 0]) / log_sigma.exp()[:, :, 0, 0]).square() - log_sigma[:, :, 0, 0]
        log_p = log_p1[:, 0] - 0.5 * math.log(2 * math.pi) + cell + prior.repeat_interleave(101)
        joint = (
            model._decoded(x, model.between.grow(z1.view(-1, 1, 1, 1)).repeat_interleave(4, 0), len(z1))
            + log_p[:, None]
        )
    exact = joint.logsumexp(0)
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-3)
    log_w = model.log_weights(x, 10_000, generator=seeded())
    ratio = (log_w - exact).exp()
    assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / 10_000**0.5 + 1e-3).all()
    elbo = model.elbo(x.repeat(4_000, 1, 1, 1), generator=seeded(1)).view(4_000, 4)
    error = (elbo.var(0) / 4_000 + log_w.var(0) / 10_000).sqrt()
    assert ((elbo.mean(0) - log_w.mean(0)).abs() < 4 * error).all()
    assert (elbo.mean(0) < exact).all()


def trained(model: Model, x: Tensor) -> Any:
    model.initialise(Batch(x), seeded())
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(130):
        batch = x[torch.randint(len(x), (50,), generator=seeded(step))]
        loss = model.loss("model", Batch(batch), seeded(step))[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


class Alone(PixelDecoder):
    """The same PixelCNN without z."""

    def given(self, x: Tensor, y: Tensor | None) -> Tensor:
        return super().given(x, torch.zeros(len(x), 8, *x.shape[2:]))


def test_on_digits_it_bounds_more_than_the_vae_and_than_its_pixelcnn_alone_and_z_is_used(tmp_path: Path) -> None:
    data = load(resolve(compose("train", ["model=pixelvae"]))["data"], tmp_path)
    train, test = (torch.as_tensor(data.splits[split].x) for split in ("train", "test"))
    torch.manual_seed(0)
    shared = {"hidden_sizes": (64,), "latent": 8, "net": "mlp"}
    decoder = {"condition": 8, "features": 12, "blocks": 1, "kernel": 3, "head": 12}
    both = trained(PixelVae(data.spec, **shared, **decoder), train)  # type: ignore[arg-type]
    vae = trained(Vae(data.spec, **shared), train)  # type: ignore[arg-type]
    alone = trained(Alone(data.spec, **decoder), train)  # type: ignore[arg-type]
    with torch.no_grad():
        reconstruction, kl = both._terms(test, 1, seeded())
        bound = reconstruction - kl.sum(1)
        for other in (vae.elbo(test, generator=seeded()), alone.log_prob(test)):
            more = bound - other
            assert more.mean() > 4 * more.std() / math.sqrt(len(test)), (bound.mean(), other.mean())
    assert kl.sum(1).mean() > 1


@torch.no_grad()
def test_codes_reconstructions_and_samples_lie_where_they_should() -> None:
    for maps in (0, 2):
        model, x = make(maps=maps), images()
        assert model.encode(x).shape == (4, 1)
        for drawn in (model.reconstruct(x, generator=seeded()), model.sample(3, generator=seeded())):
            assert drawn.shape[1:] == (1, 2, 2)
            assert ((drawn == 0) | (drawn == 1)).all()


def test_bad_settings_end_in_a_sentence() -> None:
    with pytest.raises(UserError, match="takes binary or discrete images"):
        make(DataSpec((1, 2, 2), "real"))
    with pytest.raises(UserError, match="maps=-1"):
        make(maps=-1)
