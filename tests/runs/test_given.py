"""Conditional data and few labels from the command line: train, pictures, suite and report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dgmbench.bench.summary import headline
from dgmbench.command.main import main
from dgmbench.runs.conditions import coloured

OWN = Path(__file__).parents[1] / "my_given"
SMALL = (
    "protocol=quick", "trainer.progress=false", "trainer.batch_size=50", "protocol.quality.samples=100",
    "protocol.quality.features=[]", "protocol.checkpoint=[best]",
)  # fmt: skip

Dgm = Callable[..., tuple[int, str]]


@pytest.fixture
def dgm(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Dgm:
    """Run ``dgm`` in this process: the exit code and what it printed on both outputs."""

    def run(verb: str, *words: str, outputs: bool = True) -> tuple[int, str]:
        where = (f"paths.outputs={tmp_path}",) if outputs else ()
        code = main([verb, "--config-dir", str(OWN), *words, *where])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def test_a_conditional_model_from_training_to_the_report(dgm: Dgm, tmp_path: Path) -> None:
    settings = ("trainer.budget=8ep", "trainer.samples=8ep", "optimizer.lr=0.1", "data.n=200", *SMALL)
    code, text = dgm("train", "model=pixels_given", *settings)
    assert code == 0
    run = Path(text.strip().splitlines()[-1])
    metrics = result(run)["metrics"]
    own, permuted = (metrics[f"conditional_log_likelihood{name}"]["value"] for name in ("", "_permuted"))
    assert own > permuted + 0.5
    assert result(run)["objective"]["name"] == "conditional_log_likelihood"
    pictures = sorted((run / "samples").glob("0*.png"))
    assert len(pictures) >= 2
    with Image.open(pictures[-1]) as picture:
        width, height = picture.size
    assert width < height  # 6 columns, 8 conditions: given | samples | truth

    code, text = dgm("sample", f"run={run}", "n=120", outputs=False)
    assert code == 0
    with np.load(run / "samples" / "best-n120-s0.npz") as file:
        arrays = dict(file)
    assert arrays["x"].shape == arrays["truth"].shape == (120, 1, 2, 2)
    given = arrays["given"]
    assert given.shape == (120, 2)
    for name in ("x", "truth"):  # the first pixel is as the first bit says, nine times in ten
        assert np.mean(arrays[name][:, 0, 0, 0] == given[:, 0]) > 0.75
    assert main(["report", str(tmp_path)]) == 0
    report = (tmp_path / "report.md").read_text()
    for name in (
        "conditional_log_likelihood",
        "conditional_log_likelihood_permuted",
        "conditional_log_likelihood_gain",
    ):
        assert name in report


def test_pairs_that_do_not_fit_end_before_any_work(dgm: Dgm, tmp_path: Path) -> None:
    for words, sentence in (
        (("model=vae", "data=bits_given"), "model=vae takes none"),
        (("model=pixels_given", "data=digits_binary"), "data=digits_binary gives none"),
        (("model=made", "data=runs"), "would count their padding"),
    ):
        code, text = dgm("train", *words, *SMALL)
        assert code == 2
        assert sentence in text
    assert not list(tmp_path.iterdir())


def test_a_suite_of_conditional_models(dgm: Dgm) -> None:
    code, text = dgm("bench", "suite=conditions", "--dry-run")
    assert code == 0
    assert "model=pixels_given" in text
    assert "model=mixture_given" in text
    found = {
        "conditional_elbo": {},
        "energy_distance": {},
        "conditional_iw_bound_k5": {},
        "conditional_iw_bound_k10": {},
    }
    assert headline({"metrics": found}) == "conditional_iw_bound_k10"
    assert headline({"metrics": found}, 5) == "conditional_iw_bound_k5"
    assert (
        headline({"metrics": {"energy_distance": {}, "conditional_log_likelihood": {}}}) == "conditional_log_likelihood"
    )


@pytest.mark.parametrize(("model", "data"), [("cgan", "digits_few_labels"), ("vae", "digits_binary_few_labels")])
def test_few_labels_to_the_report(dgm: Dgm, tmp_path: Path, model: str, data: str) -> None:
    words = (f"model={model}", f"data={data}", "model.hidden_sizes=[16]", "trainer.budget=20ba", "data.draw=1", *SMALL)
    code, text = dgm("train", *words)
    assert code == 0
    said = f"1,158 of 1,258 train labels of {data} are unknown (-1)"
    assert said in text
    run = Path(text.strip().splitlines()[-1])
    assert result(run)["unlabelled"] == {"train": [1158, 1258]}
    assert main(["report", str(tmp_path)]) == 0
    assert said in (tmp_path / "report.html").read_text()


def test_planes_beyond_colours_are_laid_over_the_first() -> None:
    planes = torch.zeros(5, 2, 2)
    planes[0, 0], planes[1, 0, 0], planes[3, 1, 1] = 1.0, 1.0, 0.5
    found = coloured(planes)
    assert found[:, 0, 0].tolist() == pytest.approx([1.0, 0.6, 0.6])  # the second plane is red, over grey
    assert found[:, 0, 1].tolist() == pytest.approx([0.6] * 3)
    assert found[:, 1, 1].tolist() == pytest.approx([0.0, 0.5, 0.5])  # the fourth half-way around the circle of colours
    assert not found[:, 1, 0].any()
