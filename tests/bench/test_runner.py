"""``dgm bench`` from start to end: what runs, what is skipped, what survives."""

import json
import multiprocessing.forkserver
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgmbench.bench.cells import Cell
from dgmbench.bench.summary import estimate, headline, protocol_k
from dgmbench.bench.worker import Task, run_cell
from dgmbench.command import main as cli
from dgmbench.command.completion import candidates
from dgmbench.command.listing import listing
from dgmbench.config import compose
from dgmbench.runs.record import sealed
from dgmbench.runs.run import train

from ..process_tree import children, is_alive
from ..processes import Forked, fresh, start_dgm, until

OWN = Path(__file__).parent / "own"
Bench = Callable[..., Any]
Cells = Callable[[str], list[dict[str, Any]]]


def test_a_suite_from_start_to_end(dgm_bench: Bench, stored_cells: Cells, tmp_path: Path) -> None:
    planned = dgm_bench("suite=tiny", "--dry-run")
    assert planned.code == 0, planned.stderr
    assert "6 cells" not in planned.stdout
    assert "5 cells (4 planned, 1 not built)" in planned.stdout
    assert len(re.findall(r"^planned +~\d+ s  (?:made|troubled)", planned.stdout, re.MULTILINE)) == 3, "tried here"
    assert "(model=troubled takes real data" in planned.stdout
    assert "time unknown for 1 of 4 planned cells" in planned.stdout
    assert "dgm train --config-dir" in planned.stdout
    assert not (tmp_path / "bench").exists()

    done = dgm_bench("suite=tiny")
    assert done.code == 0, done.stderr + done.stdout
    cells = {cell["id"]: cell for cell in stored_cells("tiny")}
    assert {name: cell["status"] for name, cell in cells.items()} == {
        "made-digits_binary-s0": "done",
        "made-digits_binary-s1": "done",
        "troubled-toy2d-s0": "done",
        "troubled-digits_binary-s0": "skipped",
        "never_built-default-s0": "not built",
    }
    assert "troubled takes real data" in cells["troubled-digits_binary-s0"]["reason"]
    assert (tmp_path / "bench" / "tiny" / cells["made-digits_binary-s0"]["run"] / "result.json").is_file()
    assert "log_likelihood" in done.stdout
    assert re.search(r"-\d+\.\d+ \+- \S+ \(2\)", done.stdout), "mean and deviation of two seeds"
    assert "not built yet: never_built" in done.stdout
    assert "skipped: model=troubled takes" in " ".join(done.stdout.split())
    report = Path(done.stdout.splitlines()[-1])
    assert report.name == "report.html"
    assert report.is_file()

    results = list((tmp_path / "bench" / "tiny").glob("*/result.json"))
    before = {path: path.stat().st_mtime_ns for path in results}
    again = dgm_bench("suite=tiny")
    assert again.code == 0, again.stderr
    assert again.stdout.splitlines()[-1] == str(report)
    assert again.stderr == "", "no cell is started, so none is said to have ended"
    assert {path: path.stat().st_mtime_ns for path in results} == before
    planned = dgm_bench("suite=tiny", "--dry-run", "seed=0,1,2", "model=made")
    assert "3 cells (2 done, 1 planned)" in planned.stdout
    assert re.search(r"about \d+ s", planned.stdout), "finished cells tell what one more seed will cost"


def test_the_second_start_of_a_finished_suite_imports_nothing_heavy(dgm_bench: Bench, tmp_path: Path) -> None:
    chosen = ["suite=tiny", "model=made", "seed=0"]
    assert dgm_bench(*chosen).code == 0
    code = (
        "import sys\nfrom dgmbench.command.main import main\nassert main(sys.argv[1:]) == 0\n"
        "sys.exit(bool({'torch', 'numpy', 'pytorch_lightning', 'sklearn'} & set(sys.modules)))"
    )
    words = ["bench", "--config-dir", str(OWN), *chosen, "--dry-run", f"paths.outputs={tmp_path}"]
    done = fresh("-c", code, *words)
    assert done.returncode == 0, done.stderr
    assert "1 done" in done.stdout


def test_settings_for_some_models_leave_the_entries_of_the_others(dgm_bench: Bench, stored_cells: Cells) -> None:
    assert dgm_bench("suite=tiny").code == 0
    before = stored_cells("tiny")
    done = dgm_bench("suite=tiny", "model=made", "seed=0", "protocol.k=5")
    assert done.code == 0, done.stderr
    after = stored_cells("tiny")
    assert after[1:] == before[1:]
    assert (after[0]["status"], after[0]["run"]) == ("done", before[0]["run"])
    assert "protocol.k=5" in after[0]["overrides"]


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trainer.budget=2foo"], "trainer.budget=2foo"),
        (["trainer.budgett=1ep"], "did you mean budget"),
        (["model.nowhere=3"], "nowhere"),
        (["model=made", "model.trouble=raise"], "trouble"),
        (["data=digit"], "no data 'digit'; did you mean digits"),
        (["hardware.devices=2"], "hardware.devices=2 asks for several processes"),
        (["hardware=multi_gpu"], "hardware=multi_gpu asks for several processes"),
    ],
)
def test_settings_that_no_cell_can_take_stop_before_anything_runs(
    words: list[str], sentence: str, flags: list[str], dgm_bench: Bench, tmp_path: Path
) -> None:
    done = dgm_bench("suite=tiny", *words, *flags)
    assert done.code == 2, done.stdout
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "bench").glob("tiny/[!.]*")), "nothing but the lock"


def test_a_setting_that_some_models_lack_is_left_to_their_cells(dgm_bench: Bench) -> None:
    done = dgm_bench("suite=tiny", "model.hidden_sizes=[3]", "--dry-run")
    assert done.code == 0, done.stderr
    assert "4 planned" in done.stdout
    done = dgm_bench("suite=troubles", "--dry-run", "executor.memory=1GiB")
    assert done.code == 0, "one block asks for a trouble that is none"
    # what a trial ends by, ends the trial alone
    for reason in (
        "a trial failed: ValueError: the trouble",
        "killed by SIGSEGV",
        "exit code 3",
        "oom: reached the limit of 1,024",
    ):
        assert reason in done.stdout
    assert re.search(r"~\d+ s  troubled-\S+$", done.stdout, re.MULTILINE)


def test_the_headline_is_that_of_the_cells_own_protocol() -> None:
    result: dict[str, Any] = {"metrics": {"elbo": {}, "iw_bound_k10": {}, "iw_bound_k5": {}}}
    assert headline(result, 5) == "iw_bound_k5"
    assert headline(result, 7) == headline(result) == "iw_bound_k10"
    assert headline({"metrics": {"iw_bound_k5": {}, "log_likelihood": {}}}, 5) == "log_likelihood"
    # what the validation objective is called comes before the distance of samples, whatever the evaluator's order
    for objective in ("log_likelihood_estimate", "elbo_estimate", "reconstruction_log_prob"):
        assert headline({"metrics": {"reconstruction_mse": {}, "energy_distance": {}, objective: {}}}) == objective

    def cell(*words: str) -> Cell:
        return Cell(id="", model="vae", data="", seed=0, family=None, overrides=list(words), command="")

    assert protocol_k(cell()) == 100
    assert protocol_k(cell("protocol=quick")) == 10
    assert protocol_k(cell("protocol=quick", "protocol.k=5")) == 5
    assert protocol_k(cell("protocol=never")) is None


def test_failures_are_explained_kept_and_retried(dgm_bench: Bench, stored_cells: Cells) -> None:
    limits = ["executor.memory=1GiB"]
    failed = dgm_bench("suite=troubles", *limits)
    assert failed.code == 1, failed.stderr
    cells = stored_cells("troubles")
    statuses = ["failed", "failed", "failed", "oom", "oom", "failed", "done"]
    assert [cell["status"] for cell in cells] == statuses, cells
    assert all(cell["reason"] for cell in cells if cell["status"] != "done")
    assert "the trouble that was asked for" in " ".join(failed.stdout.split())
    assert Path(failed.stdout.splitlines()[-1]).is_file(), "the report is written all the same"

    kept = dgm_bench("suite=troubles", *limits)
    assert kept.code == 1
    assert [line for line in kept.stderr.splitlines() if line.startswith(("failed", "oom", "timeout"))] == []

    again = dgm_bench("suite=troubles", "--retry", "oom", *limits)
    tried = [line.split()[0] for line in again.stderr.splitlines() if line.startswith(("failed", "oom", "timeout"))]
    assert tried == ["oom", "oom"]


def test_a_cell_that_reaches_the_time_limit_is_kept_and_retried(dgm_bench: Bench, stored_cells: Cells) -> None:
    words = ["suite=endless", "executor.time=1s"]
    assert dgm_bench(*words).code == 1
    (cell,) = stored_cells("endless")
    assert (cell["status"], cell["reason"]) == ("timeout", "reached the limit of 1 s (executor.time)")
    assert dgm_bench(*words).stderr == "", "it is not tried again by itself"
    assert dgm_bench(*words, "--retry", "timeout").stderr.startswith("timeout")


def test_published_values_stand_beside_measured_ones(dgm_bench: Bench, stored_cells: Cells) -> None:
    done = dgm_bench("suite=paper")
    assert done.code == 0, done.stderr
    text = " ".join(done.stdout.split())
    row = r"gauss1809_made_digits -25 nats -2\d\.\d+ \+- \S+ \(2\) [+-]\S+ \(within tolerance\) as stated"
    assert re.search(row, text)
    changed = dgm_bench("suite=paper", "trainer.budget=1ba", "seed=0")
    assert "no: settings were changed: trainer.budget=1ba" in " ".join(changed.stdout.split())
    assert all(cell["paper"]["source"] == "Gauss 1809" for cell in stored_cells("paper"))


def test_stale_cells_are_named_and_run_again_when_asked(dgm_bench: Bench, stored_cells: Cells, tmp_path: Path) -> None:
    assert dgm_bench("suite=tiny", "model=made", "seed=0").code == 0
    cell = stored_cells("tiny")[0]
    assert [other["status"] for other in stored_cells("tiny")] == ["done", "planned", "planned", "not built"]
    result = tmp_path / "bench" / "tiny" / cell["run"] / "result.json"
    stored = json.loads(result.read_text())
    stored["versions"]["model_source"] = "0" * 16
    result.write_text(json.dumps(sealed(stored)))
    done = dgm_bench("suite=tiny", "model=made", "seed=0")
    assert done.code == 0
    assert "stale" in done.stdout
    assert stored_cells("tiny")[0]["status"] == "stale"
    done = dgm_bench("suite=tiny", "model=made", "seed=0", "--stale")
    assert done.code == 0
    assert stored_cells("tiny")[0]["status"] == "done"
    assert json.loads(result.read_text())["versions"]["model_source"] != "0" * 16
    assert json.loads(result.read_text())["metrics"] == stored["metrics"]


def endless(tmp_path: Path) -> list[str]:
    """A suite of one cell that says that it trains, and trains for ever."""
    return ["bench", "--config-dir", str(OWN), "suite=endless", "executor.slots=1", f"model.marks={tmp_path}",
            f"paths.outputs={tmp_path}"]  # fmt: skip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_cells_resumably(
    number: int, code: int, stored_cells: Cells, dgm_bench: Bench, tmp_path: Path
) -> None:
    runner = start_dgm(*endless(tmp_path), own_server=False)
    until((tmp_path / "begun").exists, "the cell trains", runner)
    second = dgm_bench("suite=endless")
    assert second.code == 2
    assert "being run by another process" in second.stderr
    runner.send_signal(number)
    done = runner.done()
    assert done.returncode == code, done.stderr
    assert "the same command goes on" in done.stderr
    assert "report" not in done.stdout
    (run,) = (tmp_path / "bench" / "endless").glob("troubled-*")
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert json.loads((run / "status.json").read_text())["status"] == "interrupted"
    (cell,) = stored_cells("endless")
    assert cell["status"] == "planned"
    assert cell["reason"]


def test_a_killed_runner_takes_its_cells_with_it(tmp_path: Path) -> None:
    """A runner in a new interpreter, with a fork server of its own."""
    command = [sys.executable, "-m", "dgmbench", *endless(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as runner:
        until((tmp_path / "begun").exists, "the cell trains", runner)
        (status,) = (tmp_path / "bench" / "endless").glob("troubled-*/status.json")
        cell = json.loads(status.read_text())["pid"]
        assert is_alive(cell)
        runner.kill()
    until(lambda: not is_alive(cell), "the cell dies with its runner")


def test_a_runner_that_is_killed_again_and_again_ends_with_every_cell_right(
    stored_cells: Cells, tmp_path: Path
) -> None:
    words = ["bench", "--config-dir", str(OWN), "suite=many", f"paths.outputs={tmp_path}", "executor.slots=2"]
    running = []
    for _ in range(3):
        runner = start_dgm(*words, own_server=False)
        until(lambda: re.search(r"^done ", runner.errors, re.MULTILINE), "its first cell is done", runner)  # noqa: B023
        cells = cells_beside(runner)
        assert runner.poll() is None
        runner.kill()
        runner.wait()
        until(lambda: not any(map(is_alive, cells)), "its cells die with it")  # noqa: B023
        running.append(len(cells))
    assert any(running), "every kill has struck between two cells"
    done = start_dgm(*words, own_server=False).done()
    assert done.returncode == 0, done.stdout + done.stderr
    stored = stored_cells("many")
    assert [cell["status"] for cell in stored] == ["done"] * 10
    assert len({cell["run"] for cell in stored}) == 10
    folder = tmp_path / "bench" / "many"
    for cell in stored:
        result = json.loads((folder / cell["run"] / "result.json").read_text())
        assert (result["seed"], result["run"], result["status"]) == (cell["seed"], cell["run"], "done")
    for cell in stored[::4]:
        quiet = ["trainer.progress=false", f"paths.outputs={tmp_path / 'alone'}"]
        alone = train(compose("train", [*cell["overrides"], *quiet]))
        assert alone.result["metrics"] == json.loads((folder / cell["run"] / "result.json").read_text())["metrics"]


def cells_beside(runner: Forked) -> list[int]:
    """The other processes of the warm server: the cells of the only runner that forks from it."""
    server = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return [process for process in children(server) if process != runner.pid]


def test_a_cell_in_this_process_never_raises(tmp_path: Path) -> None:
    outcome = run_cell(Task(id="x", overrides=["model=never"], folder=str(tmp_path)))
    assert outcome.status == "failed"
    assert "no model 'never'" in (outcome.reason or "")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["suite=dmo"], "no suite 'dmo'; did you mean demo"),
        ([], "No suite is chosen: add suite=NAME"),
        (["suite"], "'suite' is not of the form key=value"),
        (["suite=demo", "--retry", "faild"], "'faild' is none of failed, oom, timeout or all"),
        (["suite=demo", "executor.slots=0"], "executor.slots=0 leaves nothing to run cells on"),
        (["suite=demo", "executor.sluts=1"], "did you mean slots"),
        (["suite=demo", "executor=ry"], "no executor 'ry'; did you mean ray"),
        (["suite=demo", "model=mad"], "no model in this suite 'mad'; did you mean made"),
        (["suite=demo", "trainer.budgt=1ep"], "no trainer setting 'budgt'; did you mean budget"),
        (["suite=demo", "executor=slurm"], "finds no SLURM here"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *words, f"paths.outputs={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_an_experiment_can_be_trained_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--config-dir", str(OWN), "experiment=gauss1809_made_digits", "seed=7", "--cfg"]
    assert cli.main(words) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["names"]["model"] == "made"
    assert printed["model"]["hidden_sizes"] == [4]
    assert (printed["trainer"]["budget"], printed["seed"]) == ("2ba", 7)
    assert cli.main(["train", "experiment=burda2016_via_mnist"]) == 2
    assert "did you mean burda2016_vae_mnist" in capsys.readouterr().err


def test_suites_are_listed_and_completed() -> None:
    assert "Every family on real 8x8 digits" in listing("suite")
    assert "-86.76 nats" in listing("experiment")
    assert candidates(["bench", "suite=de"], cli.VERBS) == ["suite=demo"]
    assert candidates(["bench", "executor.cel"], cli.VERBS) == ["executor.cells_per_gpu="]
    assert "--dry-run" in candidates(["bench", "-"], cli.VERBS)


def test_estimates_come_from_finished_cells_with_other_seeds() -> None:
    def cell(seed: int, status: str, seconds: float | None, budget: str = "1ep") -> Cell:
        words = ["model=made", f"seed={seed}", f"trainer.budget={budget}"]
        return Cell(
            id=f"{seed}{budget}", model="made", data="digits", seed=seed, family=None, overrides=words, command="",
            status=status, seconds=seconds,
        )  # fmt: skip

    cells = [cell(0, "done", 10.0), cell(1, "done", 14.0), cell(2, "planned", None), cell(3, "planned", None)]
    assert estimate(cells, cells, 2) == ({"21ep": 12.0, "31ep": 12.0}, 12.0)
    cells += [cell(4, "planned", None, "9ep")]
    each, total = estimate(cells, cells, 2)
    assert each["49ep"] is None
    assert total is None
