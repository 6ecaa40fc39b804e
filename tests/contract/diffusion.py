"""A small right diffusion model, whose weights over paths have the heavy tails that a sum over x must not fall for."""

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.contract import Logs, Model

LINE = DataSpec((1,), "real")


def log_normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log N(x; mean, variance), summed over the last dimension."""
    return (-0.5 * (x - mean) ** 2 / variance - 0.5 * (2 * math.pi * variance).log()).sum(-1)


class Diffusion(Model):
    """q(x_t | x_t-1) = N(sqrt(1 - beta_t) x_t-1, beta_t); p(x_t-1 | x_t) a Gaussian around what a network makes of x_t.

    Ho, Jain, Abbeel (2020), equations 2 to 12, in 100 steps. Real data are x_0 themselves; levels are put on [-1, 1],
    and p(x_0 | x_1) is a Gaussian on the levels, divided by its sum. ``log_weights`` are log p(x_0 ... x_T) -
    log q(x_1 ... x_T | x_0) of paths drawn from q.
    """

    def __init__(self, spec: DataSpec = LINE, *, steps: int = 100, width: int = 16) -> None:
        super().__init__(spec)
        self.steps = steps
        beta = torch.linspace(0.02, 0.1, self.steps)
        kept = (1 - beta).cumprod(0)  # alpha bar
        before = torch.cat([torch.ones(1), kept[:-1]])
        variance = beta * (1 - before) / (1 - kept)
        variance[0] = beta[0]
        for name, value in [("beta", beta), ("kept", kept), ("before", before), ("variance", variance)]:
            self.register_buffer(name, value)
        self.net = nn.Sequential(nn.Linear(spec.dim + 2, width), nn.Tanh(), nn.Linear(width, spec.dim))
        for p in self.net.parameters():
            nn.init.normal_(p, std=0.5)

    # --- x_0 on the scale of the diffusion, and what the network says -------------------------------------------------

    def scaled(self, x: Tensor) -> Tensor:
        """Raw values (..., *shape) as x_0, (..., dim)."""
        x = x.float().flatten(-len(self.spec.shape))
        return x if self.spec.levels is None else 2 * x / (self.spec.levels - 1) - 1

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's estimate of the noise in x_t (..., dim); t (...) counts from 0."""
        angle = 2 * math.pi * (t + 1) / self.steps / 4
        time = torch.stack([angle.sin(), angle.cos()], -1).expand(*x.shape[:-1], 2)
        return self.net(torch.cat([x, time], -1))

    def step_mean(self, x: Tensor, t: int) -> Tensor:
        """The mean of p(x_t-1 | x_t)."""
        noise = self.noise(x, torch.full((), t, dtype=x.dtype))
        return (x - self.beta[t] / (1 - self.kept[t]).sqrt() * noise) / (1 - self.beta[t]).sqrt()

    def log_observation(self, x0: Tensor, x1: Tensor) -> Tensor:
        """log p(x_0 | x_1)."""
        mean = self.step_mean(x1, 0)
        if self.spec.levels is None:
            return log_normal(x0, mean, self.variance[0])
        levels = self.scaled(torch.arange(self.spec.levels).reshape(-1, *[1] * len(self.spec.shape)))[:, 0]
        scores = -0.5 * (levels - mean[..., None]) ** 2 / self.variance[0]
        which = ((x0 + 1) / 2 * (self.spec.levels - 1)).round().long().expand(mean.shape)
        return scores.log_softmax(-1).gather(-1, which[..., None])[..., 0].sum(-1)

    def log_prior(self, x: Tensor) -> Tensor:
        """log p(x_T)."""
        return log_normal(x, torch.zeros(()), torch.ones(()))

    # --- capabilities -------------------------------------------------------------------------------------------------

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Tensor:
        x0 = self.scaled(x)
        last, log_w = x0.expand(k, *x0.shape), torch.zeros(k, len(x))
        for t in range(self.steps):
            mean, noise = (1 - self.beta[t]).sqrt() * last, torch.randn(last.shape, generator=generator)
            new = mean + self.beta[t].sqrt() * noise
            log_p = log_normal(last, self.step_mean(new, t), self.variance[t]) if t else self.log_observation(x0, new)
            log_w = log_w + log_p - log_normal(new, mean, self.beta[t])
            last = new
        return log_w + self.log_prior(last)

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The bound with every KL divergence in closed form, at one path of draws."""
        x0 = self.scaled(x)
        total = torch.zeros(len(x))
        for t in range(self.steps):
            noise = torch.randn(x0.shape, generator=generator)
            x_t = self.kept[t].sqrt() * x0 + (1 - self.kept[t]).sqrt() * noise
            if t == 0:
                total = total + self.log_observation(x0, x_t)
                continue
            posterior = (
                self.before[t].sqrt() * self.beta[t] * x0 + (1 - self.beta[t]).sqrt() * (1 - self.before[t]) * x_t
            ) / (1 - self.kept[t])
            total = total - ((posterior - self.step_mean(x_t, t)) ** 2).sum(1) / (2 * self.variance[t])
        mean, variance = self.kept[-1].sqrt() * x0, 1 - self.kept[-1]
        return total - 0.5 * (mean**2 + variance - 1 - variance.log()).sum(1)

    def first(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draws of x_1, (n, dim)."""
        x = torch.randn(n, self.spec.dim, generator=generator)
        for t in reversed(range(1, self.steps)):
            x = self.step_mean(x, t) + self.variance[t].sqrt() * torch.randn(x.shape, generator=generator)
        return x

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        x = self.first(n, generator)
        mean = self.step_mean(x, 0)
        if self.spec.levels is None:
            x = mean + self.variance[0].sqrt() * torch.randn(x.shape, generator=generator)
        else:
            levels = self.scaled(torch.arange(self.spec.levels).reshape(-1, *[1] * len(self.spec.shape)))[:, 0]
            p = (-0.5 * (levels - mean[..., None]) ** 2 / self.variance[0]).softmax(-1)
            x = torch.multinomial(p.flatten(0, 1), 1, generator=generator)
        return x.reshape(n, *self.spec.shape).to(self.spec.dtype)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        x0 = self.scaled(batch.x)
        t = torch.randint(self.steps, (len(x0),), generator=generator)
        noise, kept = torch.randn(x0.shape, generator=generator), self.kept[t, None]
        x_t = kept.sqrt() * x0 + (1 - kept).sqrt() * noise
        return F.mse_loss(self.noise(x_t, t.to(x0.dtype)), noise), {}
