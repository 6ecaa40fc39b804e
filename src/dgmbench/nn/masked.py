"""Autoregressive networks by masking: every output sees only the inputs before it in an order of the dimensions.

Degrees decide who sees whom (Germain et al. 2015). An input at position t of the order (from 0) has degree t + 1, a
hidden unit has a degree m in 1 ... D - 1 and sees units of degree <= m, and the outputs of the dimension at position t
see units of degree <= t, so inputs at positions < t. With no hidden layer the network is one strictly triangular map.

A context (a label, say) is never masked: it reaches the first hidden layer and, since the first dimension in the order
sees no hidden unit at all, also the outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Order = Literal["natural", "reversed", "random", "agnostic"]
Nonlinearity = Literal["relu", "tanh"]
Draw = Callable[[int, Float[Tensor, "p n"]], Float[Tensor, " n"]]


@dataclass(frozen=True)
class Sorted:
    """A network's weights with dimensions in their order and hidden units by degree, for sweeps over the dimensions.

    ``weights`` (units, units below) and ``biases`` (units, 1 or n) of each hidden layer; ``ends[layer][t]`` counts its
    units of degree <= t, which come first and are final once positions 0 ... t - 1 are known. ``top`` (D, P, units) and
    ``top_bias`` (D, P, 1 or n) lead to the outputs, ``straight`` (D, P, D) are the direct connections.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    ends: list[list[int]]
    top: Tensor
    top_bias: Tensor
    straight: Tensor | None
    rows: list[Tensor]
    nonlinearity: Nonlinearity

    def sweep(self, n: int, draw: Draw) -> tuple[Float[Tensor, "d n"], list[Float[Tensor, "_ n"]]]:
        """Values (D, n), in the order, and the hidden layers; ``draw`` as in ``MaskedMlp.ancestral``."""
        dim, depth = len(self.top), len(self.weights)
        x = self.top.new_zeros(dim, n)
        hidden = [self.top.new_zeros(len(bias), n) for bias in self.biases]
        done = [0] * depth
        for t in range(dim):
            below, seen = x, t
            for layer in range(depth):
                start, end = done[layer], self.ends[layer][t]
                if end > start:
                    new = hidden[layer][start:end]
                    torch.addmm(
                        self.biases[layer][start:end], self.weights[layer][start:end, :seen], below[:seen], out=new
                    )
                    activate = torch.relu_ if self.nonlinearity == "relu" else torch.tanh_
                    activate(new)
                    done[layer] = end
                below, seen = hidden[layer], end
            out = torch.addmm(self.top_bias[t], self.top[t, :, :seen], below[:seen])
            if self.straight is not None:
                out = torch.addmm(out, self.straight[t, :, :t], x[:t])
            x[t] = draw(t, out)
        return x, hidden


class MaskedMlp(nn.Module):
    """Network (b, D) -> (b, D, P): the P parameters of dimension i depend on the dimensions before i.

    Args:
        dim: D, the number of dimensions.
        hidden_sizes: Widths of the hidden layers; none gives a linear map.
        parameters: P, the parameters of each dimension's conditional.
        masks: Number of masks, drawn once, over which the weights are shared.
        order: ``natural`` (0, 1, 2, ...), ``reversed``, ``random`` (one order for all masks) or ``agnostic`` (one order
            for each).
        direct: Adds masked weights from the inputs straight to the outputs.
        context: Length of a context vector that every output may depend on; 0 for none.
        nonlinearity: Of the hidden units.
        degrees: The hidden units' degrees, layer by layer and the same for all masks, instead of random ones.
    """

    positions: Tensor

    def __init__(
        self, dim: int, hidden_sizes: Sequence[int], parameters: int, *, masks: int = 1, order: Order = "natural",
        direct: bool = False, context: int = 0, nonlinearity: Nonlinearity = "relu",
        degrees: Sequence[Int[Tensor, " _"]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.nonlinearity = nonlinearity
        self.dim, self.parameters_per_dim, self.masks = dim, parameters, masks
        fixed = {"natural": torch.arange(dim), "reversed": torch.arange(dim - 1, -1, -1)}
        orders = [fixed[order] if order in fixed else torch.randperm(dim)]
        for _ in range(masks - 1):
            orders.append(torch.randperm(dim) if order == "agnostic" else orders[0])
        self.register_buffer("positions", torch.stack(orders))
        self.depth = len(hidden_sizes)
        least = torch.ones(masks, 1)
        for layer, width in enumerate(hidden_sizes):
            # uniform on {least, ..., D - 1}, where least is the smallest degree below: no unit is without inputs
            top = max(dim - 1, 1)
            if degrees is None:
                drawn = (least + torch.rand(masks, width) * (top + 1 - least)).long().clamp(max=top)
            else:
                drawn = degrees[layer].repeat(masks, 1)
            self.register_buffer(f"degrees_{layer}", drawn)
            least = drawn.min(dim=1, keepdim=True).values
        sizes = [dim, *hidden_sizes, dim * parameters]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.direct = nn.Linear(dim, dim * parameters, bias=False) if direct else None
        # zero at first: until they have learnt otherwise, all contexts are alike
        first = nn.Linear(context, sizes[1], bias=False) if context and self.depth else None
        straight = nn.Linear(context, sizes[-1], bias=False) if context else None
        for linear in (first, straight):
            if linear is not None:
                nn.init.zeros_(linear.weight)
        self.context_to_hidden, self.context_to_output = first, straight
        self._kept = [f"mask_{i}" for i in range(self.depth + (2 if direct else 1))]
        self._keep_masks()
        self.register_load_state_dict_post_hook(_keep_masks_after_load)

    def _degrees(self, layer: int, mask: int) -> Int[Tensor, " units"]:
        return self.get_buffer(f"degrees_{layer}")[mask]

    def linear(self, layer: int) -> nn.Linear:
        """The weights of one layer, before masking; the last layer is number ``depth``."""
        return cast(nn.Linear, self.layers[layer])

    def layer_masks(self, mask: int) -> list[Bool[Tensor, "_ _"]]:
        """Who sees whom under one mask: each layer's (out, in) in turn, then the direct connections', if any."""
        before = self.positions[mask] + 1
        after = self.positions[mask].repeat_interleave(self.parameters_per_dim)
        tables, below = [], before
        for layer in range(self.depth):
            degrees = self._degrees(layer, mask)
            tables.append(degrees[:, None] >= below)
            below = degrees
        tables.append(after[:, None] >= below)
        if self.direct is not None:
            tables.append(after[:, None] >= before)
        return tables

    def _keep_masks(self) -> None:
        # A single mask is kept as floats (a quarter faster than comparing degrees each time); many would not fit.
        if self.masks == 1:
            for name, table in zip(self._kept, self.layer_masks(0), strict=True):
                self.register_buffer(name, table.to(self.linear(0).weight.dtype), persistent=False)

    def forward(
        self, x: Float[Tensor, "b d"], mask: int = 0, context: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "b d p"]:
        """The parameters of every conditional p(x_i | x before i, context) under one mask, in one pass."""
        linears: list[nn.Linear] = list(self.layers)  # type: ignore[arg-type]  # nn.ModuleList knows no linears
        if self.masks == 1:
            tables = [cast(Tensor, self._buffers[name]) for name in self._kept]
        else:
            tables = self.layer_masks(mask)
        h = x
        for layer, (linear, table) in enumerate(zip(linears, tables, strict=False)):
            h = F.linear(h, linear.weight * table, linear.bias)
            if layer == 0 and layer < self.depth and context is not None and self.context_to_hidden is not None:
                h = h + self.context_to_hidden(context)
            if layer < self.depth:
                h = F.relu(h) if self.nonlinearity == "relu" else h.tanh()
        if self.direct is not None:
            h = h + F.linear(x, self.direct.weight * tables[-1])
        if context is not None and self.context_to_output is not None:
            h = h + self.context_to_output(context)
        return h.view(-1, self.dim, self.parameters_per_dim)

    @torch.no_grad()
    def ancestral(
        self, n: int, draw: Draw, mask: int = 0, context: Float[Tensor, "n c"] | None = None
    ) -> Float[Tensor, "n d"]:
        """Fill in the dimensions of n examples one after another, in the mask's order, for the work of about one pass.

        A hidden unit of degree m is final once positions 0 ... m - 1 are known, so units are sorted by degree and each
        is computed once: O(D H + H^2) in all instead of the O(D (D H + H^2)) of D full passes.

        Args:
            n: Number of examples.
            draw: Called with t = 0 ... D - 1 and the (P, n) parameters of the dimension at position t; returns its
                values (n,) as the network is to see them.
            mask: Which mask.
            context: The examples' contexts.
        """
        x, _ = self.sorted(mask, context).sweep(n, draw)
        return x[self.positions[mask]].T

    def sorted(self, mask: int = 0, context: Float[Tensor, "n c"] | None = None) -> Sorted:
        """The weights by degree under one mask, with the contexts' share in the biases."""
        sequence = self.positions[mask].argsort()
        steps = torch.arange(self.dim, device=sequence.device)
        columns, weights, biases, ends, order = sequence, [], [], [], []
        for layer in range(self.depth):
            degrees, rows = self._degrees(layer, mask).sort(stable=True)
            weights.append(self.linear(layer).weight[rows][:, columns])
            biases.append(self.linear(layer).bias[rows, None])
            if layer == 0 and context is not None and self.context_to_hidden is not None:
                biases[0] = biases[0] + self.context_to_hidden.weight[rows] @ context.T
            ends.append(torch.searchsorted(degrees, steps, right=True).tolist())  # units of degree <= t
            order.append(rows)
            columns = rows
        by_dim = (self.dim, self.parameters_per_dim, -1)
        top = self.linear(self.depth).weight.view(by_dim)[sequence][:, :, columns]
        top_bias = self.linear(self.depth).bias.view(by_dim)[sequence]
        if context is not None and self.context_to_output is not None:
            top_bias = top_bias + self.context_to_output.weight.view(by_dim)[sequence] @ context.T
        straight = None if self.direct is None else self.direct.weight.view(by_dim)[sequence][:, :, sequence]
        return Sorted(weights, biases, ends, top, top_bias, straight, order, self.nonlinearity)


def _keep_masks_after_load(module: Any, _: Any) -> None:
    module._keep_masks()
