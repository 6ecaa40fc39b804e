"""DC-IGN: its gradients against the VAE's and the rule of the paper, and codes that change their own factor."""

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data.lines import Lines
from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.dc_ign import DcIgn
from dgmbench.models.vae.vae import Vae

SPEC = DataSpec((1, 4, 4), "binary", factors=(("row", 4), ("column", 4)))
Y = torch.arange(16)


def crosses() -> Tensor:
    """A lit row and a lit column of 4 x 4 pixels, in all combinations."""
    x = torch.zeros(16, 1, 4, 4)
    x[Y, 0, Y // 4, :] = 1
    x[Y, 0, :, Y % 4] = 1
    return x.byte()


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(**settings: object) -> DcIgn:
    torch.manual_seed(0)
    return DcIgn(SPEC, **{"net": "mlp", "hidden_sizes": (64,), "block": 4, **settings})  # type: ignore[arg-type]


def test_the_codes_of_the_factors_that_differ_within_a_block_are_free() -> None:
    model = make()
    y = torch.tensor([0, 4, 8, 0, 5, 6, 6, 7, 3, 3, 3, 3, 1, 4, 9])
    free = model.varied(y)
    assert free[:4].tolist() == [[True, True, False, False]] * 4
    assert free[4:8].tolist() == [[False, False, True, True]] * 4
    assert not free[8:12].any()
    assert free[12:].all()
    values = torch.randn(15, 4, generator=seeded())
    means = model.block_means(values)
    assert torch.allclose(means[5], values[4:8].mean(0))
    assert torch.allclose(means[14], values[12:].mean(0))
    assert model.batch_policy() == BatchPolicy(varied=4)


def gradients(model: Vae, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Those of a loss in the encoder's means and log sigmas."""
    q = [each.detach().requires_grad_() for each in model.posterior(x)]
    return torch.autograd.grad(loss(*q), q)  # type: ignore[return-value]


def test_gradients_are_the_vaes_where_free_and_the_pull_to_the_mean_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(invariance=0.3).double()
    index = torch.tensor([0, 4, 8, 12, 5, 6, 7, 4])
    batch = Batch(crosses()[index], y=Y[index])
    free, noise = model.varied(batch.y), torch.randn(1, 8, 4, generator=seeded(3), dtype=torch.float64)  # type: ignore[arg-type]

    def own(mean: Tensor, log_sigma: Tensor) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(model, "posterior", lambda x: (mean, log_sigma))
            return model.loss("model", batch, seeded(3))[0]

    def by_hand(mean: Tensor, log_sigma: Tensor) -> Tensor:
        """The bound of a VAE whose draws begin at the clamped means, as a function of these."""
        kl = 0.5 * (mean.square() + torch.exp(2 * log_sigma) - 1) - log_sigma
        z = torch.where(free, mean, clamp + 0 * mean) + log_sigma.exp() * noise
        return (kl.sum(1) - model._log_likelihood(batch.x, z)[0]).mean()

    mean = model.posterior(batch.x)[0].detach()
    clamp = torch.cat([part.mean(0, keepdim=True).expand(4, 4) for part in mean.split(4)])
    found, wanted = gradients(model, own, batch.x), gradients(model, by_hand, batch.x)
    pull = 0.3 * (mean - clamp) / 8
    assert torch.allclose(found[0][free], wanted[0][free])
    assert torch.allclose(found[0][~free], (mean / 8 + pull)[~free])
    assert torch.allclose(found[1], wanted[1])
    assert pull[~free].abs().min() > 1e-6


def test_where_everything_varies_it_is_the_vae() -> None:
    model = make().double()
    torch.manual_seed(0)
    vae = Vae(SPEC, hidden_sizes=(64,), latent=4).double()
    vae.load_state_dict(model.state_dict())
    batch = Batch(crosses()[torch.tensor([0, 5, 10, 15])], y=torch.tensor([0, 5, 10, 15]))
    found, wanted = (each.loss("model", batch, seeded())[0].item() for each in (model, vae))
    assert found == pytest.approx(wanted)


def test_changing_the_codes_of_a_factor_changes_this_factor() -> None:
    """Codes of every example, those of one factor taken from another; decoded, the nearest cross says both factors."""
    x, model = crosses(), make(invariance=0.1)
    lines = Lines(4, Y.numpy(), SPEC, batch_size=32, world_size=1, seed=0)
    optimiser, g = torch.optim.Adam(model.parameters(), lr=5e-3), seeded()
    for b in range(450):
        rows = lines.index(32 * b, 32 * b + 32)
        optimiser.zero_grad()
        model.loss("model", Batch(x[rows], y=Y[rows]), g)[0].backward()
        optimiser.step()
    with torch.no_grad():
        codes = model.encode(x)
        for factor in range(2):
            own = slice(2 * factor, 2 * factor + 2)
            mixed = codes[:, None].repeat(1, 16, 1)
            mixed[:, :, own] = codes[None, :, own]
            nearest = torch.cdist(model.decode(mixed.flatten(0, 1)).flatten(1), x.flatten(1).float()).argmin(1)
            values = torch.stack([nearest // 4, nearest % 4]).view(2, 16, 16)
            at = torch.stack([Y // 4, Y % 4])
            followed = (values[factor] == at[factor][None, :]).double().mean()
            kept = (values[1 - factor] == at[1 - factor][:, None]).double().mean()
            assert followed > 0.8
            assert kept > 0.8


@pytest.mark.parametrize(
    ("spec", "settings", "sentence"),
    [
        (DataSpec((1, 4, 4), "binary"), {}, "factors of variation are known"),
        (SPEC, {"block": 1}, "block=1"),
        (SPEC, {"per_factor": 0}, "per_factor=0"),
        (SPEC, {"invariance": -1.0}, "invariance=-1.0"),
    ],
)
def test_what_does_not_fit_is_refused(spec: DataSpec, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        DcIgn(spec, **settings)  # type: ignore[arg-type]
    model = make()
    with pytest.raises(UserError, match="labels"):
        model.loss("model", Batch(crosses()), seeded())
