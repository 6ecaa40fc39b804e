"""PixelCNN: contexts by gradient, the blind spot, and labels."""

import pytest
import torch

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.pixelcnn import PixelCnn
from dgmbench.verify.check import chi_squared
from dgmbench.verify.support import all_states, state_index

from . import pixel_contexts as contexts

LABELLED = DataSpec((1, 2, 3), "binary", num_classes=3)


def pixelcnn(spec, *, gain=1.5, **kwargs):
    torch.manual_seed(0)
    model = PixelCnn(spec, **{"features": 24, "head": 24, **kwargs}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(gain)
    return model


def plain_context(shape, half, blocks):
    maps = contexts.masked_conv(contexts.image(shape), half, "A")
    for _ in range(blocks):
        maps = maps | contexts.masked_conv(maps, 1, "B")
    return maps.table()


def gated_context(shape, half, layers):
    everything = range(shape[0])
    vertical = horizontal = contexts.image(shape)
    for layer in range(layers + 1):
        reach = half if layer == 0 else 1
        rows = range(-reach, 0 if layer == 0 else 1)
        above = vertical.build(
            lambda y, x, k, rows=rows, reach=reach: (
                (y + dy, x + dx, everything) for dy in rows for dx in range(-reach, reach + 1)
            )
        )
        own = horizontal.build(
            lambda y, x, k, reach=reach, layer=layer: [
                *((y, x + dx, everything) for dx in range(-reach, 0)),
                (y, x, range(k + (layer > 0))),
            ]
        )
        vertical, horizontal = above, own | above
    return horizontal.table()


@pytest.mark.parametrize(("shape", "kernel", "blocks"), [((1, 5, 7), 3, 2), ((3, 3, 4), 3, 1), ((2, 4, 5), 5, 1)])
def test_context_by_gradient(shape, kernel, blocks):
    """For every pixel and channel: exactly what the masks of the layers, one after another, let through."""
    spec = DataSpec(shape, "discrete", 3)
    plain = contexts.by_gradient(pixelcnn(spec, kernel=kernel, blocks=blocks))
    assert torch.equal(plain, plain_context(shape, kernel // 2, blocks))
    gated = contexts.by_gradient(pixelcnn(spec, kernel=kernel, blocks=blocks, gated=True))
    assert torch.equal(gated, gated_context(shape, kernel // 2, blocks))


def test_only_the_plain_variant_has_a_blind_spot():
    shape = (1, 5, 6)
    past = contexts.before(shape)
    plain = contexts.by_gradient(pixelcnn(DataSpec(shape, "binary"), kernel=3, blocks=6))
    gated = contexts.by_gradient(pixelcnn(DataSpec(shape, "binary"), kernel=3, blocks=6, gated=True))
    assert torch.equal(gated, past), "with layers enough the gated variant sees all of the past"
    blind = past & ~plain
    y, x = 3, 1
    pixel = y * 6 + x
    wedge = [row * 6 + column for row in range(y) for column in range(6) if column - x > y - row]
    assert blind[pixel].nonzero()[:, 0].tolist() == wedge, "what lies right of the diagonal through the pixel"


@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_labels(gated):
    """p(x | y) sums to one for each y and differs between them; the marginal is the mixture; samples follow."""
    model = pixelcnn(LABELLED, gated=gated, conditional=True, blocks=1, kernel=3)
    g = torch.Generator().manual_seed(0)
    x = all_states(6, 2, torch.uint8).reshape(-1, *LABELLED.shape)
    y = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    model.initialise(Batch(x[:10], y), g)
    each = torch.stack([model.log_prob(x, torch.full((64,), label)) for label in range(3)])
    assert torch.allclose(each.logsumexp(1), torch.zeros(3, dtype=torch.float64), atol=1e-10)
    assert (each[0] - each[1]).abs().max() > 0.05
    prior = torch.tensor([6.0, 4.0, 3.0]).double() / 13
    assert torch.allclose(model.log_prob(x).exp(), prior @ each.exp(), rtol=1e-6)
    drawn = model.sample(4000, torch.full((4000,), 1), generator=g)
    counts = torch.bincount(state_index(drawn.flatten(1), 2), minlength=64)
    assert chi_squared(counts, each[1].exp()) > 1e-4
    assert chi_squared(counts, each[0].exp()) < 1e-4, "the label should matter for this test to mean something"


@pytest.mark.parametrize("spec", [LABELLED, DataSpec((2, 2, 1), "discrete", 3, num_classes=3)], ids=str)
@torch.no_grad()
def test_marginal_conditionals_multiply_to_the_marginal(spec):
    model = pixelcnn(spec, conditional=True, blocks=1, kernel=3)
    model.class_log_prior.copy_(torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log())
    x = all_states(spec.dim, spec.levels, torch.uint8).reshape(-1, *spec.shape)
    parameters = model.conditional_logits(x)
    values = x.flatten(1).long()
    if spec.kind == "binary":
        each = torch.where(values == 1, parameters[..., 0], -parameters[..., 0]).sigmoid().log()
    else:
        each = parameters.softmax(2).gather(2, values[..., None])[..., 0].log()
    assert torch.allclose(each.sum(1), model.log_prob(x), rtol=1e-9)


@torch.no_grad()
def test_completion_draws_the_label_that_the_known_part_suggests():
    model, n = pixelcnn(LABELLED, conditional=True, blocks=1, kernel=3), 8000
    model.net.blocks[0].label.weight.mul_(5.0)  # labels that matter
    model.class_log_prior.copy_(torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log())
    x = all_states(6, 2, torch.uint8).reshape(-1, *LABELLED.shape)
    known = torch.zeros(LABELLED.shape, dtype=torch.bool)
    known[:, 0] = True
    agree = (x[:, 0, 0] == torch.tensor([1, 0, 1])).all(1)
    p = torch.where(agree, model.log_prob(x).exp(), 0)
    each = torch.stack([torch.where(agree, model.log_prob(x, torch.full((64,), k)).exp(), 0) for k in range(3)])
    labels_from_the_prior = model.class_log_prior.exp() @ (each / each.sum(1, keepdim=True))
    start = torch.tensor([[[1, 0, 1], [0, 0, 0]]], dtype=torch.uint8).expand(n, *LABELLED.shape)
    known = known.expand(n, *LABELLED.shape)
    done = model.complete(start, known, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(state_index(done.flatten(1), 2), minlength=64)
    assert chi_squared(counts, p / p.sum()) > 1e-4
    assert chi_squared(counts, labels_from_the_prior) < 1e-4, "the known part should tell something of the label"


def test_labels_are_needed():
    with pytest.raises(UserError, match="needs data with labels"):
        PixelCnn(DataSpec((1, 4, 4), "binary"), conditional=True)
    model = pixelcnn(LABELLED, conditional=True, blocks=1)
    with pytest.raises(UserError, match="needs labels with every batch"):
        model.loss("model", Batch(torch.zeros(2, *LABELLED.shape, dtype=torch.uint8)), torch.Generator())
