"""Mean product of Student-t: Gamma precisions of pooled filter responses, and bits that move the mean from zero.

    E(v, u, g) = sum_i lambda_i v_i^2 / 2 - b'v + sum_k [u_k (1 + y_k) + (1 - gamma_k) log u_k] - g'(m + W'v)
    u_k | v ~ Gamma(gamma_k, rate 1 + y_k),    y_k = -sum_f P_fk (C_f'v)^2 >= 0,    p(g_j | v) = sigmoid(m_j + W_j'v),
    F(v) = sum_i lambda_i v_i^2 / 2 - b'v + sum_k [gamma_k log(1 + y_k) - log Gamma(gamma_k)]
           - sum_j softplus(m_j + W_j'v)

and log p(v) = -F(v) - log Z: products of Student-t experts on pools of filters, and a Gaussian RBM. Given u and g, v is
Gaussian, with the precision diag(lambda) - 2 C diag(P u) C'. ``gated_mrf.py`` has the chains, the constraints (P <= 0,
columns of C of unit norm) and the path of annealing. v is x whitened by the training data's moments.

Shapes: raw x (b, *shape), v (b, d), u (b, covariances), g (b, means), C (d, filters), W (d, means). Units: nats.
Paper: Ranzato, Mnih, Hinton 2010, "Generating more realistic images using gated MRF's",
https://papers.nips.cc/paper/2010/hash/2596a54cdbb555cfd09cd5d991da0f55-Abstract.html.

Different from the paper: precisions lambda are learned, where the paper has 1, and so are the shapes gamma; P <= 0 with
y = -P (C'v)^2, where the paper has P >= 0 and a half; all components are kept in whitening, so that log p is of x; no
convolution; chains start at the data, where the paper's persist under fast weights.
"""

from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.gated_mrf import CovarianceUnits, GatedMrf, Precisions
from dgmbench.models.boltzmann.real_data import Dequantised


class MPot(GatedMrf):
    """Gamma and mean units; ``MPot(spec)`` of data with levels is an instance of ``on_levels``.

    Args:
        spec: real data, or discrete data of any number of levels.
        filters: number of filters.
        covariances: number of Gamma units.
        means: number of mean units.
        estimator: ``CD`` or ``PCD``, whose steps are Hamiltonian moves; a copy is kept. Default: ``CD(k=1)``.
        leapfrog_steps: of one move.
        sample_steps: moves of ``sample``, started from the Gaussian with the data's moments.
    """

    name = "mpot"

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
        super().__init__(
            spec,
            filters=filters,
            covariances=covariances,
            means=means,
            estimator=estimator,
            leapfrog_steps=leapfrog_steps,
            sample_steps=sample_steps,
        )

    def first_bias(self) -> float:
        """Log gamma of 1."""
        return 0.0

    def covariance_units(self, bias: Tensor) -> CovarianceUnits:
        """Gamma variables of shapes exp(bias)."""
        return Precisions(bias)


class DequantisedMPot(Dequantised, MPot):
    """Mean product of Student-t of data with levels."""


MPot.on_levels = DequantisedMPot
