"""Replicated softmax: an RBM of documents, bits over the counts of words, one machine for every length.

    E(v, h) = -v'W h - a'v - D b'h,      v counts of D words,
    F(v)    = -a'v - sum_j softplus(D b_j + (W'v)_j)

Each of the D words of a document is a softmax unit with the same weights W and biases a, so that only counts matter
and all documents share the parameters, whatever their length. The hidden biases are multiplied by D, lest longer
documents drown them. Given h the words are D independent draws of softmax(a + W h); given v the topics h_j are bits,
p(h_j = 1 | v) = sigmoid(D b_j + (W'v)_j).

log p is of count vectors given D: exp(-F(v)) times the multinomial coefficient D! / prod v_k!, over Z_D. Of the
*sequence* of words, of which there are as many as the coefficient says and all are alike, it is without it; perplexity
is a matter of sequences, exp(-mean log p(sequence) / D). Z_D is another one for every D, so there is an annealing path
for each length, all side by side, and no chain persists: the gradient is estimated by contrastive divergence.

Shapes: raw x (b, *shape) int64, v (b, words), h (b, hidden). Units: nats a document.
Paper: Salakhutdinov, Hinton 2009, "Replicated softmax: an undirected topic model",
https://papers.nips.cc/paper/2009/hash/31839b036f63806cba3f47b93af8ccb5-Abstract.html.

Different from the paper: a fixed number of Gibbs steps, where it raises them from 1 to 5 in the course of training.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.couplings import Couplings, GeometricPath
from dgmbench.models.boltzmann.energy_model import TwoSided
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.nn.unit_layers import BERNOULLI, Counts, Independent

QUANTILES = 256  # of the training documents' lengths, among which those of samples are drawn


class ReplicatedSoftmax(TwoSided):
    """An RBM of counts of words.

    Args:
        spec: counts of any shape.
        hidden: number of topics.
        estimator: how the gradient is estimated; a copy is kept as a submodule. Default: ``CD(k=1)``.
        weight_std: standard deviation of the initial weights (Hinton 2012, "A practical guide to training RBMs").
        sample_steps: Gibbs steps of ``sample``, started from independent words.
    """

    conditioned = True
    base_logits: Tensor
    lengths: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: int = 50,
        estimator: Estimator | None = None,
        weight_std: float = 0.01,
        sample_steps: int = 1000,
    ) -> None:
        super().__init__(spec, sample_steps=sample_steps)
        if spec.kind != "counts":
            raise UserError(
                f"replicated_softmax models counts of words, but these are {spec}; choose a set of documents, such as "
                "data=topics, or your own counts with data=npz data.kind=counts."
            )
        require(least=1, hidden=hidden)
        require(least=0, weight_std=weight_std)
        self.weight = nn.Parameter(weight_std * torch.randn(spec.dim, hidden))
        self.visible_bias = nn.Parameter(torch.zeros(spec.dim))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.register_buffer("base_logits", torch.zeros(spec.dim))  # log-frequencies of the words: base of AIS
        self.register_buffer("lengths", torch.ones(QUANTILES, dtype=torch.int64))
        self.train_by(estimator)

    # ---- the distribution, given the number of words ----

    def at_length(self, total: Int[Tensor, " n"]) -> Couplings:
        """The machine for documents of so many words each, a row for every one of them."""
        b = total.to(self.weight.dtype)[:, None] * self.hidden_bias
        return Couplings(self.weight, self.visible_bias, b, Counts(total), BERNOULLI)

    def couplings_given(self, x: Tensor, fast: Sequence[Tensor] | None = None) -> Couplings:
        """The machine for the lengths of documents x; no estimator that lays fast weights over it is let in."""
        return self.at_length(self.condition_of(x))

    def condition_of(self, x: Tensor) -> Int[Tensor, " b"]:
        """The number of words of each document."""
        return x.flatten(1).long().sum(1)

    def annealing_path_given(self, condition: Tensor) -> GeometricPath:
        """From independent words with the training set's frequencies, for documents of each of these lengths."""
        return GeometricPath(self.at_length(condition.long()), self.base_logits)

    def base(self) -> Independent:
        """A document of one word."""
        return Independent(Counts(torch.ones((), dtype=torch.int64)), self.base_logits)

    def state_sizes(self) -> tuple[int, int]:
        """Words and topics."""
        words, hidden = self.weight.shape
        return words, hidden

    # ---- training ----

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Visible biases at the words' log-frequencies; the lengths that samples have."""
        v, total = self.flatten(batch.x), self.condition_of(batch.x)
        if bool((total == 0).any()):
            raise UserError(
                f"{int((total == 0).sum())} of the first {len(total)} training documents have no words; leave them out."
            )
        self.base_logits.copy_(Counts(total).fitted(v).eta.log_softmax(0))
        self.visible_bias.copy_(self.base_logits)
        at = (torch.arange(QUANTILES, device=v.device) + 0.5) / QUANTILES * len(total)
        self.lengths.copy_(total.sort().values[at.long()])
        self.estimator.initialise(self, generator)

    # ---- capabilities ----

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Documents of lengths drawn like the training set's, after ``sample_steps`` Gibbs steps."""
        which = torch.randint(QUANTILES, (n,), device=self.lengths.device, generator=generator)
        path = self.annealing_path_given(self.lengths[which])
        return self.raw(path.couplings.gibbs(path.sample_base(n, generator=generator), self.sample_steps, generator))

    def encode(self, x: Tensor) -> Float[Tensor, "b h"]:
        """Probabilities of the topics."""
        return self.couplings_given(x).hidden_logits(self.flatten(x)).sigmoid()

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Expected counts (b, *shape) of as many words given the probabilities of the topics."""
        now = self.couplings_given(x)
        return now.visible_units.mean(now.visible_logits(self.encode(x))).view(x.shape)

    def topics(self) -> Float[Tensor, "h *shape"]:
        """How much each topic adds to the log-probability of every word."""
        return self.weight.detach().t().reshape(-1, *self.spec.shape)
