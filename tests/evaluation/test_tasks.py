"""Own objectives, translations, enhancements and predictions against values computed by other means."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import r2_score
from torch import Generator, Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.functional.text import word_error_rate

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.data.spec import Batch
from dgmbench.errors import UserError
from dgmbench.evaluation.evaluator import Evaluator, validation_objective
from dgmbench.evaluation.features.factor import FactorClassifier, factor_of
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.sample_distance import pixel_energy_distance
from dgmbench.evaluation.tasks.enhancement import baseline
from dgmbench.evaluation.tasks.prediction import edit_distance, word_error
from dgmbench.models.contract import Model
from dgmbench.models.tasks import HeldOut
from dgmbench.training.ranks import Ranks

CPU = torch.device("cpu")
PROTOCOL: dict[str, Any] = {"seed": 0, "k": 1, "ais": {"chains": 5, "temperatures": 5}, "max_examples": None}
IMAGES = DataSpec((1, 16, 16), "discrete", levels=256, num_classes=6, factors=(("domain", 3), ("shade", 2)))


def dataset(n: int = 250, spec: DataSpec = IMAGES, *, y: np.ndarray | None = None, seed: int = 0) -> DataSet:
    """Noise whose top half's brightness is the domain and whose bottom half's is the shade."""
    rng = np.random.RandomState(seed)
    y = rng.randint(0, 6, n) if y is None else y
    x = rng.randint(0, 40, (n, 1, 16, 16))
    x[:, :, :8] += (70 * (np.maximum(y, 0) // 2))[:, None, None, None]
    x[:, :, 8:] += (150 * (np.maximum(y, 0) % 2))[:, None, None, None]
    split = Split(x.astype(np.uint8), y.astype(np.int64))
    return DataSet("toy", spec, {"train": split, "valid": split, "test": split}, f"{seed:064d}")


def measured(model: Model, data: DataSet, **protocol: Any) -> dict[str, Metric]:
    evaluator = Evaluator(data, PROTOCOL | protocol, split="test", rule="best", averaged=False, device=CPU)
    return {name: metric for name, (metric, _) in evaluator.measure(model).items()}


# ---------------------------------------------------------------------- an objective of the model's own


class Own(Model):
    """Means of the brightness, of a random number, and of the label."""

    names: Mapping[str, HeldOut] = {
        "brightness": HeldOut("levels", "lower", "exact"),
        "noise": HeldOut("1", "none"),
        "label": HeldOut("1", "higher"),
    }

    def objectives(self) -> Mapping[str, HeldOut]:
        return self.names

    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> Mapping[str, Tensor]:
        assert batch.y is not None
        assert not self.training
        label = batch.y.float().masked_fill(batch.y < 0, torch.nan)
        noise = torch.rand(len(batch.x), generator=generator)
        return {"noise": noise, "label": label, "brightness": batch.x.float().flatten(1).mean(1)}

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x))


def test_own_objectives_are_exact_means_over_the_split_with_their_errors() -> None:
    y = np.random.RandomState(1).randint(-1, 6, 250)
    data = dataset(y=y)
    found = measured(Own(IMAGES).train(), data)
    values = data.splits["test"].x.reshape(250, -1).mean(1)
    brightness = found["brightness"]
    assert brightness.value == pytest.approx(values.mean(), rel=1e-6)
    assert brightness.se == pytest.approx(values.std(ddof=1) / math.sqrt(250), rel=1e-5)
    assert (brightness.unit, brightness.direction, brightness.kind, brightness.n) == ("levels", "lower", "exact", 250)
    label = found["label"]
    assert label.value == pytest.approx(y[y >= 0].mean())
    assert (label.n, label.note) == ((y >= 0).sum(), f"{(y < 0).sum()} of 250 examples have no label")
    assert abs(found["noise"].value - 0.5) < 4 * math.sqrt(1 / 12 / 250)


def test_an_objective_of_some_examples_leaves_the_others_out_and_no_other_forgives_what_is_no_number() -> None:
    class Dark(Own):
        """Brightness of the dark examples alone."""

        names: Mapping[str, HeldOut] = {"dark": HeldOut("levels", "lower", some=True)}

        def held_out(self, batch: Batch, *, generator: Generator | None = None) -> Mapping[str, Tensor]:
            bright = batch.x.float().flatten(1).mean(1)
            return {"dark": bright.masked_fill(bright > 100, torch.nan)}

    data = dataset()
    values = data.splits["test"].x.reshape(250, -1).mean(1)
    found = measured(Dark(IMAGES), data)["dark"]
    dark = values <= 100
    assert 0 < dark.sum() < 250
    assert found.value == pytest.approx(values[dark].mean(), rel=1e-6)
    assert (found.n, found.note) == (dark.sum(), f"{(~dark).sum()} of 250 examples have no such value")
    Dark.names = {"dark": HeldOut("levels", "lower")}
    assert math.isnan(measured(Dark(IMAGES), data)["dark"].value)


def test_the_objective_is_the_first_name_of_the_validation_split_before_any_likelihood() -> None:
    data = dataset()
    valid = dataset(120, seed=3).splits["valid"]
    data = DataSet("toy", IMAGES, {**data.splits, "valid": valid}, "2" * 64)
    name, metric = validation_objective(Own(IMAGES).eval(), data, device=CPU)
    assert name == "brightness"
    assert metric.value == pytest.approx(valid.x.reshape(120, -1).mean(1).mean(), rel=1e-6)
    limited = validation_objective(Own(IMAGES).eval(), data, device=CPU, limit=50)[1]
    assert limited.n == 50


def test_own_objectives_do_not_depend_on_the_number_of_processes() -> None:
    class Shared(Ranks):
        """One of two processes; what the other holds is put together by hand."""

        def gathered(self, parts: dict[int, Any]) -> list[Any]:
            held.append(parts)
            return [torch.full_like(next(iter(parts.values())), 0.5)] * 2

    data, model, held = dataset(), Own(IMAGES).eval(), []
    whole = validation_objective(model, data, device=CPU)[1]
    for rank in range(2):
        validation_objective(model, data, device=CPU, ranks=Shared(rank, rank, 2))
    assert sorted(held[0]) == [0, 2]
    assert sorted(held[1]) == [1]
    together = torch.cat([part for _, part in sorted({**held[0], **held[1]}.items())])
    assert float(together[:, 0].mean()) == pytest.approx(whole.value, rel=1e-12)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({}, r"Own.objectives\(\) is empty"),
        ({"noise": HeldOut("1", "none")}, "objective noise has no better side"),
        ({"brightness": HeldOut("1", "lower")}, "held_out returns noise, label, brightness, but"),
        (
            {
                "log_likelihood": HeldOut("1", "lower"),
                "noise": HeldOut("1", "none"),
                "label": HeldOut("1", "higher"),
                "brightness": HeldOut("1", "higher"),
            },
            "held_out returns",
        ),
    ],
)
def test_objectives_that_make_no_sense_are_refused(names: Mapping[str, HeldOut], says: str) -> None:
    model = Own(IMAGES)
    model.names = names
    with pytest.raises(UserError, match=says):
        measured(model, dataset())


def test_a_name_that_is_measured_anyway_is_refused() -> None:
    class Clash(Own):
        names: Mapping[str, HeldOut] = {"log_likelihood": HeldOut("nats", "higher")}

        def held_out(self, batch: Batch, *, generator: Generator | None = None) -> Mapping[str, Tensor]:
            return {"log_likelihood": torch.zeros(len(batch.x))}

    with pytest.raises(UserError, match="names its own number 'log_likelihood', which is measured of it anyway"):
        measured(Clash(IMAGES), dataset())


def test_a_model_with_nothing_to_validate_it_by_is_told_of_objectives() -> None:
    with pytest.raises(UserError, match="an objective of its own"):
        validation_objective(Model(IMAGES), dataset(), device=CPU)


# ---------------------------------------------------------------------- translations

CLASSIFIER = [{"_target_": "dgmbench.evaluation.features.classifier.Classifier", "images": 6000, "width": 4}]


class Translator(Model):
    """Adds what the domains' top halves differ in, knows the domain from the top half; options to do it badly."""

    def __init__(self, spec: DataSpec, *, domain: str | None = "domain", lazy: bool = False, careless: bool = False):
        super().__init__(spec)
        self.domain, self.lazy, self.careless = domain, lazy, careless
        self.asked: list[tuple[list[int], list[int]]] = []

    def translate(self, x: Tensor, to: Tensor, *, generator: Generator | None = None) -> Tensor:
        now = (x[:, :, :8].float().flatten(1).mean(1) / 70 - 0.28).round().long()
        self.asked.append((now.tolist(), to.tolist()))
        if self.lazy:
            return x
        x = x.clone()
        x[:, :, :8] += (70 * (to - now)).to(torch.uint8)[:, None, None, None]
        if self.careless:  # the shade is lost
            x[:, :, 8:] %= 40
        return x


def test_a_right_translator_arrives_keeps_and_comes_back() -> None:
    data = dataset()
    model = Translator(IMAGES)
    found = measured(model, data, quality={"samples": 100, "features": CLASSIFIER})
    assert found["translation_domain_accuracy"].value > 0.98
    assert found["translation_shade_accuracy"].value > 0.98
    assert found["translation_cycle_error"].value == 0.0
    there, back = model.asked[0::2], model.asked[1::2]
    own = [domain for now, _ in there for domain in now]
    to = [domain for _, domains in there for domain in domains]
    assert own == (data.splits["test"].y // 2).tolist()  # type: ignore[operator]
    assert all(a != b for a, b in zip(own, to, strict=True))
    assert set(itertools.product(range(3), repeat=2)) - set(zip(own, to, strict=True)) == {(0, 0), (1, 1), (2, 2)}
    assert [domain for _, domains in back for domain in domains] == own, "back to where each came from"


def test_wrong_translators_are_found_out_by_the_number_that_should_find_them() -> None:
    quality = {"samples": 100, "features": CLASSIFIER}
    lazy = measured(Translator(IMAGES, lazy=True), dataset(), quality=quality)
    assert lazy["translation_domain_accuracy"].value < 0.05, "what stays where it was has not arrived"
    assert lazy["translation_shade_accuracy"].value > 0.98
    assert lazy["translation_cycle_error"].value == 0.0
    careless = measured(Translator(IMAGES, careless=True), dataset(), quality=quality)
    assert careless["translation_domain_accuracy"].value > 0.9
    assert abs(careless["translation_shade_accuracy"].value - 0.5) < 4 * math.sqrt(0.25 / 250)
    data = dataset()
    x = data.splits["test"].x.astype(float)
    lost = np.abs(x[:, :, 8:] - x[:, :, 8:] % 40).sum((1, 2, 3)) / 256 / 255
    assert careless["translation_cycle_error"].value == pytest.approx(lost.mean(), rel=1e-5)


def test_without_nets_only_the_cycle_is_measured_and_unlabelled_examples_are_said() -> None:
    y = np.random.RandomState(1).randint(-1, 6, 250)
    found = measured(Translator(IMAGES), dataset(y=y), quality={"samples": 100, "features": []})
    assert [name for name in found if name.startswith("translation")] == ["translation_cycle_error"]
    assert found["translation_cycle_error"].n == (y >= 0).sum()
    assert found["translation_cycle_error"].note == f"{(y < 0).sum()} of 250 examples have no label"


def test_translators_without_objectives_are_validated_by_the_distance_to_each_domain() -> None:
    """The mean of the domains' energy distances, near zero where translations are like the domain that they went to."""
    data = dataset()
    name, right = validation_objective(Translator(IMAGES), data, device=CPU)
    lazy = Translator(IMAGES, lazy=True)
    _, wrong = validation_objective(lazy, data, device=CPU)
    assert name == "translation_distance"
    assert abs(right.value) < 4 * (right.se or 0.0)
    assert wrong.value > 0.3
    valid = data.splits["valid"]
    to = torch.tensor([domain for _, domains in lazy.asked for domain in domains])
    x, domain = torch.from_numpy(valid.x), torch.from_numpy(valid.y) // 2  # type: ignore[operator]
    each = [pixel_energy_distance(x[to == k], x[domain == k], IMAGES) for k in range(3)]
    assert wrong.value == pytest.approx(sum(one.value for one in each) / 3)
    assert wrong.se == pytest.approx(math.sqrt(sum((one.se or 0.0) ** 2 for one in each)) / 3)


def test_a_domain_that_the_data_do_not_have_is_refused() -> None:
    with pytest.raises(UserError, match="'season'"):
        measured(Translator(IMAGES, domain="season"), dataset())


def test_factors_of_labels_are_those_of_numpy() -> None:
    spec = DataSpec((1,), "real", factors=(("a", 2), ("b", 3), ("c", 4)))
    y = np.arange(24)
    for place, factor in enumerate("abc"):
        expected = np.unravel_index(y, (2, 3, 4))[place]
        assert factor_of(torch.from_numpy(y), spec, factor).tolist() == expected.tolist()
    assert factor_of(torch.tensor([-1, 5]), spec, "c").tolist() == [-1, 1]


def test_a_factor_classifier_learns_its_factor() -> None:
    spec = replace(IMAGES, class_names=tuple(f"combination {k}" for k in range(IMAGES.num_classes or 0)))
    data = dataset(400, spec)
    net = FactorClassifier(spec, factor="shade", width=4, images=6000)
    net.settings = {"factor": "shade", "width": 4, "images": 6000}
    net.prepare(data, None, lambda text: None)
    x, y = (torch.from_numpy(each) for each in (data.splits["test"].x, data.splits["test"].y))  # type: ignore[arg-type]
    logits = net.logits(net(x))
    assert logits.shape == (400, 2)
    assert ((logits.argmax(1) == y % 2).double().mean()) > 0.98
    with pytest.raises(UserError, match="'tone'"):
        FactorClassifier(IMAGES, factor="tone")


# ---------------------------------------------------------------------- enhancements


class Halver(Model):
    """Gives every second pixel's mean; enhances by repetition and ``plus``."""

    def __init__(self, spec: DataSpec, plus: float = 0.0) -> None:
        super().__init__(spec)
        self.plus = plus

    def degrade(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        return torch.nn.functional.avg_pool2d(x.float(), 2).round().to(torch.uint8)

    def enhance(self, given: Tensor, *, generator: Generator | None = None) -> Tensor:
        assert given.dtype == torch.uint8
        return given.float().repeat_interleave(2, 2).repeat_interleave(2, 3) + self.plus


def test_enhancements_against_torchmetrics_and_pillow() -> None:
    data = dataset(12)
    model = Halver(IMAGES, plus=3.0)
    found = measured(model, data, quality={"samples": 100, "features": []})
    x = torch.from_numpy(data.splits["test"].x)
    given = model.degrade(x)
    bicubic = torch.stack(
        [
            torch.from_numpy(np.array(Image.fromarray(g[0].numpy().astype(np.float32)).resize((16, 16), Image.BICUBIC)))
            for g in given
        ]
    )[:, None].clamp(0, 255)
    torch.testing.assert_close(baseline(given, IMAGES), bicubic, atol=1e-2, rtol=0)
    truth = x.float() / 255
    for name, made in (("enhanced", model.enhance(given) / 255), ("bicubic", bicubic / 255)):
        pairs = list(zip(made, truth, strict=True))
        psnr = [float(peak_signal_noise_ratio(a[None], b[None], data_range=1.0)) for a, b in pairs]
        _, everywhere = structural_similarity_index_measure(made, truth, data_range=1.0, return_full_image=True)
        ssim = everywhere[..., 5:-5, 5:-5].mean()  # where the window lies inside
        assert found[f"{name}_psnr"].value == pytest.approx(np.mean(psnr), abs=1e-3)
        assert found[f"{name}_mse"].value == pytest.approx(float((made - truth).square().mean()), rel=1e-3)
        assert found[f"{name}_ssim"].value == pytest.approx(float(ssim), abs=1e-4)
    gain = found["enhanced_psnr_over_bicubic"]
    assert gain.value == pytest.approx(found["enhanced_psnr"].value - found["bicubic_psnr"].value)
    assert gain.se is not None
    assert (found["enhanced_psnr"].unit, found["enhanced_psnr"].direction) == ("dB", "higher")


def test_what_data_give_beside_an_example_is_enhanced_and_the_copy_is_its_baseline() -> None:
    class Plus(Model):
        def enhance(self, given: Tensor, *, generator: Generator | None = None) -> Tensor:
            return given.float() + 1

    data = dataset(30)
    with pytest.raises(UserError, match="give nothing beside each example"):
        measured(Plus(IMAGES), data)
    spec = replace(IMAGES, given=DataSpec((1, 16, 16), "discrete", levels=256))
    splits = {name: replace(part, given=np.maximum(part.x, 4) - 4) for name, part in data.splits.items()}
    found = measured(Plus(spec), replace(data, spec=spec, splits=splits))
    assert found["copy_mse"].value > found["enhanced_mse"].value
    x = data.splits["test"].x.astype(int)
    expected = ((np.maximum(x, 4) - 4 + 1 - x) / 255.0) ** 2
    assert found["enhanced_mse"].value == pytest.approx(expected.mean(), rel=1e-4)


def test_the_distance_of_features_is_that_of_the_net() -> None:
    data, model = dataset(40), Halver(IMAGES)
    found = measured(model, data, quality={"samples": 100, "features": ["pixel"]})
    x = torch.from_numpy(data.splits["test"].x)
    ours = model.enhance(model.degrade(x))
    expected = ((ours - x) / 255).square().flatten(1).mean(1)
    assert found["enhanced_distance_pixel"].value == pytest.approx(float(expected.mean()), rel=1e-4)


# ---------------------------------------------------------------------- predictions


class Predictor(Model):
    def __init__(self, spec: DataSpec, target: Any, predicted: Any) -> None:
        super().__init__(spec)
        self.truth, self.said = target, predicted

    def target(self, batch: Batch) -> Tensor:
        return self.truth[batch.index]

    def predict(self, batch: Batch) -> Tensor:
        assert batch.y is None, "a prediction must not see the label"
        return self.said[batch.index]


def test_label_errors_leave_out_what_has_no_label() -> None:
    truth, said = torch.randint(-1, 3, (250,)), torch.randint(0, 3, (250,))
    found = measured(Predictor(IMAGES, truth, said), dataset())["prediction_error"]
    known = truth >= 0
    assert found.value == pytest.approx(float((truth != said)[known].double().mean()))
    assert found.n == int(known.sum())
    assert found.note == f"{int((~known).sum())} of 250 examples have no label"


def test_word_errors_are_edits_per_word_of_the_whole_split() -> None:
    rng = np.random.RandomState(0)
    truth, said = (np.full((250, width), -1) for width in (6, 8))
    for row in range(250):
        truth[row, : rng.randint(1, 7)] = rng.randint(0, 4)
        said[row, : rng.randint(0, 9)] = rng.randint(0, 4)
    truth = np.where(truth >= 0, rng.randint(0, 4, truth.shape), -1)
    found = measured(Predictor(IMAGES, torch.from_numpy(truth), torch.from_numpy(said)), dataset())["word_error"]
    texts = [[" ".join(str(w) for w in row if w >= 0) for row in each] for each in (said, truth)]
    assert found.value == pytest.approx(float(word_error_rate(*texts)), rel=1e-6)
    assert found.n == (truth >= 0).sum()


def test_the_standard_error_of_a_word_error_is_that_of_repetitions() -> None:
    rng = np.random.RandomState(0)

    def pair() -> tuple[list[int], list[int]]:
        words = rng.randint(0, 5, rng.randint(1, 9)).tolist()
        return words, [w if rng.rand() > 0.2 else 9 for w in words]

    rates = [word_error([pair() for _ in range(60)]) for _ in range(200)]
    spread = np.std([r.value for r in rates])
    assert 0.85 < np.mean([r.se for r in rates]) / spread < 1.15  # a deviation from 200 values is known to 5 %


def test_edit_distance_by_brute_force() -> None:
    words = [list(w) for n in range(6) for w in itertools.product(range(2), repeat=n)]

    def neighbours(w: list[int]) -> list[list[int]]:
        inserted = [[*w[:i], c, *w[i:]] for i in range(len(w) + 1) for c in range(2)]
        return (
            inserted
            + [w[:i] + w[i + 1 :] for i in range(len(w))]
            + [[*w[:i], 1 - w[i], *w[i + 1 :]] for i in range(len(w))]
        )

    start, seen, front = [0, 1, 0], {(0, 1, 0): 0}, [[0, 1, 0]]
    for steps in range(1, 7):
        front = [n for w in front for n in neighbours(w) if len(n) <= 5 and tuple(n) not in seen]
        for n in front:
            seen.setdefault(tuple(n), steps)
    assert all(edit_distance(start, w) == seen[tuple(w)] for w in words)


def test_regression_against_scikit_learn_and_the_density() -> None:
    truth = torch.randn(250)
    said = truth + 0.5 * torch.randn(250)

    class Gaussian(Predictor):
        def log_predictive(self, batch: Batch) -> Tensor:
            return torch.distributions.Normal(self.said[batch.index], 0.5).log_prob(self.target(batch))

    found = measured(Gaussian(IMAGES, truth, said), dataset())
    assert found["prediction_mse"].value == pytest.approx(float((truth - said).square().mean()), rel=1e-5)
    assert found["prediction_r2"].value == pytest.approx(r2_score(truth, said), rel=1e-5)
    expected = -torch.distributions.Normal(said, 0.5).log_prob(truth).mean()
    assert found["predictive_nll"].value == pytest.approx(float(expected), rel=1e-5)
    assert found["predictive_nll"].direction == "lower"


def test_a_prediction_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="both must be of one kind"):
        measured(Predictor(IMAGES, torch.zeros(250), torch.zeros(250, dtype=torch.int64)), dataset())
