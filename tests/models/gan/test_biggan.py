"""BigGAN: layers as published, shared embedding and split noise, orthogonality, projection, truncation."""

import copy
import itertools
import math

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from dgmbench.config import complete, compose
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.quality.prdc import PrecisionRecall
from dgmbench.models.gan import biggan
from dgmbench.models.gan.biggan import PASS, PASSES, BigGan
from dgmbench.nn.adversarial import ResidualBlock
from dgmbench.nn.adversarial_attention import Bottleneck
from dgmbench.nn.attention import SelfAttention
from dgmbench.nn.batchnorm import BatchNorm, ConditionalBatchNorm

from .alphabet import seeded

SPEC = DataSpec((1, 16, 16), "discrete", levels=4, num_classes=3)
X = torch.randint(4, (6, 1, 16, 16), generator=seeded()).to(torch.uint8)
Y = torch.arange(6) % 3


def made(spec: DataSpec = SPEC, **arguments: object) -> BigGan:
    torch.manual_seed(0)
    settings: dict[str, object] = {"channels": 1, "latent": 6, "embedding": 2} | arguments
    return BigGan(spec, **settings)  # type: ignore[arg-type]


CHANNELS = 4


@pytest.fixture(scope="module")
def published() -> dict[str, BigGan]:
    """Both networks for 128 pixels as in the tables, but with 4 channels for 96 or 128, and 10 classes for 1000."""
    spec = DataSpec((3, 128, 128), "discrete", levels=256, num_classes=10)
    settings = {"channels": CHANNELS, "latent": None, "embedding": 128}
    with pytest.MonkeyPatch.context() as patch:  # what takes time and changes no shape
        for step in ("start_orthogonal", "spectral_normalise"):
            patch.setattr(biggan, step, lambda _net: None)
        return {arch: made(spec, **settings, arch=arch) for arch in ("plain", "deep")}  # type: ignore[arg-type]


def blocks(layers: nn.Module) -> list[tuple[int, int, str]]:
    """Inputs and outputs in multiples of ``channels``, and resampling; of attention 0, its maps, "attend"."""
    found = []
    for m in layers.modules():
        if isinstance(m, Bottleneck):
            found.append((m.convs[0].in_channels / CHANNELS, m.convs[3].out_channels / CHANNELS, m.resample))
        elif isinstance(m, ResidualBlock):
            found.append((m.conv1.in_channels / CHANNELS, m.conv2.out_channels / CHANNELS, m.resample))
        elif isinstance(m, SelfAttention):
            found.append((0, m.f.in_channels / CHANNELS, "attend"))
    return found  # type: ignore[return-value]


def test_the_deep_networks_have_the_layers_of_table_7(published: dict[str, BigGan]) -> None:
    g, d = published["deep"].generator, published["deep"].discriminator
    assert published["deep"].latent == 128
    assert g.embedding.weight.shape == (128, 10)
    assert g.net.project.weight.shape == (16 * CHANNELS * 4 * 4, 128 + 128), "the whole of z and the embedding"
    pairs = [(16, 16), (16, 8), (8, 4), (4, 2), (2, 1)]
    up = [block for m, n in pairs for block in ((m, m, "none"), (m, n, "up"))]
    assert blocks(g.net.blocks) == up
    assert g.net.attended == 7, "after the block that makes 64 pixels"
    down = [block for m, n in pairs[::-1] for block in ((n, m, "down"), (m, m, "none"))]
    trunk = d.net.trunk  # type: ignore[union-attr]
    assert trunk[0].weight.shape == (CHANNELS, 3, 3, 3)  # type: ignore[index,union-attr]
    assert blocks(trunk) == [*down[:2], (0, 2, "attend"), *down[2:]]  # type: ignore[arg-type]
    for block in (m for net in (g, d) for m in net.modules() if isinstance(m, Bottleneck)):
        before, after = block.convs[0].in_channels, block.convs[3].out_channels
        inner = max(before, after) // 4
        expected = [(inner, before, 1, 1), (inner, inner, 3, 3), (inner, inner, 3, 3), (after, inner, 1, 1)]
        assert [tuple(conv.weight.shape) for conv in block.convs] == expected
        assert (block.extra is None) == (after <= before), "channels are dropped without a weight"
        assert block.extra is None or block.extra.weight.shape == (after - before, before, 1, 1)
    norms = [m for m in g.modules() if isinstance(m, ConditionalBatchNorm)]
    assert len(norms) == 10 * 4
    assert {norm.scale.in_features for norm in norms} == {128 + 128}
    assert [len(made(arch="deep", depth=k).generator.net.blocks) for k in (1, 3)] == [2, 6]


def test_the_plain_networks_have_the_layers_of_table_4(published: dict[str, BigGan]) -> None:
    g, d = published["plain"].generator, published["plain"].discriminator
    assert published["plain"].latent == 120
    assert g.net.project.weight.shape == (16 * CHANNELS * 4 * 4, 20), "the first part of z alone"
    assert blocks(g.net.blocks) == [(16, 16, "up"), (16, 8, "up"), (8, 4, "up"), (4, 2, "up"), (2, 1, "up")]
    assert g.net.attended == 3
    last = [(1, 2, "down"), (2, 4, "down"), (4, 8, "down"), (8, 16, "down"), (16, 16, "none")]
    assert blocks(d.net.trunk) == [(3 / CHANNELS, 1, "down"), (0, 1, "attend"), *last]  # type: ignore[union-attr,arg-type]
    norms = [m for m in g.modules() if isinstance(m, ConditionalBatchNorm)]
    assert {norm.scale.in_features for norm in norms} == {20 + 128}


def test_attention_can_be_left_out() -> None:
    model = made(attention=0)
    assert not any(isinstance(m, SelfAttention) for m in model.modules())
    assert sum(isinstance(m, SelfAttention) for m in made().modules()) == 2
    assert model.sample(2, generator=seeded()).shape == (2, 1, 16, 16)


@pytest.mark.parametrize("arch", ["plain", "deep"])
def test_each_level_gets_the_embedding_and_its_part_of_z_or_the_whole_of_it(arch: str) -> None:
    model = made(arch=arch).eval()
    seen: list[torch.Tensor] = []
    model.generator.net.project.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    for m in model.generator.modules():
        if isinstance(m, ConditionalBatchNorm):
            m.register_forward_pre_hook(lambda _m, args: seen.append(args[1]))
    z = torch.randn(2, 6, generator=seeded())
    model.generated(z, Y[:2])
    e = model.generator.embedding.weight.T[Y[:2]]
    if arch == "deep":
        expected = [torch.cat([z, e], 1)] * (1 + 4 * 4)
    else:
        parts = [torch.cat([z[:, k : k + 2], e], 1) for k in (2, 4)]
        expected = [z[:, :2], parts[0], parts[0], parts[1], parts[1]]
    assert len(seen) == len(expected)
    for own, part in zip(seen, expected, strict=True):
        torch.testing.assert_close(own, part)


@pytest.mark.parametrize("arch", ["plain", "deep"])
def test_conditional_norms_are_batch_norm_where_the_scale_is_1_and_the_shift_0(arch: str) -> None:
    norms = [m for m in made(arch=arch).generator.modules() if isinstance(m, ConditionalBatchNorm)]
    for norm in norms[:4]:
        channels, condition = norm.scale.weight.shape
        x = torch.randn(8, channels, 3, 3, generator=seeded())
        plain = F.batch_norm(x, None, None, training=True)
        torch.testing.assert_close(norm(x, torch.zeros(8, condition)), plain)
        c = torch.randn(8, condition, generator=seeded())
        scale, shift = (layer.weight @ c.T for layer in (norm.scale, norm.shift))
        by_hand = plain * (1 + scale.T)[:, :, None, None] + shift.T[:, :, None, None]
        torch.testing.assert_close(norm(x, c), by_hand)
        assert not torch.allclose(by_hand, plain), "the label and z count from the start"


def test_all_weights_but_the_generators_embedding_start_orthogonal_and_with_norm_one() -> None:
    model = made(channels=2)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert parametrize.is_parametrized(module, "weight") != (name == "generator.embedding")
            w = module.weight.detach().flatten(1)
            gram = w @ w.T if len(w) <= w.shape[1] else w.T @ w
            torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-4)
    assert not any(isinstance(m, BatchNorm) for m in model.discriminator.modules())


def test_the_penalty_adds_its_gradient_to_the_generators_weights_and_no_other() -> None:
    """4 w (W W' o (1 - I)) W at every weight before its normalisation; the rows' own lengths cost nothing."""
    model, weight = made(channels=2), 0.7
    for p in model.generator.parameters():
        p.data.add_(torch.randn(p.shape, generator=seeded()), alpha=0.3)
    names = [name for name, _ in model.named_parameters()]
    found = {}
    for model.orthogonality in (0.0, weight):
        loss, logs = model.loss("generator", Batch(X, Y), seeded())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        found[model.orthogonality] = loss, dict(zip(names, gradients, strict=True))
    by_pairs = torch.zeros(())
    for name, p in model.named_parameters():
        added = found[weight][1][name] - found[0.0][1][name]
        if p.dim() < 2 or not name.startswith("generator.net."):
            assert not added.any(), name
            continue
        w = p.detach().flatten(1)
        products = w @ w.T * (1 - torch.eye(len(w)))
        by_pairs += products.square().sum()
        torch.testing.assert_close(added.flatten(1), 4 * weight * products @ w, rtol=1e-4, atol=1e-4, msg=name)
    torch.testing.assert_close(logs["orthogonality"], by_pairs)
    torch.testing.assert_close(found[weight][0] - found[0.0][0], weight * by_pairs, rtol=1e-4, atol=1e-4)


def test_the_discriminators_output_is_linear_in_the_class_embedding_and_changes_with_the_class() -> None:
    model = made(channels=2)
    d = model.discriminator
    x = X / 1.5 - 1
    phi, v = d.features(x), d.embedding.weight.T
    torch.testing.assert_close(model.judged(x, Y) - model.judged(x, Y.roll(1)), ((v[Y] - v[Y.roll(1)]) * phi).sum(1))
    assert (model.judged(x, Y) - model.judged(x, Y.roll(1))).abs().min() > 1e-4
    parametrize.remove_parametrizations(d.embedding, "weight")
    outputs, parts = [], [torch.randn(v.T.shape, generator=seeded(k)) for k in range(2)]
    for embedding in (parts[0], parts[1], 0.3 * parts[0] - 2 * parts[1], torch.zeros_like(parts[0])):
        d.embedding.weight.data = embedding
        outputs.append(model.judged(x, Y))
    first, second, both, none = outputs
    torch.testing.assert_close(both - none, 0.3 * (first - none) - 2 * (second - none), rtol=1e-4, atol=1e-4)


def test_two_discriminator_steps_to_one_of_the_generator_and_the_hinge() -> None:
    model = made()
    assert [list(model.turn(k, model.stages()[0])) for k in (0, 1)] == [
        ["discriminator"],
        ["discriminator", "generator"],
    ]
    g = seeded()
    y = torch.multinomial(model.class_log_prior.exp(), 6, replacement=True, generator=g)
    fake = model.judged(model.generated(torch.randn(6, 6, generator=g), y), y)
    hinge = F.relu(1 - model.judged(X / 1.5 - 1, Y)).mean() + F.relu(1 + fake).mean()
    torch.testing.assert_close(model.loss("discriminator", Batch(X, Y), seeded())[0], hinge)


def test_latents_of_samples_stay_within_the_truncation_and_those_of_training_do_not() -> None:
    model = made()
    seen: list[torch.Tensor] = []
    model.generator.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    for model.truncation in (2.0, 1.0, 0.5, 0.1):
        tau = model.truncation
        seen.clear()
        model.sample(300, generator=seeded())
        tails = torch.tensor([[60.0], [-60.0]]).expand(2, 7)
        model.generate(torch.cat([torch.randn(9, 7, generator=seeded()), tails]))
        assert all(z.abs().max() <= tau for z in seen)
        squares = seen[0].square()
        assert abs(squares.mean() - variance(tau)) < 4 * squares.std() / squares.numel() ** 0.5
        assert seen[1].abs().max() == pytest.approx(tau), "the tails of generate's noise"
    model.stand(seeded())
    assert len(seen) == 2 + PASSES
    assert all(z.abs().max() <= 0.1 for z in seen)
    model.loss("generator", Batch(X.repeat(9, 1, 1, 1), Y.repeat(9)), seeded())
    assert seen[-1].abs().max() > 2


def variance(tau: float) -> float:
    """That of N(0, 1) cut to |z| <= tau."""
    return 1 - 2 * tau * math.exp(-(tau**2) / 2) / math.sqrt(2 * math.pi) / math.erf(tau / math.sqrt(2))


class Wide(nn.Module):
    """G(z) = 1.5 z on the first pixels, whatever the label."""

    def forward(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.pad(1.5 * z, (0, 256 - z.shape[1])).view(-1, 1, 16, 16)


def test_less_spread_and_no_less_precision_at_a_smaller_truncation() -> None:
    """Data N(0, I) and samples too wide: the same quantile of z is nearer 0, where data are dense, at a smaller tau.

    The mean squared distance of two samples is 2 * 6 * 1.5^2 times the variance of the cut normal distribution.
    """
    model = made(DataSpec((1, 16, 16), "real", num_classes=3))
    model.generator = Wide()  # type: ignore[assignment]
    n = 800
    data = torch.randn(n, 6, generator=seeded(1))
    spreads, precisions = [], []
    for tau in (None, 2.0, 1.0, 0.5, 0.1):
        model.truncation = tau
        x = model.sample(n, generator=seeded()).flatten(1)[:, :6]
        spreads.append(torch.pdist(x).mean().item())
        measure = PrecisionRecall()
        measure.update(data, real=True)
        measure.update(x, real=False)
        precisions.append(measure.compute()["precision"].item())
        if tau is not None:
            expected = 2 * 6 * 1.5**2 * variance(tau)
            assert torch.pdist(x).square().mean().item() == pytest.approx(expected, rel=0.1)
    assert all(small < large for large, small in itertools.pairwise(spreads))
    assert all(small >= large for large, small in itertools.pairwise(precisions))
    assert precisions[0] < 0.8 < 0.99 < precisions[-1]


def test_standing_statistics_are_the_mean_moments_of_samples_at_the_truncation() -> None:
    """Of the first norm's input, W z_1 without its mean: the variance is sum_j W_ij^2 times that of a cut z_j."""
    model = made(truncation=0.5)
    before = copy.deepcopy(model.state_dict())
    model.settle(iter([]), seeded())
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "running" in name}
    assert all(layer.seen is None for layer in model.modules() if isinstance(layer, BatchNorm))
    first = next(m for m in model.generator.modules() if isinstance(m, BatchNorm))
    y = torch.arange(PASS) % 3
    g = seeded(5)
    z = model.noise(20_000, g, truncation=0.5)
    h = model.generator.net.project(z[:, :2]).unflatten(1, (-1, 4, 4)).detach()
    torch.testing.assert_close(first.running_mean, h.mean((0, 2, 3)), rtol=0, atol=0.02)
    torch.testing.assert_close(first.running_var, h.var((0, 2, 3)), rtol=0.05, atol=0)
    z = model.noise(PASS, g, truncation=0.5)
    trained, evaluated = model.train().generated(z, y), model.eval().generated(z, y)
    assert (trained - evaluated).abs().mean() < 0.1 * trained.std(), "a batch's own moments are like the standing ones"
    untouched = made()
    untouched.settle(iter([]), seeded())
    assert all(torch.equal(b, before[name]) for name, b in untouched.state_dict().items() if "running" in name)


def test_the_configuration_averages_weights_and_batches_can_be_accumulated() -> None:
    settings = complete(compose("train", ["model=biggan", "trainer.accumulate=4"]))
    assert settings["model"]["n_critic"] == 2
    assert settings["trainer"]["ema"] > 0
    assert settings["trainer"]["accumulate"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "wide"}, "arch.*'wide'"),
        ({"latent": 7}, "latent=7 must be a multiple of 3, .*; 6 is"),
        ({"latent": 2}, "latent=2 must be a multiple of 3, .*; 3 is"),
        ({"depth": 2}, "depth=2 counts bottlenecks; leave it out, or set model.arch=deep"),
        ({"depth": 0, "arch": "deep"}, "depth=0 must be at least 1"),
        ({"truncation": 0.0}, "truncation=0.0 must be more than 0"),
        ({"orthogonality": -1.0}, "orthogonality=-1.0 must be at least 0"),
        ({"embedding": 0}, "embedding=0 must be at least 1"),
        ({"attention": 5}, r"attention=5 must be one of \[8, 16\]"),
        ({"n_critic": 0}, "n_critic=0 must be at least 1"),
        ({"loss": "relativistic_average"}, "looks at data"),
    ],
)
def test_bad_input_is_explained(arguments: dict[str, object], message: str) -> None:
    with pytest.raises((UserError, jaxtyping.TypeCheckError), match=f"(?s){message}"):
        made(**arguments)


def test_data_without_labels_or_of_another_shape_are_refused() -> None:
    with pytest.raises(UserError, match="has none"):
        made(DataSpec((1, 16, 16), "binary"))
    with pytest.raises(UserError, match="side of 16"):
        made(DataSpec((1, 8, 8), "binary", num_classes=2))
