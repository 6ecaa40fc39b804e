"""Two real processes (gloo on the CPU) against one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dgmbench.config import compose
from dgmbench.data import load
from dgmbench.errors import UserError
from dgmbench.evaluation.evaluator import validation_objective
from dgmbench.runs.build import build_model, load_weights
from dgmbench.runs.folder import RunFolder
from dgmbench.training.files import read_checkpoint, read_rows
from dgmbench.training.ranks import Ranks, find_ranks

TWO = Path(__file__).with_name("two.py")
COMMON = ("trainer.progress=false", "protocol=quick", "hardware=cpu", "hardware.threads=1", "trainer.budget=50ba",
          "trainer.validate=25ba", "trainer.samples=50ba", "trainer.checkpoint=10ba")  # fmt: skip


def run(folder: Path, *overrides: str, devices: int = 2, kill_at: int = 0, code: int = 0) -> list[dict]:
    """Train in ``devices`` processes started by Lightning; returns what each ends with."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, str(TWO), str(folder), str(kill_at), *COMMON, f"hardware.devices={devices}",
         f"paths.outputs={folder / 'outputs'}", *overrides],
        capture_output=True, text=True, check=False, start_new_session=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return [torch.load(folder / f"rank{r}.pt") for r in range(devices)] if code == 0 else []


@pytest.mark.parametrize("model", ["vae", "wgan_gp", "rbm_fpcd"])
def test_two_processes_stay_equal_but_draw_their_own_noise(model: str, tmp_path: Path) -> None:
    first, second = run(tmp_path / "two", f"model={model}")
    assert first["world"] == second["world"] == 2
    assert first["noise"] != second["noise"]
    assert not list((tmp_path / "two").glob("connected*"))  # an exit from a living group aborts now and then
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
    (folder,) = (tmp_path / "two" / "outputs").glob(f"{model}-*")
    # the validation metric of both together is that of one process with the same weights; 180 examples, chunks of 100
    completed = RunFolder(folder).read_config()
    data = load(completed["data"], Path(completed["paths"]["data"]))
    assert data.size("valid") % 100 != 0
    weights = build_model(completed, data.spec)
    load_weights(weights, read_checkpoint(folder / "checkpoints" / "last.ckpt"))
    name, metric = validation_objective(weights, data, device=torch.device("cpu"))
    measured = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "valid"][-1][name]
    assert measured == pytest.approx(metric.value, rel=1e-6)


def test_without_noise_two_processes_do_what_one_does(tmp_path: Path) -> None:
    # made in the natural order draws nothing, so both halves of a batch add up to the whole batch
    (alone,) = run(tmp_path / "one", "model=made", devices=1)
    first, _ = run(tmp_path / "two", "model=made")
    for name, value in alone["state"].items():
        torch.testing.assert_close(first["state"][name], value, rtol=1e-3, atol=1e-5)


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    overrides = ("model=vae_gan", "trainer.accumulate=2")
    whole, _ = run(tmp_path / "whole", *overrides)
    run(tmp_path / "killed", *overrides, kill_at=13, code=-signal.SIGKILL)
    first, second = run(tmp_path / "killed", *overrides)
    for name, value in whole["state"].items():
        assert torch.equal(first["state"][name], value), name
        assert torch.equal(second["state"][name], value), name
    # every process's open window of logs is in the checkpoint, so the averages are the same as well
    logs = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(file) if row["kind"] == "train"]
        for name in ("whole", "killed")
        for file in (tmp_path / name / "outputs").glob("vae_gan-*/metrics.jsonl")
    ]
    assert logs[0] == logs[1]
    assert len(logs[0]) > 1


def test_torchrun_makes_one_run_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29613", "-m", "dgmbench",
         "train", *COMMON, "model=made", "hardware.devices=2", f"paths.outputs={tmp_path}"],
        capture_output=True, text=True, check=False, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert json.loads((folder / "result.json").read_text())["cost"]["processes"] == 2
    assert done.stdout.splitlines()[-1] == str(folder)


def test_slurms_tasks_make_one_run_folder(tmp_path: Path) -> None:
    """Two processes in the environment that srun gives its tasks."""
    job = {"SLURM_JOB_ID": "43117", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
           "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0"}  # fmt: skip
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "dgmbench", "train", *COMMON, "model=made", "hardware.devices=2",
             f"paths.outputs={tmp_path}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **job, "OMP_NUM_THREADS": "1", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    ended = [task.communicate(timeout=240) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], ended
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert json.loads((folder / "result.json").read_text())["cost"]["processes"] == 2
    assert ended[0][0].splitlines()[-1] == str(folder)


# ---------------------------------------------------------------------- who am I


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_alone(environment: pytest.MonkeyPatch) -> None:
    assert find_ranks(1, 1) == Ranks(0, 0, 1)


def test_started_by_lightning(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LOCAL_RANK", "1")
    environment.setenv("NODE_RANK", "2")
    assert find_ranks(4, 3) == Ranks(9, 1, 12)


def test_started_by_torchrun(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RANK", "3")
    environment.setenv("LOCAL_RANK", "1")
    environment.setenv("WORLD_SIZE", "4")
    assert find_ranks(2, 2) == Ranks(3, 1, 4)
    with pytest.raises(UserError, match=r"torchrun has started 4 processes, but hardware.devices=1"):
        find_ranks(1, 1)


def test_started_by_slurm(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SLURM_NTASKS", "4")
    environment.setenv("SLURM_PROCID", "2")
    environment.setenv("SLURM_LOCALID", "0")
    environment.setenv("SLURM_JOB_NAME", "train")
    assert find_ranks(2, 2) == Ranks(2, 0, 4)
    with pytest.raises(UserError, match="SLURM has started 4 processes"):
        find_ranks(1, 1)


def test_a_batch_that_does_not_divide_says_so(environment: pytest.MonkeyPatch) -> None:
    from dgmbench.config import complete
    from dgmbench.runs.run import train

    cfg = compose("train", ["model=vae", "hardware=cpu", "hardware.devices=3", "trainer.batch_size=100"])
    with pytest.raises(UserError, match="multiple of the 3 processes"):
        train(complete(cfg))


def test_one_process_needs_no_process_group() -> None:
    tensors = [torch.arange(3.0), torch.ones(2)]
    Ranks().mean_(tensors)
    Ranks().from_first_(tensors)
    assert torch.equal(tensors[0], torch.arange(3.0))
    assert Ranks().gathered({1: tensors[1], 0: tensors[0]}) == [tensors[0], tensors[1]]


def test_processes_that_measure_differently_still_decide_alike(tmp_path: Path) -> None:
    # a model whose samples are not a function of the generator: each process measures another energy distance
    (tmp_path / "wayward.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from dgmbench.models.contract import Model\n"
        "calls = torch.Generator()\n"
        "calls.seed()\n"
        "class Wayward(Model):\n"
        "    def __init__(self, spec):\n"
        "        super().__init__(spec)\n"
        "        self.p = nn.Parameter(torch.zeros(spec.dim))\n"
        "    def loss(self, player, batch, generator):\n"
        "        return (batch.x.flatten(1).float() - self.p).square().mean(), {}\n"
        "    def sample(self, n, y=None, *, generator=None):\n"
        "        return torch.rand((n, *self.spec.shape), generator=calls).round().to(torch.uint8)\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "wayward.yaml").write_text(
        "defaults:\n  - override /data@_global_.data: digits_binary\n  - _self_\n_target_: wayward.Wayward\n"
        "card: {family: other, summary: s, kinds: [binary], likelihood: none, data: digits_binary}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "dgmbench", "train", "--config-dir", str(tmp_path), *COMMON, "model=wayward",
         "trainer.validate=1ba", "hardware.devices=2", f"paths.outputs={tmp_path / 'outputs'}"],
        capture_output=True, text=True, check=False, timeout=200, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
