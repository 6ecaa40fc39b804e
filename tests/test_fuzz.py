"""Damaged files of every kind, thousands of them: a sentence or a result, no other ending, no changed number unseen.

The mutator is seeded, so what it finds is found again. A case may take ten seconds of the processor at most.
"""

import contextlib
import gzip
import importlib
import io
import json
import pickle
import pkgutil
import shutil
import signal
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import dgmbench.data
from dgmbench.bench.report.curves import read_curves
from dgmbench.bench.report.index import INDEX
from dgmbench.bench.report.ledger import read_ledger
from dgmbench.command import main as cli
from dgmbench.data.archives import read_hdf5
from dgmbench.data.audio import wav_bytes
from dgmbench.data.binarized_mnist import BinarizedMnist
from dgmbench.data.binary_tables import BinaryTable, read_bits
from dgmbench.data.celeba import ARCHIVE, ATTRIBUTES, PARTITION, Celeba
from dgmbench.data.cifar10 import TRAIN_BATCHES, Cifar10
from dgmbench.data.coco_captions import CocoCaptions
from dgmbench.data.csv import Csv
from dgmbench.data.dataset import _checked, _read
from dgmbench.data.density_tables import Bsds300, DensityTable, Gas, Hepmass, Miniboone, Power, RedWine
from dgmbench.data.files import PublishedReader
from dgmbench.data.fsdd import Fsdd
from dgmbench.data.fsdd_words import FsddWords
from dgmbench.data.hdf5 import Hdf5
from dgmbench.data.images import Images
from dgmbench.data.mnist import FashionMnist, Mnist
from dgmbench.data.motion_capture import MotionCapture
from dgmbench.data.newsgroups20 import FILE as COUNTS
from dgmbench.data.newsgroups20 import Newsgroups20
from dgmbench.data.npz import Npz
from dgmbench.data.polyphonic_music import PARTS, PolyphonicMusic
from dgmbench.data.ptb import Ptb
from dgmbench.data.reader import SPLITS, Chunks, Reader
from dgmbench.data.tinyshakespeare import TinyShakespeare
from dgmbench.data.torch_dataset import TorchDataset
from dgmbench.errors import UserError
from dgmbench.runs.folder import RunFolder
from dgmbench.runs.record import file_hash
from dgmbench.training.files import AtomicCheckpointIO, read_checkpoint, read_rows, seal

from .fuzz import mutants

SECONDS = 10
RNG = np.random.RandomState(0)
pytestmark = pytest.mark.filterwarnings("ignore")  # of numpy and PIL about the damage


@pytest.fixture(autouse=True)
def _no_case_hangs() -> Iterator[None]:
    """A timer of the processor's time, which a busy machine does not run out."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"a damaged file has taken {SECONDS} seconds of the processor")

    before = signal.signal(signal.SIGVTALRM, stop)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def a_sentence_or_a_result() -> Iterator[None]:
    """Errors that a person sees pass; all others fail the test."""
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    with contextlib.suppress(UserError):
        yield


# ---------------------------------------------------------------------- readers


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _npz(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def _idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def _png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RNG.randint(256, size=(9, 9, 3)).astype(np.uint8) + np.uint8(value)).save(file, "PNG")
    return file.getvalue()


def _tar(path: Path, batches: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in batches.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _rows(*columns: int) -> bytes:
    return "\n".join(",".join(f"{value:.4f}" for value in row) for row in RNG.normal(size=columns)).encode()


def _mat(cells: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    for key, values in cells.items():
        cells[key] = np.empty((1, 2), object)
        cells[key][0, :] = [values, values]
    savemat(file, cells)
    return file.getvalue()


X, Y = RNG.randint(256, size=(30, 2, 2)).astype(np.uint8), np.arange(30) % 3
BITS = RNG.randint(2, size=(12, 6)).astype(np.uint8)
BATCH = pickle.dumps({b"data": RNG.randint(256, size=(2, 3072)).astype(np.uint8), b"labels": [1, 9]}, protocol=2)
SOUND = wav_bytes(RNG.uniform(-1, 1, size=(1, 40)), 8000)
SPEECH = wav_bytes(0.5 * np.sin(np.arange(900.0))[None], 8000)  # of several frames
TEXT = b"\n".join(b"the cat sees a dog . a dog sees the cat" for _ in range(30))
NAMES = [f"{i:06d}.jpg" for i in range(9)]
LISTED = "\n".join(f"{name} {i % 3}" for i, name in enumerate(NAMES)).encode()
SAID = f"9\nSmiling Young\n{chr(10).join(f'{name} 1 -1' for name in NAMES)}".encode()
HIGGS = b"label," + b"f," * 26 + b"f\n" + b"\n".join(b"1.0," + line for line in _rows(30, 27).splitlines())

ROWS = _rows(40, 3).splitlines()
HOUSEHOLD = b"Date;Time;Global_active_power;b;c;d;e;f;g\n" + b"\n".join(
    b"16/12/2006;17:%02d:00;" % (i % 60) + line.replace(b",", b";") for i, line in enumerate(_rows(120, 7).splitlines())
)
ROLL = (RNG.rand(6, 88) < 0.1).astype(np.uint8)

Write = Callable[[Path, bytes], object]


def _celeba(folder: Path, listed: bytes, said: bytes, picture: bytes) -> None:
    with zipfile.ZipFile(folder / ARCHIVE, "w") as archive:
        for name in NAMES:
            archive.writestr(name, picture)
    (folder / PARTITION).write_bytes(listed)
    (folder / ATTRIBUTES).write_bytes(said)


def _pictures(folder: Path, damaged: bytes) -> None:
    for number in range(5):
        (folder / f"{number}.png").write_bytes(_png(number))
    (folder / "5.png").write_bytes(damaged)


def _recordings(folder: Path, damaged: bytes, whole: bytes = SOUND) -> None:
    (folder / "recordings").mkdir(exist_ok=True, parents=True)
    for number in (0, 1, 5, 6, 10, 11):
        (folder / "recordings" / f"7_theo_{number}.wav").write_bytes(whole if number else damaged)


READERS: dict[str, tuple[Callable[[Path], Reader], bytes, Write, int]] = {
    "npz": (lambda f: Npz(path=str(f / "x.npz")), b"", lambda f, x: (f / "x.npz").write_bytes(x), 250),
    "npz values": (
        lambda f: Npz(path=str(f / "x.npz")), _npy(X), lambda f, x: _npz(f / "x.npz", {"x_train": x}), 150
    ),
    "npz labels": (
        lambda f: Npz(path=str(f / "x.npz")), _npy(Y),
        lambda f, x: _npz(f / "x.npz", {"x_train": _npy(X), "y_train": x}), 150,
    ),
    "idx": (
        lambda f: Mnist(verify=False, valid=2), _idx(RNG.randint(256, size=(6, 28, 28)).astype(np.uint8)),
        lambda f, x: [
            (f / file.name).write_bytes(gzip.compress(_idx(np.zeros(6, np.uint8)) if "labels" in file.name else x, 1))
            for file in Mnist.files
        ], 80,
    ),
    "gzip": (
        lambda f: Mnist(verify=False, valid=2), gzip.compress(_idx(np.zeros((6, 28, 28), np.uint8)), 1),
        lambda f, x: [
            (f / file.name).write_bytes(gzip.compress(_idx(np.zeros(6, np.uint8))) if "labels" in file.name else x)
            for file in Mnist.files
        ], 60,
    ),
    "amat": (
        lambda f: BinarizedMnist(verify=False), b"\n".join(b"0 1 " * 392 for _ in range(3)),
        lambda f, x: [(f / file.name).write_bytes(x) for file in BinarizedMnist.files], 60,
    ),
    "tar": (
        lambda f: Cifar10(verify=False, valid=2), b"",
        lambda f, x: (f / "cifar-10-python.tar.gz").write_bytes(x), 60,
    ),
    "pickle": (
        lambda f: Cifar10(verify=False, valid=2), BATCH,
        lambda f, x: _tar(f / "cifar-10-python.tar.gz", dict.fromkeys((*TRAIN_BATCHES, "test_batch"), x)), 60,
    ),
    "list of pictures": (
        lambda f: Celeba(verify=False, size=4, attribute="Young"), LISTED,
        lambda f, x: _celeba(f, x, SAID, b""), 60,
    ),
    "list of attributes": (
        lambda f: Celeba(verify=False, size=4, attribute="Young"), SAID,
        lambda f, x: _celeba(f, LISTED, x, b""), 60,
    ),
    "picture": (lambda f: Images(path=str(f), size=4, valid=2, test=2), _png(0), _pictures, 60),
    "sound": (lambda f: Fsdd(length=8, verify=False), SOUND, _recordings, 100),
    "speech": (
        lambda f: FsddWords(verify=False), SPEECH, lambda f, x: _recordings(f.with_name("fsdd"), x, SPEECH), 40
    ),
    "words": (
        lambda f: Ptb(length=5, verify=False), TEXT,
        lambda f, x: [(f / file.name).write_bytes(x) for file in Ptb.files], 40,
    ),
    "captions": (
        lambda f: CocoCaptions(length=5, valid=3, verify=False), TEXT,
        lambda f, x: [(f / file.name).write_bytes(x) for file in CocoCaptions.files], 40,
    ),
    "letters": (
        lambda f: TinyShakespeare(length=4, verify=False), TEXT, lambda f, x: (f / "input.txt").write_bytes(x), 40
    ),
    "npy": (
        lambda f: Power(), _npy(RNG.normal(size=(120, 8))), lambda f, x: (f / "data.npy").write_bytes(x), 100
    ),
    "table": (
        lambda f: Miniboone(), b" 60 60\n" + _rows(60, 50).replace(b",", b" "),
        lambda f, x: (f / "MiniBooNE_PID.txt").write_bytes(x), 40,
    ),
    "compressed table": (
        lambda f: Hepmass(), HIGGS,
        lambda f, x: [(f / f"1000_{name}.csv.gz").write_bytes(gzip.compress(x, 1)) for name in ("train", "test")], 40,
    ),
    "table of sensors": (
        lambda f: Gas(), _npy(RNG.normal(size=(120, 19))), lambda f, x: (f / "ethylene_CO.npy").write_bytes(x), 40
    ),
    "household": (
        lambda f: Power(), HOUSEHOLD, lambda f, x: (f / "household_power_consumption.txt").write_bytes(x), 60
    ),
    "bits": (
        lambda f: BinaryTable(table="dna", collection="uci_binary", verify=False),
        b"\n".join(b",".join(b"%d" % bit for bit in row) for row in BITS),
        lambda f, x: [(f / f"dna.{split}.data").write_bytes(x) for split in SPLITS], 40,
    ),
    "csv": (
        lambda f: Csv(path=str(f / "x.csv"), label="y"), b"y,a,b,c\n" + b"\n".join(b"1," + row for row in ROWS),
        lambda f, x: (f / "x.csv").write_bytes(x), 100,
    ),
    "counts": (
        lambda f: Newsgroups20(words=3, verify=False), b"", lambda f, x: (f / COUNTS).write_bytes(x), 80
    ),
    "motion": (
        lambda f: MotionCapture(length=2, skip=1, verify=False), _mat({"Motion": RNG.normal(size=(60, 3))}),
        lambda f, x: (f / "motion.mat").write_bytes(x), 60,
    ),
    "rolls": (
        lambda f: PolyphonicMusic(length=4, verify=False), _mat(dict.fromkeys(PARTS.values(), ROLL)),
        lambda f, x: (f / "JSB_Chorales.mat").write_bytes(x), 60,
    ),
    "hdf5": (lambda f: Hdf5(path=str(f / "x.h5")), b"", lambda f, x: (f / "x.h5").write_bytes(x), 60),
    "patches": (lambda f: Bsds300(), b"", lambda f, x: (f / "BSDS300.hdf5").write_bytes(x), 30),
    "folds": (lambda f: RedWine(), b"", lambda f, x: (f / "red_wine.hdf5").write_bytes(x), 30),
}  # fmt: skip
FOLDS = [*(f"folds/1/training/{part}/data" for part in range(1, 10)), "folds/1/tests/1/data"]
OF_HDF5 = {
    "hdf5": ["x_train", "y_train"], "patches": ["train", "validation", "test"], "folds": FOLDS,
}  # fmt: skip


def test_every_reader_of_files_is_among_them() -> None:
    """``TorchDataset`` takes objects of Python, and ``FashionMnist`` the files of ``Mnist``."""
    for module in pkgutil.iter_modules(dgmbench.data.__path__):
        importlib.import_module(f"dgmbench.data.{module.name}")
    taken = {type(make(Path("x"))) for make, *_ in READERS.values()}
    abstract = {PublishedReader, DensityTable}
    assert {kind for kind in _kinds(Reader) if kind.fetch is not Reader.fetch} - taken - abstract == {
        TorchDataset, FashionMnist,
    }  # fmt: skip


def _kinds(base: type[Reader]) -> set[type[Reader]]:
    """The project's own classes of readers."""
    found = {kind for each in base.__subclasses__() for kind in (each, *_kinds(each))}
    return {kind for kind in found if kind.__module__.startswith("dgmbench.")}


def _whole(name: str, folder: Path) -> bytes:
    if name == "npz":
        _npz(folder / "whole", {"x_train": _npy(X), "y_train": _npy(Y)})
        return (folder / "whole").read_bytes()
    if name in OF_HDF5:
        h5py = pytest.importorskip("h5py")
        with h5py.File(folder / "whole", "w") as file:
            for key in OF_HDF5[name]:
                file[key] = np.arange(20) % 2 if key.startswith("y") else RNG.normal(size=(20, 3))
        return (folder / "whole").read_bytes()
    if name == "counts":
        arrays = {"indptr": np.array([0, 2, 4, 6]), "indices": np.array([0, 1, 1, 2, 0, 3]), "counts": np.full(6, 2)}
        every = {f"{split}_{part}": values for split in SPLITS for part, values in arrays.items()}
        _npz(folder / "whole", {key: _npy(v) for key, v in (every | {"vocab": np.array(list("abcd"))}).items()})
        return (folder / "whole").read_bytes()
    if name == "tar":
        _tar(folder / "whole", dict.fromkeys((*TRAIN_BATCHES, "test_batch"), BATCH))
        return (folder / "whole").read_bytes()
    return READERS[name][1]


@pytest.mark.parametrize("name", READERS)
def test_what_is_whole_is_read(name: str, tmp_path: Path) -> None:
    """Damage to what nobody reads would show nothing."""
    make, _, write, _ = READERS[name]
    whole, folder = _whole(name, tmp_path), tmp_path / "set"
    folder.mkdir()
    write(folder, whole)
    assert _checked(_read(make(folder), folder, "set")).parts["train"].x.shape[0] > 0


@pytest.mark.parametrize("name", READERS)
def test_every_reader_ends_in_a_sentence_or_in_values_of_its_space(name: str, tmp_path: Path) -> None:
    make, _, write, count = READERS[name]
    whole, folder = _whole(name, tmp_path), tmp_path / "set"
    folder.mkdir()
    for content in mutants(whole, count, seed=1):
        write(folder, content)
        with a_sentence_or_a_result():
            decoded = _checked(_read(make(folder), folder, "set"))
            for part in decoded.parts.values():
                x = part.x.array() if isinstance(part.x, Chunks) else part.x
                assert x.shape[1:] == decoded.spec.shape
                assert np.isfinite(x).all()


def test_texts_of_bits(tmp_path: Path) -> None:
    file = tmp_path / "x.data"
    for content in mutants(b"\n".join(b",".join(b"%d" % bit for bit in row) for row in BITS), 100, seed=2):
        file.write_bytes(content)
        with a_sentence_or_a_result():
            assert set(np.unique(read_bits(file))) <= {0, 1}


def test_hdf5_files(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "whole", "w") as file:
        file["x"] = RNG.normal(size=(4, 3))
    for content in mutants((tmp_path / "whole").read_bytes(), 60, seed=3):
        (tmp_path / "x.hdf5").write_bytes(content)
        with a_sentence_or_a_result():
            read_hdf5(tmp_path / "x.hdf5", {"train": ["x"]})


# ---------------------------------------------------------------------- the files of a run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("fuzzed")
    words = ["model=vae", "model.hidden_sizes=[2]", "model.latent=1", "data=digits_binary", "trainer.budget=1ba",
             "trainer.progress=false", "hardware=cpu", "hardware.threads=1", "protocol=quick",
             "protocol.max_examples=5", "protocol.quality.samples=5", "protocol.splits=[test]"]  # fmt: skip
    assert cli.main(["train", *words, f"paths.outputs={outputs}"]) == 0
    (folder,) = outputs.glob("vae-*")
    return folder


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "outputs" / run.name))


def test_results(folder: Path) -> None:
    """No number of a changed result is believed, by nobody."""
    file = folder / "result.json"
    whole = file.read_bytes()
    result, numbers = RunFolder(folder).read_result(), read_ledger(folder.parent).cells[0].metrics
    for i, content in enumerate(mutants(whole, 400, seed=4)):
        file.write_bytes(content)
        with a_sentence_or_a_result():
            assert RunFolder(folder).read_result() == result
        if i % 4 == 0:
            (folder.parent / INDEX).unlink(missing_ok=True)
            ledger = read_ledger(folder.parent)
            assert ledger.cells[0].metrics == numbers or ledger.cells[0].status == "damaged"
            assert ledger.notes or ledger.cells[0].status != "damaged"


def test_what_the_report_remembers(folder: Path) -> None:
    numbers = read_ledger(folder.parent).cells[0].metrics
    whole = (folder.parent / INDEX).read_bytes()
    for content in mutants(whole, 100, seed=5):
        (folder.parent / INDEX).write_bytes(content)
        assert read_ledger(folder.parent).cells[0].metrics == numbers


def test_configurations(folder: Path) -> None:
    """They are read, or refused in a sentence; a report notes each change."""
    file = folder / "config.yaml"
    whole = file.read_bytes()
    for content in mutants(whole, 150, seed=6):
        file.write_bytes(content)
        with a_sentence_or_a_result():
            RunFolder(folder).read_config()
    for content in mutants(whole, 40, seed=7):
        file.write_bytes(content)
        notes = read_ledger(folder.parent).notes
        assert content == whole or any("config.yaml has been changed" in note for note in notes)


def test_samples_of_a_run_with_a_damaged_configuration_or_checkpoint(folder: Path) -> None:
    """The command ends with 0 and the samples of the whole run, or with 2 and none."""
    assert cli.main(["sample", f"run={folder}", "n=2"]) == 0
    array = folder / "samples" / "best-n2-s0.npz"
    samples = np.load(array)["x"]
    for name, count in (("config.yaml", 50), ("spec.json", 30), ("checkpoints/best.ckpt", 10)):
        file = folder / name
        whole = file.read_bytes()
        for content in mutants(whole, count, seed=8):
            file.write_bytes(content)
            array.unlink(missing_ok=True)
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            code = cli.main(["sample", f"run={folder}", "n=2"])
            assert code in (0, 2)
            assert code == 2 or np.array_equal(np.load(array)["x"], samples)
        file.write_bytes(whole)


def test_metric_rows(folder: Path) -> None:
    """Curves are drawn of the rows that can be read; a changed log no longer has the hash in the result."""
    file = folder / "metrics.jsonl"
    known = json.loads((folder / "result.json").read_text())["files"]["metrics.jsonl"]
    whole = file.read_bytes()
    for content in mutants(whole, 200, seed=9):
        file.write_bytes(content)
        with a_sentence_or_a_result():
            read_curves(file)
        with a_sentence_or_a_result():
            read_rows(file)
        assert (file_hash(file) == known) == (content == whole)


def test_checkpoints(tmp_path: Path) -> None:
    """A changed byte is found; what is changed with its seal is no more than a checkpoint of other plain values."""
    path = tmp_path / "x.ckpt"
    content = {"state_dict": {"a": torch.arange(6.0)}, "dgmbench": {"clock": {"images": 3}}, "run": {"name": "x"}}
    AtomicCheckpointIO().save_checkpoint(content, path)
    whole = path.read_bytes()
    for damaged in mutants(whole, 300, seed=10):
        path.write_bytes(damaged)
        with a_sentence_or_a_result():
            found = read_checkpoint(path)
            assert torch.equal(found["state_dict"]["a"], content["state_dict"]["a"])  # type: ignore[index]
            assert found["dgmbench"] == content["dgmbench"]
    buffer = io.BytesIO()
    torch.save(content, buffer)
    for damaged in mutants(buffer.getvalue()[:-22], 150, seed=11):
        forged: Any = io.BytesIO(damaged + buffer.getvalue()[-22:])
        seal(forged)
        path.write_bytes(forged.getvalue())
        with a_sentence_or_a_result():
            read_checkpoint(path)
