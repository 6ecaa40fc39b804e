"""What every normalizing flow shares: the density of real data, the bound for data with levels, loss and samples.

A flow is a bijection between data and noise z ~ N(0, I), so that its density is known:

    log p(x) = log N(z; 0, I) + log |det dz/dx|,      z, log_det = bijection(x).

On ``real`` data that is the likelihood, and a flow has ``log_prob``. On binary and discrete data, 0 ... K - 1, the
density is one of x + u in (0, K), u uniform, and the model's P(x) is the mass of the cell of x. Then a flow has
``elbo`` and ``log_weights`` in place of ``log_prob``: by Jensen's inequality, with q(u | x) uniform and of density 1,

    log P(x) = log E_u[p(x + u)] >= E_u[log 1/k sum_i p(x + u_i)] >= E_u[log p(x + u)].

The bijection begins there with a logit that takes (0, K) to the whole line, so that no mass lies outside the data
space: the masses of all x sum to one, and a sample is the integer part of a draw of the density.

Nats per example of raw x (b, *shape).
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.batchnorm import absorb_statistics
from dgmbench.nn.bijections import Bijection, Chain, Logit, dequantise, standard_normal_log_density


class Flow(Model):
    """Base of the flows. A subclass calls ``compose`` with its bijections, and names its ``on_levels``.

    ``Flow(spec)`` is an instance of ``on_levels``, a subclass with ``Dequantised``, if the data have levels: the two
    have different methods, since the methods of a model say what it can do.
    """

    on_levels: ClassVar[type["Flow"]]

    def __new__(cls, spec: DataSpec | None = None, **settings: Any) -> "Flow":
        """The class for this kind of data; without a spec (copying, unpickling), the class itself."""
        levels = spec is not None and spec.kind in ("binary", "discrete")
        return super().__new__(cls.on_levels if levels and not issubclass(cls, Dequantised) else cls)

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        if spec.kind not in ("binary", "discrete", "real"):
            raise UserError(f"A flow models binary, discrete or real data, not {spec}.")

    def compose(self, bijections: Iterable[Bijection]) -> None:
        """Set the bijection from data (b, *shape) to noise: the logit of data with levels, then these."""
        logit = [Logit(float(self.spec.levels))] if self.spec.levels else []
        self.bijection = Chain([*logit, *bijections])

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Start normalisations at the moments of data."""
        training = self.training
        self.train()
        self._log_density(batch.x, generator)
        absorb_statistics(self, momentum=1.0)
        self.train(training)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The mean negative log-density, or bound."""
        value = self._log_density(batch.x, generator).mean()
        return -value, {self._quantity: value.detach()}

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the moments of normalisations."""
        absorb_statistics(self)

    def log_prob(self, x: Tensor) -> Float[Tensor, " b"]:
        """The exact log-density of raw x (b, *shape)."""
        return self._log_density(x, None)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw examples (n, *shape) by the inverse."""
        parameter = next(self.parameters())
        z = torch.randn(n, self.spec.dim, generator=generator, device=parameter.device, dtype=parameter.dtype)
        return self._raw(self.bijection.inverse(z)[0])

    _quantity: ClassVar[str] = "log_likelihood"

    def _log_density(self, x: Tensor, generator: Generator | None) -> Float[Tensor, " b"]:
        """The log-density at the continuous values that stand for raw x (b, *shape)."""
        z, log_det = self.bijection(self._continuous(x, generator))
        return standard_normal_log_density(z) + log_det

    def _continuous(self, x: Tensor, generator: Generator | None) -> Tensor:
        return x.to(next(self.parameters()).dtype)

    def _raw(self, x: Tensor) -> Tensor:
        return x.to(self.spec.dtype)


class Dequantised(Flow):
    """Mixed into a flow, this replaces its exact likelihood by the bound for data with levels."""

    log_prob = None  # type: ignore[assignment]  # typing's way to say that a protocol's method is not there
    _quantity = "elbo"

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """One draw of the dequantisation bound of raw x (b, *shape)."""
        return self._log_density(x, generator)

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Float[Tensor, "k b"]:
        """Draw k values of log p(x + u) for each raw x (b, *shape); their mean weight is unbiased for P(x)."""
        return self._log_density(x.repeat(k, *[1] * len(self.spec.shape)), generator).view(k, len(x))

    def _continuous(self, x: Tensor, generator: Generator | None) -> Tensor:
        levels = self.spec.levels or 2
        return dequantise(x, levels, dtype=next(self.parameters()).dtype, generator=generator)

    def _raw(self, x: Tensor) -> Tensor:
        return x.floor().clamp(0, (self.spec.levels or 2) - 1).to(self.spec.dtype)
