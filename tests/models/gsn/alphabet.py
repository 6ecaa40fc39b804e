"""An alphabet of five letters with a known distribution, corrupted in a known way: everything is a 5 x 5 matrix."""

import torch
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.models.gsn.gsn import Gsn

LETTERS = DataSpec((1,), "discrete", levels=5)
DATA = torch.tensor([0.35, 0.05, 0.25, 0.05, 0.3], dtype=torch.float64)
ALPHABET = torch.arange(5, dtype=torch.uint8)[:, None]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corruption_matrix(p: float, levels: int = 5) -> Tensor:
    """C[x, x~]: stay with probability 1 - p, else any level alike."""
    eye = torch.eye(levels, dtype=torch.float64)
    return (1 - p) * eye + p / levels


def exact_posterior(corruption: Tensor) -> Tensor:
    """P[x~, x] = P(x | x~) by Bayes' rule (survey equation 89)."""
    joint = DATA[:, None] * corruption
    return (joint / joint.sum(0)).T


def stationary(transition: Tensor) -> Tensor:
    """The left eigenvector of eigenvalue 1."""
    values, vectors = torch.linalg.eig(transition.T)
    found = vectors[:, (values - 1).abs().argmin()].real
    return found / found.sum()


def total_variation(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().sum() / 2)


class Exact(Gsn):
    """The chain with Bayes' rule in place of the network."""

    def denoise(self, corrupted, hidden, *, noisy=True, generator=None):
        table = exact_posterior(corruption_matrix(self.corruption)).log()
        return table[corrupted.flatten().long()][:, None], list(hidden)
