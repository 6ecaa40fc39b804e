"""Spike-and-slab RBM: hidden units with a bit and a real value, so that bits choose a covariance of the visible units.

    E(v, z, s) = |v / sigma|^2 / 2 - a'(v / sigma) - (v / sigma)'W (z * s) - c'(z * s) + |s|^2 / 2 - b'z,
    p(z_j = 1 | v) = sigmoid(b_j + eta_j^2 / 2),    eta = c + W'(v / sigma),
    s_j | v, z ~ N(z_j eta_j, 1),    v | z, s ~ N(sigma (a + W (z * s)), sigma^2),
    F(v) = |v / sigma|^2 / 2 - a'(v / sigma) - sum_j softplus(b_j + eta_j^2 / 2)

and log p(v) = -F(v) - log Z. With the slabs integrated out, v given the spikes is Gaussian with precision
I - W diag(z) W' in units of sigma: a spike that is on lets v vary along its weights, so that pixels depend on each
other given the bits, as they do not in a Gaussian RBM. Spikes z given v, slabs s given both, and then v given z and s
is a block Gibbs chain; the machine has two sides, and every estimator trains it (``nn/spike_slab.py`` has the units).

v is x whitened by the training data's moments; data with levels get noise (``real_data.py``).

*The density exists* where I - W diag(z) W' is positive definite for all z, which it is if it is for z = 1. After each
step, singular values of W above sqrt(1 - ``MARGIN``) are cut down to it.

Shapes: raw x (b, *shape), v (b, d), z * s (b, hidden), W (d, hidden). Units: nats.
Papers: Courville, Bergstra, Bengio 2011, "A spike and slab restricted Boltzmann machine",
https://proceedings.mlr.press/v15/courville11a.html; "Unsupervised models of images by spike-and-slab RBMs",
ICML 2011 (slabs with a mean, here c).

Different from the papers: they keep v in a ball, or add precision with every spike; here the singular values are
bounded. The slabs' precision is 1, since another only rescales W, and log Z is annealed.
"""

from collections.abc import Sequence
from math import log, pi

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.boltzmann.couplings import CHUNK, ENUMERABLE, Couplings, GeometricPath, binary_states
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.real_data import Dequantised, GaussianSided, Whitened
from dgmbench.nn.spike_slab import SpikeSlab
from dgmbench.nn.unit_layers import Gaussian

MARGIN = 0.02  # the least share of a precision that is left: a variance grows up to 50 times, as does the mixing time


class SpikeSlabRbm(Whitened, GaussianSided):
    """Spike-and-slab RBM; ``SpikeSlabRbm(spec)`` of data with levels is an instance of ``on_levels``.

    Args:
        spec: real data, or discrete data of any number of levels.
        hidden: number of spikes.
        estimator: how the gradient is estimated; a copy is kept as a submodule. Default: ``CD(k=1)``.
        weight_std: standard deviation of the initial weights.
        spike_bias: initial log-odds of the spikes without input.
        sample_steps: Gibbs steps of ``sample``, started from the Gaussian with the data's moments.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: int = 256,
        estimator: Estimator | None = None,
        weight_std: float = 0.02,
        spike_bias: float = -1.0,
        sample_steps: int = 1000,
    ) -> None:
        super().__init__(spec, sample_steps=sample_steps)
        self.refuse(spec, "ssrbm")
        require(least=1, hidden=hidden)
        require(least=0, weight_std=weight_std)
        self.weight = nn.Parameter(weight_std * torch.randn(spec.dim, hidden))
        self.visible_bias = nn.Parameter(torch.zeros(spec.dim))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))  # c, the slabs' mean
        self.log_sigma = nn.Parameter(torch.zeros(spec.dim))
        self.spike_bias = nn.Parameter(torch.full((hidden,), float(spike_bias)))
        self.map_of(spec)
        self.bound_weights()
        self.train_by(estimator)

    # ---- the distribution ----

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Couplings:
        """Weights, biases, deviations and spikes, with ``fast`` added first if given."""
        own: list[Tensor] = [self.weight, self.visible_bias, self.hidden_bias, self.log_sigma, self.spike_bias]
        if fast is not None:
            own = [slow + quick for slow, quick in zip(own, fast, strict=True)]
        weight, a, c, log_sigma, b = own
        return Couplings(weight, a, c, Gaussian.of(log_sigma.exp()), SpikeSlab(b))

    def annealing_path(self) -> GeometricPath:
        """From the base to this machine, with the parameters as they are now."""
        return SpikePath.between(self.base(), self.couplings(), upwards=self.state_of)

    def visible_given_spikes(self, z: Float[Tensor, "n h"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d d"]]:
        """Mean and covariance of v given spikes z, slabs integrated out."""
        _, mean, covariance = given_spikes(self.couplings(), z)
        return mean, covariance

    # ---- training ----

    @torch.no_grad()
    def bound_weights(self) -> None:
        """Cut the singular values of W down to sqrt(1 - ``MARGIN``) where they are above."""
        most = (1 - MARGIN) ** 0.5
        rest = (1 - MARGIN) * torch.eye(len(self.weight)).to(self.weight) - self.weight @ self.weight.t()
        if int(torch.linalg.cholesky_ex(rest).info):  # a twentieth of the time of singular values, and mostly 0
            u, values, v = torch.linalg.svd(self.weight, full_matrices=False)
            self.weight.copy_(u * values.clamp(max=most) @ v)

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Keep the density proper, then advance chains and fast weights."""
        self.bound_weights()
        super().after_step(player, batch, generator)


def given_spikes(now: Couplings, z: Float[Tensor, "n h"]) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the integral of exp(-E) over v and s (n,), mean (n, d) and covariance (n, d, d) of v, given spikes z."""
    assert isinstance(now.visible_units, Gaussian)
    assert isinstance(now.hidden_units, SpikeSlab)
    sigma, weight, c = now.visible_units.sigma, now.weight, now.hidden_bias
    precision = torch.eye(len(weight)).to(weight) - torch.einsum("ij,nj,kj->nik", weight, z, weight)
    pull = now.visible_bias + (z * c) @ weight.t()
    root = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve(pull[..., None], root)[..., 0]
    log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
    log_weight = z @ (now.hidden_units.spike_bias + 0.5 * c.square()) + 0.5 * (mean * pull).sum(1) - 0.5 * log_det
    log_weight = log_weight + (sigma.log() + 0.5 * log(2 * pi)).sum()
    return log_weight, sigma * mean, torch.cholesky_inverse(root) * sigma[:, None] * sigma


class SpikePath(GeometricPath):
    """The path of two sides, whose end is a mixture of Gaussians that can be enumerated by its spikes."""

    def exact_log_partition(self) -> Tensor | None:
        """Log Z_1 over all spikes, None above 20."""
        hidden = self.couplings.weight.shape[1]
        if hidden > ENUMERABLE:
            return None
        now, total = self.couplings.double(), []
        for start in range(0, 1 << hidden, CHUNK):
            z = binary_states(hidden, start, min(start + CHUNK, 1 << hidden), like=now.weight)
            total.append(given_spikes(now, z)[0].logsumexp(0))
        return torch.stack(total).logsumexp(0)


class DequantisedSpikeSlabRbm(Dequantised, SpikeSlabRbm):
    """Spike-and-slab RBM of data with levels."""


SpikeSlabRbm.on_levels = DequantisedSpikeSlabRbm
