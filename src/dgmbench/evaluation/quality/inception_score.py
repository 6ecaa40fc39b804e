r"""The score of a classifier's opinion on samples: exp of the mutual information of sample and class.

    score = exp( E_x KL(p(y | x) || p(y)) ),   1 <= score <= number of classes

is high for samples that are each surely of one class, while all classes occur (Salimans et al. 2016). It never looks at
data: samples that a classifier is sure about need not look like anything. As published, it is averaged over splits,
which lowers it, since p(y) then comes from fewer samples; the i-th sample belongs to split i modulo their number.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dgmbench.errors import UserError, require
from dgmbench.evaluation.quality.feature_set import SetMeasure, checked


class ScoreEstimate(NamedTuple):
    """Mean and standard error over ``splits`` splits; no standard error from one."""

    value: float
    se: float | None
    splits: int


def inception_score(logits: Tensor, *, splits: int = 10) -> ScoreEstimate:
    """The score of samples with class logits (n, classes)."""
    metric = InceptionScore(classes=logits.shape[-1], splits=splits)
    metric.update(logits.cpu())
    values = metric.scores()
    se = float(values.std()) / math.sqrt(splits) if splits > 1 else None
    return ScoreEstimate(float(values.mean()), se, splits)


class InceptionScore(SetMeasure):
    """The score of logits that come in batches; with one split their order does not matter.

    With several, a sample belongs to the split of its number: its place in order of arrival, or ``index``, which
    processes give that share out one sequence.
    """

    higher_is_better = True
    seen: Tensor
    count: Tensor
    negative_entropy: Tensor
    probability: Tensor

    def __init__(self, *, classes: int, splits: int = 1) -> None:
        super().__init__()
        require("inception_score", least=1, classes=classes, splits=splits)
        self.splits = splits
        self.add_state("count", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("negative_entropy", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("probability", torch.zeros((splits, classes), dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, logits: Tensor, index: Tensor | None = None) -> None:
        """Add the class logits (b, classes) of samples, whose numbers ``index`` (b,) may tell."""
        log_p = checked(logits, "samples", least=1).double().log_softmax(1)
        p = log_p.exp()
        if index is None:
            index = torch.arange(len(p), device=p.device) + int(self.count.sum())
        split = index % self.splits
        self.count = self.count.index_add(0, split, torch.ones_like(p[:, 0]))
        self.negative_entropy = self.negative_entropy.index_add(0, split, torch.xlogy(p, p).sum(1))
        self.probability = self.probability.index_add(0, split, p)

    def scores(self) -> Tensor:
        """The score of each split (splits,)."""
        if (self.count == 0).any():
            raise UserError(
                f"There are {int(self.count.sum())} samples for {self.splits} splits of the score; draw more."
            )
        p = self.probability / self.count[:, None]
        entropy = -torch.xlogy(p, p).sum(1)
        return (self.negative_entropy / self.count + entropy).exp()

    def compute(self) -> Tensor:
        """The mean over splits."""
        return self.scores().mean()
