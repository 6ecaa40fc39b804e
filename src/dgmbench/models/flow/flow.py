"""What every normalizing flow shares: the density of real data, the bound for data with levels, loss, samples, codes.

A flow is a bijection between data and noise z of a known density, N(0, I) if it names no other base, so that

    log p(x) = log p(z) + log |det dz/dx|,      z, log_det = bijection(x).

On ``real`` data that is the likelihood, and a flow has ``log_prob``. On binary and discrete data, 0 ... K - 1, the
density is one of x + u in (0, K), u uniform, and the model's P(x) is the mass of the cell of x. Then a flow has
``elbo`` and ``log_weights`` in place of ``log_prob``: by Jensen's inequality, with q(u | x) uniform and of density 1,

    log P(x) = log E_u[p(x + u)] >= E_u[log 1/k sum_i p(x + u_i)] >= E_u[log p(x + u)].

The bijection begins there with a logit that takes (0, K) to the whole line, so that no mass lies outside the data
space: the masses of all x sum to one, and a sample is the integer part of a draw of the density.

What differs from the papers: u is cut off at K 2^-22 from 0 and from 1, where they draw all of (0, 1), as the logit of
a value that rounds to 0 or K is infinite. That moves a share of 2 K 2^-22 of the draws, 1.2e-4 with 256 levels, by less
than K 2^-22 each (``nn.bijections.dequantise``).

With classes, p(x | y) is trained on labelled examples alone; every number without a label is that of
log sum_y p(y) p(x | y).

Nats per example of raw x (b, *shape). A code is z (b, D); the code of levels is that of the cell's centre.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.bases import Base, Gaussian
from dgmbench.nn.batchnorm import absorb_statistics
from dgmbench.nn.bijections import Bijection, Chain, Logit, dequantise, start_activations
from dgmbench.nn.labels import count_classes, draw_classes, labelled_part, marginal, start_class_prior

# Normalisations start at the moments of as many examples as have this many values, which bounds the memory.
START_VALUES = 2**19

Given = Callable[[Tensor | None], Float[Tensor, " b"]]
"""The log-density of fixed values as a function of their labels (b,)."""


class Flow(Model):
    """Base of the flows. A subclass calls ``compose`` with its bijections, and names its ``on_levels``.

    ``Flow(spec)`` is an instance of ``on_levels``, a subclass with ``Dequantised``, if the data have levels: the two
    have different methods, since the methods of a model say what it can do.

    A class-conditional flow calls ``condition_on_classes``. Where only the base sees the label, that is all; where the
    bijection does, the flow also overrides ``_given`` and ``_from_noise``.
    """

    on_levels: ClassVar[type["Flow"]]
    class_log_prior: Tensor
    """log p(y) of a class-conditional flow, (num_classes,); others have no such buffer."""
    temperature: float = 1.0
    """What ``sample`` multiplies the noise by; 1 draws the model's own distribution."""

    def __new__(cls, spec: DataSpec | None = None, **settings: Any) -> "Flow":
        """The class for this kind of data; without a spec (copying, unpickling), the class itself."""
        levels = spec is not None and spec.kind in ("binary", "discrete")
        return super().__new__(cls.on_levels if levels and not issubclass(cls, Dequantised) else cls)

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.conditional = False
        if spec.kind not in ("binary", "discrete", "real"):
            raise UserError(f"A flow models binary, discrete or real data, not {spec}.")

    def compose(self, bijections: Iterable[Bijection], base: Base | None = None) -> None:
        """Set the bijection from data (b, *shape) to noise (b, D): the logit of data with levels, then these."""
        logit = [Logit(float(self.spec.levels))] if self.spec.levels else []
        self.bijection = Chain([*logit, *bijections])
        self.base = Gaussian() if base is None else base

    def condition_on_classes(self) -> None:
        """Let the density depend on the label; its prior is the frequency of each class in the training data."""
        start_class_prior(self, self.spec)
        self.conditional = True

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Start normalisations at the moments of data, and the classes at their frequencies."""
        if self.conditional:
            batch = labelled_part(batch)
            count_classes(self.class_log_prior, batch.y)
        n = self._start_examples()
        training = self.training
        self.train()
        with start_activations(self):
            self._log_density(batch.x[:n], generator, self._label(batch.y, n))
        absorb_statistics(self, momentum=1.0)
        self.train(training)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The mean negative log-density, or bound, given the labels in a class-conditional flow."""
        value = self._log_density(batch.x, generator, self._label(batch.y)).mean()
        return -value, {self._quantity: value.detach()}

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the moments of normalisations."""
        absorb_statistics(self)

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Float[Tensor, " b"]:
        """The exact log-density of raw x (b, *shape), given labels y (b,) if there are any."""
        return self._log_density(x, None, y)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw examples (n, *shape) by the inverse, at ``temperature``."""
        if self.conditional and y is None:
            y = draw_classes(self.class_log_prior, n, generator)
        y = self._label(y)
        noise = self.base.noise(n, self.spec.dim, like=next(self.parameters()), generator=generator)
        z = self.base.from_noise(noise, y, temperature=self.temperature)
        return self._raw(self._from_noise(z, y))

    def encode(self, x: Tensor) -> Float[Tensor, "b d"]:
        """The noise z of raw x (b, *shape)."""
        return self.bijection(self.centre(x))[0]

    def decode(self, code: Float[Tensor, "b d"]) -> Tensor:
        """The data of noise z, as float (b, *shape) on the raw scale: the way back from ``encode``."""
        return self.bijection.inverse(code)[0]

    def continuous(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Where the density is evaluated for raw x (b, *shape), as floats of the same shape."""
        return x.to(next(self.parameters()).dtype)

    def centre(self, x: Tensor) -> Tensor:
        """The value that stands for raw x (b, *shape) in a code."""
        return self.continuous(x)

    _quantity: ClassVar[str] = "log_likelihood"

    def _log_density(self, x: Tensor, generator: Generator | None, y: Tensor | None = None) -> Float[Tensor, " b"]:
        """The log-density at the continuous values that stand for raw x (b, *shape)."""
        if y is not None and not self.conditional:
            raise UserError(f"{type(self).__name__} was not built to depend on labels; leave y out.")
        given = self._given(self.continuous(x, generator=generator))
        if self.conditional and y is None:
            return marginal(given, self.class_log_prior, len(x))
        return given(y)

    def _given(self, v: Tensor) -> Given:
        """The log-density of continuous v (b, *shape) given a label: one pass, as only the base sees labels."""
        z, log_det = self.bijection(v)
        return lambda y: self.base.log_prob(z, y) + log_det

    def _from_noise(self, z: Float[Tensor, "n d"], y: Tensor | None) -> Tensor:
        """Continuous data (n, *shape) of noise, given labels in a class-conditional flow."""
        return self.bijection.inverse(z)[0]

    def _start_examples(self) -> int:
        return max(64, START_VALUES // self.spec.dim)

    def _label(self, y: Tensor | None, n: int | None = None) -> Tensor | None:
        """The first n labels of a class-conditional flow, else None."""
        if not self.conditional:
            return None
        if y is None:
            raise UserError("A class-conditional flow needs labels with every batch, and this one has none.")
        return y[:n]

    def _raw(self, v: Tensor) -> Tensor:
        return v.to(self.spec.dtype)


class Dequantised(Flow):
    """Mixed into a flow, this replaces its exact likelihood by the bound for data with levels."""

    log_prob = None  # type: ignore[assignment]  # typing's way to say that a protocol's method is not there
    _quantity = "elbo"

    def elbo(self, x: Tensor, y: Tensor | None = None, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """One draw of the dequantisation bound of raw x (b, *shape), given labels y (b,) if there are any."""
        return self._log_density(x, generator, y)

    def log_weights(
        self, x: Tensor, k: int, y: Tensor | None = None, *, generator: Generator | None = None
    ) -> Float[Tensor, "k b"]:
        """Draw k values of log p(x + u) for each raw x (b, *shape); their mean weight is unbiased for P(x)."""
        labels = None if y is None else y.repeat(k)
        return self._log_density(x.repeat(k, *[1] * len(self.spec.shape)), generator, labels).view(k, len(x))

    def decode(self, code: Float[Tensor, "b d"]) -> Tensor:
        """The data of noise z, as float (b, *shape) on the raw scale: the way back from ``encode``."""
        return (super().decode(code) - 0.5).clamp(0, self._levels - 1)

    def continuous(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """x + u in (0, K), with u uniform."""
        return dequantise(x, self._levels, dtype=next(self.parameters()).dtype, generator=generator)

    def centre(self, x: Tensor) -> Tensor:
        """x + 1/2."""
        return x.to(next(self.parameters()).dtype) + 0.5

    @property
    def _levels(self) -> int:
        return self.spec.levels or 2

    def _raw(self, v: Tensor) -> Tensor:
        return v.floor().clamp(0, self._levels - 1).to(self.spec.dtype)
