"""Models without samples and likelihood, from the command line: train, evaluate, sample, sweep, suite, report."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dgmbench.command import main as cli
from dgmbench.training.files import read_rows

OWN = Path(__file__).parent.parent / "my_tasks"
QUICK = ("protocol=quick", "protocol.quality.features=[]", "trainer.progress=false", "hardware=cpu")
LONGER = ("optimizer.lr=0.02", "trainer.budget=39ba", "trainer.validate=13ba")
# objective, whether more is better, its unit; what else is measured; what is shown, and how many columns it has
MODELS = {
    "translator": ("negative_gap", False, "levels", "translation_cycle_error", "translations", 3),
    "enhancer": ("fidelity", True, "dB", "enhanced_psnr_over_bicubic", "enhanced", 4),
    "labels_only": ("label_log_prob", True, "nats", "classification_error", "predictions", None),
    "ink": ("ink_nll", False, "nats", "prediction_r2", "predictions", None),
}
Dgm = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dgm(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Dgm:
    def run(verb: str, *words: str, outputs: bool = True) -> tuple[int, str, str]:
        capfd.readouterr()
        where = [f"paths.outputs={tmp_path}"] if outputs else []
        code = cli.main([verb, *([] if verb == "report" else ["--config-dir", str(OWN)]), *words, *where])
        return code, *capfd.readouterr()

    return run


@pytest.mark.parametrize("model", MODELS)
def test_trained_measured_and_shown(model: str, dgm: Dgm) -> None:
    objective, higher, unit, other, show, columns = MODELS[model]
    code, out, err = dgm("train", f"model={model}", *QUICK, *LONGER)
    assert code == 0, err
    run = Path(out.splitlines()[-1])
    result = json.loads((run / "result.json").read_bytes())
    chosen = result["objective"]
    values = [row[objective] for row in read_rows(run / "metrics.jsonl") if row["kind"] == "valid"]
    assert len(values) == 3
    assert len(set(values)) == 3
    assert chosen["name"] == objective
    assert chosen["value"] == (max if higher else min)(values)
    assert (chosen["direction"], chosen["unit"]) == ("higher" if higher else "lower", unit)
    assert {objective, other} <= set(result["metrics"])
    assert f"best {objective} on validation" in out

    code, _, err = dgm("evaluate", f"run={run}", "protocol=glance", "protocol.quality.features=[]", outputs=False)
    assert code == 0, err
    assert {objective, other} <= set(json.loads((run / "result.json").read_bytes())["metrics"])

    code, out, err = dgm("sample", f"run={run}", f"show={show}", "n=5", outputs=False)
    assert code == 0, err
    written = [Path(line) for line in out.splitlines()]
    assert [path.suffix for path in written] == ([".png", ".npz"] if columns else [".png", ".txt", ".npz"])
    with np.load(written[-1]) as arrays:
        assert len(arrays["x"]) == 5 * (columns or 1)
        if columns is None:
            assert arrays["predicted"].shape == arrays["target"].shape == (5,)
            assert len(written[1].read_text().splitlines()) == 5
    pictures = sorted((run / "samples").glob("0*.png"))
    assert bool(pictures) == (columns is not None), "translations and enhancements are looked at during training too"
    code, _, err = dgm("sample", f"run={run}", outputs=False)
    assert code == 2
    assert "does not draw samples" in err
    assert "translations" in err


@pytest.mark.parametrize("model", ["ink", "enhancer"])
def test_a_sweeper_minimises_the_objective_with_the_right_sign(model: str, dgm: Dgm, tmp_path: Path) -> None:
    from dgmbench.command.multirun import _cost

    code, out, err = dgm("train", "-m", f"model={model}", *QUICK[:-1], "optimizer.lr=1e-9,0.02", "trainer.budget=26ba")
    assert code == 0, err
    runs = [Path(line.rpartition("; ")[2]) for line in out.splitlines() if line.startswith(f"model={model}")]
    untrained, trained = map(_cost, runs)
    assert trained < untrained


def test_they_stand_in_suites_and_reports(dgm: Dgm, tmp_path: Path) -> None:
    code, out, err = dgm("bench", "suite=tasks")
    assert code == 0, err + out
    folder = tmp_path / "bench" / "tasks"
    for model, (objective, *_) in MODELS.items():
        (line,) = [line for line in out.splitlines() if line.strip().startswith(model)][-1:]
        assert objective[:6] in line or objective in out, "the headline is the model's own objective"
    code, out, err = dgm("report", str(folder), outputs=False)
    assert code == 0, err
    with open(folder / "report.csv", newline="") as file:
        rows = {(row["model"], row["metric"]): row for row in csv.DictReader(file)}
    for model, (objective, _, unit, other, *_) in MODELS.items():
        assert rows[model, objective]["unit"] == unit
        assert np.isfinite(float(rows[model, objective]["value"]))
        assert (model, other) in rows
    page = (folder / "report.html").read_text()
    assert all(objective in page for objective, *_ in MODELS.values())
