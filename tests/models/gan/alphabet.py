"""A finite alphabet with data and samples of known frequencies, and a discriminator that is a table: all is exact."""

import torch
from torch import Generator, Tensor, nn

from dgmbench.config import complete, compose, instantiate
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.gan.gan import Gan

LETTERS = DataSpec((4,), "real")  # one-hot
P_REAL, P_FAKE = (0.5, 0.3, 0.15, 0.05), (0.1, 0.2, 0.3, 0.4)


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


class Fixed(nn.Module):
    """A generator that returns the rows it was given, whatever the noise."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.rows[: len(z)] * self.scale


def alphabet(probabilities: tuple[float, ...], n: int = 20) -> Tensor:
    """Return n one-hot rows whose frequencies are exactly the probabilities."""
    counts = torch.tensor([round(n * p) for p in probabilities])
    assert counts.sum() == n
    return torch.eye(len(probabilities)).repeat_interleave(counts, 0)


def linear_critic(model: Gan) -> nn.Linear:
    """The weights of a model whose mlp critic has no hidden layer."""
    head = model.discriminator.head
    assert isinstance(head, nn.Linear)
    return head


def shipped(name: str, spec: DataSpec, *overrides: str) -> nn.Module:
    """The model of ``configs/model/NAME.yaml`` on another space."""
    torch.manual_seed(0)
    node = complete(compose("train", [f"model={name}", *overrides]))["model"]
    return instantiate({key: value for key, value in node.items() if key != "card"}, spec)


def optimum(model: Gan) -> tuple[Tensor, Tensor]:
    """Train the discriminator of a model of ``LETTERS``, without hidden layers, to its optimum, by its own loss.

    Samples are fixed. Returns its outputs at the letters and the loss there.
    """
    model.generator = Fixed(alphabet(P_FAKE))
    batch = Batch(alphabet(P_REAL))
    optimiser = torch.optim.LBFGS(
        model.discriminator.parameters(), max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss, _ = model.loss("discriminator", batch, seeded())
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        return model.critic(torch.eye(4)), model.loss("discriminator", batch, seeded())[0]
