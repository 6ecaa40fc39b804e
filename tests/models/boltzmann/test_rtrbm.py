"""The recurrent temporal RBM against sums over everything, and its gradient against autograd of log p."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data.bouncing_balls import BouncingBalls
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.estimators import CD, NCE, PCD
from dgmbench.models.boltzmann.rtrbm import Rtrbm

sys.path.insert(0, str(Path(__file__).parent / "machines"))
from small_sequences import SMALL, all_sequences, exact_negatives, log_z, randomised, step_log_prob


def make(scale: float = 0.7, **settings: object) -> Rtrbm:
    torch.manual_seed(0)
    return randomised(Rtrbm(SMALL, hidden=2, sample_steps=40, **settings), scale)  # type: ignore[arg-type, return-value]


def written_out(model: Rtrbm, x: Tensor) -> Tensor:
    """log p of one sequence, every sum over v and h written out, as a function of the parameters."""
    r, total = model.initial.sigmoid(), torch.zeros((), dtype=torch.float64)
    for v in x.double():
        b = model.hidden_bias + r @ model.recurrent
        total = total + step_log_prob(v, model.weight, model.visible_bias, b)
        r = (v @ model.weight + b).sigmoid()
    return total


def test_log_p_sums_to_one_and_is_what_it_says() -> None:
    model, x = make(), all_sequences(SMALL)
    log_p = model.log_prob_unnormalised(x) - log_z(model, x).view(len(x), -1).sum(1)
    assert float(log_p.logsumexp(0).detach()) == pytest.approx(0.0, abs=1e-12)
    rows = [0, 17, 300, 511]
    torch.testing.assert_close(log_p[rows], torch.stack([written_out(model, x[row]) for row in rows]))


def test_the_gradient_with_exact_negatives_is_that_of_log_p() -> None:
    model, x = make(), all_sequences(SMALL)[[5, 210, 333]]
    exact_negatives(model, x).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    (-torch.stack([written_out(model, one) for one in x]).sum() / 9).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-9, atol=1e-12)


def test_the_gradient_through_the_state_is_not_zero() -> None:
    model, x = make(), all_sequences(SMALL)[[5, 210, 333]]
    exact_negatives(model, x).backward()
    whole = model.weight.grad.clone()
    v, condition = model.rows(x)
    model.zero_grad()
    machine = model.machine(condition.detach())
    states = all_sequences(DataSpec((1, 3), "binary")).flatten(1).double()
    each = torch.stack([machine.free_energy(state.expand(len(v), -1)) for state in states])
    (machine.free_energy(v) - ((-each).detach().softmax(0) * each).sum(0)).mean().backward()
    direct = model.weight.grad
    assert float((whole - direct).abs().max()) > 1e-3
    assert model.recurrent.grad is None or float(model.recurrent.grad.abs().max()) == 0.0


def test_cd_of_many_steps_has_the_gradient_of_log_p() -> None:
    model = make(estimator=CD(k=40))
    x = all_sequences(SMALL)[[5, 210, 333]]
    exact_negatives(model, x).backward()
    wanted = model.weight.grad.clone()
    draws, g = [], Generator().manual_seed(0)
    for _ in range(40):
        model.zero_grad()
        model.loss("model", Batch(x.repeat(20, 1, 1)), g)[0].backward()
        draws.append(model.weight.grad.clone())
    mean, se = torch.stack(draws).mean(0), torch.stack(draws).std(0) / 40**0.5
    assert float(((mean - wanted) / se).abs().max()) < 4.0


def test_samples_follow_log_p(chi_squared: Callable[[Tensor, Tensor], float]) -> None:
    """Whole sequences: each step is drawn given what was drawn before."""
    model, x = make(2.0), all_sequences(SMALL)
    log_p = model.log_prob_unnormalised(x) - log_z(model, x).view(len(x), -1).sum(1)
    drawn = model.sample(20_000, generator=Generator().manual_seed(0)).flatten(1).long()
    counts = torch.bincount((drawn * 2 ** torch.arange(8, -1, -1)).sum(1), minlength=512)
    expected = 20_000 * log_p.exp()
    rare = expected < 5  # together one cell
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    p = torch.cat([log_p.exp()[~rare], log_p.exp()[rare].sum()[None]]).detach()
    assert chi_squared(counts, p) < 5.0


def test_states_in_one_product_are_those_step_by_step() -> None:
    model, x = make(), all_sequences(SMALL)[::37]
    v = model.sequences(x)
    state = model.start(len(v))
    for t in range(3):
        torch.testing.assert_close(model.states(v)[:, t], state)
        state = model.follow(state, v[:, t])


@pytest.fixture(scope="module")
def balls() -> tuple[DataSpec, Tensor, Tensor]:
    decoded = BouncingBalls(balls=1, side=8, length=20, speed=1.25, train=200, valid=2, test=20).read(Path())
    train, test = (torch.from_numpy(decoded.parts[split].x) for split in ("train", "test"))
    return decoded.spec, train, test


def error(spec: DataSpec, x: Tensor, test: Tensor, *, recurrent: bool) -> float:
    """Squared error a frame of predictions, after training with or without W'."""
    torch.manual_seed(0)
    model, g = Rtrbm(spec, hidden=40), Generator().manual_seed(0)
    model.initialise(Batch(x), g)
    if not recurrent:
        with torch.no_grad():
            model.recurrent.zero_()
        model.recurrent.requires_grad_(False)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(200):
        batch = x[torch.randint(len(x), (20,), generator=g)]
        optimiser.zero_grad()
        model.loss("model", Batch(batch), g)[0].backward()
        optimiser.step()
    return float((model.expected(test, generator=g) - test.flatten(0, 1)).square().sum(1).mean())


def test_the_next_frame_is_predicted_better_than_by_the_last_one_and_than_without_the_state(
    balls: tuple[DataSpec, Tensor, Tensor],
) -> None:
    spec, x, test = balls
    copied = float((test[:, 1:].float() - test[:, :-1].float()).square().sum(2).mean())
    with_state, without = (error(spec, x, test, recurrent=recurrent) for recurrent in (True, False))
    assert with_state < 0.9 * copied
    assert with_state < 0.9 * without


def test_completions_are_online() -> None:
    """A frame that is known later changes nothing before it."""
    model, x = make(), all_sequences(SMALL)[[100, 200]]
    known = torch.zeros(x.shape, dtype=torch.bool)
    known[:, 2] = True
    one = model.complete(x, known, generator=Generator().manual_seed(0))
    other = model.complete(1 - x, known, generator=Generator().manual_seed(0))
    assert torch.equal(one[:, :2], other[:, :2])
    assert torch.equal(one[:, 2], x[:, 2])


@pytest.mark.parametrize(
    ("spec", "settings", "said"),
    [
        (DataSpec((4, 3), "discrete", levels=17), {}, "binary sequences"),
        (DataSpec((1, 3), "binary"), {}, "t at least 2"),
        (DataSpec((6,), "binary"), {}, "t at least 2"),
        (SMALL, {"estimator": PCD()}, "estimator=cd"),
        (SMALL, {"estimator": NCE()}, "estimator=cd"),
        (SMALL, {"hidden": 0}, "hidden"),
    ],
)
def test_wrong_data_and_settings_end_in_a_sentence(spec: DataSpec, settings: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Rtrbm(spec, **settings)  # type: ignore[arg-type]
