"""TP-GAN: every term of the loss by hand, paths that see one landmark, and frontal views nearer than the mean one."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Generator
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.tp_gan import TpGan, asymmetry, total_variation
from dgmbench.nn.poses import located

from .pairs import FRONTAL, PAIRS, pairs


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def made(spec: DataSpec = FRONTAL, **arguments: object) -> TpGan:
    torch.manual_seed(0)
    settings = {"channels": 4, "halvings": 1, "code": 8, "patch": 6, "recogniser_channels": 3, "patch_channels": 3}
    return TpGan(spec, **(settings | {"layers": 1} | arguments))  # type: ignore[arg-type]


def test_symmetry_and_total_variation_by_hand() -> None:
    x = torch.tensor([[[[1.0, 4.0, 2.0], [0.0, 0.0, 5.0]]], [[[1.0, 7.0, 1.0], [2.0, 3.0, 2.0]]]])
    # rows: |1 - 2| twice and |4 - 4|; |0 - 5| twice; the second picture is its own mirror image
    assert asymmetry(x).tolist() == pytest.approx([(1 + 0 + 1 + 5 + 0 + 5) / 6, 0.0])
    across = 3 + 2 + 0 + 5, 6 + 6 + 1 + 1
    down = 1 + 4 + 3, 1 + 4 + 1
    assert total_variation(x).tolist() == pytest.approx([(across[k] + down[k]) / 6 for k in (0, 1)])
    rows = torch.rand(1, 2, 4, 5, generator=seeded())
    neighbours = [pair for plane in rows[0] for pair in (*pairwise(plane), *pairwise(plane.T))]
    total = sum(float((a - b).abs().sum()) for a, b in neighbours)
    assert float(total_variation(rows)) == pytest.approx(total / 40)


def test_the_generators_loss_is_the_weighted_sum_of_its_six_terms() -> None:
    weights = {"symmetry": 0.7, "adversarial": 0.5, "identity": 0.2, "variation": 0.3, "encoder": 0.4}
    model, batch = made(**weights), pairs(6, frontal=True)
    batch = batch._replace(y=torch.tensor([0, 3, -1, 8, 1, 2]))
    x, source = 2.0 * batch.x - 1, 2 * batch.given[:, :1] - 1
    model.initialise(batch, seeded())
    assert (model.transferred(model.poses(batch.given)) - model.frontal).abs().max() < 0.1  # near which it starts
    model.generator.fused[-1].weight.data.normal_(generator=seeded())
    change, scores = model.generator(source, located(batch.given[:, 1:4]), model.places)
    view = model.frontal + change
    known = torch.tensor([0, 1, 3, 4, 5])
    (ours, theirs), verdict = (model.recogniser(each)[1] for each in (view, x)), model.discriminator(view)
    wanted = (
        (view - x).abs().mean()
        + 0.7 * (view - view.flip(3)).abs().mean()
        + 0.5 * F.softplus(-verdict).mean()
        + 0.2 * sum((a - b).abs().mean() for a, b in zip(ours, theirs, strict=True))
        + 0.3 * total_variation(view).mean()
        + 0.4 * F.cross_entropy(scores[known], batch.y[known])
    )
    torch.testing.assert_close(model.loss("generator", batch, seeded())[0], wanted)
    wanted = F.softplus(-model.discriminator(x)).mean() + F.softplus(verdict).mean()
    torch.testing.assert_close(model.loss("discriminator", batch, seeded())[0], wanted)
    wanted = sum(F.cross_entropy(model.recogniser(each)[0][known], batch.y[known]) for each in (x, source))
    torch.testing.assert_close(model.loss("recogniser", batch, seeded())[0], wanted)
    assert [stage.players for stage in model.stages()] == [("recogniser",), ("discriminator", "generator")]


def test_a_local_path_sees_its_landmark_and_puts_it_in_its_place() -> None:
    """With the global path silent, what lies around the landmarks of the source moves the view around their places."""
    model, batch = made(patch=4), pairs(1, frontal=True)
    net, landmarks = model.generator, torch.tensor([[[3.0, 3.0], [12.0, 4.0], [8.0, 13.0]]])
    places = torch.tensor([[12.0, 12.0], [4.0, 12.0], [8.0, 3.0]])
    for parameter in net.up.last.parameters():
        parameter.data.zero_()
    net.fused[-1].weight.data.normal_(generator=seeded())
    x = 2 * batch.given[:, :1] - 1
    before = net(x, landmarks, places)[0]
    for changed, moved in (((3, 3), (12, 12)), ((8, 7), None)):
        other = x.clone()
        other[..., changed[1], changed[0]] += 1
        rows, columns = ((net(other, landmarks, places)[0] - before)[0, 0].abs() > 1e-6).nonzero().T
        if moved is None:
            assert not len(rows)
        else:
            assert len(rows)
            assert (rows - moved[1]).abs().max() <= 5
            assert (columns - moved[0]).abs().max() <= 5


def test_the_mean_frontal_image_and_the_places_are_those_of_the_training_set() -> None:
    model, batch = made(), pairs(50, frontal=True)
    model.initialise(batch, seeded())
    torch.testing.assert_close(model.frontal, 2 * batch.x.float().mean(0) - 1)
    torch.testing.assert_close(model.places, located(batch.given[:, 4:]).mean(0))
    found = model.held_out(batch)
    assert list(found) == list(model.objectives())
    plain = (batch.x - batch.x.float().mean(0)).abs().mean((1, 2, 3))
    torch.testing.assert_close(found["mean_frontal_error"], plain)


def test_the_frontal_view_is_nearer_than_the_mean_frontal_image() -> None:
    """From pictures that it has not seen, beyond four standard errors of the paired differences."""
    model, g = made(channels=8, halvings=2, code=64, symmetry=0.01, encoder=0.3), seeded()
    train, held = pairs(1500, frontal=True), pairs(200, frontal=True, split="test")
    model.initialise(train, g)
    optimisers = {
        player: torch.optim.Adam(own, lr=lr)
        for (player, own), lr in zip(model.players().items(), (3e-3, 3e-4, 4e-3), strict=True)
    }
    for step in range(150):
        rows = torch.randint(len(train.x), (8,), generator=g)
        batch = Batch(train.x[rows], train.y[rows], given=train.given[rows])
        for player in model.stages()[step >= 40].players:
            optimisers[player].zero_grad()
            model.loss(player, batch, g)[0].backward()
            optimisers[player].step()
    found = model.held_out(held)
    gain = -found["target_error_over_mean_frontal"]
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5
    others = torch.randperm(len(held.x), generator=g)
    loss = model.held_out(held._replace(given=held.given[others]))["target_error"] - found["target_error"]
    assert loss.mean() > 4 * loss.std() / len(loss) ** 0.5  # sources of others do not serve


def test_loss_changes_no_state() -> None:
    model, batch = made(), pairs(4, frontal=True)
    before = copy.deepcopy(model.state_dict())
    for player in model.players():
        assert torch.equal(model.loss(player, batch, seeded())[0], model.loss(player, batch, seeded())[0])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (replace(FRONTAL, given=None), {}, "data=shapes_poses"),
        (PAIRS, {}, "needs data with labels"),
        (FRONTAL, {"recognise": 1.0}, r"model.recognise=1.0 must be a share of the budget between 0 and 1"),
        (FRONTAL, {"symmetry": -1.0}, "symmetry"),
    ],
)
def test_bad_input_is_explained(spec: DataSpec, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(spec, **arguments)
