"""Windows by the formulas of the paper, on ramps, and as adjoints of each other."""

import math

import torch
from torch import Generator

from dgmbench.nn.regions import framed
from dgmbench.nn.windows import filterbank, window


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_rows_of_a_filterbank_sum_to_1_wherever_the_window_is() -> None:
    parameters = 3 * torch.randn(50, 5, generator=seeded(), dtype=torch.float64)
    at = window(parameters, 4, 7, 12)
    assert at.rows.shape == (50, 4, 7)
    assert at.columns.shape == (50, 4, 12)
    for bank in (at.rows, at.columns):
        torch.testing.assert_close(bank.sum(2), torch.ones(50, 4, dtype=torch.float64))


def test_filters_by_hand() -> None:
    """N = 3 on 9 x 5 pixels: centres from g and delta of the paper's equations, Gaussians around them."""
    across, down, log_variance, log_delta, log_gamma = 0.2, -0.4, math.log(1.7), math.log(0.5), math.log(2.5)
    at = window(torch.tensor([[across, down, log_variance, log_delta, log_gamma]], dtype=torch.float64), 3, 5, 9)
    g_x, g_y, delta = 5.0 * 1.2, 3.0 * 0.6, 8 / 2 * 0.5
    torch.testing.assert_close(at.centre, torch.tensor([[g_x, g_y]], dtype=torch.float64))
    assert at.intensity.item() == 2.5
    for bank, g, length in ((at.columns, g_x, 9), (at.rows, g_y, 5)):
        for i in range(1, 4):
            mu = g + (i - 3 / 2 - 0.5) * delta
            raw = [math.exp(-((a - mu) ** 2) / (2 * 1.7)) for a in range(1, length + 1)]
            wanted = torch.tensor([r / sum(raw) for r in raw], dtype=torch.float64)
            torch.testing.assert_close(bank[0, i - 1], wanted)


def test_a_ramp_is_read_as_its_value_at_the_grid_centres() -> None:
    """Narrow enough not to feel the border, wide enough that pixels do not show: the mean of a filter is its centre."""
    rows, columns = torch.meshgrid(torch.arange(1.0, 31.0), torch.arange(1.0, 41.0), indexing="ij")
    ramp = (2.0 * rows - 3.0 * columns + 1.0).double()[None, None]
    parameters = torch.tensor([[0.1, -0.05, 0.0, math.log(0.3), math.log(1.5)]], dtype=torch.float64)
    at = window(parameters, 4, 30, 40)
    delta = 39 / 3 * 0.3
    places = (torch.arange(1, 5) - 2.5) * delta
    g_x, g_y = 20.5 * 1.1, 15.5 * 0.95
    wanted = 1.5 * (2 * (g_y + places)[:, None] - 3 * (g_x + places) + 1)
    torch.testing.assert_close(at.read(ramp)[0, 0], wanted.double(), atol=1e-5, rtol=1e-6)


def test_write_is_the_adjoint_of_read_up_to_the_intensity() -> None:
    g = seeded()
    at = window(torch.randn(6, 5, generator=g, dtype=torch.float64), 3, 7, 5)
    x = torch.randn(6, 2, 7, 5, generator=g, dtype=torch.float64)
    patch = torch.randn(6, 2, 3, 3, generator=g, dtype=torch.float64)
    read = (at.read(x) * patch).sum((1, 2, 3)) / at.intensity
    write = (x * at.write(patch)).sum((1, 2, 3)) * at.intensity
    torch.testing.assert_close(read, write)


def test_a_filter_far_outside_looks_at_the_nearest_pixel() -> None:
    bank = filterbank(torch.tensor([1e4]), torch.tensor([1.0]), torch.tensor([-3.0]), 2, 8)
    assert torch.equal(bank, torch.tensor([[[0.0] * 7 + [1.0]] * 2]))


def test_a_frame_lies_on_the_pixels_of_the_outermost_filters() -> None:
    """Narrow filters at columns 3, 5, 7 and rows 2, 4, 6 of 9 x 7, counted from 1."""
    parameters = torch.tensor([[0.0, 0.0, math.log(1e-3), math.log(0.5), 0.0]], dtype=torch.float64)
    at = window(parameters, 3, 7, 9)
    torch.testing.assert_close(at.inside(), torch.tensor([[3.0, 2.0, 6.0, 5.0]], dtype=torch.float64))
    found = framed(torch.zeros(1, 1, 7, 9), at.inside(), 1.0)[0, 0].bool()
    wanted = torch.zeros(7, 9, dtype=torch.bool)
    wanted[1:6, 2:7] = True
    wanted[2:5, 3:6] = False
    assert torch.equal(found, wanted)
