r"""Convolutional DRAW: a picture drawn in steps from global to local, so that the first codes are worth storing.

The canvas r is the mean of the picture; at each step the encoder sees what is missing of it, and the decoder, a
convolutional LSTM, adds to it. What the decoder expects of the next code is the prior:

    error_t = x - r_{t-1},                                h_enc_t = LSTM(h_enc_{t-1}, [x, error_t], h_dec_{t-1}),
    p_t = N(mean_p(h_dec_{t-1}), sigma_p^2),              q_t = N(mean_q(h_enc_t), sigma_q^2),      z_t ~ q_t,
    h_dec_t = LSTM(h_dec_{t-1}, z_t, r_{t-1}),            r_t = r_{t-1} + W h_dec_t,
    elbo(x) = E_q[log N(x; r_T, sigma(h_dec_T)^2) - sum_t KL(q_t || p_t)] <= log p(x),      loss = -E_data[elbo].

*Conceptual compression*: the first codes are stored, at sum_t KL_t nats, and the later ones drawn from the prior.

Shapes and units: x is raw (b, c, h, w), r (n, c, h, w) on the network's scale, h and z maps of half the sides (rounded
up), z_t (n, latent, h', w'); nats per example of raw x. Data with levels have the mass of the Gaussian on each level.
KL_t is in closed form given the path before t.

Paper: Gregor, Besse, Jimenez Rezende, Danihelka, Wierstra, "Towards Conceptual Compression", NeurIPS 2016,
https://arxiv.org/abs/1604.08772.

Different from the paper: one layer of recurrent networks at half the picture's sides; the exact mass on levels, where
the paper adds uniform noise; later codes are drawn from the prior with its own variance.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.vae.quantised import GrowingNet, ShrinkingNet, halved
from dgmbench.models.vae.vae import ElboModel
from dgmbench.nn.gaussians import Moments, gaussian_kl, halves
from dgmbench.nn.observation import Gaussian, gaussian_log_density
from dgmbench.nn.scaling import Scaling

PICTURES = 10  # most canvases of one picture that are shown


class ConvLstm(nn.Module):
    """A convolutional LSTM on maps: (n, inputs, h, w) and a state of two (n, hidden, h, w) -> the next state."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(inputs + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x: Float[Tensor, "n i h w"], state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """One step."""
        h, c = state
        enter, keep, leave, new = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = (keep + 1).sigmoid() * c + enter.sigmoid() * new.tanh()  # it remembers at first
        return leave.sigmoid() * c.tanh(), c


class Step(NamedTuple):
    """One step: z_t, the moments of its prior and (but for samples) posterior, and the canvas and state after it."""

    z: Float[Tensor, "n l i j"]
    prior: Moments
    posterior: Moments | None
    canvas: Float[Tensor, "n c h w"]
    hidden: Float[Tensor, "n f i j"]


Choice = Callable[[int, Moments, Tensor, Tensor], tuple[Tensor, Moments | None]]
"""What gives the z of a step, from its number, the prior, the canvas, and the decoder's state."""


class ConvDraw(ElboModel):
    """Convolutional DRAW of images (Gregor et al. 2016).

    Args:
        spec: The data space, images.
        steps: T, steps of a picture.
        hidden: Maps of both recurrent networks.
        latent: Maps of each z_t.
        samples: Draws of the path for each example in one estimate of the bound.
        kl_warmup: Updates over which the weight of the KL rises from 0 to 1.
        free_bits: Nats of KL for each step that the loss does not charge for.
    """

    def __init__(
        self, spec: DataSpec, *, steps: int = 16, hidden: int = 160, latent: int = 12, samples: int = 1,
        kl_warmup: int = 0, free_bits: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(spec, samples=samples, kl_warmup=kl_warmup, free_bits=free_bits)
        if not spec.is_image or spec.kind not in ("binary", "discrete", "real"):
            raise UserError(f"conv_draw takes images (c, h, w), not {spec}; choose such data, as data=natural_patches.")
        require(least=1, steps=steps, hidden=hidden, latent=latent)
        self.steps, self.hidden, self.latent = steps, hidden, latent
        self.observation = Gaussian(spec)
        self.scaling = Scaling(spec)
        channels = spec.shape[0]
        sizes = halved((spec.shape[1], spec.shape[2]), 1)
        self.size = sizes[1]
        self.noise_dim = steps * latent * self.size[0] * self.size[1]
        self.look = ShrinkingNet(2 * channels, hidden, halvings=1, blocks=0)
        self.encoder = ConvLstm(2 * hidden, hidden)
        self.posterior = nn.Conv2d(hidden, 2 * latent, 3, padding=1)
        self.prior = nn.Conv2d(hidden, 2 * latent, 3, padding=1)
        self.seen = ShrinkingNet(channels, hidden, halvings=1, blocks=0)
        self.decoder = ConvLstm(latent + hidden, hidden)
        self.write = GrowingNet(hidden, channels, hidden, sizes=sizes, blocks=0)
        self.spread = GrowingNet(hidden, channels, hidden, sizes=sizes, blocks=0)
        self.first = nn.Parameter(torch.zeros(4, hidden, 1, 1))
        self.start = nn.Parameter(torch.zeros(channels, 1, 1))

    def infer(
        self, x: Tensor, k: int, generator: Generator | None = None, *, stored: int | None = None, mean: bool = False
    ) -> list[Step]:
        """The steps of k draws of q(z | x) for raw x (b, c, h, w), rows (k b); with ``mean`` of its means.

        Only the first ``stored`` are from q, if that is given, and the later ones from the prior.
        """
        target = self.scaling(x).to(self.start.dtype).expand(k, *x.shape).flatten(0, 1)
        state = self._first(2, len(target))
        known = self.steps if stored is None else stored

        def choose(number: int, p: Moments, canvas: Tensor, hidden: Tensor) -> tuple[Tensor, Moments | None]:
            nonlocal state
            if number >= known:
                return self._drawn(p, generator, mean), None
            looked = self.look(torch.cat([target, target - canvas], 1))
            state = self.encoder(torch.cat([looked, hidden], 1), state)
            q = halves(self.posterior(state[0]))
            return self._drawn(q, generator, mean), q

        return self._path(len(target), choose)

    def compress(
        self, x: Tensor, stored: int, *, generator: Generator | None = None
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """The mean of the picture, float on the raw scale, with only the first ``stored`` codes known, and their nats.

        The nats are what storing the codes costs: the sum of their KL_t.
        """
        require("compress", least=0, most=self.steps, stored=stored)
        path = self.infer(x, 1, generator, stored=stored)
        nats = [_sum(gaussian_kl(step.posterior, step.prior)) for step in path if step.posterior is not None]
        total = torch.stack(nats).sum(0) if nats else self.start.new_zeros(len(x))
        return self._mean(path[-1]), total

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Float[Tensor, "k b"]:
        """Draw k importance weights of each raw x (b, c, h, w), over the whole path."""
        path = self.infer(x, k, generator)
        total = self._log_likelihood(x, path[-1], k)
        for step in path:
            assert step.posterior is not None
            ratio = gaussian_log_density(step.z, *step.prior) - gaussian_log_density(step.z, *step.posterior)
            total = total + _sum(ratio).view(k, len(x))
        return total

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples from the prior, raw (n, c, h, w)."""
        noise = torch.randn(n, self.noise_dim, generator=generator, device=self.start.device, dtype=self.start.dtype)
        return self.sample_given(noise, generator=generator)

    def log_prob_given(self, x: Tensor, noise: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
        """Log p(x | z) of raw x (b, c, h, w), each z_t made of noise by its prior."""
        return self._log_likelihood(x, self._of_noise(noise)[-1], 1)[0]

    @torch.no_grad()
    def sample_given(self, noise: Float[Tensor, "b n"], *, generator: Generator | None = None) -> Tensor:
        """Draw x, raw (b, c, h, w), each z_t made of noise by its prior."""
        return self.observation.sample(self._observed(self._of_noise(noise)[-1]), generator=generator)

    def encode(self, x: Tensor) -> Float[Tensor, "b n"]:
        """The means of all steps, each given the means before it, side by side."""
        return torch.cat([step.z.flatten(1) for step in self.infer(x, 1, mean=True)], 1)

    def decode(self, code: Float[Tensor, "b n"]) -> Tensor:
        """E[x | z], float (b, c, h, w) on the raw scale."""
        given = code.unflatten(1, (self.steps, self.latent, *self.size)).to(self.start.dtype)
        return self._mean(self._path(len(code), lambda number, *_: (given[:, number], None))[-1])

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | z] at a draw z ~ q(z | x), float (b, c, h, w) on the raw scale."""
        return self._mean(self.infer(x, 1, generator)[-1])

    @torch.no_grad()
    def panels(self, batch: Batch, *, generator: Generator | None = None) -> Float[Tensor, "b k c h w"]:
        """The example, and what is left of it (``compress``) with no code stored, and with more and more of them."""
        shown = torch.linspace(0, self.steps, min(self.steps + 1, PICTURES)).round().int().tolist()
        found = [self.compress(batch.x, stored, generator=generator)[0] for stored in shown]
        return torch.stack([batch.x.to(found[0]), *found], 1)

    @torch.no_grad()
    def growth(self, n: int, *, generator: Generator | None = None) -> Float[Tensor, "n k c h w"]:
        """The canvases of n samples after each step, evenly spaced if there are many, and at last the samples."""
        path = self._of_noise(torch.randn(n, self.noise_dim, generator=generator, device=self.start.device))
        shown = torch.linspace(self.steps - 1, 0, min(self.steps, PICTURES)).round().int().flip(0)
        x = self.observation.sample(self._observed(path[-1]), generator=generator)
        return torch.stack([*(self._mean(path[step]) for step in shown), x.to(self.start)], 1)

    def _terms(self, x: Tensor, samples: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        path = self.infer(x, samples, generator)
        kl = [_sum(gaussian_kl(step.posterior, step.prior)) for step in path if step.posterior is not None]
        by_step = torch.stack(kl, 1).view(samples, len(x), self.steps).mean(0)
        return self._log_likelihood(x, path[-1], samples).mean(0), by_step

    def _path(self, n: int, choose: Choice) -> list[Step]:
        """All steps of n rows; ``choose`` gives each step's code."""
        state, canvas, path = self._first(0, n), self.start.expand(n, *self.spec.shape), []
        for number in range(self.steps):
            p = halves(self.prior(state[0]))
            z, q = choose(number, p, canvas, state[0])
            state = self.decoder(torch.cat([z, self.seen(canvas)], 1), state)
            canvas = canvas + self.write(state[0])
            path.append(Step(z, p, q, canvas, state[0]))
        return path

    def _of_noise(self, noise: Float[Tensor, "b n"]) -> list[Step]:
        given = noise.unflatten(1, (self.steps, self.latent, *self.size)).to(self.start.dtype)
        return self._path(len(noise), lambda number, p, *_: (p.mean + p.log_sigma.exp() * given[:, number], None))

    def _first(self, which: int, n: int) -> tuple[Tensor, Tensor]:
        """The learned first state of the decoder (0) or of the encoder (2)."""
        h, c = (each.expand(n, -1, *self.size) for each in self.first[which : which + 2])
        return h, c

    def _observed(self, last: Step) -> Float[Tensor, "n p c h w"]:
        return torch.stack([last.canvas, self.spread(last.hidden)], 1)

    def _mean(self, last: Step) -> Float[Tensor, "n c h w"]:
        """The canvas on the raw scale, between the data's lowest and highest level."""
        raw = self.scaling.unrounded(last.canvas)
        return raw if self.spec.kind == "real" else raw.clamp(0, (self.spec.levels or 2) - 1)

    def _log_likelihood(self, x: Tensor, last: Step, k: int) -> Float[Tensor, "k b"]:
        return self.observation.log_prob(self._observed(last).unflatten(0, (k, len(x))), x)

    @staticmethod
    def _drawn(of: Moments, generator: Generator | None, mean: bool) -> Tensor:
        if mean:
            return of.mean
        noise = torch.randn(of.mean.shape, generator=generator, device=of.mean.device, dtype=of.mean.dtype)
        return of.mean + of.log_sigma.exp() * noise


def _sum(maps: Float[Tensor, "n l i j"]) -> Float[Tensor, " n"]:
    return maps.flatten(1).sum(1)
