r"""Whether samples are copies of training data: whose neighbours they are, and how near.

Let T be the training examples, H held-out ones, and s a sample. If the model treats both alike, T and H are
exchangeable, so that the nearest example to s among all of them is from T with probability p_0 = |T| / (|T| + |H|),
however blurred, collapsed or far off the samples are. Copies of training data have it in T always. With p the mean over
samples of the share of T among the examples at the least distance, which is one example or several that are as near,

    memorisation = (p - p_0) / (1 - p_0):   0 by chance, 1 if all samples are copies.

p is sum_j w_j [j in T] with w_j what the samples together give to example j. The standard error holds for a model that
does not memorise, where the |T| members of T are any of the N = |T| + |H| examples:

    var p = p_0 (1 - p_0) (sum_j w_j^2 - 1/N) N / (N - 1).

    distance ratio = median over samples of the distance to T / median over held-out examples of the distance to T

is 1 where samples are as far from the training data as held-out data are. It is smaller for copies, but also for
blurred samples, which lie between the examples; larger for noise.

A copy is found only where its original is looked at. So T is searched whole, in parts that need not be in
memory at once.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from dgmbench.errors import UserError
from dgmbench.evaluation.quality.feature_set import Distances, checked, checked_pair

PART = 16_384  # examples that are searched at a time
MEDIAN_EXAMPLES = 2000  # held-out examples whose median distance the ratio takes, evenly spread over all


class Memorisation(NamedTuple):
    """The excess share of nearest neighbours from the training set with its standard error, and the distance ratio.

    ``train`` and ``held_out`` are the numbers of examples that were searched.
    """

    excess: float
    se: float
    distance_ratio: float | None
    train: int
    held_out: int


def memorisation(train: Tensor | Iterable[Tensor], held_out: Tensor, samples: Tensor) -> Memorisation:
    """Compare features of samples (m, d) with those of training (n, d) and held-out examples (h, d).

    Training features may come in parts. The ratio is None where more than half of the held-out examples coincide with
    training ones.
    """
    checked_pair(held_out, samples, least=1)
    distances = Distances.between(held_out, samples)
    near_train, near_held_out = _Nearest(samples, distances), _Nearest(samples, distances)
    usual = _Nearest(held_out[:: math.ceil(len(held_out) / MEDIAN_EXAMPLES)], distances)
    for part in train.split(PART) if isinstance(train, Tensor) else train:
        checked(part, "training examples", least=1)
        if part.shape[1] != held_out.shape[1]:
            raise UserError("Training and held-out features must come from one network.")
        near_train.look_at(part, keep=True)
        usual.look_at(part)
    for part in held_out.split(PART):
        near_held_out.look_at(part, keep=True)
    n, h = near_train.seen, near_held_out.seen
    if not n:
        raise UserError("There are no training examples to look for copies of.")
    candidates = torch.cat([*near_train.candidates, *near_held_out.candidates])
    from_train = torch.arange(len(candidates), device=samples.device) < sum(len(c) for c in near_train.candidates)
    reach = distances.reach(samples, torch.minimum(near_train.distance, near_held_out.distance))
    weights = torch.zeros(len(candidates), dtype=torch.float64, device=samples.device)
    for rows, distance in distances.of(samples, candidates):
        tied = (distance <= reach[rows, None]).double()
        weights += (tied / tied.sum(1, keepdim=True)).sum(0) / len(samples)
    p_0 = n / (n + h)
    excess = (float(weights[from_train].sum()) - p_0) / (1 - p_0)
    spread = max(float(weights.square().sum()) - 1 / (n + h), 0.0) * (n + h) / (n + h - 1)
    middle, to_train = float(usual.distance.sqrt().median()), float(near_train.distance.sqrt().median())
    return Memorisation(
        excess, math.sqrt(p_0 * (1 - p_0) * spread) / (1 - p_0), to_train / middle if middle > 0 else None, n, h
    )


class _Nearest:
    """The least squared distance of each query to examples that come in parts."""

    def __init__(self, queries: Tensor, distances: Distances) -> None:
        self.queries, self.distances = queries, distances
        self.distance = torch.full((len(queries),), torch.inf, dtype=torch.float64, device=queries.device)
        self.seen = 0
        self.candidates: list[Tensor] = []

    def look_at(self, part: Tensor, *, keep: bool = False) -> None:
        """Go on with features (b, d); ``keep`` those that are nearest to any query so far, or as near."""
        wanted = torch.zeros(len(part), dtype=torch.bool, device=part.device)
        for rows, distance in self.distances.of(self.queries, part):
            least = torch.minimum(self.distance[rows], distance.min(1).values.double())
            self.distance[rows] = least
            if keep:
                reach = self.distances.reach(self.queries[rows], least)
                wanted |= (distance <= reach[:, None]).any(0)
        self.seen += len(part)
        self.candidates.append(part[wanted])
