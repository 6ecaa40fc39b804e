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
from dgmbench.nn.hmc import Point, adapted, at, move
from dgmbench.nn.observation import gaussian_log_density

LogLikelihood = Callable[[Tensor], Tensor]
"""log p(x | z) of noise z (rows, d) as (rows,), where row i belongs to example i modulo their number."""

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


@dataclass(frozen=True)
class _Tempered:
    """p_beta as a target of Hamiltonian Monte Carlo; points keep l(z), which every temperature shares."""

    log_likelihood: LogLikelihood
    beta: float

    def at(self, z: Tensor) -> Point:
        return at(z, self.log_likelihood)

    def hamiltonian(self, point: Point, momentum: Tensor) -> Tensor:
        return 0.5 * (point.z.double().square() + momentum.double().square()).sum(1) - self.beta * point.value

    def force(self, point: Point) -> Tensor:
        return self.beta * point.gradient - point.z


def tuned_steps(
    log_likelihood: LogLikelihood, prior: Tensor, n: int, annealing: Annealing, generator: Generator
) -> Tensor:
    """Step sizes for each inverse temperature after the first, (K, n), by a run from ``prior`` (chains * n, d)."""
    steps = len(annealing.betas) - 1
    pilots = np.unique(np.linspace(1, steps, min(steps, PILOT_TEMPERATURES)).round().astype(int))
    state = at(prior, log_likelihood)
    log_step = prior.new_full((n,), math.log(0.5))
    found = []
    for k in pilots:
        recent = []
        for _ in range(PILOT_MOVES):
            step = log_step.exp().repeat(annealing.chains)
            target = _Tempered(log_likelihood, annealing.betas[k])
            state, acceptance = move(target, state, step, annealing.leapfrog, generator)
            recent.append(log_step)
            log_step = adapted(log_step, acceptance.view(annealing.chains, n).mean(0), rate=PILOT_RATE)
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
    state = at(z, log_likelihood)
    log_weights = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    acceptance, moves = torch.zeros_like(log_weights), 0
    for (here, there), step in zip(changes, steps, strict=True):
        log_weights += (there - here) * state.value
        if step is None or there == 1.0:
            continue  # the last state is not looked at
        target = _Tempered(log_likelihood, there)
        state, accepted = move(target, state, step.repeat(annealing.chains), annealing.leapfrog, generator)
        acceptance, moves = acceptance + accepted, moves + 1
    shape = (annealing.chains, n)
    return Runs(log_weights.view(shape), acceptance.view(shape).mean(0) / max(moves, 1))


def blurred_log_density(x: Tensor, centre: Tensor, sigma: float) -> Tensor:
    """log N(x; centre, sigma^2 I) of values (b, ...) as (b,)."""
    log_sigma = centre.new_tensor(math.log(sigma))
    return gaussian_log_density(x, centre, log_sigma).flatten(1).sum(1)
