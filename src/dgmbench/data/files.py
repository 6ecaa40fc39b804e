"""The published files of a data set: where they lie, what they hash to, and how to get them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dgmbench.data.reader import Reader
from dgmbench.errors import UserError


@dataclass(frozen=True)
class PublishedFile:
    """A file as its authors publish it. ``checksum`` is ``md5:...`` or ``sha256:...``; ``url`` is None where no program
    may fetch it.
    """

    name: str
    checksum: str
    url: str | None = None


def checksum(path: Path, algorithm: str) -> str:
    """``algorithm:hexdigest`` of a file."""
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def state(path: Path) -> dict[str, Any]:
    """What tells one state of a user's file from the next without reading it."""
    status = path.stat()
    return {"path": str(path.resolve()), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


class PublishedReader(Reader):
    """Base of the readers of published ``files``, which lie in the set's folder.

    ``download`` allows fetching those that are missing. ``verify`` refuses a file whose checksum is not the
    published one; without it any file of the right format serves. ``instead`` says where people get files that no
    program may fetch.
    """

    files: tuple[PublishedFile, ...]
    instead: ClassVar[str] = ""

    def __init__(self, *, download: bool = False, verify: bool = True) -> None:
        self.download, self.verify = download, verify

    def source(self, folder: Path) -> Mapping[str, Any]:
        """The published checksums, or the state of the files where those are not asked for."""
        if self.verify:
            return {file.name: file.checksum for file in self.files}
        return {file.name: state(folder / file.name) for file in self.files if (folder / file.name).is_file()}

    def fetch(self, folder: Path) -> None:
        """Make sure that all files are there."""
        missing = [file for file in self.files if not (folder / file.name).is_file()]
        names = ", ".join(file.name for file in missing)
        if any(file.url is None for file in missing):
            raise UserError(f"data={folder.name} needs {names} in {folder}; {self.instead}.")
        if missing and not self.download:
            raise UserError(
                f"data={folder.name} needs {names} in {folder}; put the published files there, "
                "or let data.download=true fetch them."
            )
        for file in missing:
            download(file, folder)

    def path(self, folder: Path, name: str) -> Path:
        """The path of one file, its checksum compared if that was asked for."""
        path = folder / name
        expected = next(file.checksum for file in self.files if file.name == name)
        if self.verify and (found := checksum(path, expected.partition(":")[0])) != expected:
            raise UserError(
                f"{path} is truncated or altered: it has {found}, the published file {expected}; delete it and get it "
                "again, or accept it as it is with data.verify=false."
            )
        return path


def download(file: PublishedFile, folder: Path) -> None:
    """Fetch one file with a progress bar; it appears under its name only when complete and verified."""
    import pooch

    try:
        pooch.retrieve(file.url, known_hash=file.checksum, fname=file.name, path=folder, progressbar=True)
    except ValueError as error:  # pooch's word for a wrong checksum
        raise UserError(f"The download of {file.url} does not have the published {file.checksum}; retry.") from error
    except OSError as error:  # the network's errors are OSErrors as well
        raise UserError(
            f"{file.url} cannot be fetched to {folder} ({error}); get {file.name} by other means and put it there."
        ) from error
