"""Autoregressive flows: affine maps whose shift and scale a masked network computes, in either orientation.

One masked network gives a shift mu_i and a log scale a_i for every dimension i, from the dimensions before i in its
order. Two bijections follow, both with a triangular Jacobian in that order:

    MaskedAffine          z_i = (x_i - mu_i(x)) exp(-a_i(x)),     log |det dz/dx| = -sum_i a_i(x),
    InverseMaskedAffine   x_i = mu_i(z) + exp(a_i(z)) z_i,        log |det dz/dx| = -sum_i a_i(z).

The first reads data, so a density is one pass and a sample takes D steps (masked autoregressive flow); the second reads
noise, so a sample is one pass and a density takes D steps (inverse autoregressive flow). The D steps do the work of
about one pass: they compute each hidden unit once, in order of its degree.

a is cut off at -7 and 7: a scale whose logarithm is linear in its inputs explodes when values are fed back.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dgmbench.nn.bases import Base
from dgmbench.nn.batchnorm import RunningMoments
from dgmbench.nn.bijections import Bijection, Mapped, Orientation
from dgmbench.nn.labels import one_hot
from dgmbench.nn.masked import MaskedMlp, Nonlinearity, Order
from dgmbench.nn.observation import gaussian_log_density

LARGEST_LOG_SCALE = 7.0
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda h: h > 0,
    "tanh": lambda h: 1 - h.square(),
    "elu": lambda h: (h + 1).clamp(max=1),
}
"""The slope of each of a masked network's nonlinearities, given its value."""


def bounded(a: Tensor) -> Tensor:
    """A log scale between -7 and 7 (``hardtanh``, whose gradient is one kernel where ``clamp``'s are several)."""
    return F.hardtanh(a, -LARGEST_LOG_SCALE, LARGEST_LOG_SCALE)


class MaskedAffine(Bijection):
    """z = (x - mu(x)) exp(-a(x)): density in one pass, samples in D steps. ``net`` has two parameters a dimension."""

    def __init__(self, net: MaskedMlp) -> None:
        super().__init__()
        self.net = net

    @property
    def orientation(self) -> Orientation:
        """One pass from data to noise."""
        return "density"

    def forward(self, x: Float[Tensor, "b d"], context: Float[Tensor, "b c"] | None = None) -> Mapped:
        """Data to noise, in one pass of the network."""
        shift, a = self.net(x, context=context).unbind(-1)
        log_scale = bounded(a)
        return (x - shift) * torch.exp(-log_scale), -log_scale.sum(1)

    def inverse(self, z: Float[Tensor, "b d"], context: Float[Tensor, "b c"] | None = None) -> Mapped:
        """Noise to data, one dimension after another, without gradients."""
        position = self.net.positions[0]
        noise, log_det = z.T[position.argsort()], z.new_zeros(len(z))

        def draw(t: int, parameters: Float[Tensor, "p n"]) -> Float[Tensor, " n"]:
            log_scale = bounded(parameters[1])
            log_det.add_(log_scale)
            return torch.addcmul(parameters[0], log_scale.exp(), noise[t])

        return self.net.ancestral(len(z), draw, context=context), log_det


class InverseMaskedAffine(Bijection):
    """x = mu(z) + exp(a(z)) z: samples in one pass, density in D steps. ``net`` has two parameters a dimension."""

    def __init__(self, net: MaskedMlp) -> None:
        super().__init__()
        self.net = net

    @property
    def orientation(self) -> Orientation:
        """One pass from noise to data."""
        return "sampling"

    def forward(self, x: Float[Tensor, "b d"]) -> Mapped:
        """Data to noise, one dimension after another, with gradients."""
        weights = [p for layer in range(self.net.depth + 1) for p in self.net.linear(layer).parameters()]
        return _Solve.apply(self.net, x, *weights)

    def inverse(self, z: Float[Tensor, "b d"]) -> Mapped:
        """Noise to data, in one pass of the network."""
        shift, a = self.net(z).unbind(-1)
        log_scale = bounded(a)
        return torch.addcmul(shift, log_scale.exp(), z), log_scale.sum(1)


class _Solve(torch.autograd.Function):
    """The z with mu(z) + exp(a(z)) z = x, and -sum a(z), by a sweep over the dimensions; its backward sweeps back.

    Unrolled, D steps of automatic differentiation would keep D copies of the hidden layers. Here the sweep forward
    fills them in once, in order of degree, and the sweep back meets each unit once, from the last degree to the first:
    when it comes to position t, all that depends on z_t has handed down its gradient g, so that with sigma = exp(a)

        dL/dx_t = g / sigma_t,    dL/dmu_t = -g / sigma_t,    dL/da_t = -g z_t - dL/dlog_det.
    """

    @staticmethod
    def forward(ctx: Any, net: MaskedMlp, x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        """The solution z (b, d) and its log-determinant (b,)."""
        position, table = net.positions[0], net.sorted()
        sequence = position.argsort()
        data, raw = x.T[sequence], x.new_empty(net.dim, len(x))

        def draw(t: int, parameters: Tensor) -> Tensor:
            raw[t] = parameters[1]
            return (data[t] - parameters[0]) * torch.exp(-bounded(parameters[1]))

        z, hidden = table.sweep(len(x), draw)
        ctx.net, ctx.table, ctx.sequence, ctx.z, ctx.raw, ctx.hidden = net, table, sequence, z, raw, hidden
        return z[position].T, -bounded(raw).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_z: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of each layer's weight and bias."""
        net, table, z, hidden, sequence = ctx.net, ctx.table, ctx.z, ctx.hidden, ctx.sequence
        depth, dim = net.depth, net.dim
        inverse_scale = torch.exp(-bounded(ctx.raw))
        slope = (ctx.raw.abs() < LARGEST_LOG_SCALE).to(z.dtype)
        grad = grad_z.T[sequence].clone()
        grad_hidden = [torch.zeros_like(h) for h in hidden]
        grad_out = z.new_empty(dim, 2, z.shape[1])
        for t in reversed(range(dim)):
            torch.mul(grad[t], inverse_scale[t], out=grad_out[t, 0]).neg_()
            torch.mul(torch.addcmul(grad_log_det, grad[t], z[t]), slope[t], out=grad_out[t, 1]).neg_()
            seen = table.ends[-1][t] if depth else t
            below = grad_hidden[-1] if depth else grad
            below[:seen].addmm_(table.top[t, :, :seen].T, grad_out[t])
            for layer in reversed(range(depth)):
                start, end = table.ends[layer][t - 1] if t else 0, table.ends[layer][t]
                if end > start:
                    new = grad_hidden[layer][start:end]
                    value = hidden[layer][start:end]
                    new.mul_(SLOPES[net.nonlinearity](value))
                    below, seen = (grad_hidden[layer - 1], table.ends[layer - 1][t]) if layer else (grad, t)
                    below[:seen].addmm_(table.weights[layer][start:end, :seen].T, new)
        grads = []
        columns, values = sequence, z
        for layer in range(depth):
            rows, mask = table.rows[layer], net.get_buffer(f"mask_{layer}")
            weight, bias = torch.empty_like(mask), z.new_empty(len(rows))
            weight[rows[:, None], columns] = grad_hidden[layer] @ values.T
            bias[rows] = grad_hidden[layer].sum(1)
            grads += [weight * mask, bias]
            columns, values = rows, hidden[layer]
        out, mask = grad_out[net.positions[0]].view(2 * dim, -1), net.get_buffer(f"mask_{depth}")
        weight = torch.empty_like(mask)
        weight[:, columns] = out @ values.T
        grads += [weight * mask, out.sum(1)]
        return None, -grad_out[net.positions[0], 0].T, *grads


class MaskedMixture(Base):
    """An autoregressive mixture of Gaussians: p(z) = prod_i sum_c w_ic N(z_i; mean_ic, sigma_ic^2) by a masked network.

    MADE-MoG of Papamakarios et al. 2017, as the base of a flow. The noise of an example is D uniforms, which choose the
    components by the inverse of their distribution function, and D standard normals.

    Args:
        dim: D.
        hidden_sizes: Widths of the hidden layers.
        components: Gaussians of each dimension.
        order: The network's order.
        num_classes: Labels that every conditional depends on; 0 for none.
        nonlinearity: Of the network's hidden units.
    """

    def __init__(
        self, dim: int, hidden_sizes: Sequence[int], components: int, *, order: Order = "natural", num_classes: int = 0,
        nonlinearity: Nonlinearity = "relu",
    ) -> None:  # fmt: skip
        super().__init__()
        self.components, self.num_classes = components, num_classes
        self.net = MaskedMlp(
            dim, hidden_sizes, 3 * components, order=order, context=num_classes, nonlinearity=nonlinearity
        )
        with torch.no_grad():  # equal components would stay equal: spread their means as draws of N(0, 1)
            bias = self.net.linear(self.net.depth).bias.view(dim, 3, components)
            bias[:, 1].normal_()

    def _context(self, y: Tensor | None) -> Tensor | None:
        return None if y is None else one_hot(y, self.num_classes, self.net.linear(0).bias.dtype)

    def _mixture(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means and log deviations, each (components, ...)."""
        logits, mean, log_sigma = parameters.unflatten(0, (3, self.components)).unbind(0)
        return logits.log_softmax(0), mean, bounded(log_sigma)

    def log_prob(self, z: Float[Tensor, "b d"], y: Tensor | None = None) -> Float[Tensor, " b"]:
        """log p(z), or log p(z | y), in one pass."""
        log_weight, mean, log_sigma = self._mixture(self.net(z, context=self._context(y)).movedim(-1, 0))
        return (log_weight + gaussian_log_density(z, mean, log_sigma)).logsumexp(0).sum(1)

    def noise(self, n: int, dim: int, *, like: Tensor, generator: Generator | None = None) -> Float[Tensor, "n two_d"]:
        """Uniforms and standard normals, side by side."""
        uniform = torch.rand(n, dim, generator=generator, device=like.device, dtype=like.dtype)
        return torch.cat([uniform, super().noise(n, dim, like=like, generator=generator)], 1)

    def from_noise(
        self, noise: Float[Tensor, "n two_d"], y: Tensor | None = None, *, temperature: float = 1.0
    ) -> Float[Tensor, "n d"]:
        """z, one dimension after another; the temperature scales the deviations within a component."""
        uniform, normal = noise.T[:, None].unflatten(0, (2, -1)).unbind(0)

        def draw(t: int, parameters: Float[Tensor, "p n"]) -> Float[Tensor, " n"]:
            log_weight, mean, log_sigma = self._mixture(parameters)
            chosen = (uniform[t] >= log_weight.exp().cumsum(0)[:-1]).sum(0, keepdim=True)
            return (mean.gather(0, chosen) + temperature * log_sigma.gather(0, chosen).exp() * normal[t])[0]

        sequence = self.net.positions[0].argsort()
        uniform, normal = uniform[sequence], normal[sequence]
        return self.net.ancestral(len(noise), draw, context=self._context(y))


@torch.no_grad()
def settle(steps: Sequence[Bijection], parts: Sequence[tuple[Tensor, ...]]) -> None:
    """Set each normalisation's moments to those of all the values that reach it, one after another.

    ``parts`` are the values in pieces, (values, context) each, or (values,). The moments of a later normalisation are
    those of values that the earlier ones have normalised by moments of all of them.
    """
    for step in steps:
        if isinstance(step, RunningMoments):
            n = sum(part[0].shape[0] for part in parts)
            mean = torch.stack([part[0].double().sum(0) for part in parts]).sum(0) / n
            var = torch.stack([(part[0].double() - mean).square().sum(0) for part in parts]).sum(0) / n
            step.running_mean.copy_(mean)
            step.running_var.copy_(var)
        parts = [(apply(step, *part), *part[1:]) for part in parts]


def apply(step: Bijection, x: Tensor, context: Tensor | None = None) -> Tensor:
    """One step's values, without its log-determinant."""
    z, _ = step(x, context) if isinstance(step, MaskedAffine) else step(x)
    return z
