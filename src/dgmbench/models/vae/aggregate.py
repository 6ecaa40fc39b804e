"""What VAEs share whose loss looks at the aggregate posterior q(z) = 1/N sum_n q(z | x_n), which only a data set has.

E KL(q(z | x) || p(z)) is the sum of three terms, and the last two are KL(q(z) || p(z)):

    E log q(z | x) / q(z) + E log q(z) / prod_j q(z_j) + sum_j KL(q(z_j) || p(z_j)).

Each is estimated at one draw z of every example of a batch (``nn/aggregate_posterior.py``).
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.models.contract import Facts
from dgmbench.models.vae.vae import Draws, Vae
from dgmbench.nn.aggregate_posterior import Sampling, check_sampling, log_mixtures, log_shares
from dgmbench.nn.observation import gaussian_log_density


class KlTerms(NamedTuple):
    """The three terms of E KL(q(z | x) || p(z)), nats, at the draw of each example."""

    mutual_information: Float[Tensor, " b"]
    total_correlation: Float[Tensor, " b"]
    dimension_kl: Float[Tensor, " b"]


class AggregateVae(Vae):
    """A VAE that knows the size of its training set and estimates the terms of the KL.

    Args:
        spec: The data space.
        sampling: How log q(z) is estimated, ``mws`` or ``mss``.
        settings: Those of ``Vae``.
    """

    examples: Tensor

    def __init__(self, spec: DataSpec, *, sampling: Sampling, **settings: Any) -> None:
        check_sampling(sampling)
        super().__init__(spec, **settings)
        self.sampling = sampling
        self.register_buffer("examples", torch.ones((), dtype=torch.int64))

    def prepare(self, facts: Facts) -> None:
        """Take note of N."""
        self.examples.fill_(facts.examples)

    def kl_terms(self, q: Draws) -> KlTerms:
        """The terms at the first draw of each example."""
        z = q.z[0]
        shares = log_shares(self.sampling, len(z), int(self.examples), z)

        def pairs(at: Tensor) -> Tensor:
            return gaussian_log_density(at[:, None], q.mean, q.log_sigma)

        found = log_mixtures(pairs, [z], shares)
        own = gaussian_log_density(z, q.mean, q.log_sigma).sum(1)
        prior = gaussian_log_density(z, torch.zeros_like(z), torch.zeros_like(z)).sum(1)
        parts = found.parts.sum(1)
        return KlTerms(own - found.whole, found.whole - parts, parts - prior)
