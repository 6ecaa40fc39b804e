import contextlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmbench.data import DataSet, load, prepared, verified
from dgmbench.data.reader import Chunks, Decoded, Part
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]
X = np.random.RandomState(0).randint(256, size=(50, 1, 4, 4)).astype(np.uint8)


class Counting:
    """A small set that counts how often it is decoded and can be made to fail half-way."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.decoded, self.fail_at = 0, fail_at

    def rows(self) -> Iterator[np.ndarray]:
        for start in range(0, 50, 10):
            if start == self.fail_at:
                raise UserError("picture 20 is damaged")
            yield X[start : start + 10]

    def __call__(self) -> Decoded:
        self.decoded += 1
        whole = Part(Chunks(X.shape, X.dtype, self.rows), np.arange(50), "here", np.arange(50))
        rest = Part(X[:5], np.arange(5), "there", np.arange(5))
        return Decoded(DataSpec((1, 4, 4), "discrete", levels=256), {"train": whole, "valid": rest, "test": rest})


def open_set(root: Path, decode: Callable[[], Decoded], **key: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays, meta, wait = prepared.open_or_prepare(root, "set", key, lambda: None, decode)
    wait()
    return arrays, meta


def folder(root: Path) -> Path:
    (found,) = (root / "prepared").glob("set-*")
    return found


def test_a_set_is_decoded_once_into_read_only_maps(tmp_path: Path) -> None:
    decode = Counting()
    for _ in range(3):
        arrays, meta = open_set(tmp_path, decode)
    assert decode.decoded == 1
    assert isinstance(arrays["train_x"], np.memmap)
    assert np.array_equal(arrays["train_x"], X)
    assert np.array_equal(arrays["train_y"], np.arange(50))
    with pytest.raises(ValueError, match="read-only"):
        arrays["train_x"][0] = 0
    assert meta["split"]["train"]["count"] == 50
    assert meta == json.loads((folder(tmp_path) / "meta.json").read_text())


def test_disk_and_memory_have_the_same_content_hash(tmp_path: Path) -> None:
    _, on_disk = open_set(tmp_path, Counting())
    _, in_memory = prepared.in_memory(Counting()())
    assert on_disk["content_hash"] == in_memory["content_hash"]


@pytest.mark.parametrize(
    ("name", "array"),
    [("y", np.arange(6)), ("x", np.arange(6).reshape(2, 3)), ("x", np.arange(6).reshape(6, 1)), ("x", np.zeros(0))],
)
def test_the_content_hash_is_of_names_and_shapes_as_well_as_of_bytes(name: str, array: np.ndarray) -> None:
    def hashed(name: str, array: np.ndarray) -> str:
        content = prepared.ContentHash()
        content.begin(name, array.shape, array.dtype)
        content.rows(array)
        return content.hexdigest()

    assert hashed(name, array) != hashed("x", np.arange(6))
    assert hashed(name, array) != hashed(name, array.view(np.float64 if array.dtype == np.int64 else np.int64))


def test_another_key_is_another_set(tmp_path: Path) -> None:
    decode = Counting()
    open_set(tmp_path, decode, size=64)
    open_set(tmp_path, decode, size=32)
    assert decode.decoded == 2
    assert len(list((tmp_path / "prepared").glob("set-*"))) == 2


def test_a_failure_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="picture 20 is damaged"):
        open_set(tmp_path, Counting(fail_at=20))
    assert [path.name for path in (tmp_path / "prepared").iterdir() if path.is_dir()] == []
    arrays, _ = open_set(tmp_path, Counting())
    assert np.array_equal(arrays["train_x"], X)


def test_what_a_killed_process_left_is_never_used(tmp_path: Path) -> None:
    open_set(tmp_path, Counting())
    target = folder(tmp_path)
    partial = target.with_name(f".{target.name}.0badf00d.partial")
    target.rename(partial)
    (partial / "meta.json").unlink()
    for age, kept in ((0.5, True), (1.5, False)):  # in days: a fresh one may belong to a process that is at work
        then = time.time() - age * prepared.DAY
        os.utime(partial, (then, then))
        shutil.rmtree(target, ignore_errors=True)
        decode = Counting()
        open_set(tmp_path, decode)
        assert decode.decoded == 1
        assert partial.exists() == kept


def _truncate(target: Path) -> None:
    os.truncate(target / "train_x.npy", (target / "train_x.npy").stat().st_size - 7)


def _lengthen(target: Path) -> None:
    with (target / "train_x.npy").open("ab") as file:
        file.write(b"more")


def _two_bytes(target: Path) -> None:
    path = target / "train_x.npy"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    content[-10] ^= 1
    path.write_bytes(content)


def _other_levels(target: Path) -> None:
    text = (target / "meta.json").read_text()
    (target / "meta.json").write_text(text.replace('"levels": 256', '"levels": 255'))


def _other_dtype(target: Path) -> None:
    np.save(target / "train_x.npy", X.view(np.int8))


def _other_shape(target: Path) -> None:
    np.save(target / "train_x.npy", X.reshape(50, 1, 2, 8))


def _no_header(target: Path) -> None:
    with (target / "train_x.npy").open("r+b") as file:
        file.write(b"\0" * 60)


def _no_labels(target: Path) -> None:
    (target / "test_y.npy").unlink()


def _no_record(target: Path) -> None:
    (target / "meta.json").unlink()


def _half_a_record(target: Path) -> None:
    (target / "meta.json").write_text((target / "meta.json").read_text()[:100])


@pytest.mark.parametrize(
    "damage",
    [_truncate, _lengthen, _two_bytes, _other_levels, _other_dtype, _other_shape, _no_header, _no_labels, _no_record,
     _half_a_record],
)  # fmt: skip
def test_a_damaged_folder_is_prepared_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    open_set(tmp_path, Counting())
    damage(folder(tmp_path))
    decode = Counting()
    arrays, _ = open_set(tmp_path, decode)
    assert decode.decoded == 1
    assert np.array_equal(arrays["train_x"], X)
    assert np.array_equal(arrays["test_y"], np.arange(5))


def test_a_folder_of_another_set_is_prepared_again(tmp_path: Path) -> None:
    open_set(tmp_path, Counting(), size=64)
    mine = folder(tmp_path)
    open_set(tmp_path, Counting(), size=32)
    (other,) = set((tmp_path / "prepared").glob("set-*")) - {mine}
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    decode = Counting()
    open_set(tmp_path, decode, size=64)
    assert decode.decoded == 1


def test_records_of_before_had_no_hash_of_their_own(tmp_path: Path) -> None:
    open_set(tmp_path, Counting())
    file = folder(tmp_path) / "meta.json"
    meta = json.loads(file.read_text())
    del meta["record_hash"]
    file.write_text(json.dumps(meta))
    decode = Counting()
    assert open_set(tmp_path, decode)[1] == meta
    assert decode.decoded == 0


def test_a_large_set_is_compared_beside_and_nothing_is_kept_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    open_set(tmp_path, Counting())
    _two_bytes(folder(tmp_path))
    monkeypatch.setattr(verified, "AT_ONCE", 0)
    decode = Counting()
    arrays, _, wait = prepared.open_or_prepare(tmp_path, "set", {}, lambda: None, decode)
    assert not np.array_equal(arrays["train_x"], X)  # it is open while its hash is taken
    with pytest.raises(UserError, match=r"is not what was written.*give the same command again"):
        wait()
    for _ in range(2):  # prepared anew, then found to agree
        arrays, _ = open_set(tmp_path, decode)
        assert np.array_equal(arrays["train_x"], X)
    assert decode.decoded == 1
    hashed: list[int] = []
    monkeypatch.setattr(prepared, "hash_of_arrays", lambda arrays: hashed.append(1))
    open_set(tmp_path, decode)  # a state that is known to agree is not hashed again
    assert not hashed


def _prepare(root: Path, barrier: Any, results: Any) -> None:
    decode = Counting()
    barrier.wait()
    arrays, meta = open_set(root, decode)
    results.put((decode.decoded, meta["content_hash"], int(arrays["train_x"].sum())))


def test_processes_that_prepare_at_once_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_prepare, args=(tmp_path, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=900) for _ in processes]
    for process in processes:
        process.join()
    assert sum(decoded for decoded, _, _ in outcomes) == 1  # one decoded, three waited for it
    assert len({outcome[1:] for outcome in outcomes}) == 1


def test_without_locks_the_first_to_finish_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process finishes while this one decodes; its folder is taken over and ours discarded."""
    other = Counting()
    theirs: list[int] = []

    def slow() -> Decoded:
        if other.decoded == 0:
            monkeypatch.setattr(prepared, "locked", lambda path: contextlib.nullcontext())
            open_set(tmp_path, other)
            theirs.append(folder(tmp_path).stat().st_ino)
        return Counting()()

    arrays, _ = open_set(tmp_path, slow)
    assert [folder(tmp_path).stat().st_ino] == theirs
    assert np.array_equal(arrays["train_x"], X)


def test_an_unwritable_cache_is_named(config: Config, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x_train=X)
    (tmp_path / "root").write_text("a file where the data root should be")

    def attempt() -> DataSet:
        return load(config("npz", path=str(tmp_path / "data.npz")), tmp_path / "root")

    with pytest.raises(UserError, match=r"prepared cache .* cannot be written .* or choose another data root"):
        attempt()


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared.os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device\); free some space or choose another data root"):
        open_set(tmp_path, Counting())
    assert not list((tmp_path / "prepared").glob("*set-*/"))
