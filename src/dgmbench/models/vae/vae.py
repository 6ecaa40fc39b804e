r"""The variational autoencoder: a latent-variable model trained by amortised variational inference.

A decoder turns z ~ N(0, I) into a distribution of x; an encoder proposes q(z | x) = N(mean(x), diag sigma(x)^2) for the
posterior, and both follow the gradient of the bound, made differentiable by z = mean + sigma * noise:

    elbo(x) = E_q[log p(x | z)] - KL(q(z | x) || N(0, I)) <= log p(x),
    KL = 1/2 sum_j (mean_j^2 + sigma_j^2 - 1 - log sigma_j^2),      loss = -E_data[elbo].

With the options, the loss is -reconstruction + beta sum_j max(KL_j, free_bits), KL_j the batch's mean of the j-th
term, beta rising linearly from 0 to 1 over ``kl_warmup`` updates. That is no bound; the logged ``elbo`` always is.

Shapes and units: x is raw (b, *shape), z (b, latent); every likelihood is in nats per example, of raw x (see
``nn.observation`` for the constants). ``log_weights`` are log p(x, z) - log q(z | x).

Paper: Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014, https://arxiv.org/abs/1312.6114.
Warm-up: Soenderby et al. 2016, https://arxiv.org/abs/1602.02282. Free bits: Kingma et al. 2016,
https://arxiv.org/abs/1606.04934 (here per dimension).

Different from the paper: two hidden layers of 200 and 50 latent dimensions, as in the comparisons of Burda et al.
2016, in place of one hidden layer of 500; Adam in place of Adagrad; conv and resnet networks; discrete data has
its own observation model, where the paper rescales it and treats it as real.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.encoders import NetName, build_decoder, build_encoder
from dgmbench.nn.observation import ObservationName, build_observation, gaussian_log_density
from dgmbench.nn.scaling import Scaling


class Vae(Model):
    """Variational autoencoder for binary, discrete and real data.

    Args:
        spec: The data space.
        net: Kind of encoder and decoder.
        hidden_sizes: Widths of the mlp's hidden layers, encoder order; the decoder mirrors them. None: linear.
        channels: First width of conv and resnet.
        latent: Dimensions of z.
        observation: p(x | z); ``auto`` goes by the kind of the data.
        sigma: Fixed standard deviation of a gaussian observation; learned if None.
        components: Logistics in the mixture of a discrete dimension.
        samples: Draws of z for each example in one estimate of the bound (L in the paper).
        kl_warmup: Updates over which the weight of the KL rises from 0 to 1.
        free_bits: Nats of KL for each latent dimension that the loss does not charge for.
    """

    step: Tensor

    def __init__(
        self, spec: DataSpec, *, net: NetName = "mlp", hidden_sizes: Sequence[int] = (200, 200), channels: int = 32,
        latent: int = 50, observation: ObservationName = "auto", sigma: float | None = None, components: int = 5,
        samples: int = 1, kl_warmup: int = 0, free_bits: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(spec)
        require(
            least=1, hidden_sizes=hidden_sizes, channels=channels, latent=latent, components=components, samples=samples
        )
        require(least=0, kl_warmup=kl_warmup, free_bits=free_bits)
        require(above=0, sigma=sigma)
        self.latent = self.noise_dim = latent
        self.samples, self.kl_warmup, self.free_bits = samples, kl_warmup, free_bits
        sizes = tuple(hidden_sizes)
        self.observation = build_observation(observation, spec, sigma=sigma, components=components)
        self.scaling = Scaling(spec, low=0.0)
        self.encoder = build_encoder(net, spec.shape, 2 * latent, hidden_sizes=sizes, channels=channels)
        self.decoder = build_decoder(
            net, latent, self.observation.parameters_per_dim, spec.shape, hidden_sizes=sizes[::-1], channels=channels
        )
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def posterior(self, x: Tensor) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"]]:
        """Mean and log sigma of q(z | x) for raw x (b, *shape)."""
        mean, log_variance = self.encoder(self.scaling(x).to(self._dtype)).chunk(2, dim=1)
        return mean, 0.5 * log_variance

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The negative bound, with warm-up and free bits where they are set."""
        reconstruction, kl = self._terms(batch.x, self.samples, generator)
        reconstruction, kl = reconstruction.mean(), kl.mean(0)
        beta = (self.step / self.kl_warmup).clamp(max=1.0) if self.kl_warmup else 1.0
        loss = -reconstruction + beta * kl.clamp(min=self.free_bits).sum()
        kl, reconstruction = kl.detach().sum(), reconstruction.detach()
        return loss, {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Advance the counter of the warm-up."""
        self.step += 1

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """One draw of the bound of raw x (b, *shape), with the KL in closed form."""
        reconstruction, kl = self._terms(x, 1, generator)
        return reconstruction - kl.sum(1)

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Float[Tensor, "k b"]:
        """Draw k importance weights of each raw x (b, *shape); the bound is their log-mean-exp."""
        mean, log_sigma = self.posterior(x)
        z = self._draw(mean, log_sigma, k, generator)
        prior = gaussian_log_density(z, torch.zeros_like(z), torch.zeros_like(z)).sum(-1)
        posterior = gaussian_log_density(z, mean, log_sigma).sum(-1)
        return self._log_likelihood(x, z) + prior - posterior

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples from the prior through the decoder, raw (n, *shape)."""
        z = torch.randn(n, self.latent, generator=generator, device=self.step.device, dtype=self._dtype)
        return self.sample_given(z, generator=generator)

    def log_prob_given(self, x: Tensor, noise: Float[Tensor, "b z"]) -> Float[Tensor, " b"]:
        """Log p(x | z) of raw x (b, *shape) at z = noise."""
        return self.observation.log_prob(self.decoder(noise.to(self._dtype)), x)

    @torch.no_grad()
    def sample_given(self, noise: Float[Tensor, "b z"], *, generator: Generator | None = None) -> Tensor:
        """Draw x, raw (b, *shape), from p(x | z) at z = noise."""
        return self.observation.sample(self.decoder(noise.to(self._dtype)), generator=generator)

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The posterior mean of raw x (b, *shape)."""
        return self.posterior(x)[0]

    def decode(self, z: Float[Tensor, "b z"]) -> Tensor:
        """E[x | z], float (b, *shape) on the raw scale."""
        return self.observation.mean(self.decoder(z))

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | z] at a draw z ~ q(z | x), float (b, *shape) on the raw scale."""
        return self.decode(self._draw(*self.posterior(x), 1, generator)[0])

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

    def _terms(self, x: Tensor, samples: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Reconstruction term (b,), averaged over samples of z, and the KL of each latent dimension (b, latent)."""
        mean, log_sigma = self.posterior(x)
        z = self._draw(mean, log_sigma, samples, generator)
        kl = 0.5 * (mean.square() + torch.exp(2 * log_sigma) - 1) - log_sigma
        return self._log_likelihood(x, z).mean(0), kl

    def _draw(
        self, mean: Float[Tensor, "b z"], log_sigma: Float[Tensor, "b z"], k: int, generator: Generator | None
    ) -> Float[Tensor, "k b z"]:
        noise = torch.randn(k, *mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + log_sigma.exp() * noise

    def _log_likelihood(self, x: Tensor, z: Float[Tensor, "k b z"]) -> Float[Tensor, "k b"]:
        parameters = self.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        return self.observation.log_prob(parameters, x)
