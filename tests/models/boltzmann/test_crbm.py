"""The conditional RBM as the mixture of Gaussians around an autoregression that it is; generation and filling in."""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import Normal

from dgmbench.data.gait import POINTS, Gait
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.crbm import Crbm
from dgmbench.models.boltzmann.estimators import CD, PCD

LINE = DataSpec((4, 1), "real", num_classes=2)


def make(spec: DataSpec = LINE, hidden: int = 3, **settings: object) -> Crbm:
    torch.manual_seed(0)
    model, g = Crbm(spec, hidden=hidden, order=2, **settings).double(), Generator().manual_seed(0)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        model.mean.fill_(0.5)
        model.deviation.fill_(1.7)
    return model


def mixture(model: Crbm, history: Tensor, y: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Log-weights (2^H,), means (2^H, d) and deviations (d,) of the next standardised frame after history (order, d).

    E = sum_i (v_i - a_i)^2 / (2 sigma_i^2) - (v / sigma)'W h - b'h: the square completed, h has the log-weight
    b'h + (a / sigma)'W h + |W h|^2 / 2.
    """
    a, b = model.visible_bias.clone(), model.hidden_bias.clone()
    d = model.frame_dim
    for k, frame in enumerate(history):  # the oldest first
        a = a + frame @ model.to_visible[k * d : (k + 1) * d]
        b = b + frame @ model.to_hidden[k * d : (k + 1) * d]
    if y is not None:
        a, b = a + model.style_visible[y], b + model.style_hidden[y]
    h = torch.tensor(list(product((0.0, 1.0), repeat=model.weight.shape[1])), dtype=torch.float64)
    sigma, inner = model.log_sigma.exp(), h @ model.weight.t()
    weights = h @ b + inner @ (a / sigma) + 0.5 * inner.square().sum(1)
    return weights.log_softmax(0), a + sigma * inner, sigma


def by_hand(model: Crbm, x: Tensor, y: int | None = None) -> Tensor:
    """log p of every frame of one raw sequence (t, d)."""
    v = (x.double() - model.mean) / model.deviation
    padded = torch.cat([torch.zeros(2, v.shape[1], dtype=torch.float64), v])
    found = []
    for t in range(len(v)):
        weights, means, sigma = mixture(model, padded[t : t + 2], y)
        found.append((weights + Normal(means, sigma).log_prob(v[t]).sum(1)).logsumexp(0))
    return torch.stack(found) - model.deviation.log().sum()


def log_prob(model: Crbm, x: Tensor, **beside: Tensor) -> Tensor:
    path = model.annealing_path_given(model.step_conditions(x, **beside).detach())
    exact = path.exact_log_partition()
    assert exact is not None
    return (model.step_log_prob_unnormalised(x, **beside) - exact).view(x.shape[:2])


@pytest.mark.parametrize("spec", [LINE, DataSpec((4, 2), "real")])
def test_a_step_is_a_mixture_of_gaussians_given_the_past(spec: DataSpec) -> None:
    model, x = make(spec), torch.randn(5, *spec.shape, generator=Generator().manual_seed(1))
    torch.testing.assert_close(log_prob(model, x), torch.stack([by_hand(model, one) for one in x]))


def test_the_style_moves_both_biases() -> None:
    model, x = make(style=True), torch.randn(4, 4, 1, generator=Generator().manual_seed(1))
    y = torch.tensor([0, 1, 1, -1])
    wanted = [by_hand(model, one, None if label < 0 else int(label)) for one, label in zip(x, y, strict=True)]
    torch.testing.assert_close(log_prob(model, x, y=y), torch.stack(wanted))


def test_it_integrates_to_one_given_any_past() -> None:
    model, grid = make(), torch.linspace(-12, 12, 4001, dtype=torch.float64)
    past = torch.randn(3, 1, generator=Generator().manual_seed(2)).double()
    x = torch.cat([past.expand(len(grid), 3, 1), grid[:, None, None]], 1)
    density = log_prob(model, x)[:, 3].exp()
    assert float(torch.trapezoid(density, grid).detach()) == pytest.approx(1.0, abs=1e-6)


def test_without_hidden_units_it_is_a_vector_autoregression() -> None:
    spec = DataSpec((5, 2), "real")
    model, x = make(spec, hidden=0), torch.randn(3, 5, 2, generator=Generator().manual_seed(1)).double()
    v = (x - model.mean) / model.deviation
    padded = torch.cat([torch.zeros(3, 2, 2, dtype=torch.float64), v], 1)
    older, newer = padded[:, :-2], padded[:, 1:-1]
    a = model.visible_bias + older @ model.to_visible[:2] + newer @ model.to_visible[2:]
    wanted = Normal(a, model.log_sigma.exp()).log_prob(v).sum(2) - model.deviation.log().sum()
    torch.testing.assert_close(log_prob(model, x), wanted)


def test_cd_of_many_steps_follows_the_gradient_of_log_p() -> None:
    model = make(estimator=CD(k=30))
    with torch.no_grad():
        model.log_sigma.zero_()
    x = torch.randn(2, 4, 1, generator=Generator().manual_seed(1))
    (-torch.stack([by_hand(model, one) for one in x]).mean()).backward()
    names = ("weight", "to_visible", "to_hidden", "log_sigma")
    wanted = torch.cat([getattr(model, name).grad.flatten() for name in names])
    draws, g = [], Generator().manual_seed(0)
    for _ in range(30):
        model.zero_grad()
        model.loss("model", Batch(x.repeat(40, 1, 1)), g)[0].backward()
        draws.append(torch.cat([getattr(model, name).grad.flatten() for name in names]))
    mean, se = torch.stack(draws).mean(0), torch.stack(draws).std(0) / 30**0.5
    assert float(((mean - wanted) / se).abs().max()) < 4.5


def test_samples_follow_the_first_frames_mixture() -> None:
    model = make()
    drawn = model.sample(4000, generator=Generator().manual_seed(0))[:, 0, 0].double()
    weights, means, sigma = mixture(model, torch.zeros(2, 1, dtype=torch.float64))
    p = weights.exp()
    mean = float((p @ means).detach()) * 1.7 + 0.5
    assert float(drawn.mean()) == pytest.approx(mean, abs=4 * float(drawn.std()) / 4000**0.5)
    variance = float((p @ (means.square() + sigma.square()) - (p @ means).square()).detach()) * 1.7**2
    assert float(drawn.var()) == pytest.approx(variance, rel=4 * (2 / 4000) ** 0.5 * 1.5)


def test_a_dropped_limb_is_filled_in_from_the_past() -> None:
    """The left leg after the twelfth frame: below the last value kept, and below the autoregression alone."""
    decoded = Gait(train=300, valid=2, test=10, length=20).read(Path())
    x, test = (torch.from_numpy(decoded.parts[split].x) for split in ("train", "test"))
    torch.manual_seed(0)
    model, g = Crbm(decoded.spec, hidden=20, order=3, sample_steps=10), Generator().manual_seed(0)
    model.initialise(Batch(x), g)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for update in range(250):
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * (1 - update / 250)
        optimiser.zero_grad()
        model.loss("model", Batch(x[torch.randint(len(x), (20,), generator=g)]), g)[0].backward()
        optimiser.step()
    known = torch.ones(test.shape, dtype=torch.bool)
    leg = [2 * POINTS.index(point) + axis for point in ("left knee", "left foot") for axis in (0, 1)]
    known[:, 12:, leg] = False

    def error(filled: Tensor) -> float:
        return float((filled - test)[:, 12:, leg].square().sum(2).mean())

    def filled() -> Tensor:
        return torch.stack([model.complete(test, known, generator=g) for _ in range(3)]).mean(0)

    kept = test.clone()
    kept[:, 12:, leg] = test[:, 11:12, leg]
    own = error(filled())
    with torch.no_grad():
        for p in (model.weight, model.to_hidden):
            p.zero_()
    assert own < 0.5 * error(kept)
    assert own < 0.9 * error(filled())


@pytest.mark.parametrize(
    ("spec", "settings", "said"),
    [
        (DataSpec((4, 3), "binary"), {}, "real sequences"),
        (DataSpec((3, 2), "real"), {"order": 3}, "frames of history"),
        (DataSpec((1, 2), "real"), {"order": 1}, "t at least 2"),
        (DataSpec((4, 2), "real"), {"style": True}, "label|class"),
        (DataSpec((4, 2), "real"), {"estimator": PCD()}, "estimator=cd"),
        (DataSpec((4, 2), "real"), {"hidden": -1}, "hidden"),
    ],
)
def test_wrong_data_and_settings_end_in_a_sentence(spec: DataSpec, settings: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Crbm(spec, **settings)  # type: ignore[arg-type]
