"""Priors of codes that are drawn from and never evaluated, for models that match codes to them; each has K parts.

    gaussian    N(0, I) in any number of dimensions; its parts are all the same
    mixture     K Gaussians in the plane on a circle of radius 2, long (sigma 0.5) outwards and narrow (0.1) across
    swiss_roll  a spiral of two turns in the plane, radius 3 at its end, cut into K pieces of equal mass

The shapes are those of Makhzani et al. 2016, https://arxiv.org/abs/1511.05644 (figures 2 and 4).
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.errors import UserError

PriorName = Literal["gaussian", "mixture", "swiss_roll"]


class CodePrior:
    """One of the priors by its name.

    Args:
        name: Which one.
        latent: Dimensions of the codes.
        parts: K.
    """

    def __init__(self, name: PriorName, *, latent: int, parts: int) -> None:
        if name not in ("gaussian", "mixture", "swiss_roll"):
            raise UserError(f"model.prior must be gaussian, mixture or swiss_roll, not {name!r}.")
        if name != "gaussian" and latent != 2:
            raise UserError(f"model.prior={name} lies in the plane; set model.latent=2, not {latent}.")
        self.name, self.latent, self.parts = name, latent, parts

    def draw(self, part: Tensor, generator: Generator | None, dtype: torch.dtype) -> Float[Tensor, "n z"]:
        """A draw from each part (n,), numbers from 0."""
        settings: dict[str, Any] = {"generator": generator, "device": part.device, "dtype": dtype}
        n = len(part)
        if self.name == "swiss_roll":
            along = ((part + torch.rand(n, **settings)) / self.parts).sqrt()
            angle, radius = 4 * math.pi * along, 3 * along
            return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
        noise = torch.randn(n, self.latent, **settings)
        if self.name == "gaussian":
            return noise
        outwards, across = 2 + 0.5 * noise[:, 0], 0.1 * noise[:, 1]
        angle = 2 * math.pi * part.to(dtype) / self.parts
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([outwards * cos - across * sin, outwards * sin + across * cos], 1)
