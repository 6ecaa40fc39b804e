"""The multi-stage VAE: a VAE at its start, its loss in parts, and a second stage that lowers the first one's error."""

import math
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.config import compose, resolve
from dgmbench.data import load
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.msvae import MsVae
from dgmbench.models.vae.vae import Vae

SPEC = DataSpec((2, 3, 4), "discrete", levels=4)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(spec: DataSpec = SPEC, **settings: object) -> MsVae:
    torch.manual_seed(1)
    small = {"channels": 4, "latent": 2, "refining_channels": 4, "refining_blocks": 1, "components": 2}
    return MsVae(spec, **{**small, **settings}).double()  # type: ignore[arg-type]


def images(n: int = 6) -> Tensor:
    return torch.randint(4, (n, *SPEC.shape), generator=seeded(3)).byte()


@torch.no_grad()
def test_it_starts_as_the_vae_of_its_first_stage() -> None:
    model, x = make(), images()
    vae = Vae(SPEC, net="conv", channels=4, latent=2, components=2).double()
    vae.encoder.load_state_dict(model.encoder.state_dict())
    vae.decoder.load_state_dict(model.decoder.coarse.state_dict())
    torch.testing.assert_close(model.elbo(x, generator=seeded()), vae.elbo(x, generator=seeded()))
    for p in model.decoder.residual.parameters():
        p.add_(0.3)
    assert (model.elbo(x, generator=seeded()) - vae.elbo(x, generator=seeded())).abs().min() > 1e-3


@torch.no_grad()
def test_both_stages_are_in_the_loss_and_the_refined_one_in_the_bound() -> None:
    model, x = make(coarse=0.5), images()
    for p in model.decoder.residual.parameters():
        p.add_(0.1)
    q = model._draw(x, 1, seeded(4))
    coarse = model.decoder.coarse(q.z[0])
    refined = coarse + model.decoder.residual(coarse.flatten(1, 2)).view(coarse.shape)
    of_coarse, of_refined = (model.observation.log_prob(each, x) for each in (coarse, refined))
    kl = 0.5 * (q.mean.square() + (2 * q.log_sigma).exp() - 1 - 2 * q.log_sigma).sum(1)
    loss, logs = model.loss("model", Batch(x), seeded(4))
    assert loss.item() == pytest.approx((kl - of_refined - 0.5 * of_coarse).mean().item())
    assert logs["elbo"].item() == pytest.approx((of_refined - kl).mean().item())
    assert logs["coarse"].item() == pytest.approx(of_coarse.mean().item())
    torch.testing.assert_close(model.elbo(x, generator=seeded(4)), of_refined - kl)
    first, second = model.both_stages(x, generator=seeded(4))
    torch.testing.assert_close(first, model.observation.mean(coarse))
    torch.testing.assert_close(second, model.reconstruct(x, generator=seeded(4)))


def test_the_second_stage_lowers_the_error_of_the_first_on_held_out_digits(tmp_path: Path) -> None:
    data = load(resolve(compose("train", ["model=msvae", "data=digits"]))["data"], tmp_path)
    train, test = (torch.as_tensor(data.splits[split].x) for split in ("train", "test"))
    model = make(
        data.spec, net="mlp", hidden_sizes=(64,), latent=8, refining_channels=16, observation="gaussian", sigma=0.25
    ).float()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(150):
        batch = Batch(train[torch.randint(len(train), (50,), generator=seeded(step))])
        loss, _ = model.loss("model", batch, seeded(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    coarse, refined = model.both_stages(test, generator=seeded())
    lower = ((coarse - test.float()).square() - (refined - test.float()).square()).mean((1, 2, 3))
    assert lower.mean() > 4 * lower.std() / math.sqrt(len(test))


def test_bad_settings_end_in_a_sentence() -> None:
    with pytest.raises(UserError, match="msvae takes images"):
        MsVae(DataSpec((4,), "real"))
    with pytest.raises(UserError, match=r"coarse=-1\.0"):
        make(coarse=-1.0)
