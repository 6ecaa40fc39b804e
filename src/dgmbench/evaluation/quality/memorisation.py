r"""Whether samples are copies of training data: whose neighbours they are, and how near.

Let T be the training examples, H held-out ones, and s a sample. If the model treats both alike, T and H are
exchangeable, so that the nearest example to s among all of them is from T with probability p_0 = |T| / (|T| + |H|),
however blurred, collapsed or far off the samples are. Copies of training data have it in T always. With p the share of
samples whose nearest example is from T,

    memorisation = (p - p_0) / (1 - p_0):   0 by chance, 1 if all samples are copies.

The standard error holds for a model that does not memorise; samples that share their nearest example count as one draw.

    distance ratio = median over samples of the distance to T / median over held-out examples of the distance to T

is 1 where samples are as far from the training data as held-out data are. It is smaller for copies, but also for
blurred samples, which lie between the examples; larger for noise.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dgmbench.errors import UserError
from dgmbench.evaluation.quality.feature_set import checked, checked_pair, nearest


class Memorisation(NamedTuple):
    """The excess share of nearest neighbours from the training set with its standard error, and the distance ratio."""

    excess: float
    se: float
    distance_ratio: float | None


def memorisation(train: Tensor, held_out: Tensor, samples: Tensor) -> Memorisation:
    """Compare features of samples (m, d) with those of training (n, d) and held-out examples (h, d).

    The ratio is None where more than half of the held-out examples coincide with training ones.
    """
    checked_pair(train, samples, least=1)
    checked(held_out, "held-out examples", least=1)
    if train.shape[1] != held_out.shape[1]:
        raise UserError("Training and held-out features must come from one network.")
    to_train, which_train = nearest(samples, train)
    to_held_out, which_held_out = nearest(samples, held_out)
    p_0 = len(train) / (len(train) + len(held_out))
    # a tie goes to either side as chance has it
    is_train = torch.where(to_train == to_held_out, p_0, (to_train < to_held_out).double())
    which = torch.where(to_train <= to_held_out, which_train, len(train) + which_held_out)
    shares = which.unique(return_counts=True)[1].double() / len(samples)
    excess = (float(is_train.mean()) - p_0) / (1 - p_0)
    se = math.sqrt(p_0 * (1 - p_0) * float(shares.square().sum())) / (1 - p_0)
    usual = float(nearest(held_out, train)[0].sqrt().median())
    return Memorisation(excess, se, float(to_train.sqrt().median()) / usual if usual > 0 else None)
