"""What a number is (kind, unit, direction) and what its protocol id contains: all that it depends on, nothing else."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.evaluation.evaluator import Evaluator, validation_objective
from dgmbench.models.autoregressive.made import Made
from dgmbench.models.boltzmann.dbn import Dbn
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.contract import Model
from dgmbench.models.gan.gan import Gan
from dgmbench.models.vae.vae import Vae

SPEC = DataSpec((6,), "binary", num_classes=3)
N = 250
PROTOCOL: dict[str, Any] = {
    "seed": 0, "k": 10, "ais": {"chains": 20, "temperatures": 30}, "max_examples": None, "parzen": {"samples": 50},
    "decoder_ais": {"examples": 4, "chains": 2, "temperatures": 5, "leapfrog": 1},
    "semi_supervised": {"labels": [30], "draws": 2},
}  # fmt: skip


class Conditional(Model):
    """Coins whose probability is that of the label, or a bound of it that is one draw of noise too low."""

    class_log_prior: Tensor

    def __init__(self) -> None:
        super().__init__(SPEC)
        self.register_buffer("class_log_prior", torch.full((3,), 1 / 3).log())

    def given(self, x: Tensor, y: Tensor | None) -> Tensor:
        p = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
        ones = x.double().sum(1, keepdim=True)
        each = ones * p.log() + (6 - ones) * (1 - p).log()
        if y is None:
            return (each + self.class_log_prior).logsumexp(1)
        return each.gather(1, y.long()[:, None])[:, 0]


class Exact(Conditional):
    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.given(x, y)


class Bounded(Conditional):
    def elbo(self, x: Tensor, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return self.given(x, y) - torch.rand(len(x), generator=generator, dtype=torch.float64)


MODELS: dict[str, Callable[[], Model]] = {
    "made": lambda: Made(SPEC, hidden_sizes=(4,)),
    "vae": lambda: Vae(SPEC, latent=2, hidden_sizes=(4,)),
    "rbm": lambda: Rbm(SPEC, hidden=4),
    "dbn": lambda: Dbn(SPEC, hidden_sizes=(3, 2), fine_tuning=0.0),
    "gan": lambda: Gan(SPEC, latent=2, hidden_sizes=(4,)),
    "exact": Exact,
    "bounded": Bounded,
}


def data() -> DataSet:
    rng = np.random.RandomState(0)
    y = rng.randint(0, 3, N)
    x = (rng.rand(N, 6) < np.array([0.2, 0.5, 0.8])[y][:, None]).astype(np.uint8)
    split = Split(x, y)
    return DataSet("toy", SPEC, {"train": split, "valid": split, "test": split}, "1" * 64)


def measured(model: str, **changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    evaluator = Evaluator(
        data(), PROTOCOL | changes, split="test", rule="best", averaged=False, device=torch.device("cpu")
    )
    return evaluator.measure(MODELS[model]())


@pytest.fixture(scope="module")
def first() -> dict[str, dict[str, Any]]:
    return {name: measured(name) for name in MODELS}


NATS = ("nats", "higher")
MEANING = {
    "made": {"log_likelihood": ("exact", *NATS), "energy_distance": ("estimate", "scaled pixels", "lower")},
    "vae": {
        "elbo": ("lower bound", *NATS),
        "iw_bound_k10": ("lower bound", *NATS),
        "iw_bound_k10_bits_per_dim": ("upper bound", "bits/dim", "lower"),
        "decoder_ais": ("lower bound", *NATS),
        "decoder_ais_gap": ("estimate", "nats", "lower"),
        "reconstruction_mse": ("estimate", "scaled pixels^2", "lower"),
        "linear_probe_error": ("estimate", "share", "lower"),
        "semi_supervised_error_30": ("estimate", "share", "lower"),
    },
    "rbm": {
        "log_likelihood": ("exact", *NATS),
        "log_likelihood_ais": ("estimate", *NATS),
        "log_likelihood_reverse_ais": ("estimate", *NATS),
        "log_likelihood_ais_bits_per_dim": ("estimate", "bits/dim", "lower"),
        "log_z_ais": ("estimate", "nats", "none"),
        "log_z_reverse_ais": ("estimate", "nats", "none"),
        "log_z_ais_ess": ("estimate", "chains", "higher"),
        "log_z_gap": ("estimate", "nats", "none"),
    },
    "dbn": {"elbo": ("lower bound", *NATS), "elbo_ais": ("estimate", *NATS), "elbo_reverse_ais": ("estimate", *NATS)},
    "gan": {
        "blurred_ais": ("estimate", *NATS),
        "blurred_ais_sigma": ("estimate", "scaled pixels", "none"),
        "parzen": ("estimate", *NATS),
    },
    "exact": {
        "log_likelihood_given_y": ("exact", *NATS),
        "log_likelihood_given_y_bits_per_dim": ("exact", "bits/dim", "lower"),
        "classification_error": ("estimate", "share", "lower"),
    },
    "bounded": {"elbo": ("lower bound", *NATS), "elbo_given_y": ("lower bound", *NATS)},
}


@pytest.mark.parametrize("model", MEANING)
def test_what_each_number_is(model: str, first: dict[str, dict[str, Any]]) -> None:
    for name, meaning in MEANING[model].items():
        metric, _ = first[model][name]
        assert (metric.kind, metric.unit, metric.direction) == meaning, name


# Which numbers change their id: by seed, by fewer examples, by AIS's temperatures, by another k. All others keep it.
NOISY = {
    "made": {"energy_distance", "parzen", "parzen_sigma"},
    "vae": {"elbo", "iw_bound_k10", "decoder_ais", "decoder_ais_gap", "energy_distance", "reconstruction_mse"},
    "rbm": {"log_likelihood_ais", "log_likelihood_reverse_ais", "log_z_ais", "log_z_reverse_ais", "log_z_gap"},
    "dbn": {"elbo", "elbo_ais", "elbo_reverse_ais", "log_z_ais"},
    "gan": {"blurred_ais", "blurred_ais_sigma", "parzen"},
    "exact": set(),
    "bounded": {"elbo", "elbo_given_y", "classification_error"},
}
CERTAIN = {
    "made": {"log_likelihood", "log_likelihood_bits_per_dim"},
    "rbm": {"log_likelihood", "log_likelihood_bits_per_dim"},
    "exact": {"log_likelihood", "log_likelihood_given_y", "classification_error"},
}
OF_LOG_Z = {"log_z_ais", "log_z_reverse_ais", "log_z_ais_ess", "log_z_reverse_ais_ess", "log_z_gap"}


def changed(model: str, first: dict[str, dict[str, Any]], **changes: Any) -> dict[str, bool]:
    before, after = first[model], measured(model, **changes)
    return {name: before[name][0].protocol_id != after[name][0].protocol_id for name in before.keys() & after.keys()}


@pytest.mark.parametrize("model", MODELS)
def test_a_seed_belongs_to_numbers_with_noise_only(model: str, first: dict[str, dict[str, Any]]) -> None:
    moved = changed(model, first, seed=1)
    assert {name: moved[name] for name in NOISY[model]} == dict.fromkeys(NOISY[model], True)
    certain = CERTAIN.get(model, set())
    assert {name: moved[name] for name in certain} == dict.fromkeys(certain, False)
    for name in certain:
        assert first[model][name][0].value == measured(model, seed=1)[name][0].value, name


@pytest.mark.parametrize("model", ["made", "vae", "rbm", "dbn"])
def test_fewer_examples_are_in_the_id_of_all_that_look_at_them(model: str, first: dict[str, dict[str, Any]]) -> None:
    moved = changed(model, first, max_examples=100)
    assert {name for name, is_new in moved.items() if not is_new} == OF_LOG_Z & moved.keys()
    # a limit that leaves all examples is none
    assert not any(changed(model, first, max_examples=N).values())
    assert not any(changed(model, first, max_examples=N + 1).values())


def test_a_random_part_depends_on_the_seed_even_without_noise(first: dict[str, dict[str, Any]]) -> None:
    ids = {measured("made", max_examples=100, seed=seed)["log_likelihood"][0].protocol_id for seed in (0, 1)}
    assert len(ids) == 2


def test_the_schedule_belongs_to_annealing_only(first: dict[str, dict[str, Any]]) -> None:
    for model in ("rbm", "dbn"):
        moved = changed(model, first, ais={"chains": 20, "temperatures": 31})
        annealed = {name for name in moved if "ais" in name or name == "log_z_gap"}
        assert {name for name, is_new in moved.items() if is_new} == annealed


def test_one_bound_has_one_id_whatever_is_measured_beside_it(first: dict[str, dict[str, Any]]) -> None:
    assert not any(changed("vae", first, k=[10, 50]).values())
    assert measured("vae", k=50)["iw_bound_k50"][0].protocol_id != first["vae"]["iw_bound_k10"][0].protocol_id


def under(evaluator: Evaluator) -> dict[str, str]:
    """The ids of an RBM's numbers, with and without noise, of the split and of none."""
    torch.manual_seed(0)
    return {name: metric.protocol_id for name, (metric, _) in evaluator.measure(MODELS["rbm"]()).items()}


def plain(content: str = "1" * 64, binarise: str = "none", **changes: Any) -> Evaluator:
    settings = {"split": "test", "rule": "best", "averaged": False} | changes
    one = replace(data(), content_hash=content, binarise=binarise)
    one.splits["valid"] = Split(one.splits["valid"].x[:200], one.splits["valid"].y[:200])
    return Evaluator(one, PROTOCOL, device=torch.device("cpu"), **settings)  # type: ignore[arg-type]


# A value of each key of what all numbers of an evaluation share, and what else gives it another one.
COMMON: dict[str, dict[str, Any]] = {
    "split": {"split": "valid"},
    "data_hash": {"content": "2" * 64},
    "binarise": {"binarise": "threshold"},
    "checkpoint": {"rule": "final"},
    "averaged_weights": {"averaged": True},
}


def test_every_key_of_the_common_protocol_is_changed_here() -> None:
    assert set(plain().common) == {*COMMON, "examples", "noise"}  # these two have tests of their own, above


@pytest.mark.parametrize("key", COMMON)
def test_each_key_of_the_common_protocol_changes_every_id(key: str) -> None:
    before, other = plain(), plain(**COMMON[key])
    assert {name for name in before.common if before.common[name] != other.common[name]} == {key}
    ids, changed_ids = under(before), under(other)
    assert ids.keys() == changed_ids.keys()
    assert [name for name in ids if ids[name] == changed_ids[name]] == []


def test_data_binarised_anew_at_each_look_depend_on_the_seed() -> None:
    assert plain(binarise="dynamic").common["examples"] == {"seed": 0}
    assert plain().common["examples"] == "all"


class Copies(Model):
    """Samples that are the examples of one split, in their order, again and again."""

    def __init__(self, split: Split) -> None:
        super().__init__(SPEC)
        self.x = torch.from_numpy(split.x)

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return self.x[torch.arange(n) % len(self.x)]


def three_splits() -> DataSet:
    """Splits of coins that fall on one side more often in each than in the one before."""
    rng = np.random.RandomState(0)
    splits = {
        name: Split((rng.rand(200, 6) < p).astype(np.uint8), rng.randint(0, 3, 200))
        for name, p in (("train", 0.1), ("valid", 0.5), ("test", 0.9))
    }
    return DataSet("toy", SPEC, splits, "1" * 64)


def test_a_model_is_validated_on_the_validation_split_and_measured_on_the_one_that_it_says() -> None:
    sets = three_splits()
    device = torch.device("cpu")

    class Ones(Model):
        """log p(x) is the number of ones, which tells the splits apart."""

        def log_prob(self, x: Tensor) -> Tensor:
            return x.double().sum(1)

    ones = {name: float(split.x.sum(1).mean()) for name, split in sets.splits.items()}
    assert validation_objective(Ones(SPEC), sets, device=device)[1].value == ones["valid"]
    distances = {}
    for name, split in sets.splits.items():
        found = validation_objective(Copies(split), sets, device=device)
        assert found[0] == "energy_distance"
        distances[name] = found[1].value
    assert distances["valid"] < 0 < min(distances["train"], distances["test"])  # only of itself a sample finds copies
    for split in ("train", "valid", "test"):
        evaluator = Evaluator(sets, PROTOCOL, split=split, rule="best", averaged=False, device=device)  # type: ignore[arg-type]
        assert evaluator.measure(Ones(SPEC))["log_likelihood"][0].value == ones[split]
        values = {name: evaluator.measure(Copies(sets.splits[name]))["energy_distance"][0].value for name in ones}
        assert min(values, key=values.__getitem__) == split
        assert values[split] < 0


def test_likelihoods_given_the_label_and_the_rule_of_bayes(first: dict[str, dict[str, Any]]) -> None:
    split = data().splits["test"]
    x, y = torch.from_numpy(split.x), torch.from_numpy(split.y)
    model = Exact()
    each = torch.stack([model.given(x, torch.full_like(y, label)) for label in range(3)], 1)
    right = each.gather(1, y[:, None])[:, 0]
    assert first["exact"]["log_likelihood_given_y"][0].value == pytest.approx(float(right.mean()))
    assert first["exact"]["classification_error"][0].value == float((each.argmax(1) != y).double().mean())
    found = first["bounded"]["elbo_given_y"][0]
    # uniform noise is 1/2 on average; two draws of it, which nothing else adds to on the same examples
    sd = (1 / 24 / N) ** 0.5
    assert abs(found.value - float(right.mean()) + 0.5) < 4.5 * sd
    assert 0.7 < found.se_draws / sd < 1.3


def test_a_prior_takes_part_in_classification() -> None:
    """Labels in unequal shares: without the prior the most probable label is another for a number of ones between."""
    model = Exact()
    prior = torch.tensor([0.9, 0.05, 0.05]).log()
    model.class_log_prior.copy_(prior)
    split = data().splits["test"]
    x, y = torch.from_numpy(split.x), torch.from_numpy(split.y)
    each = torch.stack([model.given(x, torch.full_like(y, label)) for label in range(3)], 1)
    with_prior, without = ((scores.argmax(1) != y).double().mean() for scores in (each + prior, each))
    assert with_prior != without
    evaluator = Evaluator(data(), PROTOCOL, split="test", rule="best", averaged=False, device=torch.device("cpu"))
    assert evaluator.measure(model)["classification_error"][0].value == float(with_prior)


def test_scores_that_are_not_numbers_choose_no_label() -> None:
    class Broken(Exact):
        def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            found = super().log_prob(x, y)
            return found.index_fill(0, torch.tensor([0]), torch.nan)

    evaluator = Evaluator(data(), PROTOCOL, split="test", rule="best", averaged=False, device=torch.device("cpu"))
    error = evaluator.measure(Broken())["classification_error"][0]
    assert error.as_dict()["value"] is None
    assert "3 of 250 values are not finite" in error.note  # the first of each chunk of a hundred


def test_measuring_sets_and_restores_the_mode_of_the_model() -> None:
    model = Made(SPEC, hidden_sizes=(4,))
    inside = torch.nn.BatchNorm1d(6)
    model.add_module("norm", inside)
    seen: list[bool] = []
    log_prob = model.log_prob

    def watched(x: Tensor) -> Tensor:
        seen.append(inside.training)
        inside(x.float())
        return log_prob(x)

    model.log_prob = watched  # type: ignore[method-assign]
    model.train()
    evaluator = Evaluator(data(), PROTOCOL, split="test", rule="best", averaged=False, device=torch.device("cpu"))
    evaluator.measure(model)
    assert seen
    assert not any(seen)
    assert model.training
    assert inside.training
    assert int(inside.num_batches_tracked) == 0
