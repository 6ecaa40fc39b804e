"""GMMN: its loss is the V-statistic of batch and samples, finite at zero, and it learns a distribution."""

import pytest
import torch

from dgmbench.config import compose
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.moment_matching.gmmn import Gmmn
from dgmbench.nn.mmd import mmd_squared, rbf_mixture

DIGITS, PLANE = DataSpec((1, 8, 8), "discrete", levels=17), DataSpec((2,), "real")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("root", [True, False])
def test_loss_is_the_v_statistic_of_the_batch_and_as_many_samples(root):
    torch.manual_seed(0)
    model = Gmmn(DIGITS, hidden_sizes=(8,), square_root=root, bandwidths=(0.5, 2.0)).double()
    x = torch.randint(17, (12, 1, 8, 8), generator=generator()).byte()
    model.initialise(Batch(x), generator())
    loss, logs = model.loss("model", Batch(x), generator(1))
    scaled = model.scaling(x).flatten(1).double()
    samples = model.generator(model.noise(12, generator(1))).flatten(1)
    distances = torch.pdist(scaled)
    assert model.scale.item() == pytest.approx(distances.median().item(), rel=1e-5)
    found = mmd_squared(scaled, samples, rbf_mixture(model.scale * torch.tensor([0.5, 2.0], dtype=torch.float64)))
    assert logs["mmd2"].item() == pytest.approx(found.v_statistic.item(), abs=1e-9)
    assert logs["mmd2_unbiased"].item() == pytest.approx(found.u_statistic.item(), abs=1e-9)
    assert loss.item() == pytest.approx(found.v_statistic.item() ** (0.5 if root else 1.0), abs=1e-9)


def test_loss_and_gradient_are_finite_at_mmd_0_with_the_square_root_on():
    """A generator that returns the batch itself: MMD is 0, where the root's own gradient is infinite."""
    torch.manual_seed(0)
    model = Gmmn(PLANE, latent=2, hidden_sizes=(), block=4)
    with torch.no_grad():
        model.generator.net[0].weight.copy_(torch.eye(2))
        model.generator.net[0].bias.zero_()
    x = model.noise(10, generator(3))
    loss, logs = model.loss("model", Batch(x), generator(3))
    loss.backward()
    assert loss.item() == 0.0
    assert logs["mmd2"].item() == 0.0
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_noise_is_uniform_on_minus_one_to_one():
    z = Gmmn(PLANE, latent=3).noise(50_000, generator())
    assert z.shape == (50_000, 3)
    assert -1 <= z.min() < -0.999
    assert 0.999 < z.max() <= 1
    assert abs(z.mean().item()) < 4 * (1 / 3 / 150_000) ** 0.5
    assert z.var().item() == pytest.approx(1 / 3, rel=0.01)


def test_normal_noise_becomes_uniform_by_its_distribution_function():
    torch.manual_seed(0)
    model = Gmmn(DIGITS, latent=3, hidden_sizes=(8,)).double()
    noise = torch.randn(5, 3, dtype=torch.float64)
    z = 2 * torch.distributions.Normal(0.0, 1.0).cdf(noise) - 1
    assert torch.allclose(model.generate(noise), model.scaling.unrounded(model.generator(z)))


def test_batches_are_small_by_default_and_as_large_as_one_asks():
    assert compose("train", ["model=gmmn"]).trainer.batch_size == 50
    assert compose("train", ["model=gmmn", "trainer.batch_size=1000"]).trainer.batch_size == 1000
    assert compose("train", ["model=gmmn", "trainer=quick"]).trainer.batch_size == 100


def test_learns_two_clusters():
    torch.manual_seed(0)
    noise = generator()
    centres = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])
    x = centres[torch.randint(2, (1000,), generator=noise)] + 0.3 * torch.randn(1000, 2, generator=noise)
    model = Gmmn(PLANE, latent=2, hidden_sizes=(32, 32))
    model.initialise(Batch(x), noise)
    before = model.discrepancy(x, model.sample(1000, generator=noise)).u_statistic.item()
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(300):
        optimiser.zero_grad()
        model.loss("model", Batch(x[torch.randint(1000, (200,), generator=noise)]), noise)[0].backward()
        optimiser.step()
    samples = model.sample(1000, generator=noise)
    after = model.discrepancy(x, samples).u_statistic.item()
    assert after < 0.03 * before
    right = (samples[:, 0] > 0).double().mean().item()
    assert 0.4 < right < 0.6


@pytest.mark.parametrize(
    ("spec", "net"), [(DIGITS, "mlp"), (DataSpec((3, 16, 16), "discrete", levels=256), "dcgan"), (PLANE, "mlp")]
)
def test_samples_lie_in_the_data_space(spec, net):
    model = Gmmn(spec, net=net, channels=4)
    x = torch.randint(spec.levels, (6, *spec.shape)).byte() if spec.levels else torch.randn(6, *spec.shape)
    model.loss("model", Batch(x), generator())[0].backward()
    model.after_step("model", Batch(x), generator())
    s = model.eval().sample(5, generator=generator())
    assert s.shape == (5, *spec.shape)
    assert s.dtype == spec.dtype
    assert torch.equal(s, model.sample(5, generator=generator()))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"bandwidths": ()}, "bandwidths"), ({"bandwidths": (0.0,)}, "above 0"), ({"latent": 0}, "latent=0")],
)
def test_wrong_arguments_are_explained(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Gmmn(PLANE, **settings)


def test_the_kernel_sums_keep_full_precision_under_autocast():
    torch.manual_seed(0)
    model = Gmmn(PLANE, hidden_sizes=(8,))
    x, y = torch.randn(300, 2, generator=generator(0)), torch.randn(300, 2, generator=generator(1))
    exact = model.discrepancy(x, y).v_statistic
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.discrepancy(x, y.bfloat16()).v_statistic
    assert exact > 0
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=0.2)  # the samples themselves have 8 bits
