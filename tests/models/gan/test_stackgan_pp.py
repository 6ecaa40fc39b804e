"""StackGAN++: colour consistency and all losses by hand, with captions and without."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.stackgan_pp import StackGanPp, colours

from .alphabet import seeded
from .halves import HALVES, chance, learn

PLAIN = DataSpec((1, 16, 16), "discrete", levels=256)
SMALL = {"sizes": 2, "latent": 2, "embedding": 6, "condition": 3, "channels": 2, "judge_channels": 2, "blocks": 1}


def made(spec: DataSpec = HALVES, **arguments: Any) -> StackGanPp:
    torch.manual_seed(0)
    return StackGanPp(spec, **{**SMALL, "width": 4, **arguments})


def batch(spec: DataSpec = HALVES, n: int = 4) -> Batch:
    x = torch.randint(256, (n, *spec.shape), generator=seeded(5)).to(torch.uint8)
    return Batch(x, given=torch.randint(5, (n, 3), generator=seeded(6)) if spec.given else None)


def test_colours_are_the_mean_and_the_covariance_of_the_pixels() -> None:
    x = torch.rand(3, 3, 4, 5, generator=seeded(), dtype=torch.float64)
    mean, spread = colours(x)
    for one, m, c in zip(x.flatten(2).numpy(), mean.numpy(), spread.numpy(), strict=True):
        np.testing.assert_allclose(m, one.mean(1))
        np.testing.assert_allclose(c, np.cov(one, bias=True))


def test_colour_consistency_by_hand() -> None:
    """lambda_1 ||m_i - m_(i-1)||^2 + lambda_2 ||C_i - C_(i-1)||_F^2, summed over sizes, a mean over the batch."""
    model = made(mean_weight=2.0, spread_weight=3.0)
    sizes = [torch.rand(2, 3, side, side, generator=seeded(side), dtype=torch.float64) for side in (2, 4, 8)]
    total = 0.0
    for small, large in itertools.pairwise(sizes):
        for a, b in zip(small.flatten(2).numpy(), large.flatten(2).numpy(), strict=True):
            total += 2 * ((a.mean(1) - b.mean(1)) ** 2).sum() / 2
            total += 3 * ((np.cov(a, bias=True) - np.cov(b, bias=True)) ** 2).sum() / 2
    assert float(model.inconsistency(sizes)) == pytest.approx(total)
    enlarged = sizes[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert float(model.inconsistency([sizes[0], enlarged])) == pytest.approx(0, abs=1e-12)
    assert float(model.inconsistency([sizes[0], enlarged + 0.1])) == pytest.approx(2 * 3 * 0.01)
    assert float(model.inconsistency(sizes[:1])) == 0


def outputs(model: StackGanPp, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """D(x), and the features that pairs are made of."""
    features = model.judge(k).features(x)
    return torch.sigmoid(model.judge(k).single(features)), features


@pytest.mark.parametrize("spec", [HALVES, PLAIN], ids=["captions", "none"])
def test_losses_by_hand(spec: DataSpec) -> None:
    model, one, g = made(spec, kl_weight=0.3, consistency=0.7), batch(spec), seeded()
    z = torch.randn(4, 2, generator=g)
    phi = model.phi(one.given)
    pictures, kl = model.generator(z, phi, g)
    large = one.x.float() / 127.5 - 1
    small = large.view(4, -1, 8, 2, 8, 2).mean((3, 5))
    assert [picture.shape for picture in pictures] == [small.shape, large.shape]
    judged, fooled = torch.zeros(()), torch.zeros(())
    for k, (x, s) in enumerate(zip((small, large), pictures, strict=True)):
        (real, a), (fake, b) = outputs(model, k, x), outputs(model, k, s)
        judged = judged - real.log().mean() - (1 - fake).log().mean()
        fooled = fooled - fake.log().mean()
        if phi is not None:
            judge, wrong = model.judge(k), phi[[3, 0, 1, 2]]
            d = [torch.sigmoid(judge.pair(*pair)) for pair in ((a, phi), (b, phi), (a, wrong))]
            judged = judged - d[0].log().mean() - 0.5 * ((1 - d[1]).log().mean() + (1 - d[2]).log().mean())
            fooled = fooled - d[1].log().mean()
    torch.testing.assert_close(model.loss("discriminator", one, seeded())[0], judged)
    wanted = fooled + 0.3 * kl + 0.7 * model.inconsistency(pictures)
    torch.testing.assert_close(model.loss("generator", one, seeded())[0], wanted)
    assert bool(kl > 0) == (spec.given is not None)


def test_pictures_of_captions_and_of_nothing() -> None:
    plain, captioned = made(PLAIN), made()
    assert [stage.name for stage in plain.stages()] == ["game"]
    assert [stage.name for stage in captioned.stages()] == ["embedding", "game"]
    assert set(plain.players()) == {"discriminator", "generator"}
    assert plain.sample(3, generator=seeded()).shape == (3, 1, 16, 16)
    with pytest.raises(UserError, match="pass given="):
        captioned.sample(3)
    assert (plain.consistency, captioned.consistency) == (50.0, 0.0)  # as in the paper, unless said otherwise


def test_a_picture_grows_from_the_maps_of_the_one_before() -> None:
    model = made(sizes=2).eval()
    phi = torch.randn(2, 6, generator=seeded())
    z = torch.randn(2, 2, generator=seeded(1))
    pictures, _ = model.generator(z, phi, seeded(2))
    c, _ = model.generator.augmentation.draw(phi, seeded(2))
    maps = model.generator.root(torch.cat([z, c], 1))
    torch.testing.assert_close(pictures[0], model.generator.leaves[0](maps))
    torch.testing.assert_close(pictures[1], model.generator.leaves[1](model.generator.branches[0](maps, c)))


def test_pictures_fit_the_place_that_their_captions_say_above_chance() -> None:
    model = made(embedding=8, channels=8, judge_channels=8, latent=4, condition=4, kl_weight=0.01)
    assert learn(model, {"embedding": 30, "game": 60})["game"][1] > chance(1, 4)


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (DataSpec((4,), "real"), {}, "takes square images, not real 4"),
        (DataSpec((3, 16, 16), "discrete", levels=256, given=PLAIN), {}, "tokens of words"),
        (PLAIN, {"sizes": 3}, "model.sizes=3 sizes need a side of at least 32"),
        (DataSpec((1, 12, 12), "discrete", levels=256), {}, "not 12"),
        (HALVES, {"consistency": -1.0}, "consistency=-1.0"),
        (HALVES, {"embedding_share": 1.0}, "embedding_share=1.0"),
    ],
)
def test_bad_input_is_explained(spec: DataSpec, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(spec, **arguments)
