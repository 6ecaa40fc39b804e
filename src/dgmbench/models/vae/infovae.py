r"""InfoVAE: a VAE whose code is to say much of its example, and whose codes together are to look like the prior.

The KL of the bound charges for both what the code says of x, I(x; z), and the distance of all codes from the prior,
KL(q(z) || p(z)). InfoVAE weighs the two apart, and the distance may be another divergence D:

    loss = -E_q log p(x | z) + (1 - alpha) E KL(q(z | x) || p(z)) + (alpha + lambda - 1) D(q(z) || p(z)),
         = -E_q log p(x | z) + (1 - alpha) I(x; z) + lambda KL(q(z) || p(z))      where D is the KL,

q(z) = 1/N sum_n q(z | x_n). (alpha, lambda) = (0, 1) is the VAE, (1 - beta, beta) the beta-VAE, and at alpha = 1
there is no KL of single examples at all. D is

    mmd   the squared MMD between the codes of a batch and as many draws of p(z), unbiased, under Gaussian kernels of
          ``bandwidths`` times sqrt(latent): codes of the prior are sqrt(2 latent) apart;
    js    twice the Jensen-Shannon divergence as a critic bounds it from below, the second player;
    kl    estimated from the batch as in ``beta_tcvae`` (``sampling``).

Shapes and units: x is raw (b, *shape), z (b, latent); reconstruction, KL and D = kl in nats per example. MMD^2 has no
unit and is at most 2. The logged ``elbo`` is the bound, whatever the loss; it may fall while the loss does, so that
checkpoints go by ``info_objective``, minus the loss.

Paper: Zhao, Song, Ermon, "InfoVAE: Balancing Learning and Inference in Variational Autoencoders", AAAI 2019,
https://arxiv.org/abs/1706.02262. MMD: Dziugaite, Roy, Ghahramani 2015, https://arxiv.org/abs/1505.03906.

``model=mmd_vae`` is this class at alpha = 1. What differs: the default weight of D is for MMD^2 on small data; Stein's
variational gradient, a fourth D of the paper, is left out, and its adversarial D has a critic of the same size as the
encoder's last layers; the networks are those of ``vae``.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs
from dgmbench.models.tasks import HeldOut
from dgmbench.models.vae.aggregate import AggregateVae
from dgmbench.models.vae.vae import Draws
from dgmbench.nn.adversarial import MlpDiscriminator
from dgmbench.nn.adversarial_losses import FDivergence
from dgmbench.nn.aggregate_posterior import Sampling
from dgmbench.nn.encoders import NetName
from dgmbench.nn.mmd import mmd_squared, rbf_mixture
from dgmbench.nn.observation import ObservationName


class InfoVae(AggregateVae):
    """InfoVAE (Zhao, Song, Ermon 2019), for binary, discrete and real data.

    Args:
        spec: The data space.
        alpha: How much less than in a VAE the code is charged for what it says of its example.
        lambda_: Weight of the distance between codes and prior; alpha + lambda_ must be at least 1.
        divergence: That distance: ``mmd``, ``js`` or ``kl``.
        bandwidths: Of the Gaussian kernels of mmd, in units of sqrt(latent).
        critic_sizes: Widths of the hidden layers of js's critic.
        sampling: How kl estimates log q(z), ``mws`` or ``mss``.
        net, hidden_sizes, channels, latent, observation, sigma, components: As of ``Vae``.
    """

    bandwidths: Tensor

    def __init__(
        self, spec: DataSpec, *, alpha: float = 0.0, lambda_: float = 100.0,
        divergence: Literal["mmd", "js", "kl"] = "mmd", bandwidths: Sequence[float] = (0.5, 1.0, 2.0),
        critic_sizes: Sequence[int] = (200, 200), sampling: Sampling = "mss", net: NetName = "auto",
        hidden_sizes: Sequence[int] = (200, 200), channels: int = 32, latent: int = 10,
        observation: ObservationName = "auto", sigma: float | None = None, components: int = 5,
    ) -> None:  # fmt: skip
        if divergence not in ("mmd", "js", "kl"):
            raise UserError(f"model.divergence must be mmd, js or kl, not {divergence!r}.")
        require(most=1, alpha=alpha)
        require(above=0, bandwidths=bandwidths)
        if alpha + lambda_ < 1:
            raise UserError(
                f"model.alpha={alpha} and model.lambda_={lambda_} reward codes for being far from the prior; their sum "
                "must be at least 1."
            )
        super().__init__(
            spec, sampling=sampling, net=net, hidden_sizes=hidden_sizes, channels=channels, latent=latent,
            observation=observation, sigma=sigma, components=components,
        )  # fmt: skip
        self.alpha, self.weight, self.divergence = alpha, alpha + lambda_ - 1, divergence
        self.register_buffer("bandwidths", torch.tensor(tuple(bandwidths)) * latent**0.5, persistent=False)
        self.bound = FDivergence("jensen_shannon")
        adversarial = divergence == "js" and self.weight > 0
        codes = DataSpec((latent,), "real")
        self.critic = MlpDiscriminator(codes, hidden_sizes=tuple(critic_sizes)) if adversarial else None

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The VAE, and before it the critic of its codes if there is one."""
        critic = [] if self.critic is None else list(self.critic.parameters())
        own = {id(p) for p in critic}
        vae = [p for p in self.parameters() if id(p) not in own]
        return {"critic": critic, "model": vae} if critic else {"model": vae}

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The weighted terms of the VAE; the critic's is minus its bound of the divergence."""
        if player == "critic":
            with torch.no_grad():
                q = self._draw(batch.x, 1, generator)
            loss = -self.distance(q, generator)
            return loss, {"divergence": -loss.detach()}
        reconstruction, kl, distance = self._parts(batch.x, generator)
        reconstruction, kl = reconstruction.mean(), kl.mean()
        logged = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl, "divergence": distance}
        loss = (1 - self.alpha) * kl - reconstruction + self.weight * distance
        return loss, {name: value.detach() for name, value in logged.items()}

    def objectives(self) -> dict[str, HeldOut]:
        """What is maximised, in nats where D has any."""
        return {"info_objective": HeldOut("nats", "higher")}

    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> dict[str, Float[Tensor, " b"]]:
        """Each example's own terms, and the distance of all codes of the batch."""
        reconstruction, kl, distance = self._parts(batch.x, generator)
        return {"info_objective": reconstruction - (1 - self.alpha) * kl - self.weight * distance}

    def _parts(
        self, x: Tensor, generator: Generator | None
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, ""]]:
        """Reconstruction and KL of each example, and the distance if it counts for anything."""
        q = self._draw(x, 1, generator)
        reconstruction, kl = self._log_likelihood(x, q.z)[0], self._kl(q).sum(1)
        return reconstruction, kl, self.distance(q, generator) if self.weight else kl.new_zeros(())

    def distance(self, q: Draws, generator: Generator | None) -> Float[Tensor, ""]:
        """D(q(z) || p(z)), from the draw of every example of a batch."""
        z = q.z[0]
        if self.divergence == "kl":
            terms = self.kl_terms(q)
            return (terms.total_correlation + terms.dimension_kl).mean()
        prior = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
        if self.critic is None:
            return mmd_squared(z, prior, rbf_mixture(self.bandwidths.to(z))).u_statistic
        return -self.bound.discriminator(self.critic(prior)[:, 0], self.critic(z)[:, 0])
