"""Samples of a finished or interrupted run: to look at, to listen to or to read, and an array to work with."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgmbench.config import run_name
from dgmbench.data.batches import evaluation_batches, joined, picked
from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.models.conditions import under
from dgmbench.models.contract import (
    CanReconstruct,
    CanSample,
    HasTemperature,
    IsClassConditional,
    Model,
)
from dgmbench.runs.build import build_model, find_device, load_data
from dgmbench.runs.conditions import ROWS, samples_under, write_conditions
from dgmbench.runs.folder import RunFolder
from dgmbench.runs.pictures import write_picture, write_predictions, write_samples
from dgmbench.runs.shows import SHOWN, predictions, shown_in_training
from dgmbench.runs.weights import load_own, weights_of
from dgmbench.training.files import write_atomically

# Samples are drawn this many at a time, which bounds the memory for any n.
SAMPLE_BATCH = 500


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
        raise UserError(
            f"{type(model).__name__} does not draw samples: it has no sample(n) method. "
            "Another show= may suit it: reconstructions, translations, enhanced, predictions."
        )
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
    result = folder.read_result()
    trained_on = data.content_hash if result is None else result["data_hash"]
    data.verify()
    weights = weights_of(folder, checkpoint, run_name(completed, trained_on), result)
    model = build_model(completed, spec).to(device)
    load_own(model, folder, checkpoint, weights)
    name, columns = f"{checkpoint}-n{n}-s{seed}", None
    chunks = Chunks(data, "test", seed=seed, limit=None if show == "samples" else n, device=device)
    if show == "samples":
        beside = chunks.beside if spec.given is not None or spec.lengths else None
        x = draw(model, n, seed=seed, device=device, label=label, temperature=temperature, beside=beside)
        name += "" if label is None else f"-y{label}"
        name += "" if temperature is None else f"-t{temperature:g}"
    else:
        examples, name = joined(list(chunks.batches())), f"{name}-{show}"
        generator = keyed_generator(show, seed, device=device)
        if show == "predictions":
            found = predictions(model, examples)
            written = write_predictions(folder.samples / f"{name}.png", spec, found)
            return *written, _write_array(folder.samples / f"{name}.npz", found)
        made = SHOWN[show](model, examples, spec, generator)
        x, columns = made.flatten(0, 1), made.shape[1]
    picture = folder.samples / f"{name}.png"
    written = write_samples(picture, x, spec, columns=columns)
    arrays = {"x": x}
    if show == "samples" and spec.given is not None:
        rows = chunks.beside(0, n).index
        (examples,) = evaluation_batches(data, "test", batch_size=n, device=device, rows=rows)
        assert examples.given is not None
        arrays |= {"given": examples.given, "truth": examples.x}
        few = picked(examples, torch.arange(min(ROWS, n)))
        assert isinstance(model, CanSample)
        write_conditions(picture, few, samples_under(model, few, seed=seed, first=x[:ROWS]), spec)
    return *written, _write_array(folder.samples / f"{name}.npz", arrays)


def _write_array(array: Path, values: Mapping[str, Tensor]) -> Path:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {key: value.cpu().numpy() for key, value in values.items()}
    np.savez_compressed(buffer, **arrays)
    write_atomically(array, buffer.getvalue())
    return array


def write_training_samples(path: Path, model: Model, spec: DataSpec, batch: Batch, *, seed: int, n: int = 64) -> None:
    """Samples at fixed latents during training, under the conditions of these examples if there are any; of a model
    without samples, what it makes of the first examples.
    """
    device = batch.x.device
    if isinstance(model, CanSample) and batch.given is not None:
        few = picked(batch, torch.arange(min(ROWS, len(batch.x))))
        write_conditions(path, few, samples_under(model, few, seed=seed), spec)
    elif isinstance(model, CanSample):

        def beside(start: int, count: int) -> Batch:
            return picked(batch, torch.arange(start, start + count) % len(batch.x))

        lengths = None if batch.length is None else beside
        write_samples(path, draw(model, n, seed=seed, device=device, beside=lengths), spec)
    elif isinstance(model, CanReconstruct):
        few = picked(batch, torch.arange(min(n // 2, len(batch.x))))
        again = under(model, few).reconstruct(few.x, generator=keyed_generator("reconstruct", seed, device=device))
        write_picture(path, torch.cat([few.x.to(again.dtype), again]), spec)
    elif (show := shown_in_training(model, batch)) is not None:
        few = picked(batch, torch.arange(min(n // 4, len(batch.x))))
        made = SHOWN[show](model, few, spec, keyed_generator(show, seed, device=device))
        write_picture(path, made.flatten(0, 1), spec, columns=made.shape[1])
