"""StyleGAN: the game with R1 by hand, styles that are mixed and truncated, path length, groups of rates."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dgmbench.config import complete, compose
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.stylegan import StyleGan
from dgmbench.models.tasks import HasPaths, MixesStyles
from dgmbench.nn.adversarial_losses import slope_penalty
from dgmbench.runs.build import optimizer_factory

from .alphabet import seeded

SPEC = DataSpec((1, 8, 8), "discrete", levels=256)
X = torch.randint(256, (6, 1, 8, 8), generator=seeded()).to(torch.uint8)


def made(spec: DataSpec = SPEC, **arguments: object) -> StyleGan:
    torch.manual_seed(0)
    settings = {"latent": 3, "mapping": 2, "channels": 4, "capacity": 32} | arguments
    model = StyleGan(spec, **settings)  # type: ignore[arg-type]
    for layer in model.generator.styled:
        torch.nn.init.normal_(layer.strength)
    return model


def test_r1_of_a_linear_critic_is_half_gamma_times_its_squared_norm_whatever_the_data() -> None:
    w, x = torch.randn(1, 8, 8, generator=seeded()), torch.randn(5, 1, 8, 8, generator=seeded())
    w.requires_grad_()
    found = slope_penalty(lambda x: (x * w).flatten(1).sum(1) + 3, x)
    torch.testing.assert_close(found, w.square().sum().expand(5))
    (gradient,) = torch.autograd.grad(found.mean(), w)
    torch.testing.assert_close(gradient, 2 * w)
    torch.testing.assert_close(slope_penalty(lambda x: x.flatten(1).square().sum(1) / 2, x), x.square().sum((1, 2, 3)))
    model = made(penalty_weight=7.0)
    model.judged = lambda x: (x * w).flatten(1).sum(1)  # type: ignore[method-assign]
    torch.testing.assert_close(model.penalty(x, x, x, seeded()), 3.5 * w.square().sum())


def test_the_game_by_hand_with_the_penalty_at_data() -> None:
    model = made(mixing=0.0, penalty_weight=4.0)
    g = seeded()
    w = model.mapping(torch.randn(6, 3, generator=g))
    torch.randn(6, 3, generator=g), torch.randint(1, 4, (6, 1), generator=g), torch.rand(6, 1, generator=g)
    samples = model.generator(w[:, None].expand(-1, 4, -1), torch.randn(6, 160, generator=g), 1, 1.0)
    x = (X.float() / 127.5 - 1).requires_grad_()
    real, fake = (model.discriminator(data, 1, 1.0) for data in (x, samples))
    (slope,) = torch.autograd.grad(real.sum(), x, retain_graph=True)
    wanted = F.softplus(-real).mean() + F.softplus(fake).mean() + 2 * slope.square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(model.loss("discriminator", Batch(X), seeded())[0], wanted)
    torch.testing.assert_close(model.loss("generator", Batch(X), seeded())[0], F.softplus(-fake).mean())


def test_styles_cross_over_once_at_a_random_layer_of_those_that_have_grown() -> None:
    model, n = made(DataSpec((1, 16, 16), "binary"), mixing=0.75), 4000
    first, second = torch.zeros(n, 3), torch.ones(n, 3)
    for level, layers in ((2, 6), (1, 4)):
        model.level.fill_(level)
        w = model.mixed(first, second, seeded())
        assert w.shape == (n, 6, 3)
        own = w[:, :, 0]
        assert bool((own.diff(dim=1) >= 0).all()), "never back to the first"
        assert torch.count_nonzero(own[:, 0]) == 0
        crossing = (own == 0).sum(1)
        mixed = (crossing < 6).float()
        assert abs(mixed.mean() - 0.75) < 4 * (0.75 * 0.25 / n) ** 0.5
        counts = crossing[crossing < 6].bincount(minlength=6)[1:layers] / mixed.sum()
        torch.testing.assert_close(counts, torch.full_like(counts, 1 / (layers - 1)), atol=0.04, rtol=0)
        assert int(crossing[crossing < 6].max()) == layers - 1
    assert torch.equal(made(mixing=0.0).mixed(first, second, seeded()), torch.zeros(n, 4, 3))
    with_two = made(mixing=1.0)
    w = [with_two.mapping(torch.randn(6, 3, generator=g)) for g in [seeded()] for _ in range(2)]
    assert not torch.allclose(w[0], w[1]), "two latents"


def test_truncation_draws_styles_towards_their_mean() -> None:
    model = made()
    model.settle(iter(()), seeded())
    z = torch.randn(20_000, 3, generator=seeded(1))
    w = model.mapping(z).detach()
    error = w.std(0) * (1 / 10_000 + 1 / 20_000) ** 0.5
    assert bool(((model.mean_style - w.mean(0)).abs() < 4 * error).all())
    torch.testing.assert_close(model.styles(z), w)
    for psi in (0.0, 0.3):
        model.temperature = psi
        torch.testing.assert_close(model.styles(z), model.mean_style + psi * (w - model.mean_style), atol=1e-5, rtol=0)
    model.truncate(0.6)  # what dgm sample truncation= does
    torch.testing.assert_close(model.styles(z), model.mean_style + 0.6 * (w - model.mean_style), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="truncation=-1"):
        model.truncate(-1.0)
    whole = made(truncation=0.0)
    whole.settle(iter(()), seeded())
    alone = whole.generator(whole.mean_style.expand(4, 4, 3), torch.randn(4, 163, generator=seeded())[:, 3:], 1, 1.0)
    got = whole.generate(torch.randn(4, 163, generator=seeded()))
    torch.testing.assert_close(got, (alone.clamp(-1, 1) + 1) * 127.5, atol=1e-3, rtol=0)


def test_samples_have_one_style_in_all_layers_and_the_size_of_the_data_at_every_side() -> None:
    model = made(start=4, mixing=1.0)
    for stage, side in zip(model.stages(), (4, 8), strict=True):
        model.enter_stage(stage, seeded())
        model.advance(stage, 1.0)
        g = seeded()
        w = model.mapping(torch.randn(5, 3, generator=g))[:, None].expand(-1, 4, -1)
        small = model.generator(w, torch.randn(5, 160, generator=g), int(model.level), 1.0)
        assert small.shape == (5, 1, side, side)
        large = F.interpolate(small, (8, 8))
        assert torch.equal(model.sample(5, generator=seeded()), model.scaling.inverse(large))
    assert [s.name for s in made(DataSpec((1, 16, 16), "binary")).stages()] == ["side_8", "side_16"]


def test_mixtures_take_coarse_layers_from_the_row_and_fine_ones_from_the_column() -> None:
    model = made()
    grid = model.style_mixtures(3, 2, generator=seeded())
    assert isinstance(model, MixesStyles)
    assert grid.shape == (4, 3, 1, 8, 8)
    assert torch.count_nonzero(grid[0, 0]) == 0
    g = seeded()
    w, noise = model.mapping(torch.randn(5, 3, generator=g)), torch.randn(1, 160, generator=g)

    def picture(*styles: Tensor) -> Tensor:
        return model.scaling.inverse(model.generator(torch.stack(styles)[None], noise, 1, 1.0))[0]

    for row in range(3):
        assert torch.equal(grid[row + 1, 0], picture(*[w[row]] * 4))
        for column in range(2):
            assert torch.equal(grid[0, column + 1], picture(*[w[3 + column]] * 4))
            mixture = picture(w[row], w[row], w[3 + column], w[3 + column])
            assert (grid[row + 1, column + 1].int() - mixture.int()).abs().max() <= 1


def test_path_points_are_a_step_apart_on_the_way_between_two_styles_with_one_noise() -> None:
    """Where pictures are affine in the style, the squared speed is that of the way itself, whatever the step."""
    model, matrix = made(DataSpec((1, 8, 8), "real")), torch.randn(3, 64, generator=seeded())
    model.pictures = lambda w, noise: (w @ matrix).view(-1, 1, 8, 8) + noise.sum(1).view(-1, 1, 1, 1)  # type: ignore[method-assign]
    here, there = model.path_points(50, 0.1, generator=seeded(1))
    g = seeded(1)
    first, last = (model.mapping(torch.randn(50, 3, generator=g)) for _ in range(2))
    assert isinstance(model, HasPaths)
    torch.testing.assert_close((there - here).flatten(1), 0.1 * (last - first) @ matrix, atol=1e-4, rtol=1e-4)
    t = torch.rand(50, 1, generator=g)
    noise = torch.randn(50, 160, generator=g).sum(1, keepdim=True)
    torch.testing.assert_close(here.flatten(1), torch.lerp(first, last, t) @ matrix + noise, atol=1e-4, rtol=1e-4)


def test_the_mapping_network_has_a_rate_of_its_own() -> None:
    settings = complete(compose("train", ["model=stylegan"]))["optimizer"]
    make, model = optimizer_factory(settings, made()), made()
    own = model.players()["generator"]
    optimiser = make("generator", own)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    slow, fast = ({rates[id(p)] for p in net.parameters()} for net in (model.mapping, model.generator))
    assert len(slow) == len(fast) == 1
    assert slow.pop() == pytest.approx(0.1 * fast.pop())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spec": DataSpec((1, 12, 12), "binary")}, "4 or 7 times a power of two"),
        ({"start": 16}, r"model.start=16 must be one of \[4, 8\]"),
        ({"mixing": 1.5}, "mixing=1.5 must be at least 0 and at most 1"),
        ({"truncation": -0.5}, "truncation=-0.5"),
        ({"mapping": 0}, "mapping=0"),
        ({"penalty_weight": -1.0}, "penalty_weight"),
    ],
)
def test_bad_input_is_explained(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**arguments)  # type: ignore[arg-type]


def test_labels_are_refused() -> None:
    with pytest.raises(UserError, match="no classes"):
        made().sample(2, torch.zeros(2, dtype=torch.long))
