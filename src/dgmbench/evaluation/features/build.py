"""From the names and nodes of ``protocol.quality.features`` to feature nets that are ready."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dgmbench.cards import read_settings
from dgmbench.config import instantiate, options
from dgmbench.data import DataSet
from dgmbench.errors import UserError, nearest
from dgmbench.evaluation.features.net import FeatureNet, Note, Own
from dgmbench.signatures import TARGET, complete_node, locate

# The only name for which a Frechet distance is called FID, and so no other net may have it.
RESERVED = {"inception_tf": "dgmbench.evaluation.features.inception_tf.InceptionTf"}
NO_CONTENT = ("path", "download")  # settings that say where weights come from, not what they are


def default_features(data: DataSet) -> list[str]:
    """What samples are compared by if the protocol does not say: a classifier where there are labels."""
    return ["classifier" if data.spec.num_classes and data.splits["train"].y is not None else "random_conv"]


def build_net(
    entry: str | Mapping[str, Any],
    data: DataSet,
    *,
    folder: Path | None,
    device: torch.device,
    note: Note = lambda text: None,
) -> FeatureNet:
    """The net of a name or a node ``{name, _target_, ...}``, ready for the data. ``folder`` keeps what was trained."""
    net = _unprepared(entry, data).to(device).eval()
    net.prepare(data, folder, note)
    return net.requires_grad_(False)


def require_nets(chosen: Sequence[str | Mapping[str, Any]], data: DataSet, folder: Path | None) -> None:
    """Refuse nets that ``build_net`` would refuse, without training any: to be asked before a model is trained."""
    for entry in chosen:
        _unprepared(entry, data).require(data, folder)


def _unprepared(entry: str | Mapping[str, Any], data: DataSet) -> FeatureNet:
    node = complete_net(entry)
    target = locate(node[TARGET], "features")
    settings = {key: value for key, value in node.items() if key not in ("name", TARGET)}
    if isinstance(target, type) and issubclass(target, FeatureNet):
        net: FeatureNet = instantiate({TARGET: node[TARGET], **settings}, data.spec)
    else:
        module = instantiate({TARGET: node[TARGET], **settings})
        if not isinstance(module, nn.Module):
            raise UserError(f"features._target_={node[TARGET]} gives a {type(module).__name__}, not an nn.Module.")
        net = Own(data.spec, module)
    net.name = str(node.get("name") or net.name)
    net.settings = {key: value for key, value in settings.items() if key not in NO_CONTENT}
    if not re.fullmatch(r"[a-z0-9_]+", net.name):
        raise UserError(f"features.name={net.name} must consist of small letters, digits and underscores.")
    if net.name in RESERVED and node[TARGET] != RESERVED[net.name]:
        raise UserError(f"The name {net.name} is reserved for {RESERVED[net.name]}; give your feature net another one.")
    return net


def complete_net(entry: str | Mapping[str, Any], config_dirs: Iterable[str | Path] = ()) -> dict[str, Any]:
    """The node of an entry of ``protocol.quality.features``, a name or a node, with the defaults of its class."""
    node = read_net(entry, config_dirs) if isinstance(entry, str) else dict(entry)
    return complete_node(node, "features", supplied=("spec",), metadata=("name",))


def read_net(name: str, config_dirs: Iterable[str | Path] = ()) -> dict[str, Any]:
    """The file ``configs/features/NAME.yaml``."""
    node = read_settings("features", name, config_dirs)
    if not node:
        raise UserError(nearest(name, options("features", config_dirs), what="features"))
    return node


def check_names(nodes: Sequence[Mapping[str, Any]]) -> None:
    """Refuse two nets of one name, whose numbers would overwrite each other."""
    names = [node.get("name") for node in nodes]
    for name in names:
        if name is not None and names.count(name) > 1:
            raise UserError(f"Two feature nets are named {name}; give each its own features.name.")
