"""Glow: a multi-scale flow whose steps are a normalisation, a learned mixing of the channels, and a coupling of halves.

Each of the K steps of a level takes three bijections, all with cheap log-determinants and inverses:

    actnorm        z = (x + shift) exp(log_scale) per channel, starting at mean 0, variance 1 of the first data,
    mixing         z_ij = W x_ij, a 1 x 1 convolution with an invertible W, by its LU factors or plain,
    coupling       z_2 = x_2 exp(s) + t (or x_2 + t), s, t = net(x_1), on halves x_1, x_2 of the channels.

A level squeezes 2 x 2 pixels into channels and takes K steps; then half of the channels leave with a prior that is
learned from the half that stays, N(mean(h), sigma(h)^2), and the rest goes on to the next level. What is left at the
end has a learned Gaussian prior of each channel. Learned priors of halves are couplings too, (z - mean) / sigma, so
that z is standard noise there, and a temperature is a factor on noise everywhere. If ``conditional``, each dimension of
z has a mean and a deviation of each class.

    loss = -E_data[log p(z) + log |det dz/dx|].

Shapes and units: x is raw (b, c, h, w), z (b, D); log-densities are in nats per example. On binary and discrete data
the number is the uniform dequantisation bound (see ``flow.py``).

Paper: Kingma, Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", NeurIPS 2018,
https://arxiv.org/abs/1807.03039.

As in the published code, but not in the paper: actnorm inside the nets, and a prior of each leaving half that reads the
half that stays. Different from both: levels pass a logit that leaves no mass outside the data space; scales are
exp(3 tanh(raw / 3)), bounded, as those published (sigmoid(raw + 2), and exp(raw) in the priors) let samples of noise
far out overflow; classes enter by the prior of all of z, of the top alone there, with no classifier beside it, and
start at the moments of their first noise; scales learn at the rate of the rest.
"""

from typing import Literal

import torch
from torch import Generator

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.flow.flow import Dequantised, Flow
from dgmbench.nn.bases import LearnedGaussian
from dgmbench.nn.bijections import ActNorm, Bijection, Chain, MultiScale, Recomputed, Squeeze
from dgmbench.nn.couplings import SplitCoupling, ZeroConv, bounded, glow_net
from dgmbench.nn.invertible_conv import InvertibleConv
from dgmbench.nn.labels import labelled_part


class Glow(Flow):
    """Glow (Kingma, Dhariwal 2018).

    Args:
        spec: the data space: images (c, h, w) with even sides, or at least two channels.
        levels: squeezes of 2 x 2 pixels; by default as many as lead to 4 pixels, but two where the sides allow it: 3 at
            32 x 32 and 4 at 64 x 64 as in the paper, 2 at 28 x 28 and 8 x 8.
        steps: K of each level; by default the paper's 32 from 28 pixels on, 8 below.
        width: channels of the nets; by default the paper's 512 from 28 pixels on, 64 below.
        coupling: affine, or additive as in the paper's experiments with large pictures.
        mixing: how W is held: by its LU factors, or plain.
        conditional: give p(x | y); the data need labels.
        recompute: save memory in training: keep one tensor a step, compute the rest again for the gradients.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        levels: int | None = None,
        steps: int | None = None,
        width: int | None = None,
        coupling: Literal["affine", "additive"] = "affine",
        mixing: Literal["lu", "plain"] = "lu",
        conditional: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__(spec)
        require(least=1, steps=steps, width=width)
        if not spec.is_image:
            raise UserError(f"Glow takes images (c, h, w), not {spec}.")
        c, h, w = spec.shape
        possible, automatic = squeezes(h, w)
        levels = automatic if levels is None else levels
        if not 0 <= levels <= possible:
            raise UserError(f"model.levels={levels}, but {h} x {w} pixels can be halved {possible} times.")
        if c == 1 and not levels:
            raise UserError(f"Glow couples halves of the channels, and {spec} has one channel and nothing to squeeze.")
        large = min(h, w) >= 28
        self.steps, self.width = steps or (32 if large else 8), width or (512 if large else 64)
        self.coupling, self.mixing, self.recompute = coupling, mixing, recompute
        scales, shapes = [], []
        for level in range(max(levels, 1)):
            squeeze: list[Bijection] = [Squeeze()] if levels else []
            if levels:
                c, h, w = 4 * c, h // 2, w // 2
            flow = [*squeeze, *(self._step(c) for _ in range(self.steps))]
            if level + 1 < levels:
                flow.append(self._split_prior(c))
                c //= 2
            scales.append(Chain(flow))
            shapes.append((c, h, w))
        if conditional:
            self.condition_on_classes()
            prior = LearnedGaussian(spec.dim, 1, spec.num_classes or 1)
        else:
            prior = LearnedGaussian(c, h * w)
        self.compose([MultiScale(scales, shapes)], prior)

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Start normalisations at the moments of data, and each class's prior at the moments of its noise."""
        super().initialise(batch, generator)
        batch = labelled_part(batch) if self.conditional else batch
        n = self._start_examples()
        y = self._label(batch.y, n)
        if y is not None:
            assert isinstance(self.base, LearnedGaussian)
            self.base.start(self.bijection(self.continuous(batch.x[:n], generator=generator))[0], y)

    def _step(self, channels: int) -> Bijection:
        """Actnorm, mixing, coupling."""
        fixed = channels // 2
        moving = channels - fixed
        affine = self.coupling == "affine"
        net = glow_net(fixed, self.width, 2 * moving if affine else moving)
        coupling = SplitCoupling(net, slice(0, fixed), slice(fixed, None), log_scale=bounded if affine else None)
        step = Chain([ActNorm(channels), InvertibleConv(channels, lu=self.mixing == "lu"), coupling])
        return Recomputed(step) if self.recompute else step

    @staticmethod
    def _split_prior(channels: int) -> Bijection:
        """Standardise the half that leaves, by a mean and a deviation that the half that stays predicts."""
        leaving = channels // 2
        net = ZeroConv(channels - leaving, 2 * leaving)
        return SplitCoupling(net, slice(leaving, None), slice(0, leaving), log_scale=bounded)


class DequantisedGlow(Dequantised, Glow):
    """Glow on data with levels: a bound in place of the density."""


Glow.on_levels = DequantisedGlow


def squeezes(height: int, width: int) -> tuple[int, int]:
    """How often an image can be halved, and how often it is by default: to a side of 4, but twice if it can be.

    >>> squeezes(64, 64), squeezes(32, 32), squeezes(28, 28), squeezes(8, 8), squeezes(3, 4)
    ((6, 4), (5, 3), (2, 2), (3, 2), (0, 0))
    """
    possible = down_to_4 = 0
    while height % 2 == 0 and width % 2 == 0:
        down_to_4 += min(height, width) > 4
        possible, height, width = possible + 1, height // 2, width // 2
    return possible, max(down_to_4, min(2, possible))
