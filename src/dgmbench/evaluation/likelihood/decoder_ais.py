r"""Annealed importance sampling of p(x) for decoders: VAEs, and the generators of GANs and moment matching.

With z standard normal noise and l(z) = log p(x | z), the path from prior to posterior is

    p_beta(z) proportional to N(z; 0, I) exp(beta l(z)),     log w = sum_k (beta_k - beta_{k-1}) l(z_{k-1}),

and E w = p(x) exactly, so log-mean-exp of w over chains is a lower bound of log p(x) in expectation, as that of
importance weights is, but far tighter where no good proposal is known. z moves by Hamiltonian Monte Carlo.

*Step sizes.* Every example and temperature has its own, found in a first run of its own over fewer temperatures
(towards an acceptance of 0.65); the run whose weights count only reads them, so it stays unbiased.

*The gap.* For data that the model has made itself, x ~ p(x | z*), z* is an exact sample of the posterior. A chain from
z* back to the prior gives an upper bound in expectation (bidirectional Monte Carlo), and upper minus lower bound says
how far the annealing may be from the truth.

*Implicit models* x = G(z) have no density. Theirs is the density of G(z) + sigma * noise, with values scaled to [0, 1]
where they are bounded: the likelihood of the *blurred* model, for a sigma chosen on validation examples.

Paper: Wu, Burda, Salakhutdinov, Grosse, "On the Quantitative Analysis of Decoder-Based Generative Models", ICLR 2017,
https://arxiv.org/abs/1611.04273. Gap: Grosse, Ancha, Roy 2016, https://arxiv.org/abs/1606.02275. Differs from the
first: its step sizes adapt while the weights are collected.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from dgmbench.evaluation.likelihood.bounds import jackknife_variance
from dgmbench.nn.observation import gaussian_log_density

LogLikelihood = Callable[[Tensor], Tensor]
"""log p(x | z) of noise z (rows, d) as (rows,), where row i belongs to example i modulo their number."""

ACCEPTANCE = 0.65  # of Hamiltonian Monte Carlo in many dimensions (Neal 2011)
PILOT_TEMPERATURES = 50
PILOT_MOVES = 4
PILOT_RATE = 0.5
SIGMOID_REACH = 4.0


@dataclass(frozen=True)
class Annealing:
    """How noise is annealed: chains of each example, inverse temperatures, leapfrog steps of one move."""

    chains: int
    betas: Sequence[float]
    leapfrog: int = 10


class Runs(NamedTuple):
    """Log weights (chains, n) whose exponentials average to p(x), or backwards to 1 / p(x), and the acceptance (n,)."""

    log_weights: Tensor
    acceptance: Tensor

    def log_mean(self) -> Tensor:
        """Log-mean-exp over the chains (n,)."""
        return self.log_weights.logsumexp(0) - math.log(len(self.log_weights))

    def variance(self) -> Tensor:
        """The jackknife's variance of ``log_mean`` over repeated runs, (n,)."""
        return jackknife_variance(self.log_weights)

    def ess(self) -> Tensor:
        """The effective number of chains (n,)."""
        return torch.softmax(self.log_weights, 0).square().sum(0).reciprocal()


def sigmoid_schedule(steps: int) -> list[float]:
    """Inverse temperatures from 0 to 1 that are dense at both ends, where the posterior changes fast.

    >>> [round(beta, 3) for beta in sigmoid_schedule(4)]
    [0.0, 0.105, 0.5, 0.895, 1.0]
    """
    s = 1 / (1 + np.exp(-np.linspace(-SIGMOID_REACH, SIGMOID_REACH, steps + 1)))
    betas = (s - s[0]) / (s[-1] - s[0])
    return [0.0, *betas[1:-1].tolist(), 1.0]


class _State(NamedTuple):
    """Positions (rows, d), their log-likelihoods (rows,) in float64, and the gradients of these."""

    z: Tensor
    value: Tensor
    gradient: Tensor


def _at(z: Tensor, log_likelihood: LogLikelihood) -> _State:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = log_likelihood(z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
    return _State(z.detach(), value.detach().double(), gradient)


def _move(
    state: _State, beta: float, step: Tensor, leapfrog: int, log_likelihood: LogLikelihood, generator: Generator
) -> tuple[_State, Tensor]:
    """One move of Hamiltonian Monte Carlo at p_beta with step sizes (rows,), and its acceptance probability (rows,).

    Each move draws its own share of the step size from [0.8, 1.2], so that no orbit of fixed length closes.
    """
    z = state.z
    step = step * (0.8 + 0.4 * torch.rand(step.shape, generator=generator, device=z.device, dtype=z.dtype))
    step = step[:, None]
    momentum = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)

    def energy(at: _State, momentum: Tensor) -> Tensor:
        return 0.5 * (at.z.double().square() + momentum.double().square()).sum(1) - beta * at.value

    before = energy(state, momentum)
    proposal, momentum = state, momentum + 0.5 * step * (beta * state.gradient - z)
    for k in range(1, leapfrog + 1):
        proposal = _at(proposal.z + step * momentum, log_likelihood)
        momentum = momentum + (0.5 if k == leapfrog else 1.0) * step * (beta * proposal.gradient - proposal.z)
    log_ratio = torch.nan_to_num(before - energy(proposal, momentum), nan=-math.inf)  # a diverged orbit is refused
    u = torch.rand(len(z), generator=generator, device=z.device, dtype=torch.float64)
    accepted = u.log() < log_ratio
    where = accepted[:, None]
    state = _State(
        torch.where(where, proposal.z, z),
        torch.where(accepted, proposal.value, state.value),
        torch.where(where, proposal.gradient, state.gradient),
    )
    return state, log_ratio.clamp(max=0).exp()


def tuned_steps(
    log_likelihood: LogLikelihood, prior: Tensor, n: int, annealing: Annealing, generator: Generator
) -> Tensor:
    """Step sizes for each inverse temperature after the first, (K, n), by a run from ``prior`` (chains * n, d)."""
    steps = len(annealing.betas) - 1
    pilots = np.unique(np.linspace(1, steps, min(steps, PILOT_TEMPERATURES)).round().astype(int))
    state = _at(prior, log_likelihood)
    log_step = prior.new_full((n,), math.log(0.5))
    found = []
    for k in pilots:
        recent = []
        for _ in range(PILOT_MOVES):
            step = log_step.exp().repeat(annealing.chains)
            state, acceptance = _move(state, annealing.betas[k], step, annealing.leapfrog, log_likelihood, generator)
            rate = acceptance.view(annealing.chains, n).mean(0).to(log_step)
            recent.append(log_step)
            log_step = (log_step + PILOT_RATE * (rate - ACCEPTANCE)).clamp(max=math.log(2.0))  # beyond it all diverge
        found.append(torch.stack(recent).mean(0))
    # between the pilot's temperatures, log step sizes on straight lines
    position = np.interp(np.arange(1, steps + 1), pilots, np.arange(len(pilots)))
    low = torch.as_tensor(np.floor(position).astype(int), device=prior.device)
    share = torch.as_tensor(position, device=prior.device).to(prior) - low
    table = torch.stack(found)
    return torch.lerp(table[low], table[(low + 1).clamp(max=len(found) - 1)], share[:, None]).exp()


def annealed(
    log_likelihood: LogLikelihood, prior: Tensor, n: int, steps: Tensor, annealing: Annealing, generator: Generator
) -> Runs:
    """From samples of the prior (chains * n, d) to the posterior: weights with mean p(x), for each of n examples."""
    betas = list(annealing.betas)
    return _annealed(log_likelihood, prior, n, list(pairwise(betas)), list(steps), annealing, generator)


def annealed_back(
    log_likelihood: LogLikelihood, exact: Tensor, steps: Tensor, annealing: Annealing, generator: Generator
) -> Runs:
    """From one exact sample of each posterior (n, d) to the prior: weights with mean 1 / p(x)."""
    backwards = list(pairwise(annealing.betas[::-1]))
    sizes = [*list(steps)[-2::-1], None]  # the move at beta_k has its own; there is none at 0
    start = exact.repeat(annealing.chains, 1)
    return _annealed(log_likelihood, start, len(exact), backwards, sizes, annealing, generator)


def _annealed(
    log_likelihood: LogLikelihood,
    z: Tensor,
    n: int,
    changes: Sequence[tuple[float, float]],
    steps: Sequence[Tensor | None],
    annealing: Annealing,
    generator: Generator,
) -> Runs:
    state = _at(z, log_likelihood)
    log_weights = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    acceptance, moves = torch.zeros_like(log_weights), 0
    for (here, there), step in zip(changes, steps, strict=True):
        log_weights += (there - here) * state.value
        if step is None or there == 1.0:
            continue  # the last state is not looked at
        state, accepted = _move(
            state, there, step.repeat(annealing.chains), annealing.leapfrog, log_likelihood, generator
        )
        acceptance, moves = acceptance + accepted, moves + 1
    shape = (annealing.chains, n)
    return Runs(log_weights.view(shape), acceptance.view(shape).mean(0) / max(moves, 1))


def blurred_log_density(x: Tensor, centre: Tensor, sigma: float) -> Tensor:
    """log N(x; centre, sigma^2 I) of values (b, ...) as (b,)."""
    log_sigma = centre.new_tensor(math.log(sigma))
    return gaussian_log_density(x, centre, log_sigma).flatten(1).sum(1)
