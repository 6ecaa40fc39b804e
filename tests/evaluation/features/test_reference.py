"""Features of data: computed once, and never another net's, another set's, or what a broken file holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.features import reference
from dgmbench.evaluation.features.pixel import Pixel
from dgmbench.evaluation.features.reference import COMPARED, data_features

Sets = Callable[..., DataSet]


class Counting(Pixel):
    """Counts the examples that it sees."""

    seen = 0
    factor = 1.0

    def features(self, x: Tensor) -> Tensor:
        Counting.seen += len(x)
        return self.factor * super().features(x)


@pytest.fixture(autouse=True)
def _from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "seen", 0)


@pytest.fixture
def found(digits: Sets, tmp_path: Path) -> Callable[..., tuple[Tensor, bool]]:
    """Features of a part of the digits, and whether they were computed anew."""
    data = digits()

    def features(
        split: Any = "test", limit: int | None = None, seed: int = 0, size: int = 32, factor: float = 1.0
    ) -> tuple[Tensor, bool]:
        net = Counting(data.spec, size=size)
        net.settings, net.factor, before = {"size": size}, factor, Counting.seen
        values = data_features(net, Chunks(data, split, seed=seed, limit=limit), tmp_path / "features")
        return values, Counting.seen - before > COMPARED

    return features


def test_features_of_data_are_computed_once(found: Any, digits: Sets) -> None:
    whole, computed = found()
    assert computed
    torch.testing.assert_close(whole, torch.from_numpy(digits().splits["test"].x).flatten(1) / 16)
    assert not found(seed=1)[1]  # all examples: the seed changes nothing
    reference._memory.clear()
    again, computed = found()
    assert torch.equal(again, whole)  # from the file
    assert not computed
    others = [{"split": "valid"}, {"limit": 50}, {"limit": 50, "seed": 1}, {"size": 4}]
    for other in others:
        assert found(**other)[1], other
    for other in [{}, *others]:  # none took the place of another
        assert not found(**other)[1], other


def test_another_set_of_the_same_name_has_its_own(stripes: Sets, tmp_path: Path) -> None:
    for content, seed in (("a" * 64, 0), ("b" * 64, 1)):
        data = stripes(content_hash=content, seed=seed)
        net = Pixel(data.spec)
        expected = torch.from_numpy(data.splits["test"].x).flatten(1).float()
        assert torch.equal(data_features(net, Chunks(data, "test", seed=0), tmp_path), expected)
    assert len(list(tmp_path.iterdir())) == 2  # neither took the place of the other


def test_a_net_that_changed_unnoticed_is_found_out(found: Any) -> None:
    whole, _ = found()
    for forget in (True, False):  # what is in the file, and what is in memory
        if forget:
            reference._memory.clear()
        for factor in (2.0, 1.0):  # no hash sees this attribute
            changed, computed = found(factor=factor)
            assert computed
            assert torch.equal(changed, factor * whole)
    reference._memory.clear()
    assert not found()[1]  # the right ones are kept again


def npz(path: Path, **arrays: Any) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def changed(path: Path, **changes: Any) -> None:
    with np.load(path) as arrays:
        npz(path, **{**arrays, **changes})


def values(path: Path) -> np.ndarray:
    with np.load(path) as arrays:
        return arrays["features"]


def with_nan(path: Path) -> None:
    content = values(path)
    content[300, 5] = np.nan
    changed(path, features=content)


def swapped(path: Path) -> None:
    changed(path, features=np.concatenate([values(path)[:200], values(path)[200:][::-1]]))


def plain(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((360, 64), np.float32))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("features"),
    "zeroed bytes": lambda path: path.write_bytes(path.read_bytes()[:50_000] + bytes(400) + path.read_bytes()[50_400:]),
    "NaN": with_nan,
    "another order": swapped,
    "another width": lambda path: changed(path, features=np.zeros((360, 7), np.float32)),
    "too few": lambda path: changed(path, features=values(path)[:-1]),
    "other numbers": lambda path: changed(path, features=values(path).astype(np.float64)),
    "no checksum": lambda path: npz(path, features=values(path)),
    "a plain array": plain,
    "a scalar": lambda path: npz(path, features=np.float32(3), sha256=np.array("")),
    "objects": lambda path: npz(path, features=np.array([{}], dtype=object), sha256=np.array("")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_computed_again_and_replaced(damage: str, found: Any, tmp_path: Path) -> None:
    whole, _ = found()
    (file,) = (tmp_path / "features").iterdir()
    intact = file.read_bytes()
    DAMAGE[damage](file)
    assert file.read_bytes() != intact
    for computed in (True, False):
        reference._memory.clear()
        again, anew = found()
        assert torch.equal(again, whole)
        assert anew == computed
    assert [path.name for path in (tmp_path / "features").iterdir()] == [file.name]


def test_a_file_under_anothers_name_is_not_believed(tmp_path: Path) -> None:
    x = np.random.RandomState(0).randn(60, 3).astype(np.float32)
    valid, test = Split(x[:40], None), Split(np.concatenate([x[:20], x[40:]]), None)  # the first ones are the same
    data = DataSet("toy", DataSpec((3,), "real"), {"train": valid, "valid": valid, "test": test}, "1" * 64)
    net = Pixel(data.spec)
    files: dict[str, Path] = {}
    for split in ("valid", "test"):
        data_features(net, Chunks(data, split, seed=0), tmp_path)
        (files[split],) = set(tmp_path.iterdir()) - set(files.values())
    files["test"].write_bytes(files["valid"].read_bytes())
    reference._memory.clear()
    assert torch.equal(data_features(net, Chunks(data, "test", seed=0), tmp_path), torch.from_numpy(test.x))


@pytest.mark.parametrize("place", ["below a file", "a folder of its name"])
def test_where_nothing_can_be_kept_features_are_computed_all_the_same(
    place: str, found: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = tmp_path / "features"
    if place == "below a file":
        features.write_text("")
        whole, _ = found()
    else:
        whole, _ = found()
        (file,) = features.iterdir()
        file.unlink()
        (file / "below").mkdir(parents=True)
    for _ in range(2):
        reference._memory.clear()
        again, computed = found()
        assert computed
        assert torch.equal(again, whole)
    said = capsys.readouterr().err
    assert said.count("Nothing can be kept in ") == 1  # once, not at every set
    assert "paths.data=DIR" in said
    assert features.is_file() or len(list(features.iterdir())) == 1  # nothing half-written is left


def test_an_error_of_the_net_is_not_hidden_and_nothing_is_kept(tmp_path: Path) -> None:
    x = np.random.RandomState(0).randn(40, 3).astype(np.float32)
    x[33, 1] = np.inf
    split = Split(x, None)
    data = DataSet("toy", DataSpec((3,), "real"), {"train": split, "valid": split, "test": split}, "1" * 64)
    with pytest.raises(UserError, match="The test split of toy has no features: 1 of 40 examples have values"):
        data_features(Pixel(data.spec), Chunks(data, "test", seed=0), tmp_path / "features")
    assert not (tmp_path / "features").exists()
