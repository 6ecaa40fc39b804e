r"""The sentence VAE: a code for a whole sentence, kept in use by words that the decoder is not shown.

A recurrent decoder that sees every word before the next predicts it well without a code, so that the bound drives the
KL to zero. Two remedies: the weight of the KL rises from 0 (``kl_warmup``), and every word that the decoder sees is
unknown with probability ``word_dropout``, each for itself, so that it must ask the code:

    loss = -E_q E_s[log p(x | z, s(x))] + beta_t KL(q(z | x) || N(0, I)),   s(x)_t = x_t or UNK.

With ``word_dropout=1`` the decoder sees no word at all, in training as afterwards: p(x | z) = prod_t p(x_t | z), the
words independent given the code. Below 1 the words are dropped in training only, and likelihoods, bounds and samples
are of the decoder that sees them all; the training log's ``elbo`` is of the one with dropped words, hence lower.

Shapes and units: x is raw (b, t), tokens; z (b, latent); nats per sentence.

Paper: Bowman, Vilnis, Vinyals, Dai, Jozefowicz, Bengio, "Generating Sentences from a Continuous Space", CoNLL 2016,
https://arxiv.org/abs/1511.06349.

Different from the paper: GRUs in place of LSTMs; the decoder sees z at every word and not at the start alone; the KL's
weight rises linearly in place of a sigmoid. The paper kept 62 percent of the words in its best run on Penn Treebank.
"""

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.contract import Logs
from dgmbench.models.vae.sentences import SentenceVae
from dgmbench.nn.gaussians import draw_normal
from dgmbench.nn.recurrent_decoder import RecurrentDecoder, sentence_decoder


class WdVae(SentenceVae):
    """Sentence VAE with word dropout and an annealed KL (Bowman et al. 2016).

    Args:
        spec: The data space, tokens (t,).
        width: Of the embeddings of tokens.
        hidden: Of the encoder's and the decoder's state.
        latent: Dimensions of z.
        word_dropout: Probability that a word is unknown to the decoder; with 1 it sees none, ever.
        samples: Draws of z for each sentence in one estimate of the bound.
        kl_warmup: Updates over which the weight of the KL rises from 0 to 1.
        free_bits: Nats of KL for each latent dimension that the loss does not charge for.
    """

    decoder: RecurrentDecoder

    def __init__(
        self, spec: DataSpec, *, width: int = 64, hidden: int = 128, latent: int = 16, word_dropout: float = 0.38,
        samples: int = 1, kl_warmup: int = 2000, free_bits: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(
            spec, width=width, hidden=hidden, latent=latent, samples=samples, kl_warmup=kl_warmup, free_bits=free_bits
        )
        require(least=0, most=1, word_dropout=word_dropout)
        self.word_dropout = word_dropout
        self.decoder = sentence_decoder(
            spec, width=width, hidden=hidden, latent=latent, unknown=word_dropout > 0, blind=word_dropout == 1
        )

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The negative bound with dropped words and the present weight of the KL."""
        if self.decoder.blind or not self.word_dropout:
            return super().loss(player, batch, generator)
        q, kl = self._rate(batch.x)
        each = [
            self.decoder.log_prob(batch.x, z, seen=self.dropped(batch.x, generator))
            for z in draw_normal(q, self.samples, generator)
        ]
        return self.objective(torch.stack(each).mean(0), kl)

    def dropped(self, x: Int[Tensor, "b t"], generator: Generator) -> Int[Tensor, "b t"]:
        """The words of raw x (b, t) as the decoder sees them in training: some are unknown."""
        hidden = torch.rand(x.shape, generator=generator, device=x.device) < self.word_dropout
        return x.long().masked_fill(hidden, self.decoder.tokens + 1)
