"""Measuring samples that others made: every metric of samples, of values instead of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from dgmbench.data import DataSet, DataSpec
from dgmbench.data.dataset import Split, SplitName
from dgmbench.data.prepared import ContentHash
from dgmbench.data.random import keyed_generator
from dgmbench.errors import UserError
from dgmbench.evaluation.metrics import Metric, protocol_id
from dgmbench.evaluation.parts import Context, Note
from dgmbench.evaluation.quality.measure import samples
from dgmbench.models.contract import CanSample, Model


class _Others(Model):
    """Stands for whoever made the samples: it can sample, and nothing else is known of it."""

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        raise NotImplementedError("the samples are there already")


@dataclass(frozen=True, kw_only=True)
class _Given(Context):
    """A context in which samples are not drawn but taken from ``values`` (m, *shape)."""

    values: Tensor

    def draw(self, model: CanSample, n: int, note: Note) -> Tensor:
        """n of the values, at random but always the same: they may be sorted."""
        if len(self.values) < n:
            raise ValueError(f"{n} samples were asked for, {len(self.values)} are there")
        order = torch.randperm(len(self.values), generator=keyed_generator("given samples", self.seed))
        return self.values if n == len(self.values) else self.values[order[:n].sort().values]


@torch.no_grad()
def score(
    values: Tensor,
    data: DataSet,
    protocol: Mapping[str, Any],
    *,
    split: SplitName,
    device: torch.device,
    folder: Path | None = None,
    note: Note = lambda text: None,
) -> dict[str, tuple[Metric, dict[str, Any]]]:
    """Every metric of samples of raw ``values`` (m, *shape) against a split of the data, with its protocol.

    As many are taken as the protocol says, or all where there are fewer, so that numbers compare with those of runs.
    """
    if len(values) < 2:
        raise UserError(f"There are {len(values)} samples; distances to data need at least 2.")
    quality = {**protocol["quality"], "samples": min(protocol["quality"]["samples"], len(values))}
    context = _Given(data, {**protocol, "quality": quality}, split, device, folder=folder, values=values)
    found = {}
    for name, metric, details in samples(_Others(data.spec), context, note):
        depends = context.common | {"samples_of": "others"} | details
        about = {key: value for key, value in (depends | {"sample_chunk": None}).items() if value is not None}
        found[name] = replace(metric, protocol_id=protocol_id(about)), about
    return found


def reference(name: str, values: Tensor, spec: DataSpec) -> DataSet:
    """Values (n, *shape) as a set of which all are the training split, for samples to be compared with."""
    x, content = values.numpy(), ContentHash()
    content.begin("reference", x.shape, x.dtype)
    content.rows(x)
    splits = {"train": Split(x, None), "valid": Split(x[:0], None), "test": Split(x[:0], None)}
    return DataSet(name, spec, splits, content.hexdigest())
