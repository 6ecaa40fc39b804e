"""Mean-covariance RBM: bits that gate products of pixels model their covariance, ordinary ones their means.

    E(v, h, g) = sum_i lambda_i v_i^2 / 2 - b'v - sum_f (C_f'v)^2 sum_k P_fk h_k - c'h - g'(m + W'v)
    p(h_k = 1 | v) = sigmoid(c_k - y_k),    y_k = -sum_f P_fk (C_f'v)^2 >= 0,    p(g_j = 1 | v) = sigmoid(m_j + W_j'v)
    F(v) = sum_i lambda_i v_i^2 / 2 - b'v - sum_k softplus(c_k - y_k) - sum_j softplus(m_j + W_j'v)

and log p(v) = -F(v) - log Z. Given both kinds v is Gaussian, of a covariance S that h chooses and the mean S (b + W g):
the machine is the product of a factored three-way RBM and a Gaussian RBM. ``gated_mrf.py`` has the chains, the
constraints (P <= 0, columns of C of unit norm) and log Z. v is x whitened by the training data's moments.

Shapes: raw x (b, *shape), v (b, d), h (b, covariances), g (b, means), C (d, filters), W (d, means). Units: nats.
Paper: Ranzato, Hinton 2010, "Modeling pixel means and covariances using factorized third-order Boltzmann machines",
https://doi.org/10.1109/CVPR.2010.5539962.

Different from the paper: filters see v, not v / |v|, so that contrast is modelled too, and nothing is singular at 0;
precisions lambda are learned, where the paper has 1; all components are kept in whitening, so that log p is of x;
columns of P have no fixed norm.
"""

from dgmbench.data.spec import DataSpec
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.factored_3way_rbm import Factored3WayRbm
from dgmbench.models.boltzmann.gated_mrf import GatedMrf
from dgmbench.models.boltzmann.real_data import Dequantised


class McRbm(Factored3WayRbm):
    """Covariance and mean units; ``McRbm(spec)`` of data with levels is an instance of ``on_levels``.

    Args:
        spec: real data, or discrete data of any number of levels.
        filters: number of factors.
        covariances: number of covariance units.
        means: number of mean units.
        estimator: ``CD`` or ``PCD``, whose steps are Hamiltonian moves; a copy is kept. Default: ``CD(k=1)``.
        leapfrog_steps: of one move.
        sample_steps: moves of ``sample``, started from the Gaussian with the data's moments.
    """

    name = "mcrbm"

    def __init__(
        self,
        spec: DataSpec,
        *,
        filters: int = 256,
        covariances: int = 256,
        means: int = 100,
        estimator: Estimator | None = None,
        leapfrog_steps: int = 20,
        sample_steps: int = 50,
    ) -> None:
        GatedMrf.__init__(
            self,
            spec,
            filters=filters,
            covariances=covariances,
            means=means,
            estimator=estimator,
            leapfrog_steps=leapfrog_steps,
            sample_steps=sample_steps,
        )


class DequantisedMcRbm(Dequantised, McRbm):
    """Mean-covariance RBM of data with levels."""


McRbm.on_levels = DequantisedMcRbm
