"""From the names and nodes of ``protocol.quality.features`` to feature nets that are ready."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dgmbench.config import instantiate
from dgmbench.config.feature_nets import check_names, complete_net
from dgmbench.config.targets import TARGET, locate
from dgmbench.data import DataSet, keyed_seed
from dgmbench.errors import UserError
from dgmbench.evaluation.features.net import FeatureNet, Note
from dgmbench.evaluation.features.own import Own, said


def default_features(data: DataSet) -> list[str]:
    """What samples are compared by if the protocol does not say: a classifier where there are labels of examples."""
    labelled = data.spec.num_classes and data.splits["train"].y is not None and not data.spec.step_labels
    return ["classifier" if labelled else "random_conv"]


def build_net(
    entry: str | Mapping[str, Any],
    data: DataSet,
    *,
    folder: Path | None,
    device: torch.device,
    note: Note = lambda text: None,
) -> FeatureNet:
    """The net of a name or a node ``{name, _target_, ...}``, ready for the data. ``folder`` keeps what was trained."""
    with _own_noise():
        net = _unprepared(entry, data).to(device).eval()
        if net.target.startswith("dgmbench."):
            net.prepare(data, folder, note)
        else:
            with _in_a_sentence(net.who):
                net.prepare(data, folder, note)
                net.try_out(data)
    note(f"feature net {net.name} {net.hash[:8]}")  # from here on it is known by its hash
    return net.requires_grad_(False)


def require_nets(chosen: Sequence[str | Mapping[str, Any]], data: DataSet, folder: Path | None) -> None:
    """Refuse nets that ``build_net`` would refuse, without training any: to be asked before a model is trained."""
    nodes = [complete_net(entry) for entry in chosen]
    check_names(nodes)
    for node in nodes:
        with _own_noise():
            net = _unprepared(node, data).eval()
        with _own_noise(), _in_a_sentence(net.who):
            net.require(data, folder)
        _ = net.source  # of the code that was imported just now


@contextmanager
def _own_noise() -> Iterator[None]:
    """Weights that a module draws are the same each time, and nobody else's stream of noise moves on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed("feature net"))
        yield


@contextmanager
def _in_a_sentence(who: str) -> Iterator[None]:
    """Whatever a user's code raises, a missing file of weights for instance, is the user's to mend."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{who} fails: {said(error)}.") from error


def _unprepared(entry: str | Mapping[str, Any], data: DataSet) -> FeatureNet:
    node = complete_net(entry)
    target = locate(node[TARGET], "features")
    settings = {key: value for key, value in node.items() if key not in ("name", TARGET)}
    net: FeatureNet
    with _in_a_sentence(f"features._target_={node[TARGET]}"):
        if isinstance(target, type) and issubclass(target, FeatureNet):
            net = instantiate({TARGET: node[TARGET], **settings}, data.spec)
        else:
            module = instantiate({TARGET: node[TARGET], **settings})
            if not isinstance(module, nn.Module):
                raise UserError(f"features._target_={node[TARGET]} gives a {type(module).__name__}, not an nn.Module.")
            net = Own(data.spec, module, target)
    net.name = node["name"]
    net.settings = {key: value for key, value in settings.items() if key not in net.NO_CONTENT}
    return net
