"""DR-GAN: losses and fusion by hand, and turned pictures whose pose and identity are right, seen from outside."""

import copy

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.policy import BatchPolicy, places
from dgmbench.data.shapes import render
from dgmbench.data.shapes_turned import SIZES
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.dr_gan import DrGan, fused

FACTORS = (("tone", 2), ("angle", 3), ("row", 2))
SPEC = DataSpec((1, 4, 4), "binary", num_classes=12, factors=FACTORS)


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def made(spec: DataSpec = SPEC, **arguments: object) -> DrGan:
    torch.manual_seed(0)
    settings = {"net": "mlp", "hidden_sizes": (5,), "code": 3, "noise": 2} | arguments
    return DrGan(spec, **settings)  # type: ignore[arg-type]


def pictures(y: list[int]) -> Batch:
    return Batch(torch.randint(2, (len(y), 1, 4, 4), generator=seeded()).to(torch.uint8), torch.tensor(y))


def nats(scores: Tensor, y: Tensor) -> Tensor:
    return -scores.log_softmax(1)[torch.arange(len(y)), y].mean()


def test_both_losses_by_hand() -> None:
    """Six pictures of three identities and one of none: nine are made, each in a pose of its own."""
    model = made(gamma=0.5)
    batch = pictures([0, 2, 4, -1, 1, 3, 10])  # (tone, angle, row): the first three differ in the angle alone
    x = (batch.x[[0, 1, 2, 4, 5, 6]].float() * 2 - 1).requires_grad_()
    own, pose = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 0, 1, 2])
    g = seeded()
    to = torch.randint(3, (9,), generator=g)
    z = torch.randn(9, 2, generator=g).float()
    outputs = model.encoder(x.detach())
    f, w = outputs[:, :3], 1 / (1 + (-outputs[:, 3:]).exp())
    together = [(w[i] * f[i]).sum(0) / w[i].sum() for i in ([0, 1, 2], [3, 4], [5])]
    codes = torch.cat([f, torch.stack(together)])
    there = model.decoder(torch.cat([codes, z], 1), torch.eye(3).float()[to])
    real, fake = model.discriminator(x), model.discriminator(there)

    wanted = nats(fake[:, :5], torch.cat([own, torch.tensor([0, 1, 2])])) + nats(fake[:, 5:], to)
    found = model.loss("generator", batch, seeded())[0]
    torch.testing.assert_close(found, wanted)
    parameters = model.players()["generator"]
    ours = torch.autograd.grad(found, parameters)
    for mine, theirs in zip(ours, torch.autograd.grad(wanted, parameters, retain_graph=True), strict=True):
        torch.testing.assert_close(mine, theirs)

    odds = real[:, :4].exp().sum(1).log() - real[:, 4]
    (slope,) = torch.autograd.grad(odds.sum(), x, create_graph=True)
    wanted = nats(real[:, :5], own) + nats(real[:, 5:], pose) + nats(fake[:, :5], torch.full((9,), 4))
    wanted = wanted + 0.25 * slope.flatten(1).square().sum(1).mean()
    found = model.loss("discriminator", batch, seeded())[0]
    torch.testing.assert_close(found, wanted)
    parameters = model.players()["discriminator"]
    for mine, theirs in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_the_paper_has_no_penalty_and_losses_reach_their_player_alone() -> None:
    model, batch = made(), pictures([0, 2, 1, 3])
    assert "penalty" not in model.loss("discriminator", batch, seeded())[1]
    loss = model.loss("discriminator", batch, seeded())[0]
    reached = torch.autograd.grad(loss, model.players()["generator"], allow_unused=True)
    assert all(gradient is None for gradient in reached)
    names = [name for name, parameter in model.named_parameters() if not name.startswith("discriminator")]
    assert len(model.players()["generator"]) == len(names)
    reached = torch.autograd.grad(model.loss("generator", batch, seeded())[0], model.players()["generator"])
    assert all(bool(gradient.any()) for gradient in reached)


def test_one_picture_gives_the_single_image_model_exactly_and_several_their_weighted_mean() -> None:
    model, x = made(), pictures([0] * 6).x
    model.eval()
    to = torch.arange(6) % 3
    alone = model.translate(x, to, generator=seeded())
    assert torch.equal(alone, model.together(x, torch.arange(6), to, generator=seeded()))
    codes, weight = model.encoded(model.scaling(x))
    assert ((weight > 0) & (weight < 1)).all()
    assert torch.equal(fused(codes, weight, torch.arange(6)), codes)
    assert torch.equal(fused(codes, weight * 1e-3, torch.arange(6)), codes)
    (gradient,) = torch.autograd.grad(fused(codes, weight, torch.arange(6)).square().sum(), weight)
    assert (gradient.abs() < 1e-5).all(), "alone, a picture's weight does not matter"
    group = torch.tensor([1, 0, 1, 1, 0, 1])
    for k, members in enumerate(([1, 4], [0, 2, 3, 5])):
        by_hand = sum(weight[i] * codes[i] for i in members) / sum(weight[i] for i in members)
        torch.testing.assert_close(fused(codes, weight, group)[k], by_hand)
    order = torch.randperm(6, generator=seeded())
    torch.testing.assert_close(fused(codes[order], weight[order], group[order]), fused(codes, weight, group))


def test_panels_show_the_source_and_every_pose() -> None:
    model, batch = made(noise=1).eval(), pictures([0, 7])
    panels = model.panels(batch, generator=seeded())
    assert panels.shape == (2, 4, 1, 4, 4)
    assert torch.equal(panels[:, 0], batch.x)
    wanted = model.translate(batch.x[[0, 0, 0, 1, 1, 1]], torch.tensor([0, 1, 2] * 2), generator=seeded())
    assert torch.equal(panels[:, 1:].flatten(0, 1), wanted)


def test_identities_are_all_factors_but_the_pose() -> None:
    model = made()
    y = torch.arange(12)
    tone, angle, row = np.unravel_index(y.numpy(), (2, 3, 2))
    assert model.identity_of(y).tolist() == (2 * tone + row).tolist()
    assert model.pose_of(y).tolist() == angle.tolist()
    assert model.identity_of(torch.tensor([-1, 3])).tolist()[0] == -1
    assert (model.domain, model.poses, model.identities) == ("angle", 3, 4)
    assert made(pose="tone").identities == 6
    assert model.batch_policy() == BatchPolicy(varied=4, factor="angle")


def trained(x: Tensor, y: Tensor, spec: DataSpec, *, updates: int) -> DrGan:
    torch.manual_seed(0)
    model = DrGan(spec, net="mlp", hidden_sizes=(128, 128), code=8, noise=2, gamma=2.0)
    g, players = seeded(), model.players()
    rates = {"generator": 1e-3, "discriminator": 2e-3}
    optimisers = {name: torch.optim.Adam(ps, lr=rates[name], betas=(0.5, 0.999)) for name, ps in players.items()}
    blocks = places(model.batch_policy(), y.numpy(), spec, batch_size=24, world_size=1, seed=0)
    assert blocks is not None
    for update in range(updates):
        chosen = blocks.index(24 * update, 24 * update + 24)
        for name in players:
            loss = model.loss(name, Batch(x[chosen], y[chosen]), g)[0]
            for parameter, gradient in zip(players[name], torch.autograd.grad(loss, players[name]), strict=True):
                parameter.grad = gradient
            optimisers[name].step()
    return model.eval()


UPDATES = 250


def classifier(x: Tensor, y: Tensor, classes: int) -> nn.Module:
    """A network that has seen real pictures alone."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, classes))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(80):
        optimiser.zero_grad()
        F.cross_entropy(net(x.float()), y).backward()
        optimiser.step()
    return net


def test_turned_pictures_have_the_pose_asked_for_and_the_identity_of_their_source() -> None:
    """Three shapes at eight angles, a little out of place; what the judges and the sources show, G and D have not seen.

    Copying the source has no pose right, as all are asked for another one; guessing has 1/8 and 1/3.
    """
    spec = DataSpec((1, 16, 16), "binary", factors=(("shape", 3), ("angle", 8)))
    random = np.random.RandomState(0)
    y = torch.arange(24).repeat(54)
    place = 2.5 + random.uniform(-0.25, 0.25, (len(y), 2))
    values = np.concatenate([np.stack([y // 8, np.full(len(y), 1), y % 8], 1), place], 1)
    x = torch.from_numpy(render(values, sizes=SIZES))
    theirs, judges, sources = (slice(24 * a, 24 * b) for a, b in ((0, 20), (20, 50), (50, 54)))
    model = trained(x[theirs], y[theirs], spec, updates=UPDATES)
    of_pose, of_identity = (classifier(x[judges], each[judges], k) for each, k in ((y % 8, 8), (y // 8, 3)))
    seen, own = x[sources], y[sources]
    to = (own % 8 + torch.randint(1, 8, own.shape, generator=seeded(2))) % 8
    there = model.translate(seen, to, generator=seeded(1))
    assert share(of_pose, seen, own % 8) > 0.95, "the judges know real pictures"
    assert share(of_identity, seen, own // 8) > 0.95
    assert share(of_pose, seen, to) < 0.05, "what copying the source would have right"
    assert share(of_pose, there, to) > 0.7
    assert share(of_identity, there, own // 8) > 0.7
    # All pictures of a shape as one source, turned to every pose.
    identity, pose = torch.arange(3).repeat_interleave(8), torch.arange(8).repeat(3)
    group = torch.cat([(own // 8) * 8 + k for k in range(8)])
    together = model.together(seen.repeat(8, 1, 1, 1), group, pose, generator=seeded(1))
    assert share(of_pose, together, pose) > 0.7
    assert share(of_identity, together, identity) > 0.7


def share(net: nn.Module, x: Tensor, wanted: Tensor) -> float:
    """How many pictures are found to be what is wanted."""
    return float((net(x.float()).argmax(1) == wanted).double().mean())


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (DataSpec((1, 4, 4), "binary"), {}, "factor of the data that is model.pose, named 'angle'"),
        (SPEC, {"pose": "angel"}, "did you mean angle"),
        (DataSpec((1, 4, 4), "binary", factors=(("angle", 3), ("one", 1))), {}, "several identities"),
        (DataSpec((1, 4, 4), "binary", factors=(("angle", 1), ("row", 3))), {}, "several poses"),
        (SPEC, {"net": "dcgan"}, "square images"),
        (SPEC, {"block": 1}, "block"),
        (SPEC, {"gamma": -1.0}, "gamma"),
    ],
)
def test_bad_input_is_explained(spec: DataSpec, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(spec, **arguments)


def test_loss_changes_no_state_and_the_statistics_of_the_decoder_follow_its_own_step() -> None:
    y = [0, 2, 1, 3]
    spec = DataSpec((1, 16, 16), "binary", num_classes=12, factors=FACTORS)
    x = torch.randint(2, (4, 1, 16, 16), generator=seeded()).to(torch.uint8)
    model, batch = made(spec, net="dcgan", channels=2), Batch(x, torch.tensor(y))
    before = copy.deepcopy(model.state_dict())
    for player in model.players():
        assert torch.equal(model.loss(player, batch, seeded())[0], model.loss(player, batch, seeded())[0])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for player, moves in (("discriminator", False), ("generator", True)):
        model.loss(player, batch, seeded())
        model.after_step(player, batch, seeded())
        moved = [key for key, value in model.state_dict().items() if not torch.equal(before[key], value)]
        assert bool(moved) == moves
        assert all(key.startswith("decoder") for key in moved)
