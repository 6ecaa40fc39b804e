"""A generator driven by styles: what each layer's maps look like is set by a vector w, details by noise.

A mapping network turns latents z into styles w. The synthesis starts from a learned constant; each of its layers is a
convolution (but for the first), noise with a learned strength for each map, a bias and leaky ReLU, and then *adaptive
instance normalisation*, by which the layer's own style (y_s, y_b) = A w sets standard deviation and mean of every map:

    AdaIN(h, y) = (1 + y_s) (h - mean(h)) / sqrt(var(h) + 1e-8) + y_b,     moments over the positions of a map

Paper: Karras, Laine, Aila 2019, https://arxiv.org/abs/1812.04948 (section 2, figure 1).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.nn.adversarial_growing import faded, rectified
from dgmbench.nn.equalised import EqualisedConv2d, EqualisedLinear, pixel_norm


def adaptive_instance_norm(h: Float[Tensor, "b c h w"], style: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
    """AdaIN(h, y) with y = (y_s, y_b) (b, 2 c)."""
    scale, shift = style[:, :, None, None].chunk(2, 1)
    variance, mean = torch.var_mean(h, (2, 3), correction=0, keepdim=True)
    return (1 + scale) * (h - mean) * torch.rsqrt(variance + 1e-8) + shift


class Mapping(nn.Module):
    """z (b, latent), put on a sphere, -> w (b, latent): equalised linear layers with leaky ReLU."""

    def __init__(self, latent: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EqualisedLinear(latent, latent) for _ in range(layers))

    def forward(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, "b latent"]:
        """The styles of latents."""
        w = pixel_norm(z)
        for layer in self.layers:
            w = rectified(layer(w))
        return w


class StyledLayer(nn.Module):
    """[convolution] + noise and bias, leaky ReLU, AdaIN: maps (b, before, s, s) -> (b, after, s, s)."""

    def __init__(self, before: int, after: int, *, latent: int, convolves: bool = True) -> None:
        super().__init__()
        self.conv = EqualisedConv2d(before, after, 3) if convolves else None
        self.bias = None if convolves else nn.Parameter(torch.zeros(after, 1, 1))
        self.strength = nn.Parameter(torch.zeros(after, 1, 1))
        self.style = EqualisedLinear(latent, 2 * after, gain=1.0)

    def forward(
        self, h: Float[Tensor, "b i s s"], w: Float[Tensor, "b latent"], noise: Float[Tensor, "b 1 s s"]
    ) -> Float[Tensor, "b o s s"]:
        """The layer's maps in style w."""
        h = h if self.conv is None else self.conv(h)
        h = h if self.bias is None else h + self.bias
        return adaptive_instance_norm(rectified(h + self.strength * noise), self.style(w))


class StyledGenerator(nn.Module):
    """Styles (b, layers, latent) and noise -> scaled images, at every side: two layers each (``adversarial_growing``).

    ``layers`` is how many there are at the largest side. Sides are doubled by bilinear interpolation, which is the
    paper's filter.
    """

    def __init__(self, images: int, sides: Sequence[int], maps: Sequence[int], *, latent: int) -> None:
        super().__init__()
        self.layers = 2 * len(sides)
        self.planes = [side for side in sides for _ in range(2)]
        self.noise_dim = sum(side**2 for side in self.planes)
        self.constant = nn.Parameter(torch.ones(maps[0], sides[0], sides[0]))
        widths = [n for n in maps for _ in range(2)]
        self.styled = nn.ModuleList(
            StyledLayer(before, after, latent=latent, convolves=k > 0)
            for k, (before, after) in enumerate(zip([maps[0], *widths], widths, strict=False))
        )
        self.to_images = nn.ModuleList(EqualisedConv2d(n, images, 1, gain=1.0) for n in maps)

    def forward(
        self, w: Float[Tensor, "b layers latent"], noise: Float[Tensor, "b noise_dim"], level: int, alpha: float
    ) -> Float[Tensor, "b c h w"]:
        """Images at the side of ``level``; noise of the layers above it is not looked at."""
        pieces = noise.split([side**2 for side in self.planes], 1)
        h = self.constant.expand(len(w), -1, -1, -1)
        before = h
        for k, side in enumerate(self.planes[: 2 * level + 2]):
            if k and k % 2 == 0:
                before, h = h, F.interpolate(h, scale_factor=2.0, mode="bilinear")
            h = self.styled[k](h, w[:, k], pieces[k].view(-1, 1, side, side))
        return faded(self.to_images, before, h, level, alpha)
