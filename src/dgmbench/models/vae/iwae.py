r"""The importance-weighted autoencoder: a VAE trained on a bound that k draws of the latents make tighter.

The encoder proposes k times; a proposal that explains x badly costs little as long as another explains it well, so the
model is less confined to posteriors that the encoder can represent. With z_1 ... z_k ~ q(z | x),

    w_i = p(x, z_i) / q(z_i | x),      bound_k(x) = E[log 1/k sum_i w_i] <= log p(x),      loss = -E_data[bound_k].

bound_1 is the ELBO, bound_k never decreases with k and tends to log p(x). With several stochastic layers,

    p(x, z) = N(z_L; 0, I) p(z_{L-1} | z_L) ... p(x | z_1),
    q(z | x) = q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1}),

all of them diagonal Gaussians but p(x | z_1). With w~_i = w_i / sum_j w_j, the encoder's gradient is

    iwae   sum_i w~_i d(log w_i), whose signal-to-noise ratio falls as k grows;
    dreg   sum_i w~_i^2 (d log w_i / d z_i) (d z_i), with the same mean and less variance (Tucker et al. 2019).

The decoder's gradient is that of the bound in both. Loss and log hold the value of the bound itself; the surrogate
sum_i w~_i log w_i has the right gradient too, but exceeds the bound by KL(w~ || uniform).

Shapes and units: x is raw (b, *shape), z_l (k, b, latent_l); log-weights (k, b) and bounds (b,) are in nats per example
of raw x (see ``nn.observation`` for the constants).

Paper: Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, https://arxiv.org/abs/1509.00519.
dreg: Tucker, Lawson, Gu, Maddison, "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives", ICLR 2019,
https://arxiv.org/abs/1810.04152.

Sizes are the paper's: x-200-200-50, or with ``latent=(100, 50)`` x-200-200-100-100-100-50, tanh. Its schedule of eight
learning rates over 3280 epochs is left to ``optimizer.schedule``.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.func import functional_call

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.encoders import NetName, build_decoder, build_encoder, mlp
from dgmbench.nn.gaussians import Moments, moments
from dgmbench.nn.observation import ObservationName, build_observation, gaussian_log_density
from dgmbench.nn.scaling import Scaling


class Iwae(Model):
    """Importance-weighted autoencoder (Burda, Grosse, Salakhutdinov 2016).

    Args:
        spec: The data space.
        k: Draws of the latents for each example in the training bound.
        latent: Dimensions of each stochastic layer, from the data upwards.
        net: Kind of the networks between x and z_1.
        hidden_sizes: Widths of the mlp's hidden layers between x and z_1, encoder order. None: linear.
        upper_sizes: Widths of the hidden layers between one stochastic layer and the next, encoder order.
        channels: First width of conv and resnet.
        observation: p(x | z_1); ``auto`` goes by the kind of the data.
        sigma: Fixed standard deviation of a gaussian observation; learned if None.
        components: Logistics in the mixture of a discrete dimension.
        gradient: The encoder's gradient, see above.
    """

    def __init__(
        self, spec: DataSpec, *, k: int = 50, latent: Sequence[int] = (50,), net: NetName = "auto",
        hidden_sizes: Sequence[int] = (200, 200), upper_sizes: Sequence[int] = (100, 100), channels: int = 32,
        observation: ObservationName = "auto", sigma: float | None = None, components: int = 5,
        gradient: Literal["iwae", "dreg"] = "iwae",
    ) -> None:  # fmt: skip
        super().__init__(spec)
        if k < 1:
            raise UserError(f"model.k={k} draws give no bound; take at least 1.")
        if not latent or min(latent) < 1:
            raise UserError(f"model.latent={list(latent)} must name the size of at least one stochastic layer.")
        if gradient not in ("iwae", "dreg"):
            raise UserError(f"model.gradient must be iwae or dreg, not {gradient!r}.")
        self.k, self.latent, self.gradient = k, tuple(latent), gradient
        self.noise_dim = sum(self.latent)
        sizes, upper = tuple(hidden_sizes), tuple(upper_sizes)
        self.observation = build_observation(observation, spec, sigma=sigma, components=components)
        self.scaling = Scaling(spec, low=0.0)
        self.encoder = build_encoder(net, spec.shape, 2 * self.latent[0], hidden_sizes=sizes, channels=channels)
        self.decoder = build_decoder(
            net,
            self.latent[0],
            self.observation.parameters_per_dim,
            spec.shape,
            hidden_sizes=sizes[::-1],
            channels=channels,
        )
        self.upwards = nn.ModuleList(mlp([low, *upper, 2 * high]) for low, high in pairwise(self.latent))
        self.downwards = nn.ModuleList(mlp([high, *upper[::-1], 2 * low]) for low, high in pairwise(self.latent))

    def posterior(self, x: Tensor) -> Moments:
        """Mean and log sigma of q(z_1 | x) for raw x (b, *shape), each (b, latent_1)."""
        return moments(self.encoder(self.scaling(x).to(self._dtype)))

    def draw(self, first: Moments, k: int, generator: Generator | None) -> list[Float[Tensor, "k b _"]]:
        """k draws of z_1 ... z_L ~ q, reparametrised, from the moments of q(z_1 | x)."""
        layers, now = [], first
        for layer in range(len(self.latent)):
            mean, log_sigma = now
            shape = (k, *mean.shape) if layer == 0 else mean.shape
            noise = torch.randn(shape, generator=generator, device=mean.device, dtype=mean.dtype)
            layers.append(mean + log_sigma.exp() * noise)
            if layer < len(self.upwards):
                now = moments(self.upwards[layer](layers[-1]))
        return layers

    def log_joint(self, x: Tensor, z: Sequence[Float[Tensor, "k b _"]]) -> Float[Tensor, "k b"]:
        """Log p(x, z_1, ..., z_L) of raw x (b, *shape) at each draw."""
        parameters = self.decoder(z[0].flatten(0, 1)).unflatten(0, z[0].shape[:2])
        total = self.observation.log_prob(parameters, x)
        for net, (low, high) in zip(self.downwards, pairwise(z), strict=True):
            total = total + gaussian_log_density(low, *moments(net(high))).sum(-1)
        return total + gaussian_log_density(z[-1], torch.zeros_like(z[-1]), torch.zeros_like(z[-1])).sum(-1)

    def log_posterior(
        self, first: Moments, z: Sequence[Float[Tensor, "k b _"]], *, fixed: bool = False
    ) -> Float[Tensor, "k b"]:
        """Log q(z_1, ..., z_L | x) at each draw; ``fixed`` hides the encoder's weights from the gradient."""
        mean, log_sigma = (m.detach() for m in first) if fixed else first
        total = gaussian_log_density(z[0], mean, log_sigma).sum(-1)
        for net, (low, high) in zip(self.upwards, pairwise(z), strict=True):
            weights = {name: p.detach() if fixed else p for name, p in net.named_parameters()}
            total = total + gaussian_log_density(high, *moments(functional_call(net, weights, (low,)))).sum(-1)
        return total

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The negative bound of k draws; with dreg the value is the same and the encoder's gradient another one."""
        first = self.posterior(batch.x)
        z = self.draw(first, self.k, generator)
        if self.gradient == "dreg":
            weights: list[Tensor] = []  # known before the backward pass, in which alone they are needed
            z = [layer.clone() for layer in z]
            for layer in z:
                if layer.requires_grad:
                    layer.register_hook(lambda gradient: gradient * weights[0][..., None])
        log_w = self.log_joint(batch.x, z) - self.log_posterior(first, z, fixed=self.gradient == "dreg")
        bound = (log_w.logsumexp(0) - math.log(self.k)).mean()
        if self.gradient == "dreg":
            weights.append(log_w.detach().softmax(0))
        return -bound, {"bound": bound.detach(), "elbo": log_w.detach().mean()}

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Float[Tensor, "k b"]:
        """Draw k importance weights of each raw x (b, *shape); the bound is their log-mean-exp."""
        first = self.posterior(x)
        z = self.draw(first, k, generator)
        return self.log_joint(x, z) - self.log_posterior(first, z)

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """One draw of the bound with k = 1."""
        return self.log_weights(x, 1, generator=generator)[0]

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples from the prior down through all layers, raw (n, *shape)."""
        device = next(self.parameters()).device
        noise = torch.randn(n, self.noise_dim, generator=generator, device=device, dtype=self._dtype)
        return self.sample_given(noise, generator=generator)

    def log_prob_given(self, x: Tensor, noise: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
        """Log p(x | z_1) of raw x (b, *shape), z_1 made of the noise of all layers, the lowest layer's first."""
        return self.observation.log_prob(self.decoder(self._lowest(noise)), x)

    @torch.no_grad()
    def sample_given(self, noise: Float[Tensor, "b n"], *, generator: Generator | None = None) -> Tensor:
        """Draw x, raw (b, *shape), from p(x | z_1) at the noise of all layers."""
        return self.observation.sample(self.decoder(self._lowest(noise)), generator=generator)

    def _lowest(self, noise: Float[Tensor, "b n"]) -> Float[Tensor, "b z"]:
        """z_1 of the noise of all layers: z_L = noise_L, and then z_l = mean(z_{l+1}) + sigma(z_{l+1}) noise_l."""
        *lower, z = noise.to(self._dtype).split(self.latent, dim=1)
        for net, own in zip(reversed(self.downwards), reversed(lower), strict=True):
            mean, log_sigma = moments(net(z))
            z = mean + log_sigma.exp() * own
        return z

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The mean of the top layer, with the layers below it at their means, for raw x (b, *shape)."""
        mean = self.posterior(x)[0]
        for net in self.upwards:
            mean = moments(net(mean))[0]
        return mean

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | z_1] at a draw z_1 ~ q(z_1 | x), float (b, *shape) on the raw scale."""
        z = self.draw(self.posterior(x), 1, generator)[0][0]
        return self.observation.mean(self.decoder(z))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype
