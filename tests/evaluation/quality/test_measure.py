"""The evaluation of samples from end to end: names, protocols, seeds, fallbacks, and the failures it must notice."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from dgmbench.config import compose, resolve
from dgmbench.data import DataSet, DataSpec, Split, load
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.evaluator import Evaluator, validation_objective
from dgmbench.evaluation.features.build import build_net
from dgmbench.evaluation.parts import Context
from dgmbench.evaluation.quality import frechet
from dgmbench.evaluation.quality.inception_score import inception_score
from dgmbench.models.contract import Model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load(resolve(compose("train", ["model=made", "data=digits"]))["data"], Path())


def measure(model: Model, data: DataSet, **changes: Any) -> dict[str, Any]:
    quality = {"samples": 10_000, "features": None} | changes.pop("quality", {})
    protocol = {"seed": 0, "k": 1, "ais": {}, "max_examples": None, "quality": quality} | changes
    evaluator = Evaluator(data, protocol, split="test", rule="best", averaged=False, device=CPU)
    return evaluator.measure(model)


class Drawer(Model):
    """Draws from a fixed set of images."""

    def __init__(self, spec: DataSpec, images: Tensor) -> None:
        super().__init__(spec)
        self.register_buffer("images", images)

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return self.images[torch.randint(len(self.images), (n,), generator=generator)]


def broken_sets(data: DataSet) -> dict[str, Tensor]:
    """Held-out images and what generators do to them."""
    x, y = (torch.from_numpy(part) for part in (data.splits["valid"].x, data.splits["valid"].y))
    g = torch.Generator().manual_seed(0)
    u = x.float() / 16

    def back(values: Tensor) -> Tensor:
        return (16 * values).round().clamp(0, 16).to(torch.uint8)

    return {
        "fresh": x,
        "copies": torch.from_numpy(data.splits["train"].x),
        "blurred": back(F.avg_pool2d(F.pad(u, (1, 1, 1, 1), mode="replicate"), 3, 1)),
        "noisy": back(u + 0.3 * torch.randn(u.shape, generator=g)),
        "half the classes": x[y < 5],
        "collapsed": x[:3],
        "noise": torch.randint(0, 17, x.shape, generator=g, dtype=torch.uint8),
    }


@pytest.fixture(scope="module")
def found(digits: DataSet) -> dict[str, dict[str, Any]]:
    nets = {"features": ["classifier", "random_conv"]}
    return {
        name: {key: metric for key, (metric, _) in measure(Drawer(digits.spec, x), digits, quality=nets).items()}
        for name, x in broken_sets(digits).items()
    }


def test_distances_notice_what_they_must(found: dict[str, dict[str, Any]]) -> None:
    for net in ("classifier", "random_conv"):
        for measure_name in ("fd", "fd_train", "mmd", "swd"):
            name, _, variant = measure_name.partition("_")
            label = f"{name}_{net}{variant and '_'}{variant}"
            values = {kind: found[kind][label].value for kind in found}
            for kind in ("blurred", "noisy", "half the classes", "collapsed", "noise"):
                assert values[kind] > 1.2 * max(values["fresh"], 0), (label, kind, values)
            assert values["noise"] > values["noisy"], label
            assert values["collapsed"] > values["half the classes"], label
    for kind in ("blurred", "noise", "collapsed"):
        kid, fresh = found[kind]["kid_classifier"], found["fresh"]["kid_classifier"]
        assert kid.value > 4 * fresh.se + fresh.value, kind


def test_each_measure_of_neighbourhoods_notices_its_own_failure(found: dict[str, dict[str, Any]]) -> None:
    def value(kind: str, name: str) -> float:
        return float(found[kind][f"{name}_classifier"].value)

    assert value("half the classes", "recall") < 0.75 * value("fresh", "recall")
    assert value("half the classes", "coverage") < 0.75 * value("fresh", "coverage")
    assert value("half the classes", "precision") > 0.9 * value("fresh", "precision")  # what it draws is good
    assert value("collapsed", "coverage") < 0.2
    assert value("noise", "precision") < 0.2 < 0.2 + value("noise", "coverage") < 0.5
    assert value("noise", "density") < 0.2
    assert value("noise", "two_sample") > 0.9
    assert abs(value("copies", "two_sample") - 0.5) < 0.15
    scores = {kind: float(found[kind]["classifier_score"].value) for kind in found}
    assert 1 <= scores["collapsed"] < scores["half the classes"] < scores["fresh"] < 10


def test_only_the_check_for_copies_notices_copies(found: dict[str, dict[str, Any]]) -> None:
    for net in ("classifier", "random_conv"):
        excess = {kind: found[kind][f"memorisation_{net}"] for kind in found}
        assert excess["copies"].value == pytest.approx(1)
        for kind in ("fresh", "blurred", "noisy", "half the classes", "collapsed", "noise"):
            assert abs(excess[kind].value) < 4 * excess[kind].se, (net, kind)
        # features of one image differ in the last digits between batches
        assert found["copies"][f"nn_distance_ratio_{net}"].value < 1e-4
        assert found["noise"][f"nn_distance_ratio_{net}"].value > 2
    assert found["copies"]["fd_classifier"].value < found["half the classes"]["fd_classifier"].value


@pytest.mark.parametrize("protocol", ["quick", "glance"])
@pytest.mark.parametrize("kept", [True, False])
def test_copies_are_noticed_however_few_examples_the_rest_looks_at(
    digits: DataSet, protocol: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr("dgmbench.evaluation.quality.measure.MOST_KEPT", 0)
        monkeypatch.setattr("dgmbench.evaluation.quality.measure.PART", 500)
    settings = resolve(compose("train", ["model=made", "data=digits", f"protocol={protocol}"]))["protocol"]
    few = {"max_examples": settings["max_examples"], "quality": settings["quality"]}
    assert few["max_examples"] <= 200
    copier = Drawer(digits.spec, torch.from_numpy(digits.splits["train"].x))
    metric, depends = measure(copier, digits, **few)["memorisation_random_conv"]
    assert metric.value > 0.97
    assert metric.n == few["max_examples"]
    assert depends["reference"] == {"splits": ["train", "test"], "n": [1258, 359]}
    fresh = Drawer(digits.spec, torch.from_numpy(digits.splits["valid"].x))
    metric, _ = measure(fresh, digits, **few)["memorisation_random_conv"]
    assert abs(metric.value) < 4 * metric.se


def test_each_distance_is_to_its_own_reference_and_the_score_is_that_of_the_logits(digits: DataSet) -> None:
    model = Drawer(digits.spec, torch.from_numpy(digits.splits["valid"].x))
    found = measure(model, digits, max_examples=300, quality={"features": ["classifier"], "samples": 300})
    net = build_net("classifier", digits, folder=None, device=CPU)
    context = Context(digits, {"seed": 0, "max_examples": 300}, "test", CPU)
    x = net(context.draw(model, 300, lambda text: None))
    for split, variant in (("test", ""), ("train", "_train")):
        data = torch.cat([net(part) for part in Chunks(digits, split, seed=0, limit=300)])
        plain, bias, free = (found[f"fd_classifier{variant}{end}"] for end in ("", "_bias", "_inf"))
        expected = frechet.frechet(data, x)
        assert plain[0].value == pytest.approx(expected.value, rel=1e-4)
        assert bias[0].value == pytest.approx(expected.bias, rel=0.1)
        assert plain[1]["reference"] == bias[1]["reference"] == free[1]["reference"] == {"split": split, "n": 300}
        assert plain[0].value > bias[0].value > 0
        parts = tuple(free[1]["parts"])
        again = frechet.extrapolated(data, x, parts=parts, generator=context.generator("fd_inf"))
        assert free[0].value == pytest.approx(again.value, rel=1e-3)
        assert abs(free[0].value - plain[0].value) > 0.05 * plain[0].value
    test, train = found["fd_classifier"][0].value, found["fd_classifier_train"][0].value
    assert abs(test - train) > 1e-3 * test
    logits = net.logits(x)
    assert logits is not None
    assert found["classifier_score"][0].value == pytest.approx(inception_score(logits, splits=3).value, rel=1e-6)


def test_every_number_says_what_it_depends_on(digits: DataSet) -> None:
    model = Drawer(digits.spec, torch.from_numpy(digits.splits["valid"].x))
    measured = measure(model, digits)
    for name, (metric, protocol) in measured.items():
        assert math.isfinite(metric.value), name
        if name != "energy_distance":
            assert protocol["net"] == "classifier"
            assert len(protocol["net_hash"]) == 16
            assert protocol["samples"] == 1797  # no more than the data set has examples
    protocols = {name: protocol for name, (_, protocol) in measured.items()}
    assert protocols["fd_classifier"]["reference"] == {"split": "test", "n": 359}
    assert protocols["fd_classifier_train"]["reference"] == {"split": "train", "n": 1258}
    assert protocols["kid_classifier"]["block"] == 71
    assert protocols["precision_classifier"]["equal_sets"] == 359
    assert protocols["precision_classifier"]["neighbours"] == 5
    assert protocols["mmd_classifier"]["scales"] == [0.5, 1.0, 2.0]
    assert measured["fd_classifier"][0].se > 0
    ids = {metric.protocol_id for metric, _ in measured.values()}
    other = measure(model, digits, quality={"features": ["random_conv"]})
    assert not ids & {metric.protocol_id for name, (metric, _) in other.items() if name != "energy_distance"}


def test_numbers_repeat_by_seed_and_leave_the_global_generator_alone(digits: DataSet) -> None:
    model = Drawer(digits.spec, torch.from_numpy(digits.splits["valid"].x))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = measure(model, digits, quality={"samples": 300})
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert measure(model, digits, quality={"samples": 300}) == first
    other = measure(model, digits, quality={"samples": 300}, seed=1)
    assert other["fd_classifier"][0].value != first["fd_classifier"][0].value


def test_samples_that_are_no_data_get_a_note_and_no_number(digits: DataSet) -> None:
    spec = DataSpec((3,), "real")
    x = np.random.RandomState(0).randn(60, 3).astype(np.float32)
    data = DataSet("toy", spec, dict.fromkeys(("train", "valid", "test"), Split(x, None)), "1" * 64)
    bad = torch.from_numpy(x).clone()
    bad[:30] = torch.nan
    metric, _ = measure(Drawer(spec, bad), data, quality={"samples": 60})["fd_random_conv"]
    assert metric.as_dict()["value"] is None
    assert "values that are not finite" in metric.note
    scaled = Drawer(digits.spec, torch.rand((5, 1, 8, 8)))
    metric, _ = measure(scaled, digits, quality={"samples": 60})["fd_classifier"]
    assert "samples must be raw values of the data's space" in metric.note
    few = measure(Drawer(spec, torch.from_numpy(x)), data, quality={"samples": 4})
    assert few["kid_random_conv"][0].note == "There are 4 samples, but this measure needs at least 10."
    assert "5 nearest neighbours need more than k examples" in few["recall_random_conv"][0].note
    lost = {name for name, (metric, _) in few.items() if not math.isfinite(metric.value)}
    blind = ("kid", "mmd", "precision", "recall", "density", "coverage", "two_sample")
    assert lost == {f"{name}_random_conv" for name in blind}
    assert {"fd_random_conv", "swd_random_conv", "memorisation_random_conv"} <= set(few) - lost
    found = measure(Drawer(spec, torch.from_numpy(x)), data, quality={"samples": 60})["fd_random_conv"][0]
    assert math.isfinite(found.value)
    assert "60 examples for 128 features: biased upwards" in found.note


def test_data_that_mostly_coincide_lose_one_measure_not_all() -> None:
    x = np.zeros((100, 3), np.float32)
    x[:20] = np.random.RandomState(0).randn(20, 3)
    spec = DataSpec((3,), "real")
    data = DataSet("toy", spec, dict.fromkeys(("train", "valid", "test"), Split(x, None)), "1" * 64)
    found = measure(Drawer(spec, torch.from_numpy(x)), data, quality={"samples": 100})
    assert "have equal features" in found["mmd_random_conv"][0].note
    lost = [name for name, (metric, _) in found.items() if not math.isfinite(metric.value)]
    assert lost == ["mmd_random_conv"]
    assert {"fd_random_conv", "kid_random_conv", "swd_random_conv", "precision_random_conv"} <= set(found)


def test_one_class_only_is_a_number_not_a_nan(digits: DataSet) -> None:
    x, y = digits.splits["valid"].x, digits.splits["valid"].y
    found = measure(Drawer(digits.spec, torch.from_numpy(x[y == 3])), digits)
    assert 1 <= found["classifier_score"][0].value < 3
    same = measure(Drawer(digits.spec, torch.from_numpy(x[:1])), digits)  # one image, again and again
    assert all(math.isfinite(metric.value) for metric, _ in same.values())


def test_the_validation_objective_of_a_sampler_orders_its_failures(digits: DataSet) -> None:
    objective = {}
    for kind, images in broken_sets(digits).items():
        label, metric = validation_objective(Drawer(digits.spec, images), digits, device=CPU)
        objective[kind] = metric.value
        assert label == "energy_distance"
    assert objective.pop("fresh") < objective.pop("copies") + 0.02  # the same images: only chance differs
    assert min(objective.values()) > 0.03

    broken = Drawer(DataSpec((3,), "real"), torch.full((5, 3), torch.nan))
    split = Split(np.random.RandomState(0).randn(60, 3).astype(np.float32), None)
    data = DataSet("toy", broken.spec, dict.fromkeys(("train", "valid", "test"), split), "2" * 64)
    assert math.isnan(validation_objective(broken, data, device=CPU)[1].value)  # never the best checkpoint


class Recording(Drawer):
    """Keeps all that it has drawn."""

    def __init__(self, spec: DataSpec, images: Tensor) -> None:
        super().__init__(spec, images)
        self.drawn: list[Tensor] = []

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        self.drawn.append(super().sample(n, y, generator=generator))
        return self.drawn[-1]


def test_all_parts_judge_the_same_samples(digits: DataSet) -> None:
    model = Recording(digits.spec, torch.from_numpy(digits.splits["valid"].x))
    found = measure(model, digits, parzen={"samples": 300}, quality={"samples": 300, "features": []})
    assert {"parzen", "energy_distance"} <= set(found)
    assert [len(x) for x in model.drawn] == [250, 50], "drawn once for all of them"


class Counting(Drawer):
    """Counts the samples that are asked for."""

    drawn = 0

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        self.drawn += n
        return super().sample(n, y, generator=generator)


class Implicit(Counting):
    """A sample is one pass of noise."""

    noise_dim = 2

    def generate(self, noise: Tensor) -> Tensor:
        return self.images[: len(noise)].float()


def test_validation_draws_more_samples_than_examples_only_where_one_is_a_single_pass(digits: DataSet) -> None:
    for cls, limit, expected in ((Counting, None, digits.size("valid")), (Counting, 100, 100), (Implicit, None, 1000)):
        model = cls(digits.spec, torch.from_numpy(digits.splits["valid"].x))
        validation_objective(model, digits, device=CPU, limit=limit)
        assert model.drawn == expected


# ---------------------------------------------------------------------- labels, codes, reconstructions


class Labelled(Drawer):
    """Draws an image of the label, but for a share of them that have the next one."""

    def __init__(self, data: DataSet, wrong: float) -> None:
        part = data.splits["valid"]
        super().__init__(data.spec, torch.from_numpy(part.x))
        self.register_buffer("labels", torch.from_numpy(part.y))
        self.class_log_prior: Tensor | None = torch.full((10,), 0.1).log()
        self.wrong = wrong

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        if y is None:
            return super().sample(n, generator=generator)
        y = torch.where(torch.rand((n,), generator=generator) < self.wrong, (y + 1) % 10, y)
        weights = (self.labels == y[:, None]).float()
        return self.images[torch.multinomial(weights, 1, generator=generator)[:, 0]]


def test_conditional_consistency_is_the_share_of_right_labels(digits: DataSet) -> None:
    accuracy = {}
    for wrong in (0.0, 0.4):
        metric, protocol = measure(Labelled(digits, wrong), digits)["label_accuracy_classifier"]
        accuracy[wrong] = metric
        assert protocol["labels"] == "each as often"
    # the classifier errs on 1.7% of these images
    assert accuracy[0.0].value > 0.95
    assert abs(accuracy[0.4].value - 0.6 * accuracy[0.0].value) < 4 * accuracy[0.4].se + 0.4 * 0.05
    unconditional = Labelled(digits, 0.0)
    unconditional.class_log_prior = None
    assert "label_accuracy_classifier" not in measure(unconditional, digits)


def test_labelled_samples_that_are_no_data_get_a_note_and_no_number(digits: DataSet) -> None:
    model = Labelled(digits, 0.0)
    model.images = model.images / 2
    metric, _ = measure(model, digits)["label_accuracy_classifier"]
    assert metric.as_dict()["value"] is None
    assert "samples must be raw values of the data's space" in metric.note


class Autoencoder(Model):
    """Codes are the first ``kept`` pixels' values; reconstructions are a constant ``off`` too bright."""

    def __init__(self, spec: DataSpec, off: float) -> None:
        super().__init__(spec)
        self.off = off

    def encode(self, x: Tensor) -> Tensor:
        return x.float().flatten(1)

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        return x.float() + 16 * self.off


def test_codes_and_reconstructions(digits: DataSet) -> None:
    found = {name: metric for name, (metric, _) in measure(Autoencoder(digits.spec, 0.1), digits).items()}
    assert found["reconstruction_mse"].value == pytest.approx(0.01, rel=1e-4)
    assert found["reconstruction_psnr"].value == pytest.approx(20, rel=1e-4)
    assert 0 < found["reconstruction_ssim"].value < 1
    exact = {name: metric for name, (metric, _) in measure(Autoencoder(digits.spec, 0.0), digits).items()}
    assert exact["reconstruction_psnr"].value == 100
    assert exact["reconstruction_ssim"].value == pytest.approx(1)
    # pixels of the digits: published errors of these classifiers are a few percent
    assert 0 < found["linear_probe_error"].value < 0.08
    assert 0 < found["nearest_neighbour_error"].value < 0.05
    assert found["linear_probe_error"].n == 359


def test_few_labels_have_a_name_a_spread_and_a_protocol(digits: DataSet) -> None:
    model = Autoencoder(digits.spec, 0.1)
    found = measure(model, digits, semi_supervised={"labels": [50, 5, 5000], "draws": 4})
    metric, protocol = found["semi_supervised_error_50"]
    assert found["linear_probe_error"][0].value < metric.value < 0.3
    assert (protocol["labels"], protocol["draws"], metric.n) == (50, 4, 359)
    # of the four draws, and of the examples beside it
    assert 0 < metric.se_draws < metric.se < 0.05
    assert "5 labels are too few for 10 classes" in found["semi_supervised_error_5"][0].note
    assert "of them has only" in found["semi_supervised_error_5000"][0].note
    assert "semi_supervised_error_50" not in measure(model, digits)
