r"""Autoregressive autoencoder: a sentence becomes a code, and a decoder says it again, token by token.

The encoder reads a sentence of any length into one vector, the decoder is autoregressive over the tokens given that
vector and decides itself when the sentence ends:

    c = W h(x) + b,    log p(x | c) = sum_{t <= end} log p(x_t | x_0, ..., x_{t-1}, c),    loss = -E[log p(x | c(x))].

log p(x | c(x)) is no likelihood of x, because the code has seen x: exp of it sums to more than 1 over x. It is called
``reconstruction_log_prob``, the card's likelihood is ``none``, and the evaluator reports it as an estimate, the NLL per
token of reconstructions. Given a *fixed* code, p(x | c) is a distribution and sums to 1. ``UnconditionalDecoder`` is
the same decoder without a code: its ``log_prob`` is an exact likelihood, and the level that a code has to improve on.

Samples need codes. Their mean and covariance over the data follow the training as running averages (buffers, moved in
``after_step``); ``sample`` draws a code from the Gaussian with these moments, and the sentence from p(x | c).

Shapes and units: x is raw (b, t), tokens with ``end`` (or of full length without); codes (b, latent); nats per example.
``reconstruct`` and ``decode`` return raw tokens, by beam search (``beam=1`` is greedy).

Paper: Socher, Pennington, Huang, Ng, Manning, "Semi-Supervised Recursive Autoencoders for Predicting Sentiment
Distributions", EMNLP 2011, https://aclanthology.org/D11-1014; as a sequence autoencoder: Dai, Le, "Semi-supervised
Sequence Learning", NeurIPS 2015, https://arxiv.org/abs/1511.01432.

Different from the papers: the recursive autoencoder merges neighbours along a tree and reconstructs the two children of
every merge by squared error; here the tree is a chain, which is a recurrent encoder, and the whole sentence is
reconstructed by its tokens' log-probability, as in the sequence autoencoder. Recurrent layers are GRUs in place of
LSTMs, the code is narrower than the state, and there is no sentiment.
"""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.recurrent_decoder import sentence_decoder
from dgmbench.nn.sentence_reader import SentenceReader
from dgmbench.nn.sequences import counted


class ArAutoencoder(Model):
    """Sequence autoencoder of sentences with an autoregressive decoder.

    Args:
        spec: The data space, tokens (t,).
        width: Of the embeddings of tokens.
        hidden: Of the encoder's and the decoder's state.
        latent: Of the code.
        beam: Beginnings that ``reconstruct`` and ``decode`` keep in their search.
        decay: Of the running moments of the codes.
    """

    code_mean: Tensor
    code_covariance: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        width: int = 64,
        hidden: int = 128,
        latent: int = 32,
        beam: int = 1,
        decay: float = 0.99,
    ) -> None:
        super().__init__(spec)
        require(least=1, width=width, hidden=hidden, latent=latent, beam=beam)
        require(least=0, below=1, decay=decay)
        self.beam, self.decay = beam, decay
        self.decoder = sentence_decoder(spec, width=width, hidden=hidden, latent=latent)
        self.reader = SentenceReader(self.decoder.tokens, spec.end, width=width, hidden=hidden, outputs=latent)
        self.register_buffer("code_mean", torch.zeros(latent))
        self.register_buffer("code_covariance", torch.eye(latent))

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """Mean negative log-probability of a sentence given its own code."""
        nll = -self.reconstruction_log_prob(batch.x).mean()
        tokens = counted(batch.x, self.spec.end).sum() / len(batch.x)
        return nll, {"nll_per_token": nll.detach() / tokens}

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Move the moments of the codes towards those of this batch."""
        codes = self.encode(batch.x)
        offset = codes - self.code_mean
        shift = offset.mean(0)
        # the covariance of the mixture of what was and this batch
        self.code_covariance.mul_(self.decay).addmm_(offset.T, offset, alpha=(1 - self.decay) / len(codes))
        self.code_covariance.sub_((1 - self.decay) ** 2 * torch.outer(shift, shift))
        self.code_mean.add_((1 - self.decay) * shift)

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The code of raw x (b, t): a linear map of the reader's state at the end of the sentence."""
        return self.reader(x)

    def reconstruction_log_prob(self, x: Tensor) -> Float[Tensor, " b"]:
        """log p(x | c(x)) of raw x (b, t), nats: no likelihood, because the code has seen x."""
        return self.decoder.log_prob(x, self.encode(x))

    @torch.no_grad()
    def decode(self, code: Float[Tensor, "b z"]) -> Tensor:
        """Likely sentences, raw (b, t), of codes; found by beam search."""
        return self.decoder.search(len(code), code, beam=self.beam)[0]

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Likely sentences, raw (b, t), of the codes of raw x (b, t)."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """n sentences, raw (n, t): a code from the Gaussian with the moments of the data's codes, then its tokens."""
        return self.decoder.sample(n, self.sample_codes(n, generator=generator), generator=generator)

    @torch.no_grad()
    def sample_codes(self, n: int, *, generator: Generator | None = None) -> Float[Tensor, "n z"]:
        """n codes from the Gaussian with the moments of the data's codes."""
        values, vectors = torch.linalg.eigh(self.code_covariance)
        noise = torch.empty(n, len(values), device=values.device, dtype=values.dtype).normal_(generator=generator)
        return self.code_mean + (noise * values.clamp(min=0).sqrt()) @ vectors.T


class UnconditionalDecoder(Model):
    """The decoder alone, p(x) = prod_t p(x_t | before): an exact likelihood, the baseline of the autoencoder.

    Args:
        spec: The data space, tokens (t,).
        width: Of the embeddings of tokens.
        hidden: Of the recurrent state.
    """

    def __init__(self, spec: DataSpec, *, width: int = 64, hidden: int = 128) -> None:
        super().__init__(spec)
        require(least=1, width=width, hidden=hidden)
        self.decoder = sentence_decoder(spec, width=width, hidden=hidden, latent=0)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """Mean negative log-likelihood."""
        nll = -self.log_prob(batch.x).mean()
        return nll, {"log_prob": -nll.detach()}

    def log_prob(self, x: Tensor) -> Float[Tensor, " b"]:
        """Exact log-likelihood of raw x (b, t), nats per example."""
        return self.decoder.log_prob(x)

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """n exact samples, raw (n, t)."""
        return self.decoder.sample(n, generator=generator)
