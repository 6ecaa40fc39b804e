"""SeqGAN: a recurrent network writes sequences, and a discriminator's verdict reaches it as a policy's reward.

Tokens have no gradient, and a discriminator judges whole sequences only. So the generator is a policy that chooses one
token after another, the reward of a choice is what the discriminator D is expected to say of the finished sequence, and
that is estimated by finishing it several times (rollouts):

    mle           G minimises  -E_data log G(x)
    discriminate  D minimises  -E_data log D(x) - E_G log(1 - D(x))
    adversarial   G follows    E_G sum_t grad log G(x_t | x_<t) (Q_t - Q_{t-1}),   D as before
                  Q_t = E_G[D(x) | x_<=t], a mean over ``rollouts`` draws;  Q_T = D(x)

Q_{t-1} is what was expected before x_t was chosen: its own rollouts know nothing of x_t, so that the gradient's mean is
that of E_G D(x), while no token is blamed for those before it. Q_0 is the mean of Q_1 over the batch's other sequences.

Shapes and units: x (b, t) tokens; ``log_prob(x)`` is exact, nats. Two players share G's parameters, ``generator`` in
the first stage and ``policy`` in the last, each with an optimiser of its own.

Paper: Yu, Zhang, Wang, Yu 2017, https://arxiv.org/abs/1609.05473.

What differs: the baseline, of which the paper has none. Rollouts are drawn by G itself, not by a copy that lags behind
(the authors' code mixes the two by 0.8). Every update of D has negatives of its own, drawn from G as it is then. With
``pairs`` D also has a table of neighbouring tokens: what an LSTM gets wrong of a random language are pairs and triples
by the thousand, which convolutions with one maximum a map learn slowly.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model, Parameters, Stage
from dgmbench.nn.recurrent_decoder import require_sentences
from dgmbench.nn.sentence_convolutions import SentenceConvolutions
from dgmbench.nn.token_policy import TokenPolicy


class SeqGan(Model):
    """Sequences by policy gradient (Yu et al. 2017).

    Args:
        spec: the data's space, sequences of tokens.
        width: of the embeddings of the generator.
        hidden: units of its LSTM.
        critic_width: of the embeddings of the discriminator.
        kernels: how many tokens each kind of its convolutions sees.
        channels: maps of each kind.
        dropout: share of its features that are dropped in its own training.
        pairs: whether the discriminator has a table of pairs of neighbours, too (see ``SentenceConvolutions``).
        rollouts: draws of the rest of a sequence, from each of its tokens.
        game_batch: sequences, real and drawn, of an update in the last stage: a policy's gradient is noisy.
        n_critic: updates of the discriminator there to one of the policy, each with new negatives.
        mle: share of the budget for maximum likelihood.
        discriminate: share of the budget for the discriminator alone; the rest is for both.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        width: int = 32,
        hidden: int = 32,
        critic_width: int = 64,
        kernels: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20),
        channels: int = 100,
        dropout: float = 0.25,
        pairs: bool = False,
        rollouts: int = 16,
        game_batch: int = 64,
        n_critic: int = 5,
        mle: float = 0.4,
        discriminate: float = 0.2,
    ) -> None:
        super().__init__(spec)
        tokens = require_sentences(spec)
        require(least=1, width=width, hidden=hidden, critic_width=critic_width, channels=channels)
        require(least=1, rollouts=rollouts, game_batch=game_batch, n_critic=n_critic)
        require(least=0, below=1, dropout=dropout)
        if mle <= 0 or discriminate < 0 or mle + discriminate > 1:
            raise UserError(
                f"model.mle={mle} and model.discriminate={discriminate} must be shares of the budget, 1 at most."
            )
        self.rollouts, self.game_batch, self.n_critic = rollouts, game_batch, n_critic
        self.shares = (mle, discriminate)
        self.generator = TokenPolicy(tokens, spec.dim, spec.end, width=width, hidden=hidden)
        self.discriminator = SentenceConvolutions(
            tokens,
            spec.dim,
            width=critic_width,
            kernels=tuple(kernels),
            channels=channels,
            dropout=dropout,
            pairs=pairs,
        )

    def players(self) -> dict[str, Parameters]:
        """The generator twice, by likelihood and as a policy, and the discriminator; its table is a group."""
        own, table = list(self.generator.parameters()), self.discriminator.table
        groups = {"main": [p for p in self.discriminator.parameters() if p is not table]}
        if table is not None:
            groups["pairs"] = [table]
        return {"generator": own, "discriminator": groups, "policy": own}

    def stages(self) -> tuple[Stage, ...]:
        """Maximum likelihood, the discriminator against what came of it, then both."""
        mle, discriminate = self.shares
        every = (
            Stage("mle", ("generator",), mle),
            Stage("discriminate", ("discriminator",), discriminate),
            Stage("adversarial", ("discriminator", "policy"), 1 - mle - discriminate, batch_size=self.game_batch),
        )
        return tuple(stage for stage in every if stage.share > 1e-9)

    def turn(self, step: int, stage: Stage) -> Sequence[str]:
        """In the last stage the discriminator on every step, the policy after it on every ``n_critic``-th."""
        if stage.name != "adversarial" or (step + 1) % self.n_critic == 0:
            return stage.players
        return ("discriminator",)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        n = len(batch.x)
        if player == "generator":
            loss = -self.generator.log_prob(batch.x).mean()
            return loss, {"loss": loss.detach()}
        drawn = self.generator.sample(n, generator=generator)
        if player == "discriminator":
            real, fake = self.discriminator(batch.x), self.discriminator(drawn)
            loss = F.softplus(-real).mean() + F.softplus(fake).mean()
            return loss, {"loss": loss.detach()}
        rewards = self.rewards(drawn, generator)
        chosen = self.generator.each_log_prob(drawn)  # behind an end nothing changes: advantages are 0
        loss = -(chosen * self.advantages(rewards)).sum(1).mean()
        return loss, {"loss": loss.detach(), "reward": rewards[:, -1].mean()}

    @staticmethod
    def advantages(rewards: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """Q_t - Q_{t-1}: what each token changes of what is expected."""
        first = rewards[:, :1]
        others = (first.sum() - first) / max(len(first) - 1, 1)
        return rewards - torch.cat([others, rewards[:, :-1]], 1)

    @torch.no_grad()
    def rewards(self, x: Int[Tensor, "b t"], generator: Generator | None = None) -> Float[Tensor, "b t"]:
        """Q_t: the mean of D over ``rollouts`` ends of each beginning x_<=t, and D(x) itself at the last token."""
        finished = self.generator.finished(x, self.rollouts, generator=generator)
        said = self.verdict(finished.flatten(0, 2)).view(finished.shape[:3]).mean(1)
        return torch.cat([said, self.verdict(x)[None]]).T

    def verdict(self, x: Int[Tensor, "b t"]) -> Float[Tensor, " b"]:
        """D(x), the probability that sequences come from the data, without dropout."""
        return self.discriminator(x, noisy=False).sigmoid()

    def log_prob(self, x: Tensor) -> Float[Tensor, " b"]:
        """Exact log-likelihood of raw x (b, t), nats."""
        return self.generator.log_prob(x)

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Int[Tensor, "n t"]:
        """n sequences."""
        return self.generator.sample(n, generator=generator)
