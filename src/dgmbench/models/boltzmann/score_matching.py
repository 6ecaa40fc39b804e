"""Score matching: fit the gradient of log p(v) in v, in which log Z does not occur, so that there is no negative phase.

The expected squared distance of the model's score psi(v) = d log p(v) / dv from the data's (the survey's eq. 12) is, up
to a constant and by partial integration,

    J = E_data sum_i [ psi_i(v)^2 / 2 + d psi_i / d v_i ].

Of Gaussian visible units of deviation sigma over hidden units with means m and variances m' given v,

    psi_i = (a_i + (W m)_i - v_i / sigma_i) / sigma_i,      d psi_i / d v_i = (sum_j W_ij^2 m'_j - 1) / sigma_i^2,

two matrix products more than the means cost. J depends on the scale of v, so it is taken of what the machine calls v,
which is standardised data. Without hidden units its minimum is at the sample variance.

Paper: Hyvarinen 2005, "Estimation of non-normalized statistical models by score matching",
https://www.jmlr.org/papers/v6/hyvarinen05a.html.
"""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.models.boltzmann.estimators import Estimator, Machine
from dgmbench.models.contract import Logs


class ScoreMatching(Estimator):
    """The objective J of a machine of two sides, ``Couplings``, whose visible units are Gaussian; it has no chains."""

    kinds = ("real", "discrete")
    needs = ("visible_units", "hidden_logits", "hidden_units")
    otherwise = "it needs a density of real values; of bits the like is model/estimator=ratio_matching"

    def loss(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> tuple[Tensor, Logs]:
        """The objective, a mean over the examples."""
        now = rbm.couplings()
        sigma, hidden = now.visible_units.sigma, now.hidden_units
        with torch.enable_grad():  # the variances are a derivative of the means also where no other is asked for
            eta = now.hidden_logits(v)
            eta = eta if eta.requires_grad else eta.detach().requires_grad_()
            mean = hidden.mean(eta)
            (variance,) = torch.autograd.grad(mean.sum(), eta, create_graph=True)
        score = (now.visible_bias + mean @ now.weight.t() - v / sigma) / sigma
        curvature = (variance @ now.weight.square().t() - 1) / sigma.square()
        return (0.5 * score.square() + curvature).sum(-1).mean(), {}
