"""What a flow's noise follows: densities of z (b, d) that can be sampled at a temperature, also given a label.

A temperature T multiplies the noise around its centre, z = mean + T sigma e. T = 1 draws the density; T < 1 stays
nearer to its middle, for pictures that look better than the model's own (Kingma, Dhariwal 2018, section 6).
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.nn.bijections import standard_normal_log_density, sum_dims

START_EXAMPLES = 10


class Base(nn.Module, ABC):
    """A density of noise z (b, d), nats per example; ``y`` (b,) is there only in a class-conditional flow."""

    @abstractmethod
    def log_prob(self, z: Float[Tensor, "b d"], y: Tensor | None = None) -> Float[Tensor, " b"]:
        """log p(z), or log p(z | y)."""

    @abstractmethod
    def from_noise(
        self, noise: Float[Tensor, "n d"], y: Tensor | None = None, *, temperature: float = 1.0
    ) -> Float[Tensor, "n d"]:
        """z from ``noise``, a draw of ``noise(n, dim)``."""

    def noise(self, n: int, dim: int, *, like: Tensor, generator: Generator | None = None) -> Float[Tensor, "n d"]:
        """n draws of the standardised noise, on the device and of the dtype of ``like``."""
        return torch.randn(n, dim, generator=generator, device=like.device, dtype=like.dtype)


class Gaussian(Base):
    """N(0, I)."""

    def log_prob(self, z: Float[Tensor, "b d"], y: Tensor | None = None) -> Float[Tensor, " b"]:
        """-1/2 |z|^2 - d/2 log 2 pi."""
        return standard_normal_log_density(z)

    def from_noise(
        self, noise: Float[Tensor, "n d"], y: Tensor | None = None, *, temperature: float = 1.0
    ) -> Float[Tensor, "n d"]:
        """T e."""
        return temperature * noise


class Logistic(Base):
    """Independent standard logistic variables: the density of each is sigmoid(z) sigmoid(-z)."""

    def log_prob(self, z: Float[Tensor, "b d"], y: Tensor | None = None) -> Float[Tensor, " b"]:
        """The sum of log sigmoid(z) + log sigmoid(-z)."""
        return sum_dims(F.logsigmoid(z) + F.logsigmoid(-z))

    def from_noise(
        self, noise: Float[Tensor, "n d"], y: Tensor | None = None, *, temperature: float = 1.0
    ) -> Float[Tensor, "n d"]:
        """T e."""
        return temperature * noise

    def noise(self, n: int, dim: int, *, like: Tensor, generator: Generator | None = None) -> Float[Tensor, "n d"]:
        """logit u with u uniform, away from 0 and 1 by the dtype's rounding."""
        u = torch.rand(n, dim, generator=generator, device=like.device, dtype=like.dtype)
        return torch.logit(u, eps=torch.finfo(like.dtype).eps)


class LearnedGaussian(Base):
    """N(0, I) but for the last dimensions of z, which have a learned mean and deviation, given the label or not.

    As the prior of Glow's last level: one mean and one deviation for each channel, the same at every position. With one
    position and as many channels as z has dimensions, all of z has its own. They start at 0 and 1, or at ``start``.

    Args:
        channels: of the last level.
        positions: pixels of the last level; its channels times positions are the last dimensions of z.
        num_classes: rows of the tables; 1 without labels.
    """

    def __init__(self, channels: int, positions: int, num_classes: int = 1) -> None:
        super().__init__()
        self.positions = positions
        self.mean = nn.Parameter(torch.zeros(num_classes, channels))
        self.log_sigma = nn.Parameter(torch.zeros(num_classes, channels))

    @torch.no_grad()
    def start(self, z: Float[Tensor, "b d"], y: Int[Tensor, " b"]) -> None:
        """Start each class at the moments of its z, shrunk towards 0 and 1 as by ``START_EXAMPLES`` more; one position.

        Left at 0 and 1, every class would begin as the same density, and steps of a learning rate would be long in
        parting them.
        """
        member = F.one_hot(y, len(self.mean)).to(z).T
        count = member.sum(1, keepdim=True) + START_EXAMPLES
        mean = member @ z / count
        squares = member @ (z - mean[y]).square() + START_EXAMPLES
        self.mean.copy_(mean)
        self.log_sigma.copy_(0.5 * (squares / count).log())

    def _moments(self, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log-deviation (b or 1, channels * positions)."""
        tables = (self.mean, self.log_sigma) if y is None else (self.mean[y], self.log_sigma[y])
        mean, log_sigma = (table.repeat_interleave(self.positions, 1) for table in tables)
        return mean, log_sigma

    def log_prob(self, z: Float[Tensor, "b d"], y: Tensor | None = None) -> Float[Tensor, " b"]:
        """The sum of log N(z_i; mean_i, sigma_i^2)."""
        mean, log_sigma = self._moments(y)
        size = mean.shape[1]
        plain, last = z[:, : z.shape[1] - size], z[:, z.shape[1] - size :]
        standard = torch.cat([plain, (last - mean) * (-log_sigma).exp()], 1)
        return standard_normal_log_density(standard) - log_sigma.sum(1)

    def from_noise(
        self, noise: Float[Tensor, "n d"], y: Tensor | None = None, *, temperature: float = 1.0
    ) -> Float[Tensor, "n d"]:
        """mean + T sigma e."""
        mean, log_sigma = self._moments(y)
        z = temperature * noise
        size = mean.shape[1]
        return torch.cat([z[:, : z.shape[1] - size], mean + log_sigma.exp() * z[:, z.shape[1] - size :]], 1)
