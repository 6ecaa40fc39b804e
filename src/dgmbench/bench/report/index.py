"""What the report keeps of every run, so that a second report reads only what has changed."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from dgmbench.bench.report.settings import settings_key
from dgmbench.config.bounded import load_yaml, read_bytes
from dgmbench.errors import UserError
from dgmbench.runs.record import DIGEST, is_as_written, sealed
from dgmbench.system import is_alive

INDEX = "report.index.json"
INDEX_VERSION = 4
_KEPT = (
    "model", "family", "data", "seed", "run", "config_hash", "metrics", "cost", "versions", "finished", "unlabelled",
    "files",
)  # fmt: skip


class Index:
    """One file with the essence of every run's ``result.json`` and ``config.yaml``, by their times and sizes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        stored = read_json(folder / INDEX)
        usable = stored.get("version") == INDEX_VERSION and DIGEST in stored and is_as_written(stored)
        self.runs: dict[str, dict[str, Any]] = stored.get("runs", {}) if usable else {}
        self._protocols: dict[str, dict[str, Any]] = stored.get("protocols", {}) if usable else {}
        self._used: dict[str, dict[str, Any]] = {}
        self._changed = not usable

    def record(self, path: Path) -> dict[str, Any]:
        """What is kept of the run in this folder, read anew only if its files have changed."""
        key = os.path.relpath(path, self.folder)
        now = stamp(path / "result.json") + stamp(path / "config.yaml")
        record = self.runs.get(key)
        if record is None or record.get("stamp") != now:
            record = {"stamp": now, **self._read(path)}
            self._changed = True
        self._used[key] = record
        return record

    def _read(self, path: Path) -> dict[str, Any]:
        text = file_text(path / "config.yaml")
        record: dict[str, Any] = {"settings_key": settings_key(text), "target": _first(r"  _target_: (\S+)", text)}
        record["named"] = {
            "model": _first(r"  model: (\S+)", text.partition("\nnames:")[2]),
            "data": _first(r"  data: (\S+)", text.partition("\nnames:")[2]),
            "family": _first(r"    family: (\S+)", text),
        }
        seed = _first(r"seed: (-?\d+)", text)
        record["named"]["seed"] = int(seed) if seed else None
        try:
            content = read_bytes(path / "result.json")
        except FileNotFoundError:
            return record
        except OSError as error:
            return {**record, "damaged": f"result.json cannot be read ({error.strerror})"}
        try:
            result = json.loads(content)
            if not is_as_written(result):
                raise ValueError("it is not what was written")
            _check(result)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = f"{type(error).__name__}: {error}"
            return {**record, "damaged": f"result.json is damaged ({why}); remove it and run the cell again"}
        self._protocols.update(result["protocols"])
        made_of = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        if (result.get("files") or {}).get("config.yaml", made_of) != made_of:
            record["changed"] = True
        return {**record, "result": {key: result[key] for key in _KEPT if key in result}}

    def protocols(self) -> dict[str, dict[str, Any]]:
        """The protocols that the numbers of these runs name."""
        results = (record.get("result") for record in self._used.values())
        named = {str(m["protocol_id"]) for result in results if result for m in result["metrics"].values()}
        return {name: self._protocols[name] for name in sorted(named) if name in self._protocols}

    def save(self) -> None:
        """Write the index if anything in it is new."""
        if self._changed or self._used.keys() != self.runs.keys():
            content = sealed({"version": INDEX_VERSION, "protocols": self.protocols(), "runs": self._used})
            write_file(self.folder / INDEX, json.dumps(content, separators=(",", ":")))


def _check(result: Any) -> None:
    """Raise if a result lacks what the report reads; null stands for a value that is not finite."""
    for key in ("model", "family", "data", "seed", "metrics", "protocols", "cost", "versions"):
        if key not in result:
            raise KeyError(key)
    for name, metric in result["metrics"].items():
        if metric["value"] is not None and not isinstance(metric["value"], int | float):
            raise TypeError(f"the value of {name} is {metric['value']!r}")
        if not (isinstance(metric.get("note"), str) and metric["note"].strip()):
            metric.pop("note", None)
        for key in ("kind", "unit", "direction", "protocol_id"):
            metric[key] = str(metric.get(key) or "")
    for key in ("protocols", "cost", "versions"):
        if not isinstance(result[key], dict):
            raise TypeError(f"{key} is {result[key]!r}")


def write_file(path: Path, content: str) -> None:
    """Write a text file so that it appears at once or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            for left in path.parent.glob(f".{path.name}.*.tmp"):
                number = left.name.split(".")[-2]
                if number.isdecimal() and not is_alive(int(number)):  # of a process that was killed
                    left.unlink(missing_ok=True)
            with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:  # names may be no text
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): a report needs a folder to write into."
        ) from error


def stamp(path: Path) -> list[int]:
    """When a file was changed and how large it is; zeros if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return [0, 0]
    return [found.st_mtime_ns, found.st_size]


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file, or nothing where it cannot be read."""
    try:
        found = json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def file_text(path: Path) -> str:
    """The text of a file, or nothing where it cannot be read."""
    try:
        return read_bytes(path).decode("utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _first(pattern: str, text: str) -> str:
    found = re.search(f"^{pattern}", text, re.MULTILINE)
    return found.group(1).strip("'\"") if found else ""


def read_config(path: Path) -> dict[str, Any]:
    """A run's configuration, or nothing where it cannot be read."""
    try:
        loaded = load_yaml(file_text(path / "config.yaml"), path / "config.yaml")
    except UserError:
        return {}
    return loaded if isinstance(loaded, dict) else {}
