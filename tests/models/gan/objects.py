"""Pictures with objects of known sides, for tests of models of small objects."""

import torch

from dgmbench.data.spec import Batch

from .alphabet import seeded


def batch(sizes: list[int]) -> Batch:
    """Noise with objects of these sides; one more whose label is unknown."""
    g, n = seeded(1), len(sizes)
    digit, corner = torch.randint(3, (n,), generator=g), torch.randint(5, (n, 2), generator=g)
    y = ((digit * 8 + torch.tensor(sizes)) * 9 + corner[:, 0]) * 9 + corner[:, 1]
    x = torch.randint(256, (n + 1, 1, 12, 12), generator=g).to(torch.uint8)
    return Batch(x, torch.cat([y, torch.tensor([-1])]))


ONE = batch([3, 7, 4, 6, 3])
SMALL, LARGE, KNOWN = [0, 2, 4], [1, 3], [0, 1, 2, 3, 4]
