"""What the tests of machines in time share: all sequences of a few bits, and log p by summing everything out."""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.models.boltzmann.temporal import Temporal

SMALL = DataSpec((3, 3), "binary")

Biases = Callable[[Tensor], tuple[Tensor, Tensor]]


def all_sequences(spec: DataSpec) -> Tensor:
    """Every value of x, (2^dim, *shape) uint8."""
    return torch.tensor(list(product((0, 1), repeat=spec.dim)), dtype=torch.uint8).view(-1, *spec.shape)


def randomised(model: Temporal, scale: float = 0.7, seed: int = 0) -> Temporal:
    """The model in float64 with normal parameters."""
    g = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return model


def step_log_prob(v: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """log p(v) of one frame (d,) of an RBM, by summing over all v and h: no free energy, no softplus."""
    visible, hidden = weight.shape
    vs = torch.tensor(list(product((0.0, 1.0), repeat=visible)), dtype=weight.dtype)
    hs = torch.tensor(list(product((0.0, 1.0), repeat=hidden)), dtype=weight.dtype)
    joint = vs @ weight @ hs.t() + (vs @ a)[:, None] + (hs @ b)[None]
    own = v @ weight @ hs.t() + v @ a + hs @ b
    return own.logsumexp(0) - joint.flatten().logsumexp(0)


def log_z(model: Temporal, x: Tensor) -> Tensor:
    """log Z of every step by the path's enumeration."""
    found = model.annealing_path_given(model.step_conditions(x)).exact_log_partition()
    assert found is not None
    return found


def exact_negatives(model: Temporal, x: Tensor) -> Tensor:
    """The mean over steps of F(v) - E F(v') with all v' weighed by the step's machine: CD for k -> infinity."""
    v, condition = model.rows(x)
    machine = model.machine(condition)
    states = torch.tensor(list(product((0.0, 1.0), repeat=v.shape[1])), dtype=v.dtype)
    each = torch.stack([machine.free_energy(state.expand(len(v), -1)) for state in states])
    weights = (-each).detach().softmax(0)
    return (machine.free_energy(v) - (weights * each).sum(0)).mean()
