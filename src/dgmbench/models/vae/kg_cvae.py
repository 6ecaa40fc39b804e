r"""Knowledge-guided CVAE of dialogue: a reply x to a first turn c through a code z and an act y that the code decides.

    p(x, y, z | c) = p(z | c) p(y | z, c) p(x | z, c, y),      q(z | x, c, y) in training, where y is known,
    log p(x, y | c) >= E_q[log p(x | z, c, y) + log p(y | z, c)] - KL(q(z | x, c, y) || p(z | c)),
    loss = -that bound + bag_weight E_q[bag],      bag = -sum over the words w of x of log softmax(f(z, c))_w.

The bag-of-words loss asks of the code which words the reply has, in no order. A recurrent decoder that sees the words
before can do without z; f sees none, so that z stays in use without an annealed KL. f is no part of the model. With
``guided=False`` there is no act: the paper's CVAE.

Without its act a reply is a mixture: p(x | c) = E_{p(z | c)} sum_y p(y | z, c) p(x | z, c, y). ``log_weights`` are of
the mixture, log sum_y w_y with a draw of q(z | x, c, y) for every y, and ``elbo`` is one of them. The training log's
``elbo`` is of log p(x, y | c), hence lower. ``classify`` tells the act of a reply by Bayes' rule.

Shapes and units: x is raw (b, t), tokens with ``end``, c = given (b, s), likewise, y (b,), z (b, latent); nats per
reply. ``decode`` and ``reconstruct`` return the likeliest word after another.

Paper: Zhao, Zhao, Eskenazi, "Learning Discourse-level Diversity for Neural Dialog Models using Conditional Variational
Autoencoders", ACL 2017, https://arxiv.org/abs/1703.10960.

What differs: what is given is one turn, without speakers and topic, and one GRU reads it, where the paper has an
encoder of dialogues on top of a bidirectional one of turns; the code, the turn and the act are seen at every word, not
at the start alone; the KL has its full weight from the beginning.
"""

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs
from dgmbench.models.vae.vae import ElboModel
from dgmbench.nn.encoders import mlp
from dgmbench.nn.gaussians import Moments, draw_normal, gaussian_kl, moments
from dgmbench.nn.labels import class_count, labelled_part, labels_of, one_hot
from dgmbench.nn.levels import draw_categories
from dgmbench.nn.observation import gaussian_log_density
from dgmbench.nn.recurrent_decoder import require_sentences, sentence_decoder
from dgmbench.nn.sentence_reader import SentenceReader
from dgmbench.nn.sequences import counted


class KgCvae(ElboModel):
    """Knowledge-guided conditional variational autoencoder of replies (Zhao, Zhao, Eskenazi 2017).

    Args:
        spec: The data space, tokens (t,) given tokens (s,), with the acts as labels.
        guided: Acts enter; else the model is a CVAE, and data need no labels.
        bag_weight: Of the bag-of-words loss.
        width: Of the embeddings of tokens.
        hidden: Of the states of encoders and decoder, and of the hidden layers of the other networks.
        context: Numbers that the first turn is read as.
        latent: Dimensions of z.
        samples, kl_warmup, free_bits: As of ``Vae``.
    """

    def __init__(
        self, spec: DataSpec, *, guided: bool = True, bag_weight: float = 1.0, width: int = 64, hidden: int = 128,
        context: int = 64, latent: int = 16, samples: int = 1, kl_warmup: int = 0, free_bits: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(spec, samples=samples, kl_warmup=kl_warmup, free_bits=free_bits)
        require(least=1, width=width, hidden=hidden, context=context, latent=latent)
        require(least=0, bag_weight=bag_weight)
        tokens = require_sentences(spec)
        if spec.given is None:
            raise UserError(f"A reply needs a turn that it answers, and these data, {spec}, give none.")
        said = require_sentences(spec.given)
        self.acts = class_count(spec) if guided else 1  # refuses data without labels
        told = self.acts if guided else 0
        self.guided, self.bag_weight, self.latent, self.noise_dim = guided, bag_weight, latent, latent
        self.reader = SentenceReader(said, spec.given.end, width=width, hidden=hidden, outputs=context)
        self.encoder = SentenceReader(tokens, spec.end, width=width, hidden=hidden, outputs=hidden)
        self.recognition = mlp([hidden + context + told, hidden, 2 * latent])
        self.prior = mlp([context, hidden, 2 * latent])
        self.act = mlp([latent + context, hidden, told]) if guided else None
        self.bag = mlp([latent + context, hidden, tokens]) if bag_weight else None
        self.decoder = sentence_decoder(spec, width=width, hidden=hidden, latent=latent + context + told)

    # ---- the parts, under what was read of the first turn, c (b, context) ----

    def posterior(self, x: Tensor, y: Int[Tensor, " b"], c: Float[Tensor, "b c"]) -> Moments:
        """Mean and log sigma of q(z | x, c, y)."""
        return moments(self.recognition(self._joined(self.encoder(x), c, y)))

    def prior_moments(self, c: Float[Tensor, "b c"]) -> Moments:
        """Mean and log sigma of p(z | c)."""
        return moments(self.prior(c))

    def act_log_prob(self, z: Float[Tensor, "b z"], c: Float[Tensor, "b c"]) -> Float[Tensor, "b a"]:
        """log p(y | z, c) of every act; of a CVAE, of the only one."""
        return z.new_zeros(len(z), 1) if self.act is None else self.act(torch.cat([z, c], 1)).log_softmax(1)

    def log_likelihood(self, x: Tensor, y: Tensor, z: Float[Tensor, "b z"], c: Tensor) -> Float[Tensor, " b"]:
        """log p(x, y | z, c) = log p(y | z, c) + log p(x | z, c, y)."""
        act = self.act_log_prob(z, c).gather(1, y[:, None])[:, 0]
        return act + self.decoder.log_prob(x, self._joined(z, c, y))

    def bag_loss(self, x: Tensor, z: Float[Tensor, "b z"], c: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
        """-sum of log softmax(f(z, c)) over the words of x, without its end."""
        if self.bag is None:
            return z.new_zeros(len(z))
        log_p = self.bag(torch.cat([z, c], 1)).log_softmax(1).gather(1, x.long())
        words = counted(x, self.spec.end)
        if self.spec.end is not None:
            words = words & (x != self.spec.end)
        return -(log_p * words).sum(1)

    # ---- training ----

    def batch_policy(self) -> BatchPolicy | None:
        """Replies with a known act alone, where acts enter."""
        return BatchPolicy(labelled=1.0) if self.guided else None

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The negative bound of log p(x, y | c) and the bag-of-words loss."""
        batch = labelled_part(batch) if self.guided else batch
        assert batch.given is not None
        x, c = batch.x, self.reader(batch.given)
        y = labels_of(batch) if self.guided else torch.zeros(len(x), dtype=torch.int64, device=x.device)
        q, prior = self.posterior(x, y, c), self.prior_moments(c)
        draws = draw_normal(q, self.samples, generator)
        reconstruction = torch.stack([self.log_likelihood(x, y, z, c) for z in draws]).mean(0)
        bag = torch.stack([self.bag_loss(x, z, c) for z in draws]).mean()
        loss, logs = self.objective(reconstruction, gaussian_kl(q, prior))
        act = -self.act_log_prob(draws[0], c).gather(1, y[:, None]).mean()
        return loss + self.bag_weight * bag, {**logs, "bag": bag.detach(), "act_nll": act.detach()}

    # ---- use ----

    def log_weights(
        self, x: Tensor, k: int, *, given: Tensor | None = None, generator: Generator | None = None
    ) -> Float[Tensor, "k b"]:
        """Draw k importance weights of log p(x | c) of each raw x (b, t), its act summed out."""
        if given is None:
            raise UserError("A reply answers a first turn: name it, given=(b, s).")
        return self._weights(x, k, self.reader(given), generator).logsumexp(1)

    def elbo(
        self, x: Tensor, *, given: Tensor | None = None, generator: Generator | None = None
    ) -> Float[Tensor, " b"]:
        """One draw of a bound of log p(x | c) of raw x (b, t)."""
        return self.log_weights(x, 1, given=given, generator=generator)[0]

    def classify(self, x: Tensor, *, given: Tensor) -> Float[Tensor, "b a"]:
        """The bound of log p(x, y | c) for every act y, at the mean of q(z | x, c, y)."""
        x, y, c = self._under_every_act(x, self.reader(given))
        q = self.posterior(x, y, c)
        bound = self.log_likelihood(x, y, q.mean, c) - gaussian_kl(q, self.prior_moments(c)).sum(1)
        return bound.view(self.acts, -1).T

    @torch.no_grad()
    def answers(
        self, given: Tensor, y: Tensor | None = None, *, generator: Generator | None = None
    ) -> tuple[Int[Tensor, "n t"], Int[Tensor, " n"]]:
        """A reply to each first turn, raw (n, t), and its act (n,): as wished in ``y``, or else drawn."""
        c = self.reader(given)
        z = draw_normal(self.prior_moments(c), 1, generator)[0]
        return self._said(z, c, y, generator)

    def sample(self, n: int, y: Tensor | None = None, *, given: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw a reply to each first turn, raw (n, t), with acts y (n,), by default drawn, too."""
        return self.answers(given, y if self.guided else None, generator=generator)[0]

    def log_prob_given(self, x: Tensor, noise: Float[Tensor, "b z"], *, given: Tensor) -> Float[Tensor, " b"]:
        """log p(x | noise, c) of raw x (b, t), z the prior's mean + sigma * noise, its act summed out."""
        c = self.reader(given)
        x, y, many = self._under_every_act(x, c)
        each = self.log_likelihood(x, y, self._at(noise, c).repeat(self.acts, 1), many)
        return each.view(self.acts, -1).logsumexp(0)

    @torch.no_grad()
    def sample_given(self, noise: Float[Tensor, "b z"], *, given: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw a reply, raw (b, t), at the noise of z."""
        c = self.reader(given)
        return self._said(self._at(noise, c), c, None, generator)[0]

    def encode(self, x: Tensor, *, given: Tensor) -> Float[Tensor, "b z"]:
        """The mean of q(z | x, c, y) of raw x (b, t) under its most probable act."""
        return self.posterior(x, self.classify(x, given=given).argmax(1), self.reader(given)).mean

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "b z"], *, given: Tensor) -> Tensor:
        """Likely replies, raw (b, t), of codes, under the most probable act of each."""
        c = self.reader(given)
        return self.decoder.greedy(len(z), self._joined(z, c, self.act_log_prob(z, c).argmax(1)))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, given: Tensor, generator: Generator | None = None) -> Tensor:
        """Likely replies, raw (b, t), at a draw of q(z | x, c, y) under the most probable act of x."""
        c, y = self.reader(given), self.classify(x, given=given).argmax(1)
        z = draw_normal(self.posterior(x, y, c), 1, generator)[0]
        return self.decoder.greedy(len(x), self._joined(z, c, y))

    def _weights(self, x: Tensor, k: int, c: Tensor, generator: Generator | None) -> Float[Tensor, "k a b"]:
        """log p(x, y, z | c) - log q(z | x, c, y) at k draws of z for every act y."""
        x, y, c = self._under_every_act(x, c)
        q, prior = self.posterior(x, y, c), self.prior_moments(c)
        z = draw_normal(q, k, generator)
        change = (gaussian_log_density(z, *prior) - gaussian_log_density(z, *q)).sum(-1)
        log_p = self.log_likelihood(x.repeat(k, 1), y.repeat(k), z.flatten(0, 1), c.repeat(k, 1))
        return (log_p.view(change.shape) + change).unflatten(1, (self.acts, -1))

    def _said(
        self, z: Float[Tensor, "n z"], c: Tensor, y: Tensor | None, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        if y is None:
            uniform = torch.rand(len(z), generator=generator, device=z.device, dtype=z.dtype)
            y = draw_categories(self.act_log_prob(z, c), uniform)
        return self.decoder.sample(len(z), self._joined(z, c, y), generator=generator), y

    def _at(self, noise: Float[Tensor, "b z"], c: Float[Tensor, "b c"]) -> Float[Tensor, "b z"]:
        mean, log_sigma = self.prior_moments(c)
        return mean + log_sigma.exp() * noise.to(mean.dtype)

    def _under_every_act(self, x: Tensor, c: Float[Tensor, "b c"]) -> tuple[Tensor, Int[Tensor, " m"], Tensor]:
        """All x, acts y and c, (acts * b, ...): first all under the first act."""
        y = torch.arange(self.acts, device=x.device).repeat_interleave(len(x))
        return x.repeat(self.acts, 1), y, c.repeat(self.acts, 1)

    def _joined(self, first: Float[Tensor, "b f"], c: Float[Tensor, "b c"], y: Tensor) -> Float[Tensor, "b j"]:
        """What the networks see: a code or a reply that was read, the first turn, and the act where there are any."""
        return torch.cat([first, c, *([one_hot(y, self.acts, c.dtype)] if self.guided else [])], 1)
