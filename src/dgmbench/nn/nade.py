r"""NADE's hidden layer: all D conditionals for the work of one, forwards, backwards and when sampling.

The hidden units that the dimension at position t sees are h_t = g(rho_t a_t) with a_t = c + sum_{s<t} W_s x_s, so that
a_{t+1} = a_t + W_t x_t costs O(H), and the D outputs beta_t + V_t h_t cost O(HD) an example in place of O(HD^2).

``autograd`` would keep D arrays of B x H numbers. Here the backward pass runs the recurrence the other way instead: it
starts from the last a, takes W_t x_t off again, recomputes h_t, and carries dL/da, in O(BH) memory. Both passes may
treat a block of positions at a time, whose a_t are one matrix product with a strictly triangular copy of the block's
inputs: ``block`` times the memory and the arithmetic for a, and as many times fewer calls.

Larochelle, Murray 2011, https://proceedings.mlr.press/v15/larochelle11a.html (algorithm 1).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

Activation = Literal["sigmoid", "relu"]
BLOCK_ELEMENTS = 2**16  # of a block's activations on a CPU: they should stay in its cache
BLOCK_ELEMENTS_ELSEWHERE = 2**22  # where a call costs more than a pass over memory
LARGEST_BLOCK = 32


class NadeWeights(NamedTuple):
    """Parameters in the order of the positions: t is the t-th dimension to be drawn."""

    weight: Float[Tensor, "d h"]
    """W: what the value at a position adds to the hidden units after it."""
    bias: Float[Tensor, " h"]
    """c."""
    out_weight: Float[Tensor, "d p h"]
    """V: P parameters of the conditional at a position from the hidden units before it."""
    out_bias: Float[Tensor, "d p"]
    """beta."""
    rho: Float[Tensor, " d"] | None
    """Factors of the activations before the nonlinearity, or None for 1."""


def nade_parameters(
    x: Float[Tensor, "b d"], weights: NadeWeights, activation: Activation, *, block: int | None = None
) -> Float[Tensor, "d b p"]:
    """The P parameters of every conditional p(x_t | x_before(t)), x in the order of the positions.

    Differentiable once, in all arguments.

    Args:
        x: Values as the network sees them.
        weights: The parameters.
        activation: g.
        block: Positions at a time; chosen by the sizes if None.
    """
    if block is None:
        most = BLOCK_ELEMENTS if x.device.type == "cpu" else BLOCK_ELEMENTS_ELSEWHERE
        block = min(max(most // max(1, len(x) * len(weights.bias)), 1), LARGEST_BLOCK, x.shape[1])
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(weights.weight.dtype)
        return cast(Tensor, _Recurrence.apply(x, *weights, activation == "relu", block))


@torch.no_grad()
def nade_ancestral(
    n: int, draw: Callable[[int, Float[Tensor, "p n"]], Float[Tensor, " n"]], weights: NadeWeights,
    activation: Activation,
) -> Float[Tensor, "n d"]:  # fmt: skip
    """Fill in n examples position after position by the same recurrence, O(HD) each.

    Args:
        n: Number of examples.
        draw: Called with t = 0 ... D - 1 and the (P, n) parameters at position t; returns values (n,) as the network is
            to see them.
        weights: The parameters.
        activation: g.
    """
    dim, hidden = weights.weight.shape
    x = weights.weight.new_empty(dim, n)
    a = weights.bias.expand(n, hidden).clone()
    for t in range(dim):
        h = _activate(a.clone() if weights.rho is None else a * weights.rho[t], activation == "relu")
        x[t] = draw(t, torch.addmm(weights.out_bias[t, :, None], weights.out_weight[t], h.T))
        a.addr_(x[t], weights.weight[t])
    return x.T


def _activate(a: Tensor, relu: bool) -> Tensor:
    return a.relu_() if relu else a.sigmoid_()


def _earlier(some: Float[Tensor, "t b"]) -> Float[Tensor, "tb t"]:
    """For each of a block's positions, the block's inputs before it, 0 elsewhere."""
    t, n = some.shape
    return (some.new_ones(t, t).tril_(-1)[:, None] * some.T).reshape(t * n, t)


class _Recurrence(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor, out_bias: Tensor, rho: Tensor | None,
        relu: bool, block: int,
    ) -> Tensor:  # fmt: skip
        n, hidden, across = len(x), len(bias), x.T.contiguous()
        out = x.new_empty(x.shape[1], n, out_weight.shape[1])
        work = x.new_empty(block, n, hidden)
        a = bias.expand(n, hidden).clone()
        pieces = (t.split(block) for t in (across, weight, out_weight.transpose(1, 2), out_bias[:, None], out))
        for step, (some, w, v, beta, result) in enumerate(zip(*pieces, strict=True)):
            h = work[: len(some)].copy_(a)
            if block > 1:
                h.view(-1, hidden).addmm_(_earlier(some), w)
            if rho is not None:
                h.mul_(rho[step * block : step * block + len(some), None, None])
            _activate(h, relu)
            torch.baddbmm(beta, h, v, out=result)
            a.addmm_(some.T, w)
        ctx.save_for_backward(across, weight, out_weight, rho, a)
        ctx.relu, ctx.block = relu, block
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        across, weight, out_weight, rho, last = ctx.saved_tensors
        (n, hidden), block = last.shape, ctx.block
        d_x = torch.empty_like(across) if ctx.needs_input_grad[0] else None
        d_weight, d_out = torch.empty_like(weight), torch.empty_like(out_weight)
        d_rho = None if rho is None else torch.empty_like(rho)
        a, carry = last.clone(), torch.zeros_like(last)
        work = last.new_empty(2, block, n, hidden)
        with torch.autocast(grad.device.type, enabled=False):
            pieces = (t.split(block) for t in (across, weight, out_weight, grad, grad.transpose(1, 2), d_weight, d_out))
            for step, (some, w, v, g, g_t, d_w, d_v) in reversed(list(enumerate(zip(*pieces, strict=True)))):
                where = slice(step * block, step * block + len(some))
                a.addmm_(some.T, w, alpha=-1)
                h, d_a = work[:, : len(some)]
                h.copy_(a)
                if block > 1:
                    earlier = _earlier(some)
                    h.view(-1, hidden).addmm_(earlier, w)
                if rho is not None:
                    sums = h.clone()
                    h.mul_(rho[where, None, None])
                _activate(h, ctx.relu)
                torch.bmm(g_t, h, out=d_v)
                torch.bmm(g, v, out=d_a)
                if ctx.relu:
                    torch.ops.aten.threshold_backward(d_a, h, 0, grad_input=d_a)
                else:
                    torch.ops.aten.sigmoid_backward(d_a, h, grad_input=d_a)
                if d_rho is not None:
                    d_rho[where] = torch.einsum("tbh,tbh->t", d_a, sums)
                    d_a.mul_(rho[where, None, None])
                torch.mm(some, carry, out=d_w)
                if d_x is not None:
                    later = d_a.flip(0).cumsum(0).flip(0).sub_(d_a).add_(carry)
                    d_x[where] = torch.einsum("tbh,th->tb", later, w)
                if block > 1:
                    d_w.addmm_(earlier.T, d_a.view(-1, hidden))
                    carry += d_a.sum(0)
                else:
                    carry += d_a[0]
        return (None if d_x is None else d_x.T), d_weight, carry.sum(0), d_out, grad.sum(1), d_rho, None, None
