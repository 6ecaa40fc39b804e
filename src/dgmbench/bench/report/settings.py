"""The settings of a run: a key that is equal where they are, and what belongs to it."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from dgmbench.config.identity import GROUPS_NOT_HASHED, NOT_HASHED

_BLOCKS_LEFT_OUT = ("seed", "hardware", *GROUPS_NOT_HASHED)
_HARDWARE = ("precision", "devices", "nodes")


def settings_key(config: str) -> str:
    """8 hex digits of a configuration's text without its seed and what ``config_hash`` leaves out."""
    kept: list[str] = []
    hardware = {"devices": "1", "nodes": "1"}
    block = name = ""
    for line in config.splitlines():
        if line[:1].strip():
            block, name = line.partition(":")[0], ""
        elif line[:2] == "  " and line[2:3].strip() and line[2:4] != "- ":
            name, _, value = line.strip().partition(":")
            if block == "hardware" and name in _HARDWARE:
                hardware[name] = value.strip()
        if block not in _BLOCKS_LEFT_OUT and name not in NOT_HASHED.get(block, ()):
            kept.append(line)
    if not kept:
        return ""
    counts = [hardware.pop("devices"), hardware.pop("nodes")]
    processes = math.prod(map(int, counts)) if all(count.isdecimal() for count in counts) else counts
    kept.append(f"{hardware} {processes}")
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:8]


def sets_apart(name: str) -> bool:
    """Whether a setting, as ``trainer.budget``, belongs to the settings key."""
    block, _, rest = name.partition(".")
    if block == "hardware":
        return rest in _HARDWARE
    return block not in _BLOCKS_LEFT_OUT and rest.partition(".")[0] not in NOT_HASHED.get(block, ())


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
