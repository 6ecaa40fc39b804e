r"""How like two images are, each pair by itself: PSNR and SSIM of values scaled to [0, 1]."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dgmbench.errors import UserError

CAP = 100.0  # dB, for images that agree to ten digits: equal ones would be infinitely alike
WINDOW, SIGMA = 11, 1.5  # the Gaussian window of Wang et al. 2004
K1, K2 = 0.01, 0.03  # their stabilising constants


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio -10 log10(mean squared error) of each pair a, b (n, ...), in dB, at most ``CAP``."""
    error = (a.double() - b.double()).flatten(1).square().mean(1)
    return -10 * error.clamp_min(10 ** (-CAP / 10)).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each pair of images a, b (n, c, h, w) in [0, 1], as (n,).

    Means over the positions where the Gaussian window lies inside the image, and over channels. Images smaller than the
    window of 11 pixels have it cut to the largest odd size that fits.
    """
    if a.ndim != 4 or a.shape != b.shape:
        raise UserError(f"SSIM compares images (n, c, h, w) of one size, not {tuple(a.shape)} with {tuple(b.shape)}.")
    fits = min(WINDOW, *a.shape[-2:])
    size = fits if fits % 2 else fits - 1
    x = torch.arange(size, dtype=torch.float64, device=a.device) - size // 2
    line = torch.exp(-0.5 * (x / SIGMA).square())
    line = line / line.sum()
    channels = a.shape[1]
    window = torch.outer(line, line).expand(channels, 1, size, size)

    def mean(image: Tensor) -> Tensor:
        return F.conv2d(image, window, groups=channels)

    a, b = a.double(), b.double()
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    cov = mean(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    value = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return value.flatten(1).mean(1)
