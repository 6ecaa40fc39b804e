"""What holds for every autoregressive model of images: caches, samples, completion, memory; by enumeration."""

import math

import pytest
import torch

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.diagonal_bilstm import DiagonalBiLstm
from dgmbench.models.autoregressive.parallel_nade import ParallelNade
from dgmbench.models.autoregressive.pixelcnn import PixelCnn
from dgmbench.models.autoregressive.row_lstm import RowLstm
from dgmbench.verify.check import chi_squared
from dgmbench.verify.support import all_states, state_index

MODELS = {
    "plain": (PixelCnn, {"features": 14, "blocks": 2, "head": 12, "kernel": 5}),
    "gated": (PixelCnn, {"features": 10, "blocks": 2, "head": 12, "kernel": 5, "gated": True}),
    "row": (RowLstm, {"features": 7, "layers": 2, "head": 12, "kernel": 3}),
    "diagonal": (DiagonalBiLstm, {"features": 7, "layers": 2, "head": 12, "kernel": 3}),
    "parallel": (ParallelNade, {"base": 2, "features": 8, "blocks": 1, "base_features": 8, "base_blocks": 1}),
}
RASTER = [name for name in MODELS if name != "parallel"]
BINARY = DataSpec((1, 3, 4), "binary", num_classes=3)
COLOUR = DataSpec((3, 4, 4), "discrete", 4, num_classes=3)


def build(name, spec, gain=1.5, **kwargs):
    """A model with weights large enough for strong dependencies, in float64."""
    torch.manual_seed(0)
    cls, sizes = MODELS[name]
    model = cls(spec, **sizes, **kwargs).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(gain)
    return model


def images(spec, n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, spec.levels, (n, *spec.shape), generator=g, dtype=torch.uint8)


@pytest.mark.parametrize("spec", [BINARY, COLOUR, DataSpec((2, 3, 1), "discrete", 3, num_classes=3)], ids=str)
@pytest.mark.parametrize(
    ("name", "conditional"),
    [*((name, False) for name in RASTER), *((name, True) for name in RASTER if name not in ("row", "diagonal"))],
)
@torch.no_grad()
def test_cached_logits_are_those_of_a_full_pass(name, spec, conditional):
    model = build(name, spec, **({"conditional": True} if conditional else {}))
    x, y = images(spec, 4), torch.tensor([0, 1, 2, 1])
    full = model.given(x, y).unflatten(1, spec.shape)
    cache = model.cache(4, y)
    worst = 0.0
    for row in range(spec.shape[1]):
        cache.start_row()
        for column in range(spec.shape[2]):
            for channel in range(spec.shape[0]):
                # the future is hidden from the cache by construction: it is written afterwards
                worst = max(worst, float((cache.read(column, channel) - full[:, channel, row, column]).abs().max()))
                cache.write(column, channel, model._inputs(x[:, channel, row, column, None]))
    assert worst < 1e-10
    assert full.std(0).max() > 0.1, "the parameters should depend on the image for this test to mean something"


@pytest.mark.parametrize("spec", [BINARY, COLOUR], ids=str)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_fast_samples_are_those_of_a_pass_for_each_dimension(name, spec):
    """The same uniforms, a full pass for every position of the order, and inverse CDFs written out."""
    model = build(name, spec)
    fast = model.sample(8, generator=torch.Generator().manual_seed(3))
    noise = model.noise(8, torch.Generator().manual_seed(3))
    x = torch.zeros(8, *spec.shape, dtype=torch.uint8)
    for position, i in enumerate(model.ordering().argsort().tolist()):
        parameters = model.conditional_logits(x)[:, i]
        if spec.kind == "binary":
            value = noise[position] < parameters[:, 0].sigmoid()
        else:
            value = torch.searchsorted(parameters.softmax(1).cumsum(1), noise[position][:, None], right=True)[:, 0]
        x.view(8, -1)[:, i] = value.to(torch.uint8)
    assert torch.equal(fast, x)
    assert fast.unique(dim=0).shape[0] >= 4


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_no_conditional_sees_its_future(name):
    """Each dimension of colour images changed alone, to every other value: for every pixel and channel."""
    spec = COLOUR
    model, x = build(name, spec), images(COLOUR, 10)
    order, before = model.ordering(), model.conditional_logits(x)
    assert torch.equal(order.sort().values, torch.arange(spec.dim))
    moves = torch.zeros(spec.dim, spec.dim, dtype=torch.bool)
    for j in range(spec.dim):
        for change in range(1, spec.levels):
            other = x.clone()
            flat = other.view(10, -1)
            flat[:, j] = (flat[:, j] + change) % spec.levels
            moves[:, j] |= (model.conditional_logits(other) - before).abs().amax((0, 2)) > 1e-12
    assert not (moves & (order[:, None] <= order)).any()
    assert moves[order.argsort()[-1]].any()
    for pixel in range(16):
        r, g, b = pixel, 16 + pixel, 32 + pixel
        assert moves[g, r], "G sees the R of its own pixel"
        assert moves[b, r]
        assert moves[b, g], "B sees the R and the G of its own pixel"


@pytest.mark.parametrize("spec", [DataSpec((1, 3, 3), "binary"), DataSpec((3, 2, 1), "discrete", 3)], ids=str)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_completion_is_exact_below_a_known_part(name, spec):
    """Frequencies of the completed part against p(x) summed over what agrees with the known part."""
    model, n = build(name, spec), 6000
    states = all_states(spec.dim, spec.levels, torch.uint8).reshape(-1, *spec.shape)
    known_dims = model.ordering() < 4
    x = images(spec, 1, seed=4)
    agree = (states.flatten(1) == x.flatten(1))[:, known_dims].all(1)
    p = torch.where(agree, model.log_prob(states).exp(), 0)
    known = known_dims.reshape(1, *spec.shape).expand(n, *spec.shape)
    done = model.complete(x.expand(n, *spec.shape), known, generator=torch.Generator().manual_seed(0))
    assert torch.equal(done[known], x.expand_as(done)[known])
    counts = torch.bincount(state_index(done.flatten(1), spec.levels), minlength=len(states))
    assert (p > 0).sum() > 1
    assert chi_squared(counts, p / p.sum()) > 1e-4


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_completion_keeps_what_is_known_wherever_it_is(name):
    model, x = build(name, COLOUR), images(COLOUR, 6)
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    done = model.complete(x, known, generator=torch.Generator().manual_seed(0))
    assert torch.equal(done[known], x[known])
    assert not torch.equal(done, x)
    assert torch.equal(model.complete(x, known, generator=torch.Generator().manual_seed(0)), done)
    free = model.complete(x, torch.zeros_like(known), generator=torch.Generator().manual_seed(0))
    assert torch.equal(free, model.sample(6, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(UserError, match=r"must both be \(b, 3, 4, 4\)"):
        model.complete(x, known[:, :1])


@pytest.mark.parametrize("name", MODELS)
def test_memorises_four_images_to_their_entropy(name):
    spec, generator = DataSpec((1, 4, 4), "binary"), torch.Generator().manual_seed(0)
    cls, sizes = MODELS[name]
    torch.manual_seed(0)
    sizes = {key: value if isinstance(value, bool) else max(value, 16) if "features" in key else value
             for key, value in sizes.items()}  # fmt: skip
    model, four = cls(spec, **sizes), images(spec, 4)
    model.initialise(Batch(four), generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(200):
        optimiser.zero_grad()
        loss, _ = model.loss("model", Batch(four), generator)
        loss.backward()
        optimiser.step()
    assert math.log(4) - 1e-5 < loss.item() < math.log(4) + 0.1
    drawn = model.sample(200, generator=generator)
    memory = (drawn[:, None] == four).flatten(2).all(2)
    assert memory.any(1).float().mean() > 0.9
    assert memory.any(0).all()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_starts_at_the_frequencies_of_each_channel(name):
    spec = DataSpec((3, 4, 4), "discrete", 4)
    model = build(name, spec)
    x = images(spec, 50)
    x[:, 0] = 0
    x[:, 1].clamp_(max=1)
    model.initialise(Batch(x), torch.Generator().manual_seed(0))
    for parameter_name, p in model.named_parameters():
        if parameter_name.endswith("out.weight"):
            p.zero_()
    p = model.conditional_logits(x[:1])[0].softmax(1).reshape(3, 16, 4)
    counts = torch.stack([(x[:, c] == level).sum() for c in range(3) for level in range(4)]).reshape(3, 1, 4) + 0.5
    assert torch.allclose(p, (counts / counts.sum(2, keepdim=True)).double().expand_as(p), atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_wrong_data_are_refused(name):
    with pytest.raises(UserError, match="takes binary or discrete images"):
        MODELS[name][0](DataSpec((4,), "binary"))
    with pytest.raises(UserError, match="takes binary or discrete images"):
        MODELS[name][0](DataSpec((1, 4, 4), "real"))
    with pytest.raises(UserError, match=r"features=2 must be at least 3"):
        MODELS[name][0](COLOUR, features=2)
    if name != "parallel":
        with pytest.raises(UserError, match=r"model.kernel=4 must be odd"):
            MODELS[name][0](COLOUR, kernel=4)
