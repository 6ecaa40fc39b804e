r"""Adversarially regularised autoencoder: sentences through a code whose distribution a generator learns to draw.

The code of a sentence is a point, f(x), and no prior is fixed. A generator g of noise and the encoder meet halfway: a
Wasserstein critic a tells codes of sentences from codes of noise, and both g and f are trained against it, f beside its
reconstruction:

    autoencoder  minimises  -E_data log p(x | f(x) + noise) + weight E_data a(f(x)),
    critic       minimises   E_s a(g(s)) - E_data a(f(x)) + penalty_weight E (||grad a|| - 1)^2,
    generator    minimises  -E_s a(g(s)),    s ~ N(0, I).

The critic's gradient is taken on continuous codes, so that no word has to be differentiated. It reaches the encoder,
which lowers a(f(x)), and not the decoder. Codes lie on the unit sphere; the noise of the decoder's code has a deviation
that falls from ``noise`` to 0 in the course of the training.

Sentences are draws of p(x | g(s)), so that the model is p(x) = E_s p(x | g(s)), which no player maximises and nothing
here bounds.

Shapes and units: x is raw (b, t), tokens with ``end`` (or of full length without); codes (b, latent), noise s
(b, noise_dim); nats per sentence. ``decode`` and ``reconstruct`` return the likeliest word after another.

Paper: Zhao, Kim, Zhang, Rush, LeCun, "Adversarially Regularized Autoencoders", ICML 2018,
https://arxiv.org/abs/1706.04223.

What differs: the gradient's penalty in place of clipped weights, as in the authors' later code; g's codes lie on the
sphere, too; GRUs in place of LSTMs; the encoder follows critic and reconstruction in one step of their weighted sum, as
often as the decoder, where the paper has a step of its own for it; the noise falls linearly, not exponentially.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.contract import Logs, Model, Stage
from dgmbench.nn.adversarial import MlpDiscriminator, MlpGenerator
from dgmbench.nn.adversarial_losses import Wasserstein, gradient_penalty
from dgmbench.nn.recurrent_decoder import require_sentences, sentence_decoder
from dgmbench.nn.sentence_reader import SentenceReader


class Arae(Model):
    """Adversarially regularised autoencoder of sentences (Zhao et al. 2018).

    Args:
        spec: The data space, tokens (t,).
        width: Of the embeddings of tokens.
        hidden: Of the encoder's and the decoder's state.
        latent: Dimensions of a code.
        noise_dim: Dimensions of what the generator makes codes of.
        noise: Deviation of the noise on the code that the decoder sees, at the beginning of the training.
        weight: Of the critic's output in the autoencoder's loss.
        penalty_weight: Of the critic's gradient penalty.
        n_critic: Steps of critic and autoencoder to one of the generator.
        game_sizes: Widths of the hidden layers of generator and critic.
    """

    noise_scale: Tensor

    def __init__(
        self, spec: DataSpec, *, width: int = 64, hidden: int = 128, latent: int = 32, noise_dim: int = 32,
        noise: float = 0.2, weight: float = 1.0, penalty_weight: float = 10.0, n_critic: int = 5,
        game_sizes: Sequence[int] = (128, 128),
    ) -> None:  # fmt: skip
        super().__init__(spec)
        require(least=1, width=width, hidden=hidden, noise_dim=noise_dim, n_critic=n_critic, game_sizes=game_sizes)
        require(least=2, latent=latent)  # a sphere of two points carries one bit, and no gradient
        require(least=0, noise=noise, weight=weight, penalty_weight=penalty_weight)
        tokens = require_sentences(spec)
        self.noise, self.weight, self.penalty_weight = noise, weight, penalty_weight
        self.n_critic, self.noise_dim = n_critic, noise_dim
        self.adversarial = Wasserstein()
        self.encoder = SentenceReader(tokens, spec.end, width=width, hidden=hidden, outputs=latent)
        self.decoder = sentence_decoder(spec, width=width, hidden=hidden, latent=latent)
        codes, sizes = DataSpec((latent,), "real"), tuple(game_sizes)
        self.generator = MlpGenerator(codes, latent=noise_dim, hidden_sizes=sizes)
        for part in self.generator.modules():  # codes all over the sphere to begin with, not next to the last bias
            if isinstance(part, nn.Linear):
                nn.init.kaiming_normal_(part.weight)
                nn.init.zeros_(part.bias)
        self.critic = MlpDiscriminator(codes, hidden_sizes=sizes, bias=False)
        self.register_buffer("noise_scale", torch.tensor(float(noise)))

    # ---- training ----

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The critic, then those whom it judges."""
        return {
            "critic": list(self.critic.parameters()),
            "autoencoder": [*self.encoder.parameters(), *self.decoder.parameters()],
            "generator": list(self.generator.parameters()),
        }

    def turn(self, step: int, stage: Stage) -> Sequence[str]:
        """The generator on every ``n_critic``-th update only."""
        everyone = ("critic", "autoencoder", "generator")
        return everyone if (step + 1) % self.n_critic == 0 else everyone[:2]

    def advance(self, stage: Stage, share: float) -> None:
        """Let the noise fall."""
        self.noise_scale.fill_(self.noise * (1 - share))

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas."""
        if player == "generator":
            game = self.adversarial.generator(self.judged(self.generated(self._draw(len(batch.x), generator))))
            return game, {"generator": game.detach()}
        if player == "critic":
            with torch.no_grad():
                real, fake = self.encode(batch.x), self.generated(self._draw(len(batch.x), generator))
            distance = self.adversarial.discriminator(self.judged(real), self.judged(fake))
            penalty = gradient_penalty(self.judged, real, fake, generator=generator).mean()
            logs = {"distance": -distance.detach(), "penalty": penalty.detach()}
            return distance + self.penalty_weight * penalty, logs
        code = self.encode(batch.x)
        blur = torch.randn(code.shape, generator=generator, device=code.device, dtype=code.dtype)
        reconstruction = self.decoder.log_prob(batch.x, code + self.noise_scale * blur).mean()
        game = self.adversarial.encoder(self.judged(code))
        logs = {"reconstruction": reconstruction.detach(), "game": game.detach()}
        return self.weight * game - reconstruction, logs

    def judged(self, code: Float[Tensor, "b z"]) -> Float[Tensor, " b"]:
        """The critic's output a at codes: higher where it takes them for codes of sentences."""
        return self.critic(code)[:, 0]

    def generated(self, noise: Float[Tensor, "b s"]) -> Float[Tensor, "b z"]:
        """The generator's codes g(s)."""
        return F.normalize(self.generator(noise), dim=1)

    # ---- use ----

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The codes f(x) of raw x (b, t), of length one."""
        return F.normalize(self.encoder(x), dim=1)

    @torch.no_grad()
    def decode(self, code: Float[Tensor, "b z"]) -> Tensor:
        """Likely sentences, raw (b, t), of codes, brought to length one."""
        return self.decoder.greedy(len(code), F.normalize(code, dim=1))

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Likely sentences, raw (b, t), of the codes of raw x."""
        return self.decode(self.encode(x))

    def reconstruction_log_prob(self, x: Tensor) -> Float[Tensor, " b"]:
        """log p(x | f(x)) of raw x (b, t) at its own code."""
        return self.decoder.log_prob(x, self.encode(x))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n sentences, raw (n, t), from p(x | g(s)) at noise s."""
        return self.sample_given(self._draw(n, generator), generator=generator)

    def log_prob_given(self, x: Tensor, noise: Float[Tensor, "b s"]) -> Float[Tensor, " b"]:
        """log p(x | g(s)) of raw x (b, t) at s = noise."""
        return self.decoder.log_prob(x, self.generated(noise.to(self.noise_scale.dtype)))

    @torch.no_grad()
    def sample_given(self, noise: Float[Tensor, "b s"], *, generator: Generator | None = None) -> Tensor:
        """Draw x, raw (b, t), from p(x | g(s)) at s = noise."""
        return self.decoder.sample(len(noise), self.generated(noise.to(self.noise_scale.dtype)), generator=generator)

    def _draw(self, n: int, generator: Generator | None) -> Float[Tensor, "n s"]:
        like = self.noise_scale
        return torch.randn(n, self.noise_dim, generator=generator, device=like.device, dtype=like.dtype)
