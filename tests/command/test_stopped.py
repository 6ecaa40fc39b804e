"""Signals while data are prepared and reports are written, full folders for temporary files, names that command."""

import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dgmbench.bench.cells import Cell
from dgmbench.bench.executors import local
from dgmbench.bench.progress import Progress
from dgmbench.bench.report import write_report
from dgmbench.bench.report.index import write_file
from dgmbench.bench.worker import Task
from dgmbench.command import main as cli
from dgmbench.command import streams
from dgmbench.config.completion import complete_paths
from dgmbench.data import prepared
from dgmbench.data.dataset import load
from dgmbench.data.spec import DataSpec
from dgmbench.data.text import readable
from dgmbench.errors import UserError, explain, harmless, say, some_of
from dgmbench.system import ENDINGS

ENDS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
CELL = {"id": "a[/b]", "model": "vae", "data": "digits", "seed": 0, "family": "vae", "overrides": [], "command": ""}
COMMAND = "\x1b]0;owned\x07\n\u202e"
TOLD = r"\x1b]0;owned\x07\n\u202e"


def ended(function: Callable[[], object]) -> int:
    """How a process ends that does this, as ``dgm`` does; negative after a signal that nobody looked after."""
    child = os.fork()
    if child == 0:
        for number in ENDS[:3]:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        cli._run = lambda arguments: function()
        try:
            os._exit(cli.main([]) or 0)
        finally:
            os._exit(77)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def signalled_at(call: int, number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but at its so-manieth call this process is sent a signal first."""
    calls = iter(range(1, 1000))

    def instead(*args: Any, **options: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return function(*args, **options)

    return instead


def expected(number: int) -> int:
    return -number if number == signal.SIGKILL else 128 + number


# ---------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("call", [1, 2, 4])
def test_a_set_whose_preparation_was_stopped_is_prepared_anew(number: int, call: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=np.arange(60, dtype=np.uint8).reshape(30, 2), y_train=np.arange(30) % 3)
    cfg = {"name": "npz", "_target_": "dgmbench.data.npz.Npz", "path": str(tmp_path / "x.npz")}
    folder = tmp_path / "prepared"

    def prepare() -> None:
        prepared._sync = signalled_at(call, number, prepared._sync)
        load(cfg, tmp_path)

    assert ended(prepare) == expected(number)
    assert not list(folder.glob("npz-*"))
    left = list(folder.glob(".npz-*.partial"))
    assert bool(left) == (number == signal.SIGKILL)
    data = load(cfg, tmp_path)
    assert sorted(np.concatenate([split.x for split in data.splits.values()]).ravel()) == list(range(60))


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("call", [1, 2, 4])
def test_a_report_that_was_stopped_leaves_whole_files(number: int, call: int, tmp_path: Path) -> None:
    (tmp_path / "cells.json").write_text(json.dumps({"suite": "s", "title": "s", "survey": None, "cells": [CELL]}))
    write_report(tmp_path)
    names = ["report.csv", "report.html", "report.index.json", "report.md", "report.tex"]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(names) <= set(before)

    def report() -> None:
        os.replace = signalled_at(call, number, os.replace)
        os.fsync = signalled_at(call, number, os.fsync) if number == signal.SIGKILL else os.fsync
        write_report(tmp_path)

    assert ended(report) == expected(number)
    for name in names:
        assert len((tmp_path / name).read_bytes()) == len(before[name])
    assert bool(list(tmp_path.glob(".*.tmp"))) == (number == signal.SIGKILL)
    write_report(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_what_others_are_writing_is_left(tmp_path: Path) -> None:
    for name in (f".x.csv.{os.getpid()}.tmp", ".x.csv.some.tmp"):
        (tmp_path / name).touch()
    write_file(tmp_path / "x.csv", "a\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.csv.some.tmp", "x.csv"]


def test_only_what_nobody_else_looks_after_is_taken_over() -> None:
    before = {number: signal.getsignal(number) for number in ENDS[:3]}
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with streams.interruptible():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(streams.Terminated) as stop:
                os.kill(os.getpid(), signal.SIGTERM)
        assert stop.value.code == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        thread = threading.Thread(target=lambda: streams.interruptible().__enter__())
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------- temporary files


DRY = ["train", "model=vae", "model.hidden_sizes=[2]", "model.latent=1", "data=digits_binary", "hardware=cpu",
       "hardware.threads=1", "protocol=quick", "trainer.dry_run=true"]  # fmt: skip


def test_a_full_folder_for_temporary_files_is_not_the_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        code = cli.main(DRY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert code == 2
    assert f"cannot write its files to {tmp_path} (File too large)" in error
    assert "TMPDIR=DIR" in error
    assert "paths.outputs" not in error
    assert not list(tmp_path.glob("dgm*"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert cli.main(DRY) == 2
    assert "TMPDIR=DIR" in capsys.readouterr().err


def test_what_is_wrong_elsewhere_is_not_said_of_temporary_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*DRY, "hardware.devices=0"]) == 2
    assert "TMPDIR" not in capsys.readouterr().err


def test_errors_of_temporary_files_name_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for place, named in ((tmp_path / "x" / "y", True), (Path("/somewhere/else"), False)):
        code, text = explain(OSError(28, "No space left on device", str(place)))
        assert code == 2
        assert ("TMPDIR=DIR" in text) == named
    code, text = explain(FileNotFoundError(2, "No usable temporary directory found in ['/x']"))
    assert (code, text) == (
        2, "No folder for temporary files can be written (No usable temporary directory found in ['/x']): name one by "
        "TMPDIR=DIR.",
    )  # fmt: skip


def test_a_bench_that_cannot_start_a_process_for_want_of_room(tmp_path: Path) -> None:
    def full(process: object) -> None:
        raise OSError(28, "No space left on device")

    executor = local.LocalExecutor.__new__(local.LocalExecutor)
    executor._context = type("Full", (), {"Process": staticmethod(lambda **o: type("P", (), {"start": full})())})()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"for temporary files: make room there, or name another folder by TMPDIR=DIR"):
        executor._start(Task(id="a", overrides=(), folder=str(tmp_path)), None, local.Slot((), None))  # type: ignore[arg-type]


# ---------------------------------------------------------------------- names


def test_what_is_said_is_one_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    say(COMMAND, "in Persian \u0645\u06cc\u200c\u0634\u0648\u062f", 3)
    say(COMMAND, error=True)
    found = capsys.readouterr()
    assert found.out == f"{TOLD}\nin Persian \u0645\u06cc\u200c\u0634\u0648\u062f\n3\n"
    assert found.err == f"{TOLD}\n"
    assert harmless("a\tb\nc\0") == "a\tb\nc\\x00"
    assert some_of([COMMAND], "name") == f"1 name ({TOLD})"


def test_sentences_that_command_the_terminal_are_shown_as_text() -> None:
    spec = DataSpec((3,), "tokens", 3, end=0, vocabulary=("<eos>", COMMAND, "a\0b"))
    assert readable(np.array([[1, 2, 0], [2, 0, 0]]), spec) == [
        r"\x1b]0;owned\x07" + "\n" + r"\u202e a\x00b", r"a\x00b",
    ]  # fmt: skip
    counts = DataSpec((2,), "counts", vocabulary=("\x1b[2J", "b"))
    assert readable(np.array([[2, 1]]), counts) == [r"\x1b[2J 2, b 1"]


@pytest.mark.parametrize("sign", ["\n", "\x1b[2J", "\u202e", "\r"])
def test_outputs_whose_name_is_no_line_of_text_are_refused(sign: str) -> None:
    with pytest.raises(UserError, match=r"^paths\.outputs=.*signs in its name that no line of text has") as caught:
        complete_paths({"outputs": f"/tmp/a{sign}b", "data": "/tmp"})
    assert sign not in str(caught.value)
    assert complete_paths({"outputs": "/tmp/ä\u200cb 😀", "data": "/tmp"})["outputs"] == "/tmp/ä\u200cb 😀"


def test_pictures_with_such_names_are_noted_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    folder = tmp_path / "pictures" / f"class{COMMAND}"
    folder.mkdir(parents=True)
    for number in range(9):
        Image.fromarray(np.full((4, 4), 28 * number, np.uint8)).save(folder / f"{number}{COMMAND}.png")
    (folder / f"bad{COMMAND}.png").write_bytes(b"no")
    words = ["data=images", f"data.path={tmp_path / 'pictures'}", "data.size=4", "data.channels=1",
             "data.binarise=threshold", "data.skip_damaged=true", "data.valid=2", "data.test=2",
             f"paths.data={tmp_path}", f"paths.outputs={tmp_path / 'o'}"]  # fmt: skip
    small = [word for word in DRY if not word.startswith(("data=", "trainer.dry_run"))]
    assert cli.main([*small, *words, "trainer.budget=1ba", "protocol.max_examples=2", "protocol.quality.samples=2",
                     "protocol.splits=[test]", "trainer.progress=false"]) == 0  # fmt: skip
    (run,) = (tmp_path / "o").glob("vae-*")
    assert cli.main(["report", str(tmp_path / "o")]) == 0
    found = capsys.readouterr()
    assert not {"\x1b", "\x07", "\u202e"} & set(found.out + found.err)
    assert f"data: passed over as damaged: 1 picture (class{TOLD}/bad{TOLD}.png)" in found.out.splitlines()
    assert str(run) in found.out.splitlines()
    assert "\x1b" not in json.loads((run / "result.json").read_text())["data_notes"][0]
    for file in (tmp_path / "o").glob("report*"):
        assert not {b"\x1b", b"\x07"} & {bytes([byte]) for byte in file.read_bytes()}


def test_a_cell_s_reason_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    cell = Cell(**CELL, status="failed", reason=f"no file [/x]{COMMAND}")  # type: ignore[arg-type]
    with Progress([cell]) as progress:
        progress.ended(cell)
        progress._live = type("Live", (), {"console": Console(file=sys.stderr, width=200), "stop": lambda self: None})()
        progress.ended(cell)
    lines = capsys.readouterr().err.splitlines()[-2:]
    assert len(lines) == 2
    assert lines[0].strip() == lines[1].strip()
    assert lines[0].endswith(f"a[/b]: no file [/x]{TOLD}")


def test_a_command_ends_by_the_signals_that_a_run_heeds() -> None:
    """Their list stands twice: the module of the other one takes too long to import before the first line."""
    assert set(streams.ENDS) == set(ENDINGS)
