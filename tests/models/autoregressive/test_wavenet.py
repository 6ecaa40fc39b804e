"""WaveNet against enumeration, gradients, the naive sampler and the receptive field's formula."""

import itertools

import pytest
import torch
from scipy import stats

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.wavenet import WaveNet
from dgmbench.models.contract import IsClassConditional
from dgmbench.nn.dilated import DilatedStack
from dgmbench.nn.levels import draw_categories

SMALL = {"dilations": (1, 2, 4), "channels": 8, "skip_channels": 8}
AUDIO = DataSpec((40,), "discrete", 11, 3)


def wavenet(spec, seed=0, gain=2.0, **kwargs):
    """A model with weights large enough for strong dependencies, in float64."""
    torch.manual_seed(seed)
    model = WaveNet(spec, **{**SMALL, **kwargs}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(gain)
    return model


def stack(**kwargs):
    torch.manual_seed(0)
    net = DilatedStack(6, 5, **{"dilations": (1, 2, 4), "skip_channels": 8, **kwargs}).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2.0)
    return net


def everything(spec):
    grid = torch.tensor(list(itertools.product(range(spec.levels), repeat=spec.dim)), dtype=spec.dtype)
    return grid.reshape(-1, *spec.shape)


# ---------------------------------------------------------------------- the network


@pytest.mark.parametrize(
    ("kernel", "dilations", "expected"),
    [
        (2, (1, 2, 4), 8),
        (2, (1, 2, 4) * 2, 15),
        (3, (1, 2, 4), 15),
        (2, (5,), 6),
        (2, tuple(2**i for i in range(10)), 1024),
    ],
)
def test_receptive_field_by_gradient(kernel, dilations, expected):
    """Output t depends on exactly the inputs t - R + 1 ... t that the taps reach, and the formula counts them."""
    net = stack(kernel=kernel, dilations=dilations)
    assert net.receptive_field == expected
    length = expected + 20
    h = torch.randn(1, 6, length, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(h)[0, :, -1].square().sum(), h)
    seen = gradient[0].abs().sum(0).nonzero()[:, 0]
    assert length - seen.min() == expected
    assert seen.max() == length - 1


@pytest.mark.parametrize("kwargs", [{}, {"kernel": 3}, {"classes": 3, "local": 4}])
def test_causality_by_gradient(kwargs):
    """No output depends on a later input or on a later local feature; every output depends on all that is near."""
    net, length = stack(**kwargs), 12
    h = torch.randn(1, 6, length, dtype=torch.float64, requires_grad=True)
    local = torch.randn(1, 4, length, dtype=torch.float64, requires_grad=True) if "local" in kwargs else None
    y = torch.tensor([1]) if "classes" in kwargs else None
    for source in [h] if local is None else [h, local]:
        out = net(h, y, local)
        depends = torch.stack(
            [
                torch.autograd.grad(out[0, :, t].square().sum(), source, retain_graph=True)[0][0].abs().sum(0)
                for t in range(length)
            ]
        )
        assert torch.equal(depends, depends.tril())
        # a feature at one time enters behind the taps of the first layer, so it is carried by those of the others
        offsets = torch.arange(length)[:, None] - torch.arange(length)
        near = (offsets >= 0) & (offsets < net.receptive_field)
        if source is not h:
            near &= (offsets % 2 == 0) & (offsets <= 6)
        assert torch.equal(depends > 0, near)


def test_both_conditions_change_every_gate():
    net = stack(classes=3, local=4)
    h, local = torch.randn(2, 6, 9).double(), torch.randn(2, 4, 9).double()
    base = net(h, torch.tensor([0, 1]), local)
    assert (net(h, torch.tensor([0, 2]), local)[1] - base[1]).abs().amax(0).min() > 0
    assert torch.equal(net(h, torch.tensor([0, 2]), local)[0], base[0])
    moved = local.clone()
    moved[:, :, 5] += 1.0
    change = (net(h, torch.tensor([0, 1]), moved) - base).abs().amax((0, 1))
    assert (change > 0).nonzero()[:, 0].tolist() == [5, 7], "at once, and through taps 2 and more apart"


@pytest.mark.parametrize(
    "kwargs", [{}, {"kernel": 3}, {"kernel": 4}, {"dilations": (1, 2, 4) * 2}, {"classes": 3, "local": 4}]
)
def test_one_step_at_a_time_equals_all_at_once(kwargs):
    net, n, length = stack(**kwargs), 3, 30
    h = torch.randn(n, 6, length).double()
    y = torch.tensor([2, 0, 1]) if "classes" in kwargs else None
    local = torch.randn(n, 4, length).double() if "local" in kwargs else None
    with torch.no_grad():
        expected = net(h, y, local)
        queues = net.start(n, y)
        steps = [net.step(queues, h[..., t], None if local is None else local[..., t]) for t in range(length)]
    assert torch.allclose(torch.stack(steps, 2), expected, rtol=0, atol=1e-10)
    assert len(queues.past) == (net.kernel - 1) * sum(net.dilations), "queues hold what the taps need and no more"


def test_samples_can_be_trained_on():
    """The sampler's inner loop runs in inference mode, whose tensors autograd refuses."""
    model = wavenet(DataSpec((4,), "tokens", 5, end=0))
    x = model.sample(3, generator=torch.Generator().manual_seed(0))
    loss, _ = model.loss("model", Batch(x), torch.Generator())
    loss.backward()
    assert model.embedding.weight.grad.abs().sum() > 0
    assert not x.is_inference()


def test_layers_are_the_papers_formula():
    """Two layers written out tap by tap."""
    net = stack(dilations=(1, 2))
    h = torch.randn(6, 5).double()
    x, total = h, torch.zeros(8, 5).double()
    for block, dilation in zip(net.blocks, (1, 2), strict=True):
        past = torch.zeros_like(x)
        past[:, dilation:] = x[:, :-dilation]
        w = block.gates.weight
        pre = w[..., 0] @ past + w[..., 1] @ x + block.gates.bias[:, None]
        z = torch.tanh(pre[:6]) / (1 + torch.exp(-pre[6:]))
        out = block.out.weight[..., 0] @ z + block.out.bias[:, None]
        total = total + out[-8:]
        if dilation == 1:
            x = x + out[:6]
    hidden = (net.hidden.weight[..., 0] @ total.relu() + net.hidden.bias[:, None]).relu()
    expected = net.top.weight[..., 0] @ hidden + net.top.bias[:, None]
    assert torch.allclose(net(h[None])[0], expected)


# ---------------------------------------------------------------------- the density


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(
    "spec",
    [
        DataSpec((10,), "binary", num_classes=2),
        DataSpec((1, 2, 2), "discrete", 5, 3),
        DataSpec((5,), "tokens", 4, 2, end=1),
    ],
    ids=str,
)
def test_sums_to_one(spec, conditional):
    model = wavenet(spec, conditional=conditional)
    with torch.no_grad():
        if conditional:
            model.class_log_prior.copy_(torch.linspace(0.5, 2, spec.num_classes, dtype=torch.float64).log_softmax(0))
        log_prob = model.log_prob(everything(spec))
        assert log_prob.logsumexp(0).item() == pytest.approx(0.0, abs=1e-10)
        assert log_prob[log_prob.isfinite()].std() > 0.5
        if conditional:
            labels = [torch.full((len(log_prob),), y) for y in range(spec.num_classes)]
            given = torch.stack([model.log_prob(everything(spec), y) for y in labels])
            assert given.logsumexp(1).abs().max() < 1e-10, "p(x | y) sums to 1 for every label"
            joint = (given + model.class_log_prior[:, None]).logsumexp(0)
            assert torch.allclose(model.log_prob(everything(spec)), joint)
            finite = given.isfinite().all(0)
            assert (given[0] - given[1])[finite].abs().max() > 0.1, "the label matters"


@pytest.mark.parametrize("conditional", [False, True])
def test_log_prob_is_the_product_of_the_conditionals(conditional):
    spec = DataSpec((6,), "discrete", 3, 4)
    model = wavenet(spec, conditional=conditional)
    assert isinstance(model, IsClassConditional) == conditional
    x = everything(spec)[::5]
    with torch.no_grad():
        log_p = model.conditional_logits(x).log_softmax(-1)
        assert torch.allclose(log_p.gather(2, x.long()[..., None]).sum((1, 2)), model.log_prob(x))


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("end", [None, 4])
def test_cached_sampling_equals_the_naive_loop(conditional, end):
    """Every value from the whole network on all values before it, from the same uniforms."""
    kind = "discrete" if end is None else "tokens"
    spec = DataSpec((40,), kind, 11, 3, end=end)
    model, n = wavenet(spec, conditional=conditional), 12
    y = torch.arange(n) % 3 if conditional else None
    fast = model.sample(n, y, generator=torch.Generator().manual_seed(5))
    uniform = torch.rand(40, n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = torch.zeros(n, 40, dtype=spec.dtype)
    with torch.no_grad():
        for t in range(40):
            x[:, t] = draw_categories(model._logits(x, y)[..., t], uniform[t])
            if end is not None and t:
                x[:, t][x[:, t - 1] == end] = end
    assert torch.equal(fast, x)
    assert (end is None) or (fast[:, -1] == end).any()


@pytest.mark.parametrize(
    ("spec", "conditional"),
    [
        (DataSpec((4,), "discrete", 4), False),
        (DataSpec((3,), "discrete", 5, 3), True),
        (DataSpec((4,), "tokens", 4, end=0), False),
    ],
    ids=str,
)
def test_sample_frequencies_match_the_probabilities(spec, conditional):
    model, n = wavenet(spec, conditional=conditional), 10_000
    if conditional:
        model.class_log_prior.copy_(torch.tensor([0.6, 0.3, 0.1]).log())
    x = model.sample(n, generator=torch.Generator().manual_seed(0)).long()
    place = spec.levels ** torch.arange(spec.dim - 1, -1, -1)
    counts = torch.bincount((x * place).sum(1), minlength=spec.levels**spec.dim).double()
    with torch.no_grad():
        expected = n * model.log_prob(everything(spec)).exp()
    assert (counts[expected == 0] == 0).all()
    rare = expected < 5
    observed = torch.cat((counts[~rare], counts[rare].sum()[None]))
    wanted = torch.cat((expected[~rare], expected[rare].sum()[None]))
    keep = wanted > 0
    assert stats.chisquare(observed[keep], wanted[keep] * (observed[keep].sum() / wanted[keep].sum())).pvalue > 1e-3


@pytest.mark.parametrize("conditional", [False, True])
def test_a_known_beginning_is_completed_exactly(conditional):
    spec, n = DataSpec((4,), "discrete", 3, 2), 6_000
    model = wavenet(spec, conditional=conditional)
    if conditional:
        model.class_log_prior.copy_(torch.tensor([0.85, 0.15], dtype=torch.float64).log())
    x = torch.tensor([[2, 1, 0, 0]], dtype=torch.uint8).expand(n, 4)
    known = torch.tensor([True, True, False, False]).expand(n, 4)
    done = model.complete(x, known, generator=torch.Generator().manual_seed(0))
    assert torch.equal(done[:, :2], x[:, :2])
    assert done.dtype == torch.uint8
    every = torch.cat([x[:9, :2], everything(DataSpec((2,), "discrete", 3))], dim=1)
    with torch.no_grad():
        posterior = model.log_prob(every).softmax(0)
    counts = torch.bincount(done[:, 2].long() * 3 + done[:, 3], minlength=9).double()
    assert stats.chisquare(counts, n * posterior).pvalue > 1e-3


# ---------------------------------------------------------------------- training


@torch.no_grad()
def test_a_sentence_does_not_end_before_a_known_word():
    spec = DataSpec((5,), "tokens", 3, end=0)
    torch.manual_seed(0)
    model = WaveNet(spec, dilations=(1, 2), channels=6, skip_channels=8)
    assert model.net.top.bias is not None
    model.net.top.bias[0] += 2.0  # sentences tend to end at once
    x = torch.tensor([1, 2, 2, 1, 0], dtype=torch.uint8).expand(2000, 5)
    known = torch.tensor([False, False, True, False, False]).expand(2000, 5)
    done = model.complete(x, known, generator=torch.Generator().manual_seed(0))
    assert (done[:, 2] == 2).all()
    assert (done[:, :2] != 0).all()
    assert model.log_prob(done).isfinite().all()
    assert (done[:, 3] == 0).double().mean() > 0.5, "after the last known word it may"
    nothing = model.complete(x, torch.zeros_like(known), generator=torch.Generator().manual_seed(0))
    assert (nothing[:, 0] == 0).double().mean() > 0.5


def test_starts_at_the_marginals_and_learns_a_period():
    spec = DataSpec((24,), "discrete", 5, 2)
    g = torch.Generator().manual_seed(0)
    start = torch.randint(4, (64, 1), generator=g)
    x = ((start + torch.arange(24)) % 4).byte()  # periodic: one of four beginnings, the rest is certain; no level 4
    batch = Batch(x, torch.randint(2, (64,), generator=g))
    torch.manual_seed(0)
    model = WaveNet(spec, **SMALL, conditional=True)
    model.initialise(batch, g)
    marginal = model.net.top.bias.softmax(0)
    assert torch.allclose(marginal, torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0]), atol=0.15)
    assert marginal[4] < 1e-3
    assert torch.allclose(model.class_log_prior.exp(), (torch.bincount(batch.y) + 1) / 66)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss, _ = model.loss("model", batch, g)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert model.log_prob(x).mean().item() == pytest.approx(-torch.tensor(4.0).log().item(), abs=0.15)
    samples = model.sample(200, generator=g).long()
    assert ((samples.diff(dim=1) % 4 == 1).float().mean()) > 0.99


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="takes binary or discrete data or tokens, not real"):
        WaveNet(DataSpec((5,), "real"))
    with pytest.raises(UserError, match=r"model\.dilations=\[1, 0\] must be at least 1"):
        WaveNet(AUDIO, dilations=[1, 0])
    with pytest.raises(UserError, match=r"model\.dilations is empty"):
        WaveNet(AUDIO, dilations=[])
    with pytest.raises(UserError, match=r"model\.kernel=1 must be at least 2"):
        WaveNet(AUDIO, kernel=1)
    with pytest.raises(UserError, match="needs data with labels"):
        WaveNet(DataSpec((5,), "binary"), conditional=True)
    model = WaveNet(AUDIO, **SMALL, conditional=True)
    with pytest.raises(UserError, match="needs labels with every batch"):
        model.loss("model", Batch(torch.zeros(2, 40, dtype=torch.uint8)), torch.Generator())
