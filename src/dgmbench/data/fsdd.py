"""The Free Spoken Digit Dataset: ten digits said by six speakers, cut into segments of 8-bit mu-law codes.

Z. Jackson et al.: Free Spoken Digit Dataset (2016-2020), https://github.com/Jakobovski/free-spoken-digit-dataset
"""

import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dgmbench.data.archives import open_zip
from dgmbench.data.audio import LEVELS, mu_law_encode, read_wav
from dgmbench.data.checks import exactly
from dgmbench.data.files import state
from dgmbench.data.npz import open_npz
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require

RATE = 8000
RECORDINGS = "c372e20bc44eb598143a5fd394ede7ef017a0778ec4a4739723c7593f28c1082"  # sha256, see fingerprint()
NAME = re.compile(r"(?:^|/)recordings/(\d)_(\w+)_(\d+)\.wav$")
TEST, VALID = range(5), range(5, 10)  # numbers of the recordings of each digit and speaker; the first is official
WHERE = "put the folder recordings, the project's zip file or fsdd.npz there"


class Recording(NamedTuple):
    """One recording: who says what, for which time, and its 16-bit samples (n,)."""

    digit: int
    speaker: str
    number: int
    samples: np.ndarray


def fingerprint(recordings: list[Recording]) -> str:
    """sha256 over names, lengths and samples in the order of the names; the same for every way to store them."""
    found = hashlib.sha256()
    for r in recordings:
        found.update(f"{r.digit}_{r.speaker}_{r.number} {len(r.samples)}\n".encode())
        found.update(r.samples.astype("<i2").tobytes())
    return found.hexdigest()


class Fsdd(Reader):
    """Discrete (length,) mu-law codes with 256 levels at 8 kHz; the class is the digit or the speaker.

    Every recording is cut from its beginning into segments of ``length`` samples without overlap, and what is left at
    its end is dropped: nothing is padded, scaled or trimmed, so no value is easier to predict than the recordings are.
    (The shortest has 1,148 samples, so each gives a segment of the default length.) The recordings numbered 0 to 4 of
    every digit and speaker are the official test set; 5 to 9 validate.
    """

    def __init__(
        self, *, length: int = 1024, label: Literal["digit", "speaker"] = "digit", verify: bool = True
    ) -> None:
        require("data", least=2, length=length)
        self.length, self.label, self.verify = length, label, verify

    def source(self, folder: Path) -> Mapping[str, Any]:
        """The contents' hash, which is the same for every way to store them, or the state of the files."""
        return source_of(folder, verify=self.verify)

    def fetch(self, folder: Path) -> None:
        """Make sure of the recordings in one of their forms."""
        require_recordings(folder, folder.name)

    def read(self, folder: Path) -> Decoded:
        """Read, cut and compand."""
        recordings = recordings_of(folder, verify=self.verify)
        speakers = sorted({r.speaker for r in recordings})
        rows: dict[str, list[tuple[np.ndarray, int, int]]] = {split: [] for split in SPLITS}
        begin = 0
        for r in recordings:
            split = split_of(r)
            y = r.digit if self.label == "digit" else speakers.index(r.speaker)
            for start in range(0, len(r.samples) - self.length + 1, self.length):
                rows[split].append((r.samples[start : start + self.length], y, begin + start))
            begin += len(r.samples)
        parts = {}
        for split, segments in rows.items():
            if not segments:
                raise UserError(f"No recording of the {split} set has {self.length} samples; lower data.length.")
            x = mu_law_encode(np.stack([samples for samples, _, _ in segments]) / 32768.0)
            y, index = np.array([[label, place] for _, label, place in segments], np.int64).T
            parts[split] = Part(x, y.copy(), f"{split} recordings end to end, segments of {self.length}", index)
        classes = 10 if self.label == "digit" else len(speakers)
        spec = DataSpec((self.length,), "discrete", LEVELS, classes, sampling_rate=RATE)
        return Decoded(spec, parts, {"recordings": len(recordings), "speakers": speakers})


def source_of(folder: Path, *, verify: bool) -> Mapping[str, Any]:
    """What tells recordings from others: the hash that they are to have, or the state of their files."""
    if verify:
        return {"recordings": RECORDINGS}
    return {str(path.relative_to(folder)): state(path) for path in _files(folder)}


def require_recordings(folder: Path, name: str) -> None:
    """Refuse a folder without recordings in any form; ``name`` is that of the data set."""
    if not _files(folder):
        raise UserError(f"data={name} needs recordings like 7_theo_0.wav in {folder}; {WHERE}.")


def recordings_of(folder: Path, *, verify: bool) -> list[Recording]:
    """All recordings in the order of digit, speaker and number; with ``verify``, the published ones or none."""
    recordings = sorted(_recordings(folder), key=lambda r: r[:3])
    if verify and (found := fingerprint(recordings)) != RECORDINGS:
        raise UserError(
            f"The {len(recordings)} recordings in {folder} differ from the 3,000 published ones (version 1.0.10; "
            f"sha256 {found[:8]}, not {RECORDINGS[:8]}); get them again, or accept them with data.verify=false."
        )
    return recordings


def split_of(recording: Recording) -> str:
    """The split that a recording belongs to, by its number."""
    return "test" if recording.number in TEST else "valid" if recording.number in VALID else "train"


def _files(folder: Path) -> list[Path]:
    """The archive of arrays, else the zip file, else the recordings themselves."""
    found = ([path for path in sorted(folder.rglob(name)) if path.is_file()] for name in ("fsdd.npz", "*.zip", "*.wav"))
    arrays, archives, recordings = found
    return (
        [path for path in arrays if path.parent == folder]
        or [path for path in archives if path.parent == folder][:1]
        or [path for path in recordings if NAME.search(path.as_posix())]
    )


def _recordings(folder: Path) -> Iterator[Recording]:
    first, *others = _files(folder)
    if first.suffix == ".npz":
        yield from _from_arrays(first)
    elif first.suffix == ".zip":
        with open_zip(first) as archive:
            for name in archive.namelist():
                if match := NAME.search(name):
                    yield _from_wav(match, io.BytesIO(archive.read(name)), f"{name} in {first}")
    else:
        for path in (first, *others):
            match = NAME.search(path.as_posix())
            assert match is not None, "only such files were listed"
            yield _from_wav(match, io.BytesIO(path.read_bytes()), str(path))


def _from_wav(match: re.Match[str], file: io.BytesIO, name: str) -> Recording:
    samples, rate = read_wav(file, name)
    if rate != RATE:
        raise UserError(f"{name} has a sampling rate of {rate} Hz; expected {RATE} Hz.")
    return Recording(int(match[1]), match[2], int(match[3]), samples)


def _from_arrays(path: Path) -> Iterator[Recording]:
    """All recordings end to end in ``audio``, from ``offsets[i]`` to ``offsets[i + 1]``, with one ``digit``,
    ``speaker`` and ``index`` each.
    """
    arrays = open_npz(path)
    missing = [key for key in ("audio", "offsets", "digit", "speaker", "index") if key not in arrays]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; {WHERE.replace('there', 'in its folder')}.")
    audio = arrays["audio"]
    offsets, digits, numbers = (
        exactly(arrays[key], np.int64, f"{key} in {path}") for key in ("offsets", "digit", "index")
    )
    n = offsets.size - 1
    flat = audio.ndim == offsets.ndim == 1 and all(arrays[key].shape == (n,) for key in ("digit", "speaker", "index"))
    good = flat and audio.dtype == np.int16 and n >= 1 and bool((np.diff(offsets) >= 0).all())
    if not good or offsets[0] < 0 or offsets[-1] > len(audio) or arrays["speaker"].dtype.kind not in "SU":
        raise UserError(f"The arrays of {path} do not fit each other: {n} recordings of {audio.dtype}; get it again.")
    try:
        names = np.char.decode(arrays["speaker"]) if arrays["speaker"].dtype.kind == "S" else arrays["speaker"]
    except UnicodeDecodeError as error:
        raise UserError(f"The speakers in {path} are no text in UTF-8 ({error.reason}); get it again.") from error
    for i in range(n):
        samples = audio[offsets[i] : offsets[i + 1]]
        yield Recording(int(digits[i]), str(names[i]), int(numbers[i]), samples)
