"""A run as users meet it: signals, locks, full disks, damaged files, what is written and what is not."""

import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dgmbench.command import main as cli
from dgmbench.evaluation.evaluator import Evaluator
from dgmbench.runs import run
from dgmbench.runs.folder import RunFolder
from dgmbench.training.files import AtomicCheckpointIO, RowWriter, read_checkpoint, read_rows, write_atomically
from dgmbench.training.module import Interrupted, Training

from ..processes import Forked, dgm, script, start_dgm, until

QUICK = ("trainer.progress=false", "protocol=quick", "hardware=cpu", "hardware.threads=1")
# What a test does not look at is measured on few examples.
FEW = (
    "protocol=quick",
    "protocol.max_examples=50",
    "protocol.quality.samples=50",
    "protocol.semi_supervised.labels=[]",
)
SMALL = (*QUICK, *FEW[1:])
TRAINED = ("model=vae", "trainer.budget=5ba")


def start(outputs: Path, *overrides: str) -> Forked:
    """Start ``dgm train`` and wait until it has saved a checkpoint."""
    process = start_dgm("train", *SMALL, f"paths.outputs={outputs}", *overrides)
    until(lambda: list(outputs.glob("*/checkpoints/last.ckpt")), "a checkpoint is saved", process)
    return process


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE that has seen five batches and was measured on few examples."""
    outputs = tmp_path_factory.mktemp("trained")
    assert cli.main(["train", *SMALL, f"paths.outputs={outputs}", *TRAINED]) == 0
    (folder,) = outputs.glob("vae-*")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / trained.name))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_resumable_run(number: signal.Signals, code: int, tmp_path: Path) -> None:
    overrides = ("model=vae", "trainer.budget=100000ba", "trainer.checkpoint=5ba", "trainer.validate=100000ba")
    process = start(tmp_path, *overrides)
    process.send_signal(number)
    done = process.done()
    errors = done.stderr
    assert done.returncode == code, errors
    assert "Traceback" not in errors
    assert "resumes" in errors
    (folder,) = tmp_path.glob("vae-*")
    status = json.loads((folder / "status.json").read_text())
    assert status["status"] == "interrupted"
    saved = read_checkpoint(folder / "checkpoints" / "last.ckpt")["dgmbench"]["clock"]
    assert saved["batches"] > 0
    assert not (folder / "result.json").exists()


def test_the_same_run_twice_at_once_is_refused_and_the_first_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("model=vae", "trainer.budget=100000ba", "trainer.checkpoint=5ba")
    process = start(tmp_path, *overrides)
    try:
        code = cli.main(["train", *SMALL, f"paths.outputs={tmp_path}", *overrides])
        message = capsys.readouterr().err
        assert code == 2
        assert f"is being worked on by another process (pid {process.pid} on" in message
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    # a killed owner frees the folder
    (path,) = tmp_path.glob("vae-*")
    folder = RunFolder(path)
    folder.acquire()
    folder.release()


def test_a_full_disk_while_saving_keeps_the_last_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("model=vae", "trainer.budget=40ba", "trainer.checkpoint=10ba", "trainer.validate=100ba")
    command = ["train", *SMALL, f"paths.outputs={tmp_path}", *words]
    process = script(Path(__file__).with_name("kill.py"), "before", "25", *command[1:])
    assert process.returncode == -signal.SIGKILL
    (folder,) = tmp_path.glob("vae-*")
    checkpoint = folder / "checkpoints" / "last.ckpt"
    before = checkpoint.read_bytes()
    assert read_checkpoint(checkpoint)["dgmbench"]["clock"]["batches"] == 20
    full = folder / "checkpoints" / ".last.ckpt.tmp"
    full.symlink_to("/dev/full")  # every write to it fails for want of space
    assert cli.main(command) == 2
    message = capsys.readouterr().err
    assert "The disk is full" in message
    assert "last.ckpt could not be written" in message
    assert "Traceback" not in message
    assert checkpoint.read_bytes() == before
    full.unlink(missing_ok=True)
    assert cli.main(command) == 0
    assert (folder / "result.json").exists()


@pytest.mark.parametrize("damage", ["cut", "altered", "empty", "foreign"])
def test_a_damaged_checkpoint_ends_in_one_sentence_and_is_kept(
    damage: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *SMALL, f"paths.outputs={tmp_path}", *TRAINED]
    (folder / "result.json").unlink()
    last = folder / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "altered":
        content[100:400] = bytes(300)
    last.write_bytes(
        {"cut": content[: len(content) // 2], "altered": content, "empty": b"", "foreign": b"hello"}[damage]
    )
    kept = last.read_bytes()
    assert cli.main(command) == 2
    message = capsys.readouterr().err
    assert "last.ckpt is damaged" in message
    assert "Traceback" not in message
    assert last.read_bytes() == kept


def test_a_loss_that_is_not_finite_fails_the_run_and_keeps_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(
        ["train", *SMALL, f"paths.outputs={tmp_path}", "model=vae", "trainer.budget=400ba", "optimizer=sgd",
         "optimizer.lr=1e6", "trainer.checkpoint=1ba"]
    )  # fmt: skip
    message = capsys.readouterr().err
    assert code == 1
    assert "the last good checkpoint is kept" in message
    (folder,) = tmp_path.glob("vae-*")
    assert json.loads((folder / "status.json").read_text())["status"] == "failed"
    assert "RunFailed" in (folder / "traceback.txt").read_text()
    assert not (folder / "result.json").exists()


def test_checkpoints_load_with_weights_only_and_hold_plain_values(tmp_path: Path) -> None:
    assert (
        cli.main(["train", *SMALL, f"paths.outputs={tmp_path}", "model=gan", "trainer.budget=5ba", "trainer.ema=0.9"])
        == 0
    )
    (folder,) = tmp_path.glob("gan-*")
    for name in ("last", "best"):
        checkpoint = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert "pytorch-lightning_version" in checkpoint
        assert set(checkpoint["dgmbench"]["optimizers"]) == {"discriminator", "generator"}


def test_evaluate_adds_metrics_and_keeps_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((folder / "result.json").read_text())
    weights = (folder / "checkpoints" / "last.ckpt").read_bytes()
    assert cli.main(["evaluate", f"run={folder}", *FEW, "protocol.k=3"]) == 0
    out = capsys.readouterr().out
    after = json.loads((folder / "result.json").read_text())
    assert out.splitlines()[-1] == str(folder)
    assert "iw_bound_k3" in after["metrics"]
    assert after["metrics"]["iw_bound_k10"] == before["metrics"]["iw_bound_k10"]
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == weights
    for metric in after["metrics"].values():
        assert metric["protocol_id"] in after["protocols"]
    assert after["protocols"][after["metrics"]["iw_bound_k3"]["protocol_id"]]["k"] == 3


def test_a_run_that_stopped_after_its_last_update_still_validates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(outputs: str) -> int:
        settings = (*SMALL, f"paths.outputs={tmp_path / outputs}", "model=made", "trainer.budget=5ba")
        return cli.main(["train", *settings])

    def result(outputs: str) -> dict[str, Any]:
        (file,) = (tmp_path / outputs).glob("*/result.json")
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    assert train("whole") == 0

    def stopped(self: Training) -> None:
        self._save()
        raise Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "on_train_end", stopped)
        with pytest.raises(SystemExit):
            train("stopped")
    assert train("stopped") == 0
    for key in ("metrics", "objective"):
        assert result("stopped")[key] == result("whole")[key]
    pictures = [sorted(path.name for path in tmp_path.glob(f"{name}/*/samples/*")) for name in ("stopped", "whole")]
    assert pictures[0] == pictures[1]


def test_a_number_of_the_same_name_under_another_protocol_replaces_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", *SMALL, f"paths.outputs={tmp_path}", "model=vae", "trainer.budget=5ba"]
    assert cli.main([*train, "protocol.max_examples=50"]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    before = json.loads((folder / "result.json").read_text())
    elbo = before["metrics"]["elbo"]
    assert cli.main(["evaluate", f"run={folder}", *FEW, "protocol.max_examples=60"]) == 0
    after = json.loads((folder / "result.json").read_text())
    assert (after["metrics"]["elbo"]["n"], after["metrics"][f"elbo#{elbo['protocol_id']}"]) == (60, elbo)
    for metric in after["metrics"].values():
        assert metric["protocol_id"] in after["protocols"]
    assert cli.main(["show", f"run={folder}", "elbo#"]) == 0
    assert f"elbo#{elbo['protocol_id']}" in capsys.readouterr().out
    # under the first protocol again: both are still there, each once
    assert cli.main(["evaluate", f"run={folder}", *FEW]) == 0
    again = json.loads((folder / "result.json").read_text())["metrics"]
    assert again["elbo"] == elbo
    assert again[f"elbo#{after['metrics']['elbo']['protocol_id']}"] == after["metrics"]["elbo"]
    assert sum(name.partition("#")[0] == "elbo" for name in again) == 2


def test_a_result_says_what_the_run_has_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = (*SMALL, f"paths.outputs={tmp_path}", "model=vae", "model.latent=3", "model.hidden_sizes=[5]")
    assert cli.main(["train", *settings, "trainer.budget=6ba", "trainer.batch_size=10"]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    cost = json.loads((folder / "result.json").read_text())["cost"]
    # 64 pixels - 5 - (mean and log variance of 3), and 3 - 5 - 64 logits
    assert cost["parameters"] == (64 * 5 + 5) + (5 * 6 + 6) + (3 * 5 + 5) + (5 * 64 + 64)
    assert (cost["images"], cost["batches"], cost["processes"]) == (60, 6, 1)
    measures = ("train_seconds", "train_images_per_second", "sample_seconds_per_image", "evaluate_seconds")
    assert all(cost[name] > 0 for name in measures)
    assert cost["train_images_per_second"] == pytest.approx(60 / cost["train_seconds"], rel=0.05, abs=0.1)
    assert 50 < cost["peak_memory_mib"] < 20_000
    assert 50 < cost["evaluate_peak_memory_mib"] < 20_000
    # the peak of a part before a resume counts: here one that the checkpoint claims
    other = (*settings, "trainer.batch_size=10", "seed=1", "trainer.budget=6ba", "trainer.checkpoint=2ba")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr(run, "peak_memory", lambda device: 10**12)
        patched.setattr(run, "measure_run", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        assert cli.main(["train", *other]) == 130
    capsys.readouterr()
    assert cli.main(["train", *other]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    cost = json.loads((folder / "result.json").read_text())["cost"]
    assert cost["peak_memory_mib"] == round(10**12 / 2**20, 1)
    assert cost["evaluate_peak_memory_mib"] < 20_000


def test_the_same_protocol_gives_the_same_numbers_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=rbm", "model.hidden=8", "trainer.budget=5ba"]
    assert cli.main(["train", *SMALL, f"paths.outputs={tmp_path}", *words]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    before = json.loads((folder / "result.json").read_text())["metrics"]
    torch.manual_seed(5)
    assert cli.main(["evaluate", f"run={folder}", *FEW]) == 0
    assert json.loads((folder / "result.json").read_text())["metrics"] == before


def test_last_weights_that_are_the_best_are_measured_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    measure = Evaluator.measure

    def counted(self: Evaluator, *arguments: Any, **named: Any) -> Any:
        measured.append(self.common["checkpoint"])
        return measure(self, *arguments, **named)

    monkeypatch.setattr(Evaluator, "measure", counted)
    assert cli.main(["train", *SMALL, f"paths.outputs={tmp_path}", "model=made", "trainer.budget=5ba"]) == 0
    assert measured == ["best"]  # one validation, at the end
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    result = json.loads((folder / "result.json").read_text())
    best, final = (result["metrics"][name] for name in ("log_likelihood", "log_likelihood@final"))
    assert best["value"] == final["value"]
    assert [result["protocols"][m["protocol_id"]]["checkpoint"] for m in (best, final)] == ["best", "final"]
    assert cli.main(["evaluate", f"run={folder}", *FEW, "protocol.checkpoint=[final]"]) == 0
    assert measured == ["best", "final"]
    again = json.loads((folder / "result.json").read_text())
    assert again["metrics"] == result["metrics"]
    assert again["protocols"] == result["protocols"]
    train = ["train", *SMALL, f"paths.outputs={tmp_path}", "model=made", "trainer.budget=5ba", "seed=1"]
    assert cli.main(train) == 0
    other = Path(capsys.readouterr().out.splitlines()[-1])
    last, weights = (run / "checkpoints" / "last.ckpt" for run in (folder, other))
    apart_from_best = {**read_checkpoint(last), "state_dict": read_checkpoint(weights)["state_dict"]}
    AtomicCheckpointIO().save_checkpoint(apart_from_best, last)
    assert cli.main(["evaluate", f"run={folder}", *FEW]) == 0
    assert measured[3:] == ["best", "final"]
    apart = json.loads((folder / "result.json").read_text())["metrics"]
    assert apart["log_likelihood"] == best
    assert apart["log_likelihood@final"]["value"] != final["value"]


def test_sample_writes_a_picture_and_an_array_and_repeats(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", f"run={folder}", "n=7"]) == 0
    picture, array = capsys.readouterr().out.splitlines()
    x = np.load(array)["x"]
    assert x.shape == (7, 1, 8, 8)
    assert x.dtype == np.uint8
    assert set(np.unique(x)) <= {0, 1}
    with Image.open(picture) as image:
        assert image.width >= 400
    assert cli.main(["sample", f"run={folder}", "n=7"]) == 0
    capsys.readouterr()
    assert (np.load(array)["x"] == x).all()
    assert cli.main(["sample", f"run={folder}", "n=7", "seed=1"]) == 0
    other = capsys.readouterr().out.splitlines()[1]
    assert (np.load(other)["x"] != x).any()


def test_identity_ignores_what_cannot_change_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def folder(*overrides: str) -> str:
        assert (
            cli.main(
                ["train", *SMALL, "model=vae", "trainer.budget=2ba", f"paths.outputs={tmp_path / 'a'}", *overrides]
            )
            == 0
        )
        return Path(capsys.readouterr().out.splitlines()[-1]).name

    plain = folder()
    assert folder("trainer.checkpoint=7s", f"paths.outputs={tmp_path / 'b'}", "model.latent=50") == plain
    assert folder("seed=1") != plain
    assert folder("model.latent=7") != plain
    assert folder("trainer.batch_size=50") != plain
    assert folder("data.binarise=dynamic") != plain


@pytest.mark.parametrize("where", ["measure_run", "sampling_seconds_per_image"])
def test_a_signal_while_measuring_leaves_a_run_that_can_be_finished(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *SMALL, f"paths.outputs={tmp_path}", "model=vae", "trainer.budget=3ba"]
    with monkeypatch.context() as patch:
        patch.setattr(run, where, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as stopped:
            cli.main(command)
    assert stopped.value.code == 143
    assert "the same command resumes" in capsys.readouterr().err
    (folder,) = tmp_path.glob("vae-*")
    assert json.loads((folder / "status.json").read_text())["status"] == "interrupted"
    assert not (folder / "result.json").exists()
    assert cli.main(command) == 0
    assert "resumed at 300 images" in capsys.readouterr().out


def test_a_signal_after_the_last_update_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = Training.on_train_end

    def signalled_end(self: Training) -> None:
        end(self)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Training, "on_train_end", signalled_end)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", *SMALL, f"paths.outputs={tmp_path}", "model=vae", "trainer.budget=3ba"])
    assert stopped.value.code == 143


def test_numbers_that_are_not_finite_are_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.RandomState(0).randn(300, 2).astype(np.float32)
    wild = x[:50].copy()
    wild[0] = 1e25
    np.savez(tmp_path / "wild.npz", x_train=x, x_valid=x[:50], x_test=wild)
    command = ["train", *SMALL, f"paths.outputs={tmp_path / 'runs'}", "model=made", "trainer.budget=5ba", "data=npz",
               f"data.path={tmp_path / 'wild.npz'}"]  # fmt: skip
    assert cli.main(command) == 0
    assert "not finite" in capsys.readouterr().out
    assert cli.main(command) == 0
    np.savez(tmp_path / "wild.npz", x_train=x, x_valid=wild, x_test=x[:50])
    assert cli.main(command) == 1
    assert "validation objective was not a number" in capsys.readouterr().err


def test_another_protocol_on_a_finished_run_is_not_passed_over(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *SMALL, f"paths.outputs={tmp_path}", *TRAINED]
    assert cli.main([*command, "protocol.k=7"]) == 0
    assert "measured under protocol=quick (dgm evaluate adds others)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
@pytest.mark.parametrize("content", ["{}", "[]", "12", "{", ""])
def test_damaged_files_of_a_run_are_named(
    name: str, content: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).write_text(content)
    assert cli.main(["evaluate", f"run={folder}"]) == 2
    assert f"{name} is damaged" in capsys.readouterr().err


def test_labels_are_refused_by_models_that_know_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", f"run={folder}", "label=2"]) == 2
    assert "was not trained on labels" in capsys.readouterr().err
    assert cli.main(["sample", f"run={folder}", "temperature=0.7"]) == 2
    assert "does not draw at a temperature" in capsys.readouterr().err


def test_a_feature_net_that_cannot_be_had_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *QUICK, "model=made", "trainer.budget=1ba", f"paths.outputs={tmp_path / 'runs'}"]
    command.append(f"paths.data={tmp_path / 'data'}")
    assert cli.main([*command, "protocol.quality.features=[inception_tf]"]) == 2
    assert "needs the weights pt_inception" in capsys.readouterr().err
    x = np.random.RandomState(0).randn(300, 2).astype(np.float32)
    np.savez(tmp_path / "plain.npz", x_train=x, x_valid=x[:50], x_test=x[:50])
    plain = ["data=npz", f"data.path={tmp_path / 'plain.npz'}"]
    assert cli.main([*command, *plain, "protocol.quality.features=[classifier]"]) == 2
    assert "features=classifier needs data with labels" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_bar_shows_the_loss_whatever_the_budget(tmp_path: Path) -> None:
    """On a terminal (a pseudo one) the bar has loss and images/s."""
    import pty

    main, terminal = pty.openpty()
    process = start_dgm(
        "train", *SMALL, "trainer.progress=true", "model=vae", "trainer.budget=1000ba", f"paths.outputs={tmp_path}",
        terminal=os.ttyname(terminal), environment={"COLUMNS": "150", "TERM": "xterm"},
    )  # fmt: skip
    until(lambda: list(tmp_path.glob("*/status.json")), "the run begins", process)  # it has opened the terminal
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0
    text = shown.decode(errors="replace")
    assert "model loss" in text
    assert "images/s" in text


# ---------------------------------------------------------------------- files


def test_an_atomic_write_replaces_or_leaves_alone(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_atomically(path, b"one")
    (tmp_path / ".value.json.tmp").symlink_to("/dev/full")
    with pytest.raises(Exception, match="The disk is full"):
        write_atomically(path, b"two" * 10_000)
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]
    write_atomically(path, b"three")
    assert path.read_bytes() == b"three"


def test_checkpoints_are_what_torch_writes(tmp_path: Path) -> None:
    content = {"a": torch.arange(3), "b": [1, "two", None]}
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "x.ckpt")
    buffer = io.BytesIO()
    torch.save(content, buffer)
    loaded = read_checkpoint(tmp_path / "x.ckpt")
    assert torch.equal(loaded["a"], content["a"])
    assert loaded["b"] == content["b"]


def test_rows_are_truncated_to_the_recorded_length_and_torn_lines_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    writer = RowWriter(path)
    writer.write({"a": 1})
    length = writer.length()
    writer.write({"a": 2})
    writer.close()
    with path.open("ab") as file:
        file.write(b'{"a": 3')
    assert read_rows(path) == [{"a": 1}, {"a": 2}]
    again = RowWriter(path, length=length)
    again.write({"a": float("nan"), "b": 4})
    again.close()
    assert read_rows(path) == [{"a": 1}, {"a": None, "b": 4}]


# ---------------------------------------------------------------------- hardware


# The compiler's own worker processes are forked once more, which a fork of a warm server does not survive.
ALONE = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}


def final_loss(folder: Path) -> float:
    return [row["model/loss"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"][-1]


@pytest.mark.parametrize(
    ("setting", "tolerance"),
    [("hardware.precision=bf16", 0.05), ("hardware.compile=true", 1e-3), ("hardware.channels_last=true", 1e-3)],
)
def test_faster_arithmetic_does_nearly_the_same(setting: str, tolerance: float, tmp_path: Path) -> None:
    losses = []
    net = ["model.net=conv", "model.channels=4"] if "channels_last" in setting else []
    for name, extra in (("plain", []), ("other", [setting])):
        words = ["model=vae", "trainer.budget=5ba", *net, *extra]
        done = dgm("train", *SMALL, f"paths.outputs={tmp_path / name}", *words, environment=ALONE)
        assert done.returncode == 0, done.stderr
        losses.append(final_loss(Path(done.stdout.splitlines()[-1])))
    plain, other = losses
    assert other == pytest.approx(plain, rel=tolerance)
    assert "bf16" not in setting or plain != other  # the setting had an effect


def test_compiling_a_gradient_penalty_is_refused_in_one_sentence(tmp_path: Path) -> None:
    words = ["model=wgan_gp", "trainer.budget=5ba", "hardware.compile=true"]
    done = dgm("train", *SMALL, f"paths.outputs={tmp_path}", *words)
    assert done.returncode == 2, done.stderr
    assert "Leave it at false" in done.stderr
    assert "Traceback" not in done.stderr
