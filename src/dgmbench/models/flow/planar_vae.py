r"""Variational inference with normalizing flows: simple invertible maps bend a VAE's Gaussian posterior.

The encoder proposes z_0 ~ N(mean(x), diag sigma(x)^2) and also the parameters of K maps, so that z_K = f_K ...
f_1(z_0) has a density that is no longer a Gaussian but is still known, for each x its own:

    log q(z_K | x) = log N(z_0; mean, sigma^2) - sum_k log |det df_k/dz|,
    elbo(x) = E[log p(x, z_K) - log q(z_K | x)] <= log p(x),
    loss = -E_data[beta log p(x, z_K) - log q(z_K | x)],      beta = min(1, beta_0 + step / annealing).

The loss is the paper's annealed free energy: beta below 1 lets the posterior spread before it has to fit. It is no
bound until beta is 1; ``elbo`` and the log are those of the bound at any time.

*Planar* (``flow=planar``): stretches along u, across the plane w.z + b = 0,

    f(z) = z + u tanh(w.z + b),      det = 1 + w.u (1 - tanh^2),      invertible iff w.u >= -1.

*Radial* (``flow=radial``): pulls towards z_c or pushes away from it, with r = |z - z_c|,

    f(z) = z + beta (z - z_c) / (alpha + r),      invertible iff beta >= -alpha,
    det = (1 + beta / (alpha + r))^(D - 1) (1 + alpha beta / (alpha + r)^2).

Shapes and units: x is raw (b, *shape), z (b, latent), the log-determinants (samples, b), one for each example and
draw; all in nats.

Paper: Rezende, Mohamed, "Variational Inference with Normalizing Flows", ICML 2015, https://arxiv.org/abs/1505.05770.

Different from the paper: its constraint w.u = -1 + log(1 + exp(w.u)) changes u even where the net says u = 0. Here
the softplus is shifted such that 0 stays 0, so that a flow whose parameters are small is near the identity, and K = 0
and K maps start at the same bound; exp is never taken, so w.u = 800 is as good as any. The annealing takes 100 updates,
for small data and short runs; the paper's takes 10,000 of 500,000. Networks are those of the VAE here; the paper has
maxout units, a latent space of 40 dimensions and RMSprop.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs
from dgmbench.models.vae.vae import PosteriorFlow, Vae
from dgmbench.nn.encoders import NetName
from dgmbench.nn.observation import ObservationName

Mapped = tuple[Float[Tensor, "k b z"], Float[Tensor, "k b 1"]]


class Planar(PosteriorFlow):
    """``length`` planar maps, one after another; of an example: (u, w, b) of each."""

    def __init__(self, latent: int, length: int) -> None:
        super().__init__()
        self.latent, self.length, self.context = latent, length, length * (2 * latent + 1)

    def parameters_of(self, context: Float[Tensor, "b c"]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """u and w (K, b, z), b (K, b), and 1 + w.u as a softplus and what a vanishing w takes off it, each (K, b).

        With a = w.u' of the net's own u', u = s u' + (m(a) - a) w / (|w|^2 + eps), m(a) = softplus(a + log(e - 1)) - 1
        and s = |w|^2 / (|w|^2 + eps), so that w.u = s m(a) > -1 for all w, and u = 0 where u' = 0.
        """
        each = context.view(len(context), self.length, 2 * self.latent + 1).transpose(0, 1)
        free, w, bias = each.split([self.latent, self.latent, 1], -1)
        squared = w.square().sum(-1, keepdim=True)
        safe = squared + torch.finfo(w.dtype).eps
        product = (w * free).sum(-1, keepdim=True)
        positive = F.softplus(product + math.log(math.e - 1))
        u = free * (squared / safe) + (positive - 1 - product) * w / safe
        return u, w, bias[..., 0], positive[..., 0], (squared / safe)[..., 0]

    def forward(self, z: Float[Tensor, "k b z"], context: Float[Tensor, "b c"]) -> Mapped:
        """Apply all maps; their log-determinants are taken at the end, all at once."""
        u, w, bias, positive, share = self.parameters_of(context)
        gates = []
        for step in range(self.length):
            gates.append(torch.tanh((z * w[step]).sum(-1) + bias[step]))
            z = z + u[step] * gates[-1][..., None]
        if not gates:
            return z, z.new_zeros(*z.shape[:2], 1)
        # 1 + w.u (1 - h^2) with w.u = share (positive - 1), written as a sum of what is never negative
        squared = torch.stack(gates, 1).square()
        slope = (1 - share) + share * (squared + positive * (1 - squared))
        return z, slope.clamp(min=torch.finfo(z.dtype).tiny).log().sum(1)[..., None]


class Radial(PosteriorFlow):
    """``length`` radial maps, one after another; of an example: (z_c, alpha, beta) of each.

    alpha = softplus(a) and beta = softplus(a + b) - softplus(a) > -alpha, so that b = 0 is the identity.
    """

    def __init__(self, latent: int, length: int) -> None:
        super().__init__()
        self.latent, self.length, self.context = latent, length, length * (latent + 2)

    def parameters_of(self, context: Float[Tensor, "b c"]) -> tuple[Tensor, Tensor, Tensor]:
        """The centres (K, b, z), and alpha and alpha + beta, both (K, b)."""
        centre, a, b = (
            context.view(len(context), self.length, self.latent + 2).transpose(0, 1).split([self.latent, 1, 1], -1)
        )
        least = torch.finfo(a.dtype).eps  # alpha + r must not vanish, at the centre either
        return centre, F.softplus(a[..., 0]) + least, F.softplus((a + b)[..., 0]) + least

    def forward(self, z: Float[Tensor, "k b z"], context: Float[Tensor, "b c"]) -> Mapped:
        """Apply all maps; their log-determinants are taken at the end, all at once."""
        centre, alpha, total = self.parameters_of(context)
        beta = total - alpha
        distances = []
        for step in range(self.length):
            away = z - centre[step]
            distances.append(torch.linalg.vector_norm(away, dim=-1))
            z = z + (beta[step] / (alpha[step] + distances[-1]))[..., None] * away
        if not distances:
            return z, z.new_zeros(*z.shape[:2], 1)
        # 1 + beta / (alpha + r) and 1 + alpha beta / (alpha + r)^2 over their common denominators: sums of positives
        r = torch.stack(distances, 1)
        across = (r + total).log() - (r + alpha).log()
        along = (r * (r + 2 * alpha) + alpha * total).log() - 2 * (r + alpha).log()
        return z, ((self.latent - 1) * across + along).sum(1)[..., None]


class PlanarVae(Vae):
    """VAE with planar or radial flows on its posterior (Rezende, Mohamed 2015), for binary, discrete and real data.

    Args:
        spec: The data space.
        flow: The kind of map.
        length: K, the number of maps; 0 is the VAE.
        annealing: Updates over which beta rises to 1; 0: it is 1 from the start.
        first_beta: beta_0, where it starts.
        net: Kind of encoder and decoder.
        hidden_sizes: Widths of the mlp's hidden layers, encoder order; the decoder mirrors them. None: linear.
        channels: First width of conv and resnet.
        latent: Dimensions of z.
        observation: p(x | z); ``auto`` goes by the kind of the data.
        sigma: Fixed standard deviation of a gaussian observation; learned if None.
        components: Logistics in the mixture of a discrete dimension.
        samples: Draws of z for each example in one estimate of the bound.
    """

    def __init__(
        self, spec: DataSpec, *, flow: Literal["planar", "radial"] = "planar", length: int = 16, annealing: int = 100,
        first_beta: float = 0.01, net: NetName = "auto", hidden_sizes: Sequence[int] = (200, 200), channels: int = 32,
        latent: int = 50, observation: ObservationName = "auto", sigma: float | None = None, components: int = 5,
        samples: int = 1,
    ) -> None:  # fmt: skip
        require(least=0, length=length, annealing=annealing)
        require(least=1, latent=latent)
        if not 0 < first_beta <= 1:
            raise UserError(f"model.first_beta={first_beta} must be above 0 and at most 1.")
        if flow not in ("planar", "radial"):
            raise UserError(f"model.flow must be planar or radial, not {flow!r}.")
        super().__init__(
            spec, net=net, hidden_sizes=hidden_sizes, channels=channels, latent=latent, observation=observation,
            sigma=sigma, components=components, samples=samples,
            flow=(Planar if flow == "planar" else Radial)(latent, length),
        )  # fmt: skip
        self.annealing, self.first_beta = annealing, first_beta

    def beta(self) -> float | Tensor:
        """The weight of log p(x, z) at the present update."""
        if not self.annealing:
            return 1.0
        return (self.first_beta + self.step / self.annealing).clamp(max=1.0)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The annealed free energy, log p(z) up to its constant."""
        q = self._draw(batch.x, self.samples, generator)
        reconstruction, kl = self._log_likelihood(batch.x, q.z).mean(), self._kl(q).sum(1).mean()
        energy = 0.5 * (q.mean.square() + torch.exp(2 * q.log_sigma)).sum(1).mean()
        energy = energy + 0.5 * (q.z.square() - q.start.square()).sum(-1).mean()
        elbo = reconstruction - kl
        loss = (1 - self.beta()) * (reconstruction - energy) - elbo
        return loss, {"elbo": elbo.detach(), "reconstruction": reconstruction.detach(), "kl": kl.detach()}
