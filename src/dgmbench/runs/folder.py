"""A run's folder: named by content, owned by one process at a time, complete only when ``result.json`` is there."""

import json
import os
import re
import socket
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dgmbench.config.bounded import load_yaml, read_bytes
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, nearest
from dgmbench.runs.record import file_hash, is_as_written, sealed
from dgmbench.system import Lock
from dgmbench.training.files import disk_errors, write_atomically, write_json

CONFIG_KEYS = {"model", "data", "trainer", "optimizer", "hardware", "protocol", "seed", "paths", "names"}
NEEDED: dict[str, tuple[type, ...]] = {
    "names.model": (str,), "names.data": (str,), "model._target_": (str,), "data._target_": (str,),
    "data.name": (str,), "optimizer._target_": (str,), "seed": (int,), "paths.data": (str,),
    "trainer.ema": (float, int), "trainer.progress": (bool,), "hardware.precision": (str,), "hardware.devices": (int,),
    "hardware.nodes": (int,),
}  # fmt: skip
RESULT_KEYS = {"metrics", "protocols", "objective", "data_hash", "cost", "versions"}


def wrong_config(config: object) -> str | None:
    """What a run's configuration lacks of what is read from it without completing it again; None if nothing."""
    if not isinstance(config, dict) or not set(config) >= CONFIG_KEYS:
        return "is not the configuration of a run"
    for dotted, kinds in NEEDED.items():
        value: Any = config
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kinds) or (bool not in kinds and isinstance(value, bool)):
            return f"has {dotted}={value}"
    for name in (*config["names"].values(), config["data"]["name"]):
        if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
            return f"names {name!r}, which is no name of a configuration"
    return None


class RunFolder:
    """``<outputs>/<model>-<data>-s<seed>-<8 hex>`` and the names of what lies in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.spec = path / "spec.json"
        self.metrics = path / "metrics.jsonl"
        self.status_file = path / "status.json"
        self.result_file = path / "result.json"
        self.traceback_file = path / "traceback.txt"
        self.samples = path / "samples"
        self.last = path / "checkpoints" / "last.ckpt"
        self.best = path / "checkpoints" / "best.ckpt"
        self.second = path / "checkpoints" / "second.ckpt"  # the best but for a last validation between periods
        self.shared = path / "model.safetensors"  # weights alone, of a folder that was made to be shared
        self._lock = Lock(path / ".lock")

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        """The folder of a run that has been started; anything else ends in one sentence (UserError)."""
        folder = cls(Path(path).expanduser())
        if folder.config.is_file():
            return folder
        if folder.path.is_dir():
            raise UserError(f"run={path} is not the folder of a run: it has no config.yaml.")
        siblings = [config.parent.name for config in folder.path.parent.glob("*/config.yaml")]
        if siblings:
            raise UserError(nearest(folder.path.name, siblings, what=f"run in {folder.path.parent} named"))
        raise UserError(f"run={path} does not exist: give the folder that 'dgm train' printed last.")

    def checkpoint(self, rule: str) -> Path:
        """The checkpoint with the weights that were best on validation (``best``) or last (``final``)."""
        own = self.best if rule == "best" else self.last
        return self.shared if self.is_shared and not own.exists() else own

    @property
    def is_shared(self) -> bool:
        """Whether the folder holds weights that were made to be shared, and no checkpoints."""
        return self.shared.exists() and not self.best.parent.exists()

    def acquire(self) -> None:
        """Take the folder for this process until it ends, however it ends; refuse if another one has it."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            owner = self._lock.take()
        if owner is not None:
            raise UserError(
                f"The run {self.path} is being worked on by another process ({owner}); wait until it is done, or "
                "stop it."
            )

    def release(self) -> None:
        """Give the folder back."""
        self._lock.release()

    def keep_second(self) -> None:
        """Keep the best checkpoint beside the one that is about to take its place; once, also if that is repeated."""
        if self.best.exists() and not self.second.exists():
            with disk_errors(self.second):
                os.replace(self.best, self.second)

    def write_config(self, completed: Mapping[str, Any], *, relative: bool = False) -> None:
        """Store the completed configuration of the run, with paths that hold from anywhere unless ``relative``."""
        if relative:
            write_atomically(self.config, yaml.safe_dump(dict(completed), sort_keys=False).encode())
            return
        paths = {name: os.path.abspath(path) for name, path in completed["paths"].items()}
        data = dict(completed["data"])
        if data.get("path"):
            data["path"] = os.path.abspath(os.path.expanduser(data["path"]))
        trainer = dict(completed["trainer"])
        for key in ("continue_from", "start_from"):
            if trainer[key]:
                trainer[key] = os.path.abspath(os.path.expanduser(trainer[key]))
        stored = {**completed, "data": data, "trainer": trainer, "paths": paths}
        write_atomically(self.config, yaml.safe_dump(stored, sort_keys=False).encode())

    def write_spec(self, spec: DataSpec, data_hash: str) -> None:
        """Store what the data are like and their hash, so that the model can be built again without them."""
        write_json(self.spec, sealed({"data_hash": data_hash, "spec": spec.as_dict()}))

    def read_spec(self) -> tuple[DataSpec, str] | None:
        """What the data of the run are like, and their hash; None if an earlier version has made it."""
        try:
            found = json.loads(read_bytes(self.spec))
            if not is_as_written(found):
                raise ValueError("it is not what was written")
            return DataSpec(**found["spec"]), str(found["data_hash"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as error:
            raise UserError(f"{self.spec} is damaged; remove it, and it is read from the data instead.") from error

    def read_config(self) -> dict[str, Any]:
        """The completed configuration of the run."""
        try:
            config = load_yaml(read_bytes(self.config), self.config)
            if wrong := wrong_config(config):
                raise UserError(f"{self.config} {wrong}.")
        except (UserError, OSError) as error:
            raise UserError(f"{self.config} is damaged and cannot be read ({error}); train the run again.") from error
        found: dict[str, Any] = config
        return found

    def write_status(self, status: str, **details: Any) -> None:
        """Record where the run stands: running, interrupted, failed or done."""
        write_json(self.status_file, {"status": status, "pid": os.getpid(), "host": socket.gethostname(), **details})

    def write_traceback(self) -> None:
        """Keep the traceback of the exception that is being handled."""
        write_atomically(self.traceback_file, traceback.format_exc().encode())

    def read_result(self) -> dict[str, Any] | None:
        """The finished run's result, or None."""
        try:
            result = json.loads(read_bytes(self.result_file))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{self.result_file} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError):
            result = None
        whole = isinstance(result, dict) and set(result) >= RESULT_KEYS
        if not whole or not all(isinstance(result[key], dict) for key in RESULT_KEYS - {"data_hash"}):
            raise UserError(f"{self.result_file} is damaged; remove it and give the command again.")
        if not is_as_written(result):
            raise UserError(
                f"{self.result_file} is not what was written: something in it has been changed since; put the original "
                "back, or remove it and give the command again."
            )
        return {"measured": [], **result}

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Store the result, last of all: only this file means success."""
        write_json(self.result_file, sealed(result))

    def hashes(self) -> dict[str, str]:
        """sha256 of the configuration and of the metric rows, for the result."""
        return {file.name: file_hash(file) for file in (self.config, self.metrics)}
