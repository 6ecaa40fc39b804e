"""What an earlier start leaves, and what of it still holds."""

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dgmbench.bench.cells import Cell, choose, make_cells
from dgmbench.bench.ledger import Fingerprints, Ledger, retried
from dgmbench.bench.suite import read_suite
from dgmbench.config import config_dir
from dgmbench.errors import UserError

OWN = Path(__file__).parent / "own"


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    folder = tmp_path / "configs"
    shutil.copytree(OWN, folder)
    return folder


def make_ledger(tmp_path: Path, configs: Path, suite: str = "tiny") -> Ledger:
    found = read_suite(suite, [configs])
    folder = tmp_path / "bench" / suite
    return Ledger(folder, found, make_cells(found, folder, config_dirs=[configs]))


def started(tmp_path: Path, configs: Path, **first: Any) -> Ledger:
    """A ledger whose first cell has a history."""
    ledger = make_ledger(tmp_path, configs)
    ledger.folder.mkdir(parents=True)
    ledger.restore(Fingerprints([configs]))
    for key, value in first.items():
        setattr(ledger.cells[0], key, value)
    ledger.write(now=True)
    return ledger


def again(tmp_path: Path, configs: Path) -> Cell:
    ledger = make_ledger(tmp_path, configs)
    ledger.restore(Fingerprints([configs]))
    return ledger.cells[0]


def write_result(ledger: Ledger, source: str) -> None:
    run = ledger.folder / "a-run"
    run.mkdir(exist_ok=True)
    (run / "result.json").write_text(json.dumps({"versions": {"model_source": source}}))


def made_source() -> str:
    from dgmbench.models.autoregressive.made import Made
    from dgmbench.runs.rerun import source_hash

    return source_hash(Made)


def test_cells_json_has_what_the_report_reads(tmp_path: Path, configs: Path) -> None:
    stored = json.loads(started(tmp_path, configs).file.read_text())
    assert {"suite": "tiny", "title": "Tiny cells", "survey": None}.items() <= stored.items()
    keys = ["id", "model", "data", "seed", "family", "overrides", "command", "experiment", "paper", "run", "status"]
    assert set(stored["cells"][0]) >= {*keys, "reason", "seconds"}


def test_done_means_that_the_result_is_there(tmp_path: Path, configs: Path) -> None:
    ledger = started(tmp_path, configs, run="a-run", status="done", seconds=3.0)
    assert again(tmp_path, configs).status == "planned"
    write_result(ledger, made_source())
    cell = again(tmp_path, configs)
    assert (cell.status, cell.seconds) == ("done", 3.0)
    assert again(tmp_path, configs).reason is None


def test_a_result_counts_though_the_ledger_was_not_told(tmp_path: Path, configs: Path) -> None:
    ledger = started(tmp_path, configs, run="a-run", status="running")
    write_result(ledger, made_source())
    assert again(tmp_path, configs).status == "done"


def test_stale_is_a_result_of_another_source(tmp_path: Path, configs: Path) -> None:
    ledger = started(tmp_path, configs, run="a-run", status="done")
    write_result(ledger, "0123456789abcdef")
    cell = again(tmp_path, configs)
    assert cell.status == "stale"
    assert "--stale" in (cell.reason or "")
    ledger.set_aside(cell)
    assert not (ledger.folder / "a-run").exists()
    (kept,) = (ledger.folder / ".stale").iterdir()
    assert (kept / "result.json").is_file()
    assert cell.status == "planned"


@pytest.mark.parametrize("status", ["failed", "oom", "timeout", "skipped"])
def test_a_failure_is_kept_until_its_configuration_changes(status: str, tmp_path: Path, configs: Path) -> None:
    started(tmp_path, configs, status=status, reason="why")
    cell = again(tmp_path, configs)
    assert (cell.status, cell.reason) == (status, "why")
    (configs / "trainer").mkdir()
    shutil.copy(config_dir() / "trainer" / "default.yaml", configs / "trainer" / "mine.yaml")
    assert again(tmp_path, configs).status == "planned"


def test_an_interrupted_cell_is_planned_again(tmp_path: Path, configs: Path) -> None:
    started(tmp_path, configs, status="running")
    assert again(tmp_path, configs).status == "planned"


def test_another_models_file_does_not_matter(tmp_path: Path, configs: Path) -> None:
    started(tmp_path, configs, status="failed", reason="why")
    (configs / "model" / "troubled.yaml").write_text((configs / "model" / "troubled.yaml").read_text() + "\n")
    assert again(tmp_path, configs).status == "failed"


def test_a_file_that_the_settings_name_matters(tmp_path: Path, configs: Path) -> None:
    data = tmp_path / "mine.npz"
    data.write_bytes(b"1")
    cell = make_ledger(tmp_path, configs).cells[0]
    cell.overrides = [*cell.overrides, f"data.path={data}"]
    before = Fingerprints([configs]).of(cell)
    assert Fingerprints([configs]).of(cell) == before
    data.write_bytes(b"12")
    assert Fingerprints([configs]).of(cell) != before


def test_data_that_changed_under_a_result_make_another_run(tmp_path: Path, configs: Path) -> None:
    from dgmbench.data.files import state
    from dgmbench.data.images import folder_state

    file, pictures = tmp_path / "mine.npz", tmp_path / "pictures"
    file.write_bytes(b"1")
    pictures.mkdir()
    (pictures / "1.png").write_bytes(b"1")
    ledger = started(tmp_path, configs, run="a-run", status="done", seconds=3.0)
    published = {"mnist.gz": "sha256:0"}
    for source, change in (
        (lambda: state(file), lambda: file.write_bytes(b"12")),
        (lambda: {"mine.npz": state(file), **published}, lambda: file.write_bytes(b"123")),
        (lambda: folder_state(pictures), lambda: (pictures / "2.png").write_bytes(b"2")),
        (lambda: state(file), file.unlink),
    ):
        write_result(ledger, made_source())
        result = ledger.folder / "a-run" / "result.json"
        result.write_text(json.dumps({**json.loads(result.read_text()), "data_source": source()}))
        assert again(tmp_path, configs).status == "done"
        change()
        cell = again(tmp_path, configs)
        assert (cell.status, cell.run, cell.seconds) == ("planned", None, None)


def chosen_again(tmp_path: Path, configs: Path, models: str | None, *words: str) -> Ledger:
    found = read_suite("tiny", [configs])
    folder = tmp_path / "bench" / "tiny"
    cells = make_cells(found, folder, overrides=words, models=models, config_dirs=[configs])
    names = [cell.id for cell in make_cells(found, folder, config_dirs=[configs])]
    ledger = Ledger(folder, found, cells, choose(cells, models), names)
    ledger.restore(Fingerprints([configs]))
    return ledger


def test_what_is_stored_about_cells_of_other_models_stays(tmp_path: Path, configs: Path) -> None:
    started(tmp_path, configs, run="a-run", status="done", seconds=3.0, fingerprint="of before")
    stored = json.loads((tmp_path / "bench" / "tiny" / "cells.json").read_text())["cells"]
    ledger = chosen_again(tmp_path, configs, "troubled", "protocol.k=5")
    assert [cell.id for cell in ledger.cells] == [cell["id"] for cell in stored]
    for cell, before in zip(ledger.cells, stored, strict=True):
        assert ("protocol.k=5" in cell.overrides) == (cell.model == "troubled")
        assert cell.model == "troubled" or cell.as_dict() == before


def test_what_is_stored_about_other_seeds_of_the_suite_stays(tmp_path: Path, configs: Path) -> None:
    started(tmp_path, configs)
    file = tmp_path / "bench" / "tiny" / "cells.json"
    content = json.loads(file.read_text())
    content["cells"][1] |= {"status": "running", "run": "b-run"}
    file.write_text(json.dumps(content))
    ledger = chosen_again(tmp_path, configs, None, "seed=0", "protocol.k=5")
    assert [cell.id for cell in ledger.cells] == [cell["id"] for cell in content["cells"]]
    other = ledger.cells[1]
    assert other.as_dict() == content["cells"][1] | {"status": "planned"}, "whoever ran it has gone"
    assert other not in ledger.chosen


def test_a_damaged_ledger_is_made_anew(tmp_path: Path, configs: Path) -> None:
    ledger = started(tmp_path, configs, status="failed", reason="why")
    ledger.file.write_text('{"cells": [')
    assert again(tmp_path, configs).status == "planned"


def test_two_runners_are_refused_and_a_dead_ones_lock_is_free(tmp_path: Path, configs: Path) -> None:
    ledger = make_ledger(tmp_path, configs)
    ledger.acquire()
    other = make_ledger(tmp_path, configs)
    with pytest.raises(UserError, match=r"being run by another process \(pid \d+ on"):
        other.acquire()
    ledger.release()
    other.acquire()
    other.release()


def test_a_new_runner_waits_for_the_cells_of_a_killed_one(tmp_path: Path, configs: Path) -> None:
    ledger = make_ledger(tmp_path, configs)
    ledger.folder.mkdir(parents=True)
    code = (
        "import sys; from pathlib import Path; from dgmbench.bench.ledger import mark_working\n"
        "mark_working(Path(sys.argv[1]), 'cell'); print('marked', flush=True); sys.stdin.read()\n"
        "Path(sys.argv[2]).touch()"
    )
    ended = tmp_path / "ended"
    found: list[bool] = []

    def wait() -> None:
        ledger.acquire()
        found.append(ended.exists())

    command = [sys.executable, "-c", code, str(ledger.folder), str(ended)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as orphan:
        assert orphan.stdout is not None
        assert orphan.stdout.readline() == "marked\n"
        runner = threading.Thread(target=wait)
        runner.start()
        runner.join(0.3)  # time enough for one that does not wait
        orphan.communicate()
        runner.join()
    assert found == [True]
    ledger.release()


def test_writing_is_rare_but_the_last_word_is_written(tmp_path: Path, configs: Path) -> None:
    ledger = started(tmp_path, configs)
    first = ledger.file.stat().st_mtime_ns
    for _ in range(100):
        ledger.write()
    assert ledger.file.stat().st_mtime_ns == first
    ledger.write(now=True)
    assert ledger.file.stat().st_mtime_ns > first


def test_what_retry_names() -> None:
    assert list(retried(None)) == []
    assert list(retried("all")) == ["failed", "oom", "timeout"]
    assert list(retried("oom,timeout")) == ["oom", "timeout"]
    with pytest.raises(UserError, match="'done' is none of"):
        retried("failed,done")


def test_a_fingerprint_depends_on_every_override_and_not_on_their_order(tmp_path: Path, configs: Path) -> None:
    cell = make_ledger(tmp_path, configs).cells[0]
    of = Fingerprints([configs]).of
    known = {of(cell)}
    assert len(cell.overrides) >= 4
    for place in range(len(cell.overrides)):
        for words in ([], [cell.overrides[place] + "1"]):  # left out, and with another value
            other = replace(cell, overrides=[*cell.overrides[:place], *words, *cell.overrides[place + 1 :]])
            assert of(other) not in known
            known.add(of(other))
    assert of(replace(cell, overrides=[*cell.overrides, "trainer.clip=1"])) not in known
    assert of(replace(cell, overrides=cell.overrides[::-1])) == of(cell)


def test_a_cell_whose_settings_have_changed_is_planned_again(tmp_path: Path, configs: Path) -> None:
    started(tmp_path, configs, status="failed", reason="once upon a time")
    assert again(tmp_path, configs).status == "failed"
    suite = configs / "suite" / "tiny.yaml"
    suite.write_text(suite.read_text().replace("hidden_sizes=[4]", "hidden_sizes=[5]"))
    assert again(tmp_path, configs).status == "planned"
