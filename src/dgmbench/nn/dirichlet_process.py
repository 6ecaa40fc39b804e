"""Dirichlet process mixtures with a finite store of components: assignments drawn one after another (Neal 2000).

The prior of the assignments of n examples is the Chinese restaurant process of concentration alpha, of which each block
has one of T slots, all equally likely: example i joins a slot of n_k others with probability n_k / (n - 1 + alpha), and
each of the m empty slots with alpha / m / (n - 1 + alpha). The empty slots' parameters are draws of the base measure:
the auxiliary components of Neal's algorithm 8. With as many slots as examples nothing is cut off; with fewer, no new
component begins while none is empty.

Paper: Neal, "Markov Chain Sampling Methods for Dirichlet Process Mixture Models", JCGS 2000, algorithm 8.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

NOWHERE = -1
"""The slot of an example that has not been assigned yet."""


def slot_weights(counts: Int[Tensor, " t"], concentration: float) -> Float[Tensor, " t"]:
    """What the prior of a further example's slot is proportional to: n_k where n_k are, alpha / m of m empty slots.

    Without an empty slot there are the n_k alone.
    """
    return torch.from_numpy(_weights(counts.cpu().numpy().astype(np.float64), concentration)).to(counts.device)


def assign(
    slots: Int[Tensor, " n"], counts: Int[Tensor, " t"], rows: Int[Tensor, " b"], log_p: Float[Tensor, "b t"],
    concentration: float, generator: Generator | None,
) -> tuple[Int[Tensor, " n"], Int[Tensor, " t"]]:  # fmt: skip
    """The slots of all examples and how many each holds, after those of ``rows`` are drawn anew, one after another.

    Each is drawn from its conditional given all others, p(slot) p(x | slot); ``log_p`` is log p(x | slot) of the rows,
    up to a constant of each row. Arguments are left as they are.
    """
    uniform = torch.rand(len(rows), generator=generator, device=log_p.device, dtype=torch.float64).cpu().numpy()
    likelihood = (log_p.double() - log_p.double().amax(1, keepdim=True)).exp().cpu().numpy()
    held, found = counts.cpu().numpy().astype(np.float64), slots.clone().cpu().numpy()
    for row, of_slots, u in zip(rows.tolist(), likelihood, uniform, strict=True):
        if found[row] != NOWHERE:
            held[found[row]] -= 1
        cdf = (_weights(held, concentration) * of_slots).cumsum()
        found[row] = min(int(cdf.searchsorted(u * cdf[-1], side="right")), len(held) - 1)
        held[found[row]] += 1
    return torch.from_numpy(found).to(slots.device), torch.from_numpy(held).to(counts)


def _weights(counts: np.ndarray, concentration: float) -> np.ndarray:
    empty = counts == 0
    return np.where(empty, concentration / max(1, empty.sum()), counts)
