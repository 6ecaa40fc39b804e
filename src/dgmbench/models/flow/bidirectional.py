r"""The ResNet VAE with bidirectional inference: many layers of latent maps, met from below and from above.

A residual network goes up from x and leaves at each layer its part of the posterior, q_up; a second one comes down
from a learned constant and is generative model and inference network at once. At each layer it says what it expects,
the prior p(z_l | above), and corrects q_up to the posterior; a draw z_l joins the path, and the next layer follows:

    q(z | x) = prod_l q(z_l | z_above, x),      p(x, z) = prod_l p(z_l | z_above) p(x | z),
    q_l = N(mean_up + mean_down, exp(log_sigma_up + log_sigma_down)^2) through one inverse autoregressive step,
    elbo(x) = E_q[log p(x | z)] - sum_l KL_l <= log p(x).

The inverse autoregressive step is z = sigma z_0 + (1 - sigma) m (survey eq. 81), with m and sigma at a position and
map from masked convolutions of z_0 at the positions before it in raster order, of the maps before it at the same
position, and of context from both paths. Its Jacobian is triangular and log |det| = sum log sigma. Order and
direction of the raster are reversed from one layer to the next.

KL_l is the closed form of the Gaussian, and for the step the draw's own 1/2 (z'^2 - z_0'^2) - log sigma, both
standardised by the prior. Free bits are for one map of one layer, averaged over the batch, and in the loss only.

Shapes and units: x is raw (b, c, h, w); a layer's z is (k b, maps, h_l, w_l), a code is all of them, flat; nats.

Paper: Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling, "Improving Variational Inference with Inverse
Autoregressive Flow", NeurIPS 2016, https://arxiv.org/abs/1606.04934, section 4 and appendix C. What differs is in
``iaf_vae.py``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.vae.vae import ElboModel
from dgmbench.nn.observation import ObservationName, build_observation, gaussian_log_density
from dgmbench.nn.scaling import Scaling

OPEN = 2.0
"""What is added to the raw gate, so that a step starts near the identity (the paper: 1 or 2)."""

RESIDUAL = 0.1
"""The weight of a residual branch, from the published code."""

Choice = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""What gives the z of a layer: its number, the prior's mean and log sigma, and the path's word on the posterior."""


def gated(z: Tensor, m: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Sigma z + (1 - sigma) m with sigma = sigmoid(raw + OPEN), and log sigma; all of one shape."""
    gate = raw + OPEN
    sigma = gate.sigmoid()
    return sigma * z + (1 - sigma) * m, F.logsigmoid(gate)


class MaskedConv(nn.Conv2d):
    """A 3 x 3 convolution that sees the positions before its own, and at its own the maps whose degree is below.

    Args:
        below: degrees of the maps that come in.
        above: degrees of the maps that go out; one of degree m sees those of degree <= m at its own position.
        backwards: takes the raster from the last position to the first.
    """

    mask: Tensor

    def __init__(self, below: Tensor, above: Tensor, *, backwards: bool) -> None:
        super().__init__(len(below), len(above), 3, padding=1)
        mask = torch.zeros(len(above), len(below), 9)
        mask[:, :, :4] = 1
        mask = mask.flip(2) if backwards else mask
        mask[:, :, 4] = (above[:, None] >= below).float()
        self.register_buffer("mask", mask.view(*mask.shape[:2], 3, 3), persistent=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Convolve."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


class ConvolutionalStep(nn.Module):
    """One inverse autoregressive step on maps (b, maps, h, w), with context (b, hidden, h, w)."""

    def __init__(self, maps: int, hidden: int, *, backwards: bool) -> None:
        super().__init__()
        degrees = torch.arange(maps)
        degrees = degrees.flip(0) if backwards else degrees
        between = torch.arange(hidden) % maps  # a hidden map of degree m sees maps of degree < m
        self.first = MaskedConv(degrees + 1, between, backwards=backwards)
        self.second = MaskedConv(between, degrees.repeat(2), backwards=backwards)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The image of z, and log sigma at each of its entries."""
        m, raw = self.second(F.elu(self.first(z) + context)).chunk(2, 1)
        return gated(z, m, raw)


class LatentLayer(nn.Module):
    """One layer of latent maps: its part of the way up, its prior and its part of the way down.

    ``top`` is the last layer of the way up, which ends there.
    """

    def __init__(self, channels: int, maps: int, *, backwards: bool, top: bool) -> None:
        super().__init__()
        self.sizes = [maps, maps, channels]  # mean, log sigma, context
        self.onwards = 0 if top else channels
        self.up = _conv(channels, sum(self.sizes) + self.onwards)
        self.up_end = None if top else _conv(channels, channels)
        self.down = _conv(channels, 2 * maps + sum(self.sizes) + channels)
        self.down_end = _conv(channels + maps, channels)
        self.step = ConvolutionalStep(maps, channels, backwards=backwards)
        with torch.no_grad():  # prior and posterior start near N(0, 1)
            self.up.weight[: 2 * maps].mul_(0.1)
            self.down.weight[: 4 * maps].mul_(0.1)

    def rise(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The next u of the way up, and what it says of the posterior."""
        said, h = self.up(F.elu(u)).split([sum(self.sizes), self.onwards], 1)
        return u if self.up_end is None else u + RESIDUAL * self.up_end(F.elu(h)), said

    def expect(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The prior's mean and log sigma, the way down's word on the posterior, and what goes on."""
        maps = self.sizes[0]
        return self.down(F.elu(h)).split([maps, maps, sum(self.sizes), h.shape[1]], 1)

    def join(self, h: Tensor, rest: Tensor, z: Tensor) -> Tensor:
        """The next h of the way down."""
        return h + RESIDUAL * self.down_end(F.elu(torch.cat([rest, z], 1)))


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


class BidirectionalVae(ElboModel):
    """ResNet VAE with bidirectional inference and inverse autoregressive steps, for images.

    Args:
        spec: The data space, images.
        channels: Maps of the residual paths.
        latent: Latent maps of a layer.
        layers: Layers of latent maps at each resolution; each halves the last, down to a side of at most 4.
        observation: p(x | z); ``auto`` goes by the kind of the data.
        sigma: Fixed standard deviation of a gaussian observation; learned if None.
        components: Logistics in the mixture of a discrete dimension.
        samples: Draws of z for each example in one estimate of the bound.
        kl_warmup: Updates over which the weight of the KL rises from 0 to 1.
        free_bits: Nats of KL for each map of a layer that the loss does not charge for.
    """

    def __init__(
        self, spec: DataSpec, *, channels: int = 32, latent: int = 32, layers: int = 2,
        observation: ObservationName = "auto", sigma: float | None = None, components: int = 5, samples: int = 1,
        kl_warmup: int = 0, free_bits: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(spec, samples=samples, kl_warmup=kl_warmup, free_bits=free_bits)
        require(least=1, channels=channels, latent=latent, layers=layers, components=components)
        require(above=0, sigma=sigma)
        if not spec.is_image:
            raise UserError(f"Bidirectional inference takes images, not {spec}; choose net=mlp.")
        self.observation = build_observation(observation, spec, sigma=sigma, components=components)
        self.scaling = Scaling(spec, low=0.0)
        self.latent = latent
        sizes = [tuple(spec.shape[1:])]
        while len(sizes) == 1 or min(sizes[-1]) > 4:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        count = layers * (len(sizes) - 1)
        self.layers = nn.ModuleList(
            LatentLayer(channels, latent, backwards=i % 2 == 1, top=i == count - 1) for i in range(count)
        )
        self.per_size = layers
        self.sizes = [size for size in sizes[1:] for _ in range(layers)]
        widths = [spec.shape[0], *[channels] * (len(sizes) - 1)]
        self.smaller = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        parameters = self.observation.parameters_per_dim
        widths = [parameters * spec.shape[0], *widths[1:]]
        self.larger = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 3, stride=2, padding=1, output_padding=(1 - large[0] % 2, 1 - large[1] % 2))
            for (a, b), large in zip(pairwise(widths), sizes, strict=False)
        )
        self.unflatten = nn.Unflatten(1, (parameters, spec.shape[0]))
        self.top = nn.Parameter(torch.zeros(channels, 1, 1))

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Float[Tensor, "k b"]:
        """Draw k importance weights of each raw x (b, *shape); the bound is their log-mean-exp."""
        parameters, _, log_ratio = self._infer(x, k, generator)
        return self.observation.log_prob(parameters, x) - log_ratio

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples from the top down, raw (n, *shape)."""

        def draw(number: int, mean: Tensor, log_sigma: Tensor, said: Tensor) -> Tensor:
            return mean + log_sigma.exp() * self._noise(mean, generator)

        return self.observation.sample(self._down(n, draw), generator=generator)

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The codes of raw x (b, *shape) with all noise at zero, top layer first, flat."""
        said, found = self._up(x), []

        def middle(number: int, mean: Tensor, log_sigma: Tensor, word: Tensor) -> Tensor:
            start, _, context = self._posterior(number, said[number] + word)
            found.append(self._layer(number).step(start, context)[0])
            return found[-1]

        self._down(len(x), middle)
        return torch.cat([z.flatten(1) for z in found], 1)

    def decode(self, code: Float[Tensor, "b z"]) -> Tensor:
        """E[x | z], float (b, *shape) on the raw scale."""
        shapes = [(self.latent, *size) for size in reversed(self.sizes)]
        parts = [
            part.view(-1, *shape)
            for part, shape in zip(code.split([c * h * w for c, h, w in shapes], 1), shapes, strict=True)
        ]
        given = dict(zip(reversed(range(len(self.layers))), parts, strict=True))
        return self.observation.mean(self._down(len(code), lambda number, *_: given[number]))

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | z] at a draw z ~ q(z | x), float (b, *shape) on the raw scale."""
        return self.observation.mean(self._infer(x, 1, generator)[0][0])

    def _terms(self, x: Tensor, samples: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        parameters, kl, _ = self._infer(x, samples, generator)
        return self.observation.log_prob(parameters, x).mean(0), kl.mean(0)

    def _layer(self, number: int) -> LatentLayer:
        layer = self.layers[number]
        assert isinstance(layer, LatentLayer)
        return layer

    @staticmethod
    def _noise(like: Tensor, generator: Generator | None) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)

    def _posterior(self, number: int, said: Tensor) -> Sequence[Tensor]:
        """Mean, log sigma and context from the sum of both paths' words."""
        return said.split(self._layer(number).sizes, 1)

    def _up(self, x: Tensor) -> list[Tensor]:
        """What the way up says of each layer's posterior."""
        u, said = self.scaling(x).to(self.top.dtype), []
        for number in range(len(self.layers)):
            if number % self.per_size == 0:
                u = self.smaller[number // self.per_size](u)
            u, word = self._layer(number).rise(u)
            said.append(word)
        return said

    def _down(self, n: int, choose: Choice) -> Tensor:
        """From the top to the observation's parameters (n, P, *shape); ``choose`` gives each layer's z."""
        h = self.top.expand(n, -1, *self.sizes[-1])
        for number in reversed(range(len(self.layers))):
            layer = self._layer(number)
            mean, log_sigma, word, rest = layer.expect(h)
            h = layer.join(h, rest, choose(number, mean, log_sigma, word))
            if number % self.per_size == 0:
                h = self.larger[number // self.per_size](F.elu(h))
        return self.unflatten(h)

    def _infer(self, x: Tensor, k: int, generator: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """The observation's parameters (k, b, P, *shape), the KL of each map (k, b, g), and log q / p of the draws."""
        said = self._up(x)
        kls: list[Tensor] = []
        ratios: list[Tensor] = []
        parameters = self._down(k * len(x), partial(self._draw, said, k, kls, ratios, generator))
        kl, ratio = torch.cat(kls, 1), torch.stack(ratios).sum(0)
        return parameters.unflatten(0, (k, -1)), kl.unflatten(0, (k, -1)), ratio.view(k, -1)

    def _draw(
        self,
        said: Sequence[Tensor],
        k: int,
        kls: list[Tensor],
        ratios: list[Tensor],
        generator: Generator | None,
        number: int,
        mean: Tensor,
        log_sigma: Tensor,
        word: Tensor,
    ) -> Tensor:
        """A draw of one layer's posterior; its KL of each map (n, g) and log q / p (n,) join the lists."""
        from_below = said[number].expand(k, *said[number].shape).flatten(0, 1)
        q_mean, q_log_sigma, context = self._posterior(number, from_below + word)
        noise = self._noise(q_mean, generator)
        start = q_mean + q_log_sigma.exp() * noise
        z, log_gate = self._layer(number).step(start, context)
        inverse = torch.exp(-log_sigma)
        apart, before, after = ((value - mean) * inverse for value in (q_mean, start, z))
        log_ratio = log_sigma - q_log_sigma  # of the two widths
        kl = 0.5 * (apart.square() + torch.exp(-2 * log_ratio) - 1) + log_ratio
        kls.append((kl + 0.5 * (after.square() - before.square()) - log_gate).sum((2, 3)))
        log_q = gaussian_log_density(start, q_mean, q_log_sigma) - log_gate
        ratios.append((log_q - gaussian_log_density(z, mean, log_sigma)).flatten(1).sum(1))
        return z
