"""PSNR, SSIM, probes: against hand computation, torchmetrics and scikit-learn; and two real processes against one."""

import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from dgmbench.errors import UserError
from dgmbench.evaluation.quality import probe
from dgmbench.evaluation.quality.frechet import FrechetDistance, frechet
from dgmbench.evaluation.quality.inception_score import InceptionScore, inception_score
from dgmbench.evaluation.quality.kid import KernelDistance
from dgmbench.evaluation.quality.probe import few_label_errors, linear_probe_errors, nearest_neighbour_errors
from dgmbench.evaluation.quality.similarity import CAP, psnr, ssim
from dgmbench.training.ranks import Ranks

TWO = Path(__file__).with_name("two.py")


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_psnr_of_a_constant_offset() -> None:
    a = uniform(3, 1, 8, 8, seed=0)
    offset = torch.tensor([1 / 255, 10 / 255, 0.0], dtype=torch.float64)[:, None, None, None]
    expected = [20 * math.log10(255), 20 * math.log10(25.5), CAP]
    assert psnr(a, a + offset).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 12)])
def test_ssim_agrees_with_torchmetrics(shape: tuple[int, ...]) -> None:
    a = uniform(4, *shape, seed=0)
    b = (0.7 * a + 0.3 * uniform(4, *shape, seed=1)).clamp(0, 1)
    _, everywhere = structural_similarity_index_measure(b, a, data_range=1.0, reduction="none", return_full_image=True)
    inside = everywhere[..., 5:-5, 5:-5]  # theirs goes on over the edge, into a reflection
    torch.testing.assert_close(ssim(a, b), inside.flatten(1).mean(1).double(), rtol=1e-4, atol=1e-5)


def test_ssim_of_equal_and_of_small_images() -> None:
    a = uniform(2, 1, 8, 8, seed=0)
    torch.testing.assert_close(ssim(a, a), torch.ones(2, dtype=torch.float64))
    blurred = torch.nn.functional.avg_pool2d(a, 3, 1, 1)
    noisy = (a + 0.1 * (uniform(2, 1, 8, 8, seed=1) - 0.5)).clamp(0, 1)
    assert (ssim(a, noisy) > ssim(a, blurred)).all()
    # constant images c and d: only the luminance term is left
    c, d = torch.full((1, 1, 8, 8), 0.2), torch.full((1, 1, 8, 8), 0.6)
    assert float(ssim(c, d)) == pytest.approx((2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4), rel=1e-5)
    with pytest.raises(UserError, match="SSIM compares images"):
        ssim(a, a[:, 0])


def test_probes_on_codes_that_know_the_label_and_on_noise() -> None:
    y = torch.arange(400) % 4
    knows = torch.nn.functional.one_hot(y, 4).double() + 0.1 * uniform(400, 4, seed=0)
    noise = uniform(400, 4, seed=1)
    constant = torch.cat([knows, torch.ones(400, 1)], 1)
    for errors_of in (linear_probe_errors, nearest_neighbour_errors):
        assert float(errors_of(knows[:200], y[:200], knows[200:], y[200:]).mean()) == 0
        assert float(errors_of(constant[:200], y[:200], constant[200:], y[200:]).mean()) == 0
        # chance: an error of 3/4 +- 0.03
        assert abs(float(errors_of(noise[:200], y[:200], noise[200:], y[200:]).mean()) - 0.75) < 5 * math.sqrt(
            3 / 16 / 200
        )
        with pytest.raises(UserError, match="All training labels are equal"):
            errors_of(knows[:200], torch.zeros(200), knows[200:], y[200:])
    with pytest.raises(UserError, match="training codes are not finite"):
        linear_probe_errors(knows[:200] * torch.inf, y[:200], knows[200:], y[200:])


def test_few_labels_are_drawn_evenly_anew_and_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.arange(400) % 4
    x = torch.arange(400.0, dtype=torch.float64)[:, None]
    seen: list[tuple[Tensor, Tensor]] = []

    def looked_at(train: Tensor, train_y: Tensor, test: Tensor, test_y: Tensor) -> Tensor:
        seen.append((train[:, 0].long(), train_y))
        return torch.zeros(len(test))

    monkeypatch.setattr(probe, "linear_probe_errors", looked_at)

    def draw(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        found = few_label_errors(x, y, x[:7], y[:7], labels=10, draws=3, generator=generator)
        assert found.shape == (3, 7)

    draw(0), draw(0), draw(1)
    for chosen, labels in seen:
        assert len(chosen.unique()) == 10
        assert torch.equal(chosen % 4, labels)
        assert sorted(torch.bincount(labels).tolist()) == [2, 2, 3, 3]
    chosen = [set(which.tolist()) for which, _ in seen]
    assert chosen[:3] == chosen[3:6]
    assert all(chosen[a] != chosen[b] for a, b in ((0, 1), (1, 2), (0, 6)))


def test_few_labels_teach_less_than_many_and_too_few_are_refused() -> None:
    x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    generator = torch.Generator().manual_seed(0)
    few, more = (
        few_label_errors(x[:1000], y[:1000], x[1000:], y[1000:], labels=labels, draws=5, generator=generator).mean(1)
        for labels in (20, 200)
    )
    assert few.min() > more.max()
    # every label there is, each class alike: no draw is left, and the probe is that of all labels
    balanced = torch.cat([(y == label).nonzero()[:50, 0] for label in range(10)])
    every = few_label_errors(x[balanced], y[balanced], x[1000:], y[1000:], labels=500, draws=2, generator=generator)
    whole = linear_probe_errors(x[balanced], y[balanced], x[1000:], y[1000:])
    assert (every.mean(1) - whole.mean()).abs().max() < 2.5 / len(whole)
    with pytest.raises(UserError, match="9 labels are too few for 10 classes"):
        few_label_errors(x, y, x, y, labels=9, draws=1, generator=generator)
    with pytest.raises(UserError, match="take 180 examples of each class, and one of them has only 174"):
        few_label_errors(x, y, x, y, labels=1800, draws=1, generator=generator)


def test_measures_of_sets_keep_their_precision_and_have_no_value_of_a_batch() -> None:
    x, y = uniform(60, 4, seed=0), uniform(50, 4, seed=1) + 0.1
    for dtype in (torch.float32, torch.bfloat16):
        fd, score = FrechetDistance(4), InceptionScore(classes=4)
        holder = torch.nn.ModuleList([fd, score])
        fd(x[:30], real=True)
        assert fd(y, real=False) is None
        score.update(y)
        holder.to(dtype)  # as a training in another precision does
        fd.update(x[30:], real=True)
        assert float(fd.compute()) == pytest.approx(frechet(x, y).value, rel=1e-12)
        assert float(score.compute()) == pytest.approx(inception_score(y, splits=1).value, rel=1e-12)
    for metric in (FrechetDistance(4), KernelDistance()):
        metric.update(x, real=True)
        with pytest.raises(UserError, match=r"Features of shape \(60, 3\) do not fit: \(n, 4\) is expected"):
            metric.update(x[:, :3], real=False)


def test_one_nearest_neighbour_agrees_with_scikit_learn() -> None:
    x, y = load_digits(return_X_y=True)
    expected = KNeighborsClassifier(1).fit(x[:500], y[:500]).predict(x[500:900]) != y[500:900]
    found = nearest_neighbour_errors(*(torch.from_numpy(part) for part in (x[:500], y[:500], x[500:900], y[500:900])))
    assert float(found.mean()) == expected.mean()


def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    x, y = uniform(130, 5, seed=0), uniform(111, 5, seed=1) * 1.2
    two = runpy.run_path(str(TWO))
    expected = two["likelihoods"](Ranks())
    assert {f"DequantisedGlow.{name}.value" for name in ("elbo", "iw_bound_k20", "elbo_given_y")} < set(expected)
    assert {f"Rbm.{name}.se" for name in ("log_likelihood_ais", "log_likelihood_reverse_ais")} < set(expected)
    expected |= two["measures"](x, y, lambda name: slice(None))
    torch.save((x, y), tmp_path / "sets.pt")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29631", str(TWO),
         str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        assert torch.load(tmp_path / f"found{rank}.pt") == pytest.approx(expected, rel=1e-9)
