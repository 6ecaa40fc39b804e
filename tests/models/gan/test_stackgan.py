"""StackGAN: the losses of its stages by hand, stages that build on each other, pictures that fit their captions."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.captioned import energy_score
from dgmbench.models.gan.stackgan import StackGan

from .alphabet import seeded
from .halves import CAPTIONS, HALVES, chance, learn

SMALL = {"scale": 2, "latent": 2, "embedding": 6, "condition": 3, "channels": 2, "judge_channels": 2, "blocks": 1}


def made(**arguments: Any) -> StackGan:
    torch.manual_seed(0)
    return StackGan(HALVES, **{**SMALL, "width": 4, **arguments})


def batch(n: int = 4) -> Batch:
    x = torch.randint(256, (n, 3, 16, 16), generator=seeded(5)).to(torch.uint8)
    return Batch(x, given=torch.randint(5, (n, 3), generator=seeded(6)))


def scaled(x: Tensor) -> Tensor:
    return x / 127.5 - 1


def test_stages_train_what_they_should_and_share_the_budget() -> None:
    found = {stage.name: (stage.players, round(stage.share, 6)) for stage in made(first_share=0.6).stages()}
    assert found == {
        "embedding": (("embedding",), 0.1),
        "first": (("first_judge", "first"), 0.6),
        "second": (("second_judge", "second"), 0.3),
    }


@pytest.mark.parametrize("second", [False, True])
def test_a_stages_losses_by_hand(second: bool) -> None:
    """Judges: real pairs, half of samples, half of wrong captions. Generators: fooled judges and the KL."""
    model, one = made(kl_weight=0.3), batch()
    x = scaled(one.x.float())
    x = x if second else x.view(4, 3, 8, 2, 8, 2).mean((3, 5))
    phi = model.embedding(one.given)
    g = seeded()
    z = torch.randn(4, 2, generator=g)
    net, judge, names = model.first, model.first_judge, ("first_judge", "first")
    c, kl = net.augmentation.draw(phi, g)
    s = net.net(torch.cat([z, c], 1))
    if second:
        net, judge, names = model.second, model.second_judge, ("second_judge", "second")
        c, kl = net.augmentation.draw(phi, g)
        planes = c[:, :, None, None].expand(-1, -1, 4, 4)  # sides of 8 are halved once
        s = net.up(net.blocks(net.join(torch.cat([net.down(s), planes], 1))))
    assert s.shape == x.shape

    def a(pictures: Tensor, captions: Tensor) -> Tensor:
        return judge.pair(judge.features(pictures), captions)

    wrong = phi[[3, 0, 1, 2]]
    d = [torch.sigmoid(each) for each in (a(x, phi), a(s, phi), a(x, wrong))]
    wanted = -d[0].log().mean() - 0.5 * (1 - d[1]).log().mean() - 0.5 * (1 - d[2]).log().mean()
    torch.testing.assert_close(model.loss(names[0], one, seeded())[0], wanted)
    torch.testing.assert_close(model.loss(names[1], one, seeded())[0], -d[1].log().mean() + 0.3 * kl)


def test_stage_2_leaves_stage_1_and_the_embedding_as_they_are() -> None:
    model, one = made(), batch()
    for player in ("second_judge", "second"):
        loss, _ = model.loss(player, one, seeded())
        model.zero_grad()
        loss.backward()
        for name in ("first", "first_judge", "embedding"):
            assert all(p.grad is None for p in getattr(model, name).parameters())


def test_samples_are_enlarged_small_pictures_until_stage_2_begins() -> None:
    model, given = made().eval(), batch().given
    first = model.sample(4, given=given, generator=seeded())
    blocks = first.view(4, 3, 8, 2, 8, 2)
    assert (blocks == blocks[:, :, :, :1, :, :1]).all()
    model.enter_stage(model.stages()[2], seeded())
    second = model.sample(4, given=given, generator=seeded())
    blocks = second.view(4, 3, 8, 2, 8, 2)
    assert not (blocks == blocks[:, :, :, :1, :, :1]).all()
    changed = copy.deepcopy(model)
    with torch.no_grad():  # stage 2 sees the small picture
        changed.first.net[1].conv.bias += 1.0
    assert not torch.equal(changed.sample(4, given=given, generator=seeded()), second)


def test_the_energy_score_by_hand_and_proper() -> None:
    x, a, b = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]])
    near = (9 + 9) ** 0.5
    assert float(energy_score(x, a, b)) == pytest.approx((5 + 1) / 2 - near / 2)
    g = seeded()
    data = torch.randn(4000, 2, generator=g)

    def score(scale: float, shift: float) -> Tensor:
        draws = [scale * torch.randn(4000, 2, generator=g) + shift for _ in range(2)]
        return energy_score(data, draws[0], draws[1])

    right = score(1.0, 0.0)
    for scale, shift in ((1.0, 0.5), (2.0, 0.0), (0.3, 0.0)):
        gain = score(scale, shift) - right
        assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5


def test_pictures_fit_their_captions_above_chance_in_both_stages() -> None:
    model = made(embedding=8, channels=8, judge_channels=8, latent=4, condition=4, kl_weight=0.01)
    found = learn(model, {"embedding": 30, "first": 110, "second": 60})
    for stage in ("first", "second"):
        for factor in (0, 1):
            assert found[stage][factor] > chance(factor, 4), stage


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (DataSpec((3, 16, 16), "discrete", levels=256), {}, "Every picture needs a caption"),
        (DataSpec((3, 16, 16), "discrete", levels=256, given=HALVES), {}, "tokens of words"),
        (DataSpec((4,), "real", given=CAPTIONS), {}, "must be square images"),
        (HALVES, {"scale": 3}, "model.scale=3 must be a power of two"),
        (HALVES, {"scale": 4}, "leaves small pictures of 8 pixels or more; the data's side is 16"),
        (HALVES, {"first_share": 0.9}, "leave nothing of the budget for stage 2"),
        (HALVES, {"kl_weight": -1.0}, "kl_weight=-1.0"),
        (HALVES, {"latent": 0}, "latent=0"),
    ],
)
def test_bad_input_is_explained(spec: DataSpec, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        StackGan(spec, **{**SMALL, **arguments})


def test_without_a_caption_nothing_is_drawn() -> None:
    with pytest.raises(UserError, match="pass given="):
        made().sample(2)
