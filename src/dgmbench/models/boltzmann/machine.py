"""Boltzmann machines of any graph: layers of units, and couplings between them or inside one.

    E(x) = - sum_l [ bias_l'f_l(x_l) + reference_l(x_l) ] - sum_{i < j} f_i'W_ij f_j - 1/2 sum_i f_i'W_ii f_i

with f_l the features of layer l and W_ii symmetric with an empty diagonal (lateral couplings). Where no coupling joins
two layers of one parity (every layered machine, deep Boltzmann machines among them), the layers of either parity are
independent given the other's: ``sides`` puts them side by side, as ``Couplings``, so that block Gibbs by parity, free
energies, enumeration, tempering and annealing are those of a restricted machine. Elsewhere units take turns one by one
(``WholeMachine``; Ackley, Hinton, Sejnowski 1985).

The *mean field* (``mean_field``; Salakhutdinov & Hinton 2009, "Deep Boltzmann machines") factorises the posterior of
the hidden units given some layers: its variational free energy lies above the true one, the bound of a positive phase.

Shapes: the states of layer l are floats (n, units_l); a joint state has the carried layers side by side, (n, sum).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.models.boltzmann.couplings import Couplings
from dgmbench.nn.unit_layers import Independent, dot, joined

Pair = tuple[int, int]


class MeanField(NamedTuple):
    """Mean features of every layer (those of given layers are their own), and the variational free energy (n,)."""

    means: tuple[Tensor, ...]
    free_energy: Tensor


@dataclass(frozen=True)
class Machine:
    """Layers with their biases as natural parameters, and the weights of pairs i <= j of layers, (units_i, units_j)."""

    layers: tuple[Independent, ...]
    weights: Mapping[Pair, Tensor]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of each layer."""
        return tuple(layer.eta.shape[-1] for layer in self.layers)

    # ---- energy and conditionals ----

    def features(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Of the states of all layers."""
        return [layer.units.feature(x) for layer, x in zip(self.layers, states, strict=True)]

    def inputs(
        self,
        layer: int,
        features: Sequence[Tensor],
        *,
        among: Collection[int] | None = None,
        onto: Tensor | None = None,
    ) -> Float[Tensor, "... units"]:
        """Natural parameters of a layer's units given the features of all layers; lateral inputs included.

        With ``among``, what these layers alone add to ``onto`` (by default the layer's bias).
        """
        eta = self.layers[layer].eta if onto is None else onto
        for (i, j), weight in self.weights.items():
            if i == layer and (among is None or j in among):
                eta = eta + features[j] @ weight.t()
            elif j == layer and (among is None or i in among):
                eta = eta + features[i] @ weight
        return eta

    def tempered_energy(self, states: Sequence[Tensor]) -> Float[Tensor, " n"]:
        """The part of E that a temperature multiplies: all but the references."""
        return self._coupled(self.features(states))

    def _coupled(self, features: Sequence[Tensor]) -> Float[Tensor, " n"]:
        terms = [dot(f, layer.eta) for layer, f in zip(self.layers, features, strict=True)]
        for (i, j), weight in self.weights.items():
            terms.append(((features[i] @ weight) * features[j]).sum(-1) * (0.5 if i == j else 1.0))
        return -torch.stack(terms).sum(0)

    def energy(self, states: Sequence[Tensor]) -> Float[Tensor, " n"]:
        """E of the states of all layers."""
        value = self.tempered_energy(states)
        for layer, x in zip(self.layers, states, strict=True):
            reference = layer.units.log_reference(x)
            value = value if reference is None else value - reference
        return value

    # ---- the two parities ----

    def parities(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The layers of either parity, layer 0 in the first; None if some coupling joins two of one parity."""
        parity: dict[int, int] = {}
        for start in range(len(self.layers)):
            todo = [(start, parity.get(start, 0))]
            while todo:
                layer, side = todo.pop()
                if parity.setdefault(layer, side) != side:
                    return None
                others = [j if i == layer else i for i, j in self.weights if layer in (i, j)]
                todo += [(other, 1 - side) for other in others if parity.get(other) != 1 - side]
        return tuple(n for n in parity if not parity[n]), tuple(sorted(n for n in parity if parity[n]))

    def sides(self, carried: int = 0) -> Couplings:
        """The machine as ``Couplings``: the layers of parity ``carried`` on the visible side, in their order."""
        parities = self.parities()
        if parities is None:
            raise ValueError("some coupling joins two layers of one parity, so neither can be summed out")
        visible, hidden = (sorted(parities[carried]), sorted(parities[1 - carried]))
        rows = []
        for i in visible:
            row = []
            for j in hidden:
                weight = self.weights.get((min(i, j), max(i, j)))
                if weight is None:
                    weight = self.layers[i].eta.new_zeros(self.sizes[i], self.sizes[j])
                    row.append(weight)
                else:
                    row.append(weight if i < j else weight.t())
            rows.append(torch.cat(row, 1))
        one, other = (joined([self.layers[n] for n in side]) for side in (visible, hidden))
        return Couplings(torch.cat(rows), one.eta, other.eta, one.units, other.units)

    def split(self, state: Float[Tensor, "n d"], layers: Sequence[int]) -> list[Tensor]:
        """The states of these layers, which lie side by side."""
        return list(state.split([self.sizes[n] for n in layers], dim=-1))

    # ---- chains ----

    @torch.no_grad()
    def gibbs(
        self,
        states: Sequence[Tensor],
        *,
        beta: float | Tensor = 1.0,
        given: Sequence[int] = (),
        backwards: bool = False,
        generator: Generator | None = None,
    ) -> list[Tensor]:
        """Draw each layer but the ``given`` ones, in their order, given all others, at inverse temperature ``beta``.

        The units of a layer with lateral couplings are drawn one by one. ``backwards`` takes layers, and such units,
        in the opposite order.
        """
        states = list(states)
        features = self.features(states)
        for n in range(len(self.layers))[:: -1 if backwards else 1]:
            if n in given:
                continue
            units, lateral = self.layers[n].units, self.weights.get((n, n))
            eta = (beta * self.inputs(n, features)).expand(len(states[n]), -1)
            if lateral is None:
                states[n] = units.sample(eta, generator)
                features[n] = units.feature(states[n])
            else:
                states[n] = self._in_turn(n, states[n], eta, beta, backwards, generator)
                features[n] = units.feature(states[n])
        return states

    def _in_turn(
        self, n: int, x: Tensor, eta: Tensor, beta: float | Tensor, backwards: bool, generator: Generator | None
    ) -> Tensor:
        """Draw the units of a layer one by one; ``eta`` are their natural parameters as x stands.

        What a unit's change adds to the others is a product of rank one, added in place.
        """
        units, lateral = self.layers[n].units, self.weights[n, n]
        lateral, factor = (lateral, beta.flatten()) if isinstance(beta, Tensor) else (beta * lateral, None)
        order = range(self.sizes[n])[:: -1 if backwards else 1]
        if units.binary:  # all noise at once: x = 1 where the log-odds exceed logistic noise
            noise = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator).logit_().t().contiguous()
            x, eta = x.t().contiguous(), eta.t().contiguous()  # a unit's states lie side by side
            one = [tensor.unbind() for tensor in (x, eta, noise, lateral)]  # as an index costs more than the arithmetic
            for old, own, threshold, others in (tuple(rows[unit] for rows in one) for unit in order):
                change = torch.gt(own, threshold, out=torch.empty_like(old)).sub_(old)
                old.add_(change)
                eta.addr_(others, change if factor is None else factor * change)
            return x.t().contiguous()
        x, f, eta = x.clone(), units.feature(x).clone(), eta.clone()
        for unit in order:
            x[:, unit] = units.sample(eta[:, unit : unit + 1], generator)[:, 0]
            change = units.feature(x)[:, unit] - f[:, unit]
            f[:, unit] += change
            eta.addr_(change if factor is None else factor * change, lateral[unit])
        return x

    # ---- mean field ----

    def mean_field(
        self,
        given: Mapping[int, Tensor],
        *,
        steps: int,
        start: Mapping[int, Tensor] | None = None,
        tolerance: float = 0.0,
    ) -> MeanField:
        """Update the mean features of all layers that are not ``given``, by turns, at most ``steps`` times.

        They start at ``start``, or at what a layer's bias alone gives, and carry no gradient, so that the gradient of
        the free energy is that at fixed means. A layer with lateral couplings is damped by a half. A row is left alone
        once a step has changed none of its means by more than ``tolerance``, whatever the other rows do.
        """
        n = len(next(iter(given.values())))
        hidden = [k for k in range(len(self.layers)) if k not in given]
        with torch.no_grad():
            means = [
                layer.units.feature(given[k])
                if k in given
                else (start or {}).get(k, layer.units.mean(layer.eta).expand(n, -1))
                for k, layer in enumerate(self.layers)
            ]
            means = self._settled(means, hidden, steps, tolerance)
        free = self._coupled(
            [self.layers[k].units.feature(given[k]) if k in given else means[k] for k in range(len(self.layers))]
        )
        for k, layer in enumerate(self.layers):
            if k in given:
                reference = layer.units.log_reference(given[k])
                free = free if reference is None else free - reference
            else:
                free = free - layer.units.entropy_of_mean(means[k])
        return MeanField(tuple(means), free)

    def _settled(self, means: list[Tensor], hidden: list[int], steps: int, tolerance: float) -> list[Tensor]:
        """The means after at most ``steps`` updates; only rows that still move are computed."""
        given = [k for k in range(len(self.layers)) if k not in hidden]
        fixed = {k: self.inputs(k, means, among=given).expand(len(means[k]), -1) for k in hidden}
        ended = [means[k].clone() if k in hidden else means[k] for k in range(len(self.layers))]
        moving = torch.arange(len(means[0]), device=means[0].device)
        for _ in range(steps):
            change = means[0].new_zeros(len(moving))
            for k in hidden:
                new = self.layers[k].units.mean(self.inputs(k, means, among=hidden, onto=fixed[k]))
                new = 0.5 * (means[k] + new) if (k, k) in self.weights else new
                change = torch.maximum(change, (new - means[k]).abs().amax(-1)) if tolerance else change
                means[k] = new
            keep = change > tolerance
            if tolerance and not bool(keep.all()):
                for k in hidden:
                    ended[k][moving] = means[k]
                moving, means = moving[keep], [one[keep] for one in means]
                fixed = {k: one[keep] for k, one in fixed.items()}
            if not len(moving):
                break
        for k in hidden:
            ended[k][moving] = means[k]
        return ended

    def whole(self) -> "WholeMachine":
        """The machine with chains that carry all units, where no parity can be summed out."""
        return WholeMachine(self)


@dataclass(frozen=True)
class WholeMachine:
    """A ``Machine`` whose chains carry the states of all layers, side by side: an ``Energy`` without a rest.

    A sweep takes the layers, and units one by one where they are coupled laterally, in their order. It leaves p where
    it is, but is not reversible; with a second one in the opposite order (``there_and_back``) it is.
    """

    machine: Machine

    def _states(self, v: Tensor) -> list[Tensor]:
        return self.machine.split(v, range(len(self.machine.layers)))

    def free_energy(self, v: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """E itself."""
        return self.machine.energy(self._states(v))

    def variational_free_energy(self, v: Float[Tensor, "n d"], under: "WholeMachine") -> Float[Tensor, " n"]:
        """E itself."""
        return self.free_energy(v)

    def gibbs(self, v: Float[Tensor, "n d"], steps: int, generator: Generator | None = None) -> Float[Tensor, "n d"]:
        """``steps`` sweeps over all layers."""
        states = self._states(v)
        for _ in range(steps):
            states = self.machine.gibbs(states, generator=generator)
        return torch.cat(states, -1)

    def there_and_back(self, v: Float[Tensor, "n d"], generator: Generator | None = None) -> Float[Tensor, "n d"]:
        """A sweep, and one in the opposite order: together reversible."""
        states = self.machine.gibbs(self._states(v), generator=generator)
        return torch.cat(self.machine.gibbs(states, backwards=True, generator=generator), -1)

    def hidden_at(self, v: Tensor, beta: Tensor, generator: Generator | None = None) -> Float[Tensor, "n 0"]:
        """There is no rest."""
        return v[:, :0]

    def sweep(self, v: Tensor, h: Tensor, beta: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """One sweep over all layers at inverse temperatures beta (n, 1)."""
        return torch.cat(self.machine.gibbs(self._states(v), beta=beta, generator=generator), -1), h

    def tempered_energy(self, v: Tensor, h: Tensor) -> Float[Tensor, " n"]:
        """The part of E that beta multiplies."""
        return self.machine.tempered_energy(self._states(v))
