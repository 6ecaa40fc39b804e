"""The energy of two sides of units, and everything that follows from its weights and biases alone.

    E(v, h) = -f(v)'W g(h) - a'f(v) - b'g(h) - r(v) - s(h)
    F(v)    = -log sum_h exp(-E(v, h)) = -a'f(v) - r(v) - A(b + W'f(v))

f and g are the features of the units, r and s their log-references, A the hidden units' log-partition
(``nn/unit_layers.py``). Of bits f(v) = v, r = 0 and A(eta) = sum_j softplus(eta_j). The RBM of any units, its tempered
chains, its fast weights, the top of a deep belief network, and every machine of several layers that split in two
parities (``machine.py``) are values of ``Couplings``. ``GeometricPath`` joins it to independent units for annealed
importance sampling (Salakhutdinov & Murray 2008, "On the quantitative analysis of deep belief networks"):

    log p*_beta(v) = (1 - beta) (a0'f(v) + r0(v)) + beta (a'f(v) + r(v)) + A(beta (b + W'f(v)))

*Temperatures.* At beta alone (``sweep``) natural parameters, so a, b and W, take the factor beta, and references stay.

*Rows of their own.* Biases are shared (units,), or each state has its own (n, units), as where a history or the length
of a document sets them; so have then the units that depend on it (``Counts``).

Shapes: W (visible, hidden); states are floats (n, units). The *visible* side is the one whose states a chain carries.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.nn.unit_layers import BERNOULLI, Independent, Units, dot

ENUMERABLE = 20  # units of the smaller side: 2^20 states take seconds
CHUNK = 1 << 13  # states enumerated at once
MOST_ROWS = 1 << 22  # states times rows of their own that are enumerated: with a hundred other units, some seconds


def binary_states(units: int, start: int, stop: int, *, like: Tensor) -> Float[Tensor, "n units"]:
    """The binary states number ``start`` to ``stop - 1`` of ``units`` units (unit 0 is the lowest bit)."""
    number = torch.arange(start, stop, device=like.device)
    return ((number[:, None] >> torch.arange(units, device=like.device)) & 1).to(like.dtype)


def draw_states(log_weights: Tensor, n: int, generator: Generator | None = None) -> Tensor:
    """Draw n binary states (n, units) int64 given log-weights of all, (2^units,), or one column each, (2^units, n)."""
    cdf = torch.softmax(log_weights, 0).cumsum(0)
    u = torch.rand(n, dtype=cdf.dtype, device=cdf.device, generator=generator) * cdf[-1]
    if cdf.dim() == 2:
        index = torch.searchsorted(cdf.t().contiguous(), u[:, None], right=True)[:, 0]
    else:
        index = torch.searchsorted(cdf, u, right=True)
    index = index.clamp_(max=len(cdf) - 1)
    return (index[:, None] >> torch.arange(len(cdf).bit_length() - 1, device=cdf.device)) & 1


@dataclass(frozen=True)
class Couplings:
    """Weights (visible, hidden), biases and types of unit of one energy. Iteration gives weights and biases."""

    weight: Any  # a tensor, or a matrix for every row (``row_weights.py``)
    visible_bias: Tensor
    hidden_bias: Tensor
    visible_units: Units = BERNOULLI
    hidden_units: Units = BERNOULLI

    def __iter__(self) -> Iterator[Any]:
        return iter((self.weight, self.visible_bias, self.hidden_bias))

    # ---- conditionals ----

    def hidden_logits(self, v: Float[Tensor, "n v"]) -> Float[Tensor, "n h"]:
        """Natural parameters of the hidden units given v: of bits, their log-odds."""
        return torch.addmm(self.hidden_bias, self.visible_units.feature(v), self.weight)

    def visible_logits(self, h: Float[Tensor, "n h"]) -> Float[Tensor, "n v"]:
        """Natural parameters of the visible units given h."""
        return torch.addmm(self.visible_bias, self.hidden_units.feature(h), self.weight.t())

    def sample_hidden(self, v: Float[Tensor, "n v"], generator: Generator | None = None) -> Float[Tensor, "n h"]:
        """Draw h given v."""
        return self.hidden_units.sample_(self.hidden_logits(v), generator)

    def sample_visible(self, h: Float[Tensor, "n h"], generator: Generator | None = None) -> Float[Tensor, "n v"]:
        """Draw v given h."""
        return self.visible_units.sample_(self.visible_logits(h), generator)

    # ---- energies ----

    def _of_visible(self, v: Tensor) -> Tensor:
        """The part of F and E that v has by itself."""
        own = -dot(self.visible_units.feature(v), self.visible_bias)
        reference = self.visible_units.log_reference(v)
        return own if reference is None else own - reference

    def _coupled(self, v: Tensor, features: Tensor) -> Tensor:
        """E less both references, at features of the hidden units or their means."""
        f = self.visible_units.feature(v)
        return -((f @ self.weight) * features).sum(-1) - dot(f, self.visible_bias) - dot(features, self.hidden_bias)

    def tempered_energy(self, v: Float[Tensor, "n v"], h: Float[Tensor, "n h"]) -> Float[Tensor, " n"]:
        """The part of E that a temperature multiplies: all but the references."""
        return self._coupled(v, self.hidden_units.feature(h))

    def energy(self, v: Float[Tensor, "n v"], h: Float[Tensor, "n h"]) -> Float[Tensor, " n"]:
        """E(v, h) of each pair."""
        value = self.tempered_energy(v, h)
        references = (self.visible_units.log_reference(v), self.hidden_units.log_reference(h))
        for reference in references:
            value = value if reference is None else value - reference
        return value

    def free_energy(self, v: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
        """F(v), the energy with the hidden units summed out."""
        return self._of_visible(v) - self.hidden_units.log_partition(self.hidden_logits(v))

    def variational_free_energy(self, v: Float[Tensor, "n v"], under: "Couplings") -> Float[Tensor, " n"]:
        """E_q E(v, h) - H(q) with q = p(h | v) of ``under``, a constant; F(v) itself where that is this energy."""
        with torch.no_grad():
            eta = under.hidden_logits(v)
            mean, entropy = self.hidden_units.mean(eta), self.hidden_units.entropy(eta)
        value = self._coupled(v, mean) - entropy
        reference = self.visible_units.log_reference(v)
        return value if reference is None else value - reference

    # ---- chains ----

    def gibbs(self, v: Float[Tensor, "n v"], steps: int, generator: Generator | None = None) -> Float[Tensor, "n v"]:
        """``steps`` times v -> h -> v for all chains at once; each step is reversible with respect to p(v)."""
        for _ in range(steps):
            v = self.sample_visible(self.sample_hidden(v, generator), generator)
        return v

    def from_data(
        self, v: Float[Tensor, "n v"], steps: int, generator: Generator | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n v"]]:
        """F(v), and where v is after ``steps`` Gibbs steps: one product serves F and the first half of the chain."""
        eta = self.hidden_logits(v)
        with torch.no_grad():
            chain = self.detached()
            after = chain.sample_visible(self.hidden_units.sample(eta, generator), generator)
            after = chain.gibbs(after, steps - 1, generator)
        return self._of_visible(v) - self.hidden_units.log_partition(eta), after

    def hidden_at(self, v: Tensor, beta: Tensor, generator: Generator | None = None) -> Float[Tensor, "n h"]:
        """Draw h given v at inverse temperatures beta (n, 1)."""
        return self.hidden_units.sample_(beta * self.hidden_logits(v), generator)

    def sweep(self, v: Tensor, h: Tensor, beta: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw v given h, then h given v, at inverse temperatures beta (n, 1)."""
        v = self.visible_units.sample_(beta * self.visible_logits(h), generator)
        return v, self.hidden_at(v, beta, generator)

    # ---- the same numbers otherwise ----

    def detached(self) -> "Couplings":
        """The same numbers without gradients."""
        return replace(
            self,
            weight=self.weight.detach(),
            visible_bias=self.visible_bias.detach(),
            hidden_bias=self.hidden_bias.detach(),
        )

    def double(self) -> "Couplings":
        """The same numbers in float64."""
        weight, a, b = (tensor.double() for tensor in self)
        return Couplings(weight, a, b, self.visible_units.double(), self.hidden_units.double())

    def transposed(self) -> "Couplings":
        """The same energy with the two sides exchanged."""
        return Couplings(self.weight.t(), self.hidden_bias, self.visible_bias, self.hidden_units, self.visible_units)

    # ---- enumeration ----

    @property
    def rows(self) -> int:
        """How many rows of their own there are, 0 where all states share the biases."""
        return max((len(bias) for bias in (self.visible_bias, self.hidden_bias) if bias.dim() == 2), default=0)

    def _smaller(self) -> "Couplings | None":
        """The side that can be enumerated as the visible one: bits, at most 20, the hidden ones if both are alike."""
        visible, hidden = self.weight.shape
        sides = [(hidden, self.hidden_units, 0), (visible, self.visible_units, 1)]
        fitting = [(size, order) for size, units, order in sides if units.binary and size <= ENUMERABLE]
        fitting = [(size, order) for size, order in fitting if self.rows << size <= MOST_ROWS]
        if not fitting:
            return None
        return self if min(fitting)[1] else self.transposed()

    def _state_log_weights(self) -> Iterator[Tensor]:
        """-F of every visible state in float64, in chunks: (states,), or (states, n) with rows of their own."""
        exact = self.detached().double()
        units, total = self.weight.shape[0], 1 << self.weight.shape[0]
        rows = self.rows
        chunk = max(1, CHUNK // max(rows, 1))
        for start in range(0, total, chunk):
            v = binary_states(units, start, min(start + chunk, total), like=exact.hidden_bias)
            if not rows:
                yield -exact.free_energy(v)
                continue
            f = v[:, None]  # (states, 1, units), against biases (n, units)
            eta = f @ exact.weight + exact.hidden_bias
            own = f @ exact.visible_bias if exact.visible_bias.dim() == 1 else (f * exact.visible_bias).sum(-1)
            yield own + exact.hidden_units.log_partition(eta)

    def log_partition(self, *, by: str | None = None) -> Tensor | None:
        """Log Z in float64 by enumerating one side of bits ("visible", "hidden", or the smaller), None above 20 units.

        A scalar; with rows of their own, (n,).
        """
        if by is None:
            one = self._smaller()
        else:
            one = self.transposed() if by == "hidden" else self
            one = one if one.weight.shape[0] <= ENUMERABLE and one.visible_units.binary else None
        if one is None:
            return None
        return torch.stack([chunk.logsumexp(0) for chunk in one._state_log_weights()]).logsumexp(0)

    def sample_exact(self, n: int, generator: Generator | None = None) -> Float[Tensor, "n v"] | None:
        """Draw n independent samples of p(v) by enumerating one side; None if neither is at most 20 bits.

        With rows of their own, one each.
        """
        one = self._smaller()
        if one is None:
            return None
        states = draw_states(torch.cat(list(one._state_log_weights())), n, generator).to(self.weight.dtype)
        if one is self:
            return states
        return self.detached().sample_visible(states, generator)


class GeometricPath:
    """p_beta between independent visible units of log-odds ``base_logits`` (beta = 0) and ``couplings`` (beta = 1).

    ``base_logits`` are natural parameters in the features of the couplings' units, ``base_units`` the type where it
    differs (of Gaussian units, by another deviation), shared or for each row; the hidden units start at natural
    parameters 0.

    Matrix products run in the couplings' dtype, the sums over units in float64. The products of the last states are
    kept, since an annealing step asks for the same states at two temperatures and then moves them. So states are not
    to be changed in place, and a model whose parameters have changed needs a new path.

    ``upwards`` draws the visible side given raw data; without it, they are the data.
    """

    def __init__(
        self,
        couplings: Couplings,
        base_logits: Float[Tensor, "*n v"],
        *,
        base_units: Units | None = None,
        upwards: Callable[[Tensor, Generator | None], Tensor] | None = None,
    ) -> None:
        self.couplings, self.base_logits, self.upwards = couplings.detached(), base_logits.detach(), upwards
        self.base_units = couplings.visible_units if base_units is None else base_units
        self._last: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @classmethod
    def between(
        cls,
        base: Independent,
        couplings: Couplings,
        *,
        upwards: Callable[[Tensor, Generator | None], Tensor] | None = None,
    ) -> "GeometricPath":
        """From ``base``, which has the features of the couplings' visible units, to ``couplings``."""
        return cls(couplings, base.eta, base_units=base.units, upwards=upwards)

    def _fields(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p*_beta(v) but for the hidden units at both ends, in float64, and their natural parameters given v."""
        if self._last is None or self._last[0] is not v:
            now = self.couplings
            f = now.visible_units.feature(v)
            if now.visible_bias.dim() == self.base_logits.dim() == 1:
                linear = (f @ torch.stack([self.base_logits, now.visible_bias], dim=1)).double()
            else:
                linear = torch.stack([dot(f, self.base_logits), dot(f, now.visible_bias)], dim=1).double()
            base, target = linear[:, 0], linear[:, 1]
            references = (self.base_units.log_reference(v), now.visible_units.log_reference(v))
            if references[0] is not None and references[1] is not None:
                base, target = base + references[0].double(), target + references[1].double()
            self._last = (v, base, target, now.hidden_logits(v))
        return self._last[1:]

    def log_base_partition(self) -> Tensor:
        """Log Z_0, float64: a scalar, or (n,) with rows of their own."""
        hidden = self.couplings.weight.shape[1]
        volume = self.couplings.hidden_units.double().log_volume(hidden, like=self.base_logits)
        return self.base_units.double().log_partition(self.base_logits.double()) + volume

    @torch.no_grad()
    def sample_base(self, n: int, *, generator: Generator | None = None) -> Float[Tensor, "n v"]:
        """Draw n exact samples of p_0; with rows of their own, one each."""
        return Independent(self.base_units, self.base_logits).sample(n, generator)

    @torch.no_grad()
    def state_from(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, "n v"]:
        """Visible units for raw values x (n, *shape)."""
        v = x.flatten(1) if self.upwards is None else self.upwards(x, generator)
        return v.to(self.couplings.weight.dtype)

    @torch.no_grad()
    def log_unnormalised(self, v: Float[Tensor, "n v"], beta: float) -> Float[Tensor, " n"]:
        """Log p*_beta(v), float64."""
        base, target, hidden = self._fields(v)
        hidden_units = self.couplings.hidden_units
        return (1 - beta) * base + beta * target + hidden_units.log_partition(beta * hidden.double())

    @torch.no_grad()
    def transition(
        self, v: Float[Tensor, "n v"], beta: float, *, generator: Generator | None = None
    ) -> Float[Tensor, "n v"]:
        """One Gibbs step v -> h -> v at beta, reversible with respect to p_beta(v)."""
        now = self.couplings
        h = now.hidden_units.sample(beta * self._fields(v)[2], generator)
        bias = (1 - beta) * self.base_logits + beta * now.visible_bias
        eta = torch.addmm(bias, now.hidden_units.feature(h), now.weight.t(), alpha=beta)
        return now.visible_units.between(self.base_units, beta).sample(eta, generator)

    def exact_log_partition(self) -> Tensor | None:
        """Log Z_1 by enumeration, None where neither side is at most 20 bits."""
        return self.couplings.log_partition()

    @torch.no_grad()
    def sample_target(self, n: int, *, generator: Generator | None = None) -> Float[Tensor, "n v"] | None:
        """Draw n exact samples of p_1 by enumeration; None where neither side is at most 20 bits."""
        return self.couplings.sample_exact(n, generator)
