"""CycleGAN: losses by hand, the pool, patches of 70 pixels, identity networks, and digits that stay what they are."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Generator, nn

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.cyclegan import CycleGan
from dgmbench.nn.adversarial_translation import ImagePool, PatchDiscriminator

PAIRS = DataSpec((1, 8, 8), "discrete", levels=17, num_classes=2)
FACTORS = DataSpec((1, 8, 8), "discrete", levels=17, num_classes=6, factors=(("class", 3), ("domain", 2)))


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def made(spec: DataSpec = PAIRS, **arguments: object) -> CycleGan:
    torch.manual_seed(0)
    settings = {"channels": 3, "blocks": 1, "halvings": 1, "patch_channels": 3, "layers": 1} | arguments
    return CycleGan(spec, **settings)  # type: ignore[arg-type]


def batch(y: list[int]) -> Batch:
    return Batch(torch.randint(17, (len(y), 1, 8, 8), generator=seeded()).to(torch.uint8), torch.tensor(y))


def test_losses_by_hand() -> None:
    """Two images of one domain and three of the other: each domain's means count alike."""
    model, one = made(cycle=7.0, identity=0.3), batch([0, 1, 1, 0, 1])
    x = one.x / 8.0 - 1
    data, (g0, g1), (d0, d1) = (x[[0, 3]], x[[1, 2, 4]]), model.generators, model.discriminators
    fakes = g0(data[1]), g1(data[0])
    wanted = (d0(fakes[0]) - 1).square().mean() + (d1(fakes[1]) - 1).square().mean()
    wanted = wanted + 7.0 * ((g0(fakes[1]) - data[0]).abs().mean() + (g1(fakes[0]) - data[1]).abs().mean())
    wanted = wanted + 7.0 * 0.3 * ((g0(data[0]) - data[0]).abs().mean() + (g1(data[1]) - data[1]).abs().mean())
    torch.testing.assert_close(model.loss("generator", one, seeded())[0], wanted)
    # the pools are empty: the new images themselves are shown
    wanted = sum(
        0.5 * (d(real) - 1).square().mean() + 0.5 * d(fake).square().mean()
        for d, real, fake in zip((d0, d1), data, fakes, strict=True)
    )
    torch.testing.assert_close(model.loss("discriminator", one, seeded())[0], wanted)


def test_discriminators_see_what_the_pool_shows() -> None:
    model, one = made(pool=3), batch([0, 1] * 3)
    model.loss("discriminator", one, seeded())
    model.after_step("discriminator", one, seeded())
    before = [pool.images.clone() for pool in model.pools]
    assert [int(pool.stored) for pool in model.pools] == [3, 3]
    torch.testing.assert_close(before[0], model.generators[0](one.x[1::2] / 8.0 - 1))
    later = batch([1, 0] * 3)
    data = [later.x[1::2] / 8.0 - 1, later.x[::2] / 8.0 - 1]
    g = seeded(5)
    shown = [copy.deepcopy(pool)(fake, g) for pool, fake in zip(model.pools, model.exchanged(data), strict=True)]
    judged = zip(model.discriminators, data, shown, strict=True)
    wanted = sum(0.5 * (d(real) - 1).square().mean() + 0.5 * d(fake).square().mean() for d, real, fake in judged)
    torch.testing.assert_close(model.loss("discriminator", later, seeded(5))[0], wanted)
    assert all(torch.equal(pool.images, images) for pool, images in zip(model.pools, before, strict=True))


def one_by_one(stored: list[float], size: int, new: list[float], draws: Iterator[list[float]]) -> list[float]:
    """The pool as published: one image after another; the numbers returned are shown, and ``stored`` changes."""
    shown = []
    for image, (swap, place) in zip(new, draws, strict=True):
        if len(stored) < size:
            stored.append(image)
            shown.append(image)
        elif swap < 0.5:
            shown.append(stored[int(place * size)])
            stored[int(place * size)] = image
        else:
            shown.append(image)
    return shown


def test_the_pool_is_the_published_one_and_shows_older_images_half_of_the_time() -> None:
    pool, stored, old, number = ImagePool(DataSpec((1,), "real"), 5), [], 0, 0
    for update in range(60):
        new = torch.arange(7.0)[:, None] + 7 * update
        shown = pool(new, seeded(update))
        assert torch.equal(pool(new, seeded(update)), shown)  # nothing has changed yet
        pool.absorb()
        draws = iter(torch.rand(7, 2, generator=seeded(update)).tolist())
        assert shown[:, 0].tolist() == one_by_one(stored, 5, new[:, 0].tolist(), draws)
        assert pool.images[: len(stored), 0].tolist() == stored
        if update:
            old += int((shown != new).sum())
            number += 7
    assert abs(old / number - 0.5) < 4 * 0.5 / number**0.5
    nothing = ImagePool(DataSpec((1,), "real"), 0)
    assert torch.equal(nothing(new, seeded()), new)


def test_an_output_of_three_layers_sees_70_pixels() -> None:
    """By perturbation, with the norms taken out, which tie all pixels of an image."""
    torch.manual_seed(0)
    net = PatchDiscriminator(DataSpec((1, 142, 142), "real"), channels=1, layers=3)
    for k, layer in enumerate(net.net):
        if isinstance(layer, nn.InstanceNorm2d):
            net.net[k] = nn.Identity()
        elif isinstance(layer, nn.Conv2d):
            nn.init.uniform_(layer.weight, 0.1, 0.2)
    x = torch.rand(1, 1, 142, 142)
    base = net(x)
    i, j = base.shape[2] // 2, base.shape[3] // 2

    def seen(row: int) -> bool:
        moved = x.clone()
        moved[0, 0, row] += 100.0
        return not torch.equal(net(moved)[0, 0, i, j], base[0, 0, i, j])

    rows = [row for row in range(142) if seen(row)]
    assert rows == list(range(rows[0], rows[0] + 70))


def test_identity_networks_have_no_cycle_and_no_identity_loss() -> None:
    model = made()
    model.generators = nn.ModuleList([nn.Identity(), nn.Identity()])
    _, logs = model.loss("generator", batch([0, 1, 1, 0]), seeded())
    assert logs["cycle"] == 0
    assert logs["identity"] == 0


def test_each_image_goes_to_the_domain_asked_for() -> None:
    model, x = made(FACTORS), batch([0] * 4).x
    assert model.domain == "domain"
    assert model.batch_policy() == BatchPolicy(balanced="domain")
    moved = model.translate(x, torch.tensor([1, 0, 0, 1]))
    for k, rows in ((0, [1, 2]), (1, [0, 3])):
        torch.testing.assert_close(moved[rows], model.scaling.inverse(model.generators[k](x[rows] / 8.0 - 1)))
    assert made().domain is None


def test_translated_digits_stay_what_they_are_and_the_cycle_error_falls() -> None:
    """Small digits and their negatives, never seen in pairs; classes by a classifier that has seen real digits only."""
    data = load_digits()
    x, domain = torch.tensor(data.images).round().byte()[:, None], torch.arange(len(data.target)) % 2
    classifier = SVC(gamma=0.001).fit(data.data[:1000], data.target[:1000])
    held, wanted = x[1000:], data.target[1000:]
    assert np.mean(classifier.predict(held.flatten(1).numpy()) == wanted) > 0.95
    positive = (domain == 0)[:, None, None, None]
    x = torch.where(positive, x, 16 - x)
    model = made(channels=8, halvings=0, patch_channels=12, cycle=2.0, identity=0.0)
    players, g, errors = model.players(), seeded(), []
    optimisers = {name: torch.optim.Adam(ps, lr=3e-3, betas=(0.5, 0.999)) for name, ps in players.items()}
    for update in range(111):
        if update in (10, 110):
            there = model.translate(x[1000:], 1 - domain[1000:])
            back = model.translate(there, domain[1000:])
            errors.append(float((back.float() - x[1000:].float()).abs().mean()) / 16)
        chosen = 2 * torch.randint(500, (16,), generator=g) + torch.arange(16) % 2
        one = Batch(x[chosen], domain[chosen])
        for name, optimiser in optimisers.items():
            loss = model.loss(name, one, g)[0]
            for parameter, gradient in zip(players[name], torch.autograd.grad(loss, players[name]), strict=True):
                parameter.grad = gradient
            optimiser.step()
            model.after_step(name, one, g)
    assert errors[1] < 0.7 * errors[0]
    upright = torch.where(positive[1000:], 16 - there, there)
    assert np.mean(classifier.predict(upright.flatten(1).numpy()) == wanted) > 0.8


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (DataSpec((1, 8, 8), "discrete", levels=17), {}, "at least two domains"),
        (DataSpec((1, 8, 8), "discrete", levels=17, num_classes=3), {}, "two domains, and these data have 3"),
        (DataSpec((1, 10, 8), "discrete", levels=17, num_classes=2), {"halvings": 2}, "multiples of 4"),
        (DataSpec((64,), "discrete", levels=17, num_classes=2), {}, "takes images"),
        (PAIRS, {"layers": 3}, "model.layers"),
        (PAIRS, {"blocks": 0}, "blocks"),
        (PAIRS, {"pool": -1}, "pool"),
    ],
)
def test_bad_input_is_explained(spec: DataSpec, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(spec, **arguments)


def test_a_batch_of_one_domain_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size"):
        made().loss("generator", batch([1, 1]), seeded())


def test_loss_changes_no_state() -> None:
    model, one = made(), batch([0, 1] * 2)
    before = copy.deepcopy(model.state_dict())
    for player in model.players():
        assert torch.equal(model.loss(player, one, seeded())[0], model.loss(player, one, seeded())[0])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
