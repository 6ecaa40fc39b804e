r"""Deep convolutional inverse graphics network: a VAE whose codes are given their meaning by how batches are made.

A batch consists of blocks of examples that differ in one factor alone, and each factor has codes of its own. Within a
block, only the varied factor's codes may tell the examples apart: the decoder sees all others at their mean over the
block, and in place of the decoder's gradient their encoder gets the pull towards that mean. For the mean mu_i of a code
i of an example, with m_i its average over the block,

    decoder's input   z_i = mu_i + sigma_i noise   of the varied factor,      m_i + sigma_i noise   of all others;
    gradient in mu_i  that of -log p(x | z)        of the varied factor,      w (mu_i - m_i)        of all others,

to which that of KL(q(z | x) || N(0, I)) is added; w is ``invariance``. Outside the loss it is a VAE with its bound,
``elbo``.

Shapes and units: x is raw images (b, c, h, w), y (b,) numbers of combinations of factors, z (b, factors * per_factor)
in the order of the factors; nats per example. Blocks are successive examples of a batch.

Paper: Kulkarni, Whitney, Kohli, Tenenbaum, "Deep Convolutional Inverse Graphics Network", NIPS 2015,
https://arxiv.org/abs/1503.03167.

What differs: a batch has several blocks, each with a factor of its own, where the paper's is one; every factor is as
likely and has as many codes as any other, where the paper has one code for each of pose and light and many for the
identity, and ten times as many of its batches; angles need two. What is averaged are the means of q(z | x), so that the
noise stays that of the codes. Networks are those of the other VAEs here.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs
from dgmbench.models.vae.vae import Vae
from dgmbench.nn.encoders import NetName
from dgmbench.nn.gaussians import Moments, draw_normal, gaussian_kl, standard
from dgmbench.nn.labels import factor_of, labels_of
from dgmbench.nn.observation import ObservationName


class DcIgn(Vae):
    """Deep convolutional inverse graphics network (Kulkarni et al. 2015), for data with known factors.

    Args:
        spec: The data space, with factors.
        per_factor: Codes of every factor.
        block: Successive examples of a batch that differ in one factor.
        invariance: Weight of the pull of the other factors' codes towards their mean.
        net, hidden_sizes, channels, observation, sigma, components: As of ``Vae``.
    """

    def __init__(
        self, spec: DataSpec, *, per_factor: int = 2, block: int = 5, invariance: float = 0.01, net: NetName = "conv",
        hidden_sizes: Sequence[int] = (200, 200), channels: int = 32, observation: ObservationName = "auto",
        sigma: float | None = None, components: int = 5,
    ) -> None:  # fmt: skip
        if not spec.factors:
            raise UserError("DC-IGN needs data whose factors of variation are known; choose data=shapes, say.")
        require(least=1, per_factor=per_factor)
        require(least=2, block=block)
        require(least=0, invariance=invariance)
        super().__init__(
            spec, net=net, hidden_sizes=hidden_sizes, channels=channels, latent=per_factor * len(spec.factors),
            observation=observation, sigma=sigma, components=components,
        )  # fmt: skip
        self.per_factor, self.block, self.invariance = per_factor, block, invariance

    def batch_policy(self) -> BatchPolicy:
        """Blocks in which one factor varies."""
        return BatchPolicy(varied=self.block)

    def varied(self, y: Tensor) -> Bool[Tensor, "b z"]:
        """Which codes belong to a factor that differs within the block of each example, by labels y (b,)."""
        number = torch.arange(len(y), device=y.device) // self.block
        columns = []
        for name, _ in self.spec.factors or ():
            value = factor_of(y, self.spec, name)
            start = value.new_zeros(int(number[-1]) + 1)
            low, high = (start.scatter_reduce(0, number, value, how, include_self=False) for how in ("amin", "amax"))
            columns.append((high > low)[number])
        return torch.stack(columns, 1).repeat_interleave(self.per_factor, 1)

    def block_means(self, values: Float[Tensor, "b z"]) -> Float[Tensor, "b z"]:
        """The mean over each example's block."""
        return torch.cat([part.mean(0, keepdim=True).expand_as(part) for part in values.split(self.block)])

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The negative bound at clamped codes, and what makes their gradient the pull towards the block's mean."""
        free, q = self.varied(labels_of(batch)), Moments(*self.posterior(batch.x))
        centre = self.block_means(q.mean).detach()
        z = draw_normal(Moments(torch.where(free, q.mean, centre), q.log_sigma), 1, generator)
        reconstruction = self._log_likelihood(batch.x, z).mean()
        kl = gaussian_kl(q, standard(q.mean)).sum(1).mean()
        pull = 0.5 * (q.mean - centre).square().masked_fill(free, 0).sum(1).mean()
        loss = kl - reconstruction + self.invariance * pull
        logs = {"reconstruction": reconstruction, "kl": kl, "off_mean": pull}
        return loss, {name: value.detach() for name, value in logs.items()}
