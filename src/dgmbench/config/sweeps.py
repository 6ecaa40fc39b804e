"""What a configuration may make Hydra build for a sweep: its launchers and sweepers, and Python's own parts of logging.

Hydra builds callbacks, samplers and handlers of logging by any name, so a file in a folder of configurations, which can
set Hydra's own node, could run anything by ``dgm train -m``.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dgmbench.errors import UserError

# Whole names: a module may hold others, by which anything can be reached.
BUILT = re.compile(
    r"(hydra_plugins(\.[a-z]\w*)+|hydra\._internal\.core_plugins\.\w+)\.[A-Z]\w*"
    r"|optuna\.samplers\.[A-Z]\w*"
    r"|hydra\.experimental\.callbacks\.(LogJobReturnCallback|PickleJobInfoCallback)"
)
LOGGED = re.compile(r"logging\.(handlers\.)?[A-Z]\w*(Handler|Formatter|Filter)|colorlog\.ColoredFormatter")
STREAMS = re.compile(r"ext://sys\.std(out|err)")


def require_harmless(hydra: Mapping[str, Any]) -> None:
    """Refuse a node ``hydra`` (plain values, interpolations as they stand) that names anything else to be built."""
    for where, key, value in _named("hydra", hydra):
        allowed = BUILT if key == "_target_" else STREAMS if key == "ext" else LOGGED
        if not (isinstance(value, str) and allowed.fullmatch(value)):
            raise UserError(
                f"{where}={value} is none of Hydra's launchers, sweepers and samplers, nor a part of Python's logging: "
                "nothing else is built for a sweep."
            )


def _named(where: str, node: Any) -> Iterator[tuple[str, str, Any]]:
    """What is built or imported by name: the place, the key that says so, and the name."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in ("_target_", "class", "()"):
                yield f"{where}.{key}", str(key), value
            yield from _named(f"{where}.{key}", value)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _named(f"{where}[{i}]", value)
    elif isinstance(node, str) and "ext://" in node:
        yield where, "ext", node
