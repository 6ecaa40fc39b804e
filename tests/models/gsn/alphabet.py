"""An alphabet of five letters with a known distribution, corrupted in a known way: everything is a 5 x 5 matrix."""

import torch
from torch import Tensor

from dgmbench.data.spec import Batch, DataSpec
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


@torch.no_grad()
def learnt_posterior(model: Gsn) -> Tensor:
    return model.denoise(ALPHABET, model.rest(5))[0][:, 0].double().exp()


def train(model: Gsn, noise: torch.Generator, *, updates: int) -> None:
    """Maximum likelihood of 20,000 letters, at a rate that falls to 0."""
    data = torch.multinomial(DATA, 20_000, replacement=True, generator=noise)[:, None].byte()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for update in range(updates):
        optimiser.param_groups[0]["lr"] = 0.02 * (1 - update / updates)
        optimiser.zero_grad()
        x = data[torch.randint(len(data), (500,), generator=noise)]
        model.loss("model", Batch(x), noise)[0].backward()
        optimiser.step()
