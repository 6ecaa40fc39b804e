"""Parts of the evaluation from a user's folder: measured, told apart by their code, refused in a sentence."""

import csv
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from dgmbench.command import main as cli
from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.errors import UserError
from dgmbench.evaluation.evaluator import Evaluator
from dgmbench.models.contract import Model

PART = '''
from dgmbench.evaluation.metrics import Metric


def brightness(model, context, note):
    """Mean of samples; nothing of models without."""
    if not hasattr(model, "sample"):
        return
    drawn = context.draw(model, 300, note).double().flatten(1).mean(1)
    yield "brightness", Metric.mean_of(drawn, unit="1", kind="estimate", direction="none"), {"samples": 300}


def darkness(model, context, note):
    for name, metric, details in brightness(model, context, note):
        yield "darkness", metric.scaled(-1.0, "1"), details


def namesake(model, context, note):
    for _, metric, details in brightness(model, context, note):
        yield "energy_distance", metric, details


def broken(model, context, note):
    yield "brightness", 0.5, {}


def failing(model, context, note):
    raise KeyError("lamp")
    yield


def returning(model, context, note):
    return []


number = 3
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a metric, which is imported as from the command line and forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "mine"), *sys.path])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_metric.py").write_text(PART)
    monkeypatch.delitem(sys.modules, "my_metric", raising=False)
    return tmp_path / "mine"


class Coins(Model):
    """Counts how often each chunk of samples is drawn."""

    def __init__(self) -> None:
        super().__init__(DataSpec((4,), "binary"))
        self.drawn: Counter[int] = Counter()

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        assert generator is not None
        self.drawn[generator.initial_seed()] += n
        return (torch.rand((n, 4), generator=generator) < 0.5).to(torch.uint8)


def evaluator(**changes: Any) -> Evaluator:
    x = np.random.RandomState(0).randint(0, 2, (700, 4)).astype(np.uint8)
    split = Split(x, None)
    data = DataSet("toy", DataSpec((4,), "binary"), {"train": split, "valid": split, "test": split}, "1" * 64)
    protocol = {"seed": 0, "max_examples": None, "k": 1, **changes}
    return Evaluator(data, protocol, split="test", rule="best", averaged=False, device=torch.device("cpu"))


def test_samples_of_one_evaluation_are_drawn_once(folder: Path) -> None:
    model = Coins()
    parts = {"parts": ["my_metric.brightness", "my_metric.darkness"], "parzen": {"samples": 750}}
    one = evaluator(**parts, quality={"samples": 600, "features": []})
    found = one.measure(model)
    assert {"parzen", "energy_distance", "brightness", "darkness"} <= set(found)
    # 750 of the windows in whole chunks; a third chunk of 100 for 600, a second one of 50 for 300
    assert sorted(model.drawn.values()) == [250, 250 + 50, 250 + 100]
    assert found["darkness"][0].value == -found["brightness"][0].value
    alone = evaluator(parts=["my_metric.brightness"]).measure(Coins())
    assert alone["brightness"] == found["brightness"]  # whatever is measured beside it
    before = model.drawn.total()
    one.measure(model)  # its weights may be others by now
    assert model.drawn.total() == 2 * before


def test_the_code_of_a_part_is_in_its_protocol(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, protocol = (before := evaluator(parts=["my_metric.brightness"]).measure(Coins()))["brightness"]
    assert (protocol["part"], protocol["samples"], protocol["split"]) == ("my_metric.brightness", 300, "test")
    assert len(protocol["part_source"]) == 16
    ids = {name: metric.protocol_id for name, (metric, _) in before.items()}
    monkeypatch.delitem(sys.modules, "my_metric")
    (folder / "my_metric.py").write_text(PART.replace(".mean(1)", ".amax(1)"))
    after = {
        name: metric.protocol_id
        for name, (metric, _) in evaluator(parts=["my_metric.brightness"]).measure(Coins()).items()
    }
    assert {name for name in ids if ids[name] != after[name]} == {"brightness"}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("my_metric.namesake", "my_metric.namesake measures energy_distance, which there is already"),
        ("my_metric.broken", r"my_metric.broken yields tuple \('brightness', 0.5, {}\), not \(name, Metric, dict\)"),
        ("my_metric.failing", "my_metric.failing fails: KeyError: 'lamp'"),
    ],
)
def test_what_a_part_does_wrong_is_said(folder: Path, part: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluator(parts=[part]).measure(Coins())


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("my_metric.nothing", "protocol.parts=my_metric.nothing"),
        ("my_metrik.brightness", "protocol.parts=my_metrik.brightness cannot be imported"),
        ("my_metric.number", "protocol.parts=my_metric.number is neither a class nor a function"),
        (
            "my_metric.returning",
            "protocol.parts=my_metric.returning is no part of an evaluation: it must be a generator",
        ),
        ("brightness", "protocol.parts=brightness is not a dotted name"),
    ],
)
def test_what_is_no_part_is_refused_before_anything_is_trained(
    folder: Path, part: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [
        "train",
        "--config-dir",
        str(folder),
        "model=made",
        "data=digits_binary",
        f"paths.outputs={tmp_path / 'o'}",
    ]
    assert cli.main([*words, f"protocol.parts=[{part}]"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_from_the_command_line_in_single_runs_and_suites(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [f"paths.outputs={tmp_path / 'out'}", "protocol=quick", "protocol.checkpoint=[best]"]
    quick = ["model=made", "data=digits_binary", "trainer.budget=2ba", "trainer.progress=false"]
    own = ["--config-dir", str(folder)]
    assert cli.main(["train", *own, *quick, *words, "protocol.parts=[my_metric.brightness]"]) == 0
    run = Path(capfd.readouterr().out.splitlines()[-1])
    assert cli.main(["evaluate", *own, f"run={run}", *words[1:], "protocol.parts=[my_metric.darkness]"]) == 0
    result = json.loads((run / "result.json").read_text())
    bright, dark = (result["metrics"][name] for name in ("brightness", "darkness"))
    assert dark["value"] == -bright["value"]
    assert result["protocols"][bright["protocol_id"]]["part"] == "my_metric.brightness"

    (folder / "suite").mkdir()
    (folder / "suite" / "lamps.yaml").write_text(
        "title: Lamps\ncells: [{models: [made], data: [digits_binary], seeds: [0], budget: 2ba}]\noverrides:\n"
        + "".join(f"  - {word}\n" for word in [*words[1:], "protocol.parts=[my_metric.brightness]"])
    )
    done = cli.main(["bench", *own, "suite=lamps", words[0]])
    assert done == 0, capfd.readouterr().err
    with (tmp_path / "out" / "bench" / "lamps" / "report.csv").open() as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert float(rows["brightness"]["value"]) == pytest.approx(bright["value"])
    assert rows["brightness"]["protocol_id"] == bright["protocol_id"]
