r"""beta-TCVAE: of the three terms that a VAE's KL consists of, only the total correlation is charged more.

beta-VAE disentangles because it punishes dependence between the dimensions of the code, but it pays with what the code
says of x. Split into its terms, the KL shows which is which:

    E KL(q(z | x) || p(z)) = I(x; z) + KL(q(z) || prod_j q(z_j)) + sum_j KL(q(z_j) || p(z_j)),
                             index-code  total correlation TC      dimension-wise KL
                             information
    loss = -E_q[log p(x | z)] + alpha I + beta TC + gamma sum_j KL_j,      q(z) = 1/N sum_n q(z | x_n).

q(z) and q(z_j) are estimated from the batch, ``sampling=mws`` or ``mss`` (``nn/aggregate_posterior.py``); mss on a
batch that is the whole data set is exact. mws is too low by a constant, so that its TC is too high by about
(latent - 1) log(N / M) and its information by log(N / M), in the log and not in any gradient.

Shapes and units: x is raw (b, *shape), z (b, latent), all terms in nats per example. The pairs (b, b, latent) of log
densities are one broadcast, in blocks of bounded memory.

Paper: Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in VAEs", NeurIPS 2018,
https://arxiv.org/abs/1802.04942.

Different from the paper: the loss takes the KL in closed form and adds (alpha - 1) I + (beta - 1) TC + (gamma - 1)
sum_j KL_j, which has the same expectation and less noise, and at alpha = beta = gamma = 1 is the VAE's; shares of
mss are equal among the other examples; networks are those of the other VAEs here, where it has 1200 units a layer on
dSprites.
"""

from collections.abc import Sequence

from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.contract import Logs
from dgmbench.models.vae.aggregate import AggregateVae
from dgmbench.nn.aggregate_posterior import Sampling
from dgmbench.nn.encoders import NetName
from dgmbench.nn.observation import ObservationName


class BetaTcVae(AggregateVae):
    """Beta-TCVAE (Chen et al. 2018), for binary, discrete and real data.

    Args:
        spec: The data space.
        alpha: Weight of the index-code mutual information.
        beta: Weight of the total correlation.
        gamma: Weight of the dimension-wise KL.
        sampling: How log q(z) is estimated, ``mws`` or ``mss``.
        net: Kind of encoder and decoder.
        hidden_sizes: Widths of the mlp's hidden layers, encoder order; the decoder mirrors them. None: linear.
        channels: First width of conv and resnet.
        latent: Dimensions of z.
        observation: p(x | z); ``auto`` goes by the kind of the data.
        sigma: Fixed standard deviation of a gaussian observation; learned if None.
        components: Logistics in the mixture of a discrete dimension.
    """

    def __init__(
        self, spec: DataSpec, *, alpha: float = 1.0, beta: float = 6.0, gamma: float = 1.0, sampling: Sampling = "mws",
        net: NetName = "auto", hidden_sizes: Sequence[int] = (200, 200), channels: int = 32, latent: int = 10,
        observation: ObservationName = "auto", sigma: float | None = None, components: int = 5,
    ) -> None:  # fmt: skip
        require(least=0, alpha=alpha, beta=beta, gamma=gamma)
        super().__init__(
            spec, sampling=sampling, net=net, hidden_sizes=hidden_sizes, channels=channels, latent=latent,
            observation=observation, sigma=sigma, components=components,
        )  # fmt: skip
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The weighted terms; logged are those of the bound and the three of its KL."""
        q = self._draw(batch.x, 1, generator)
        reconstruction, kl = self._log_likelihood(batch.x, q.z).mean(), self._kl(q).sum(1).mean()
        terms = {name: value.mean() for name, value in self.kl_terms(q)._asdict().items()}
        loss = kl - reconstruction
        for weight, value in zip((self.alpha, self.beta, self.gamma), terms.values(), strict=True):
            loss = loss + (weight - 1) * value
        logged = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl, **terms}
        return loss, {name: value.detach() for name, value in logged.items()}
