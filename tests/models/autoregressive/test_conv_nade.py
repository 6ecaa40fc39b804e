"""ConvNADE: what is its own; what all orderless models share is in test_orderless.py."""

import pytest
import torch

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.conv_nade import ConvNade


def test_channels_and_pixels_keep_their_places():
    """A network of one 1x1 convolution gives pixel (c, i, j) what depends on that pixel's own channels only."""
    torch.manual_seed(0)
    spec = DataSpec((2, 3, 4), "discrete", 5)
    model = ConvNade(spec, channels=4, depth=1, kernel=1, hidden_sizes=()).double()
    values = torch.rand(1, 24, dtype=torch.float64)
    known = torch.ones(1, 24, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: model.parameters_given(v, known)[0].sum(-1), values.float())
    depends = (jacobian[:, 0] != 0).view(2, 12, 2, 12)
    assert torch.equal(depends.any(0).any(1), torch.eye(12, dtype=torch.bool))
    own = model.conv[2].weight[:, :, 0, 0].view(2, 5, 4)
    hidden = model.conv[1](model.conv[0](torch.cat((values, known), 1).view(1, 4, 3, 4)))
    expected = torch.einsum("cpk,kij->cijp", own, hidden[0]).reshape(24, 5)
    assert torch.allclose(model.parameters_given(values, known)[0], expected, rtol=1e-10)


def test_the_mask_is_a_channel():
    torch.manual_seed(0)
    model = ConvNade(DataSpec((1, 4, 4), "binary"), channels=4, depth=1, hidden_sizes=())
    known = torch.zeros(1, 16)
    known[0, 5] = 1
    difference = model.parameters_given(torch.zeros(1, 16), known) - model.parameters_given(
        torch.zeros(1, 16), torch.zeros(1, 16)
    )
    seen = difference[0, :, 0].view(4, 4) != 0
    assert seen[1, 1]
    assert seen.all(), "two 3x3 convolutions reach from (1, 1) all over 4x4"


@pytest.mark.parametrize(
    ("shape", "kernel", "depth", "hidden_sizes"),
    [((1, 6, 7), 3, 1, (5,)), ((2, 9, 8), 3, 2, ()), ((3, 5, 4), 1, 3, (4, 6)), ((1, 13, 12), 5, 1, (3,))],
)
def test_one_pixel_is_computed_from_its_surroundings(shape, kernel, depth, hidden_sizes):
    """At every place, edges and corners among them, what the whole image gives it."""
    torch.manual_seed(0)
    spec = DataSpec(shape, "discrete", 3)
    model = ConvNade(spec, channels=4, depth=depth, kernel=kernel, hidden_sizes=hidden_sizes).double()
    torch.nn.init.normal_(model.out_bias)
    assert model.local
    which = torch.arange(spec.dim)
    known = (torch.rand(spec.dim, spec.dim) < 0.5).double()
    values = torch.rand(spec.dim, spec.dim).double() * known
    whole = model.parameters_given(values, known)[which, which]
    assert torch.allclose(model.parameters_of(values, known, which), whole, rtol=1e-10, atol=1e-12)


def test_evaluation_is_bounded_by_the_size_of_its_layers():
    small, far, near = (
        ConvNade(DataSpec((1, side, side), "binary"), channels=64, depth=depth, hidden_sizes=())
        for side, depth in ((4, 1), (64, 40), (64, 1))
    )
    assert small.rows == 8192
    assert not far.local
    assert far.rows * 64 * 64 * 64 <= 2**24
    assert near.local
    assert far.rows < near.rows <= 2**24 / (2 * 64 * 64)


@pytest.mark.parametrize(
    ("spec", "kwargs", "sentence"),
    [
        (DataSpec((4,), "binary"), {}, "images"),
        (DataSpec((1, 4, 4), "real"), {}, "images"),
        (DataSpec((1, 4, 4), "binary"), {"kernel": 2}, "odd"),
        (DataSpec((1, 4, 4), "binary"), {"channels": 0}, "channels=0"),
    ],
)
def test_wrong_arguments_are_explained(spec, kwargs, sentence):
    with pytest.raises(UserError, match=sentence):
        ConvNade(spec, **kwargs)


@torch.no_grad()
def test_both_networks_see_the_mask():
    """A zero that is known is told from a zero that is not, also by each of the two networks alone."""
    torch.manual_seed(0)
    model = ConvNade(DataSpec((1, 2, 3), "binary"), channels=4, depth=1, hidden_sizes=(5,))
    values, none, all_of_it = torch.zeros(1, 6), torch.zeros(1, 6), torch.ones(1, 6)
    for silent in (model.conv[-1], model.full[-1]):
        kept = silent.weight.clone()
        silent.weight.zero_()
        told = (model.parameters_given(values, all_of_it) - model.parameters_given(values, none)).abs()
        assert (told > 1e-4).any()
        silent.weight.copy_(kept)
