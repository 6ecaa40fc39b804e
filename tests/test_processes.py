"""What the tests themselves lean on: forked programs, an end for what is left running, and the budgets of rows."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from . import process_tree
from .costs import Costs, row_of
from .fast import CPU_SECONDS, affordable
from .processes import Forked, dgm, fresh, script, until

PROGRAM = """
import atexit, os, signal, sys, threading
atexit.register(lambda: print("atexit"))
threading.Thread(target=lambda: (threading.main_thread().join(), print("a thread"))).start()
print(sys.argv[1:], os.environ["WORD"], os.getcwd(), __name__, os.isatty(1))
print("a complaint", file=sys.stderr)
if sys.argv[1] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "raise":
    raise ValueError("no")
sys.exit(int(sys.argv[1]) if sys.argv[1].isdigit() else sys.argv[1])
"""


@pytest.mark.parametrize("word", ["0", "3", "raise", "die", "a last word"])
def test_a_forked_program_is_like_one_in_a_new_interpreter(word: str, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM, encoding="utf-8")
    forked = script(file, word, environment={"WORD": "x"}, folder=tmp_path)
    real = subprocess.run(
        [sys.executable, str(file), word], cwd=tmp_path, env={**os.environ, "WORD": "x"}, capture_output=True, text=True
    )
    assert forked.returncode == real.returncode
    # what has been printed when SIGKILL strikes is another matter: buffers end at another place
    assert forked.stdout == real.stdout or word == "die"
    assert forked.stderr.splitlines()[:1] == real.stderr.splitlines()[:1] == ["a complaint"]
    assert forked.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


def test_dgm_is_forked_from_where_torch_is_imported_already() -> None:
    done = dgm("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, fresh("-m", "dgmbench", "--version").stdout, "")
    server = sys.modules["multiprocessing.forkserver"]._forkserver._forkserver_pid  # type: ignore[attr-defined]
    assert process_tree.is_alive(server)
    assert "libtorch" in Path(f"/proc/{server}/maps").read_text()


def test_waiting_ends_with_what_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text("import sys; open(sys.argv[1], 'w').close(); sys.stdin.read()", encoding="utf-8")
    process = Forked([str(file), str(tmp_path / "made")])
    until((tmp_path / "made").exists, "the file is made", process)
    assert process.wait() == 0
    with pytest.raises(AssertionError, match="ended before the moon is blue"):
        until(lambda: False, "the moon is blue", process)


def test_what_a_test_leaves_running_is_ended_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_tree, "GRACE_SECONDS", 0.0)
    before = set(process_tree.descendants(os.getpid()))
    assert process_tree.end_leftovers(before) == []
    sleeper = subprocess.Popen(["sleep", "1000"], stdout=subprocess.PIPE)
    subprocess.run("sleep 1001 &", shell=True, check=True)  # an orphan
    ended = subprocess.Popen(["true"])
    until(lambda: process_tree.fields(ended.pid)[:1] == ["Z"], "it is dead, and nobody has waited for it")
    told = " ".join(process_tree.end_leftovers(before))
    assert f"{sleeper.pid} (sleep 1000)" in told
    assert "sleep 1001" in told
    assert f"{ended.pid} (ended, but was not waited for)" in told
    assert (sleeper.returncode, ended.returncode) == (-signal.SIGKILL, 0)
    until(lambda: process_tree.end_leftovers(before) == [], "the orphan is gone")


def test_the_guardian_ends_what_outlives_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(process_tree.MARK, "another session's")
    other = subprocess.Popen(["sleep", "1000"])
    guardian = process_tree.start_guardian()
    assert guardian is not None
    marked = [subprocess.Popen(["sleep", "1000"], start_new_session=own) for own in (False, True)]
    process_tree.dismiss(guardian)
    assert [process.wait() for process in marked] == [-signal.SIGKILL] * 2
    assert other.poll() is None
    other.kill()
    other.wait()


def test_costs_belong_to_rows_and_must_stay_in_their_budgets() -> None:
    rows = {"gan", "wgan", "vae"}
    assert row_of("tests/models/vae/test_vae.py::test_it", {}, rows) == ("vae", "tests")
    assert row_of("tests/models/gan/test_gan.py::test_it[wgan]", {"name": "wgan"}, rows) == ("wgan", "tests")
    assert row_of("tests/models/gan/test_gan.py::test_it[3]", {"k": 3}, rows) == ("gan", "tests")
    assert row_of("tests/models/flow/test_flow.py::test_it", {}, rows) is None
    assert row_of("tests/bench/test_local.py::test_it[vae]", {"model": "vae"}, rows) is None
    proof = "tests/contract/test_every_model.py::test_the_model_verifies[vae]"
    assert row_of(proof, {"name": "vae"}, rows) == ("vae", "verify")

    config: Any = SimpleNamespace(cache=None)
    costs = Costs(config)
    session: Any = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    for each in (["vae", "tests", 49.0], ["vae", "verify", 24.5]), (["vae", "verify", 0.4], ["gan", "tests", 3.0]):
        tests = {f"tests/a.py::{each}": 1.5}
        costs.pytest_testnodedown(SimpleNamespace(workeroutput={"costs": (each, tests)}))
    costs.pytest_sessionfinish(session)
    assert (costs.over(), session.exitstatus) == ([], pytest.ExitCode.OK)
    assert costs.by_file == {"tests/a.py": 3.0}
    costs.by_row["vae", "verify"] += 0.2
    costs.pytest_sessionfinish(session)
    assert costs.over() == ["vae: verify took 25.1 CPU s, more than 5 x 5"]
    assert session.exitstatus == pytest.ExitCode.TESTS_FAILED
    worker: Any = Costs(SimpleNamespace(workeroutput={}))  # type: ignore[arg-type]
    worker.by_row["gan", "tests"] = 2.0
    worker.pytest_sessionfinish(session)
    assert worker.config.workeroutput["costs"] == ([["gan", "tests", 2.0]], {})


def test_fast_tests_are_the_cheapest_that_fit() -> None:
    costs = {
        "tests/a.py::one": CPU_SECONDS / 2 + 2,
        "tests/a.py::two": 1.0,
        "tests/runs/b.py::three": CPU_SECONDS / 2 - 2,
    }
    ids = [*costs, "tests/runs/b.py::new", "tests/config/c.py::new"]
    assert affordable(ids, costs) == {"tests/a.py::two", "tests/runs/b.py::three", "tests/config/c.py::new"}
    assert affordable(ids, {}) == {"tests/a.py::one", "tests/a.py::two", "tests/config/c.py::new"}


def test_processor_time_of_children_counts_while_they_run_and_after() -> None:
    begin = process_tree.cpu_seconds()
    busy = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert process_tree.cpu_seconds() - begin > 0.4
        child.communicate(b"\n")
    assert process_tree.cpu_seconds() - begin > 0.4
