"""Both sides of log Z as the evaluation reports them: what each number depends on, and what its note says."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.evaluation.likelihood.measure import likelihood
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import WITHOUT_EXAMPLES, WITHOUT_NOISE, Context
from dgmbench.models.boltzmann.dbn import Dbn
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.contract import AnnealingPath, Model

SCHEDULE: dict[str, Any] = {"chains": 40, "temperatures": 60, "spacing": "even", "burn_in": 20}
RESERVATION = (
    "reverse runs bound log Z from above only as far as their starts, training data and forward runs, cover the "
    "model's modes"
)
Measured = dict[str, tuple[Metric, dict[str, Any]]]


def dataset(spec: DataSpec, *, train: Tensor, test: Tensor) -> DataSet:
    train_split, test_split = (Split(x.to(torch.uint8).numpy(), None) for x in (train, test))
    return DataSet("toy", spec, {"train": train_split, "valid": test_split, "test": test_split}, "1" * 64)


def measured(model: Model, data: DataSet, **ais: Any) -> Measured:
    protocol = {"seed": 0, "k": 10, "ais": SCHEDULE | ais, "max_examples": None}
    context = Context(data, protocol, "test", torch.device("cpu"))
    with torch.no_grad():
        return {name: (metric, details) for name, metric, details in likelihood(model, context, lambda text: None)}


def random_bits(n: int, dim: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).randint(0, 2, (n, dim)))


def make(name: str) -> tuple[Model, DataSet]:
    """An RBM that can be enumerated, and a machine of either kind that cannot."""
    torch.manual_seed(0)
    sizes = {"small rbm": (6, (5,)), "rbm": (24, (21,)), "dbn": (6, (24, 21))}
    dim, hidden = sizes[name]
    spec = DataSpec((dim,), "binary")
    model: Model = Rbm(spec, hidden=hidden[0]) if len(hidden) == 1 else Dbn(spec, hidden_sizes=hidden, fine_tuning=0.0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape))
    return model, dataset(spec, train=random_bits(30, dim), test=random_bits(50, dim))


def side(name: str) -> str:
    """Which of the numbers of a bracket this is; empty for one that needs none."""
    if name == "log_z_gap":
        return "gap"
    return "reverse" if "_reverse_ais" in name else "forward" if "_ais" in name else ""


@pytest.mark.parametrize("name", ["small rbm", "rbm", "dbn"])
def test_each_number_names_what_it_depends_on_and_nothing_else(name: str) -> None:
    model, data = make(name)
    found, longer = measured(model, data), measured(model, data, burn_in=50)
    exact = name == "small rbm"
    start = "exact" if exact else {"from_data": 20, "examples": 20, "from_forward_states": 20}
    forward = {key: value for key, value in SCHEDULE.items() if key != "burn_in"}
    expected: dict[str, dict[str, Any]] = {
        "forward": {"ais": forward},
        "reverse": {"ais": forward if exact else SCHEDULE, "reverse_start": start},
        "": {"log_z": "enumeration"} | ({} if name == "dbn" else WITHOUT_NOISE),
    }
    expected["gap"] = expected["reverse"]
    of = "elbo" if name == "dbn" else "log_likelihood"
    names = {f"{of}{s}{unit}" for s in ("_ais", "_reverse_ais") for unit in ("", "_bits_per_dim")}
    names |= {f"log_z{s}{what}" for s in ("_ais", "_reverse_ais") for what in ("", "_ess")} | {"log_z_gap"}
    assert names | ({of, f"{of}_bits_per_dim"} if exact else set()) == set(found)
    for each, (metric, details) in found.items():
        free = WITHOUT_EXAMPLES if each.startswith("log_z") else {}
        assert details == expected[side(each)] | free, each
        # what is not named does not change the value, what is named does
        unchanged = exact or side(each) == "forward"
        assert (longer[each][0].value == metric.value) == unchanged, each


class Plain:
    """A path that has what annealing needs, and no more."""

    def __init__(self, inner: AnnealingPath) -> None:
        self.log_base_partition, self.sample_base = inner.log_base_partition, inner.sample_base
        self.log_unnormalised, self.transition = inner.log_unnormalised, inner.transition
        self.exact_log_partition = lambda: None


class PlainRbm(Rbm):
    def annealing_path(self) -> Any:
        return Plain(super().annealing_path())


def test_a_path_that_does_not_know_the_states_of_data_says_what_it_rests_on() -> None:
    _, data = make("small rbm")
    metric, details = measured(PlainRbm(data.spec, hidden=5), data)["log_z_reverse_ais"]
    assert details["reverse_start"] == {"from_data": 0, "examples": 0, "from_forward_states": 40}
    assert metric.note == RESERVATION.replace("training data and forward runs", "the forward runs")


def test_fewer_examples_than_chains_start_several_each() -> None:
    model, data = make("rbm")
    details = measured(model, data, chains=100)["log_z_reverse_ais"][1]
    assert details["reverse_start"] == {"from_data": 50, "examples": 30, "from_forward_states": 50}


@pytest.mark.parametrize("name", ["small rbm", "rbm", "dbn"])
def test_a_wide_bracket_puts_its_note_on_every_number_of_it(name: str) -> None:
    model, data = make(name)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(20)
    found = measured(model, data, temperatures=2)
    sides = {each: metric for each, (metric, _) in found.items() if side(each)}
    assert len(sides) == 9
    gap, ess = (found[each][0].value for each in ("log_z_gap", "log_z_ais_ess"))
    ess = min(ess, found["log_z_reverse_ais_ess"][0].value)
    for each, metric in sides.items():
        assert f"wide bracket: gap {gap:.2g} nats, {ess:.1f} effective chains" in (metric.note or ""), each
        assert (RESERVATION in (metric.note or "")) == (name != "small rbm" and side(each) != "forward"), each
    assert all(metric.note is None for each, (metric, _) in found.items() if not side(each))


@pytest.mark.parametrize("name", ["small rbm", "rbm", "dbn"])
def test_the_upper_side_says_what_it_rests_on_even_where_the_bracket_is_narrow(name: str) -> None:
    model, data = make(name)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.3)
    for each, (metric, _) in measured(model, data).items():
        if name == "small rbm" or side(each) in ("", "forward"):
            assert metric.note is None, each
        else:
            assert metric.note == RESERVATION, each


@pytest.mark.parametrize("name", ["small rbm", "dbn"])
def test_the_errors_of_both_sides_contain_that_of_log_z(name: str) -> None:
    model, data = make(name)
    found = measured(model, data, temperatures=3)
    x = torch.from_numpy(np.asarray(data.splits["test"].x))
    for s in ("_ais", "_reverse_ais"):
        log_z = found[f"log_z{s}"][0].se
        assert log_z is not None
        assert log_z > 0.02
        nats, bits = (
            found[f"{'elbo' if name == 'dbn' else 'log_likelihood'}{s}{unit}"][0] for unit in ("", "_bits_per_dim")
        )
        assert nats.se is not None
        assert nats.se_draws is not None
        if name == "dbn":  # its bound is drawn, too
            assert nats.se_draws > log_z
        else:
            assert nats.se_draws == pytest.approx(log_z)
        if name == "small rbm":
            with torch.no_grad():
                spread = float(model.log_prob_unnormalised(x).double().std()) / math.sqrt(50)  # type: ignore[operator]
            assert nats.se == pytest.approx(math.hypot(spread, log_z))
        assert nats.se > log_z
        assert bits.se == pytest.approx(nats.se / (6 * math.log(2)))
        assert bits.se_draws == pytest.approx(nats.se_draws / (6 * math.log(2)))


def test_a_mode_of_the_training_data_that_forward_runs_miss_is_told() -> None:
    """22 x 21 units that are all on, or all off with probability exp(-6); the base is at the off side.

    log Z by the number of units that are on, since all are alike.
    """
    visible, hidden, strength = 22, 21, 1.0
    spec = DataSpec((visible,), "binary")
    model = Rbm(spec, hidden=hidden).double()
    with torch.no_grad():
        model.weight.fill_(strength)
        model.visible_bias.fill_(-0.5 * strength * hidden)
        model.hidden_bias.fill_(-0.5 * strength * visible + 0.3)
        model.base_logits.fill_(-3.0)
        size = torch.arange(visible + 1)
        log_ways = torch.tensor([math.log(math.comb(visible, int(k))) for k in size])
        log_p = model.log_prob_unnormalised(torch.arange(visible) < size[:, None]) + log_ways
    exact, off = float(log_p.logsumexp(0)), float(log_p[:11].logsumexp(0))
    assert exact - off > 5
    down, up = torch.zeros(30, visible), torch.ones(30, visible)
    # the training data show the mode, whatever is measured
    told = measured(model, dataset(spec, train=up, test=down), temperatures=300)
    assert told["log_z_ais"][0].value < exact - 5
    assert told["log_z_reverse_ais"][0].value > exact
    for each, (metric, _) in told.items():
        assert "forward runs do not reach 100% of the runs from data" in (metric.note or ""), each
    # they do not, and the note is all that is left
    blind = measured(model, dataset(spec, train=down, test=up), temperatures=300)
    for s in ("ais", "reverse_ais"):
        assert abs(blind[f"log_z_{s}"][0].value - off) < 0.1
    assert blind["log_z_ais"][0].note is None
    for each, (metric, _) in blind.items():
        assert (RESERVATION in (metric.note or "")) == (side(each) != "forward"), each
