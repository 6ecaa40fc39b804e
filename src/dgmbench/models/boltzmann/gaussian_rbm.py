"""Gaussian-Bernoulli RBM: real visible units of learned deviations sigma over hidden bits, a mixture of 2^H Gaussians.

    E(v, h) = sum_i v_i^2 / (2 sigma_i^2) - a'(v / sigma) - (v / sigma)'W h - b'h,
    v | h ~ N(sigma (a + W h), sigma^2),
    F(v) = |v / sigma|^2 / 2 - a'(v / sigma) - sum_j softplus(b_j + (W'(v / sigma))_j)

and log p(v) = -F(v) - log Z, whose gradient is estimated as for bits (``estimators.py``), or avoided by score matching
(``score_matching.py``). Weights and biases see v / sigma, as in Hinton & Salakhutdinov (2006) and in the survey's eq.
17, not v / sigma^2 (Cho, Ilin, Raiko 2011); the constant |a|^2 / 2 of their energies is left out of E and log Z alike.
A sample of v has the variance sigma^2 around its mean: the mean alone is not a sample.

v is x standardised by the training data's moments; data with levels get noise (``real_data.py``).

Shapes: raw x (b, *shape), v (b, visible), h (b, hidden). Units: nats.
Papers: Hinton, Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks",
https://doi.org/10.1126/science.1127647; Cho, Ilin, Raiko 2011, "Improved learning of Gaussian-Bernoulli restricted
Boltzmann machines", https://doi.org/10.1007/978-3-642-21735-7_2.

Different from the papers: log sigma is learned, from 0 of standardised data, where Hinton & Salakhutdinov fix sigma at
1 and Cho et al. learn log sigma^2 of their own energy; neither divides the rate of log sigma, as Adam does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import require
from dgmbench.models.boltzmann.couplings import Couplings
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.real_data import Dequantised, GaussianSided, Standardised
from dgmbench.nn.unit_layers import BERNOULLI, Gaussian, Units


class GaussianRbm(Standardised, GaussianSided):
    """RBM of real data; ``GaussianRbm(spec)`` of data with levels is an instance of ``on_levels``.

    Args:
        spec: real data, or discrete data of any number of levels.
        hidden: number of hidden units.
        estimator: how the gradient is estimated; a copy is kept as a submodule. Default: ``CD(k=1)``.
        weight_std: standard deviation of the initial weights (Hinton 2012, "A practical guide to training RBMs").
        sample_steps: Gibbs steps of ``sample``, started from independent units with the data's moments.
    """

    hidden_units: Units = BERNOULLI

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: int = 500,
        estimator: Estimator | None = None,
        weight_std: float = 0.01,
        sample_steps: int = 1000,
    ) -> None:
        super().__init__(spec, sample_steps=sample_steps)
        self.refuse(spec, "gaussian_rbm")
        require(least=1, hidden=hidden)
        require(least=0, weight_std=weight_std)
        self.weight = nn.Parameter(weight_std * torch.randn(spec.dim, hidden))
        self.visible_bias = nn.Parameter(torch.zeros(spec.dim))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.log_sigma = nn.Parameter(torch.zeros(spec.dim))
        self.map_of(spec)
        self.train_by(estimator)

    # ---- the distribution ----

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Couplings:
        """Weights, biases and deviations, with ``fast`` added first if given."""
        own: list[Tensor] = [self.weight, self.visible_bias, self.hidden_bias, self.log_sigma]
        if fast is not None:
            own = [slow + quick for slow, quick in zip(own, fast, strict=True)]
        weight, a, b, log_sigma = own
        return Couplings(weight, a, b, Gaussian.of(log_sigma.exp()), self.hidden_units)


class DequantisedGaussianRbm(Dequantised, GaussianRbm):
    """Gaussian RBM of data with levels."""


GaussianRbm.on_levels = DequantisedGaussianRbm
