"""Everything that people get wrong, through the command line: one clear sentence, exit code 2, nothing written."""

import gzip
import json
import math
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dgmbench.command import main as cli
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.made import Made
from dgmbench.models.boltzmann.dbn import Dbn
from dgmbench.models.boltzmann.estimators import CD, FPCD, NCE, PCD, PT
from dgmbench.models.boltzmann.helmholtz import Helmholtz
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.gan.gan import Gan
from dgmbench.models.gan.vae_gan import VaeGan
from dgmbench.models.vae.vae import Vae

DIGITS = np.random.RandomState(0).randint(0, 2, (40, 1, 8, 8)).astype(np.uint8)
Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run ``dgm train`` with these words; assert exit code 2, one sentence, an untouched outputs folder."""

    def run(*words: str, verb: str = "train") -> str:
        outputs = tmp_path / "outputs"
        extra = [f"paths.outputs={outputs}"] if verb == "train" else []
        code = cli.main([verb, *extra, *words])
        out, err = capsys.readouterr()
        assert code == 2, (out, err)
        assert "Traceback" not in err
        assert err.startswith("dgm: ")
        assert len(err.strip().splitlines()) == 1
        assert not outputs.exists() or not list(outputs.iterdir())
        return err

    return run


def save(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return f"data.path={path}"


# ---------------------------------------------------------------------- names and keys


def test_unknown_model_names_the_nearest(refused: Refused) -> None:
    assert "There is no model 'vea'; did you mean vae" in refused("model=vea")


def test_no_model(refused: Refused) -> None:
    assert "add model=NAME" in refused()


def test_unknown_data_names_the_nearest(refused: Refused) -> None:
    assert "did you mean digits" in refused("model=vae", "data=digit")


def test_unknown_group(refused: Refused) -> None:
    refused("model=vae", "modle.latent=3")


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("model.latnet=3", "model setting 'latnet'; did you mean latent"),
        ("trainer.bugdet=3ep", "trainer setting 'bugdet'; did you mean budget"),
        ("optimizer.bettas=[0.5,0.9]", "optimizer setting 'bettas'; did you mean betas"),
        ("data.binarize=dynamic", "data setting 'binarize'; did you mean binarise"),
        ("hardware.thread=1", "hardware setting 'thread'; did you mean threads"),
        ("protocol.ks=3", "protocol setting 'ks'; did you mean k"),
        ("optimizer.schedule.warmpu=3ba", "optimizer.schedule setting 'warmpu'; did you mean warmup"),
    ],
)
def test_a_key_misspelt_inside_a_group(override: str, nearest: str, refused: Refused) -> None:
    assert nearest in refused("model=vae", override)


def test_unknown_verb(refused: Refused) -> None:
    assert "did you mean train" in refused(verb="trian")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("model=rbm", "data=digits"), "takes binary data, but data=digits is discrete 1x8x8, 17 levels; binarise it"),
        (("model=dcgan", "data=digits"), "sides of"),
        (("model=rbm", "data=toy2d"), "takes binary data, but data=toy2d is real"),
    ],
)
def test_an_incompatible_pair(words: tuple[str, ...], reason: str, refused: Refused) -> None:
    assert reason in refused(*words)


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize("budget", ["20", "-3ep", "0ba", "ep", "3epochs", "1.5ba", "nan ep", "60s"])
def test_a_malformed_budget(budget: str, refused: Refused) -> None:
    message = refused("model=vae", f"trainer.budget={budget}")
    assert f"trainer.budget={budget}" in message
    assert "20ep" in message


@pytest.mark.parametrize("seed", ["1.5", "abc", "-1", "null", "true"])
def test_a_seed_that_is_not_a_whole_number(seed: str, refused: Refused) -> None:
    assert f"seed={seed}" in refused("model=vae", f"seed={seed}")


@pytest.mark.parametrize(
    "override",
    ["trainer.batch_size=0", "trainer.accumulate=-1", "trainer.clip=0", "trainer.ema=1", "trainer.batch_size=x"],
)
def test_a_setting_out_of_range(override: str, refused: Refused) -> None:
    assert override in refused("model=vae", override)


def test_a_wrong_model_argument(refused: Refused) -> None:
    assert "model.net" in refused("model=vae", "model.net=mpl")


def test_an_unknown_player(refused: Refused) -> None:
    message = refused("model=gan", "optimizer.players.discriminater.lr=1e-3")
    assert "optimizer.players setting for this model, named 'discriminater'; did you mean discriminator?" in message


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("optimizer.lr=-1", "optimizer cannot be built from these settings, says torch.optim.Adam: Invalid learning"),
        ("optimizer.betas=[2,3]", "Invalid beta parameter"),
        ("optimizer.weight_decay=-1", "Invalid weight_decay"),
        ("optimizer._target_=torch.optim.Muon", "optimizer cannot be built"),
        ("optimizer._target_=torch.optim.LBFGS", "evaluates the loss several times a step"),
        ("optimizer._target_=torch.optim.SparseAdam", "sparse gradients"),
        ("optimizer._target_=torch.nn.Linear", "is no optimiser"),
        ("optimizer.schedule=cosine", "write optimizer.schedule.name=cosine"),
        ("model.latent=99999999999", "model cannot be built"),
        ("data.split_seed=-1", "data.split_seed=-1"),
        ("data.valid=0.0006", "valid split has a single example"),
        ("paths.outputs=", "paths.outputs is empty"),
    ],
)
def test_a_value_that_a_class_refuses(override: str, reason: str, refused: Refused) -> None:
    assert reason in refused("model=vae", override)


def test_a_momentum_that_the_optimiser_refuses(refused: Refused) -> None:
    assert "Invalid momentum" in refused("model=rbm", "optimizer.momentum=-2")


def test_one_example_to_validate_on(refused: Refused) -> None:
    message = refused("model=gan", "data=toy2d", "data.valid=1")
    assert "The valid split has a single example" in message
    assert "data.valid=" in message


IMAGE, BITS = DataSpec((1, 32, 32), "discrete", 4), DataSpec((6,), "binary")
OUT_OF_RANGE: list[tuple[Callable[..., object], DataSpec | None, dict[str, list[object]]]] = [
    (
        Rbm,
        BITS,
        {"hidden": [0], "sample_steps": [0], "weight_std": [-1.0, math.nan], "centring_rate": [-0.1, 1.5, math.inf]},
    ),
    (
        Dbn,
        BITS,
        {"hidden_sizes": [(4, 0)], "sample_steps": [0], "gibbs_steps": [-1], "fine_tuning": [-1.0, math.nan]},
    ),
    (Helmholtz, BITS, {"hidden_sizes": [(4, 0), (-1,)], "k": [0]}),
    (CD, None, {"k": [0]}),
    (PCD, None, {"k": [0], "chains": [0]}),
    (FPCD, None, {"k": [0], "chains": [0], "fast_rate": [-0.1, math.inf], "decay": [-0.1, 1.1, math.nan]}),
    (PT, None, {"k": [0], "chains": [0], "temperatures": [1]}),
    (NCE, None, {"nu": [0]}),
    (
        Vae,
        IMAGE,
        {
            "latent": [0],
            "samples": [0],
            "components": [0],
            "channels": [0],
            "hidden_sizes": [(8, 0)],
            "kl_warmup": [-1],
            "free_bits": [-0.1, math.nan],
            "sigma": [0.0, -1.0, math.inf],
        },
    ),
    (Made, BITS, {"hidden_sizes": [(0,)], "masks": [0], "components": [0]}),
    (
        Gan,
        IMAGE,
        {
            "latent": [0],
            "hidden_sizes": [(8, 0)],
            "channels": [0],
            "n_critic": [0],
            "penalty_weight": [-1.0],
            "instance_noise": [-1.0, math.nan],
            "label_smoothing": [-0.1, 1.0],
            "clip": [0.0, -1.0],
            "truncation": [0.0, math.nan],
        },
    ),
    (VaeGan, IMAGE, {"latent": [0], "hidden_sizes": [(0,)], "channels": [0], "gamma": [-1.0, math.inf]}),
]


@pytest.mark.parametrize(
    ("make", "spec", "argument", "value"),
    [
        (make, spec, name, value)
        for make, spec, table in OUT_OF_RANGE
        for name, values in table.items()
        for value in values
    ],
)
def test_an_argument_out_of_range(
    make: Callable[..., object], spec: DataSpec | None, argument: str, value: object
) -> None:
    where = "model.estimator" if spec is None else "model"
    shown = str(list(value) if isinstance(value, tuple) else value).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(UserError, match=rf"{where}\.{argument}={shown} must be (at least|more than) \d"):
        make(*([] if spec is None else [spec]), **{argument: value})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, so asking for one is right")
def test_gpu_without_one(refused: Refused) -> None:
    assert "sees no GPU" in refused("model=vae", "hardware=gpu")


# ---------------------------------------------------------------------- data


def test_missing_data_says_where_to_put_them(refused: Refused, tmp_path: Path) -> None:
    message = refused("model=vae", "data=mnist", f"paths.data={tmp_path / 'data'}")
    assert "train-images-idx3-ubyte.gz" in message
    assert "data.download=true" in message


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x_train": DIGITS.astype(np.float32) * np.nan}, "NaN"),
        ({"x_train": np.array(["a", "b"])}, "x_train"),
        ({"x_train": np.array([{}, {}], dtype=object)}, "object"),
        ({"x_train": DIGITS, "x_test": DIGITS[:, :, :4]}, "x_test"),
        ({"x": DIGITS}, "x_train"),
        ({"x_train": DIGITS, "y_train": np.zeros(3, np.int64)}, "y_train"),
        ({"x_train": DIGITS[:0]}, ""),
        ({"x_train": DIGITS, "y_train": np.arange(40) * 10**9}, "40 different labels for 40 examples"),
    ],
)
def test_a_bad_npz(arrays: dict[str, np.ndarray], reason: str, refused: Refused, tmp_path: Path) -> None:
    assert reason in refused("model=vae", "data=npz", save(tmp_path / "mine.npz", **arrays))


def test_an_npz_that_is_none(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "mine.npz").write_bytes(b"PK\x03\x04 cut")
    assert "mine.npz" in refused("model=vae", "data=npz", f"data.path={tmp_path / 'mine.npz'}")
    assert "nowhere.npz" in refused("model=vae", "data=npz", f"data.path={tmp_path / 'nowhere.npz'}")


def test_the_wrong_shape_for_a_model(refused: Refused, tmp_path: Path) -> None:
    grey = np.random.RandomState(0).randint(0, 256, (40, 1, 20, 20)).astype(np.uint8)
    assert "sides of" in refused("model=dcgan", "data=npz", save(tmp_path / "x.npz", x_train=grey))


def test_an_empty_image_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    assert "pictures" in refused("model=vae", "data=images", f"data.path={tmp_path / 'pictures'}")


def test_a_file_that_is_no_image(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(40):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(b"not a picture")
    assert ".png" in refused("model=vae", "data=images", f"data.path={tmp_path / 'pictures'}")


def test_altered_and_cut_official_files(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(b"\0" * 100)[:-7])
    assert "-ubyte.gz" in refused("model=vae", "data=mnist", f"paths.data={tmp_path / 'data'}")


def test_a_truncated_archive(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz"):
        pass
    assert "cifar-10-python.tar.gz" in refused("model=vae", "data=cifar10", f"paths.data={tmp_path / 'data'}")


def test_an_altered_zip(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "celeba"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        archive.writestr("img_align_celeba/000001.jpg", b"cut")
    assert "celeba" in refused("model=vae", "data=celeba", f"paths.data={tmp_path / 'data'}")


# ---------------------------------------------------------------------- folders and runs


def test_an_unwritable_output_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    code = cli.main(["train", "model=vae", "trainer.budget=1ba", f"paths.outputs={tmp_path / 'file' / 'outputs'}"])
    message = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in message
    assert "paths.outputs" in message
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("verb", ["evaluate", "sample"])
def test_a_run_that_does_not_exist(verb: str, refused: Refused, tmp_path: Path) -> None:
    assert "nowhere" in refused(f"run={tmp_path / 'nowhere'}", verb=verb)
    assert "run" in refused(verb=verb)


def test_evaluating_an_unfinished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "model=vae", "trainer.budget=2ba", "protocol=quick", "trainer.progress=false",
                     f"paths.outputs={tmp_path}"]) == 0  # fmt: skip
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    (folder / "result.json").unlink()
    assert cli.main(["evaluate", f"run={folder}"]) == 2
    assert "is not finished" in capsys.readouterr().err


def test_samples_of_a_class_that_the_data_do_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "model=vae", "trainer.budget=2ba", "protocol=quick", "trainer.progress=false",
                     f"paths.outputs={tmp_path}"]) == 0  # fmt: skip
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    for word, reason in (("label=17", "label=17"), ("n=0", "n=0"), ("checkpoint=worst", "checkpoint")):
        assert cli.main(["sample", f"run={folder}", word]) == 2
        assert reason in capsys.readouterr().err


def test_a_real_process_agrees(tmp_path: Path) -> None:
    """Exit code and one line on stderr, from the shell's point of view."""
    done = subprocess.run(
        [sys.executable, "-m", "dgmbench", "train", "model=vea", f"paths.outputs={tmp_path / 'o'}"],
        capture_output=True, text=True, check=False, env={**os.environ, "DGM_DEBUG": "0"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_a_result_that_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "train",
        "model=vae",
        "trainer.budget=2ba",
        "protocol=quick",
        "trainer.progress=false",
        f"paths.outputs={tmp_path}",
    ]
    assert cli.main(command) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result)[:100])
    assert cli.main(command) == 2
    assert "result.json is damaged" in capsys.readouterr().err
