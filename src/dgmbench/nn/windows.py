r"""Windows of Gaussian filters: a grid of N x N places, of any distance and sharpness, to read from and write to.

Of a picture of A x B pixels (A columns, B rows, counted from 1), five numbers say where a window is:

    g_X = (A + 1) / 2 (g~_X + 1),    g_Y = (B + 1) / 2 (g~_Y + 1),    delta = (max(A, B) - 1) / (N - 1) exp(log delta~),
    mu_X^i = g_X + (i - N/2 - 1/2) delta,    F_X[i, a] = exp(-(a - mu_X^i)^2 / (2 sigma^2)) / Z_X^i,    likewise F_Y,
    read(x) = gamma F_Y x F_X^T,      write(w) = F_Y^T w F_X / gamma.

Every row of a filterbank sums to 1; write is the adjoint of read, up to the intensity gamma.

Paper: Gregor, Danihelka, Graves, Rezende, Wierstra, "DRAW: A Recurrent Neural Network For Image Generation", ICML 2015,
https://arxiv.org/abs/1502.04623.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

PARAMETERS = 5
"""Numbers that say where a window is: g~_X, g~_Y, log sigma^2, log delta~, log gamma."""


class Window(NamedTuple):
    """A window for each of n pictures."""

    columns: Float[Tensor, "n size width"]
    """F_X."""
    rows: Float[Tensor, "n size height"]
    """F_Y."""
    intensity: Float[Tensor, " n"]
    centre: Float[Tensor, "n 2"]
    """(g_X, g_Y), in pixels counted from 1."""

    def read(self, x: Float[Tensor, "n c height width"]) -> Float[Tensor, "n c size size"]:
        """The picture at the window's places."""
        seen = self.rows[:, None] @ x @ self.columns.mT[:, None]
        return self.intensity.view(-1, 1, 1, 1) * seen

    def write(self, patch: Float[Tensor, "n c size size"]) -> Float[Tensor, "n c height width"]:
        """A picture that holds the patch at the window's places."""
        return self.rows.mT[:, None] @ patch @ self.columns[:, None] / self.intensity.view(-1, 1, 1, 1)

    def inside(self) -> Float[Tensor, "n 4"]:
        """The pixels between those that the outermost filters look at: left, top, right, bottom, counted from 0.

        ``nn.regions.framed`` puts its frame on the pixels that these filters look at on average.
        """
        across, down = (each @ torch.arange(1, each.shape[2] + 1).to(each) for each in (self.columns, self.rows))
        return torch.stack([across[:, 0], down[:, 0], across[:, -1] - 1, down[:, -1] - 1], 1)


def window(parameters: Float[Tensor, "n 5"], size: int, height: int, width: int) -> Window:
    """The windows of ``size`` x ``size`` places, at least 2, that the parameters say."""
    across, down, log_variance, log_delta, log_gamma = parameters.unbind(1)
    centre = torch.stack([0.5 * (width + 1) * (across + 1), 0.5 * (height + 1) * (down + 1)], 1)
    delta = (max(height, width) - 1) / (size - 1) * log_delta.exp()
    columns, rows = (
        filterbank(centre[:, axis], delta, log_variance, size, length) for axis, length in enumerate((width, height))
    )
    return Window(columns, rows, log_gamma.exp(), centre)


def filterbank(
    centre: Float[Tensor, " n"], delta: Float[Tensor, " n"], log_variance: Float[Tensor, " n"], size: int, length: int
) -> Float[Tensor, "n size length"]:
    """The filters along one side; a filter far outside the picture looks at its nearest pixel."""
    places = torch.arange(1, size + 1, device=centre.device, dtype=centre.dtype) - 0.5 * size - 0.5
    mean = centre[:, None] + places * delta[:, None]
    pixels = torch.arange(1, length + 1, device=centre.device, dtype=centre.dtype)
    squared = (pixels - mean[..., None]).square()
    return torch.softmax(-0.5 * squared * torch.exp(-log_variance)[:, None, None], -1)
