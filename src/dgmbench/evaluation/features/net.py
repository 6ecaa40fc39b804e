"""What a feature net is: a fixed map of raw values to vectors, with a name and a hash that numbers are stored with."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgmbench.data import DataSet, DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.scaling import Scaling

Note = Callable[[str], None]


class FeatureNet(nn.Module):
    """Base of the feature nets. A subclass takes the ``DataSpec`` and keyword-only settings, and defines ``features``.

    ``prepare`` is called once, before anything else, with the data set that is measured and a folder to keep things in
    (None: keep nothing). From then on the net does not change.
    """

    name: str
    settings: Mapping[str, Any]

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec
        self.scaling = Scaling(spec, low=0.0, high=1.0)
        self.name, self.settings = type(self).__name__.lower(), {}
        self._hash: str | None = None

    def require(self, data: DataSet, folder: Path | None) -> None:
        """Refuse data and folders that lack what ``prepare`` needs; also asked before a model is trained."""

    def prepare(self, data: DataSet, folder: Path | None, note: Note) -> None:
        """Find or make the weights."""

    def features(self, x: Tensor) -> Tensor:
        """Features (b, d) of values x (b, *shape), scaled to [0, 1] where the data are bounded."""
        raise NotImplementedError(f"{type(self).__name__} must define features(x)")

    def logits(self, features: Tensor) -> Tensor | None:
        """Class logits (b, classes) that belong to features (b, d), if the net is a classifier."""
        return None

    def label(self, measure: str, variant: str = "") -> str:
        """The name of a measure on these features: ``fd_random_conv``, ``fd_random_conv_train``."""
        return f"{self.name}_score" if measure == "score" else f"{measure}_{self.name}{variant and '_'}{variant}"

    def forward(self, x: Tensor) -> Tensor:
        """Features (b, d) of raw values x (b, *shape); refuses values that are not in the space of the data."""
        self.check(x)
        return self.features(self.scaling(x))

    def check(self, x: Tensor) -> None:
        """Refuse values that are no raw values of the data."""
        spec = self.spec
        if tuple(x.shape[1:]) != spec.shape or x.dtype != spec.dtype:
            raise UserError(
                f"These are {x.dtype} values of shape {tuple(x.shape[1:])}, but the data are {spec} ({spec.dtype}); "
                "samples must be raw values of the data's space."
            )
        if spec.levels is not None and x.numel() and int(x.max()) >= spec.levels:
            raise UserError(f"A value is {int(x.max())}, but the data have the levels 0 ... {spec.levels - 1}.")
        if x.is_floating_point() and not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x.flatten(1)).all(1)).sum())
            raise UserError(f"{bad} of {len(x)} examples have values that are not finite.")

    @property
    def hash(self) -> str:
        """sha256 over the class, the settings and all weights."""
        if self._hash is None:
            content = hashlib.sha256(json.dumps([_path(self), self.name, dict(self.settings)], sort_keys=True).encode())
            for key, value in sorted(self.state_dict().items()):
                content.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
                content.update(value.detach().cpu().contiguous().numpy().tobytes())
            self._hash = content.hexdigest()
        return self._hash

    def record(self) -> dict[str, Any]:
        """What a protocol says about the net."""
        return {"net": self.name, "net_hash": self.hash[:16], "net_settings": dict(self.settings)}


def _path(net: nn.Module) -> str:
    return f"{type(net).__module__}.{type(net).__qualname__}"


class Own(FeatureNet):
    """Any other ``nn.Module``: it gets values scaled to [0, 1], (b, *shape) float32, and returns (b, d)."""

    def __init__(self, spec: DataSpec, module: nn.Module) -> None:
        super().__init__(spec)
        self.module = module.eval()
        self.name = type(module).__name__.lower()

    def features(self, x: Tensor) -> Tensor:
        """The module's output."""
        found: Tensor = self.module(x)
        if found.ndim != 2 or len(found) != len(x):
            raise UserError(
                f"The feature net {_path(self.module)} returned shape {tuple(found.shape)} for {len(x)} examples; "
                "it must return (n, d)."
            )
        return found.float()


class Standardised(FeatureNet):
    """Base of nets that see values around 0: 2x - 1 of bounded data, else standardised by the training data."""

    shift: Tensor
    unit: Tensor

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        middle = 0.5 if self.scaling.bounded else 0.0
        self.register_buffer("shift", torch.full(spec.shape, middle))
        self.register_buffer("unit", torch.full(spec.shape, middle or 1.0))

    def prepare(self, data: DataSet, folder: Path | None, note: Note) -> None:
        """Take the moments of unbounded data."""
        if not self.scaling.bounded:
            x = torch.from_numpy(data.splits["train"].x[:10_000].copy()).double()
            scale = x.std(0, unbiased=False)
            self.shift.copy_(x.mean(0))
            self.unit.copy_(torch.where(scale > 0, scale, 1.0))

    def standardised(self, x: Tensor) -> Tensor:
        """Values (b, *shape) around 0."""
        return (x - self.shift) / self.unit
