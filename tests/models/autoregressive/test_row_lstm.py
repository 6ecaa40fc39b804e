"""Row LSTM: the triangular context by gradient, and the recurrence written out pixel by pixel."""

import pytest
import torch

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.row_lstm import RowLstm, RowLstmLayer

from . import pixel_contexts as contexts


def row_lstm(spec, **kwargs):
    torch.manual_seed(0)
    model = RowLstm(spec, **{"features": 8, "head": 24, **kwargs}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
    return model


def row_context(shape, half, layers):
    everything = range(shape[0])
    maps = contexts.masked_conv(contexts.image(shape), half, "A")
    for _ in range(layers):
        own = maps.build(lambda y, x, k: [(y, x - 1, everything), (y, x, range(k + 1))])
        state = own
        for _ in range(shape[1]):  # a row's state sees three pixels of the state above
            state = own | state.build(lambda y, x, k: [(y - 1, x + dx, everything) for dx in contexts.BESIDE])
        maps = maps | state
    return maps.table()


@pytest.mark.parametrize(("shape", "layers"), [((1, 4, 9), 1), ((1, 3, 7), 2), ((3, 3, 5), 1)])
def test_triangular_context_by_gradient(shape, layers):
    """For every pixel and channel: exactly the triangle that widens by one pixel a row, and nothing else."""
    seen = contexts.by_gradient(row_lstm(DataSpec(shape, "discrete", 3), layers=layers, kernel=3))
    assert torch.equal(seen, row_context(shape, 1, layers))
    missed = contexts.before(shape) & ~seen
    assert missed.any(), "on wide images a triangle is not all of the past"


def test_one_layer_sees_a_triangle():
    """By hand, for the pixel in the middle of the last row."""
    shape, y, x = (1, 4, 13), 3, 6
    seen = contexts.by_gradient(row_lstm(DataSpec(shape, "binary"), layers=1, kernel=3))[y * 13 + x].reshape(4, 13)
    # the first convolution adds one pixel on either side; the input-to-state kernel one more to the left
    for row, (left, right) in enumerate([(x - 5, x + 3), (x - 4, x + 2), (x - 3, x + 1), (x - 2, x - 1)]):
        assert seen[row].nonzero()[:, 0].tolist() == list(range(left, right + 1))


@torch.no_grad()
def test_the_recurrence_pixel_by_pixel():
    torch.manual_seed(1)
    layer = RowLstmLayer(3, 3, 1).double()
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    gates_of_input = layer.input_to_state(x)
    weight = layer.state_to_state.weight  # (4 h, h, 3)
    h, c = (torch.zeros(2, 3, 4, 5, dtype=torch.float64) for _ in range(2))
    for row in range(4):
        for column in range(5):
            gates = gates_of_input[:, :, row, column].clone()
            for tap in range(3):
                if row > 0 and 0 <= column + tap - 1 < 5:
                    gates += h[:, :, row - 1, column + tap - 1] @ weight[:, :, tap].T
            o, f, i, g = gates[:, 0:3], gates[:, 3:6], gates[:, 6:9], gates[:, 9:12]
            above = c[:, :, row - 1, column] if row > 0 else torch.zeros(2, 3, dtype=torch.float64)
            c[:, :, row, column] = f.sigmoid() * above + i.sigmoid() * g.tanh()
            h[:, :, row, column] = o.sigmoid() * c[:, :, row, column].tanh()
    assert torch.allclose(layer(x, None), x + layer.up(h), rtol=1e-10)


def test_an_even_kernel_is_refused():
    with pytest.raises(UserError, match=r"model.state_kernel=2 must be odd"):
        RowLstm(DataSpec((1, 4, 4), "binary"), state_kernel=2)
