"""Annealing of machines that no parity splits: a path over the states of all their units.

    log p*_beta(x) = (1 - beta) a0'x - beta E(x),      x all layers of bits side by side, visible and hidden,

from independent bits of log-odds a0 to the machine. Nothing is summed out, so log Z_0 = sum softplus(a0), and a step is
a sweep of the units one by one, there and back, since only that is reversible (``WholeMachine``). log Z is that of
``Couplings`` and ``GeometricPath``, where a machine has both.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.models.boltzmann.couplings import CHUNK, ENUMERABLE, binary_states, draw_states
from dgmbench.models.boltzmann.machine import Machine
from dgmbench.nn.unit_layers import Independent


class WholePath:
    """p_beta between independent ``base`` bits (beta = 0) and a ``machine`` of bits (beta = 1).

    ``upwards`` draws the states of all units given raw data. The energies of the last states are kept, since an
    annealing step asks for the same states at two temperatures; a model whose parameters have changed needs a new path.
    """

    def __init__(
        self, machine: Machine, base: Independent, *, upwards: Callable[[Tensor, Generator | None], Tensor]
    ) -> None:
        layers = tuple(layer._replace(eta=layer.eta.detach()) for layer in machine.layers)
        self.machine = Machine(layers, {pair: weight.detach() for pair, weight in machine.weights.items()})
        self.base, self.upwards = base._replace(eta=base.eta.detach()), upwards
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def _energies(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """log p*_beta at both ends, float64."""
        if self._last is None or self._last[0] is not v:
            energy = self.machine.energy(self.machine.split(v, range(len(self.machine.layers))))
            self._last = (v, (v @ self.base.eta).double(), -energy.double())
        return self._last[1:]

    def log_base_partition(self) -> Tensor:
        """Log Z_0, float64."""
        return self.base.units.log_partition(self.base.eta.double())

    @torch.no_grad()
    def sample_base(self, n: int, *, generator: Generator | None = None) -> Float[Tensor, "n d"]:
        """Draw n exact samples of p_0."""
        return self.base.sample(n, generator)

    @torch.no_grad()
    def state_from(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, "n d"]:
        """All units for raw values x (n, *shape)."""
        return self.upwards(x, generator).to(self.base.eta.dtype)

    @torch.no_grad()
    def log_unnormalised(self, v: Float[Tensor, "n d"], beta: float) -> Float[Tensor, " n"]:
        """Log p*_beta(v), float64."""
        base, target = self._energies(v)
        return (1 - beta) * base + beta * target

    @torch.no_grad()
    def transition(
        self, v: Float[Tensor, "n d"], beta: float, *, generator: Generator | None = None
    ) -> Float[Tensor, "n d"]:
        """One sweep of all units, there and back, at beta."""
        starts = self.base.eta.split(self.machine.sizes)
        layers = tuple(
            layer._replace(eta=(1 - beta) * start + beta * layer.eta)
            for layer, start in zip(self.machine.layers, starts, strict=True)
        )
        weights = {pair: beta * weight for pair, weight in self.machine.weights.items()}
        return Machine(layers, weights).whole().there_and_back(v, generator)

    # ---- enumeration ----

    def _log_weights(self) -> Iterator[Tensor]:
        """-E of all states in float64, in chunks."""
        units = len(self.base.eta)
        layers = tuple(layer._replace(eta=layer.eta.double()) for layer in self.machine.layers)
        exact = Machine(layers, {pair: weight.double() for pair, weight in self.machine.weights.items()})
        for start in range(0, 1 << units, CHUNK):
            states = binary_states(units, start, min(start + CHUNK, 1 << units), like=layers[0].eta)
            yield -exact.energy(exact.split(states, range(len(layers))))

    @torch.no_grad()
    def exact_log_partition(self) -> Tensor | None:
        """Log Z_1 by enumeration, None above 20 units."""
        if len(self.base.eta) > ENUMERABLE:
            return None
        return torch.stack([chunk.logsumexp(0) for chunk in self._log_weights()]).logsumexp(0)

    @torch.no_grad()
    def sample_target(self, n: int, *, generator: Generator | None = None) -> Float[Tensor, "n d"] | None:
        """Draw n exact samples of p_1 by enumeration; None above 20 units."""
        if len(self.base.eta) > ENUMERABLE:
            return None
        return draw_states(torch.cat(list(self._log_weights())), n, generator).to(self.base.eta.dtype)
