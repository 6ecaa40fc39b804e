"""Virtual batch-norm: the moments of the reference with one example joined, and no dependence on the others."""

import torch

from dgmbench.nn.virtual_batchnorm import EPS, VirtualBatchNorm


def test_each_example_is_normalised_by_the_reference_and_itself() -> None:
    g = torch.Generator().manual_seed(0)
    reference = torch.randn(6, 3, dtype=torch.float64, generator=g)
    x = 3 * torch.randn(4, 3, dtype=torch.float64, generator=g) + 1
    norm = VirtualBatchNorm(3).double()
    norm.weight.data.copy_(torch.tensor([1.0, 2.0, 0.5]))
    norm.bias.data.copy_(torch.tensor([0.0, 1.0, -1.0]))
    y = norm(torch.cat([reference, x]), reference=6)
    for i in range(4):
        joined = torch.cat([reference, x[i : i + 1]])
        expected = (x[i] - joined.mean(0)) / (joined.var(0, unbiased=False) + EPS).sqrt()
        torch.testing.assert_close(y[6 + i], expected * norm.weight + norm.bias)
    plain = torch.nn.functional.batch_norm(reference, None, None, norm.weight, norm.bias, training=True, eps=EPS)
    torch.testing.assert_close(y[:6], plain)
    alone = norm(torch.cat([reference, x[2:3]]), reference=6)
    torch.testing.assert_close(alone[6], y[8])
