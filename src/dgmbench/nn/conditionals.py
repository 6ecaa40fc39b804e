r"""One-dimensional conditionals p(x_i | ...): what the P parameters of a dimension mean, for autoregressive models.

============= =============================================== =================================================
data          parameters of a dimension                       conditional
============= =============================================== =================================================
binary        1 logit                                         Bernoulli
discrete      ``levels`` logits                               categorical
discrete      3 x ``components``: logits, means, log scales   mixture of discretised logistics
real          3 x ``components``: logits, means, log scales   mixture of Gaussians or Laplaces, a density
============= =============================================== =================================================

A discretised logistic gives a level the probability that a logistic variable lies nearest to it, and the two outermost
levels all that lies beyond them (Salimans, Karpathy, Chen, Kingma 2017, https://arxiv.org/abs/1701.05517). Its
parameters do not grow with the number of levels, which a network of D x D weights cannot afford 256 times.

Networks see binary and discrete values scaled to [0, 1] and real values as they are; the scaling enters networks only,
never the likelihood. Log-probabilities are of raw values, in nats, one for each dimension.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require
from dgmbench.nn.levels import (
    draw_categories,
    draw_levels,
    level_log_prob,
    logistic_log_prob,
    marginal_parameters,
    parameters_per_value,
)
from dgmbench.nn.observation import gaussian_log_density
from dgmbench.nn.scaling import Scaling

Density = Literal["gaussian", "laplace"]
Discrete = Literal["auto", "categorical", "logistics"]
MOST_CATEGORIES = 64  # levels that ``auto`` gives a logit each
Sweep = Callable[[int, Callable[[int, Tensor], Tensor]], Float[Tensor, "n d"]]
"""Goes through the positions of an order with ``draw(t, parameters)``; values of n examples, dimensions in C order."""
DEVIATIONS = {"gaussian": 1.0, "laplace": 1 / math.sqrt(2), "logistic": math.sqrt(3) / math.pi}
"""The scale of a component of standard deviation 1."""
LARGEST_LOG_SCALE = 7.0  # of either sign: a log scale linear in x explodes when samples are fed back


class Conditionals(nn.Module):
    """The conditionals of binary, discrete or real dimensions: log-probability, draws by inverse CDF, marginals.

    Args:
        spec: The data space.
        components: Number of components in a mixture.
        density: The density of a real dimension's components.
        discrete: Of discrete dimensions: ``categorical``, ``logistics`` for mixtures of discretised logistics, or
            ``auto``, which is categorical up to 64 levels.
    """

    def __init__(
        self, spec: DataSpec, *, components: int = 10, density: Density = "gaussian", discrete: Discrete = "auto"
    ) -> None:
        super().__init__()
        require(least=1, components=components)
        if density not in ("gaussian", "laplace"):
            raise UserError(f"density={density} is unknown; choose gaussian or laplace.")
        if spec.kind not in ("binary", "discrete", "real"):
            raise UserError(f"Autoregressive conditionals are of binary, discrete or real data, not {spec.kind}.")
        self.spec, self.components, self.density = spec, components, density
        many = spec.kind == "discrete" and (spec.levels or 0) > MOST_CATEGORIES
        self.logistics = spec.kind == "discrete" and (discrete == "logistics" or (discrete == "auto" and many))
        self.mixed = spec.kind == "real" or self.logistics
        self.parameters_per_dim = 3 * components if self.mixed else parameters_per_value(spec)
        self.scaling = Scaling(spec, low=0.0)

    def inputs(self, x: Tensor, like: Tensor) -> Float[Tensor, "b d"]:
        """Raw x (b, *shape) as a network sees it, in C order, of the dtype of ``like``."""
        return self.scaling(x).to(like.dtype).flatten(1)

    def raw(self, values: Float[Tensor, "n d"]) -> Tensor:
        """A network's view of the values back to raw (n, *shape)."""
        return self.scaling.inverse(values.reshape(-1, *self.spec.shape))

    def log_prob(self, parameters: Float[Tensor, "*b d p"], x: Tensor) -> Float[Tensor, "*b d"]:
        """log p(x_i | parameters) of every dimension of raw x (b, *shape), nats."""
        if not self.mixed:
            return level_log_prob(parameters, x.flatten(1).expand(parameters.shape[:-1]))
        logits, mean, log_scale = self.mixture(parameters.movedim(-1, 0))
        x = x.flatten(1).to(parameters)
        if self.logistics:
            each = logistic_log_prob(x, mean, log_scale, levels=self.spec.levels or 2, low=self.scaling.low)
        elif self.density == "gaussian":
            each = gaussian_log_density(x, mean, log_scale)
        else:
            each = -(x - mean).abs() * torch.exp(-log_scale) - log_scale - math.log(2)
        return (logits.log_softmax(0) + each).logsumexp(0)

    def mixture(self, parameters: Float[Tensor, "p *n"]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, means and log scales of a dimension's mixture, each (components, *n)."""
        logits, mean, log_scale = parameters.unflatten(0, (3, self.components)).unbind(0)
        return logits, mean, log_scale / (1 + log_scale.abs() / LARGEST_LOG_SCALE)

    def noise(self, n: int, like: Tensor, *, generator: Generator | None = None) -> Float[Tensor, "two d n"]:
        """The randomness of n examples: a uniform and, for a mixture, a standard variate for each dimension."""
        uniform = torch.rand(self.spec.dim, n, generator=generator, device=like.device, dtype=like.dtype)
        if not self.mixed:
            return uniform[None]
        standard = torch.empty_like(uniform)
        if self.logistics:
            return torch.stack((uniform, standard.uniform_(generator=generator).logit(eps=1e-7)))
        if self.density == "gaussian":
            return torch.stack((uniform, standard.normal_(generator=generator)))
        sided = standard.uniform_(-1, 1, generator=generator)
        return torch.stack((uniform, -sided.sign() * torch.log1p(-sided.abs().clamp(max=1 - 1e-7))))

    def draw(self, parameters: Float[Tensor, "p *n"], noise: Float[Tensor, "two *n"]) -> Float[Tensor, "*n"]:
        """Values as a network sees them, from their parameters and their noise (inverse CDFs)."""
        if not self.mixed:
            return draw_levels(parameters.movedim(0, -1), noise[0]).to(noise) * self.scaling.step
        logits, mean, log_scale = self.mixture(parameters)
        chosen = draw_categories(logits.movedim(0, -1), noise[0])[None]
        value = (mean.gather(0, chosen) + log_scale.gather(0, chosen).exp() * noise[1])[0]
        if not self.logistics:
            return value
        step = self.scaling.step
        return (value / step).round().clamp(0, (self.spec.levels or 2) - 1) * step

    @torch.no_grad()
    def sample(self, n: int, sweep: Sweep, like: Tensor, generator: Generator | None = None) -> Tensor:
        """n raw examples (n, *shape) by a sweep over the positions."""
        noise = self.noise(n, like, generator=generator)
        return self.raw(sweep(n, lambda t, parameters: self.draw(parameters, noise[:, t])))

    @torch.no_grad()
    def complete(
        self, x: Tensor, known: Tensor, sequence: Int[Tensor, " d"], sweep: Sweep, like: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """Raw x (b, *shape) where ``known``; elsewhere drawn, each value given all those before it in ``sequence``."""
        noise = self.noise(len(x), like, generator=generator)
        kept, values = known.flatten(1)[:, sequence].T, self.inputs(x, like)[:, sequence].T

        def draw(t: int, parameters: Tensor) -> Tensor:
            return torch.where(kept[t], values[t], self.draw(parameters, noise[:, t]))

        return torch.where(known, x, self.raw(sweep(len(x), draw)))

    @torch.no_grad()
    def initialise(self, bias: Float[Tensor, "d p"], x: Tensor, generator: Generator) -> None:
        """Set the output biases to the marginals of raw x (n, *shape), where a network starts well.

        The first dimensions of an order see little else, and a bias alone learns slowly.
        """
        if self.mixed:
            sigma, mean = torch.std_mean(self.inputs(x, bias), dim=0, correction=0)
            largest = 0.9 * LARGEST_LOG_SCALE
            scale = sigma * DEVIATIONS["logistic" if self.logistics else self.density]
            log_scale = scale.log().clamp(min=-largest, max=largest)
            _, means, log_scales = bias.unflatten(1, (3, self.components)).unbind(1)
            spread = torch.randn(means.shape, generator=generator, device=bias.device, dtype=bias.dtype)
            means.copy_(mean[:, None] + sigma[:, None] * spread)
            log_scales.copy_((log_scale / (1 - log_scale.abs() / LARGEST_LOG_SCALE))[:, None])
            return
        bias.copy_(marginal_parameters(x.flatten(1), self.spec.levels or 2, self.parameters_per_dim))
