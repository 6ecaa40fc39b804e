"""What a run is called: a hash of all that its result depends on."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# What cannot change a run's result: keys of groups, and whole groups. Of the hardware, precision and the number of
# processes count.
NOT_HASHED = {
    "model": ("card",),
    "data": ("card", "path", "download", "verify"),
    # where a run comes from counts by its content, which ``origin`` names
    "trainer": ("progress", "checkpoint", "samples", "dry_run", "continue_from", "start_from"),
}
# Settings with these values are as if they were not there, so that runs from before there were such keep their name.
NEUTRAL = {("trainer", "patience", None)}
GROUPS_NOT_HASHED = ("paths", "logger", "protocol", "names", "origin")


def config_hash(completed: Mapping[str, Any], data_hash: str) -> str:
    """8 hex digits that identify a run by its content.

    Covers the whole configuration and the data's content, but for what cannot change the result: folders, logger,
    the hardware other than precision and number of processes, the progress bar, the periods of checkpoints and sample
    pictures, the card, the names of the chosen files, and the evaluation's protocol.
    """
    content = {**what_counts(completed), "data_hash": data_hash}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def what_counts(completed: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that its result depends on.

    Of where the run comes from (``origin``) the weights that it starts from, and the run that it goes on from unless
    it is the same run as from its beginning.
    """
    content = {
        key: {name: item for name, item in value.items() if _counts(key, name, item)}
        if isinstance(value, Mapping)
        else value
        for key, value in completed.items()
        if key not in (*GROUPS_NOT_HASHED, "hardware")
    }
    hardware = completed["hardware"]
    content["hardware"] = {"precision": hardware["precision"], "processes": hardware["devices"] * hardware["nodes"]}
    origin = completed.get("origin") or {}
    kept = {how: origin[how]["sha256"] for how in origin if not origin[how].get("exact", False)}
    return {**content, "origin": kept} if kept else content


def _counts(group: str, name: str, value: Any) -> bool:
    if name in NOT_HASHED.get(group, ()):
        return False
    return not any((group, name) == each[:2] and value is each[2] for each in NEUTRAL)


def run_name(completed: Mapping[str, Any], data_hash: str) -> str:
    """The name of the run's folder: ``<model>-<data>-s<seed>-<8 hex>``."""
    names = completed["names"]
    return f"{names['model']}-{names['data']}-s{completed['seed']}-{config_hash(completed, data_hash)}"
