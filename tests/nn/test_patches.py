"""Networks of patches: what they see, and the sizes of a pyramid."""

import pytest
import torch

from dgmbench.nn.patches import PatchCritic, PatchGenerator, patch_convolutions, pyramid_sizes


def test_every_convolution_takes_a_pixel_from_each_side() -> None:
    torch.manual_seed(0)
    net = patch_convolutions(2, 3, 5, layers=3)
    x = torch.randn(1, 2, 9, 11)
    y = net(x)
    assert y.shape == (1, 3, 3, 5)
    patch = net(x[:, :, 1:8, 2:9])
    torch.testing.assert_close(patch[..., 0, 0], y[..., 1, 2])
    assert [type(each).__name__ for each in net] == ["Conv2d", "LeakyReLU", "Conv2d", "LeakyReLU", "Conv2d"]
    assert PatchCritic(2, 4, layers=2)(x).shape == (1, 1, 5, 7)
    assert PatchCritic(2, 4, layers=2, bias=False).net[-1].bias is None


@pytest.mark.parametrize("bounded", [True, False])
def test_a_generator_adds_to_what_is_there(bounded: bool) -> None:
    torch.manual_seed(0)
    net = PatchGenerator(2, 4, layers=2, bounded=bounded)
    noise, below = torch.randn(1, 2, 6, 7), torch.randn(1, 2, 6, 7)
    padded = torch.zeros(1, 2, 10, 11)
    padded[..., 2:8, 2:9] = noise + below
    added = net(noise, below) - below
    torch.testing.assert_close(added, net.net(padded).tanh() if bounded else net.net(padded))


def test_sizes_of_a_pyramid() -> None:
    assert pyramid_sizes((48, 72), smallest=16, ratio=0.75)[0] == (16, 24)
    sizes = pyramid_sizes((48, 72), smallest=16, ratio=0.75)
    assert len(sizes) == 5, "4 steps of 3^(-1/4) = 0.760; 3 of 0.693"
    assert sizes == [(round(48 * 3 ** (-k / 4)), round(72 * 3 ** (-k / 4))) for k in (4, 3, 2, 1, 0)]
    assert pyramid_sizes((20, 30), smallest=20, ratio=0.5) == [(20, 30)]
    assert pyramid_sizes((20, 30), smallest=19, ratio=0.5) == [(19, 28), (20, 30)], "one step at least"
