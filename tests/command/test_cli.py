"""The command line as people use it: verbs, exit codes, one sentence for whatever is wrong."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgmbench.command import main as cli
from dgmbench.command import train
from dgmbench.command.multirun import _can_keep, _study, _summary
from dgmbench.errors import RunFailed, UserError

from ..processes import dgm

OWN = Path(__file__).parent.parent / "my_configs"
FEW = ["protocol=quick", "protocol.max_examples=50", "protocol.quality.samples=50"]
QUICK = ["trainer.budget=2ba", "trainer.progress=false", *FEW]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of one's own model."""
    outputs = tmp_path_factory.mktemp("outputs")
    done = dgm("train", "--config-dir", str(OWN), "model=gaussian", f"paths.outputs={outputs}", *QUICK)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.parent == outputs
    assert (folder / "result.json").is_file()
    assert [path.name for path in outputs.iterdir()] == [folder.name], "nothing but the run's folder is made"
    return folder


@pytest.fixture
def own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGM_CONFIG_DIR", str(OWN))
    monkeypatch.setattr(sys, "path", list(sys.path))


def fails(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """Run ``dgm`` in this process, expect the exit code and one line on stderr, and return that line."""
    assert cli.main(words) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("dgm: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    "words",
    [["--help"], ["list"], ["list", "data"], ["train", "--help"], ["--version"], ["complete", "--", "train", "model="]],
)
def test_nothing_heavy_is_imported(words: list[str]) -> None:
    code = (
        "import sys\nfrom dgmbench.command.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'hydra', 'omegaconf', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb != "completion"])
def test_every_verb_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([verb, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"dgm {verb}" in text
    if verb == "train":
        assert "digits_binary" in text
        assert "optimizer  adam, " in text
        assert "dgm list optimizer" in text, "more than fit are counted, with where to see them"


@pytest.mark.parametrize("wanted", [None, "0"])
def test_torch_uses_large_pages_unless_told_otherwise(wanted: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    told = {} if wanted is None else {"THP_MEM_ALLOC_ENABLE": wanted}
    code = "import os, sys; from dgmbench.command.main import main; main(['--version']); print('torch' in sys.modules, "
    code += "os.environ['THP_MEM_ALLOC_ENABLE'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | told, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"False {wanted or 1}"  # in time: torch reads it at its first tensor


def test_list(capsys: pytest.CaptureFixture[str], own_model: None) -> None:
    for words, expected in {
        (): "Variational autoencoders",
        ("data",): "toy2d",
        ("optimizer",): "torch.optim.AdamW",
        ("model=vae",): "model.latent",
        ("model/estimator",): "pcd",
        ("model=rbm_fpcd",): " fpcd\n",
        ("model=gaussian",): "Gauss 1809: Theoria motus",
    }.items():
        assert cli.main(["list", *words]) == 0
        assert expected in capsys.readouterr().out
    assert "did you mean data" in fails(capsys, "list", "dat")
    assert "did you mean vae" in fails(capsys, "list", "model=vea")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "model=vae"], "There is no verb 'trian'; did you mean train"),
        (["train"], "No model is chosen"),
        (["train", "model=vea"], "did you mean vae"),
        (["train", "model=vae", "data=digit"], "did you mean digits"),
        (["train", "model=vae", "model.latnet=3"], "There is no model setting 'latnet'; did you mean latent"),
        (["train", "model=vae", "trainer.bugdet=3ep"], "did you mean budget"),
        (["train", "model=vae", "trainer.budget=-3ep"], "more than zero"),
        (["train", "model=vae", "trainer.budget=3"], "no unit"),
        (["train", "model=vae", "seed=x"], "seed=x must be a whole number"),
        (["train", "model=vae", "seed=0,1"], "add -m"),
        (["train", "model=vae", "--confg-dir", "x"], "nrecognized arguments"),
        (["train", "--config-dir", "/no/such", "model=vae"], "/no/such does not exist"),
        (["train", "-m", "--cfg", "model=vae"], "leave out -m"),
        (["train", "-m", "model=vae,vea"], "did you mean vae"),
        (["train", "-m", "model=vae", "trainer.bugdet=1ep,2ep"], "did you mean budget"),
        (["train", "-m", "model=vae", "hydra/launcher=jobilb"], "did you mean joblib"),
        (["evaluate"], "run must be given"),
        (["evaluate", "run=/no/such/run"], "does not exist"),
        (["evaluate", "run=/", "protocol=defualt"], "did you mean default"),
        (["evaluate", "run=/", "protocol.kk=3"], "did you mean k"),
        (["sample", "run=/"], "no config.yaml"),
        (["sample", "run=/", "n=0"], "n=0 must be more than zero"),
        (["verify", "model=vea"], "did you mean vae"),
        (["rerun"], "takes the folder of one run"),
        (["rerun", "/"], "no config.yaml"),
        (["completion", "tcsh"], "bash, zsh or fish"),
    ],
)
def test_bad_commands(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGM_OUTPUTS", str(tmp_path))
    assert message in fails(capsys, *words)
    assert [path.name for path in tmp_path.glob("[!.]*")] == []


def test_the_whole_configuration_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "model=rbm", "model.estimator=pcd", "--cfg"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["estimator"]["_target_"].endswith("PCD")
    assert shown["names"]["model"] == "rbm"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("two\nlines"), 2, "two lines"),
        (RunFailed("not finite"), 1, "not finite"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/full/file"), 2, "The disk is full (/full/file)"),
        (PermissionError(errno.EACCES, "Permission denied", "/locked"), 2, "Permission is denied (/locked)"),
        (OSError(errno.EROFS, "Read-only file system", "/cd"), 2, "read-only (/cd)"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero (set DGM_DEBUG=1"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(rest: list[str]) -> int:
        raise error

    monkeypatch.setattr(train, "run", raising)
    monkeypatch.delenv("DGM_DEBUG", raising=False)
    assert message in fails(capsys, "train", code=code)
    if isinstance(error, ZeroDivisionError):
        monkeypatch.setenv("DGM_DEBUG", "1")
        with pytest.raises(ZeroDivisionError):
            cli.main(["train"])


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m dgmbench list | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_sample_and_evaluate_a_run(run_folder: Path, own_model: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", f"run={run_folder}", "n=5", "seed=3"]) == 0
    png, npz = map(Path, capsys.readouterr().out.split())
    assert png.is_file()
    import numpy as np

    assert np.load(npz)["x"].shape == (5, 2)
    assert cli.main(["evaluate", f"run={run_folder}", *FEW, "protocol.k=5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(run_folder)
    assert any(line.split()[:1] == ["log_likelihood"] for line in lines)
    assert "did you mean gaussian" in fails(capsys, "evaluate", f"run={run_folder}x")
    assert "more than zero" in fails(capsys, "sample", f"run={run_folder}", "n=0")
    assert "did you mean final" in fails(capsys, "sample", f"run={run_folder}", "checkpoint=finl")


def test_rerun(
    run_folder: Path,
    own_model: None,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["rerun", str(run_folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run_folder)
    assert cli.main(["rerun", str(run_folder), "--fresh", "again"]) == 0
    captured = capsys.readouterr()
    again = Path(captured.out.splitlines()[-1])
    assert captured.err == ""
    assert again == Path("again") / run_folder.name

    def objective(folder: Path) -> Any:
        return json.loads((folder / "result.json").read_bytes())["objective"]["value"]

    assert objective(again) == objective(run_folder)


def test_rerun_refuses_a_renamed_folder(
    run_folder: Path, own_model: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(run_folder, tmp_path / "mine")
    assert f"holds the run {run_folder.name}" in fails(capsys, "rerun", str(tmp_path / "mine"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "mine").rename(tmp_path / run_folder.name)
    assert cli.main(["rerun", str(tmp_path / run_folder.name)]) == 0
    assert "was done already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dgmbench", "0.0.1", "made by dgmbench 0.0.1"),
        ("model_source", "0", "my_model.py or what it imports has changed"),
    ],
)
def test_rerun_warns_about_other_code(
    run_folder: Path,
    own_model: None,
    tmp_path: Path,
    key: str,
    value: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dgmbench.runs.folder import RunFolder
    from dgmbench.runs.record import sealed
    from dgmbench.runs.rerun import version_warning

    monkeypatch.syspath_prepend(OWN)
    assert version_warning(RunFolder(run_folder)) is None
    result = json.loads((run_folder / "result.json").read_bytes())
    result["versions"][key] = value
    (tmp_path / "result.json").write_text(json.dumps(sealed(result)), encoding="utf-8")
    (tmp_path / "config.yaml").write_bytes((run_folder / "config.yaml").read_bytes())
    assert message in str(version_warning(RunFolder(tmp_path)))


def test_rerun_of_a_damaged_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("a: [1", encoding="utf-8")
    assert "damaged" in fails(capsys, "rerun", str(tmp_path))


def test_verify_prints_a_table_and_fails_with_one(
    own_model: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dgmbench.verify
    from dgmbench.verify import Check

    checks = [Check("sums to 1", 1e-9, "1e-6", True, "by quadrature"), Check("bracket", "-", "-", None, "no AIS")]
    monkeypatch.setattr(dgmbench.verify, "verify_config", lambda *args, **kwargs: checks)
    assert cli.main(["verify", "model=gaussian"]) == 0
    text = capsys.readouterr().out
    assert "1e-09" in text
    assert "model=gaussian: 1 passed, 1 undecided" in text
    checks.append(Check("gradient", 2.0, 1e-6, False))
    assert cli.main(["verify", "model=gaussian"]) == 1
    assert "1 FAILED" in capsys.readouterr().out


def test_a_sweep_goes_on_after_a_failure_and_ends_with_the_worst_code(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    words = ["--config-dir", str(OWN), "model=gaussian", "seed=0,1", "data=few_moons,digits", "model.rate=3", *QUICK]
    done = dgm("train", "-m", *words, f"paths.outputs={folder}")
    assert done.returncode == 2, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert sum(line.endswith(": failed") for line in lines[:4]) == 2
    found = {
        line.partition(": ")[0]: float(line.partition(";")[0].split()[-2])
        for line in lines[:4]
        if not line.endswith(": failed")
    }
    assert lines[4].startswith(f"best: {max(found, key=lambda job: found[job])}: ")
    assert lines[5].startswith("2 of 4 runs done")
    errors = [line for line in done.stderr.splitlines() if line.startswith("dgm: ")]
    assert len(errors) == 2
    assert "Traceback" not in done.stderr
    runs = [path for path in folder.iterdir() if path.name.startswith("gaussian")]
    assert len(runs) == 2
    single = dgm("train", *words[:3], "seed=1", "model.rate=3", *QUICK, f"paths.outputs={folder}")
    assert single.returncode == 0
    assert "was done already" in single.stdout, "a job of a sweep is the same run as a single one"


def test_the_joblib_launcher(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    words = ["--config-dir", str(OWN), "model=gaussian", "seed=0,1", *QUICK, f"paths.outputs={tmp_path}", *launcher]
    done = dgm("train", "-m", *words)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("gaussian-*/result.json"))) == 2


def test_an_optuna_sweep_minimises_the_validation_objective(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
    words = ["--config-dir", str(OWN), "model=gaussian", *QUICK, f"paths.outputs={tmp_path}", *sweeper]
    done = dgm("train", "-m", *words, "optimizer.lr=choice(0.0,0.5)", "hydra.sweeper.sampler.seed=1")
    assert done.returncode == 0, done.stderr
    best = yaml.safe_load((tmp_path / ".sweeps" / "0" / "optimization_results.yaml").read_text(encoding="utf-8"))
    results = {path.parent: json.loads(path.read_bytes()) for path in tmp_path.glob("*/result.json")}
    values = {run: result["objective"]["value"] for run, result in results.items()}
    assert best["best_value"] == pytest.approx(-max(values.values()))
    # people are told the value as it is, with its unit, for every job and for the best of them
    lines = done.stdout.splitlines()
    for run, value in values.items():
        assert any(f": log_likelihood {value:.6g} nats; {run}" in line for line in lines)
    (winner,) = [line for line in lines if line.startswith("best: ")]
    assert f": log_likelihood {max(values.values()):.6g} nats on validation (higher is better)" in winner
    assert f"optimizer.lr={next(iter(best['best_params'].values()))}" in winner
    assert "2 of 2 runs done; records in " in done.stdout
    if not _can_keep():  # constraints.txt pins a pair of versions that can
        assert "keeps no study beside SQLAlchemy 2" in done.stderr
        return
    import sqlite3

    (name,) = re.findall(r"study (\w+) is kept", lines[-1])
    with sqlite3.connect(tmp_path / ".sweeps" / "optuna.db") as database:
        assert database.execute("SELECT study_name FROM studies").fetchall() == [(name,)]
        kept = [value for (value,) in database.execute("SELECT value FROM trial_values")]
    assert len(kept) == 2
    assert {round(value, 9) for value in kept} == {round(-value, 9) for value in values.values()}


def test_a_study_of_optuna_is_gone_on_with_by_the_same_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgmbench.command.multirun._can_keep", lambda: True)
    words = ["hydra/sweeper=optuna", "model=vae", "optimizer.lr=interval(1e-4,1e-2)"]
    study = _study([*words, "hydra.sweeper.n_trials=2"], tmp_path)
    assert study == _study([words[2], words[0], words[1], "hydra.sweeper.n_trials=9"], tmp_path)
    assert study != _study([*words, "seed=1"], tmp_path)
    assert _study(words[1:], tmp_path) == {}
    assert _study([*words, "hydra.sweeper.storage=null"], tmp_path) == {}
    monkeypatch.setattr("dgmbench.command.multirun._can_keep", lambda: False)
    assert _study(words, tmp_path) == {}


def test_a_sweep_names_the_winner_of_each_objective(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def job(number: int, words: str, **objective: object) -> None:
        record = {"code": 0, "job": words, "run": f"out/{words}", "objective": {"unit": "nats", **objective}}
        (tmp_path / f"job-{number}.json").write_text(json.dumps(record))

    job(0, "a", name="elbo", value=-3.0, direction="higher")
    job(2, "b", name="elbo", value=-2.0, direction="higher")
    job(10, "c", name="energy_distance", value=0.25, direction="lower", unit="")
    job(11, "d", name="energy_distance", value=0.5, direction="lower", unit="")
    (tmp_path / "job-3.json").write_text(json.dumps({"code": 1, "job": "e", "error": "it was not finite"}))
    assert _summary(tmp_path) == 1
    assert capsys.readouterr().out.splitlines() == [
        "a: elbo -3 nats; out/a",
        "b: elbo -2 nats; out/b",
        "e: failed",
        "c: energy_distance 0.25; out/c",
        "d: energy_distance 0.5; out/d",
        "best: b: elbo -2 nats on validation (higher is better)",
        "best: c: energy_distance 0.25 on validation (lower is better)",
        f"4 of 5 runs done; records in {tmp_path}",
    ]


def test_a_sweep_over_a_model_with_a_list_of_estimators(tmp_path: Path) -> None:
    words = [
        "model=dbn",
        "model.hidden_sizes=[4,3]",
        "model.estimator=[cd,pcd]",
        "seed=0,1",
        *QUICK,
        "trainer.budget=3ba",
    ]
    done = dgm("train", "-m", *words, f"paths.outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    for file in tmp_path.glob("dbn-*/config.yaml"):
        estimators = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["estimator"]
        assert [node["_target_"].rpartition(".")[2] for node in estimators] == ["CD", "PCD"]
    assert len(list(tmp_path.glob("dbn-*/result.json"))) == 2


def test_a_failed_trial_does_not_end_an_optuna_sweep(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1"]
    words = ["--config-dir", str(OWN), "model=gaussian", *QUICK, f"paths.outputs={tmp_path}", *sweeper]
    done = dgm("train", "-m", *words, "optimizer.lr=choice(-1,0.5)", "hydra.sweeper.sampler.seed=1")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Invalid learning rate" in done.stderr
    assert " of 4 runs done" in done.stdout
    best = yaml.safe_load((tmp_path / ".sweeps" / "0" / "optimization_results.yaml").read_text(encoding="utf-8"))
    assert list(best["best_params"].values()) == [0.5]


@pytest.mark.parametrize("override", ["hardware.devices=2", "hardware.nodes=2"])
def test_a_sweep_of_several_processes_is_refused(
    override: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["train", "-m", "model=vae", "seed=0,1", override, f"paths.outputs={tmp_path / 'outputs'}"]
    assert "one process a job" in fails(capsys, *words)
    assert not (tmp_path / "outputs").exists()


def test_an_unwritable_place_for_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    assert "cannot be made" in fails(capsys, "train", "-m", "model=vae", f"paths.outputs={file}")
