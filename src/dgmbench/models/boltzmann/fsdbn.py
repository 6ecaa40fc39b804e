"""Full-sequence training of a deep belief network: a conditional random field over whole paths, on top of the network.

    p(s_1, ..., s_T | x) = exp( sum_t u_{s_t}'h(x_t) + c_{s_t}  +  sum_t a(s_{t-1}, s_t) ) / Z(x),
    a(s, s) = stay_s,      a(s, s + 1) = leave_s inside a word,      a(last of w, first of w') = leave + language(w, w')

with h the highest hidden layer of a network that starts as a stack of RBMs (``frame_network.py``). All of it, the
network's weights, those of the steps and of the language model, maximises log p of the true path at once: the gradient
with respect to the scores is the observed less the expected counts, by forward-backward, and runs on into every layer.

Before that the network is trained on frames alone, and decodes as the hybrid of ``dbn_hmm.py`` does; the field begins
there exactly, with the log-priors taken off c and the log-probabilities of the steps as weights.

Shapes: x (b, t, d), y (b, t) numbers of states, length (b,). Units: nats a frame; errors are shares.
Paper: Mohamed, Yu, Deng 2010, "Investigation of full-sequence training of deep belief networks for speech recognition",
https://doi.org/10.21437/Interspeech.2010-304. Differs: words of a few states in place of phones; steps that no word
takes stay forbidden.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.boltzmann.frame_network import FrameNetwork
from dgmbench.models.contract import Logs, Stage
from dgmbench.nn.hmm import Chain, allowed, log_partition, score


class FsDbn(FrameNetwork):
    """Conditional random field over a network's scores.

    Args:
        spec: real frames (t, d) with lengths and a label for each, whose factors are the word and the state in it.
        hidden_sizes: units of each hidden layer, from the data upwards.
        context: frames to either side of a window's middle.
        pretraining: share of the budget for each RBM, where training on frames has share 1; 0 starts at random weights.
        sequences: share of the budget for training on whole sequences.
        weight_decay: half the squared weights are added to the network's loss with this factor.
    """

    whole: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden_sizes: Sequence[int] = (512, 512, 512),
        context: int = 5,
        pretraining: float = 0.25,
        sequences: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            spec, hidden_sizes=hidden_sizes, context=context, pretraining=pretraining, weight_decay=weight_decay
        )
        require(above=0, sequences=sequences)
        self.sequences = sequences
        total = self.words * self.states
        self.stay, self.leave = nn.Parameter(torch.zeros(total)), nn.Parameter(torch.zeros(total))
        self.language = nn.Parameter(torch.zeros(self.words, self.words))
        self.first = nn.Parameter(torch.zeros(self.words))
        self.register_buffer("whole", torch.tensor(False))  # whether the field counts

    def steps(self) -> list[nn.Parameter]:
        """The weights of the steps and of the language model."""
        return [self.stay, self.leave, self.language, self.first]

    def field(self) -> Chain:
        """Scores of beginnings, steps and endings; -inf of those that no word takes."""
        total, n = self.words * self.states, self.states
        places = torch.arange(total, device=self.stay.device)
        firsts, lasts, inner = places[::n], places[n - 1 :: n], places[places % n < n - 1]
        transition = self.stay.new_full((total, total), -torch.inf)
        transition = transition.index_put((inner, inner + 1), self.leave[inner])
        across = self.leave[lasts][:, None] + self.language
        transition = transition.index_put((lasts[:, None], firsts[None]), across)
        own = transition.diagonal().logaddexp(self.stay) if n == 1 else self.stay
        transition = transition.index_put((places, places), own)
        start = self.stay.new_full((total,), -torch.inf).index_put((firsts,), self.first)
        end = torch.where(places % n == n - 1, 0.0, -torch.inf).to(start)
        return Chain(start, transition, end)

    def lattice(self, x: Tensor, length: Tensor) -> tuple[Chain, Float[Tensor, "b t s"]]:
        """The field; before it is trained, the hybrid that it starts as."""
        return (self.field(), self.scores(x, length)) if self.whole else super().lattice(x, length)

    def log_posterior(self, batch: Batch) -> Float[Tensor, " b"]:
        """log p(path of the labels | x) of each utterance; all its frames need labels."""
        assert batch.length is not None
        chain, scores = self.lattice(batch.x, batch.length)
        chain = chain.to(scores)
        path = self.alignment(batch)
        return score(chain, scores, batch.length, path) - log_partition(chain, scores, batch.length)

    # ---- training ----

    def players(self) -> dict[str, list[nn.Parameter]]:
        """One for each RBM, and the network with the field over it."""
        players = super().players()
        return players | {"network": [*players["network"], *self.steps()]}

    def stages(self) -> tuple[Stage, ...]:
        """The stack, the network on frames, then whole sequences."""
        return (*super().stages(), Stage("sequences", ("network",), self.sequences))

    @torch.no_grad()
    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Start the field at the hybrid."""
        super().enter_stage(stage, generator)
        if stage.name == "sequences":
            self.top.bias.sub_(self.log_priors())
            chain, n = self.loop(), self.states
            stay = (self.stay_counts / (self.state_counts + 1)).clamp(0.01, 0.99)
            self.stay.copy_(stay.log())
            self.leave.copy_((-stay).log1p())
            self.first.copy_(chain.start[::n])
            self.language.copy_(chain.start[::n].expand(self.words, -1))
            self.whole.fill_(True)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """-log p of whole paths, for each frame, where they are known and words; before that the base class's."""
        if player.startswith("rbm_") or not self.whole:
            return super().loss(player, batch, generator)
        assert batch.length is not None
        log_p, known = self.log_posterior(batch), allowed(self.field(), batch.length, self.alignment(batch))
        loss = -torch.where(known, log_p, 0.0).sum() / torch.where(known, batch.length, 0).sum().clamp_min(1)
        return loss + self.decay(), {"sequence_nll": loss.detach()}
