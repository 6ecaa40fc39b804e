r"""DRAW: a picture drawn in many strokes, each by a recurrent decoder through a window that it moves itself.

At every step the encoder looks at the picture and at what is missing of it, through a window that the decoder has
chosen; a code z_t tells the decoder, which adds a stroke to the canvas c, the logits of the picture:

    error_t = x - sigmoid(c_{t-1}),                       r_t = [read(x), read(error_t)] by a window from h_dec_{t-1},
    h_enc_t = LSTM(h_enc_{t-1}, [r_t, h_dec_{t-1}]),      z_t ~ q_t = N(mean(h_enc_t), diag sigma(h_enc_t)^2),
    h_dec_t = LSTM(h_dec_{t-1}, z_t),                     c_t = c_{t-1} + write(h_dec_t),
    elbo(x) = E_q[log p(x | c_T) - sum_t KL(q_t || N(0, I))] <= log p(x),      loss = -E_data[elbo].

Windows are grids of Gaussian filters (``nn/windows.py``); without ``attention`` the whole picture is read and written.
Samples draw z_t from N(0, I) and need no encoder.

Shapes and units: x is raw, binary (b, c, h, w), canvases (n, c, h, w), z_t (n, latent); nats per example. KL_t is in
closed form given the path before t. A code (``encode``) is the means of all steps, along their own path.

Paper: Gregor, Danihelka, Graves, Rezende, Wierstra, "DRAW: A Recurrent Neural Network For Image Generation", ICML 2015,
https://arxiv.org/abs/1502.04623. Survey: DRAM/DRAW.

Different from the paper: sizes of filters start at a quarter of the grid's distance; binary pictures only.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.vae.vae import ElboModel
from dgmbench.nn.gaussians import Moments, gaussian_kl, moments, standard
from dgmbench.nn.observation import Bernoulli, gaussian_log_density
from dgmbench.nn.regions import framed
from dgmbench.nn.windows import PARAMETERS, Window, window

PICTURES = 10  # most canvases of one picture that are shown


class State(NamedTuple):
    """Where the decoder is: hidden state, memory cell, canvas."""

    hidden: Float[Tensor, "n h"]
    cell: Float[Tensor, "n h"]
    canvas: Float[Tensor, "n c height width"]


class Stroke(NamedTuple):
    """One step: the code and what it came from (None in a sample), and the canvas and the windows."""

    z: Float[Tensor, "n z"]
    posterior: Moments | None
    canvas: Float[Tensor, "n c height width"]
    read: Window | None
    write: Window | None


class Draw(ElboModel):
    """DRAW of binary pictures (Gregor et al. 2015).

    Args:
        spec: The data space, binary images.
        steps: T, strokes of a picture.
        hidden: Width of both recurrent networks.
        latent: Dimensions of each z_t.
        attention: Reads and writes through windows.
        read: Places along a side of the window that is read through.
        write: Places along a side of the window that is written through.
        samples: Draws of the path for each example in one estimate of the bound.
        kl_warmup: Updates over which the weight of the KL rises from 0 to 1.
    """

    def __init__(
        self, spec: DataSpec, *, steps: int = 64, hidden: int = 256, latent: int = 100, attention: bool = True,
        read: int = 2, write: int = 5, samples: int = 1, kl_warmup: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(spec, samples=samples, kl_warmup=kl_warmup, free_bits=0.0)
        if not spec.is_image or spec.kind != "binary":
            raise UserError(f"draw takes binary images (c, h, w), not {spec}; choose data=digits_canvas, for one.")
        require(least=1, steps=steps, hidden=hidden, latent=latent)
        require(least=2, read=read, write=write)
        channels, height, width = spec.shape
        if attention and max(read, write) > min(height, width):
            raise UserError(
                f"A window of model.read={read} or model.write={write} places is wider than the pictures, {height} x "
                f"{width}; take fewer places, or model.attention=false."
            )
        self.steps, self.hidden, self.latent, self.attention = steps, hidden, latent, attention
        self.noise_dim = steps * latent
        self.sides = (read, write)
        self.observation = Bernoulli(spec)
        seen = 2 * channels * (read * read if attention else height * width)
        drawn = channels * (write * write if attention else height * width)
        self.encoder = nn.LSTMCell(seen + hidden, hidden)
        self.code = nn.Linear(hidden, 2 * latent)
        self.decoder = nn.LSTMCell(latent, hidden)
        self.patch = nn.Linear(hidden, drawn)
        self.windows = nn.ModuleList(nn.Linear(hidden, PARAMETERS) for _ in range(2 if attention else 0))
        with torch.no_grad():
            for layer, side in zip(self.windows, self.sides, strict=False):
                bias = cast(Tensor, layer.bias)
                bias.zero_()
                bias[2] = 2 * torch.tensor(0.25 * (max(height, width) - 1) / (side - 1)).log()
        self.start = nn.Parameter(torch.zeros(spec.shape))
        self.first = nn.Parameter(torch.zeros(4, hidden))

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Start the canvas at each pixel's frequency."""
        count = batch.x.sum(0).to(self.start) + 0.5
        self.start.copy_((count / (len(batch.x) + 1)).logit())

    def infer(self, x: Tensor, k: int, generator: Generator | None = None, *, mean: bool = False) -> list[Stroke]:
        """The strokes of k draws of q(z | x) for raw x (b, c, h, w), rows (k b); with ``mean`` of its means."""
        target = x.to(self.start).expand(k, *x.shape).flatten(0, 1)
        h_enc, c_enc = (each.expand(len(target), -1) for each in self.first[2:])

        def choose(state: State) -> tuple[Tensor, Moments, Window | None]:
            nonlocal h_enc, c_enc
            seen, at = self._read(target, state)
            h_enc, c_enc = self.encoder(torch.cat([seen, state.hidden], 1), (h_enc, c_enc))
            q = moments(self.code(h_enc))
            noise = torch.zeros_like(q.mean) if mean else self._noise(q.mean, generator)
            return q.mean + q.log_sigma.exp() * noise, q, at

        return self._strokes(len(target), choose)

    def drawn(self, codes: Float[Tensor, "n t z"]) -> list[Stroke]:
        """The strokes that codes of all steps make."""
        given = iter(codes.to(self.start.dtype).unbind(1))
        return self._strokes(len(codes), lambda state: (next(given), None, None))

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Float[Tensor, "k b"]:
        """Draw k importance weights of each raw x (b, c, h, w), over the whole path."""
        strokes = self.infer(x, k, generator)
        total = self._log_likelihood(x, strokes[-1].canvas, k)
        for stroke in strokes:
            assert stroke.posterior is not None
            ratio = gaussian_log_density(stroke.z, *standard(stroke.z)) - gaussian_log_density(
                stroke.z, *stroke.posterior
            )
            total = total + ratio.sum(1).view(k, len(x))
        return total

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples from the prior, raw (n, c, h, w)."""
        noise = torch.randn(n, self.noise_dim, generator=generator, device=self.start.device, dtype=self.start.dtype)
        return self.sample_given(noise, generator=generator)

    def log_prob_given(self, x: Tensor, noise: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
        """Log p(x | z) of raw x (b, c, h, w) at the codes of all steps, side by side."""
        return self._log_likelihood(x, self.drawn(noise.unflatten(1, (self.steps, -1)))[-1].canvas, 1)[0]

    @torch.no_grad()
    def sample_given(self, noise: Float[Tensor, "b n"], *, generator: Generator | None = None) -> Tensor:
        """Draw x, raw (b, c, h, w), at the codes of all steps."""
        canvas = self.drawn(noise.unflatten(1, (self.steps, -1)))[-1].canvas
        return self.observation.sample(canvas[:, None], generator=generator)

    def encode(self, x: Tensor) -> Float[Tensor, "b n"]:
        """The means of all steps, each given the means before it, side by side."""
        return torch.cat([stroke.z for stroke in self.infer(x, 1, mean=True)], 1)

    def decode(self, code: Float[Tensor, "b n"]) -> Tensor:
        """E[x | z], float (b, c, h, w)."""
        return self.drawn(code.unflatten(1, (self.steps, -1)))[-1].canvas.sigmoid()

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | z] at a draw z ~ q(z | x), float (b, c, h, w)."""
        return self.infer(x, 1, generator)[-1].canvas.sigmoid()

    @torch.no_grad()
    def panels(self, batch: Batch, *, generator: Generator | None = None) -> Float[Tensor, "b k c h w"]:
        """The example, and the canvas as it is drawn, in a frame of grey what is written through at that step."""
        return torch.cat([batch.x[:, None].to(self.start), self._shown(self.infer(batch.x, 1, generator))], 1)

    @torch.no_grad()
    def growth(self, n: int, *, generator: Generator | None = None) -> Float[Tensor, "n k c h w"]:
        """The canvases of n samples in their frames, as in ``panels``, and at last the samples."""
        codes = torch.randn(n, self.steps, self.latent, generator=generator, device=self.start.device)
        strokes = self.drawn(codes)
        x = self.observation.sample(strokes[-1].canvas[:, None], generator=generator)
        return torch.cat([self._shown(strokes), x[:, None].to(self.start)], 1)

    def _shown(self, strokes: list[Stroke]) -> Float[Tensor, "n k c h w"]:
        """Probabilities of pixels after at most ``PICTURES`` of the strokes, evenly spaced, the last one's included."""
        chosen = torch.linspace(len(strokes) - 1, 0, min(len(strokes), PICTURES)).round().int().flip(0)
        found = []
        for canvas, at in ((strokes[step].canvas.sigmoid(), strokes[step].write) for step in chosen):
            found.append(canvas if at is None else framed(canvas, at.inside(), 0.5))
        return torch.stack(found, 1)

    def _terms(self, x: Tensor, samples: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        strokes = self.infer(x, samples, generator)
        kl = [gaussian_kl(s.posterior, standard(s.z)).sum(1) for s in strokes if s.posterior is not None]
        by_step = torch.stack(kl, 1).view(samples, len(x), self.steps).mean(0)
        return self._log_likelihood(x, strokes[-1].canvas, samples).mean(0), by_step

    def _strokes(self, n: int, choose: Callable[[State], tuple[Tensor, Moments | None, Window | None]]) -> list[Stroke]:
        """All steps of n rows; ``choose`` gives each step's code."""
        hidden, cell = (each.expand(n, -1) for each in self.first[:2])
        state = State(hidden, cell, self.start.expand(n, *self.spec.shape))
        strokes = []
        for _ in range(self.steps):
            z, posterior, seen_at = choose(state)
            hidden, cell = self.decoder(z, (state.hidden, state.cell))
            stroke, at = self._write(hidden)
            state = State(hidden, cell, state.canvas + stroke)
            strokes.append(Stroke(z, posterior, state.canvas, seen_at, at))
        return strokes

    def _read(self, x: Tensor, state: State) -> tuple[Float[Tensor, "n seen"], Window | None]:
        both = torch.cat([x, x - state.canvas.sigmoid()], 1)
        if not self.attention:
            return both.flatten(1), None
        at = self._window(0, state.hidden)
        return at.read(both).flatten(1), at

    def _write(self, hidden: Float[Tensor, "n h"]) -> tuple[Float[Tensor, "n c height width"], Window | None]:
        patch = self.patch(hidden).unflatten(1, (self.spec.shape[0], -1))
        if not self.attention:
            return patch.view(-1, *self.spec.shape), None
        at = self._window(1, hidden)
        return at.write(patch.unflatten(2, (self.sides[1], -1))), at

    def _window(self, which: int, hidden: Float[Tensor, "n h"]) -> Window:
        return window(self.windows[which](hidden), self.sides[which], *self.spec.shape[1:])

    def _log_likelihood(self, x: Tensor, canvas: Float[Tensor, "kb c h w"], k: int) -> Float[Tensor, "k b"]:
        return self.observation.log_prob(canvas[:, None].unflatten(0, (k, len(x))), x)

    @staticmethod
    def _noise(like: Tensor, generator: Generator | None) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
