"""Laplacian pyramids: exact reconstruction, and the two maps by hand."""

import torch

from dgmbench.nn.laplacian_pyramid import collapsed, doubled, halved, pyramid, smoothed


def test_a_pyramid_gives_its_picture_back_at_every_depth() -> None:
    x = torch.randn(3, 2, 16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for levels in range(4):
        smallest, residuals = pyramid(x, levels)
        assert smallest.shape == (3, 2, 16 // 2**levels, 8 // 2**levels)
        assert [h.shape[2] for h in residuals] == [16 // 2**k for k in reversed(range(levels))]
        torch.testing.assert_close(collapsed(smallest, residuals), x, atol=1e-14, rtol=0)


def test_smoothing_is_the_binomial_filter_along_both_sides_and_keeps_what_is_flat() -> None:
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1.0
    weights = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    torch.testing.assert_close(smoothed(point)[0, 0, 2:7, 2:7], torch.outer(weights, weights))
    assert smoothed(point)[0, 0, 1].abs().max() == 0
    flat = torch.full((1, 2, 4, 6), 0.7)
    for change in (smoothed, halved, doubled):
        torch.testing.assert_close(change(flat).unique(), torch.tensor([0.7]), atol=1e-6, rtol=0)
    assert torch.equal(halved(point), smoothed(point)[:, :, ::2, ::2])


def test_residuals_of_what_varies_slowly_are_small_and_of_noise_large() -> None:
    """A pyramid is of use because a picture's residuals have little energy: far less than those of noise."""
    at = torch.arange(32.0)
    slow = torch.sin(at[:, None] / 8 + at / 11)[None, None]
    noise = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * slow.std()
    energies = [pyramid(x, 1)[1][0][..., 4:-4, 4:-4].square().mean() for x in (slow, noise)]
    assert energies[0] < 0.05 * energies[1]
