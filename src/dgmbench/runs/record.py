"""What a finished run remembers of its measurements: ``measured`` in its ``result.json``, the last one at the end.

Each entry has a protocol, the versions that measured it, and which numbers are its own: names with their protocol ids.
So it can be told whether a run has been measured under a protocol, whole, and which of several numbers of one name
belong to it.

A result carries the hash of its contents (``sealed``), and of the run's configuration and log (``files``), so that a
number that somebody or some disk has changed is not believed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dgmbench.runs.metric_names import together, under_protocol

Result = dict[str, Any]

DIGEST = "digest"
"""A result's key with the hash of all others."""


def sealed(result: Mapping[str, Any]) -> Result:
    """A result as it is written: with the hash of its numbers and what belongs to them."""
    return {**{key: value for key, value in result.items() if key != DIGEST}, DIGEST: _digest(result)}


def is_as_written(result: Mapping[str, Any]) -> bool:
    """Whether a result that was read is the one that was written; those of before had no hash."""
    return DIGEST not in result or result[DIGEST] == _digest(result)


def file_hash(file: Path) -> str:
    """sha256 of a file of a run."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _digest(result: Mapping[str, Any]) -> str:
    plain = json.dumps({key: value for key, value in result.items() if key != DIGEST}, sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def remember(result: Result, protocol: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Put the ``metrics``, ``protocols`` and ``versions`` of a measurement into a result; nothing is lost."""
    result["metrics"] = together(result.get("metrics", {}), found["metrics"])
    protocols = {**result.get("protocols", {}), **found["protocols"]}
    used = {metric["protocol_id"] for metric in result["metrics"].values()}
    result["protocols"] = {key: value for key, value in protocols.items() if key in used}
    entry = {
        "name": protocol["name"],
        "protocol": _essence(protocol),
        "versions": found["versions"],
        "metrics": {name: metric["protocol_id"] for name, metric in found["metrics"].items()},
    }
    others = [each for each in result.get("measured", []) if each["protocol"] != entry["protocol"]]
    result["measured"] = [*others, entry]


def is_measured(result: Mapping[str, Any], protocol: Mapping[str, Any]) -> bool:
    """Whether a run has been measured under a protocol, whatever its name."""
    wanted = _essence(protocol)
    return any(entry["protocol"] == wanted for entry in result["measured"])


def bring_forward(result: Result, protocol: Mapping[str, Any]) -> bool:
    """Let names alone stand for the numbers of a protocol that has been measured; False if they already do."""
    wanted = _essence(protocol)
    if result["measured"][-1]["protocol"] == wanted:
        return False
    entry = next(entry for entry in result["measured"] if entry["protocol"] == wanted)
    numbers = {name: under_protocol(result["metrics"], name, key) for name, key in entry["metrics"].items()}
    result["metrics"] = together(result["metrics"], numbers)
    result["measured"] = [*(each for each in result["measured"] if each is not entry), entry]
    return True


def _essence(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol without its name, as it comes back from JSON."""
    found: dict[str, Any] = json.loads(json.dumps({key: value for key, value in protocol.items() if key != "name"}))
    return found


def unlabelled_words(data: str, unlabelled: Mapping[str, Sequence[int]]) -> list[str]:
    """``unlabelled`` of a result in words: how many labels of each split are not known."""
    return [
        f"{unknown:,} of {every:,} {split} labels of {data} are unknown (-1)"
        for split, (unknown, every) in unlabelled.items()
    ]
