"""Samples of a finished or interrupted run: to look at, to listen to or to read, and an array to work with."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from dgmbench.data.batches import evaluation_batches, joined, picked
from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.models.conditions import under
from dgmbench.models.contract import (
    CanComplete,
    CanDecode,
    CanEncode,
    CanReconstruct,
    CanSample,
    HasTemperature,
    IsClassConditional,
    Model,
)
from dgmbench.runs.build import build_model, find_device, load_data, load_weights
from dgmbench.runs.conditions import ROWS, samples_under, write_conditions
from dgmbench.runs.folder import RunFolder
from dgmbench.runs.pictures import write_picture, write_samples
from dgmbench.training.files import read_checkpoint, write_atomically

# Samples are drawn this many at a time, which bounds the memory for any n.
SAMPLE_BATCH = 500
# Pictures from one example to the next, ends included, and draws of what completes one.
STEPS, DRAWS = 10, 6


@torch.no_grad()
def draw(
    model: Model,
    n: int,
    *,
    seed: int,
    device: torch.device,
    label: int | None = None,
    temperature: float | None = None,
    beside: Callable[[int, int], Batch] | None = None,
) -> Tensor:
    """``n`` samples in data space (n, *shape), a function of the seed; ``label`` for class-conditional models.

    ``beside(start, count)`` gives the conditions and lengths of so many samples, for models that take them.

    ``temperature`` is for models that have one; samples at another than 1 are not of the model's own distribution.
    """
    if not isinstance(model, CanSample):
        raise UserError(f"{type(model).__name__} does not draw samples: it has no sample(n) method.")
    if label is not None and not isinstance(model, IsClassConditional):
        raise UserError(f"label={label}: {type(model).__name__} was not trained on labels; leave label out.")
    if temperature is not None:
        if not isinstance(model, HasTemperature):
            raise UserError(
                f"temperature={temperature}: {type(model).__name__} does not draw at a temperature; leave it out."
            )
        model.temperature = temperature
    parts = []
    for index, start in enumerate(range(0, n, SAMPLE_BATCH)):
        count = min(SAMPLE_BATCH, n - start)
        labels = None if label is None else torch.full((count,), label, device=device)
        generator = keyed_generator("sample", seed, index, device=device)
        own = model if beside is None else under(model, beside(start, count))
        parts.append(own.sample(count, labels, generator=generator))
    return torch.cat(parts)


@torch.no_grad()
def reconstructions(model: Model, batch: Batch, generator: Generator) -> Tensor:
    """Examples (n, *shape) and beside each its reconstruction, (n, 2, *shape) on the raw scale."""
    if not isinstance(model, CanReconstruct):
        raise UserError(f"{type(model).__name__} does not reconstruct: it has no reconstruct(x) method.")
    again = under(model, batch).reconstruct(batch.x, generator=generator)
    return torch.stack([batch.x.to(again.dtype), again], 1)


@torch.no_grad()
def interpolations(model: Model, batch: Batch, generator: Generator) -> Tensor:
    """From each example (n, *shape) to the next in equal steps between their codes, (n, STEPS, *shape)."""
    if not (isinstance(model, CanEncode) and isinstance(model, CanDecode)):
        raise UserError(f"{type(model).__name__} does not interpolate: it lacks encode(x) or decode(code).")
    if len(batch.x) < 2:
        raise UserError("An interpolation needs two examples: n must be at least 2.")
    start = under(model, batch).encode(batch.x)
    share = torch.linspace(0, 1, STEPS, device=start.device, dtype=start.dtype)
    share = share.view(1, -1, *[1] * (start.dim() - 1))
    codes = torch.lerp(start[:, None], start.roll(-1, 0)[:, None], share)
    every = picked(
        batch, torch.arange(len(batch.x)).repeat_interleave(STEPS)
    )  # each example's own condition all the way
    return under(model, every).decode(codes.flatten(0, 1)).unflatten(0, (len(batch.x), STEPS))


@torch.no_grad()
def completions(model: Model, batch: Batch, generator: Generator) -> Tensor:
    """Examples (n, *shape), their first half alone (the upper one of images), and draws of the rest given it.

    Returns (n, 2 + DRAWS, *shape).
    """
    if not isinstance(model, CanComplete):
        raise UserError(f"{type(model).__name__} does not complete: it has no complete(x, known) method.")
    x, own = batch.x, under(model, batch)
    rows = x.shape[2] if x.dim() == 4 else x.shape[1]
    first = torch.arange(rows, device=x.device) < (rows + 1) // 2
    known = (first[:, None] if x.dim() == 4 else first).expand_as(x)
    drawn = [own.complete(x, known, generator=generator) for _ in range(DRAWS)]
    return torch.stack([x, torch.where(known, x, torch.zeros_like(x)), *drawn], 1)


Show = Callable[[Model, Batch, Generator], Tensor]
SHOWN: dict[str, Show] = {
    "reconstructions": reconstructions,
    "interpolations": interpolations,
    "completions": completions,
}


def sample_run(
    run: Path,
    *,
    n: int = 64,
    seed: int = 0,
    checkpoint: str = "best",
    label: int | None = None,
    temperature: float | None = None,
    show: str = "samples",
    accelerator: str = "auto",
    data_root: Path | None = None,
) -> tuple[Path, ...]:
    """Write ``n`` samples of a run's checkpoint into its folder ``samples``: a PNG and an .npz with key ``x``, and a
    .wav of sound or a .txt of text. Another ``show`` writes what the model makes of ``n`` test examples instead.

    Returns the paths, the picture's first and the array's last. For a finished or an interrupted run alike.
    """
    if n < 1:
        raise UserError(f"n={n} must be at least 1.")
    if checkpoint not in ("best", "final"):
        raise UserError(f"checkpoint={checkpoint} must be best or final.")
    folder = RunFolder.existing(run)
    completed = folder.read_config()
    data = load_data(completed, data_root)
    spec = data.spec
    if label is not None and not 0 <= label < (spec.num_classes or 0):
        known = f"0 to {spec.num_classes - 1}" if spec.num_classes else "none: these data have no classes"
        raise UserError(f"label={label} is not a class of {completed['names']['data']} (classes: {known}).")
    device = find_device({"accelerator": accelerator})
    model = build_model(completed, spec).to(device)
    load_weights(model, read_checkpoint(folder.checkpoint(checkpoint)))
    name, columns = f"{checkpoint}-n{n}-s{seed}", None
    arrays: dict[str, Tensor] = {}
    chunks = Chunks(data, "test", seed=seed, limit=None if show == "samples" else n, device=device)
    if show == "samples":
        beside = chunks.beside if spec.given is not None or spec.lengths else None
        x = draw(model, n, seed=seed, device=device, label=label, temperature=temperature, beside=beside)
        name += "" if label is None else f"-y{label}"
        name += "" if temperature is None else f"-t{temperature:g}"
    else:
        examples = joined(list(chunks.batches()))
        made = SHOWN[show](model, examples, keyed_generator(show, seed, device=device))
        x, columns, name = made.flatten(0, 1), made.shape[1], f"{name}-{show}"
    picture, array = folder.samples / f"{name}.png", folder.samples / f"{name}.npz"
    written = write_samples(picture, x, spec, columns=columns)
    if show == "samples" and spec.given is not None:
        rows = chunks.beside(0, n).index
        (examples,) = evaluation_batches(data, "test", batch_size=n, device=device, rows=rows)
        assert examples.given is not None
        arrays = {"given": examples.given, "truth": examples.x}
        few = picked(examples, torch.arange(min(ROWS, n)))
        assert isinstance(model, CanSample)
        write_conditions(picture, few, samples_under(model, few, seed=seed, first=x[:ROWS]), spec)
    buffer = io.BytesIO()
    values: dict[str, Any] = {"x": x.cpu().numpy()} | {key: value.cpu().numpy() for key, value in arrays.items()}
    np.savez_compressed(buffer, **values)
    write_atomically(array, buffer.getvalue())
    return *written, array


def write_training_samples(path: Path, model: Model, spec: DataSpec, batch: Batch, *, seed: int, n: int = 64) -> None:
    """Samples at fixed latents during training, under the conditions of these examples if there are any; or
    reconstructions of them where there are only those.
    """
    if isinstance(model, CanSample) and batch.given is not None:
        few = picked(batch, torch.arange(min(ROWS, len(batch.x))))
        write_conditions(path, few, samples_under(model, few, seed=seed), spec)
    elif isinstance(model, CanSample):
        beside = (
            None
            if batch.length is None
            else (lambda start, count: picked(batch, torch.arange(start, start + count) % len(batch.x)))
        )
        write_samples(path, draw(model, n, seed=seed, device=batch.x.device, beside=beside), spec)
    elif isinstance(model, CanReconstruct):
        few, generator = (
            picked(batch, torch.arange(min(n // 2, len(batch.x)))),
            keyed_generator("reconstruct", seed, device=batch.x.device),
        )
        again = under(model, few).reconstruct(few.x, generator=generator)
        write_picture(path, torch.cat([few.x.to(again.dtype), again]), spec)
