r"""The VAE of text with a dilated convolutional decoder, whose reach sets how much the code has to say.

Every next word is predicted from the code and the last R words only,

    log p(x | z) = sum_t log p(x_t | x_{t-R}, ..., x_{t-1}, z),    R = 1 + (kernel - 1) * sum of dilations,

so that what lies farther back must be in the code. With R as long as the sentence the decoder can do without it, as a
recurrent one; with small R it is a bag of short phrases, held together by z. Loss: the negative bound,

    -E_q[log p(x | z)] + beta_t KL(q(z | x) || N(0, I)).

Shapes and units: x is raw (b, t), tokens; z (b, latent), which every gate sees at every word; nats per sentence.

Paper: Yang, Hu, Salakhutdinov, Berg-Kirkpatrick, "Improved Variational Autoencoders for Text Modeling using Dilated
Convolutions", ICML 2017, https://arxiv.org/abs/1702.08139. Its SCNN, MCNN and LCNN are kernel 3 with dilations
(1, 2, 4), (1, 2, 4, 8, 16) and the latter twice: R = 15, 63, 125 words.

Different from the paper: gated convolutions with residual and skip connections (WaveNet's) in place of its bottlenecks
with rectifiers, and z in their gates in place of the words' embeddings; GRU in place of LSTM in the encoder, which is
not pre-trained as a language model. Sentences of 15 words lie within its smallest reach, so the default reach is 3.
"""

from collections.abc import Sequence

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.vae.sentences import SentenceVae
from dgmbench.nn.dilated_decoder import DilatedDecoder
from dgmbench.nn.recurrent_decoder import require_sentences


class Dcvae(SentenceVae):
    """VAE of sentences with a dilated convolutional decoder (Yang et al. 2017).

    Args:
        spec: The data space, tokens (t,).
        width: Of the encoder's embeddings of tokens.
        hidden: Of the encoder's state.
        latent: Dimensions of z.
        dilations: Distance of the taps of each layer of the decoder.
        kernel: Taps of each layer.
        channels: Width of the decoder's embeddings, residual connections and gates.
        skip_channels: Width of the skip connections.
        samples: Draws of z for each sentence in one estimate of the bound.
        kl_warmup: Updates over which the weight of the KL rises from 0 to 1.
        free_bits: Nats of KL for each latent dimension that the loss does not charge for.
    """

    decoder: DilatedDecoder

    def __init__(
        self, spec: DataSpec, *, width: int = 64, hidden: int = 128, latent: int = 16, dilations: Sequence[int] = (1,),
        kernel: int = 3, channels: int = 64, skip_channels: int = 128, samples: int = 1, kl_warmup: int = 2000,
        free_bits: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(
            spec, width=width, hidden=hidden, latent=latent, samples=samples, kl_warmup=kl_warmup, free_bits=free_bits
        )
        require(least=1, dilations=dilations, channels=channels, skip_channels=skip_channels)
        require(least=2, kernel=kernel)
        if not dilations:
            raise UserError("model.dilations is empty; give the distance of the taps of at least one layer.")
        self.decoder = DilatedDecoder(
            require_sentences(spec), spec.dim, spec.end, latent=latent, dilations=tuple(dilations), kernel=kernel,
            channels=channels, skip_channels=skip_channels,
        )  # fmt: skip
