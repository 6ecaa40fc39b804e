"""i-ResNet: a residual network whose blocks are made invertible by keeping every layer's operator norm below c < 1.

A block z = x + g(x) with a contraction g is one to one; no part of the data has to be left aside as in couplings. The
price is the log-determinant, a power series in the Jacobian J of g, of which n terms are estimated with random traces:

    log |det dz/dx| = sum_{k >= 1} (-1)^(k + 1) tr(J^k) / k,      tr(J^k) = E_v[v' J^k v],
    loss = -E_data[log N(z; 0, I) + sum over blocks of log |det dz/dx|].

Density is one pass, samples are found by a fixed-point iteration in every block.

What the number is: with D <= 16 dimensions (``log_det=auto``) the log-determinant is that of the dense Jacobian, and
``log_prob`` is exact. Otherwise it is an estimate and nothing else: a truncated series is biased, by at most
``estimate_bias`` nats, and with ``log_det=roulette`` it is unbiased for log p(x), but random. The model then has
``log_prob_estimate`` in place of ``log_prob``, ``elbo`` and ``log_weights``; on data with levels it estimates the
dequantisation bound.

Shapes and units: x is raw (b, *shape), z (b, D); log-densities are in nats per example.

Paper: Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen, "Invertible Residual Networks", ICML 2019,
https://arxiv.org/abs/1811.00995. Roulette: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible
Generative Modeling", NeurIPS 2019, https://arxiv.org/abs/1906.02735.

Different from the paper: a convolution's norm is that of the map of images, by a power iteration through it and its
transpose that runs until it stands still (five steps there), so that no layer exceeds c. J v is computed forwards with
the network's value, so that n terms cost n passes without activations and their gradient needs no second derivative.
The sizes are ours, smaller than there.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Model
from dgmbench.models.flow.flow import Dequantised, Flow
from dgmbench.nn.bijections import ActNorm, Bijection, Flatten, Mapped, Squeeze
from dgmbench.nn.lipschitz import LipschitzNet, SpectralMap
from dgmbench.nn.residual_flows import Residual

MOST_EXACT_DIMENSIONS = 16
Choice = Literal["auto", "exact", "series", "roulette"]


def exact(spec: DataSpec, log_det: str) -> bool:
    """Whether the log-determinant is that of the dense Jacobian."""
    return log_det == "exact" or (log_det == "auto" and spec.dim <= MOST_EXACT_DIMENSIONS)


class IResNet(Flow):
    """Invertible residual network (Behrmann et al. 2019).

    Args:
        spec: the data space; images (c, h, w) take convolutions, vectors an mlp.
        blocks: residual blocks, each after an actnorm; of each scale for images.
        hidden_sizes: hidden layers of each block. Vectors.
        channels: channels between a block's convolutions. Images.
        scales: resolutions, with a squeeze of 2 x 2 pixels into channels from one to the next. Images.
        coefficient: c, the largest operator norm of a layer.
        log_det: ``exact``, ``series``, ``roulette``, or ``auto`` for exact up to 16 dimensions and the series beyond.
        terms: n, terms of the series, or those that the roulette never leaves out, in training.
        evaluation_terms: n in evaluation.
        probes: random vectors of each trace.
    """

    estimated: ClassVar[type["IResNet"]]
    estimated_on_levels: ClassVar[type["IResNet"]]

    def __new__(cls, spec: DataSpec | None = None, **settings: Any) -> "IResNet":
        """The class with the methods that the data and the log-determinant allow."""
        if spec is None or exact(spec, settings.get("log_det", "auto")):
            return super().__new__(cls, spec)  # type: ignore[return-value]  # the class, or its ``on_levels``
        return Model.__new__(cls.estimated_on_levels if spec.kind in ("binary", "discrete") else cls.estimated)

    def __init__(
        self,
        spec: DataSpec,
        *,
        blocks: int = 16,
        hidden_sizes: Sequence[int] = (64, 64),
        channels: int = 32,
        scales: int = 2,
        coefficient: float = 0.9,
        log_det: Choice = "auto",
        terms: int = 10,
        evaluation_terms: int = 20,
        probes: int = 1,
    ) -> None:
        super().__init__(spec)
        require(least=1, blocks=blocks, hidden_sizes=hidden_sizes, channels=channels, scales=scales, probes=probes)
        require(least=1, terms=terms, evaluation_terms=evaluation_terms)
        require(above=0, below=1, coefficient=coefficient)
        self.way = "exact" if exact(spec, log_det) else "series" if log_det == "auto" else log_det
        self.terms, self.evaluation_terms, self.probes = terms, evaluation_terms, probes

        def block(channels_in: int, net: LipschitzNet) -> list[Bijection]:
            how: Any = {"log_det": self.way, "terms": terms, "evaluation_terms": evaluation_terms, "probes": probes}
            return [ActNorm(channels_in), Residual(net, **how)]

        steps: list[Bijection] = []
        if spec.is_image:
            c, h, w = spec.shape
            if h % 2 ** (scales - 1) or w % 2 ** (scales - 1):
                raise UserError(f"model.scales={scales}, but {h} x {w} pixels cannot be halved {scales - 1} times.")
            for scale in range(scales):
                if scale:
                    steps.append(Squeeze())
                    c, h, w = 4 * c, h // 2, w // 2
                for _ in range(blocks):
                    steps += block(c, LipschitzNet.convolutional((c, h, w), channels, coefficient=coefficient))
            steps.append(Flatten((c, h, w)))
        elif len(spec.shape) == 1:
            for _ in range(blocks):
                steps += block(spec.dim, LipschitzNet.mlp(spec.dim, hidden_sizes, coefficient=coefficient))
        else:
            raise UserError(f"i-ResNet takes images (c, h, w) and vectors, not {spec}.")
        self.compose(steps)

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Follow the singular vectors of the weights that have moved."""
        super().after_step(player, batch, generator)
        self._refine()

    def settle(self, batches: Iterator[Batch], generator: Generator) -> None:
        """Find the singular vectors of the weights that are evaluated, which may be averages."""
        self._refine(most=500)

    def _refine(self, most: int = 50) -> None:
        for each in self.modules():
            if isinstance(each, SpectralMap):
                each.refine(most=most)

    def encode(self, x: Tensor) -> Float[Tensor, "b d"]:
        """The noise z of raw x (b, *shape), without the log-determinant."""
        v = self.centre(x)
        for step in self.bijection.parts():
            v = v + step.net(v) if isinstance(step, Residual) else step(v)[0]
        return v

    def _log_density(self, x: Tensor, generator: Generator | None, y: Tensor | None = None) -> Float[Tensor, " b"]:
        z, log_det = self._through(self.continuous(x, generator=generator), generator)
        return self.base.log_prob(z) + log_det

    def _through(self, v: Tensor, generator: Generator | None) -> Mapped:
        total = v.new_zeros(len(v))
        for step in self.bijection.parts():
            v, log_det = step(v, generator) if isinstance(step, Residual) else step(v)
            total = total + log_det
        return v, total

    def _from_noise(self, z: Float[Tensor, "n d"], y: Tensor | None) -> Tensor:
        """Noise to data, without the log-determinant."""
        for step in reversed(list(self.bijection.parts())):
            z = step.solve(z) if isinstance(step, Residual) else step.inverse(z)[0]
        return z


class DequantisedIResNet(Dequantised, IResNet):
    """i-ResNet on data with levels and few dimensions: a bound in place of the density."""


class EstimatedIResNet(IResNet):
    """i-ResNet whose log-determinant is random: an estimate in place of the density or the bound."""

    log_prob = elbo = log_weights = None  # type: ignore[assignment]  # typing's way to say that they are not there
    _quantity = "log_prob_estimate"

    def log_prob_estimate(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """One draw of the estimate of log p(x), or of its dequantisation bound, of raw x (b, *shape)."""
        return self._log_density(x, generator)

    def estimate_protocol(self) -> Mapping[str, Any]:
        """What it estimates and how."""
        of = "elbo" if self.spec.levels else "log_likelihood"
        return {"of": of, "log_det": self.way, "terms": self.evaluation_terms, "probes": self.probes}

    def estimate_bias(self) -> float:
        """The most by which the mean of the estimate may miss, nats an example: the terms left out of each series."""
        blocks = [step for step in self.bijection.parts() if isinstance(step, Residual)]
        return self.spec.dim * sum(block.remainder() for block in blocks)


class EstimatedDequantisedIResNet(EstimatedIResNet, Dequantised):
    """The same on data with levels."""

    log_prob = elbo = log_weights = None  # type: ignore[assignment]


IResNet.on_levels = DequantisedIResNet
IResNet.estimated, IResNet.estimated_on_levels = EstimatedIResNet, EstimatedDequantisedIResNet
