"""How far single code dimensions stand for single factors of variation, where the factors are known.

All scores take codes z (n, d) and factor values v (n, F), small integers, of the same n examples, and lie in [0, 1],
higher is better. They are estimates from these n examples; what each depends on beside them is an argument.

- MIG, the mutual information gap (Chen, Li, Grosse, Duvenaud 2018, https://arxiv.org/abs/1802.04942):
  1/F sum_k (I(z_j*; v_k) - max_{j != j*} I(z_j; v_k)) / H(v_k), on codes cut into ``bins`` of equal width between
  their quantiles of 0.1% and 99.9%, so that one outlier does not put all others into one bin.
- The beta-VAE score (Higgins et al. 2017): accuracy of a linear classifier that tells which factor was held fixed from
  the mean |z - z'| of pairs that share this factor's value.
- The FactorVAE score (Kim, Mnih 2018, https://arxiv.org/abs/1802.05983): accuracy of a majority vote that tells the
  fixed factor from the code dimension with the smallest variance, in units of its variance over all examples.
- DCI (Eastwood, Williams 2018): entropy-based disentanglement and completeness of the importances of code dimensions
  for each factor, by random forests, and their accuracy on held-out examples as informativeness.
- SAP, the attribute predictability gap (Kumar, Sattigeri, Balakrishnan 2018, https://arxiv.org/abs/1711.00848): the gap
  in accuracy of the two best single dimensions, each with a linear classifier. Where only one dimension tells more
  than chance, the second best is chance.

The linear classifiers are linear discriminants, which have a closed form, where the papers take logistic regression
and support vector machines.
"""

from typing import NamedTuple

import numpy as np

from dgmbench.errors import UserError

HELD_OUT = 0.25  # share of the examples on which classifiers are scored
STILL = 1e-10  # a variance, relative to the largest, below which a dimension is taken for constant
SHRINKAGE = 1e-3  # of the discriminants' covariance towards a multiple of the identity
OUTLIERS = 1e-3  # share of the values at either end that fall into the outermost bins, wherever they lie
BETA_POINTS, BETA_PAIRS, VOTES, VOTE_EXAMPLES, TREES = 2000, 32, 1000, 64, 50


def mutual_information_gap(codes: np.ndarray, factors: np.ndarray, *, bins: int = 20) -> float:
    """MIG of codes (n, d) and factors (n, F)."""
    codes, factors = checked(codes, factors)
    cut = discretised(codes, bins)
    gaps = []
    for k in range(factors.shape[1]):
        information = np.array([mutual_information(cut[:, j], factors[:, k]) for j in range(cut.shape[1])])
        first, second = np.sort(np.append(information, 0.0))[::-1][:2]
        gaps.append((first - second) / mutual_information(factors[:, k], factors[:, k]))
    return float(np.mean(gaps))


def discretised(codes: np.ndarray, bins: int) -> np.ndarray:
    """Codes (n, d) as the number of their bin, 0 ... bins - 1; bins of equal width between quantiles."""
    low = np.quantile(codes, OUTLIERS, axis=0, method="lower")
    high = np.quantile(codes, 1 - OUTLIERS, axis=0, method="higher")
    width = np.where(high > low, high - low, 1.0)
    return np.clip((codes - low) / width * bins, 0, bins - 1).astype(np.int64)


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """I(a; b) of two series of integers by their joint frequencies, in nats; I(a; a) is the entropy."""
    a, b = np.unique(a, return_inverse=True)[1], np.unique(b, return_inverse=True)[1]
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1.0 / len(a))
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log(joint[there] / independent[there])).sum())


def beta_vae_score(
    codes: np.ndarray, factors: np.ndarray, *, seed: int = 0, points: int = BETA_POINTS, pairs: int = BETA_PAIRS
) -> float:
    """Accuracy on a quarter of ``points`` differences, each the mean over ``pairs`` pairs that share one factor."""
    codes, factors = checked(codes, factors)
    rng = np.random.RandomState(seed)
    scale = _scale(codes)
    fixed = rng.randint(factors.shape[1], size=points)
    features = np.empty((points, codes.shape[1]))
    for i, k in enumerate(fixed):
        first = rng.randint(len(codes), size=pairs)
        second = _partners(rng, factors[:, k], first)
        features[i] = np.abs((codes[first] - codes[second]) / scale).mean(0)
    return _linear_accuracy(features, fixed, seed)


def factor_vae_score(
    codes: np.ndarray, factors: np.ndarray, *, seed: int = 0, votes: int = VOTES, examples: int = VOTE_EXAMPLES
) -> float:
    """Accuracy on a quarter of ``votes``, each from ``examples`` examples that share one factor's value.

    Dimensions that do not vary have no vote; how far the others do makes no difference.
    """
    codes, factors = checked(codes, factors)
    variance = codes.var(0)
    alive = np.flatnonzero(variance > STILL * variance.max())
    if variance.max() == 0:
        return 0.0
    rng = np.random.RandomState(seed)
    cast = np.empty((votes, 2), np.int64)
    for i in range(votes):
        k = rng.randint(factors.shape[1])
        value = factors[rng.randint(len(factors)), k]
        sharing = np.flatnonzero(factors[:, k] == value)
        chosen = sharing[rng.randint(len(sharing), size=examples)]
        cast[i] = alive[np.argmin(codes[chosen][:, alive].var(0) / variance[alive])], k
    held = int(HELD_OUT * votes)
    table = np.zeros((codes.shape[1], factors.shape[1]))
    np.add.at(table, (cast[held:, 0], cast[held:, 1]), 1)
    return float((table.argmax(1)[cast[:held, 0]] == cast[:held, 1]).mean())


class Dci(NamedTuple):
    """Disentanglement, completeness and informativeness."""

    disentanglement: float
    completeness: float
    informativeness: float


def dci(codes: np.ndarray, factors: np.ndarray, *, seed: int = 0, trees: int = TREES) -> Dci:
    """DCI by random forests of ``trees`` trees, one forest a factor."""
    from sklearn.ensemble import RandomForestClassifier

    codes, factors = checked(codes, factors)
    train, test = _split(len(codes), seed)
    importance, accuracy = np.empty((codes.shape[1], factors.shape[1])), []
    for k in range(factors.shape[1]):
        # every split may choose among all dimensions: else importance leaks to those that happen to be offered
        forest = RandomForestClassifier(trees, max_features=None, min_samples_leaf=2, random_state=seed)
        forest.fit(codes[train], factors[train, k])
        importance[:, k] = forest.feature_importances_
        accuracy.append(float((forest.predict(codes[test]) == factors[test, k]).mean()))
    total = importance.sum()
    if total == 0:
        return Dci(0.0, 0.0, float(np.mean(accuracy)))
    by_code = 1 - _entropy(importance, axis=1) / np.log(max(2, factors.shape[1]))
    by_factor = 1 - _entropy(importance, axis=0) / np.log(max(2, codes.shape[1]))
    return Dci(
        float((by_code * importance.sum(1)).sum() / total),
        float((by_factor * importance.sum(0)).sum() / total),
        float(np.mean(accuracy)),
    )


def attribute_predictability(codes: np.ndarray, factors: np.ndarray, *, seed: int = 0) -> float:
    """SAP of codes (n, d) and factors (n, F); a linear classifier of one dimension is a set of thresholds."""
    codes, factors = checked(codes, factors)
    gaps = []
    for k in range(factors.shape[1]):
        scores = [_linear_accuracy(codes[:, [j]], factors[:, k], seed) for j in range(codes.shape[1])]
        chance = np.bincount(factors[:, k]).max() / len(factors)  # what a dimension that is not there would reach
        first, second = np.sort(np.append(scores, chance))[::-1][:2]
        gaps.append(max(0.0, first - second))
    return float(np.mean(gaps))


def checked(codes: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes in double precision and the factors that vary; refuses what no score can be computed from."""
    codes, factors = np.asarray(codes, np.float64), np.asarray(factors)
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
        raise UserError(f"Codes {codes.shape} and factors {factors.shape} must be tables of the same examples.")
    if not np.isfinite(codes).all():
        raise UserError("The codes hold NaN or infinite values, so nothing can be said of their disentanglement.")
    # a constant has no deviation, whatever the rounding of its mean
    codes = np.where(np.ptp(codes, axis=0) > 0, codes, 0.0)
    factors = factors[:, [len(np.unique(column)) > 1 for column in factors.T]]
    if factors.shape[1] == 0 or len(codes) < 100:
        raise UserError(
            f"Disentanglement needs at least one factor that varies and 100 examples, not {factors.shape[1]} and "
            f"{len(codes)}."
        )
    return codes, factors


def _scale(codes: np.ndarray) -> np.ndarray:
    deviation = codes.std(0)
    return np.where(deviation > 0, deviation, 1.0)


def _partners(rng: np.random.RandomState, values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """For each example in ``first`` another at random that has the same value."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    low, high = np.searchsorted(ordered, values[first]), np.searchsorted(ordered, values[first], side="right")
    return order[low + (rng.random_sample(len(first)) * (high - low)).astype(np.int64)]


def _split(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.RandomState(seed).permutation(n)
    held = int(HELD_OUT * n)
    return order[held:], order[:held]


def _linear_accuracy(features: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Held-out accuracy of a linear discriminant, which has a closed form and no step size."""
    train, test = _split(len(features), seed)
    varying = features[:, features[train].std(0) > 0]
    if varying.shape[1] == 0 or len(np.unique(labels[train])) < 2:
        return float((labels[test] == np.bincount(labels[train]).argmax()).mean())
    return float((_discriminant(varying[train], labels[train], varying[test]) == labels[test]).mean())


def _discriminant(x: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Labels (m,) of ``test`` (m, d) by the linear discriminant of x (n, d) and its labels (n,), a little shrunk.

    Classes that do not vary within are told as in the limit of a variance that vanishes: by the nearest mean.
    """
    values, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.stack([x[index == i].mean(0) for i in range(len(values))])
    within = (x - means[index]).T @ (x - means[index]) / len(x)
    spread = (1 - SHRINKAGE) * within + SHRINKAGE * np.trace(within) / x.shape[1] * np.eye(x.shape[1])
    spread += STILL * np.diag(x.var(0))
    weights = np.linalg.solve(spread, (means - x.mean(0)).T)
    offset = np.log(counts / len(x)) - 0.5 * ((means - x.mean(0)) * weights.T).sum(1)
    return values[((test - x.mean(0)) @ weights + offset).argmax(1)]


def _entropy(weights: np.ndarray, axis: int) -> np.ndarray:
    """Entropy of weights normalised along an axis, in nats; 0 log 0 is 0."""
    total = weights.sum(axis, keepdims=True)
    p = weights / np.where(total > 0, total, 1.0)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis)
