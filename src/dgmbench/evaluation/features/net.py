"""What a feature net is: a fixed map of raw values to vectors, with a name and a hash that numbers are stored with."""

import hashlib
import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dgmbench.config.feature_nets import default_name
from dgmbench.config.targets import dotted
from dgmbench.data import DataSet, DataSpec, evaluation_batches
from dgmbench.data.random import keyed_generator
from dgmbench.errors import UserError
from dgmbench.nn.scaling import Scaling
from dgmbench.source import hash_of_files, source_files

Note = Callable[[str], None]

# A dry run sees this many examples of the data, and as many random values where there are levels.
TRIED = 8
# Another batch may change features by this share of the largest: rounding in half precision is less, a dropped unit
# or a mean over the batch is more.
SAME = 0.03
MOMENTS = 10_000  # examples whose moments standardise unbounded data


class FeatureNet(nn.Module):
    """Base of the feature nets. A subclass takes the ``DataSpec`` and keyword-only settings, and defines ``features``.

    ``prepare`` is called once, before anything else, with the data set that is measured and a folder to keep things in
    (None: keep nothing). From then on the net does not change.
    """

    name: str
    settings: Mapping[str, Any]
    target: str
    """The dotted name of what made the net: its class, or the class or function that made a module of the user's."""
    NO_CONTENT: ClassVar[tuple[str, ...]] = ()
    """Settings that say where weights are found, not what they are: no part of settings, hash and record."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec
        self.scaling = Scaling(spec, low=0.0, high=1.0)
        self.name, self.settings, self.target = default_name(type(self)), {}, dotted(type(self))
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
        """Features (b, d) of raw values x (b, *shape); refuses values that are not in the space of the data, and
        features that are no numbers.
        """
        self.check(x)
        found = self.features(self.scaling(x))
        if not isinstance(found, Tensor):
            raise UserError(f"{self.who} returned a {type(found).__name__}; it must return one tensor (n, d).")
        if found.ndim != 2 or len(found) != len(x) or not found.shape[1] or found.is_complex():
            kind = "complex values of shape" if found.is_complex() else "shape"
            raise UserError(
                f"{self.who} returned {kind} {tuple(found.shape)} for {len(x)} examples; it must return (n, d)."
            )
        if bad := int((~torch.isfinite(found).all(1)).sum()):
            raise UserError(f"{self.who} gives features that are not finite for {bad} of {len(x)} examples.")
        return found

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

    @torch.no_grad()
    def try_out(self, data: DataSet) -> None:
        """Refuse a net that is no fixed map of single examples to numbers that tell examples apart, by a dry run."""
        device = next((value.device for value in itertools.chain(self.parameters(), self.buffers())), None)
        x = next(iter(evaluation_batches(data, "train", batch_size=TRIED, device=device or torch.device("cpu")))).x
        if self.scaling.bounded:
            generator = keyed_generator("dry run", device=x.device)
            some = torch.randint(self.spec.levels or 2, (TRIED, *x.shape[1:]), generator=generator, device=x.device)
            x = torch.cat([x, some.to(x.dtype)])
        found = self(x)
        half = self(x[: max(1, len(x) // 2)])
        if half.shape[1] != found.shape[1] or float((half - found[: len(half)]).abs().max()) > SAME * float(
            found.abs().max()
        ):
            raise UserError(
                f"{self.who} gives the same examples other features in another batch; it must be a fixed map of single "
                "examples, without noise and without statistics of the batch."
            )
        if len(x.flatten(1).unique(dim=0)) > 1 and bool((found == found[0]).all()):
            raise UserError(f"{self.who} gives {len(x)} different examples the same features.")

    @property
    def who(self) -> str:
        """The net in a sentence."""
        return f"The feature net {self.name} ({self.target})"

    def made_of(self) -> tuple[Callable[..., Any], ...]:
        """The classes and functions whose code features depend on."""
        return (type(self),)

    @property
    def source(self) -> str:
        """16 hex digits for the files of that code and what they import of the mathematics and from beside them."""
        return hash_of_code(self.made_of())

    def state(self) -> Iterator[tuple[str, Any]]:
        """All that was learnt, drawn or read: parameters and buffers, also buffers that are not saved."""
        saved = self.state_dict()
        yield from saved.items()
        yield from ((name, value) for name, value in self.named_buffers() if name not in saved)

    @property
    def hash(self) -> str:
        """sha256 over the name, the class and its source code, the settings and all weights."""
        if self._hash is None:
            known = [self.name, self.target, self.source, dict(self.settings)]
            content = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
            for key, value in sorted(self.state(), key=lambda item: item[0]):
                if isinstance(value, Tensor):
                    flat = value.detach().cpu().contiguous().reshape(-1)
                    content.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
                    content.update(flat.view(torch.uint8).numpy().data)  # numpy knows no bfloat16
                else:
                    content.update(f"{key} {value!r}\n".encode())
            self._hash = content.hexdigest()
        return self._hash

    def record(self) -> dict[str, Any]:
        """What a protocol says about the net."""
        return {
            "net": self.name,
            "net_class": self.target,
            "net_source": self.source,
            "net_settings": dict(self.settings),
            "net_hash": self.hash[:16],
        }


@cache
def hash_of_code(kinds: tuple[Callable[..., Any], ...]) -> str:
    """16 hex digits for source files, read once: what is edited while a long training runs is not what was imported."""
    files = [file for kind in kinds for file in source_files(Path(inspect.getfile(kind)))]
    return hash_of_files(tuple(dict.fromkeys(files)))


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
            n = data.size("train")  # spread over all of them, because some sets are sorted
            some = np.linspace(0, n - 1, min(n, MOMENTS)).round().astype(np.int64)
            x = torch.from_numpy(data.splits["train"].x[some]).double()
            scale = x.std(0, unbiased=False)
            self.shift.copy_(x.mean(0))
            self.unit.copy_(torch.where(scale > 0, scale, 1.0))

    def standardised(self, x: Tensor) -> Tensor:
        """Values (b, *shape) around 0."""
        return (x - self.shift) / self.unit
