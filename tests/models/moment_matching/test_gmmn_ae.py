"""GMMN+AE: the autoencoder stands still while moments are matched, layer by layer before; codes beat pixels."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.moment_matching.gmmn import Gmmn
from dgmbench.models.moment_matching.gmmn_ae import GmmnAe
from dgmbench.nn.mmd import mmd_squared, rbf_mixture

DIGITS = DataSpec((1, 8, 8), "discrete", levels=17)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**settings) -> GmmnAe:
    torch.manual_seed(0)
    return GmmnAe(DIGITS, **{"encoder_sizes": (12, 5), "hidden_sizes": (8,), "latent": 3, **settings})


def images(n: int = 20) -> torch.Tensor:
    return torch.randint(17, (n, 1, 8, 8), generator=generator(1)).byte()


def train(model, x, stages=None, *, steps: int, lr: float = 1e-3) -> None:
    """The loop by hand: every stage with its players, its view and Adam."""
    noise = generator()
    model.initialise(Batch(x[:1000]), noise)
    for stage in model.stages():
        model.enter_stage(stage, noise)
        players = {player: torch.optim.Adam(model.players()[player], lr=lr) for player in stage.players}
        for _ in range(int(steps * stage.share)):
            batch = Batch(x[torch.randint(len(x), (300,), generator=noise)])
            batch = stage.view(batch, noise) if stage.view else batch
            for player, optimiser in players.items():
                optimiser.zero_grad()
                model.loss(player, batch, noise)[0].backward()
                optimiser.step()


def test_every_player_moves_its_own_part_and_matching_leaves_the_autoencoder_alone():
    model, x = small(), images()
    model.initialise(Batch(x), generator())
    own = {name: {id(p) for p in parameters} for name, parameters in model.players().items()}
    assert own["layer_1"] | own["layer_2"] == own["autoencoder"]
    assert not own["generator"] & own["autoencoder"]
    for stage in model.stages():
        model.enter_stage(stage, generator())
        batch = stage.view(Batch(x), generator()) if stage.view else Batch(x)
        for player in stage.players:
            model.zero_grad()
            model.loss(player, batch, generator())[0].backward()
            reached = {id(p) for p in model.parameters() if p.grad is not None and p.grad.any()}
            assert reached == own[player]
    assert [stage.name for stage in model.stages()] == ["layer_1", "layer_2", "fine_tune", "match"]


def test_the_losses_by_hand():
    model, x = small(dropout=0.0), images()
    flat = model.scaling(x).flatten(1)
    (e1, e2), (d1, d2) = model.encoder, model.decoder
    code1 = torch.sigmoid(e1(flat))
    code2 = torch.sigmoid(e2(code1))
    first = (torch.tanh(d1(code1)) - flat).square().sum(1).mean()
    second = (torch.sigmoid(d2(code2)) - code1).square().sum(1).mean()
    whole = (torch.tanh(d1(torch.sigmoid(d2(code2)))) - flat).square().sum(1).mean()
    batch = model.stages()[1].view(Batch(x), generator())
    assert torch.allclose(batch.x, code1)
    assert model.loss("layer_1", Batch(x), generator())[0].item() == pytest.approx(first.item(), rel=1e-5)
    assert model.loss("layer_2", batch, generator())[0].item() == pytest.approx(second.item(), rel=1e-5)
    assert model.loss("autoencoder", Batch(x), generator())[0].item() == pytest.approx(whole.item(), rel=1e-5)
    assert torch.equal(model.encode(x), code2)
    model.initialise(Batch(x), generator())
    model.enter_stage(model.stages()[-1], generator())
    kept = model.encode(model.examples)
    assert model.scale.item() == pytest.approx(torch.pdist(kept).median().item(), rel=1e-4)
    fake = model.generator(model.noise(20, generator(5)))
    expected = mmd_squared(code2, fake, rbf_mixture(model.scale * torch.tensor(model.bandwidths))).v_statistic.sqrt()
    assert model.loss("generator", Batch(x), generator(5))[0].item() == pytest.approx(expected.item(), rel=1e-4)


def test_dropout_keeps_the_mean_and_drops_its_share():
    model, h = small(dropout=0.25), torch.ones(200, 300)
    dropped = model.dropped(h, generator())
    share = (dropped == 0).double().mean().item()
    assert abs(share - 0.25) < 4.5 * (0.25 * 0.75 / h.numel()) ** 0.5
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Frechet distance of two sets of points, by its formula."""
    a, b = np.cov(x.T), np.cov(y.T)
    roots = np.sqrt(np.linalg.eigvals(a @ b).real.clip(0))  # of a product of covariances: real, at least 0
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b) - 2 * roots.sum())


def test_codes_give_a_smaller_frechet_distance_than_pixels():
    x = torch.from_numpy(load_digits().images.astype(np.uint8))[:, None]
    real = x.flatten(1).double().numpy()
    settings = {"hidden_sizes": (64, 128), "latent": 8}
    torch.manual_seed(0)
    plain = Gmmn(DIGITS, **settings)
    train(plain, x, steps=480, lr=5e-3)
    torch.manual_seed(0)
    coded = GmmnAe(DIGITS, encoder_sizes=(128, 16), dropout=0.0, **settings)
    train(coded, x, steps=120, lr=5e-3)  # the shares of its stages sum to 4
    before = [p.clone() for p in coded.players()["autoencoder"]]
    distances = {}
    for name, model in (("pixels", plain), ("codes", coded)):
        samples = model.sample(len(x), generator=generator(3)).flatten(1).double().numpy()
        distances[name] = frechet(real, samples)
    assert distances["codes"] < distances["pixels"], distances
    assert all(torch.equal(p, q) for p, q in zip(before, coded.players()["autoencoder"], strict=True))


def test_shapes_and_ranges():
    for spec in (DIGITS, DataSpec((5,), "real"), DataSpec((1, 4, 4), "binary")):
        model = GmmnAe(spec, encoder_sizes=(6, 3), hidden_sizes=(8,), latent=2)
        x = torch.randint(spec.levels, (6, *spec.shape)).byte() if spec.levels else torch.randn(6, *spec.shape)
        assert model.sample(4).shape == (4, *spec.shape)
        assert model.sample(4).dtype == spec.dtype
        assert model.reconstruct(x).shape == x.shape
        assert model.generate(torch.randn(3, 2)).shape == (3, *spec.shape)
        assert model.encode(x).shape == (6, 3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"encoder_sizes": (0,)}, "encoder_sizes"), ({"dropout": 1.0}, "dropout=1.0"), ({"bandwidths": ()}, "bandwidths")],
)
def test_wrong_arguments_are_explained(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        small(**settings)
