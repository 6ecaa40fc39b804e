"""Two real processes (gloo on the CPU) against one."""

import json
import os
import signal
from collections.abc import Callable
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

from ..processes import Forked, free_port, fresh, start_dgm, until

TWO = Path(__file__).with_name("two.py")
COMMON = ("trainer.progress=false", "protocol=quick", "protocol.max_examples=50", "protocol.quality.samples=50",
          "protocol.semi_supervised.labels=[]", "hardware=cpu", "hardware.threads=1", "trainer.budget=30ba",
          "trainer.validate=15ba", "trainer.samples=30ba", "trainer.checkpoint=10ba")  # fmt: skip


def torchruns(rank: int, world: int, port: int) -> dict[str, str]:
    """The environment that torchrun gives its processes."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    return {name: str(value) for name, value in place.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_RUN_ID": "tests",
    }


def run(folder: Path, *overrides: str, devices: int = 2, kill_at: int = 0, code: int = 0) -> list[dict]:
    """Train in ``devices`` processes of one group, placed as torchrun places them; returns what each ends with."""
    folder.mkdir(exist_ok=True)
    words = [str(TWO), str(folder), str(kill_at), *COMMON, f"hardware.devices={devices}",
             f"paths.outputs={folder / 'outputs'}", *overrides]  # fmt: skip
    port, processes = free_port(), []
    for rank in range(devices):
        group = processes[0].pid if processes else 0
        environment = torchruns(rank, devices, port) if devices > 1 else {}
        process = Forked(words, environment=environment, group=group)
        processes.append(process)
        until(lambda: os.getpgid(processes[0].pid) == processes[0].pid, "a group of its own", processes[0])
    ended = [process.done() for process in processes]
    assert [process.returncode for process in ended] == [code] * devices, ended
    return [torch.load(folder / f"rank{r}.pt") for r in range(devices)] if code == 0 else []


def launched(folder: Path, *overrides: str) -> list[dict]:
    """The same by Lightning's own launcher, which starts the second process itself."""
    folder.mkdir()
    done = fresh(
        str(TWO), str(folder), "0", *COMMON, "hardware.devices=2", f"paths.outputs={folder / 'outputs'}", *overrides
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"rank{r}.pt") for r in range(2)]


@pytest.mark.parametrize(("model", "start"), [("vae", launched), ("wgan_gp", run), ("rbm_fpcd", run)])
def test_two_processes_stay_equal_but_draw_their_own_noise(
    model: str, start: Callable[..., list[dict]], tmp_path: Path
) -> None:
    first, second = start(tmp_path / "two", f"model={model}", *(["model.hidden=20"] if model == "rbm_fpcd" else []))
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
    done = fresh(
        "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", "-m", "dgmbench",
        "train", *COMMON, "model=made", "hardware.devices=2", f"paths.outputs={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert json.loads((folder / "result.json").read_text())["cost"]["processes"] == 2
    assert done.stdout.splitlines()[-1] == str(folder)


def test_slurms_tasks_make_one_run_folder(tmp_path: Path) -> None:
    """Two processes in the environment that srun gives its tasks."""
    job = {"SLURM_JOB_ID": "43117", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
           "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0", "MASTER_PORT": str(free_port())}  # fmt: skip
    words = ["train", *COMMON, "model=made", "hardware.devices=2", f"paths.outputs={tmp_path}"]
    tasks = [
        start_dgm(*words, environment={**job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
        for rank in range(2)
    ]
    ended = [task.done() for task in tasks]
    assert [task.returncode for task in ended] == [0, 0], ended
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert json.loads((folder / "result.json").read_text())["cost"]["processes"] == 2
    assert ended[0].stdout.splitlines()[-1] == str(folder)


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
    words = ["train", "--config-dir", str(tmp_path), *COMMON, "model=wayward", "trainer.validate=1ba",
             "trainer.budget=20ba", "hardware.devices=2", f"paths.outputs={tmp_path / 'outputs'}"]  # fmt: skip
    port = free_port()
    processes = [
        start_dgm(*words, environment={**torchruns(rank, 2, port), "PYTHONPATH": str(tmp_path)}) for rank in range(2)
    ]
    ended = [process.done() for process in processes]
    assert [process.returncode for process in ended] == [0, 0], ended
