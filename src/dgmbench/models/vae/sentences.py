r"""What variational autoencoders of sentences share: a recurrent encoder, a Gaussian code, and a decoder of words.

    elbo(x) = E_q[log p(x | z)] - KL(q(z | x) || N(0, I)),    log p(x | z) = sum_{t <= end} log p(x_t | before, z).

A decoder that predicts the next word well from those before it can do without z, and then q(z | x) = N(0, I) for every
x, and the KL is 0 (posterior collapse). A subclass says how its decoder is kept from that.

Shapes and units: x is raw (b, t), tokens with ``end`` (or of full length without), z (b, latent); nats per sentence.
``decode`` and ``reconstruct`` return raw tokens, the likeliest word after another.
"""

from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.errors import require
from dgmbench.models.vae.vae import ElboModel
from dgmbench.nn.gaussians import Moments, draw_normal, gaussian_kl, moments, standard
from dgmbench.nn.observation import gaussian_log_density
from dgmbench.nn.recurrent_decoder import require_sentences
from dgmbench.nn.sentence_reader import SentenceReader


class SentenceDecoder(Protocol):
    """p(x | z) over sentences."""

    def log_prob(self, x: Int[Tensor, "b t"], code: Float[Tensor, "b z"]) -> Float[Tensor, " b"]:
        """log p(x | z), nats."""
        ...

    def sample(self, n: int, code: Float[Tensor, "n z"], *, generator: Generator | None = None) -> Int[Tensor, "n t"]:
        """A draw of x for each of n codes."""
        ...

    def greedy(self, n: int, code: Float[Tensor, "n z"]) -> Int[Tensor, "n t"]:
        """The likeliest word after another."""
        ...


class SentenceVae(ElboModel):
    """Variational autoencoder of sentences; a subclass sets ``decoder``.

    Args:
        spec: The data space, tokens (t,).
        width: Of the encoder's embeddings of tokens.
        hidden: Of the encoder's state.
        latent: Dimensions of z.
        samples: Draws of z for each sentence in one estimate of the bound.
        kl_warmup: Updates over which the weight of the KL rises from 0 to 1.
        free_bits: Nats of KL for each latent dimension that the loss does not charge for.
    """

    decoder: SentenceDecoder

    def __init__(
        self, spec: DataSpec, *, width: int, hidden: int, latent: int, samples: int, kl_warmup: int, free_bits: float
    ) -> None:  # fmt: skip
        super().__init__(spec, samples=samples, kl_warmup=kl_warmup, free_bits=free_bits)
        require(least=1, width=width, hidden=hidden, latent=latent)
        tokens = require_sentences(spec)
        self.latent = self.noise_dim = latent
        self.encoder = SentenceReader(tokens, spec.end, width=width, hidden=hidden, outputs=2 * latent)

    def posterior(self, x: Tensor) -> Moments:
        """Mean and log sigma of q(z | x), each (b, z), for raw x (b, t)."""
        return moments(self.encoder(x))

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Float[Tensor, "k b"]:
        """Draw k importance weights of each raw x (b, t); the bound is their log-mean-exp."""
        q = self.posterior(x)
        z = draw_normal(q, k, generator)
        prior = gaussian_log_density(z, *standard(z)).sum(-1)
        return self._log_likelihood(x, z) + prior - gaussian_log_density(z, *q).sum(-1)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n sentences from the prior through the decoder, raw (n, t)."""
        like = self.encoder.top.weight
        z = torch.randn(n, self.latent, generator=generator, device=like.device, dtype=like.dtype)
        return self.sample_given(z, generator=generator)

    def log_prob_given(self, x: Tensor, noise: Float[Tensor, "b z"]) -> Float[Tensor, " b"]:
        """Log p(x | z) of raw x (b, t) at z = noise."""
        return self.decoder.log_prob(x, noise.to(self.encoder.top.weight))

    @torch.no_grad()
    def sample_given(self, noise: Float[Tensor, "b z"], *, generator: Generator | None = None) -> Tensor:
        """Draw x, raw (b, t), from p(x | z) at z = noise."""
        return self.decoder.sample(len(noise), noise.to(self.encoder.top.weight), generator=generator)

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The mean of q(z | x) of raw x (b, t)."""
        return self.posterior(x).mean

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "b z"]) -> Tensor:
        """Likely sentences, raw (b, t), of codes."""
        return self.decoder.greedy(len(z), z)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Likely sentences, raw (b, t), at a draw z ~ q(z | x)."""
        return self.decode(draw_normal(self.posterior(x), 1, generator)[0])

    def _terms(self, x: Tensor, samples: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        q, kl = self._rate(x)
        return self._log_likelihood(x, draw_normal(q, samples, generator)).mean(0), kl

    def _rate(self, x: Tensor) -> tuple[Moments, Float[Tensor, "b z"]]:
        """q(z | x), and its KL to the prior in each dimension."""
        q = self.posterior(x)
        return q, gaussian_kl(q, standard(q.mean))

    def _log_likelihood(self, x: Tensor, z: Float[Tensor, "k b z"]) -> Float[Tensor, "k b"]:
        return self.decoder.log_prob(x.repeat(len(z), 1), z.flatten(0, 1)).unflatten(0, z.shape[:2])
