"""IAF: MAF's map turned round, one pass a sample, D steps a density, and the gradient of the D steps."""

import pytest
import torch
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.models.contract import HasElbo
from dgmbench.models.flow.iaf import DequantisedIaf, Iaf
from dgmbench.nn.bijections import standard_normal_log_density
from dgmbench.nn.masked import MaskedMlp, Sorted
from dgmbench.nn.masked_flows import InverseMaskedAffine, MaskedAffine, bounded


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken_net(
    dim: int, hidden_sizes: tuple[int, ...], order: str = "reversed", nonlinearity: str = "relu"
) -> MaskedMlp:
    torch.manual_seed(0)
    net = MaskedMlp(dim, hidden_sizes, 2, order=order, nonlinearity=nonlinearity).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net


def test_sampling_is_mafs_density_pass_with_mu_and_sigma_turned_round(monkeypatch):
    net = shaken_net(6, (16, 16))
    v = torch.randn(5, 6, dtype=torch.float64, generator=generator())
    x, log_det = InverseMaskedAffine(net).inverse(v)
    assert not torch.allclose(MaskedAffine(net)(v)[0], x, atol=1e-2), "the turning matters"

    shift, a = net(v).unbind(-1)
    turned = torch.stack([-shift / bounded(a).exp(), -a], -1)  # log(1 / sigma) = -a
    monkeypatch.setattr(net, "forward", lambda x, mask=0, context=None: turned)
    u, other = MaskedAffine(net)(v)
    assert torch.allclose(x, u, atol=1e-12)
    assert torch.allclose(log_det, other, atol=1e-12)


def naive_forward(net: MaskedMlp, x: Tensor) -> tuple[Tensor, Tensor]:
    """Data to noise by D differentiable passes."""
    z = torch.zeros_like(x)
    for i in net.positions[0].argsort().tolist():
        shift, a = net(z)[:, i].unbind(-1)
        z = torch.cat([z[:, :i], ((x[:, i] - shift) * torch.exp(-bounded(a)))[:, None], z[:, i + 1 :]], 1)
    return z, -bounded(net(z)[..., 1]).sum(1)


@pytest.mark.parametrize("hidden_sizes", [(), (16,), (12, 15), (9, 8, 11)], ids=str)
@pytest.mark.parametrize(("order", "nonlinearity"), [("reversed", "relu"), ("random", "tanh")])
def test_the_sweeps_equal_d_passes_with_their_gradients(hidden_sizes, order, nonlinearity):
    net = shaken_net(5, hidden_sizes, order, nonlinearity)
    x = torch.randn(7, 5, dtype=torch.float64, generator=generator(), requires_grad=True)
    mix_z, mix_log_det = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    found = []
    for function in (InverseMaskedAffine(net).forward, lambda v: naive_forward(net, v)):
        z, log_det = function(x)
        loss = (mix_z * z.square()).sum() + (mix_log_det * log_det).sum()
        found.append((z, log_det, torch.autograd.grad(loss, [x, *net.parameters()])))
    (z, log_det, ours), (z_naive, log_det_naive, theirs) = found
    assert torch.allclose(z, z_naive, atol=1e-10)
    assert torch.allclose(log_det, log_det_naive, atol=1e-10)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-9)
        assert b.any()


def test_each_layers_jacobian_is_triangular_and_its_log_det_exact():
    net = shaken_net(5, (16, 16))
    layer, sequence = InverseMaskedAffine(net), net.positions[0].argsort()
    z = torch.randn(3, 5, dtype=torch.float64, generator=generator())
    for i in range(3):
        each = torch.autograd.functional.jacobian(lambda v: layer.inverse(v[None])[0][0], z[i])[sequence][:, sequence]
        assert torch.equal(each, each.tril())
        x, log_det = layer.inverse(z[i : i + 1])
        assert torch.linalg.slogdet(each).logabsdet.item() == pytest.approx(log_det.item(), abs=1e-9)
        assert layer(x)[1].item() == pytest.approx(-log_det.item(), abs=1e-9)


def test_the_order_of_the_layers_is_the_chosen_one():
    torch.manual_seed(0)
    orders = {}
    for order in ("alternating", "random"):
        flow = Iaf(DataSpec((9,), "real"), layers=4, hidden_sizes=(4,), order=order)
        layers = [step for step in flow.bijection.parts() if isinstance(step, InverseMaskedAffine)]
        orders[order] = [layer.net.positions[0].tolist() for layer in layers]
    ahead = list(range(9))
    assert orders["alternating"] == [ahead, ahead[::-1], ahead, ahead[::-1]]
    assert len({tuple(each) for each in [*orders["random"], ahead, ahead[::-1]]}) == 6


def test_a_sample_calls_each_network_once_and_a_density_takes_d_steps(monkeypatch):
    torch.manual_seed(0)
    model = Iaf(DataSpec((6,), "real"), layers=3, hidden_sizes=(16,)).eval()
    calls, steps = [], []
    for net in (m for m in model.modules() if isinstance(m, MaskedMlp)):
        net.register_forward_hook(lambda net, *_: calls.append(net))
    sweep = Sorted.sweep

    def counted(table, n, draw):
        return sweep(table, n, lambda t, parameters: steps.append(t) or draw(t, parameters))

    monkeypatch.setattr(Sorted, "sweep", counted)
    x = model.sample(4, generator=generator())
    assert len(calls) == len(set(map(id, calls))) == 3
    assert not steps
    calls.clear()
    model.log_prob(x)
    assert steps == 3 * list(range(6))
    assert not calls


@torch.no_grad()
def test_the_density_of_a_sample_is_that_of_its_noise_and_integrates_to_one():
    torch.manual_seed(0)
    model = Iaf(DataSpec((2,), "real"), layers=2, hidden_sizes=(16,)).double().eval()
    for p in model.parameters():
        p.add_(0.2 * torch.randn_like(p))
    z = torch.randn(50, 2, dtype=torch.float64, generator=generator())
    x, log_det = model.bijection.inverse(z)
    assert torch.allclose(model.log_prob(x), standard_normal_log_density(z) - log_det, atol=1e-9)
    assert torch.allclose(model.sample(50, generator=generator()).double(), x, atol=1e-5)
    u = torch.linspace(-6, 6, 481, dtype=torch.float64)
    grid, area = torch.cartesian_prod(u.sinh(), u.sinh()), torch.cartesian_prod(u.cosh(), u.cosh()).prod(1)
    assert (model.log_prob(grid).exp() * area * (12 / 480) ** 2).sum().item() == pytest.approx(1.0, abs=1e-4)


def test_levels_have_a_bound():
    model = Iaf(DataSpec((1, 2, 2), "discrete", levels=3), layers=1, hidden_sizes=(8,))
    assert type(model) is DequantisedIaf
    assert isinstance(model, HasElbo)
    assert model.elbo(torch.randint(3, (5, 1, 2, 2)).byte()).isfinite().all()
