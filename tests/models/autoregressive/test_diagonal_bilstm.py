"""Diagonal BiLSTM: all of the past by gradient and nothing else, and both recurrences written out pixel by pixel."""

import pytest
import torch

from dgmbench.data.spec import DataSpec
from dgmbench.models.autoregressive import diagonal_bilstm
from dgmbench.models.autoregressive.diagonal_bilstm import DiagonalBiLstm, DiagonalLayer, skew, unskew

from . import pixel_contexts as contexts


def bilstm(spec, **kwargs):
    torch.manual_seed(0)
    model = DiagonalBiLstm(spec, **{"features": 8, "head": 24, "kernel": 3, **kwargs}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
    return model


@pytest.mark.parametrize("shape", [(1, 4, 7), (1, 6, 3), (3, 3, 3), (1, 1, 5), (1, 4, 1)])
def test_full_context_by_gradient(shape):
    """One layer: every pixel and channel sees each dimension before it, also the last pixel of the row above."""
    seen = contexts.by_gradient(bilstm(DataSpec(shape, "discrete", 3), layers=1))
    assert torch.equal(seen, contexts.before(shape))


def test_a_shift_at_the_wrong_end_leaks(monkeypatch):
    """The second LSTM's map moved up by a row in place of down: the test above sees it."""
    pad = torch.nn.functional.pad
    wrong = lambda x, widths: pad(x, (0, 0, -1, 1) if widths == (0, 0, 1, -1) else widths)
    monkeypatch.setattr(diagonal_bilstm.F, "pad", wrong)
    shape = (1, 4, 4)
    seen = contexts.by_gradient(bilstm(DataSpec(shape, "binary"), layers=1))
    assert (seen & ~contexts.before(shape)).any()


def test_skew_by_hand_and_back():
    x = torch.arange(1.0, 7.0).reshape(2, 3)
    assert skew(x).tolist() == [[1, 2, 3, 0], [0, 4, 5, 6]]
    x = torch.randn(2, 5, 4, 3)
    assert torch.equal(unskew(skew(x)), x)


@torch.no_grad()
def test_the_recurrences_pixel_by_pixel():
    torch.manual_seed(1)
    b, height, width, units = 2, 3, 4, 3
    layer = DiagonalLayer(units, 1).double()
    x, image = torch.randn(b, 6, height, width).double(), torch.randn(b, 1, height, width).double()
    maps = []
    for direction, gates_of_input in ((1, layer.from_left(x)), (-1, layer.from_right(torch.cat((x, image), 1)))):
        weight = layer.state_to_state[0 if direction == 1 else 1]
        h, c, zero = {}, {}, torch.zeros(b, units).double()
        for row in range(height):
            for column in range(width)[::direction]:
                beside = (row, column - direction)
                both = torch.cat((h.get(beside, zero), h.get((row - 1, column), zero)), 1)
                o, f, i, g = (gates_of_input[:, :, row, column] + both @ weight).chunk(4, 1)
                c[row, column] = f.sigmoid() * c.get(beside, zero) + i.sigmoid() * g.tanh()
                h[row, column] = o.sigmoid() * c[row, column].tanh()
        maps.append(h)
    left, right = maps
    total = torch.zeros(b, units, height, width).double()
    for row in range(height):
        for column in range(width):
            total[:, :, row, column] = left[row, column] + (right[row - 1, column] if row > 0 else 0)
    assert torch.allclose(layer(x, image), x + layer.up(total), rtol=1e-10)
