"""A trained run as an object: its model with the weights, its spec, what it was trained with and what it measured.

Only the run's folder is read, and nothing is locked: no data, also while the run goes on, from any folder or device.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dgmbench.config import run_name
from dgmbench.data import DataSet
from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.data.values import as_values
from dgmbench.errors import UserError
from dgmbench.models.conditions import under
from dgmbench.models.contract import CanSample, HasLogProb, HasTemperature, IsClassConditional, Model
from dgmbench.models.tasks import DrawsAnySize
from dgmbench.runs.build import build_model, find_device, load_data
from dgmbench.runs.folder import RunFolder
from dgmbench.runs.weights import load_own, weights_of

# Samples are drawn, and examples judged, this many at a time, which bounds the memory for any number.
BATCH = 500


@dataclass(frozen=True)
class Run:
    """What ``load_run`` gives.

    ``model`` is in eval mode with the weights of ``checkpoint``, their moving average if the run kept one. ``config``
    is the completed configuration; ``result`` what is in ``result.json``, or None while the run is not finished.
    """

    path: Path
    model: Model
    spec: DataSpec
    config: dict[str, Any]
    result: dict[str, Any] | None
    checkpoint: str
    device: torch.device
    images: int = 0
    """After how many images of training the weights are those."""
    data_hash: str = ""
    """The hash of the data's content."""

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        y: int | Tensor | None = None,
        temperature: float | None = None,
        given: Tensor | None = None,
        length: Tensor | None = None,
    ) -> Tensor:
        """``n`` samples as raw values (n, *shape) of the spec's dtype, a function of the seed.

        ``y`` is a label, or one for each sample (n,), of class-conditional models; ``given`` (n, *spec.given.shape) and
        ``length`` (n,) are what samples of conditional data and of sequences are drawn under.
        """
        whole = self._beside(n, given=given, length=length)

        def beside(start: int, count: int) -> Batch:
            return Batch(*(None if each is None else each[start : start + count] for each in whole))  # type: ignore[arg-type]

        needed = beside if self.spec.given is not None or self.spec.lengths else None
        return draw(self.model, n, seed=seed, device=self.device, label=y, temperature=temperature, beside=needed)

    @torch.no_grad()
    def log_prob(
        self,
        x: Tensor | np.ndarray,
        *,
        y: int | Tensor | None = None,
        given: Tensor | None = None,
        length: Tensor | None = None,
    ) -> Tensor:
        """The exact log-probability of raw values x (n, *shape), in nats, as (n,): p(x | y) where labels are given.

        Models that have a bound instead are refused in a sentence that names it: a bound is no log-probability.
        """
        if not isinstance(self.model, HasLogProb):
            others = [name for name in ("elbo", "log_weights", "log_prob_unnormalised") if hasattr(self.model, name)]
            instead = " and ".join(f"model.{name}" for name in others) or "no likelihood at all"
            raise UserError(f"{type(self.model).__name__} has no exact log-probability; it has {instead}.")
        x = as_values(x, self.spec).to(self.device)
        whole = self._beside(len(x), given=given, length=length)
        labels = _labels(self.model, y, len(x), self.device)
        parts = []
        for start in range(0, len(x), BATCH):
            some = slice(start, start + BATCH)
            own = under(self.model, Batch(*(None if each is None else each[some] for each in whole)))  # type: ignore[arg-type]
            parts.append(own.log_prob(x[some], **({} if labels is None else {"y": labels[some]})))
        return torch.cat(parts)

    def _beside(self, n: int, *, given: Tensor | None, length: Tensor | None) -> Batch:
        """Conditions and lengths for n examples, there if and only if the spec has them; the batch has no x."""
        for name, value, needed in (
            ("given", given, self.spec.given is not None),
            ("length", length, self.spec.lengths),
        ):
            if (value is not None) != needed:
                raise UserError(
                    f"These data have {'a' if needed else 'no'} {name} with every example: "
                    f"{f'name {name}=, one for each of the {n}' if needed else f'leave {name}= out'}."
                )
            if value is not None and len(value) != n:
                raise UserError(f"{name}= has {len(value)} rows, but there are {n} examples.")
        if given is not None and self.spec.given is not None:
            given = as_values(given, self.spec.given, "given").to(self.device)
        return Batch(torch.empty(n, 0), given=given, length=None if length is None else length.to(self.device))


def load_run(
    path: str | Path,
    *,
    checkpoint: Literal["best", "final"] = "best",
    device: str | torch.device = "auto",
    data_root: Path | None = None,
) -> Run:
    """The run in a folder that ``dgm train`` has made: ``load_run(DIR).sample(16)``.

    ``checkpoint`` is the one that was best on validation, or the last. ``data_root`` is only for runs of earlier
    versions, whose folders do not say what their data are like. A folder that ``dgm export what=weights`` has made is
    read as well.
    """
    if checkpoint not in ("best", "final"):
        raise UserError(f"checkpoint={checkpoint} must be best or final.")
    folder = RunFolder.existing(path)
    completed = folder.read_config()
    spec, data_hash = folder.read_spec() or _of_data(load_data(completed, data_root))
    where = find_device({"accelerator": "auto"}) if device == "auto" else torch.device(device)
    result = folder.read_result()
    trained_on = data_hash if result is None else result["data_hash"]
    weights = weights_of(folder, checkpoint, run_name(completed, trained_on), result)  # before anything large is built
    model = build_model(completed, spec).to(where)
    load_own(model, folder, checkpoint, weights)
    images = weights["dgmbench"]["clock"]["images"]
    return Run(folder.path, model, spec, completed, result, checkpoint, where, images, trained_on)


def _of_data(data: DataSet) -> tuple[DataSpec, str]:
    return data.spec, data.content_hash


@torch.no_grad()
def draw(
    model: Model,
    n: int,
    *,
    seed: int,
    device: torch.device,
    label: int | Tensor | None = None,
    temperature: float | None = None,
    beside: Callable[[int, int], Batch] | None = None,
) -> Tensor:
    """``n`` samples in data space (n, *shape), a function of the seed: all parts of ``draws`` in one."""
    return torch.cat(
        list(draws(model, n, seed=seed, device=device, label=label, temperature=temperature, beside=beside))
    )


@torch.no_grad()
def draws(
    model: Model,
    n: int,
    *,
    seed: int,
    device: torch.device,
    label: int | Tensor | None = None,
    temperature: float | None = None,
    beside: Callable[[int, int], Batch] | None = None,
) -> Iterator[Tensor]:
    """``n`` samples in data space, some at a time (., *shape); ``label``, or one for each sample (n,), for
    class-conditional models.

    ``beside(start, count)`` gives the conditions and lengths of so many samples, for models that take them.

    ``temperature`` is for models that have one; samples at another than 1 are not of the model's own distribution.
    """
    if n < 1:
        raise UserError(f"n={n} must be at least 1.")
    if not isinstance(model, CanSample):
        raise UserError(
            f"{type(model).__name__} does not draw samples: it has no sample(n) method. "
            "Another show= may suit it: reconstructions, translations, enhanced, predictions."
        )
    labels = _labels(model, label, n, device)
    if temperature is not None and not isinstance(model, HasTemperature):
        raise UserError(
            f"temperature={temperature}: {type(model).__name__} does not draw at a temperature; leave it out."
        )
    with _at(model, temperature):
        for index, start in enumerate(range(0, n, BATCH)):
            count = min(BATCH, n - start)
            generator = keyed_generator("sample", seed, index, device=device)
            own = model if beside is None else under(model, beside(start, count))
            some = None if labels is None else labels[start : start + count]
            yield own.sample(count, some, generator=generator)


@torch.no_grad()
def draw_sized(model: Model, n: int, size: tuple[int, int], *, seed: int, device: torch.device) -> Tensor:
    """``n`` pictures (n, c, height, width), of a model that draws them of any size; a function of the seed."""
    if not isinstance(model, DrawsAnySize):
        raise UserError(
            f"size=[{size[0]},{size[1]}]: {type(model).__name__} draws pictures of the data's size; leave size out."
        )
    generator = keyed_generator("sample", seed, 0, device=device)
    return torch.cat([model.sample_sized(1, size, generator=generator) for _ in range(n)])  # large ones: one at a time


def _labels(model: Model, y: int | Tensor | None, n: int, device: torch.device) -> Tensor | None:
    """A label for each of n examples, (n,) int64."""
    if y is None:
        return None
    if not isinstance(model, IsClassConditional):
        raise UserError(f"label={y}: {type(model).__name__} was not trained on labels; leave label out.")
    labels = torch.as_tensor(y, device=device).to(torch.int64)
    if labels.dim() == 0:
        labels = labels.expand(n)
    classes = len(model.class_log_prior)
    if labels.shape != (n,) or labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"label={y} must be a class from 0 to {classes - 1}, or one for each of {n} examples.")
    return labels


@contextlib.contextmanager
def _at(model: object, temperature: float | None) -> Iterator[None]:
    """The model at a temperature meanwhile."""
    if temperature is None:
        yield
        return
    assert isinstance(model, HasTemperature)
    before, model.temperature = model.temperature, temperature
    try:
        yield
    finally:
        model.temperature = before
