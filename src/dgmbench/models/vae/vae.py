r"""The variational autoencoder: a latent-variable model trained by amortised variational inference.

A decoder turns z ~ N(0, I) into a distribution of x; an encoder proposes q(z | x) = N(mean(x), diag sigma(x)^2) for the
posterior, and both follow the gradient of the bound, made differentiable by z = mean + sigma * noise:

    elbo(x) = E_q[log p(x | z)] - KL(q(z | x) || N(0, I)) <= log p(x),
    KL = 1/2 sum_j (mean_j^2 + sigma_j^2 - 1 - log sigma_j^2),      loss = -E_data[elbo].

With the options, the loss is -reconstruction + beta sum_j max(KL_j, free_bits), KL_j the batch's mean of the j-th
term, the weight rising linearly from 0 to ``beta`` over ``kl_warmup`` updates. With ``capacity`` it is -reconstruction
+ beta |KL - C|, where C nats rise linearly from 0 to ``capacity`` over ``capacity_warmup`` updates. That is no bound;
the logged ``elbo`` always is.

``model=beta_vae`` is this class with beta > 1. With the best encoder and decoder of Gaussian data with variances l_j,
and a fixed sigma, KL_j = 1/2 log(l_j / (beta sigma^2)) where that is positive, and 0 elsewhere: beta sigma^2 is a noise
floor, below which nothing is encoded.

A ``flow`` makes q(z | x) more than a Gaussian (``models/flow/planar_vae.py`` and ``iaf_vae.py``): a draw z_0 of the
Gaussian is mapped to z, and log q(z | x) = log N(z_0; mean, sigma^2) - log |det dz/dz_0|. The KL is then estimated by

    KL(N(mean, sigma^2) || N(0, I)) + 1/2 (|z|^2 - |z_0|^2) - log |det dz/dz_0|,

which is unbiased and has no noise of its own where the flow does nothing.

Shapes and units: x is raw (b, *shape), z (b, latent); every likelihood is in nats per example, of raw x (see
``nn.observation`` for the constants). ``log_weights`` are log p(x, z) - log q(z | x).

Paper: Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014, https://arxiv.org/abs/1312.6114.
Warm-up: Soenderby et al. 2016, https://arxiv.org/abs/1602.02282. Free bits: Kingma et al. 2016,
https://arxiv.org/abs/1606.04934 (here per dimension). beta: Higgins, Matthey, Pal, Burgess, Glorot, Botvinick,
Mohamed, Lerchner, "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework", ICLR 2017,
https://openreview.net/forum?id=Sy2fzU9gl. Capacity: Burgess et al. 2018, https://arxiv.org/abs/1804.03599.

Different from the paper: two hidden layers of 200 and 50 latent dimensions, as in the comparisons of Burda et al.
2016, in place of one hidden layer of 500; Adam in place of Adagrad; conv and resnet networks; discrete data has
its own observation model, where the paper rescales it and treats it as real. Capacity rises in a tenth of the paper's
100,000 updates.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.encoders import NetName, build_decoder, build_encoder
from dgmbench.nn.observation import ObservationName, build_observation, gaussian_log_density
from dgmbench.nn.scaling import Scaling


class PosteriorFlow(nn.Module, ABC):
    """An invertible map of z that makes a Gaussian posterior richer; an encoder chooses its parameters for each x."""

    context: int
    """How many numbers the encoder provides for each example, beside the Gaussian's moments."""

    @abstractmethod
    def forward(
        self, z: Float[Tensor, "k b z"], context: Float[Tensor, "b c"]
    ) -> tuple[Float[Tensor, "k b z"], Float[Tensor, "k b g"]]:
        """The images of k draws for each example, and the log |det| of each as g parts: one, or one a dimension."""


class Draws(NamedTuple):
    """Draws of q(z | x): z = flow(start), start ~ N(mean, exp(log_sigma)^2)."""

    mean: Float[Tensor, "b z"]
    log_sigma: Float[Tensor, "b z"]
    start: Float[Tensor, "k b z"]
    z: Float[Tensor, "k b z"]
    log_det: Float[Tensor, "k b g"]


class ElboModel(Model):
    """What models trained on the bound share: the loss with a weight of the KL, and the bound itself.

    A subclass gives ``_terms``. Its arguments are those of ``Vae``.
    """

    step: Tensor

    def __init__(
        self, spec: DataSpec, *, samples: int, kl_warmup: int, free_bits: float, beta: float = 1.0,
        capacity: float | None = None, capacity_warmup: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(spec)
        require(least=1, samples=samples)
        require(least=0, kl_warmup=kl_warmup, free_bits=free_bits, beta=beta)
        require(least=0, capacity=capacity, capacity_warmup=capacity_warmup)
        if capacity is not None and free_bits:
            raise UserError(f"model.capacity={capacity} and model.free_bits={free_bits} exclude each other; set one.")
        self.samples, self.kl_warmup, self.free_bits, self.kl_weight = samples, kl_warmup, free_bits, beta
        self.capacity, self.capacity_warmup = capacity, capacity_warmup
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The negative bound, with the options where they are set."""
        return self.objective(*self._terms(batch.x, self.samples, generator))

    def objective(self, reconstruction: Float[Tensor, " b"], kl: Float[Tensor, "b parts"]) -> tuple[Tensor, Logs]:
        """The loss and the logs of the two parts of the bound, with the options."""
        reconstruction, kl = reconstruction.mean(), kl.mean(0)
        loss = -reconstruction + self._charge(kl)
        kl, reconstruction = kl.detach().sum(), reconstruction.detach()
        return loss, {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Advance the counter of the schedules."""
        self.step += 1

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """One draw of the bound of raw x (b, *shape), with what is known of the KL in closed form."""
        reconstruction, kl = self._terms(x, 1, generator)
        return reconstruction - kl.sum(1)

    def _charge(self, kl: Float[Tensor, " parts"]) -> Float[Tensor, ""]:
        """What the loss charges for the batch's mean KL in parts, at the present update."""
        beta = self.kl_weight * self._risen(self.kl_warmup)
        if self.capacity is None:
            return beta * kl.clamp(min=self.free_bits).sum()
        return beta * (kl.sum() - self.capacity * self._risen(self.capacity_warmup)).abs()

    def _risen(self, updates: int) -> Tensor | float:
        """How far a schedule of so many updates has come, from 0 to 1."""
        return (self.step / updates).clamp(max=1.0) if updates else 1.0

    def _terms(self, x: Tensor, samples: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Reconstruction term (b,), averaged over samples of z, and the KL (b, parts); free bits are for each part."""
        raise NotImplementedError


class Vae(ElboModel):
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
        beta: Weight of the KL in the loss.
        kl_warmup: Updates over which the weight of the KL rises from 0 to beta.
        free_bits: Nats of KL for each latent dimension that the loss does not charge for.
        capacity: Nats that the KL is held at; None lets it go.
        capacity_warmup: Updates over which they rise from 0.
        flow: What maps the draws of the Gaussian; none by default.
    """

    def __init__(
        self, spec: DataSpec, *, net: NetName = "auto", hidden_sizes: Sequence[int] = (200, 200), channels: int = 32,
        latent: int = 50, observation: ObservationName = "auto", sigma: float | None = None, components: int = 5,
        samples: int = 1, beta: float = 1.0, kl_warmup: int = 0, free_bits: float = 0.0,
        capacity: float | None = None, capacity_warmup: int = 10_000, flow: PosteriorFlow | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            spec, samples=samples, kl_warmup=kl_warmup, free_bits=free_bits, beta=beta, capacity=capacity,
            capacity_warmup=capacity_warmup,
        )  # fmt: skip
        require(least=1, hidden_sizes=hidden_sizes, channels=channels, latent=latent, components=components)
        require(above=0, sigma=sigma)
        if not isinstance(flow, PosteriorFlow | None):
            raise UserError(f"model.flow={flow!r} is no flow object; take model=planar_vae, radial_vae or iaf_vae.")
        self.latent = self.noise_dim = latent
        self.flow = flow
        sizes = tuple(hidden_sizes)
        self.observation = build_observation(observation, spec, sigma=sigma, components=components)
        self.scaling = Scaling(spec, low=0.0)
        features = 2 * latent + (0 if flow is None else flow.context)
        self.encoder = build_encoder(net, spec.shape, features, hidden_sizes=sizes, channels=channels)
        self.decoder = build_decoder(
            net, latent, self.observation.parameters_per_dim, spec.shape, hidden_sizes=sizes[::-1], channels=channels
        )

    def posterior(self, x: Tensor) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"]]:
        """Mean and log sigma of q(z | x), before the flow if there is one, for raw x (b, *shape)."""
        return self._encode(x)[:2]

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Float[Tensor, "k b"]:
        """Draw k importance weights of each raw x (b, *shape); the bound is their log-mean-exp."""
        q = self._draw(x, k, generator)
        prior = gaussian_log_density(q.z, torch.zeros_like(q.z), torch.zeros_like(q.z)).sum(-1)
        posterior = gaussian_log_density(q.start, q.mean, q.log_sigma).sum(-1) - q.log_det.sum(-1)
        return self._log_likelihood(x, q.z) + prior - posterior

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
        """The mean of the Gaussian of raw x (b, *shape), through the flow if there is one."""
        mean, _, context = self._encode(x)
        return mean if self.flow is None else self.flow(mean[None], context)[0][0]

    def decode(self, z: Float[Tensor, "b z"]) -> Tensor:
        """E[x | z], float (b, *shape) on the raw scale."""
        return self.observation.mean(self.decoder(z))

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | z] at a draw z ~ q(z | x), float (b, *shape) on the raw scale."""
        return self.decode(self._draw(x, 1, generator).z[0])

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

    def _terms(self, x: Tensor, samples: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        q = self._draw(x, samples, generator)
        return self._log_likelihood(x, q.z).mean(0), self._kl(q)

    def _kl(self, q: Draws) -> Float[Tensor, "b g"]:
        """KL(q(z | x) || p(z)) in parts, in closed form but for what a flow changes."""
        kl = 0.5 * (q.mean.square() + torch.exp(2 * q.log_sigma) - 1) - q.log_sigma
        if self.flow is None and q.z is q.start:
            return kl
        change = 0.5 * (q.z.square() - q.start.square()).mean(0)
        if q.log_det.shape[2] != self.latent:  # the determinant is no product over dimensions: one part in all
            kl, change = kl.sum(1, keepdim=True), change.sum(1, keepdim=True)
        return kl + change - q.log_det.mean(0)

    def _encode(self, x: Tensor) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"], Float[Tensor, "b c"]]:
        """Mean and log sigma of the Gaussian, and what the encoder tells the flow."""
        features = self.encoder(self.scaling(x).to(self._dtype))
        mean, log_variance, context = features.split([self.latent, self.latent, features.shape[1] - 2 * self.latent], 1)
        return mean, 0.5 * log_variance, context

    def _draw(self, x: Tensor, k: int, generator: Generator | None) -> Draws:
        mean, log_sigma, context = self._encode(x)
        noise = torch.randn(k, *mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        start = mean + log_sigma.exp() * noise
        z, log_det = (start, start.new_zeros(k, len(mean), 1)) if self.flow is None else self.flow(start, context)
        return Draws(mean, log_sigma, start, z, log_det)

    def _log_likelihood(self, x: Tensor, z: Float[Tensor, "k b z"]) -> Float[Tensor, "k b"]:
        parameters = self.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        return self.observation.log_prob(parameters, x)
