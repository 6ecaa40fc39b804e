"""What a run's name depends on: every key of the configuration is changed in turn."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from dgmbench.config import complete, compose
from dgmbench.config.identity import NOT_HASHED, config_hash

HASHED = ("model", "data", "trainer", "optimizer", "seed")
HARDWARE = ("precision", "devices", "nodes")
DATA = "0" * 64


@pytest.fixture(scope="module")
def completed() -> dict[str, Any]:
    found = complete(compose("train", ["model=rbm_fpcd", "optimizer.players.model.lr=0.1"]))
    found["hardware"]["devices"] = 1  # resolved before the hash is taken
    return found


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in mappings and lists; of empty ones their own."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = [leaf for key, value in items for leaf in leaves(value, (*path, key))]
    yield from found or [path]


def changed(config: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """The configuration with another value at a path."""
    other = copy.deepcopy(config)
    node = other
    for key in path[:-1]:
        node = node[key]
    value = node[path[-1]]
    node[path[-1]] = value + 1 if isinstance(value, int | float) and not isinstance(value, bool) else [value, "other"]
    return other


def test_every_key_of_a_hashed_group_changes_the_name(completed: dict[str, Any]) -> None:
    name = config_hash(completed, DATA)
    paths = list(leaves({group: completed[group] for group in HASHED}))
    left_out = {(group, key) for group, keys in NOT_HASHED.items() for key in keys}
    same = {path[:2] for path in paths if config_hash(changed(completed, path), DATA) == name}
    assert same == left_out & {path[:2] for path in paths}
    assert {("trainer", key) for key in ("clip", "ema", "accumulate", "validate", "budget")} <= {p[:2] for p in paths}
    assert ("optimizer", "players", "model", "lr") in paths
    assert config_hash(completed, "1" * 64) != name


def test_no_other_key_does_but_precision_and_the_number_of_processes(completed: dict[str, Any]) -> None:
    name = config_hash(completed, DATA)
    others = {group: value for group, value in completed.items() if group not in HASHED}
    assert set(others) == {"hardware", "paths", "logger", "protocol", "names"}
    counted = {path for path in leaves(others) if config_hash(changed(completed, path), DATA) != name}
    assert counted == {("hardware", key) for key in HARDWARE}


def test_what_is_left_out_cannot_change_a_result() -> None:
    assert {group: set(keys) for group, keys in NOT_HASHED.items()} == {
        "model": {"card"},
        "data": {"card", "path", "download", "verify"},
        # a dry run keeps nothing; origin names what the runs hold that another one comes from
        "trainer": {"progress", "checkpoint", "samples", "dry_run", "continue_from", "start_from"},
    }
