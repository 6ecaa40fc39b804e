"""Factored three-way RBM: hidden bits gate products of pixels, and with them the covariance of natural images.

A weight for every pair of pixels and every hidden unit is factored over filters C, with P <= 0:

    E(v, h) = -sum_f (C_f'v)^2 sum_k P_fk h_k - c'h - b'v + sum_i lambda_i v_i^2 / 2
    p(h_k = 1 | v) = sigmoid(c_k - y_k),    y_k = -sum_f P_fk (C_f'v)^2
    F(v) = sum_i lambda_i v_i^2 / 2 - b'v - sum_k softplus(c_k - y_k)

and log p(v) = -F(v) - log Z. Units are mostly on, and hold the responses of filters small: one is turned off where the
smoothness that it stands for is violated, at an edge say. ``gated_mrf.py`` has the chains, the constraints (P <= 0,
columns of C of unit norm) and log Z. v is x whitened by the training data's moments (``real_data.py``).

Shapes: raw x (b, *shape), v (b, d), h (b, covariances), C (d, filters), P (filters, covariances). Units: nats.
Paper: Ranzato, Krizhevsky, Hinton 2010, "Factored 3-way restricted Boltzmann machines for modeling natural images",
https://proceedings.mlr.press/v9/ranzato10a.html.

Different from the paper: precisions lambda, learned from 1, without which v would be unbounded where all units are off;
all components are kept in whitening, so that log p is of x; columns of P have no fixed norm, as lambda has its scale.
"""

from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.gated_mrf import CovarianceUnits, GatedMrf, Switches
from dgmbench.models.boltzmann.real_data import Dequantised


class Factored3WayRbm(GatedMrf):
    """Covariance units alone; ``Factored3WayRbm(spec)`` of data with levels is an instance of ``on_levels``.

    Args:
        spec: real data, or discrete data of any number of levels.
        filters: number of factors.
        covariances: number of hidden units.
        estimator: ``CD`` or ``PCD``, whose steps are Hamiltonian moves; a copy is kept. Default: ``CD(k=1)``.
        leapfrog_steps: of one move.
        sample_steps: moves of ``sample``, started from the Gaussian with the data's moments.
    """

    name = "factored_3way_rbm"

    def __init__(
        self,
        spec: DataSpec,
        *,
        filters: int = 256,
        covariances: int = 256,
        estimator: Estimator | None = None,
        leapfrog_steps: int = 20,
        sample_steps: int = 50,
    ) -> None:
        super().__init__(
            spec,
            filters=filters,
            covariances=covariances,
            means=0,
            estimator=estimator,
            leapfrog_steps=leapfrog_steps,
            sample_steps=sample_steps,
        )

    def first_bias(self) -> float:
        """Mostly on."""
        return 2.0

    def covariance_units(self, bias: Tensor) -> CovarianceUnits:
        """Bits of biases c."""
        return Switches(bias)


class DequantisedFactored3WayRbm(Dequantised, Factored3WayRbm):
    """Factored three-way RBM of data with levels."""


Factored3WayRbm.on_levels = DequantisedFactored3WayRbm
