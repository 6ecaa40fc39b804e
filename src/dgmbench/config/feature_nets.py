"""Names and nodes of ``protocol.quality.features``, completed like every other node with a ``_target_``."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dgmbench.config.files import options, read_settings
from dgmbench.config.signatures import complete_node
from dgmbench.config.targets import TARGET, dotted, locate
from dgmbench.errors import UserError, nearest

# The only name for which a Frechet distance is called FID, and so no other net may have it.
RESERVED = {"inception_tf": "dgmbench.evaluation.features.inception_tf.InceptionTf"}
TAKEN = ("inception",)  # its score would be an inception_score
VARIANTS = ("train", "bias", "inf")  # a second word after a net's name


def complete_net(entry: str | Mapping[str, Any], config_dirs: Iterable[str | Path] = ()) -> dict[str, Any]:
    """The node of an entry of ``protocol.quality.features``, a name or a node, with the defaults of its class.

    A net without a name gets that of its class, so that two of them never go by the same name unnoticed.
    """
    node = read_net(entry, config_dirs) if isinstance(entry, str) else dict(entry)
    node = complete_node(node, "features", supplied=("spec",), metadata=("name",))
    target = locate(node[TARGET], "features")
    node["name"] = name = str(node.get("name") or default_name(target))
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise UserError(f"features.name={name} must consist of small letters, digits and underscores.")
    if name in TAKEN or (name in RESERVED and dotted(target) != RESERVED[name]):
        owner = RESERVED.get(name, "the Inception score")
        raise UserError(f"The name {name} is reserved for {owner}; give your feature net another one.")
    return node


def read_net(name: str, config_dirs: Iterable[str | Path] = ()) -> dict[str, Any]:
    """The file ``configs/features/NAME.yaml``."""
    node = read_settings("features", name, config_dirs)
    if not node:
        raise UserError(nearest(name, options("features", config_dirs), what="features"))
    return node


def check_names(nodes: Sequence[Mapping[str, Any]]) -> None:
    """Refuse two nets whose numbers would overwrite each other: of one name, or ``fd_a_train`` of a and of a_train."""
    names = [node["name"] for node in nodes]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Two feature nets are named {name}; give each its own features.name.")
        for variant in VARIANTS:
            if f"{name}_{variant}" in names:
                raise UserError(
                    f"Numbers of the feature nets {name} and {name}_{variant} would have one name; give the second "
                    "another features.name."
                )


def default_name(made_by: Callable[..., Any]) -> str:
    """The name of a net that is given none: ``random_conv`` for the class RandomConv."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", made_by.__name__).lower()
