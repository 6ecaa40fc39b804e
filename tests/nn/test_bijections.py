"""Every bijection: log-determinants against autograd in both directions, round trips, and what each one is."""

import math

import pytest
import torch
from torch import Tensor, nn

from dgmbench.nn.batchnorm import absorb_statistics
from dgmbench.nn.bijections import (
    ActNorm,
    Bijection,
    Chain,
    Flatten,
    Logit,
    MultiScale,
    Normalisation,
    Recomputed,
    Squeeze,
    dequantise,
    standard_normal_log_density,
    start_activations,
)
from dgmbench.nn.couplings import (
    ActNormConv,
    AffineCoupling,
    CouplingResnet,
    SplitCoupling,
    WeightNormConv,
    alternating,
    bounded,
    channel_halves,
    checkerboard,
    coupling_mlp,
    glow_net,
)
from dgmbench.nn.invertible_conv import InvertibleConv


def shaken(bijection: nn.Module) -> nn.Module:
    """The bijection in double precision with parameters and running moments away from where they start."""
    torch.manual_seed(0)
    bijection.double().eval()
    with torch.no_grad():
        for p in bijection.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for name, buffer in bijection.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return bijection


def image_coupling(parity: int) -> AffineCoupling:
    return AffineCoupling(checkerboard(4, 4, parity), CouplingResnet(2, 4, 1), 2)


def split(log_scale, outputs: int) -> SplitCoupling:
    return SplitCoupling(glow_net(1, 4, outputs), slice(0, 1), slice(1, None), log_scale=log_scale)


BIJECTIONS = {
    "flatten": (lambda: Flatten((2, 3, 1)), (2, 3, 1)),
    "actnorm of vectors": (lambda: ActNorm(3), (3,)),
    "actnorm of images": (lambda: ActNorm(2), (2, 2, 3)),
    "plain mixing": (lambda: InvertibleConv(3, lu=False), (3, 2, 2)),
    "lu mixing": (lambda: InvertibleConv(3, lu=True), (3, 2, 2)),
    "affine split coupling": (lambda: split(bounded, 4), (3, 2, 2)),
    "split prior": (lambda: split(torch.Tensor.clone, 4), (3, 2, 2)),
    "additive split coupling": (lambda: split(None, 2), (3, 2, 2)),
    "additive coupling of odd and even": (
        lambda: SplitCoupling(coupling_mlp(3, (4,), 2), slice(0, None, 2), slice(1, None, 2), log_scale=None),
        (5,),
    ),
    "recomputed": (lambda: Recomputed(Chain([ActNorm(3), split(bounded, 4)])), (3, 2, 2)),
    "logit": (lambda: Logit(17.0), (5,)),
    "squeeze": (Squeeze, (2, 4, 4)),
    "normalisation of vectors": (lambda: Normalisation(3), (3,)),
    "normalisation of images": (lambda: Normalisation(2), (2, 2, 3)),
    "vector coupling": (lambda: AffineCoupling(alternating(5, 0), coupling_mlp(5, (8,)), 5), (5,)),
    "checkerboard coupling": (lambda: image_coupling(1), (2, 4, 4)),
    "channel coupling": (lambda: AffineCoupling(channel_halves(3, 1), CouplingResnet(3, 4, 1), 3), (3, 2, 2)),
    "chain": (lambda: Chain([image_coupling(0), Normalisation(2), Squeeze()]), (2, 4, 4)),
    "multi-scale": (
        lambda: MultiScale([Chain([image_coupling(0), Squeeze()]), Normalisation(4)], [(4, 2, 2), (4, 2, 2)]),
        (2, 4, 4),
    ),
}


def values(shape: tuple[int, ...], n: int = 3) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 + 0.1


@pytest.mark.parametrize("name", BIJECTIONS)
def test_log_determinants_against_autograd_and_round_trip(name: str) -> None:
    make, shape = BIJECTIONS[name]
    bijection = shaken(make())
    assert isinstance(bijection, Bijection)
    x = values(shape)
    z, log_det = bijection(x)
    back, inverse_log_det = bijection.inverse(z)
    assert torch.allclose(back, x, atol=1e-9)
    assert torch.allclose(inverse_log_det, -log_det, atol=1e-9), "both directions, one example at a time"
    size = x[0].numel()
    for i in range(len(x)):
        forward = torch.autograd.functional.jacobian(lambda v: bijection(v[None])[0].flatten(), x[i]).view(size, size)
        inverse = torch.autograd.functional.jacobian(lambda v: bijection.inverse(v[None])[0].flatten(), z[i])
        assert torch.linalg.slogdet(forward).logabsdet.item() == pytest.approx(log_det[i].item(), abs=1e-8)
        assert torch.linalg.slogdet(inverse.view(size, size)).logabsdet.item() == pytest.approx(
            inverse_log_det[i].item(), abs=1e-8
        )
    if name.startswith("additive"):
        assert torch.equal(log_det, torch.zeros(3, dtype=torch.float64)), "shifts keep the volume"
    elif "coupling" in name or name in ("logit", "chain", "multi-scale", "split prior", "recomputed"):
        assert log_det.std() > 1e-6, "the log-determinant is each example's own"


def test_a_coupling_starts_as_the_identity_and_keeps_the_masked_part() -> None:
    for net in (CouplingResnet(2, 4, 1), nn.Sequential(coupling_mlp(2, (4,)))):
        image = isinstance(net, CouplingResnet)
        mask = checkerboard(3, 3, 0) if image else alternating(2, 0)
        x = torch.randn(4, 2, 3, 3) if image else torch.randn(4, 2)
        coupling = AffineCoupling(mask, net, 2)
        z, log_det = coupling(x)
        assert torch.equal(z, x)
        assert not log_det.any()
        moved = shaken(coupling)(x.double())[0]
        assert torch.equal(moved * mask, x * mask)
        assert ((moved != x) == (mask == 0).expand_as(x)).all()


def test_weight_norm_is_a_convolution_whose_norms_are_the_gains() -> None:
    conv = WeightNormConv(2, 3, 3)
    plain = nn.Conv2d(2, 3, 3, padding=1)
    x = torch.randn(2, 2, 5, 5)
    with torch.no_grad():
        plain.weight.copy_(conv.direction)
        plain.bias.copy_(conv.bias)
        assert torch.allclose(conv(x), plain(x), atol=1e-6), "it starts as the plain convolution"
        conv.direction.mul_(7.0)
        assert torch.allclose(conv(x), plain(x), atol=1e-6), "the length of the direction does not matter"
        conv.gain.mul_(2.0)
        plain.weight.mul_(2.0)
        assert torch.allclose(conv(x), plain(x), atol=1e-6)


def test_masks_halve_the_dimensions_and_parities_are_opposite() -> None:
    for make in (lambda p: alternating(6, p), lambda p: checkerboard(4, 4, p), lambda p: channel_halves(4, p)):
        assert torch.equal(make(0) + make(1), torch.ones_like(make(0)))
        assert make(0).mean() == 0.5
    assert torch.equal(checkerboard(2, 3, 0)[0], torch.tensor([[1.0, 0, 1], [0, 1, 0]]))
    assert torch.equal(alternating(3, 0), torch.tensor([1.0, 0, 1]))
    assert torch.equal(channel_halves(3, 0).flatten(), torch.tensor([1.0, 1, 0]))


def test_squeeze_puts_each_square_into_the_channels_of_one_pixel() -> None:
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    z, _ = Squeeze()(x)
    assert z.shape == (1, 8, 2, 2)
    assert z[0, :, 0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]


def test_normalisation_in_training_takes_the_moments_of_the_batch() -> None:
    layer, x = Normalisation(3, eps=1e-6).double(), 2 * values((3, 2, 2), 50) + 5
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    z, log_det = layer(x)
    flat = z.transpose(0, 1).flatten(1)
    assert torch.allclose(flat.mean(1), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(flat.var(1, correction=0), torch.ones(3, dtype=torch.float64), atol=1e-4)
    var = x.transpose(0, 1).flatten(1).var(1, correction=0)
    assert log_det[0].item() == pytest.approx(-0.5 * 4 * (var + 1e-6).log().sum().item())
    assert all(torch.equal(state[name], t) for name, t in layer.state_dict().items()), "forward changes no state"
    absorb_statistics(layer, momentum=1.0)
    assert torch.allclose(layer.running_mean, x.mean((0, 2, 3)))
    assert torch.allclose(layer.running_var, var)
    assert torch.allclose(layer.eval()(x)[0], z), "both modes agree at these moments"
    layer.train()
    absorb_statistics(layer, momentum=0.0)
    assert layer.seen is None, "a batch counts once"
    layer(2 * x)
    absorb_statistics(layer)
    assert torch.allclose(layer.running_mean, 1.1 * x.mean((0, 2, 3)))


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantised_values_lie_strictly_inside_their_cell_and_are_uniform(levels: int) -> None:
    x = torch.tensor([0, levels - 1], dtype=torch.uint8).repeat(200_000)
    y = dequantise(x, levels, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(y.floor(), x.float())
    assert (y > 0).all()
    assert (y < levels).all()
    assert Logit(float(levels))(y[:, None])[0].isfinite().all()
    u = y - x
    assert abs(u.mean().item() - 0.5) < 4 * (1 / 12 / len(u)) ** 0.5
    assert u.var().item() == pytest.approx(1 / 12, rel=0.02)
    # no more is cut off than rounding asks for: all 400,000 draws miss an end by 2e-4 with probability exp(-80)
    assert u.min() < 2e-4
    assert u.max() > 1 - 2e-4


def test_standard_normal_log_density() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    assert standard_normal_log_density(z).tolist() == pytest.approx(
        [-math.log(2 * math.pi), -math.log(2 * math.pi) - 2.5]
    )


def test_split_couplings_keep_the_fixed_part() -> None:
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    z = shaken(split(bounded, 4))(x)[0]
    assert torch.equal(z[:, :1], x[:, :1])
    assert (z[:, 1:] != x[:, 1:]).all()


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5)], ids=str)
def test_actnorm_starts_at_mean_0_and_variance_1_and_constant_channels_stay_finite(shape: tuple[int, ...]) -> None:
    layer, x = ActNorm(3), 3 * torch.randn(500, *shape, generator=torch.Generator().manual_seed(0)) - 7
    x[:, 1] = 4.0
    with start_activations(layer):
        z, log_det = layer(x)
    flat = z.transpose(0, 1).flatten(1)
    assert torch.allclose(flat.mean(1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(flat.var(1, correction=0), torch.tensor([1.0, 0.0, 1.0]), atol=1e-5)
    assert log_det.isfinite().all()
    again = layer(2 * x)[0]
    assert not torch.allclose(again, z), "outside start_activations nothing starts"


def test_every_actnorm_of_a_chain_starts_at_what_reaches_it() -> None:
    """Also inside the nets of couplings, where the scale is folded into the convolution."""
    torch.manual_seed(0)
    chain = Chain([ActNorm(4), InvertibleConv(4, lu=True), split(bounded, 6), ActNorm(4)])
    x = torch.randn(200, 4, 3, 3) * torch.tensor([1.0, 5.0, 0.1, 2.0])[:, None, None] + 3
    with torch.no_grad(), start_activations(chain):
        first = chain(x)[0]
    seen = {}
    for layer in chain.modules():
        if isinstance(layer, ActNorm | ActNormConv):
            layer.register_forward_hook(
                lambda layer, _, out: seen.update({layer: out[0] if isinstance(out, tuple) else out.clone()})
            )
    assert torch.allclose(chain(x)[0], first, atol=1e-5), "the values of the start are those of the parameters it set"
    assert len(seen) == 4
    for values in seen.values():  # copied, because the ReLU works in place
        flat = values.transpose(0, 1).flatten(1)
        assert torch.allclose(flat.mean(1), torch.zeros(len(flat)), atol=1e-4)
        assert torch.allclose(flat.var(1, correction=0), torch.ones(len(flat)), atol=1e-3)


def test_recomputed_gradients_are_the_same_and_little_is_saved() -> None:
    plain = shaken(Chain([Chain([ActNorm(4), InvertibleConv(4, lu=True), split(bounded, 6)]) for _ in range(3)]))
    saving = Chain([Recomputed(step) for step in plain.steps])
    found, sizes = [], []
    for flow in (plain, saving):
        x, saved = values((4, 3, 3)).requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            z, log_det = flow(x)
        gradients = torch.autograd.grad(z.square().sum() + log_det.sum(), [x, *plain.parameters()])
        found.append(gradients)
        sizes.append(sum(saved))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*found, strict=True))
    assert sizes[1] < sizes[0] / 3


def test_composites_are_as_fast_and_as_exact_as_their_parts() -> None:
    class Loops(Squeeze):
        orientation = "density"
        log_det_error = 0.25
        inverse_error = 1e-3

    class LoopsOtherwise(Squeeze):
        orientation = "sampling"

    assert Chain([Squeeze(), ActNorm(4)]).orientation == "both"
    assert Chain([Squeeze(), Recomputed(Loops())]).orientation == "density"
    assert Chain([LoopsOtherwise(), Loops()]).orientation == "neither"
    chain = Chain([Loops(), Chain([Loops()])])
    assert (chain.log_det_error, chain.inverse_error) == (0.5, 2e-3)
