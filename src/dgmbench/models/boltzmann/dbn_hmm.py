"""Hybrid of a deep belief network and a hidden Markov model: the network's posteriors are the emissions.

    p(x_t | s) = p(s | x_t) p(x_t) / p(s),      words = argmax over paths of sum_t [log p(s_t | x_t) - log p(s_t)]
                                                                            + log p(s_1) + sum_t log p(s_t | s_{t-1})

with p(x_t), the same for all paths, left out. The network starts as a stack of RBMs (``frame_network.py``) and learns
the states of an alignment. Then the words are aligned anew, by Viterbi with the network as it is (a frozen copy), state
priors and durations are counted anew, and the network goes on with these states; ``realignments`` times.

Shapes: x (b, t, d), y (b, t) numbers of states, length (b,). Units: nats a frame; errors are shares.
Paper: Dahl, Yu, Deng, Acero 2011, "Large vocabulary continuous speech recognition with context-dependent DBN-HMMs",
https://doi.org/10.1109/ICASSP.2011.5947401. Differs: states of whole words in place of tied triphones, words that are
equally likely whatever comes before, and a first alignment that the data give, in place of a GMM-HMM's.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.boltzmann.frame_network import FrameNetwork
from dgmbench.models.contract import Stage
from dgmbench.nn.hmm import align, words_of


class Frozen(nn.Module):
    """The weights of linear layers as they were, sigmoids between them."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.count = len(layers)
        for n, layer in enumerate(layers):
            self.register_buffer(f"weight_{n}", layer.weight.detach().clone())
            self.register_buffer(f"bias_{n}", layer.bias.detach().clone())

    def take(self, layers: Sequence[nn.Linear]) -> None:
        """Be these."""
        for n, layer in enumerate(layers):
            cast(Tensor, getattr(self, f"weight_{n}")).copy_(layer.weight)
            cast(Tensor, getattr(self, f"bias_{n}")).copy_(layer.bias)

    def forward(self, h: Float[Tensor, "n w"]) -> Float[Tensor, "n s"]:
        """Scores."""
        for n in range(self.count):
            h = nn.functional.linear(h.sigmoid() if n else h, getattr(self, f"weight_{n}"), getattr(self, f"bias_{n}"))
        return h


class DbnHmm(FrameNetwork):
    """Words by Viterbi over a network's posteriors.

    Args:
        spec: real frames (t, d) with lengths and a label for each, whose factors are the word and the state in it.
        hidden_sizes: units of each hidden layer, from the data upwards.
        context: frames to either side of a window's middle.
        pretraining: share of the budget for each RBM, where training on frames has share 1; 0 starts at random weights.
        realignments: how often the words are aligned anew; what follows each has share 1 / 2.
        weight_decay: half the squared weights are added to the network's loss with this factor.
    """

    aligner: Frozen
    aligned: Tensor
    aligner_priors: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden_sizes: Sequence[int] = (2048, 2048, 2048, 2048, 2048),
        context: int = 5,
        pretraining: float = 0.25,
        realignments: int = 1,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            spec, hidden_sizes=hidden_sizes, context=context, pretraining=pretraining, weight_decay=weight_decay
        )
        require(least=0, realignments=realignments)
        self.realignments = realignments
        self.aligner = Frozen(self.linears())
        self.register_buffer("aligned", torch.tensor(False))  # whether the aligner counts
        self.register_buffer("aligner_priors", torch.zeros_like(self.state_counts))

    def linears(self) -> list[nn.Linear]:
        """The network's layers, from the data upwards."""
        return [*cast("list[nn.Linear]", list(self.layers)), self.top]

    def stages(self) -> tuple[Stage, ...]:
        """The stack, the network on the alignment of the data, and on its own."""
        names = [f"realigned_{n}" for n in range(1, self.realignments + 1)]
        return (*super().stages(), *(Stage(name, ("network",), 0.5) for name in names))

    @torch.no_grad()
    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Align by the network as it is from now on."""
        super().enter_stage(stage, generator)
        if stage.name.startswith("realigned_"):
            self.aligner.take(self.linears())
            self.aligner_priors.copy_(self.log_priors())
            self.aligned.fill_(True)

    @torch.no_grad()
    def alignment(self, batch: Batch) -> Int[Tensor, "b t"]:
        """The data's own; once aligned, the best path through its words, if it is long enough for them."""
        y = super().alignment(batch)
        if not self.aligned:
            return y
        assert batch.length is not None
        windows = self.cut(self.frames(batch.x, batch.length), batch.length)
        scores = self.in_place(self.aligner(windows).log_softmax(1) - self.aligner_priors, batch.length, y.shape[1])
        words = words_of(y, self.states)
        found = align(self.loop(), scores, batch.length, words, self.states)
        count = (words >= 0).sum(1)
        possible = (count > 0) & (batch.length >= count * self.states)
        return torch.where(possible[:, None], found, y)

    @torch.no_grad()
    def settle(self, batches: Iterator[Batch], generator: Generator) -> None:
        """Count states and how long they last by the alignment of now."""
        if self.aligned:
            found = [self.alignment(batch) for batch in batches]
            self.count(torch.cat(found))
