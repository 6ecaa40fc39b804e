"""The four energies of Rezende and Mohamed 2015 (table 1), their log Z by quadrature, and flows fitted to them."""

import math

import torch
from torch import Tensor, nn

from dgmbench.models.vae.vae import PosteriorFlow


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def energies(z: Tensor) -> Tensor:
    """U_1 ... U_4 of z (..., 2), as (..., 4); U_2 ... U_4 with a wall at |z_1| = 4, else exp(-U) has no integral."""
    a, b = z.unbind(-1)
    w1 = torch.sin(2 * math.pi * a / 4)
    w2 = 3 * torch.exp(-0.5 * ((a - 1) / 0.6) ** 2)
    w3 = 3 * torch.sigmoid((a - 1) / 0.3)
    wall = 0.5 * ((a.abs() - 4).clamp(min=0) / 0.2) ** 2
    ring = 0.5 * ((z.norm(dim=-1) - 2) / 0.4) ** 2
    u1 = ring - torch.logaddexp(-0.5 * ((a - 2) / 0.6) ** 2, -0.5 * ((a + 2) / 0.6) ** 2)
    u2 = 0.5 * ((b - w1) / 0.4) ** 2
    u3 = -torch.logaddexp(-0.5 * ((b - w1) / 0.35) ** 2, -0.5 * ((b - w1 + w2) / 0.35) ** 2)
    u4 = -torch.logaddexp(-0.5 * ((b - w1) / 0.4) ** 2, -0.5 * ((b - w1 + w3) / 0.35) ** 2)
    return torch.stack([u1, u2 + wall, u3 + wall, u4 + wall], -1)


def log_partition() -> Tensor:
    axis = torch.linspace(-8, 8, 801, dtype=torch.float64)
    return (-energies(torch.cartesian_prod(axis, axis))).logsumexp(0) + 2 * math.log(16 / 800)


def divergences(flow: PosteriorFlow, *, updates: int) -> tuple[Tensor, Tensor]:
    """KL(q || exp(-U) / Z) of a flow fitted to each of the four energies at once, and its standard error."""
    torch.manual_seed(0)
    context, mean = nn.Parameter(0.3 * torch.randn(4, flow.context)), nn.Parameter(torch.zeros(4, 2))
    log_sigma, draws = nn.Parameter(torch.zeros(4, 2)), generator(1)
    optimiser = torch.optim.Adam([context, mean, log_sigma], lr=0.03)

    def free_energy(n: int, beta: float) -> Tensor:
        noise = torch.randn(n, 4, 2, generator=draws)
        z, log_det = flow(mean + log_sigma.exp() * noise, context)
        log_q = (-0.5 * noise.square() - log_sigma).sum(-1) - math.log(2 * math.pi) - log_det[..., 0]
        return log_q + beta * energies(z).diagonal(dim1=1, dim2=2)

    for update in range(updates):
        optimiser.param_groups[0]["lr"] = 0.03 * (0.51 + 0.49 * math.cos(math.pi * update / updates))
        optimiser.zero_grad()
        free_energy(64, min(1.0, 0.01 + update / (0.3 * updates))).mean(0).sum().backward()
        optimiser.step()
    with torch.no_grad():
        found = free_energy(8000, 1.0).double()
    return found.mean(0) + log_partition(), found.std(0) / 8000**0.5


def require_that_length_helps(kind: type[PosteriorFlow], *, updates: int) -> None:
    """32 maps come nearer to each energy than 2, and to the first within 0.2 nats."""
    short, short_error = divergences(kind(2, 2), updates=updates)
    long, long_error = divergences(kind(2, 32), updates=updates)
    assert (short > -4 * short_error).all(), "a divergence"
    assert (long > -4 * long_error).all()
    assert (long + 4 * (long_error + short_error) < short).all()
    assert long[0] < 0.2
