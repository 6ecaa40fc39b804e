"""Every ending is a sentence and an exit code: whatever libraries raise, streams that are closed or full, signals."""

import errno
import json
import lzma
import os
import resource
import signal
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from dgmbench.bench.cells import MOST_CELLS, make_cells
from dgmbench.bench.report.difference import differences
from dgmbench.bench.suite import Block, Suite
from dgmbench.command import main as cli
from dgmbench.command import streams
from dgmbench.data import BatchStream, load
from dgmbench.data.batches import MOST_IN_A_BATCH
from dgmbench.data.npz import Npz
from dgmbench.errors import RunFailed, UserError, explain, in_hand
from dgmbench.runs.signals import Signals
from dgmbench.system import heeded
from dgmbench.training.files import RowWriter, write_atomically
from dgmbench.training.module import Interrupted

from ..processes import dgm, start_dgm, until


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (zlib.error("Error -3"), "/d/x.npz is damaged (error: Error -3); get it again."),
        (EOFError(), "/d/x.npz is damaged (EOFError: it ends too early); get it again."),
        (zipfile.BadZipFile("no"), "/d/x.npz is damaged (BadZipFile: no); get it again."),
        (lzma.LZMAError("no"), "/d/x.npz is damaged (LZMAError: no); get it again."),
        (tarfile.ReadError("no"), "/d/x.npz is damaged (ReadError: no); get it again."),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), "/d/x.npz is damaged (UnicodeDecodeError: "),
        (MemoryError(), "The memory is full (with /d/x.npz): take smaller batches or less data."),
        (RecursionError("maximum"), "/d/x.npz is nested too deeply (maximum)."),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "/d/x.npz cannot be read or written: File name too long."),
        (OSError(errno.ELOOP, "Too many links", "/d/y"), "/d/y cannot be read or written: Too many links."),
        (OSError(errno.EFBIG, "File too large", "/d/y"), "The limit on the size of files is reached (/d/y): choose"),
        (OSError("cannot identify"), "/d/x.npz cannot be read or written: cannot identify."),
    ],
)
def test_what_libraries_raise_is_a_sentence_about_the_file_in_hand(error: Exception, sentence: str) -> None:
    with pytest.raises(type(error)), in_hand("/d/x.npz"), in_hand("/d"), in_hand("/d/x.npz"):
        raise error
    code, text = explain(error)
    assert code == 2
    assert text.startswith(sentence)


def test_what_nobody_foresaw_names_the_file_in_hand_too() -> None:
    with pytest.raises(ZeroDivisionError) as caught, in_hand("/d/x"):
        1 / 0  # noqa: B018
    assert explain(caught.value) == (
        1, "ZeroDivisionError with /d/x: division by zero (set DGM_DEBUG=1 to see the traceback)."
    )  # fmt: skip
    assert explain(RunFailed("nan"))[0] == 1


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), ValueError("odd"), OSError(5, "Input/output error")])
def test_a_reader_that_stumbles_names_its_file(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.npz").write_bytes(b"x")

    def read(self: Npz, folder: Path) -> None:
        raise error

    monkeypatch.setattr(Npz, "read", read)
    with pytest.raises(UserError, match=r"own\.npz"):
        load({"name": "npz", "_target_": "dgmbench.data.npz.Npz", "path": str(tmp_path / "own.npz")}, tmp_path)


@pytest.mark.parametrize("verb", ["sample", "evaluate", "rerun", "report", "diff"])
def test_names_that_are_too_long_or_no_text(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (str(tmp_path / ("x" * 300)), str(tmp_path / "\udcff")):
        words = [name] * {"rerun": 1, "report": 1, "diff": 2}.get(verb, 0) or [f"run={name}"]
        assert cli.main([verb, *words]) == 2
        message = capsys.readouterr().err
        assert message.startswith("dgm: ")
        assert len(message.splitlines()) == 1


def test_data_with_names_that_are_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("data=npz", f"data.path={'x' * 300}"), ("data=images", f"data.path={'y' * 5000}")):
        assert cli.main(["train", "model=made", *words, f"paths.outputs={tmp_path}"]) == 2
        assert "too long" in capsys.readouterr().err
    assert cli.main(["train", "model=made", "data=digits_binary", f"paths.outputs={tmp_path / ('z' * 300)}"]) == 2
    assert "too long" in capsys.readouterr().err


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = RowWriter(tmp_path / "rows.jsonl")
    write_atomically(tmp_path / "x", b"before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"The disk is full: .*x could not be written. What was saved before is intact"
        ):
            write_atomically(tmp_path / "x", bytes(2000))
        with pytest.raises(UserError, match="The disk is full"):
            writer.write({"a": "x" * 5000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        writer.close()
    assert (tmp_path / "x").read_bytes() == b"before"


@pytest.mark.parametrize(
    "metrics", [[1, 2], {"elbo": 3}, {"elbo": {"value": []}}, {"elbo": {"value": "a", "se": {}}}, 3]
)
def test_results_of_another_shape_are_not_compared(metrics: object, tmp_path: Path) -> None:
    for name, found in (("a", metrics), ("b", {"elbo": {"value": 1.0}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 0\n")
        (tmp_path / name / "result.json").write_text(json.dumps({"metrics": found, "protocols": [], "versions": 3}))
    with pytest.raises(UserError, match="are not of one shape"):
        differences(tmp_path / "a", tmp_path / "b")


# ---------------------------------------------------------------------- streams


@pytest.mark.parametrize("words", [["list"], ["--help"], ["completion", "bash"]])
def test_a_full_standard_output_is_not_a_full_disk(words: list[str]) -> None:
    ended = dgm(*words, terminal="/dev/full")
    assert ended.returncode == 2


@pytest.mark.parametrize("words", [["--version"], ["list", "data"]])  # what fits into the stream's buffer, and more
def test_the_sentence_about_a_full_standard_output(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(words) == 2
        monkeypatch.undo()
    message = capsys.readouterr().err
    assert message.startswith("dgm: the standard output cannot be written: No space left on device")
    assert "paths" not in message


def test_any_name_can_be_printed(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("w", encoding="ascii") as file:
        streams.codecs.register_error("printable", streams._printable)
        file.reconfigure(errors="printable")
        file.write("a\udcff ± ü\n")
    assert path.read_bytes() == b"a\xff \\xb1 \\xfc\n"


def test_no_file_commands_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a result holds, and what an error quotes, comes out as text."""
    sign, told = "\x1b]0;title\x07\x9b2J", "\\x1b]0;title\\x07\\x9b2J"
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 0\n")
        metrics = {f"elbo{sign}": {"value": value, "unit": f"nats{sign}"}}
        (tmp_path / name / "result.json").write_text(json.dumps({"metrics": metrics}))
    assert cli.main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert f"elbo{told}" in out
    assert cli.main(["train", f"model={sign}"]) == 2
    err = capsys.readouterr().err
    assert not {"\x1b", "\x07", "\x9b"} & set(out + err)


def test_closed_streams_are_not_given_to_the_next_file() -> None:
    child = os.fork()
    if child == 0:
        for number in range(3):
            os.close(number)
        streams.open_streams()
        os._exit(0 if os.open(os.devnull, os.O_RDONLY) > 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_run_between_two_updates(number: int) -> None:
    with pytest.raises(Interrupted) as caught, Signals() as signals, signals.waiting():
        os.kill(os.getpid(), number)
    assert signals.received == number
    assert caught.value.signal_number == number


def test_nohup_lets_a_run_go_on() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in heeded()
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.SIGHUP in heeded()


def test_a_lost_terminal_leaves_a_resumable_run(tmp_path: Path) -> None:
    process = start_dgm("train", "model=made", "trainer.progress=false", "protocol=quick", "hardware.threads=1",
                        "trainer.budget=100000ba", "trainer.checkpoint=1s", f"paths.outputs={tmp_path}")  # fmt: skip
    until(lambda: list(tmp_path.glob("*/checkpoints/last.ckpt")), "a checkpoint is saved", process)
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 129
    assert "Stopped by the end of its terminal (SIGHUP); the same command resumes" in process.errors


def test_ctrl_c_in_the_middle_of_an_import_ends_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nos._exit(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with streams.interruptible():
            import slow_to_import  # type: ignore[import-not-found]  # noqa: F401
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130


def test_ctrl_c_elsewhere_is_an_exception_and_the_handler_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), streams.interruptible():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------- limits


def test_a_batch_of_many_copies_is_refused_at_once(config_of: Callable[..., object]) -> None:
    data = load(config_of("digits_binary"), Path("/nowhere"))  # type: ignore[arg-type]
    assert BatchStream(data, batch_size=MOST_IN_A_BATCH, seed=0).batch(0).x.shape[0] == MOST_IN_A_BATCH
    with pytest.raises(UserError, match=r"A batch of 1,000,000 would repeat the 1,258 examples of the train split 795"):
        BatchStream(data, batch_size=1_000_000, seed=0)


@pytest.fixture
def config_of() -> Callable[..., object]:
    from dgmbench.config import compose, resolve

    return lambda name: resolve(compose("train", ["model=vae", f"data={name}"]))["data"]


def test_a_suite_of_millions_of_cells_is_refused_at_once(tmp_path: Path) -> None:
    block = Block(where="x", models=("vae", "made"), data=("digits",), seeds=tuple(range(2_000)))
    suite = Suite(name="huge", title="huge", survey=None, blocks=(block,) * 1000)
    with pytest.raises(UserError, match=r"suite=huge has up to 4,000,000 cells; one suite has at most 100,000"):
        make_cells(suite, tmp_path)
    seeds = ",".join(map(str, range(MOST_CELLS)))
    with pytest.raises(UserError, match="suite=small has up to 200,000 cells"):
        make_cells(Suite(name="small", title="s", survey=None, blocks=(block,)), tmp_path, overrides=[f"seed={seeds}"])
