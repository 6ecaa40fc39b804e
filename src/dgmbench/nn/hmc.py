"""Hamiltonian Monte Carlo for any log-density: all chains at once, each with a step size of its own.

A move draws a momentum p ~ N(0, I), follows the Hamiltonian H(z, p) = -log p*(z) + |p|^2 / 2 for some leapfrog steps

    p <- p + step/2 grad log p*(z),    z <- z + step p,    p <- p + step/2 grad log p*(z),

which are reversible, keep volumes and conserve H up to O(step^2), and accepts the end with probability
min(1, exp(H(start) - H(end))): so p* is left as it is for any step size. Step sizes may only be adapted in runs whose
samples do not count, or whose adaptation dies out.

Shapes: z (chains, d), or any (chains, ...); values (chains,) float64; step sizes (chains,). Units: nats.
Paper: Neal 2011, "MCMC using Hamiltonian dynamics", https://arxiv.org/abs/1206.1901.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor, nn

ACCEPTANCE = 0.65  # the best acceptance in many dimensions (Neal 2011)
LARGEST_STEP = 2.0  # of a standard normal target; beyond it leapfrog diverges


class Point(NamedTuple):
    """Positions (chains, d), a value of each in float64, and the gradient of the values."""

    z: Tensor
    value: Tensor
    gradient: Tensor


def at(z: Tensor, value: Callable[[Tensor], Tensor]) -> Point:
    """Positions with ``value`` (chains,) and its gradient, by automatic differentiation."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        values = value(z)
        (gradient,) = torch.autograd.grad(values.sum(), z)
    return Point(z.detach(), values.detach().double(), gradient)


@runtime_checkable
class Target(Protocol):
    """A density to move in: what is kept of a position, and the Hamiltonian and the force there."""

    def at(self, z: Tensor) -> Point:
        """The point at positions z."""
        ...

    def hamiltonian(self, point: Point, momentum: Tensor) -> Tensor:
        """-log p*(z) + |p|^2 / 2 of each chain, (chains,) float64."""
        ...

    def force(self, point: Point) -> Tensor:
        """The gradient of log p*, like z."""
        ...


class Density:
    """Targets whose points hold a log-density and its gradient."""

    def hamiltonian(self, point: Point, momentum: Tensor) -> Tensor:
        """Potential and kinetic energy."""
        return 0.5 * momentum.double().square().flatten(1).sum(1) - point.value

    def force(self, point: Point) -> Tensor:
        """The gradient itself."""
        return point.gradient


@dataclass(frozen=True)
class LogDensity(Density):
    """The target of an unnormalised log-density: positions (chains, ...) to (chains,), with a gradient."""

    log_density: Callable[[Tensor], Tensor]

    def at(self, z: Tensor) -> Point:
        """Log-density and gradient."""
        return at(z, self.log_density)


@dataclass(frozen=True)
class ScoredDensity(Density):
    """The target of a log-density whose gradient is written down: ``score`` gives both, (chains,) and like z."""

    score: Callable[[Tensor], tuple[Tensor, Tensor]]

    def at(self, z: Tensor) -> Point:
        """Log-density and gradient, from one function that shares their work."""
        value, gradient = self.score(z)
        return Point(z, value.double(), gradient)


def leapfrog(target: Target, start: Point, momentum: Tensor, step: Tensor, steps: int) -> tuple[Point, Tensor]:
    """``steps`` leapfrog steps of sizes ``step``, (chains, 1) or like z; returns the end and its momentum."""
    here, momentum = start, momentum + 0.5 * step * target.force(start)
    for k in range(1, steps + 1):
        here = target.at(here.z + step * momentum)
        momentum = momentum + (0.5 if k == steps else 1.0) * step * target.force(here)
    return here, momentum


def move(
    target: Target, state: Point, step: Tensor, steps: int, generator: Generator | None = None
) -> tuple[Point, Tensor]:
    """One move with step sizes (chains,): the new states, and the acceptance probability of each proposal (chains,).

    Each move draws its own share of the step size from [0.8, 1.2], so that no orbit of fixed length closes. An orbit
    that has diverged is refused.
    """
    z = state.z
    step = step * (0.8 + 0.4 * torch.rand(step.shape, generator=generator, device=z.device, dtype=z.dtype))
    step = step.view(-1, *[1] * (z.dim() - 1))
    momentum = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
    before = target.hamiltonian(state, momentum)
    proposal, momentum = leapfrog(target, state, momentum, step, steps)
    log_ratio = torch.nan_to_num(before - target.hamiltonian(proposal, momentum), nan=-math.inf)
    u = torch.rand(len(z), generator=generator, device=z.device, dtype=torch.float64)
    accepted = u.log() < log_ratio
    where = accepted.view(-1, *[1] * (z.dim() - 1))
    state = Point(
        torch.where(where, proposal.z, z),
        torch.where(accepted, proposal.value, state.value),
        torch.where(where, proposal.gradient, state.gradient),
    )
    return state, log_ratio.clamp(max=0).exp()


def adapted(log_step: Tensor, acceptance: Tensor, *, rate: float, largest: float = LARGEST_STEP) -> Tensor:
    """Log step sizes moved towards an acceptance of 0.65: up where proposals were accepted more often than that."""
    return (log_step + rate * (acceptance.to(log_step) - ACCEPTANCE)).clamp(max=math.log(largest))


class Dynamics(nn.Module):
    """Moves of any number of chains with one step size, a buffer that follows the acceptance of moves in training.

    ``run`` changes no state, and leaves a target as it is. What it saw in training mode waits in ``seen`` until
    ``absorb`` takes it up, after the optimiser's step.

    Args:
        steps: leapfrog steps of a move.
        start: the first step size.
    """

    log_step: Tensor

    def __init__(self, *, steps: int, start: float) -> None:
        super().__init__()
        self.steps = steps
        self.register_buffer("log_step", torch.tensor(math.log(start)))
        self.seen: Tensor | None = None

    @torch.no_grad()
    def run(
        self, target: Target, z: Tensor, moves: int, generator: Generator | None = None, *, steps: int | None = None
    ) -> Tensor:
        """Where the chains z (chains, ...) are after ``moves`` moves, of ``steps`` leapfrog steps if given."""
        step, state, accepted = self.log_step.exp().to(z.dtype).expand(len(z)), target.at(z), None
        for _ in range(moves):
            state, accepted = move(target, state, step, self.steps if steps is None else steps, generator)
        if self.training and accepted is not None:
            self.seen = accepted.mean()
        return state.z

    @torch.no_grad()
    def absorb(self, *, rate: float = 0.05) -> None:
        """Move the step size towards the best acceptance by the last moves in training mode, if there were any."""
        if self.seen is not None:
            self.log_step.copy_(adapted(self.log_step, self.seen, rate=rate))
            self.seen = None
