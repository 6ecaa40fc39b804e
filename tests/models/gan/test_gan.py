"""GAN, WGAN, WGAN-GP and their settings against the mathematics of their objectives."""

import copy
import itertools
import math
from collections.abc import Callable, Iterable
from statistics import NormalDist

import jaxtyping
import pytest
import torch
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.gan import Gan
from dgmbench.nn.adversarial_losses import FDivergence, LeastSquares, RelativisticAverage, adversarial_loss
from dgmbench.nn.batchnorm import BatchNorm

from .alphabet import LETTERS, P_FAKE, P_REAL, Fixed, alphabet, linear_critic, optimum, seeded
from .four_digits import FourDigits

DIGITS = DataSpec((1, 8, 8), "discrete", levels=17, num_classes=10)


def random_batch(spec: DataSpec, n: int = 8, seed: int = 0) -> Batch:
    g = seeded(seed)
    x = torch.randn(n, *spec.shape, generator=g)
    if spec.levels:
        x = torch.randint(spec.levels, (n, *spec.shape), generator=g).to(torch.uint8)
    return Batch(x, torch.randint(spec.num_classes, (n,), generator=g) if spec.num_classes else None)


def update(
    model: Gan, batch: Batch, optimisers: dict[str, torch.optim.Optimizer], step: int, generator: Generator
) -> tuple[str, ...]:
    """One update as the contract has it: each player of the turn alone, on the same batch."""
    turn = tuple(model.turn(step, model.stages()[0]))
    for player in turn:
        for name, parameters in model.players().items():
            for parameter in parameters:
                parameter.requires_grad_(name == player)
                parameter.grad = None
        model.loss(player, batch, generator)[0].backward()
        optimisers[player].step()
        model.after_step(player, batch, generator)
    return turn


def optimisers(model: Gan, make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]) -> dict:
    return {name: make(parameters) for name, parameters in model.players().items()}


class Affine(nn.Module):
    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.mean + self.std * z


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    m = (p + q) / 2
    return ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2


# --- roster row gan -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["minimax", "non_saturating"])
def test_tabular_discriminator_reaches_the_optimum_and_the_jensen_shannon_value(name: str) -> None:
    """Survey equations 47 and 49, by training the class's own discriminator loss on a finite alphabet."""
    model = Gan(LETTERS, latent=1, hidden_sizes=(), loss=name)  # type: ignore[arg-type]
    table, least = optimum(model)
    p, q = torch.tensor(P_REAL), torch.tensor(P_FAKE)
    assert torch.allclose(table.sigmoid(), p / (p + q), atol=1e-4)
    value = -least
    assert value.item() == pytest.approx((2 * jensen_shannon(p, q) - 2 * math.log(2)).item(), abs=1e-6)


def generator_gradient(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """d/dtheta E_pg of the generator's loss at D* held fixed, with pg = softmax(theta); and of KL(pg||pr), JS."""
    theta = torch.tensor(P_FAKE, dtype=torch.float64).log().requires_grad_()
    p, q = torch.tensor(P_REAL, dtype=torch.float64), theta.softmax(0)
    logit = (p / q).log().detach()  # D* = p / (p + q)
    loss = (q * adversarial_loss(name).generated(logit)).sum()
    kl, js = (q * (q / p).log()).sum(), jensen_shannon(p, q)
    gradients = [torch.autograd.grad(value, theta, retain_graph=True)[0] for value in (loss, kl, js)]
    return gradients[0], gradients[1], gradients[2]


def test_minimax_gradient_is_that_of_twice_jensen_shannon() -> None:
    gradient, kl, js = generator_gradient("minimax")
    assert torch.allclose(gradient, 2 * js, rtol=1e-10)
    assert not torch.allclose(gradient, kl - 2 * js, rtol=0.1)


def test_non_saturating_gradient_is_that_of_reverse_kl_minus_twice_jensen_shannon() -> None:
    gradient, kl, js = generator_gradient("non_saturating")
    assert torch.allclose(gradient, kl - 2 * js, rtol=1e-10)
    assert not torch.allclose(gradient, 2 * js, rtol=0.1)


@pytest.mark.parametrize(("name", "value"), [("non_saturating", 0.3132617), ("minimax", -1.3132617)])
def test_generator_loss_at_logit_one(name: str, value: float) -> None:
    model = Gan(DataSpec((2,), "real"), hidden_sizes=(), loss=name)  # type: ignore[arg-type]
    head = linear_critic(model)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(1)
    loss, _ = model.loss("generator", Batch(torch.zeros(3, 2)), seeded())
    assert loss.item() == pytest.approx(value, abs=1e-6)


def test_label_smoothing_moves_the_optimum_to_its_target() -> None:
    """With target 1 - s on data, the optimum is D* = (1 - s) pr / (pr + pg) (Salimans et al. 2016)."""
    model = Gan(DataSpec((4,), "real"), latent=1, hidden_sizes=(), label_smoothing=0.1)
    model.generator = Fixed(alphabet(P_FAKE))
    p, q = torch.tensor(P_REAL), torch.tensor(P_FAKE)
    optimum = 0.9 * p / (p + q)
    head = linear_critic(model)
    with torch.no_grad():
        head.weight.copy_(optimum.logit())
        head.bias.zero_()
    model.loss("discriminator", Batch(alphabet(P_REAL)), seeded())[0].backward()
    assert head.weight.grad is not None
    assert head.weight.grad.abs().max() < 1e-6


def test_instance_noise_reaches_data_and_samples_for_both_players() -> None:
    model = Gan(DataSpec((2,), "real"), latent=2, hidden_sizes=(), instance_noise=3.0)
    model.generator = Affine(0.0, 0.0)
    seen: list[Tensor] = []
    model.discriminator.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    batch = Batch(torch.zeros(4000, 2))
    model.loss("discriminator", batch, seeded())
    model.loss("generator", batch, seeded())
    assert len(seen) == 3
    for x in seen:
        assert x.std().item() == pytest.approx(3, rel=4 / (2 * x.numel()) ** 0.5)


def test_truncated_latents_have_the_truncated_normal_moments() -> None:
    model = Gan(DataSpec((2,), "real"), latent=1, truncation=0.7)
    n, bound, normal = 100_000, 0.7, NormalDist()
    z = model.noise(n, seeded(), truncation=0.7)
    variance = 1 - 2 * bound * normal.pdf(bound) / (2 * normal.cdf(bound) - 1)
    assert z.abs().max() <= 0.7
    assert z.mean().item() == pytest.approx(0, abs=4 * (variance / n) ** 0.5)
    assert z.var().item() == pytest.approx(variance, rel=4 * (2 / n) ** 0.5)
    model.generator = nn.Identity()
    model.generator.forward = lambda z, labels: z  # type: ignore[method-assign]
    assert model.sample(1000, generator=seeded()).abs().max() <= 0.7
    assert model.noise(1000, seeded()).abs().max() > 0.7


# --- roster row wgan ----------------------------------------------------------------------------------------------


def test_clipped_linear_critic_ends_at_the_clip_times_the_difference_of_means() -> None:
    """Max over |w| <= c of w (mean of data - mean of samples) is c |difference|, whichever is on the right."""
    for shift in (2.0, -2.0):
        model = Gan(DataSpec((1,), "real"), latent=1, hidden_sizes=(), loss="wasserstein", clip=0.01, n_critic=5)
        real, fake = torch.randn(64, 1, generator=seeded()) + shift, torch.randn(64, 1, generator=seeded(1))
        model.generator = Fixed(fake)
        steps = optimisers(model, lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3))
        for step in range(24):
            if "generator" in update(
                model, Batch(real), {**steps, "generator": torch.optim.SGD([torch.zeros(1)])}, step, seeded()
            ):
                model.generator.scale.data.fill_(1)
        difference = (real.mean() - fake.mean()).item()
        estimate = -model.loss("discriminator", Batch(real), seeded())[0]
        assert estimate.item() == pytest.approx(0.01 * abs(difference), rel=1e-5)
        assert linear_critic(model).weight.item() == pytest.approx(math.copysign(0.01, difference))


def test_weights_stay_within_the_clip_after_every_step_resume_included() -> None:
    torch.manual_seed(0)
    model = Gan(DIGITS, latent=4, hidden_sizes=(8,), loss="wasserstein", clip=0.02)

    def step(model: Gan, k: int) -> None:
        update(
            model, random_batch(DIGITS, seed=k), optimisers(model, lambda p: torch.optim.SGD(p, lr=1.0)), k, seeded(k)
        )
        assert max(p.abs().max().item() for p in model.discriminator.parameters()) <= 0.02

    for k in range(3):
        step(model, k)
    resumed = Gan(DIGITS, latent=4, hidden_sizes=(8,), loss="wasserstein", clip=0.02)
    resumed.load_state_dict(model.state_dict())
    step(resumed, 3)
    step(model, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_five_critic_steps_on_five_batches_to_one_generator_step() -> None:
    model = Gan(DataSpec((2,), "real"), hidden_sizes=(4,), loss="wasserstein", n_critic=5)
    used: list[tuple[str, float]] = []
    inner = model.loss
    model.loss = lambda player, batch, g: used.append((player, batch.x[0, 0].item())) or inner(player, batch, g)  # type: ignore[method-assign]
    steps = optimisers(model, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    for step in range(10):
        update(model, Batch(torch.full((4, 2), float(step))), steps, step, seeded())
    cycle = lambda first: [*(("discriminator", float(first + k)) for k in range(5)), ("generator", first + 4.0)]
    assert used == [*cycle(0), *cycle(5)]


def test_wasserstein_critic_has_no_idle_bias() -> None:
    assert linear_critic(Gan(DIGITS, loss="wasserstein")).bias is None
    assert linear_critic(Gan(DIGITS)).bias is not None


# --- roster row wgan_gp -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [DataSpec((3,), "real"), DIGITS])
def test_penalty_of_the_linear_critic_in_the_loss(spec: DataSpec) -> None:
    torch.manual_seed(0)
    kwargs = {"latent": 3, "hidden_sizes": (), "loss": "wasserstein"}
    plain, model = Gan(spec, **kwargs), Gan(spec, regulariser="gradient_penalty", penalty_weight=7.0, **kwargs)
    plain.load_state_dict(model.state_dict())
    batch = random_batch(spec)
    loss, logs = model.loss("discriminator", batch, seeded())
    expected = (linear_critic(model).weight.norm() - 1).square()
    assert logs["penalty"].item() == pytest.approx(expected.item(), rel=1e-5)
    difference = loss - plain.loss("discriminator", batch, seeded())[0]
    assert difference.item() == pytest.approx(7 * expected.item(), rel=1e-4)


def test_penalty_is_computed_where_the_generator_is_frozen_and_without_gradients() -> None:
    model = Gan(DIGITS, loss="wasserstein", regulariser="gradient_penalty", hidden_sizes=(8,))
    model.generator.requires_grad_(False)
    expected = model.loss("discriminator", random_batch(DIGITS), seeded())[0]
    with torch.no_grad():
        assert torch.equal(expected, model.loss("discriminator", random_batch(DIGITS), seeded())[0])


def test_no_batchnorm_in_the_penalised_critic() -> None:
    spec = DataSpec((1, 16, 16), "discrete", levels=256)
    for net in ("mlp", "dcgan", "resnet"):
        model = Gan(spec, net=net, loss="wasserstein", regulariser="gradient_penalty", channels=4, latent=4)  # type: ignore[arg-type]
        x = torch.randn(3, 1, 16, 16)
        moved = x.clone()
        moved[2] = 1.0
        assert torch.allclose(model.critic(x)[:2], model.critic(moved)[:2], rtol=1e-4, atol=1e-6)


def test_critic_estimates_the_wasserstein_distance_of_two_gaussians() -> None:
    """N(0, 1) against N(1, 0.7^2). W1 is the integral of |difference of the quantile functions|.

    The soft penalty lets the slope s exceed 1: s W - lambda (s - 1)^2 is largest at s = 1 + W / (2 lambda), so the
    estimate to expect is W (1 + W / 20), 5 percent above the exact distance at W = 1 and lambda = 10. On a line the
    penalty of a slope of -1 is zero as well, and below W = 2 lambda no descent leads from there through slope zero, so
    the critic starts with the right sign (in more dimensions a gradient can turn round instead).
    """
    levels = [(k + 0.5) / 20_000 for k in range(20_000)]
    exact = sum(abs(1 - 0.3 * NormalDist().inv_cdf(u)) for u in levels) / len(levels)
    torch.manual_seed(0)
    model = Gan(
        DataSpec((1,), "real"), latent=1, hidden_sizes=(32,), loss="wasserstein", regulariser="gradient_penalty"
    )
    model.generator = Affine(1.0, 0.7)
    if model.critic(torch.ones(1, 1)) > model.critic(torch.zeros(1, 1)):
        linear_critic(model).weight.data.neg_()
    optimiser = torch.optim.Adam(model.discriminator.parameters(), lr=5e-3, betas=(0.0, 0.9))
    g = seeded()
    for _ in range(400):
        optimiser.zero_grad()
        model.loss("discriminator", Batch(torch.randn(256, 1, generator=g)), g)[0].backward()
        optimiser.step()
    with torch.no_grad():
        x, z = torch.randn(2, 100_000, 1, generator=g)
        estimate = (model.critic(x).mean() - model.critic(model.generator(z)).mean()).item()
    assert estimate == pytest.approx(exact, rel=0.1)
    assert estimate == pytest.approx(exact * (1 + exact / 20), rel=0.04)


# --- the contract -------------------------------------------------------------------------------------------------

SETTINGS = {
    "gan": {"hidden_sizes": (8,)},
    "wgan_gp": {"hidden_sizes": (8,), "loss": "wasserstein", "regulariser": "gradient_penalty", "n_critic": 2},
    "cgan": {"hidden_sizes": (8,), "conditional": True},
    "dcgan": {"net": "dcgan", "channels": 2},
    "resnet": {"net": "resnet", "channels": 2, "conditional": True, "instance_noise": 0.1},
    "lsgan": {"hidden_sizes": (8,), "loss": LeastSquares(a=-1.0, b=1.0, c=0.0)},
    "fgan": {"hidden_sizes": (8,), "loss": FDivergence("squared_hellinger")},
    "relativistic": {"net": "dcgan", "channels": 2, "loss": "relativistic_average", "label_smoothing": 0.1},
}


def build(name: str) -> Gan:
    side = 16 if "net" in SETTINGS[name] else 8
    return Gan(DataSpec((1, side, side), "discrete", levels=17, num_classes=10), latent=4, **SETTINGS[name])


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_changes_no_state_and_repeats(name: str) -> None:
    model = build(name)
    batch = random_batch(model.spec)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for player in model.players():
        first = model.loss(player, batch, seeded())[0]
        assert torch.equal(first, model.loss(player, batch, seeded())[0])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_reach_every_parameter_of_the_player(name: str) -> None:
    torch.manual_seed(0)
    model = build(name)
    batch = random_batch(model.spec, 32)
    for player, parameters in model.players().items():
        gradients = torch.autograd.grad(model.loss(player, batch, seeded())[0], parameters)
        assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert {id(p) for ps in model.players().values() for p in ps} == {id(p) for p in model.parameters()}


def test_discriminator_loss_gives_the_generator_no_gradient() -> None:
    model = build("wgan_gp")
    model.loss("discriminator", random_batch(model.spec), seeded())[0].backward()
    assert all(parameter.grad is None for parameter in model.generator.parameters())


@pytest.mark.parametrize("name", SETTINGS)
def test_samples_are_raw_values_and_repeat(name: str) -> None:
    model = build(name).eval()
    x = model.sample(5, generator=seeded())
    assert x.shape == (5, *model.spec.shape)
    assert x.dtype == torch.uint8
    assert x.max() <= 16
    assert torch.equal(x, model.sample(5, generator=seeded()))


def test_samples_of_vectors() -> None:
    x = Gan(DataSpec((2,), "real"), hidden_sizes=(8,)).sample(5)
    assert x.shape == (5, 2)
    assert x.dtype == torch.float32


@pytest.mark.parametrize("name", ["wgan_gp", "dcgan"])
def test_resumes_bit_for_bit_inside_a_critic_cycle(name: str) -> None:
    torch.manual_seed(0)
    straight, resumed = build(name), build(name)
    adam = lambda parameters: torch.optim.Adam(parameters, lr=1e-2, betas=(0.5, 0.9))
    steps = optimisers(straight, adam)
    for k in range(3):
        update(straight, random_batch(straight.spec, seed=k), steps, k, seeded(k))
    resumed.load_state_dict(straight.state_dict())
    resumed_steps = optimisers(resumed, adam)
    for player, optimiser in steps.items():
        resumed_steps[player].load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for k in (3, 4):
        for model, optims in ((straight, steps), (resumed, resumed_steps)):
            update(model, random_batch(model.spec, seed=k), optims, k, seeded(k))
    for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_running_statistics_are_those_of_data_in_the_discriminator_and_of_samples_in_the_generator() -> None:
    """At an input that a hook reads from each network's first batch-norm layer, whatever the other passes see."""
    torch.manual_seed(0)
    model = build("relativistic")
    batch = random_batch(model.spec, 32)
    first = {
        name: next(m for m in getattr(model, name).modules() if isinstance(m, BatchNorm)) for name in model.players()
    }
    for player, layer in first.items():
        model.loss(player, batch, seeded())
        model.after_step(player, batch, seeded())
        if player == "discriminator":
            expected = model.discriminator.trunk[:3](model.scaling(batch.x))
        else:
            z = model.noise(32, seeded())
            expected = model.generator.net[0](z[:, :, None, None])
        torch.testing.assert_close(layer.running_mean, 0.1 * expected.mean((0, 2, 3)))


def test_a_relativistic_generator_looks_at_data_and_its_loss_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    model = Gan(DIGITS, latent=4, hidden_sizes=(8,), loss="relativistic_average")
    batch = random_batch(DIGITS)
    real, fake = model.critic(model.scaling(batch.x)), model.critic(model.generator(model.noise(8, seeded())))
    expected = nn.functional.softplus(real - fake.mean()).mean() + nn.functional.softplus(real.mean() - fake).mean()
    loss = model.loss("generator", batch, seeded())[0]
    torch.testing.assert_close(loss, expected)
    other = Batch(DIGITS.levels - 1 - batch.x)  # type: ignore[operator]
    assert model.loss("generator", other, seeded())[0] != loss
    assert isinstance(model.adversarial, RelativisticAverage)
    parameters = model.players()["generator"]
    ours = torch.autograd.grad(loss, parameters)
    for a, b in zip(ours, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b)


def test_running_statistics_move_with_their_own_network_only() -> None:
    model = build("dcgan")
    batch = random_batch(model.spec)

    def moved(player: str) -> set[str]:
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model.loss(player, batch, seeded())
        model.after_step(player, batch, seeded())
        return {key.split(".")[0] for key, value in model.state_dict().items() if not torch.equal(before[key], value)}

    assert moved("generator") == {"generator"}
    assert moved("discriminator") == {"discriminator"}


def test_conditional_model_reads_its_labels() -> None:
    torch.manual_seed(0)
    model = build("cgan")
    y = torch.tensor([0] * 90 + [3] * 10)
    model.initialise(Batch(torch.zeros(100, 1, 8, 8, dtype=torch.uint8), y), seeded())
    counts = torch.tensor([91, 1, 1, 11, 1, 1, 1, 1, 1, 1]) / 110  # one more than seen, so that no class is lost
    assert model.class_log_prior.exp().tolist() == pytest.approx(counts.tolist())
    same_noise = [model.sample(4, torch.full((4,), label), generator=seeded()) for label in (0, 3)]
    assert not torch.equal(*same_noise)
    x = torch.zeros(1, 1, 8, 8)
    zero, three = (model.critic(x, model.one_hot(torch.tensor([label]))) for label in (0, 3))
    assert not torch.equal(zero, three)


BAD_ARGUMENTS: list[tuple[dict[str, object], str]] = [
    ({"net": "cnn"}, "net"),
    ({"loss": "hinged"}, "loss"),
    ({"regulariser": "gp"}, "regulariser"),
    ({"n_critic": 0}, "n_critic"),
    ({"label_smoothing": 0.1, "loss": "wasserstein"}, "label_smoothing"),
    ({"label_smoothing": 1.0}, "label_smoothing"),
    ({"truncation": 0.0}, "truncation"),
    ({"clip": 0.0}, "clip"),
    ({"net": "dcgan"}, "net=mlp"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_explained(arguments: dict[str, object], message: str) -> None:
    # Run-time type checks, which the tests switch on, may object to a choice before the class does.
    with pytest.raises((UserError, jaxtyping.TypeCheckError), match=message):
        Gan(DIGITS, **arguments)  # type: ignore[arg-type]


def test_missing_labels_are_explained() -> None:
    with pytest.raises(UserError, match="has none"):
        Gan(DataSpec((2,), "real"), conditional=True)
    with pytest.raises(UserError, match="has none"):
        build("cgan").loss("generator", Batch(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), seeded())
    with pytest.raises(UserError, match="not conditional"):
        build("gan").sample(2, torch.tensor([1, 2]))


def test_players_take_turns() -> None:
    stage = build("gan").stages()[0]
    turns = [len(Gan(DIGITS, n_critic=n).turn(s, stage)) for n, s in itertools.product((1, 3), range(6))]
    assert turns == [2] * 6 + [1, 1, 2, 1, 1, 2]


# --- roster row cgan ----------------------------------------------------------------------------------------------


def trained_on_digits(x: Tensor, y: Tensor, steps: int) -> Gan:
    torch.manual_seed(0)
    spec = DataSpec((1, 8, 8), "discrete", levels=17, num_classes=4)
    model = Gan(spec, hidden_sizes=(128, 128), conditional=True)
    optims = optimisers(model, lambda parameters: torch.optim.Adam(parameters, lr=6e-3, betas=(0.5, 0.999)))
    for step in range(steps):
        chosen = torch.randint(len(x), (100,), generator=seeded(step))
        update(model, Batch(x[chosen], y[chosen]), optims, step, seeded(step))
    return model


def test_conditional_samples_have_their_class_and_shuffled_labels_teach_none() -> None:
    """Against an independent classifier; chance is 1/4, and 500 samples leave a standard error of 0.02."""
    digits = FourDigits()
    assert digits.accuracy(trained_on_digits(digits.x, digits.y, 250)) >= 0.8
    assert digits.accuracy(trained_on_digits(digits.x, digits.shuffled, 250)) == pytest.approx(0.25, abs=0.08)
