"""Real NVP: a flow of affine couplings, whose nets read one half of the dimensions and scale and shift the other.

Everything is invertible in one pass and has a triangular Jacobian, so that density and samples both cost one pass:

    z = x * exp(s(fixed half)) + t(fixed half) on the other half,      log |det dz/dx| = sum s,
    loss = -E_data[log N(z; 0, I) + log |det dz/dx|].

*Images* take the multi-scale architecture. A level is three couplings with alternating checkerboard masks, a squeeze
of 2 x 2 pixels into channels, and three couplings with alternating channel masks; then half of the channels leave as
noise and the rest goes on. The last level is four checkerboard couplings. Levels are added down to 4 x 4 pixels (or an
odd side), as published, or ``downscales`` of them. *Vectors* take ``couplings`` with alternating masks. Every coupling
is followed by a batch normalisation, itself a bijection.

Shapes and units: x is raw (b, *shape), z (b, D); log-densities are in nats per example. On binary and discrete data the
number is the uniform dequantisation bound (see ``flow.py``).

Paper: Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", ICLR 2017, https://arxiv.org/abs/1605.08803.

Different from the paper: the logit takes all of (0, K) to the line, where the paper's logit(0.05 + 0.95 x / K) leaves
mass outside the data space. Batch normalisation is a bijection between couplings only, not inside their nets as well,
so that a coupling's own density never depends on the batch. No penalty on the weight norms and no flipped
images. Two residual blocks, the paper's choice for 64 x 64 images; it takes 4 with 32 channels for other 32 x 32 images
and 8 with 64 channels and one downscale for CIFAR-10.
"""

from collections.abc import Sequence

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.models.flow.flow import Dequantised, Flow
from dgmbench.nn.bijections import Bijection, Chain, MultiScale, Normalisation, Squeeze
from dgmbench.nn.couplings import (
    AffineCoupling,
    CouplingResnet,
    alternating,
    channel_halves,
    checkerboard,
    coupling_mlp,
)


class RealNvp(Flow):
    """Real NVP (Dinh, Sohl-Dickstein, Bengio 2017).

    Args:
        spec: the data space; images (c, h, w) take convolutions, vectors an mlp.
        channels: maps of the residual nets at the data's resolution; they double with every downscale. Images.
        blocks: residual blocks of each net. Images.
        downscales: levels that end with a squeeze; by default as many as lead to 4 pixels. Images.
        couplings: number of couplings. Vectors.
        hidden_sizes: hidden layers of each coupling's mlp. Vectors.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        channels: int = 32,
        blocks: int = 2,
        downscales: int | None = None,
        couplings: int = 6,
        hidden_sizes: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__(spec)
        if channels < 1 or blocks < 0 or couplings < 1 or any(size < 1 for size in hidden_sizes):
            raise UserError(
                f"Real NVP needs at least one coupling and positive widths: {channels=}, {blocks=}, {couplings=}, "
                f"hidden_sizes={list(hidden_sizes)}."
            )
        if spec.is_image:
            self.compose([self._multi_scale(channels, blocks, downscales)])
        elif len(spec.shape) == 1:
            self.compose(self._vector(couplings, tuple(hidden_sizes)))
        else:
            raise UserError(f"Real NVP takes images (c, h, w) and vectors, not {spec}.")

    def _vector(self, couplings: int, hidden_sizes: Sequence[int]) -> list[Bijection]:
        steps: list[Bijection] = []
        for parity in range(couplings):
            mask, net = alternating(self.spec.dim, parity % 2), coupling_mlp(self.spec.dim, hidden_sizes)
            steps += [AffineCoupling(mask, net, self.spec.dim), Normalisation(self.spec.dim)]
        return steps

    def _multi_scale(self, width: int, blocks: int, downscales: int | None) -> MultiScale:
        c, h, w = self.spec.shape
        possible, automatic = halvings(h, w)
        if downscales is None:
            downscales = automatic
        if not 0 <= downscales <= possible:
            raise UserError(f"model.downscales={downscales}, but {h} x {w} pixels can be halved {possible} times.")
        levels: list[Bijection] = []
        shapes: list[tuple[int, int, int]] = []
        for _ in range(downscales):
            steps = self._couplings([checkerboard(h, w, i % 2) for i in range(3)], c, width, blocks)
            c, h, w, width = 4 * c, h // 2, w // 2, 2 * width
            by_channel = self._couplings([channel_halves(c, i % 2) for i in range(3)], c, width, blocks)
            levels.append(Chain([*steps, Squeeze(), *by_channel]))
            c //= 2
            shapes.append((c, h, w))
        levels.append(Chain(self._couplings([checkerboard(h, w, i % 2) for i in range(4)], c, width, blocks)))
        return MultiScale(levels, [*shapes, (c, h, w)])

    @staticmethod
    def _couplings(masks: Sequence, channels: int, width: int, blocks: int) -> list[Bijection]:
        steps: list[Bijection] = []
        for mask in masks:
            net = CouplingResnet(channels, width, blocks)
            steps += [AffineCoupling(mask, net, channels), Normalisation(channels)]
        return steps


class DequantisedRealNvp(Dequantised, RealNvp):
    """Real NVP on data with levels: a bound in place of the density."""


RealNvp.on_levels = DequantisedRealNvp


def halvings(height: int, width: int) -> tuple[int, int]:
    """How often an image can be halved with pixels to couple left, and how often down to a side of at most 4.

    >>> halvings(32, 32), halvings(28, 28), halvings(3, 3)
    ((4, 3), (2, 2), (0, 0))
    """
    possible = automatic = 0
    while height % 2 == 0 and width % 2 == 0 and height * width > 4:
        automatic += min(height, width) > 4
        possible, height, width = possible + 1, height // 2, width // 2
    return possible, automatic
