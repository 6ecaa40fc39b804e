r"""Hamiltonian variational inference: leapfrog steps towards the posterior, inside the bound of a VAE.

The encoder proposes z_0 ~ N(mean(x), diag sigma(x)^2); with a momentum v_0 of its own density, some leapfrog steps on
H(z, v) = -log p(x, z) + |v|^2 / 2 carry it to (z, v), nearer to where the posterior is. They keep volumes, so
(z, v) has the density of its start. A reverse model r(v | x, z) completes the target to one of both:

    z_0 ~ q(z_0 | x),    v_0 ~ q(v_0) = N(0, diag sigma_v^2),    (z, v) = leapfrog^L(z_0, v_0),
    w = p(x, z) r(v | x, z) / (q(z_0 | x) q(v_0)),      E[w] = p(x),
    elbo(x) = E[log w] <= log p(x),      loss = -E_data[elbo].

The gradient goes through the steps, hence through the gradient of log p(x, z): step sizes (one a dimension), sigma_v
and r are learned with encoder and decoder. No step is refused, and none need be small: whatever is lost shows in the
bound. With no steps this is the VAE, without a momentum.

Shapes and units: x is raw (b, *shape), z and v (k, b, latent); likelihoods are in nats per example of raw x.

Paper: Salimans, Kingma, Welling, "Markov Chain Monte Carlo and Variational Inference: Bridging the Gap", ICML 2015,
https://arxiv.org/abs/1410.6460.

Different from the paper: networks and sizes are those of ``vae``; r is an mlp of z and of features that an encoder of
its own reads from x; one iteration with several leapfrog steps, as in its experiments, and no gradual annealing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import require
from dgmbench.models.vae.vae import Draws, Vae
from dgmbench.nn.encoders import NetName, build_encoder, mlp
from dgmbench.nn.gaussians import Moments, moments, standard
from dgmbench.nn.hmc import LogDensity, Point, leapfrog
from dgmbench.nn.observation import ObservationName, gaussian_log_density


@dataclass(frozen=True)
class Differentiable(LogDensity):
    """A log-density whose force keeps its graph where gradients are wanted, so that steps can be learned."""

    def at(self, z: Tensor) -> Point:
        """Log-density and gradient."""
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            values = self.log_density(z)
            (gradient,) = torch.autograd.grad(values.sum(), z, create_graph=wanted)
        return Point(z, values, gradient) if wanted else Point(z.detach(), values.detach(), gradient.detach())


class Hvi(Vae):
    """VAE with leapfrog steps in its posterior (Salimans, Kingma, Welling 2015).

    Args:
        spec: The data space.
        leapfrog: Leapfrog steps; 0 is the VAE.
        step_size: Of every dimension at the start.
        features: Numbers that the reverse model is told of x.
        reverse_sizes: Widths of its hidden layers.
        net: Kind of encoder and decoder.
        hidden_sizes: Widths of the mlp's hidden layers, encoder order; the decoder mirrors them. None: linear.
        channels: First width of conv and resnet.
        latent: Dimensions of z.
        observation: p(x | z); ``auto`` goes by the kind of the data.
        sigma: Fixed standard deviation of a gaussian observation; learned if None.
        components: Logistics in the mixture of a discrete dimension.
        samples: Draws of z for each example in one estimate of the bound.
        kl_warmup: Updates over which the weight of all but the reconstruction rises from 0 to 1.
    """

    def __init__(
        self, spec: DataSpec, *, leapfrog: int = 8, step_size: float = 0.1, features: int = 64,
        reverse_sizes: Sequence[int] = (200,), net: NetName = "auto", hidden_sizes: Sequence[int] = (200, 200),
        channels: int = 32, latent: int = 50, observation: ObservationName = "auto", sigma: float | None = None,
        components: int = 5, samples: int = 1, kl_warmup: int = 0,
    ) -> None:  # fmt: skip
        require(least=0, leapfrog=leapfrog)
        require(above=0, step_size=step_size)
        require(least=1, features=features, reverse_sizes=reverse_sizes)
        super().__init__(
            spec, net=net, hidden_sizes=hidden_sizes, channels=channels, latent=latent, observation=observation,
            sigma=sigma, components=components, samples=samples, kl_warmup=kl_warmup,
        )  # fmt: skip
        self.leapfrog = leapfrog
        if leapfrog:
            self.log_step = nn.Parameter(torch.full((latent,), math.log(step_size)))
            self.log_sigma_v = nn.Parameter(torch.zeros(latent))
            self.reader = build_encoder(net, spec.shape, features, hidden_sizes=hidden_sizes, channels=channels)
            self.reverse = mlp([latent + features, *reverse_sizes, 2 * latent])
            with torch.no_grad():  # r starts near N(0, 1), as q(v) does
                last = self.reverse[-1]
                assert isinstance(last, nn.Linear)
                last.weight.mul_(0.1)

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The mean of the Gaussian of raw x (b, *shape), carried on by steps from rest."""
        mean = super().encode(x)[None]
        return self._carried(x, mean, torch.zeros_like(mean))[0][0] if self.leapfrog else mean[0]

    def reverse_moments(self, x: Tensor, z: Float[Tensor, "k b z"]) -> Moments:
        """Mean and log sigma of r(v | x, z), each (k, b, latent)."""
        told = self.reader(self.scaling(x).to(self._dtype))
        return moments(self.reverse(torch.cat([z, told.expand(len(z), *told.shape)], -1)))

    def _carried(
        self, x: Tensor, z: Float[Tensor, "k b z"], v: Float[Tensor, "k b z"]
    ) -> tuple[Float[Tensor, "k b z"], Float[Tensor, "k b z"]]:
        """Position and momentum after all leapfrog steps."""
        target = Differentiable(self._log_joint(x))
        end, momentum = leapfrog(target, target.at(z), v, self.log_step.exp(), self.leapfrog)
        return end.z, momentum

    def _log_joint(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda z: self._log_likelihood(x, z) + gaussian_log_density(z, *standard(z)).sum(-1)

    def _draw(self, x: Tensor, k: int, generator: Generator | None) -> Draws:
        """Draws after the steps; in place of a log-determinant, log r(v | x, z) - log q(v_0)."""
        q = super()._draw(x, k, generator)
        if not self.leapfrog:
            return q
        noise = torch.randn(q.start.shape, generator=generator, device=q.start.device, dtype=q.start.dtype)
        first = self.log_sigma_v.exp() * noise
        z, v = self._carried(x, q.start, first)
        gained = gaussian_log_density(v, *self.reverse_moments(x, z)) - gaussian_log_density(
            first, torch.zeros_like(first), self.log_sigma_v
        )
        return q._replace(z=z, log_det=gained.sum(-1, keepdim=True))
