"""Samples leave a run for other programs (``dgm export``), and those of others are measured (``dgm score``)."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist

import dgmbench
from dgmbench.command import main as cli
from dgmbench.config import complete_data, compose, resolve
from dgmbench.data import load
from dgmbench.data.spec import DataSpec
from dgmbench.data.values import as_bytes, from_bytes
from dgmbench.errors import UserError
from dgmbench.runs.score import read_samples

FEW = ("hardware=cpu", "protocol.quality.features=[random_conv]")
LEVELS = DataSpec((1, 8, 8), "discrete", levels=17)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("run")
    words = ("model=vae", "data=digits", "trainer.budget=2ba", "trainer.samples=9ba", "trainer.progress=false")
    measured = (
        "protocol=quick",
        "protocol.quality.samples=2",
        "protocol.quality.features=[]",
        "protocol.max_examples=2",
    )
    few = ("protocol.semi_supervised.labels=[]", "trainer.validate_examples=9", "hardware=cpu")
    assert cli.main(["train", *words, *measured, *few, f"paths.outputs={outputs}"]) == 0
    (found,) = outputs.glob("vae-*")
    return found


def test_exports_hold_what_the_run_draws_and_can_be_read_back(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = dgmbench.load_run(run, device="cpu").sample(503, seed=2)
    assert cli.main(["export", f"run={run}", "n=503", "seed=2", "hardware=cpu"]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert folder == run / "exports" / "best-n503-s2"
    assert sorted(path.name for path in folder.iterdir())[::502] == ["000000.png", "000502.png"]
    assert np.asarray(Image.open(folder / "000007.png")).max() <= 255
    assert torch.equal(read_samples(folder, LEVELS), drawn)
    file = tmp_path / "x.npz"
    assert cli.main(["export", f"run={run}", "n=503", "seed=2", "hardware=cpu", "form=npz", f"to={file}"]) == 0
    assert np.array_equal(np.load(file)["x"], drawn.numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"], "nothing half-written stays"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["n=0"], "n=0 must be more than zero"),
        (["form=png"], "form=png must be one of images, npz or null"),
        (["label=11"], r"label=11 is not a class of digits \(classes: 0 to 9\)"),
        (["label=3"], "was not trained on labels"),
        (["to=HERE"], "exists already"),
    ],
)
def test_exports_that_make_no_sense(
    run: Path, tmp_path: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("HERE", str(tmp_path)) for word in words]
    assert cli.main(["export", f"run={run}", "n=2", "hardware=cpu", f"to={tmp_path / 'new'}", *words]) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def save_pictures(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir()
    for i, x in enumerate(pixels):
        Image.fromarray(x).save(folder / f"{i:03}.png")
    return folder


def score(*words: str, to: Path) -> dict[str, Any]:
    assert cli.main(["score", *FEW, f"to={to}", f"paths.data={to.parent / 'root'}", *words]) == 0
    found: dict[str, Any] = json.loads(to.read_text())
    return found


def energy(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (x.reshape(len(x), -1) / 255 for x in (a, b))
    n, m = len(a), len(b)
    return float(2 * cdist(a, b).mean() - cdist(a, a).sum() / n / (n - 1) - cdist(b, b).sum() / m / (m - 1))


def test_two_folders_against_each_other(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    a = random.randint(0, 256, (40, 12, 10, 3)).astype(np.uint8)
    b = random.randint(0, 200, (40, 12, 10, 3)).astype(np.uint8)
    one, two = save_pictures(tmp_path / "a", a), save_pictures(tmp_path / "b", b)
    np.savez(tmp_path / "a.npz", arr_0=a)  # channels last, as other programs have them
    np.savez(tmp_path / "b.npz", x=b.transpose(0, 3, 1, 2))
    found = score(f"samples={one}", f"against={two}", to=tmp_path / "ab.json")
    assert found["metrics"]["energy_distance"]["value"] == pytest.approx(energy(a, b), rel=1e-6)
    assert found["metrics"]["fd_random_conv"]["value"] > 0
    metric = found["metrics"]["fd_random_conv"]
    assert found["protocols"][metric["protocol_id"]]["samples"] == 40
    (one / "readme.txt").touch()
    again = score(f"samples={one}", f"against={two}", to=tmp_path / "noted.json")
    assert again["notes"] == [f"{one}: passed over as no pictures by their ending: 1 file (readme.txt)"]
    arrays = score(f"samples={tmp_path / 'a.npz'}", f"against={tmp_path / 'b.npz'}", to=tmp_path / "arrays.json")
    assert arrays["metrics"] == found["metrics"]
    same = score(f"samples={one}", f"against={one}", to=tmp_path / "aa.json")
    assert same["metrics"]["fd_random_conv"]["value"] == pytest.approx(0, abs=1e-6 * metric["value"])


def digits() -> np.ndarray:
    """The test split."""
    node = resolve(compose("score", ["samples=x", "data=digits"]))["data"]
    return load(complete_data(node), Path("unused")).splits["test"].x


def test_samples_are_measured_like_those_of_a_run(tmp_path: Path) -> None:
    """Test data as samples of themselves: no distance to the test split; a protocol but for who drew them."""
    data = digits()
    np.savez(tmp_path / "test.npz", x=data)
    found = score(f"samples={tmp_path / 'test.npz'}", "data=digits", to=tmp_path / "score.json")
    assert found["metrics"]["fd_random_conv"]["value"] == pytest.approx(0, abs=1e-4)
    assert found["metrics"]["fd_random_conv"]["n"] == len(data)
    about = found["protocols"][found["metrics"]["fd_random_conv"]["protocol_id"]]
    assert (about["samples_of"], about["split"], about["reference"]) == (
        "others",
        "test",
        {"split": "test", "n": len(data)},
    )
    assert "checkpoint" not in about
    few = score(
        f"samples={tmp_path / 'test.npz'}", "data=digits", "protocol.quality.samples=50", to=tmp_path / "few.json"
    )
    assert few["metrics"]["fd_random_conv"]["n"] == 50


def test_levels_survive_the_way_through_bytes() -> None:
    for levels in (2, 17, 200, 256):
        spec = DataSpec((levels,), "binary" if levels == 2 else "discrete", levels=levels)
        x = torch.arange(levels, dtype=torch.uint8)[None]
        assert torch.equal(from_bytes(as_bytes(x, spec), spec), x)
        assert as_bytes(x, spec)[0, -1] == 255
    with pytest.raises(UserError, match="hold the value 100 of 0 to 255, which is none of the 17 levels"):
        from_bytes(torch.tensor([[0, 100]], dtype=torch.uint8), LEVELS)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["protocol.seed=1"], "add data=NAME, or against=PATH"),
        (["data=cifar10"], "needs cifar-10-python"),
        (["data=digits", "samples=A"], "pictures in .*a are 12x10 .height x width., the data 8x8"),
        (["data=digits", "samples=COLOUR"], "have colours, but the data are grey"),
        (["data=digits", "samples=MIXED"], "has 8x8 pixels and 001.png 8x9"),
        (["data=toy2d", "samples=A"], "is a folder of pictures, but the data are real 2"),
        (["data=digits", "samples=TWO"], "has the arrays u, v; name that of the samples x"),
        (["data=digits", "samples=NOTHING"], "There is no .*nothing"),
        (["data=digits", "samples=ONE"], "There are 1 samples; distances to data need at least 2"),
    ],
)
def test_samples_that_are_none(
    tmp_path: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pictures(tmp_path / "a", np.zeros((2, 12, 10), np.uint8))
    save_pictures(tmp_path / "colour", np.full((2, 8, 8, 3), (0, 255, 0), np.uint8))
    save_pictures(tmp_path / "mixed", np.zeros((2, 8, 8), np.uint8))
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "mixed" / "001.png")
    np.savez(tmp_path / "two.npz", u=np.zeros(3), v=np.zeros(3))
    np.savez(tmp_path / "one.npz", x=np.zeros((1, 1, 8, 8), np.uint8))
    names = {"A": "a", "COLOUR": "colour", "MIXED": "mixed", "TWO": "two.npz", "NOTHING": "nothing", "ONE": "one.npz"}
    words = [f"samples={tmp_path / names[w[8:]]}" if w.startswith("samples=") else w for w in words]
    words = words if len(words) > 1 else [*words, f"samples={tmp_path / 'a'}"]
    assert cli.main(["score", *FEW, f"paths.data={tmp_path / 'root'}", *words]) == 2
    assert re.search(sentence, capsys.readouterr().err)
