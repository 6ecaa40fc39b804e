"""What a finished run's files say is what was written into them, or the reader is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dgmbench.bench.report import write_report_with_notes
from dgmbench.bench.report.difference import differences
from dgmbench.bench.report.index import INDEX
from dgmbench.bench.report.ledger import read_ledger
from dgmbench.command import main as cli
from dgmbench.errors import UserError
from dgmbench.runs.folder import RunFolder
from dgmbench.runs.record import is_as_written, sealed

WORDS = (
    "model=made", "data=digits_binary", "trainer.budget=2ba", "trainer.progress=false", "hardware=cpu",
    "hardware.threads=1", "protocol=quick", "protocol.max_examples=20", "protocol.quality.samples=20",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("finished")
    assert cli.main(["train", *WORDS, f"paths.outputs={outputs}"]) == 0
    (folder,) = outputs.glob("made-*")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "outputs" / finished.name))


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_a_result_says_whether_it_is_as_written() -> None:
    result = {"metrics": {"elbo": {"value": -6.27}}, "seed": 0}
    written = json.loads(json.dumps(sealed(result)))
    assert is_as_written(written)
    assert is_as_written(result)  # of before there was a hash
    assert sealed(written) == written
    assert not is_as_written({**written, "metrics": {"elbo": {"value": -6.28}}})
    assert not is_as_written({**written, "more": 1})


def test_nobody_believes_a_number_that_was_changed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads((run / "result.json").read_text())["metrics"]["log_likelihood"]["value"]
    change(run / "result.json", repr(value), repr(value + 10))
    for command in (
        ["train", *WORDS, f"paths.outputs={run.parent}"], ["rerun", str(run)], ["sample", f"run={run}"],
        ["evaluate", "protocol=quick", f"run={run}"], ["diff", str(run), str(run)],
    ):  # fmt: skip
        assert cli.main(command) == 2
        assert "result.json is not what was written" in capsys.readouterr().err
    _, notes = write_report_with_notes(run.parent)
    assert notes == [f"{run.name}: result.json is damaged (ValueError: it is not what was written); "
                     "remove it and run the cell again"]  # fmt: skip
    assert str(value + 10)[:5] not in (run.parent / "report.csv").read_text()


def test_a_changed_configuration_and_a_changed_log_are_noted(run: Path) -> None:
    other = Path(shutil.copytree(run, run.parent.parent / "other"))
    change(run / "config.yaml", "hidden_sizes", "hidden_sises")
    change(run / "metrics.jsonl", '"kind": "valid"', '"kind":  "valid"')
    _, notes = write_report_with_notes(run.parent)
    assert f"{run.name}/config.yaml has been changed since the run was made" in notes[0]
    assert "metrics.jsonl has been changed since the run was made" in (run.parent / "report.html").read_text()
    assert "metrics.jsonl has been changed" not in (write_report_with_notes(other)[0]).read_text()
    rows = differences(other, run)
    assert ("note", "config.yaml", "-", "changed since the run was made", "") in rows
    assert differences(other, other) == []


def test_what_the_report_remembers_is_not_believed_when_changed(run: Path) -> None:
    read = lambda: read_ledger(run.parent).cells[0].metrics["log_likelihood"]["value"]
    value = read()
    change(run.parent / INDEX, repr(value), repr(value + 10))
    assert read() == value


def test_a_measurement_that_is_added_is_sealed_too(run: Path) -> None:
    assert cli.main(["evaluate", "protocol=quick", "protocol.max_examples=30", f"run={run}"]) == 0
    result = json.loads((run / "result.json").read_text())
    assert is_as_written(result)
    assert set(result["files"]) == {"config.yaml", "metrics.jsonl"}


Spoil = Callable[[dict[str, object]], object]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda config: config["names"].update(model="../../elsewhere"),
        lambda config: config["names"].update(data=".hidden"),
        lambda config: config["data"].update(name="/etc"),
        lambda config: config.update(seed="0"),
        lambda config: config["trainer"].pop("ema"),
        lambda config: config["hardware"].update(devices=[1]),
        lambda config: config.update(model=["x"]),
    ],
)
def test_a_configuration_that_leads_elsewhere_or_lacks_something(spoil: Spoil, run: Path) -> None:
    import yaml

    folder = RunFolder(run)
    config = folder.read_config()
    spoil(config)
    folder.config.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"config\.yaml is damaged and cannot be read"):
        folder.read_config()
