"""The energy of two layers of binary units, and everything that follows from its weights and biases alone.

    E(v, h) = -v'W h - a'v - b'h,      F(v) = -log sum_h exp(-E(v, h)) = -a'v - sum_j softplus(b_j + (v'W)_j)

``Couplings`` holds (W, a, b) of one such energy; the RBM, its tempered chains, its fast weights and the top of a deep
belief network are all values of it. ``GeometricPath`` joins it to independent units for annealed importance sampling
(Salakhutdinov & Murray 2008, "On the quantitative analysis of deep belief networks"):

    log p*_beta(v) = (1 - beta) a0'v + beta a'v + sum_j softplus(beta (b_j + (v'W)_j)),
    log Z_0 = sum_i softplus(a0_i) + hidden log 2

Shapes: W (visible, hidden); states are floats (n, units) with values 0 and 1, or means in [0, 1].
"""

from collections.abc import Callable, Iterator
from math import log
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

ENUMERABLE = 20  # units of the smaller side: 2^20 states take seconds
CHUNK = 1 << 13  # states enumerated at once


@torch.no_grad()
def draw(p: Tensor, generator: Generator | None = None) -> Tensor:
    """Independent Bernoulli draws with means p, of p's dtype (half the time of ``torch.bernoulli`` on a CPU)."""
    u = torch.rand(p.shape, dtype=p.dtype, device=p.device, generator=generator)
    return torch.lt(u, p, out=torch.empty_like(p))


def log_bernoulli(value: Tensor, logits: Tensor) -> Float[Tensor, "..."]:
    """Log-probability of independent bits with these log-odds, summed over the last dimension."""
    return (value * logits - F.softplus(logits)).sum(-1)


def binary_states(units: int, start: int, stop: int, *, like: Tensor) -> Float[Tensor, "n units"]:
    """The binary states number ``start`` to ``stop - 1`` of ``units`` units (unit 0 is the lowest bit)."""
    number = torch.arange(start, stop, device=like.device)
    return ((number[:, None] >> torch.arange(units, device=like.device)) & 1).to(like.dtype)


class Couplings(NamedTuple):
    """Weights (visible, hidden) and biases of one energy."""

    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor

    def hidden_logits(self, v: Float[Tensor, "n v"]) -> Float[Tensor, "n h"]:
        """Log-odds of each hidden unit given v."""
        return torch.addmm(self.hidden_bias, v, self.weight)

    def visible_logits(self, h: Float[Tensor, "n h"]) -> Float[Tensor, "n v"]:
        """Log-odds of each visible unit given h."""
        return torch.addmm(self.visible_bias, h, self.weight.t())

    def energy(self, v: Float[Tensor, "n v"], h: Float[Tensor, "n h"]) -> Float[Tensor, " n"]:
        """E(v, h) of each pair."""
        return -((v @ self.weight) * h).sum(-1) - v @ self.visible_bias - h @ self.hidden_bias

    def free_energy(self, v: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
        """F(v), the energy with the hidden units summed out."""
        return -(v @ self.visible_bias) - F.softplus(self.hidden_logits(v)).sum(-1)

    def sample_hidden(self, v: Float[Tensor, "n v"], generator: Generator | None = None) -> Float[Tensor, "n h"]:
        """Draw h given v."""
        return draw(self.hidden_logits(v).sigmoid_(), generator)

    def sample_visible(self, h: Float[Tensor, "n h"], generator: Generator | None = None) -> Float[Tensor, "n v"]:
        """Draw v given h."""
        return draw(self.visible_logits(h).sigmoid_(), generator)

    def gibbs(self, v: Float[Tensor, "n v"], steps: int, generator: Generator | None = None) -> Float[Tensor, "n v"]:
        """``steps`` times v -> h -> v for all chains at once; each step is reversible with respect to p(v)."""
        for _ in range(steps):
            v = self.sample_visible(self.sample_hidden(v, generator), generator)
        return v

    def detached(self) -> "Couplings":
        """The same numbers without gradients."""
        return Couplings(*(tensor.detach() for tensor in self))

    def double(self) -> "Couplings":
        """The same numbers in float64."""
        return Couplings(*(tensor.double() for tensor in self))

    def transposed(self) -> "Couplings":
        """The same energy with the two layers exchanged."""
        return Couplings(self.weight.t(), self.hidden_bias, self.visible_bias)

    def _state_log_weights(self) -> Iterator[Tensor]:
        """-F of every visible state in float64, in chunks."""
        exact = self.detached().double()
        total = 1 << self.visible_bias.numel()
        for start in range(0, total, CHUNK):
            v = binary_states(self.visible_bias.numel(), start, min(start + CHUNK, total), like=exact.weight)
            yield -exact.free_energy(v)

    def log_partition(self, *, by: str | None = None) -> Float[Tensor, ""] | None:
        """Enumerate one side ("visible", "hidden", or the smaller): log Z in float64, None above 20 units."""
        visible, hidden = self.weight.shape
        side = by or ("hidden" if hidden <= visible else "visible")
        if (hidden if side == "hidden" else visible) > ENUMERABLE:
            return None
        one = self.transposed() if side == "hidden" else self
        return torch.stack([chunk.logsumexp(0) for chunk in one._state_log_weights()]).logsumexp(0)

    def sample_exact(self, n: int, generator: Generator | None = None) -> Float[Tensor, "n v"] | None:
        """Draw n independent samples of p(v) by enumerating the smaller side; None if it has more than 20 units."""
        visible, hidden = self.weight.shape
        if min(visible, hidden) > ENUMERABLE:
            return None
        one = self.transposed() if hidden <= visible else self
        log_weights = torch.cat(list(one._state_log_weights()))
        cdf = torch.softmax(log_weights, 0).cumsum(0)
        u = torch.rand(n, dtype=cdf.dtype, device=cdf.device, generator=generator) * cdf[-1]
        index = torch.searchsorted(cdf, u, right=True).clamp_(max=len(cdf) - 1)
        states = ((index[:, None] >> torch.arange(one.visible_bias.numel(), device=cdf.device)) & 1).to(
            self.weight.dtype
        )
        return self.detached().sample_visible(states, generator) if hidden <= visible else states


class GeometricPath:
    """p_beta between independent visible units with log-odds ``base_logits`` (beta = 0) and ``couplings`` (beta = 1).

    Matrix products run in the couplings' dtype, the sums over units in float64. The products of the last states are
    kept, since an annealing step asks for the same states at two temperatures and then moves them. So states are not
    to be changed in place, and a model whose parameters have changed needs a new path.

    ``upwards`` draws the visible units given raw data; without it, they are the data.
    """

    def __init__(
        self,
        couplings: Couplings,
        base_logits: Float[Tensor, " v"],
        *,
        upwards: Callable[[Tensor, Generator | None], Tensor] | None = None,
    ) -> None:
        self.couplings, self.base_logits, self.upwards = couplings.detached(), base_logits.detach(), upwards
        self._last: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def _fields(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a0'v and a'v in float64, and the hidden units' log-odds given v."""
        if self._last is None or self._last[0] is not v:
            biases = torch.stack([self.base_logits, self.couplings.visible_bias], dim=1)
            linear = (v @ biases).double()
            self._last = (v, linear[:, 0], linear[:, 1], self.couplings.hidden_logits(v))
        return self._last[1:]

    def log_base_partition(self) -> Float[Tensor, ""]:
        """Log Z_0, float64."""
        return F.softplus(self.base_logits.double()).sum() + self.couplings.hidden_bias.numel() * log(2.0)

    def sample_base(self, n: int, *, generator: Generator | None = None) -> Float[Tensor, "n v"]:
        """Draw n exact samples of p_0."""
        return draw(self.base_logits.sigmoid().expand(n, -1), generator)

    @torch.no_grad()
    def state_from(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, "n v"]:
        """Visible units for raw values x (n, *shape)."""
        v = x.flatten(1) if self.upwards is None else self.upwards(x, generator)
        return v.to(self.couplings.weight.dtype)

    @torch.no_grad()
    def log_unnormalised(self, v: Float[Tensor, "n v"], beta: float) -> Float[Tensor, " n"]:
        """Log p*_beta(v), float64."""
        base, target, hidden = self._fields(v)
        return (1 - beta) * base + beta * target + F.softplus(beta * hidden.double()).sum(-1)

    @torch.no_grad()
    def transition(
        self, v: Float[Tensor, "n v"], beta: float, *, generator: Generator | None = None
    ) -> Float[Tensor, "n v"]:
        """One Gibbs step v -> h -> v at beta, reversible with respect to p_beta(v)."""
        h = draw(torch.sigmoid(beta * self._fields(v)[2]), generator)
        bias = (1 - beta) * self.base_logits + beta * self.couplings.visible_bias
        return draw(torch.addmm(bias, h, self.couplings.weight.t(), alpha=beta).sigmoid_(), generator)

    def exact_log_partition(self) -> Float[Tensor, ""] | None:
        """Log Z_1 by enumeration, None where both sides have more than 20 units."""
        return self.couplings.log_partition()

    def sample_target(self, n: int, *, generator: Generator | None = None) -> Float[Tensor, "n v"] | None:
        """Draw n exact samples of p_1 by enumeration; None where both sides have more than 20 units."""
        return self.couplings.sample_exact(n, generator)
