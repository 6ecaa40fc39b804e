"""Loggers take the same rows, at the same images, in one process after another and after a resume."""

import csv
import json
import signal
from pathlib import Path

import pytest

from dgmbench.command import main as cli
from dgmbench.runs.loggers import CsvLogger
from dgmbench.training.files import read_rows

from ..processes import script

QUICK = ("trainer.progress=false", "protocol=quick", "protocol.max_examples=50", "protocol.quality.samples=50",
         "hardware=cpu", "hardware.threads=1", "model=vae", "model.hidden_sizes=[8]",
         "trainer.budget=30ba", "trainer.validate=10ba", "trainer.checkpoint=10ba")  # fmt: skip


def train(outputs: Path, *overrides: str) -> Path:
    assert cli.main(["train", *QUICK, f"paths.outputs={outputs}", *overrides]) == 0
    (folder,) = [path.parent for path in outputs.glob("*/result.json")]
    return folder


def expected(folder: Path) -> dict[tuple[int, str], float]:
    """What metrics.jsonl says, as {(images, name): value}."""
    found = {}
    for row in read_rows(folder / "metrics.jsonl"):
        prefix = "valid/" if row["kind"] == "valid" else ""
        for name, value in row.items():
            if isinstance(value, float) and name not in ("epoch", "seconds"):
                found[row["images"], prefix + name] = value
    return found


def logged_csv(folder: Path) -> dict[tuple[int, str], float]:
    with (folder / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    found = {(int(line["images"]), line["metric"]): float(line["value"]) for line in lines}
    assert len(found) == len(lines), "a line is written twice"
    return found


def test_csv_says_what_the_rows_say(tmp_path: Path) -> None:
    folder = train(tmp_path, "logger=csv")
    assert logged_csv(folder) == expected(folder)


def test_a_logger_beside_others_is_one_that_needs_no_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *QUICK, f"paths.outputs={tmp_path}", "logger.also=[wandb]"]) == 2
    assert "logger.also" in capsys.readouterr().err


def test_csv_leaves_a_torn_line_out(tmp_path: Path) -> None:
    whole = "100,1,0.1,0.5,train,model/loss,2.5\r\n"
    (tmp_path / "metrics.csv").write_text(f"{','.join(CsvLogger.FIELDS)}\r\n{whole}20", newline="")
    CsvLogger(tmp_path, images=100)
    assert logged_csv(tmp_path) == {(100, "model/loss"): 2.5}


def test_csv_after_a_kill_and_a_resume(tmp_path: Path) -> None:
    kill = Path(__file__).with_name("kill.py")
    killed = script(kill, "before", "25", *QUICK, "logger=csv", f"paths.outputs={tmp_path}")
    assert killed.returncode == -signal.SIGKILL
    folder = train(tmp_path, "logger=csv")
    assert logged_csv(folder) == expected(folder)


@pytest.mark.parametrize("logger", [["logger=tensorboard"], ["logger=csv", "logger.also=[tensorboard,csv]"]])
def test_tensorboard_says_what_the_rows_say_alone_or_beside_others(tmp_path: Path, logger: list[str]) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(tmp_path, *logger)
    assert (folder / "metrics.csv").exists() == ("logger=csv" in logger)
    if "logger=csv" in logger:
        assert logged_csv(folder) == expected(folder)
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    found = {(e.step, tag): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    for key, value in expected(folder).items():
        assert found[key] == pytest.approx(value, rel=1e-6)
    assert any(tag.startswith("test/") for _, tag in found)


WANDB = """
import json, sys
from wandb.sdk.wandb_run import Run
from dgmbench.command import main as cli

log, calls = Run.log, []

def recorded(self, data, *args, **kwargs):
    calls.append([self.id, self.name, data])
    return log(self, data, *args, **kwargs)

Run.log = recorded
code = max(cli.main(["train", *sys.argv[2:], f"seed={seed}"]) for seed in (0, 1))
open(sys.argv[1], "w").write(json.dumps(calls))
sys.exit(code)
"""


def test_wandb_offline_keeps_two_runs_of_one_process_apart(tmp_path: Path) -> None:
    (tmp_path / "recorded.py").write_text(WANDB, encoding="utf-8")
    done = script(
        tmp_path / "recorded.py", str(tmp_path / "calls.json"), *QUICK, "logger=wandb", "logger.mode=offline",
        f"paths.outputs={tmp_path / 'outputs'}", environment={"WANDB_SILENT": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = json.loads((tmp_path / "calls.json").read_text())
    folders = [path.parent for path in tmp_path.glob("outputs/*/result.json")]
    assert {name for _, name, _ in calls} == {folder.name for folder in folders}
    assert len(folders) == 2
    for folder in folders:
        (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
        assert folder.name in file.name
        assert file.stat().st_size > 1000
        own = [data for identity, _, data in calls if identity == folder.name]
        found = {(data["images"], name): value for data in own for name, value in data.items()}
        assert expected(folder).items() <= found.items()
