"""SinGAN: the games by hand, sigma, the fixed map, scales that stay as they are, and pictures of any size."""

import copy
import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Facts, Stage, player_parameters
from dgmbench.models.gan.singan import SinGan
from dgmbench.nn.super_resolution import resized

from .alphabet import seeded

SPEC = DataSpec((2, 12, 16), "discrete", levels=256)
STEPS = 50


def picture() -> Tensor:
    """Bright above, dark below, with a pillar: raw (1, 2, 12, 16)."""
    x = torch.linspace(250, 10, 12).view(1, 1, 12, 1).expand(1, 2, 12, 16).clone()
    x[:, 1, :, 5:8] = 240
    x[:, 0, 4:7, 11:14] = 5
    return x.to(torch.uint8)


X = picture()


def made(spec: DataSpec = SPEC, **arguments: object) -> SinGan:
    torch.manual_seed(0)
    model = SinGan(spec, **({"smallest": 6, "layers": 2, "channels": 6} | arguments))  # type: ignore[arg-type]
    if spec.shape == SPEC.shape and model.index is None:
        model.initialise(Batch(X), seeded())
    return model


def enter(model: SinGan, stage: Stage) -> None:
    with torch.no_grad():
        model.enter_stage(stage, seeded())


def trained(model: SinGan, stages: tuple[Stage, ...], steps: int = STEPS) -> Iterator[Stage]:
    """Train the stages one after another and yield each at its end."""
    for stage in stages:
        enter(model, stage)
        own = player_parameters(model)
        optimisers = {name: torch.optim.Adam(own[name], lr=1e-2, betas=(0.5, 0.999)) for name in stage.players}
        g = seeded()
        for _ in range(steps):
            for player, optimiser in optimisers.items():
                loss, _ = model.loss(player, Batch(X), g)
                optimiser.zero_grad()
                loss.backward(inputs=own[player])
                optimiser.step()
        yield stage


@pytest.fixture(scope="module")
def run() -> tuple[SinGan, list[dict[str, Tensor]]]:
    """A short training, and its state at the end of every stage."""
    model = made(channels=12, reconstruction_weight=50.0)
    return model, [copy.deepcopy(model.state_dict()) for _ in trained(model, model.stages())]


def scaled(x: Tensor) -> Tensor:
    return x.float() / 127.5 - 1


def reals(sizes: list[tuple[int, int]]) -> list[Tensor]:
    return [resized(scaled(X), size) for size in sizes]


def by_hand(model: SinGan, noise: list[Tensor]) -> list[Tensor]:
    """The pyramid of the module's first formula: zeros once around the noise and what is there, then no padding."""
    images: list[Tensor] = []
    for k, z in enumerate(noise):
        below = resized(images[-1], z.shape[2:]) if k else torch.zeros_like(z)
        h = F.pad(z + below, [model.generators[k].layers] * 4)  # type: ignore[arg-type]
        images.append(below + torch.tanh(model.generators[k].net(h)))
    return images


def test_the_scales_end_with_the_picture_and_a_stage_is_a_scale() -> None:
    model = made()
    assert model.sizes == [(6, 8), (8, 11), (12, 16)], "two steps of 1/sqrt(2), nearer to 0.75 than one or three"
    assert [stage.name for stage in model.stages()] == ["scale_0", "scale_1", "scale_2"]
    assert [stage.players for stage in model.stages()] == [(f"critic_{k}", f"generator_{k}") for k in range(3)]
    assert [stage.share for stage in model.stages()] == [1, 1, 1]
    assert [stage.share for stage in made(pace=0.5).stages()] == [1, 0.5, 0.25]
    paper = SinGan(DataSpec((3, 250, 188), "discrete", levels=256), channels=1)
    assert paper.sizes[0] == (33, 25)
    for (h, w), (i, j) in pairwise(paper.sizes):
        assert abs(h / i - 0.75) < 0.03
        assert abs(w / j - 0.75) < 0.03
    maps = [net.net[0].out_channels for net in made(channels=3, widen=2).generators]  # type: ignore[union-attr,index]
    assert maps == [3, 3, 6]


@pytest.mark.parametrize("k", [0, 1, 2])
def test_the_games_by_hand_at_every_scale(k: int) -> None:
    model = made(penalty_weight=0.3, reconstruction_weight=7.0)
    model.sigma.copy_(torch.tensor([1.0, 0.3, 0.2]))
    real, n = reals(model.sizes)[k], 3
    g = seeded()
    noise = [model.sigma[i] * torch.randn(n, 2, *size, generator=g) for i, size in enumerate(model.sizes[: k + 1])]
    fake = by_hand(model, noise)[-1]

    def judge(x: Tensor) -> Tensor:
        outputs = model.critics[k].net(x)
        assert outputs.shape[1:] == (1, x.shape[2] - 4, x.shape[3] - 4), "one for each patch of five pixels"
        return outputs.mean((1, 2, 3))

    mix = torch.rand(n, 1, 1, 1, generator=g)
    point = (mix * real + (1 - mix) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(judge(point).sum(), point)
    steepest = slope.square().sum((1, 2, 3)).sqrt() * math.sqrt(real.shape[2] * real.shape[3])
    wanted = judge(fake).mean() - judge(real).mean() + 0.3 * (steepest - 1).square().mean()
    batch = Batch(X.expand(n, -1, -1, -1))
    torch.testing.assert_close(model.loss(f"critic_{k}", batch, seeded())[0], wanted)
    fixed = by_hand(model, [model.fixed, *(torch.zeros(1, 2, *size) for size in model.sizes[1 : k + 1])])[-1]
    wanted = -judge(fake).mean() + 7 * (fixed - real).square().mean()
    torch.testing.assert_close(model.loss(f"generator_{k}", batch, seeded())[0], wanted)


def test_sigma_is_a_tenth_of_the_enlarged_reconstructions_error_and_networks_start_from_the_scale_below() -> None:
    model = made()
    assert model.sigma[0] == 1
    real = reals(model.sizes)
    for k, stage in enumerate(model.stages()):
        enter(model, stage)
        assert int(model.level) == k
        if k == 0:
            continue
        fixed = by_hand(model, [model.fixed, *(torch.zeros(1, 2, *size) for size in model.sizes[1:k])])[-1]
        error = (resized(fixed, model.sizes[k]) - real[k]).square().mean().sqrt()
        torch.testing.assert_close(model.sigma[k], 0.1 * error)
        for nets in (model.generators, model.critics):
            pairs = zip(nets[k].parameters(), nets[k - 1].parameters(), strict=True)
            assert all(torch.equal(own, below) for own, below in pairs)
    assert torch.equal(made().fixed, model.fixed), "z* is drawn once"
    wider = made(widen=1)
    before = copy.deepcopy(wider.generators[1].state_dict())
    enter(wider, wider.stages()[1])
    assert all(torch.equal(before[name], value) for name, value in wider.generators[1].state_dict().items())


def test_the_fixed_map_without_noise_reconstructs_the_picture(run: tuple[SinGan, list[dict[str, Tensor]]]) -> None:
    model, _ = run
    noise = [model.fixed, *(torch.zeros(1, 2, *size) for size in model.sizes[1:])]
    again = model.reconstruct(X.expand(2, -1, -1, -1))
    by_formula = (by_hand(model, noise)[-1].clamp(-1, 1) + 1) * 127.5
    torch.testing.assert_close(again, by_formula.detach().expand(2, -1, -1, -1))
    error = (again[:1] - X).square().mean()
    assert error < 0.05 * (X - X.float().mean()).square().mean()
    other = model.fixed.roll(3, 3)
    elsewhere = (by_hand(model, [other, *noise[1:]])[-1].clamp(-1, 1) + 1) * 127.5
    assert (elsewhere - X).square().mean() > 3 * error, "another map is another picture"
    assert model.sample(4, generator=seeded()).float().std(0).mean() > 2, "and noise makes samples differ"


def test_scales_below_stay_bit_for_bit_while_a_later_one_learns(run: tuple[SinGan, list[dict[str, Tensor]]]) -> None:
    _, states = run
    for k, (before, after) in enumerate(pairwise(states), 1):
        for name, value in after.items():
            part, _, rest = name.partition(".")
            same = torch.equal(before[name], value)
            if part in ("generators", "critics"):
                scale = int(rest.split(".")[0])
                assert same == (scale != k), name
            elif part in ("picture", "fixed"):
                assert same
    assert torch.equal(states[0]["sigma"][:1], states[-1]["sigma"][:1])


def test_a_training_that_stops_at_a_stages_end_goes_on_as_if_it_had_not() -> None:
    whole, parts = made(), made()
    assert len(list(trained(whole, whole.stages(), 3))) == 3
    list(trained(parts, parts.stages()[:1], 3))
    again = SinGan(SPEC, smallest=6, layers=2, channels=6)
    again.load_state_dict(parts.state_dict())
    again.prepare(Facts(1, {}))
    list(trained(again, again.stages()[1:], 3))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_generator_is_the_same_function_everywhere_but_at_the_borders() -> None:
    net, g = made().generators[0], seeded()
    noise, below = torch.randn(1, 2, 20, 23, generator=g), torch.randn(1, 2, 20, 23, generator=g)
    moved = net(noise.roll((3, 5), (2, 3)), below.roll((3, 5), (2, 3)))
    torch.testing.assert_close(moved[..., 5:-2, 7:-2], net(noise, below).roll((3, 5), (2, 3))[..., 5:-2, 7:-2])
    changed = noise.clone()
    changed[..., 10, 10] += 1
    rows, columns = (net(changed, below) - net(noise, below)).abs().sum((0, 1)).nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 12, 8, 12), "five pixels see one"


def test_samples_have_the_size_that_is_asked_for(run: tuple[SinGan, list[dict[str, Tensor]]]) -> None:
    model, _ = run
    for size in ((12, 16), (12, 32), (25, 17), (10, 50)):
        x = model.sample_sized(3, size, generator=seeded())
        assert x.shape == (3, 2, *size)
        assert x.dtype == torch.uint8
    assert torch.equal(model.sample(3, generator=seeded()), model.sample_sized(3, (12, 16), generator=seeded()))
    with pytest.raises(UserError, match=r"size=\[12,6\] is too small: .* from about \[10, 10\] on"):
        model.sample_sized(1, (12, 6))


def test_a_wider_picture_is_the_same_up_to_where_its_border_would_be_seen(
    run: tuple[SinGan, list[dict[str, Tensor]]],
) -> None:
    """Equal noise on the left halves: every scale sees two pixels of the one below, more where that is smaller."""
    model, g = run[0], seeded()
    narrow = [torch.randn(1, 2, h, 2 * w, generator=g) for h, w in model.sizes]
    wide = [torch.cat([z, torch.randn(z.shape, generator=g)], 3) for z in narrow]
    with torch.no_grad():
        a, b = (model.made(noise)[-1] for noise in (narrow, wide))
    same = 32 - 16  # (2 + 2) * 2 of the first, (2 + 2) * 1.45 of the second, 2 of the last
    torch.testing.assert_close(a[..., :same], b[..., :same], rtol=0, atol=1e-5)
    assert (a[..., -2:] - b[..., 30:32]).abs().max() > 1e-3


@pytest.mark.parametrize("level", [0, 2])
def test_growth_and_starts_from_the_picture(level: int, run: tuple[SinGan, list[dict[str, Tensor]]]) -> None:
    model = copy.deepcopy(run[0])
    model.level.fill_(level)
    steps = model.growth(3, generator=seeded())
    assert steps.shape == (3, level + 1, 2, 12, 16)
    assert torch.equal(steps[:, -1], model.sample(3, generator=seeded()))
    model.sigma.zero_()
    panels = model.panels(Batch(X.expand(2, -1, -1, -1)), generator=seeded())
    assert panels.shape == (2, 3 + level, 2, 12, 16)
    assert torch.equal(panels[:, 0], X.expand(2, -1, -1, -1))
    assert torch.equal(panels[0, 1], model.reconstruct(X)[0].round().to(torch.uint8))
    if level:
        real, zeros = reals(model.sizes), torch.zeros(1, 2, 12, 16)
        last = model.generators[2](zeros, resized(real[1], (12, 16)))
        assert torch.equal(panels[:1, 2], model.scaling.inverse(last.detach()))
        middle = model.generators[1](zeros[..., :8, :11], resized(real[0], (8, 11)))
        last = model.generators[2](zeros, resized(middle, (12, 16)))
        assert torch.equal(panels[1:, 3], model.scaling.inverse(last.detach()))


def test_one_picture_of_several_is_chosen_by_its_number_and_never_by_chance() -> None:
    several = torch.cat([X.flip(2), X, X.flip(3)])
    model = made(index=1)
    model.prepare(Facts(3, {}))
    model.initialise(Batch(several), seeded())
    torch.testing.assert_close(model.picture, scaled(X))
    with pytest.raises(UserError, match=r"one picture, and these data have 3 .* model\.index=0"):
        made().prepare(Facts(3, {}))
    with pytest.raises(UserError, match=r"model\.index=3 must be less than 3"):
        made(index=3).prepare(Facts(3, {}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"smallest": 4}, r"model.smallest=4 must be from 5 pixels, what 2 layers see, to 12"),
        ({"smallest": 13}, r"model.smallest=13 must be from 5"),
        ({"pace": 0.0}, "pace=0.0 must be more than 0"),
        ({"ratio": 1.0}, "ratio=1.0 must be more than 0 and less than 1"),
        ({"layers": 0}, "layers=0"),
        ({"channels": 0}, "channels=0"),
        ({"widen": 0}, "widen=0"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"index": -1}, "index=-1"),
        ({"penalty_weight": -1.0}, "penalty_weight"),
        ({"loss": "relativistic_average"}, "looks at data too"),
        ({"spec": DataSpec((12,), "real")}, "singan takes images"),
    ],
)
def test_bad_input_is_explained(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**arguments)  # type: ignore[arg-type]


def test_labels_are_refused() -> None:
    with pytest.raises(UserError, match="no classes"):
        made().sample(2, torch.zeros(2, dtype=torch.long))
