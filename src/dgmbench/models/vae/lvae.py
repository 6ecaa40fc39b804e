r"""The ladder VAE: the posterior of every layer corrects what the layers above it expect, so that upper layers live.

A deterministic way up from x says of each layer N(mean_up, sigma_up^2), by itself; the way down is that of the
generative model, and the posterior is the product of both words, means weighted by precisions:

    p(x, z) = N(z_L; 0, I) prod_{l<L} N(z_l; mean_p(z_{l+1}), sigma_p(z_{l+1})^2) p(x | z_1),
    q(z_L | x) = N(mean_up, sigma_up^2),
    q(z_l | z_{l+1}, x) = N(mean_l, sigma_l^2),    sigma_l^-2 = sigma_up^-2 + sigma_p^-2,
                                                   mean_l = sigma_l^2 (mean_up sigma_up^-2 + mean_p sigma_p^-2),
    elbo(x) = E_q[log p(x | z_1) - sum_l KL(q_l || p_l)],      loss = -reconstruction + beta KL, beta rising to 1.

A plain hierarchical VAE (``model=iwae model.k=1 model.latent=[...]``) has q go up layer by layer, and its upper layers
fall silent: the KL is cheapest there. Warm-up and batch-norm keep them from it.

Shapes and units: x is raw (b, *shape), z_l (k, b, latent_l); the KL is in closed form for each dimension of each layer,
given the draw above. Likelihoods are in nats per example of raw x.

Paper: Soenderby, Raiko, Maaloee, Soenderby, Winther, "Ladder Variational Autoencoders", NeurIPS 2016,
https://arxiv.org/abs/1602.02282.

Different from the paper: variances are the exponential of a network's output, not its softplus; warm-up is counted in
updates (200 epochs of 50,000 images in batches of 256).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs
from dgmbench.models.vae.vae import ElboModel
from dgmbench.nn.batchnorm import BatchNorm, absorb_statistics, statistics_of
from dgmbench.nn.gaussians import Moments, draw_normal, gaussian_kl, merged, moments, standard
from dgmbench.nn.observation import ObservationName, build_observation, gaussian_log_density
from dgmbench.nn.scaling import Scaling

SLOPE = 0.1
"""Of the leaky rectifier below zero, as in the paper."""


def normalised(inputs: int, hidden: int, depth: int) -> nn.Sequential:
    """Linear layers, each with batch-norm and a leaky rectifier: (n, inputs) -> (n, hidden)."""
    layers: list[nn.Module] = []
    for before in [inputs, *[hidden] * (depth - 1)]:
        layers += [nn.Linear(before, hidden, bias=False), BatchNorm(hidden), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


class Path(NamedTuple):
    """Draws of all layers, z_1 first; the moments of the top layer are (b, latent_L), the others' (k, b, latent_l)."""

    z: list[Float[Tensor, "k b _"]]
    posteriors: list[Moments]
    priors: list[Moments]


class Lvae(ElboModel):
    """Ladder variational autoencoder (Soenderby et al. 2016).

    Args:
        spec: The data space.
        latent: Dimensions of each stochastic layer, from the data upwards.
        hidden_sizes: Width of the networks beside each of them, from the data upwards.
        depth: Layers of each network.
        observation: p(x | z_1); ``auto`` goes by the kind of the data.
        sigma: Fixed standard deviation of a gaussian observation; learned if None.
        components: Logistics in the mixture of a discrete dimension.
        samples: Draws of the latents for each example in one estimate of the bound.
        kl_warmup: Updates over which the weight of the KL rises from 0 to 1.
        free_bits: Nats of KL for each dimension of each layer that the loss does not charge for.
    """

    def __init__(
        self, spec: DataSpec, *, latent: Sequence[int] = (64, 32, 16, 8, 4),
        hidden_sizes: Sequence[int] = (512, 256, 128, 64, 64), depth: int = 2, observation: ObservationName = "auto",
        sigma: float | None = None, components: int = 5, samples: int = 1, kl_warmup: int = 39_000,
        free_bits: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(spec, samples=samples, kl_warmup=kl_warmup, free_bits=free_bits)
        require(least=1, latent=latent, hidden_sizes=hidden_sizes, depth=depth, components=components)
        if not latent or len(latent) != len(hidden_sizes):
            raise UserError(
                f"model.latent={list(latent)} and model.hidden_sizes={list(hidden_sizes)} must name the sizes of as "
                "many layers, at least one."
            )
        self.latent = tuple(latent)
        self.noise_dim = sum(self.latent)
        self.observation = build_observation(observation, spec, sigma=sigma, components=components)
        self.scaling = Scaling(spec, low=0.0)
        outputs = self.observation.parameters_per_dim * spec.dim
        ways = list(zip([spec.dim, *hidden_sizes], hidden_sizes, self.latent, strict=False))
        self.up = nn.ModuleList(normalised(below, hidden, depth) for below, hidden, _ in ways)
        self.said = nn.ModuleList(nn.Linear(hidden, 2 * size) for _, hidden, size in ways)
        self.down = nn.ModuleList(
            nn.Sequential(normalised(above, hidden, depth), nn.Linear(hidden, 2 * below))
            for (below, above), hidden in zip(pairwise(self.latent), hidden_sizes[1:], strict=True)
        )
        self.decoder = nn.Sequential(
            normalised(self.latent[0], hidden_sizes[0], depth), nn.Linear(hidden_sizes[0], outputs)
        )

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The negative bound with its KL as far as it has warmed up, and the KL of each layer."""
        with statistics_of(self):
            reconstruction, kl = self._terms(batch.x, self.samples, generator)
        loss, logs = self.objective(reconstruction, kl)
        layers = kl.detach().mean(0).split(self.latent)
        return loss, {**logs, **{f"kl_{number}": own.sum() for number, own in enumerate(layers, start=1)}}

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Advance the counter of the warm-up, and take up the statistics of batch-norm."""
        super().after_step(player, batch, generator)
        absorb_statistics(self)

    def infer(self, x: Tensor, k: int | None, generator: Generator | None = None) -> Path:
        """k draws of q(z_1 ... z_L | x), reparametrised, with the moments that they came from; with None its means."""
        words, h = [], self.scaling(x).to(self._dtype).flatten(1)
        for net, head in zip(self.up, self.said, strict=True):
            h = net(h)
            words.append(moments(head(h)))
        q, p = words[-1], standard(words[-1].mean)
        path = Path([q.mean[None] if k is None else draw_normal(q, k, generator)], [q], [p])
        for net, word in zip(reversed(self.down), reversed(words[:-1]), strict=True):
            p = self._expected(cast(nn.Sequential, net), path.z[0])
            q = merged(word, p)
            path.z.insert(0, q.mean if k is None else draw_normal(q, 1, generator)[0])
            path.posteriors.insert(0, q)
            path.priors.insert(0, p)
        return path

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Float[Tensor, "k b"]:
        """Draw k importance weights of each raw x (b, *shape), over all layers; the bound is their log-mean-exp."""
        path = self.infer(x, k, generator)
        total = self._log_likelihood(x, path.z[0])
        for own, q, p in zip(*path, strict=True):
            total = total + (gaussian_log_density(own, *p) - gaussian_log_density(own, *q)).sum(-1)
        return total

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples from the prior down through all layers, raw (n, *shape)."""
        noise = torch.randn(n, self.noise_dim, generator=generator, device=self.step.device, dtype=self._dtype)
        return self.sample_given(noise, generator=generator)

    def log_prob_given(self, x: Tensor, noise: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
        """Log p(x | z_1) of raw x (b, *shape), z_1 made of the noise of all layers, the lowest layer's first."""
        return self._log_likelihood(x, self._lowest(noise)[None])[0]

    @torch.no_grad()
    def sample_given(self, noise: Float[Tensor, "b n"], *, generator: Generator | None = None) -> Tensor:
        """Draw x, raw (b, *shape), from p(x | z_1) at the noise of all layers."""
        return self.observation.sample(self._observed(self._lowest(noise)), generator=generator)

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The means of all layers, each given the means above it, z_1 first, for raw x (b, *shape)."""
        return torch.cat([layer[0] for layer in self.infer(x, None).z], 1)

    def decode(self, code: Float[Tensor, "b z"]) -> Tensor:
        """E[x | z_1], float (b, *shape) on the raw scale; what the code says of upper layers changes nothing."""
        return self.observation.mean(self._observed(code[:, : self.latent[0]]))

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | z_1] at a draw z ~ q(z | x), float (b, *shape) on the raw scale."""
        return self.observation.mean(self._observed(self.infer(x, 1, generator).z[0][0]))

    def _terms(self, x: Tensor, samples: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        z, posteriors, priors = self.infer(x, samples, generator)
        kl = [gaussian_kl(q, p) for q, p in zip(posteriors, priors, strict=True)]
        kl = [each.mean(0) if each.dim() == 3 else each for each in kl]  # the top layer's needs no draws
        return self._log_likelihood(x, z[0]).mean(0), torch.cat(kl, 1)

    @staticmethod
    def _expected(net: nn.Sequential, above: Float[Tensor, "k b _"]) -> Moments:
        """Moments (k, b, latent_l) of p(z_l | z_{l+1})."""
        return moments(net(above.flatten(0, 1)).unflatten(0, above.shape[:2]))

    def _lowest(self, noise: Float[Tensor, "b n"]) -> Float[Tensor, "b z"]:
        *lower, z = noise.to(self._dtype).split(self.latent, dim=1)
        for net, own in zip(reversed(self.down), reversed(lower), strict=True):
            mean, log_sigma = self._expected(cast(nn.Sequential, net), z[None])
            z = mean[0] + log_sigma[0].exp() * own
        return z

    def _observed(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n ..."]:
        """The observation's parameters (n, P, *shape)."""
        parameters: Tensor = self.decoder(z)
        return parameters.unflatten(1, (self.observation.parameters_per_dim, *self.spec.shape))

    def _log_likelihood(self, x: Tensor, z: Float[Tensor, "k b z"]) -> Float[Tensor, "k b"]:
        return self.observation.log_prob(self._observed(z.flatten(0, 1)).unflatten(0, z.shape[:2]), x)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype
