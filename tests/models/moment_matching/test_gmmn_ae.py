"""GMMN+AE: every stage minimises what its formula says, the autoencoder stays put while its codes are matched."""

import pytest
import torch
import torch.nn.functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.moment_matching.gmmn_ae import EXAMPLES, GmmnAe
from dgmbench.nn.mmd import mmd_squared, rbf_mixture

DIGITS = DataSpec((1, 8, 8), "discrete", levels=17)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**settings) -> GmmnAe:
    torch.manual_seed(0)
    return GmmnAe(DIGITS, **{"encoder_sizes": (12, 9), "code": 3, "hidden_sizes": (8,), "dropout": 0.0, **settings})


def digits(n: int = 20, seed: int = 1) -> Batch:
    return Batch(torch.randint(17, (n, 1, 8, 8), generator=generator(seed)).byte())


def entropy(p, a):
    return -(a * p.log() + (1 - a) * (1 - p).log()).sum(1).mean()


def fit(model, stage, batch, steps, g):
    model.enter_stage(stage, g)
    (player,) = stage.players
    optimiser = torch.optim.Adam(model.players()[player], 1e-2)
    first = None
    for _ in range(steps):
        loss, _ = model.loss(player, batch, g)
        first = loss.item() if first is None else first
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.after_step(player, batch, g)
    return first, loss.item()


def test_each_layer_and_the_whole_minimise_their_cross_entropy_by_hand():
    model, batch = small().double(), digits()
    v = batch.x.flatten(1).double() / 16
    up, down = model.encoder, list(model.decoder)
    h1 = torch.sigmoid(v @ up[0].weight.T + up[0].bias)
    h2 = torch.sigmoid(h1 @ up[1].weight.T + up[1].bias)
    code = torch.sigmoid(h2 @ up[2].weight.T + up[2].bias)

    def decoded(n, h):
        return torch.sigmoid(h @ down[n].weight.T + down[n].bias)

    expected = {
        "layer_1": entropy(decoded(2, h1), v),
        "layer_2": entropy(decoded(1, h2), h1),
        "layer_3": entropy(decoded(0, code), h2),
        "autoencoder": entropy(decoded(2, decoded(1, decoded(0, code))), v),
    }
    for player, value in expected.items():
        assert model.loss(player, batch, generator())[0].item() == pytest.approx(value.item(), rel=1e-9)
    assert torch.allclose(model.encode(batch.x), code)
    assert torch.allclose(model.reconstruct(batch.x).flatten(1), 16 * decoded(2, decoded(1, decoded(0, code))))


def test_a_layer_learns_from_the_one_below_and_moves_its_mirror_alone():
    model, batch = small(), digits()
    loss, _ = model.loss("layer_2", batch, generator())
    loss.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {f"{net}.1.{kind}" for net in ("encoder", "decoder") for kind in ("weight", "bias")}


def test_stages_use_the_budget_up_and_the_last_leaves_the_autoencoder_as_it_is():
    model, batch, g = small(pretraining=0.4), digits(), generator()
    stages = model.stages()
    assert [stage.name for stage in stages] == ["layer_1", "layer_2", "layer_3", "fine_tuning", "matching"]
    assert [stage.share for stage in stages] == pytest.approx([0.2 / 3] * 3 + [0.2, 0.6])
    model.initialise(batch, g)
    for stage in stages[:-1]:
        first, last = fit(model, stage, batch, 100, g)
        assert last < 0.98 * first
    frozen = {name: value.clone() for name, value in model.state_dict().items() if name[:7] in ("encoder", "decoder")}
    first, last = fit(model, stages[-1], batch, 100, g)
    assert last < 0.9 * first
    assert len(frozen) == 12
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in frozen.items())


@pytest.mark.parametrize("root", [True, False])
def test_matching_minimises_the_v_statistic_of_codes(root):
    model, batch = small(square_root=root, bandwidths=(0.5, 2.0)).double(), digits(12)
    model.initialise(batch, generator())
    model.enter_stage(model.stages()[-1], generator())
    codes = model.encode(batch.x)
    kept = model.code_of(model.examples)
    assert len(kept) == EXAMPLES
    assert model.scale.item() == pytest.approx(torch.pdist(kept).median().item(), rel=1e-2)
    samples = torch.sigmoid(model.generator(model.noise(12, generator(1))))
    found = mmd_squared(codes, samples, rbf_mixture(model.scale * torch.tensor([0.5, 2.0]).double()))
    loss, logs = model.loss("generator", batch, generator(1))
    assert logs["mmd2_unbiased"].item() == pytest.approx(found.u_statistic.item(), abs=1e-9)
    assert loss.item() == pytest.approx(found.v_statistic.item() ** (0.5 if root else 1.0), abs=1e-9)
    loss.backward()
    assert all(p.grad is None for net in (model.encoder, model.decoder) for p in net.parameters())


def test_dropout_keeps_the_mean_of_every_layer_but_the_code_s_own():
    """One encoder layer below the code: the code's input is linear in what is kept, so its mean is that without."""
    model = small(encoder_sizes=(6,), dropout=0.3).double()
    v = torch.rand(1, 64, generator=generator(), dtype=torch.float64)
    last = model.encoder[-1]
    h = model.encoder[0](v).sigmoid()
    draws = torch.special.logit(model.code_of(v.expand(20_000, -1), generator=generator(1)))
    parts = h * last.weight  # what each unit adds to each code's input
    exact, se = last(h), (parts.square().sum(1) * 0.3 / 0.7 / 20_000).sqrt()
    assert ((draws.mean(0) - exact).abs() < 4 * se).all()
    assert torch.allclose(draws.var(0), 20_000 * se**2, rtol=0.06)
    assert torch.equal(model.code_of(v), model.code_of(v))


def test_samples_are_decoded_codes_and_generate_is_sample_at_normal_noise():
    model = small().double()
    z = model.noise(7, generator(2))
    code = torch.sigmoid(model.generator(z))
    assert torch.equal(model.sample(7, generator=generator(2)), model.decode(code).round().byte())
    normal = torch.special.ndtri((z + 1) / 2)
    assert torch.allclose(model.generate(normal), model.decode(code), atol=1e-8)
    assert model.sample(7).shape == (7, 1, 8, 8)
    assert F.relu(code - 1).sum() == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"pretraining": 0.0}, r"pretraining=0\.0 must be a share"),
        ({"pretraining": 1.0}, r"pretraining=1\.0 must be a share"),
        ({"dropout": 1.0}, r"dropout=1\.0 must be"),
        ({"code": 0}, "code=0"),
        ({"spec": DataSpec((3,), "real")}, r"takes bits or grey levels, but these are .*; choose a data set such as"),
    ],
)
def test_wrong_arguments_are_explained(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        GmmnAe(settings.pop("spec", DIGITS), **settings)
