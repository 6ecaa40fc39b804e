r"""NADE's hidden layer: all D conditionals for the work of one, forwards, backwards and when sampling.

The hidden units that the dimension at position t sees are h_t = g(rho_t a_t) with a_t = c + sum_{s<t} W_s x_s, so that
a_{t+1} = a_t + W_t x_t costs O(H), and the D outputs beta_t + V_t h_t cost O(HD) an example in place of O(HD^2).

``autograd`` would keep D arrays of B x H numbers. Here the backward pass runs the recurrence the other way instead: it
starts from the last a, takes W_t x_t off again, recomputes h_t, and carries dL/da, in O(BH) memory. Both passes may
treat a block of positions at a time, whose a_t are one matrix product with a strictly triangular copy of the block's
inputs: ``block`` times the memory and the arithmetic for a, and as many times fewer calls.

Where most inputs are zero, as in binary images, the hidden units of an example seldom change. Then a block's different
states are found first, and each is computed once, multiplied with the block's weights in one product, and looked up.

Larochelle, Murray 2011, https://proceedings.mlr.press/v15/larochelle11a.html (algorithm 1).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

Activation = Literal["sigmoid", "relu"]
BLOCK_ELEMENTS = 2**16  # of a block's activations on a CPU: they should stay in its cache
BLOCK_ELEMENTS_ELSEWHERE = 2**22  # where a call costs more than a pass over memory
LARGEST_BLOCK = 32
MOST_NON_ZERO = 0.55  # of the inputs, for looking up which are zero to be faster than treating all alike


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
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(weights.weight.dtype)
        sparse = x.device.type == "cpu" and not x.requires_grad and weights.rho is None and len(weights.out_bias.T) == 1
        if sparse and block is None:
            non_zero = int(x.count_nonzero()) / max(1, x.numel())
            if non_zero < MOST_NON_ZERO:
                block = min(LARGEST_BLOCK, round(2 / max(non_zero, 1e-3)))  # about two new states for each example
                return cast(Tensor, _Sparse.apply(x, *weights[:4], activation == "relu", block))
        if block is None:
            most = BLOCK_ELEMENTS if x.device.type == "cpu" else BLOCK_ELEMENTS_ELSEWHERE
            block = min(max(most // max(1, len(x) * len(weights.bias)), 1), LARGEST_BLOCK, x.shape[1])
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


def _activate_backward(grad: Tensor, h: Tensor, relu: bool) -> Tensor:
    """dL/dh to dL/da in place, given h."""
    if relu:
        torch.ops.aten.threshold_backward(grad, h, 0, grad_input=grad)
    else:
        torch.ops.aten.sigmoid_backward(grad, h, grad_input=grad)
    return grad


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
                _activate_backward(d_a, h, ctx.relu)
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


class _Block(NamedTuple):
    """Successive positions, and the different states of the hidden units before them.

    An example's hidden units differ between two positions only if it has an input that is not zero between them.
    """

    x: Float[Tensor, "t b"]
    rows: Int[Tensor, " e"]
    """The example of each state."""
    seen: Float[Tensor, "e t"]
    """The block's inputs that each state has seen, 0 elsewhere."""
    state: Int[Tensor, " tb"]
    """Where the state before each position of each example is in (e, t)."""


def _states(x: Float[Tensor, "d b"], block: int) -> list[_Block]:
    dim, n = x.shape
    padded = torch.cat((x, x.new_zeros(-dim % block, n))).view(-1, block, n)
    new = torch.ones_like(padded, dtype=torch.bool)
    new[:, 1:] = padded[:, :-1] != 0
    if dim % block:
        new[-1, dim % block :] = False
    counts = new.sum((1, 2)).tolist()
    # states of a block are numbered by example, then by position
    which, rows, first = new.transpose(1, 2).nonzero(as_tuple=True)
    steps = torch.arange(block, device=x.device)
    seen = padded.transpose(1, 2)[which, rows] * (steps < first[:, None])
    number = new.transpose(1, 2).flatten(1).cumsum(1).view(-1, n, block).transpose(1, 2) - 1
    blocks = []
    for some, r, s, index in zip(x.split(block), rows.split(counts), seen.split(counts), number, strict=True):
        t = len(some)
        blocks.append(_Block(some, r, s[:, :t], (index[:t] * t + steps[:t, None]).flatten()))
    return blocks


class _Sparse(Function):
    """The recurrence for mostly zero inputs and one parameter: each state of the hidden units is treated once.

    All products of a block's states with its weights are one matrix product, also the few that nobody asks for.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor, out_bias: Tensor, relu: bool, block: int
    ) -> Tensor:
        n, hidden = len(x), len(bias)
        blocks = _states(x.T.contiguous(), block)
        out = x.new_empty(x.shape[1], n)
        work = x.new_empty(max(len(some.rows) for some in blocks), hidden)
        a = bias.expand(n, hidden).clone()
        for some, w, v, result in zip(
            blocks, weight.split(block), out_weight[:, 0].split(block), out.split(block), strict=True
        ):
            h = torch.index_select(a, 0, some.rows, out=work[: len(some.rows)]).addmm_(some.seen, w)
            _activate(h, relu)
            torch.index_select(torch.mm(h, v.T).flatten(), 0, some.state, out=result.view(-1))
            a.addmm_(some.x.T, w)
        ctx.save_for_backward(x, weight, out_weight, a)
        ctx.relu, ctx.block = relu, block
        return out.add_(out_bias)[..., None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out_weight, last = ctx.saved_tensors
        block, hidden = ctx.block, last.shape[1]
        blocks = _states(x.T.contiguous(), block)
        d_weight, d_out = torch.empty_like(weight), torch.empty_like(out_weight)
        a, carry = last.clone(), torch.zeros_like(last)
        work = last.new_empty(2, max(len(some.rows) for some in blocks), hidden)
        pieces = (t.split(block) for t in (weight, out_weight[:, 0], grad[..., 0], d_weight, d_out[:, 0]))
        with torch.autocast(grad.device.type, enabled=False):
            for some, w, v, g, d_w, d_v in reversed(list(zip(blocks, *pieces, strict=True))):
                a.addmm_(some.x.T, w, alpha=-1)
                h, d_a = work[:, : len(some.rows)]
                torch.index_select(a, 0, some.rows, out=h).addmm_(some.seen, w)
                _activate(h, ctx.relu)
                back = g.new_zeros(some.seen.numel()).index_copy_(0, some.state, g.flatten()).view_as(some.seen)
                torch.mm(back.T, h, out=d_v)
                torch.mm(back, v, out=d_a)
                _activate_backward(d_a, h, ctx.relu)
                torch.mm(some.x, carry, out=d_w)
                d_w.addmm_(some.seen.T, d_a)
                carry.index_add_(0, some.rows, d_a)
        return None, d_weight, carry.sum(0), d_out, grad.sum(1), None, None
