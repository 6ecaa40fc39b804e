"""Data files from anybody: what they announce and where they lead is looked at before anything is read."""

import gzip
import io
import os
import pickle
import socket
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dgmbench.data import load
from dgmbench.data.archives import FREE, check_header, gunzip, open_zip, read_hdf5, require_plausible
from dgmbench.data.cifar10 import TRAIN_BATCHES
from dgmbench.data.density_tables import _load_npy
from dgmbench.data.mnist import read_idx
from dgmbench.data.npz import open_npz
from dgmbench.data.pictures import Decoder
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]


def npy(shape: tuple[int, ...], content: bytes = bytes(80), descr: str = "<f8") -> bytes:
    """An .npy file that announces any shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def zipped(path: Path, name: str = "x_train.npy", content: bytes = b"", **info: Any) -> Path:
    member = zipfile.ZipInfo(name)
    for key, value in info.items():
        setattr(member, key, value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content or npy((10,)))
    return path


# ---------------------------------------------------------------------- zips and arrays


@pytest.mark.parametrize("shape", [(10**12,), (10**6, 10**6, 10**6), (11,), (9,), (2**62, 2**62)])
def test_arrays_that_announce_other_values_than_they_hold(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = zipped(tmp_path / "own.npz", content=npy(shape))
    with pytest.raises(UserError, match=r"The array 'x_train' in .*own\.npz announces values of shape .* holds 80"):
        open_npz(path)
    (tmp_path / "data.npy").write_bytes(npy(shape))
    with pytest.raises(UserError, match=r"data\.npy announces values of shape"):
        _load_npy(tmp_path / "data.npy", None)


@pytest.mark.parametrize(
    ("info", "sentence"),
    [
        ({"name": "../x_train.npy"}, "leads out of the archive"),
        ({"name": "/etc/x_train.npy"}, "leads out of the archive"),
        ({"name": "..\\x_train.npy"}, "leads out of the archive"),
        ({"external_attr": 0o120777 << 16}, "is a link, which is not followed"),
        ({"compress_type": zipfile.ZIP_BZIP2}, "compressed by method 12; save it stored or deflated"),
        ({"content": npy((1,), b"x" * 8, "|O")}, "of Python objects"),
        ({"content": b"\x93NUMPY\x09\x00" + bytes(100)}, "own.npz"),
        ({"content": b"\x93NUMPY\x01\x00\x20\x00" + b"{'descr': ((((((((" + bytes(100)}, "own.npz"),
    ],
)
def test_zip_archives_that_are_more_than_arrays(tmp_path: Path, info: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_npz(zipped(tmp_path / "own.npz", **info))


@pytest.mark.parametrize(("place", "value"), [("encrypted", 1), ("method", 99)])
def test_zip_archives_with_a_password_or_an_unknown_method(tmp_path: Path, place: str, value: int) -> None:
    path = zipped(tmp_path / "own.npz")
    content = bytearray(path.read_bytes())
    for header, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.find(header) + offset + (0 if place == "encrypted" else 2)] = value
    path.write_bytes(content)
    with pytest.raises(UserError, match="without a password" if place == "encrypted" else "by method 99"):
        open_npz(path)


def test_what_expands_too_much(tmp_path: Path) -> None:
    zeros = npy((FREE // 8 + 100,), bytes(FREE + 800))
    zipped(tmp_path / "own.npz", content=zeros, compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"'x_train.npy' in .*own\.npz announces .* bytes, but takes"):
        open_npz(tmp_path / "own.npz")
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(zeros))
    with pytest.raises(UserError, match=r"bomb\.gz announces"):
        gunzip(tmp_path / "bomb.gz")
    require_plausible(FREE, 1, "a small file")
    require_plausible(10 * FREE, FREE // 10, "a large file")


def test_a_large_array_of_small_numbers_is_read(tmp_path: Path) -> None:
    x = np.random.RandomState(0).randint(2, size=(50, 64)).astype(np.int64)
    np.savez_compressed(tmp_path / "own.npz", x_train=x)
    assert np.array_equal(open_npz(tmp_path / "own.npz")["x_train"], x)
    for array in (np.asfortranarray(x), np.zeros((0, 3)), np.float64(3), np.array(["a", "bc"])):
        file = io.BytesIO()
        np.save(file, array)
        file.seek(0)
        check_header(file, len(file.getvalue()), "it")


def test_idx_files_that_announce_too_much(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12 + bytes(50)))
    with pytest.raises(
        UserError, match=r"announces values of shape \(4294967295, 4294967295, 4294967295\) but holds 50"
    ):
        read_idx(path)


@pytest.mark.parametrize("kind", ["link", "outside", "sparse"])
def test_tar_archives_that_lead_elsewhere(kind: str, config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    batch = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}, protocol=2)
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name in (*TRAIN_BATCHES, "test_batch"):
            member = tarfile.TarInfo(f"../{name}" if kind == "outside" else name)
            member.size = len(batch)
            if kind == "link":
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
            elif kind == "sparse":
                member.type = tarfile.GNUTYPE_SPARSE
            archive.addfile(member, io.BytesIO(batch))
    with pytest.raises(UserError, match="leads out of the archive" if kind == "outside" else "cifar-10-python.tar.gz"):
        load(config("cifar10", verify=False), tmp_path)


# ---------------------------------------------------------------------- HDF5


@pytest.mark.parametrize("kind", ["external link", "soft link", "external values", "virtual", "group", "huge"])
def test_hdf5_files_that_lead_elsewhere(kind: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    secret, path = tmp_path / "secret.hdf5", tmp_path / "data.hdf5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.ones((3, 2))
    with h5py.File(path, "w") as file:
        file["good/x"] = np.ones((3, 2))
        if kind == "external link":
            file["x"] = h5py.ExternalLink(str(secret), "x")
        elif kind == "soft link":
            file["x"] = h5py.SoftLink("/good/x")
        elif kind == "external values":
            file.create_dataset("x", (3, 2), "f8", external=[(str(secret), 0, 48)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((3, 2), "f8")
            layout[:] = h5py.VirtualSource(str(secret), "x", (3, 2))
            file.create_virtual_dataset("x", layout)
        elif kind == "group":
            file.create_group("x")
        else:
            file.create_dataset("x", (10**9, 1000), "f8", chunks=(1000, 1000))
    assert read_hdf5(path, {"train": ["good/x", "good/x"]})["train"].shape == (6, 2)
    sentence = {"huge": "announces", "group": "is no table"}.get(kind, "is a link|in other files")
    with pytest.raises(UserError, match=f"x in .*data.hdf5 .*({sentence})"):
        read_hdf5(path, {"train": ["x"]})


# ---------------------------------------------------------------------- folders of pictures


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "dangling link", "loop"])
def test_what_is_no_file_in_a_folder_of_pictures_is_passed_over_by_name(
    kind: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    monkeypatch.chdir(folder)
    strange = folder / "strange.png"
    if kind == "pipe":
        os.mkfifo(strange)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("strange.png")
    else:
        strange.symlink_to({"device": "/dev/zero", "dangling link": "nowhere.png", "loop": "strange.png"}[kind])
    (folder / "linked.png").symlink_to("3.png")
    data = load(config("images", path=str(folder), size=8, valid=2, test=2), tmp_path)
    assert data.size("train") == 9
    assert "passed over as no files (pipes, devices, links to nothing): 1 name (strange.png)" in data.meta["notes"]


def test_pictures_that_are_too_large_or_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    size = (10_000).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    decoder = Decoder(size=8, channels=1)
    with pytest.raises((Warning, ValueError), match="100000000 pixels"):
        decoder.decode(png)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        monkeypatch.setattr(warnings, "simplefilter", lambda *_, **__: None)
        with pytest.raises(ValueError, match="announces 100000000 pixels, more than"):
            decoder.decode(png)
    # PIL hands these to a program
    with pytest.raises(OSError, match="cannot identify"):
        decoder.decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")


def test_a_zip_s_members_are_looked_at_all_at_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("good", b"1")
        archive.writestr("../bad", b"1")
    with pytest.raises(UserError, match="leads out"), open_zip(tmp_path / "z.zip"):
        raise AssertionError("not reached")
