"""Samples of a finished or interrupted run: to look at, to listen to or to read, and an array to work with."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dgmbench.data import DataSet
from dgmbench.data.batches import evaluation_batches, joined, picked
from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.data.text import one_caption
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.models.conditions import under
from dgmbench.models.contract import (
    CanReconstruct,
    CanSample,
    Model,
)
from dgmbench.models.tasks import CanTruncate, FindsPaths
from dgmbench.runs.alignments import alignments, write_alignments
from dgmbench.runs.build import find_device, load_data
from dgmbench.runs.conditions import ROWS, samples_under, write_conditions
from dgmbench.runs.load import Run, draw, draw_sized, load_run
from dgmbench.runs.pictures import write_picture, write_predictions, write_samples
from dgmbench.runs.shows import SHOWN, predictions, shown_in_training
from dgmbench.runs.traversals import traversals, write_traversals
from dgmbench.training.files import write_atomically

MOST_NAME = 80  # characters of a caption in the name of a file


def sample_run(
    run: Path,
    *,
    n: int = 64,
    seed: int = 0,
    checkpoint: Literal["best", "final"] = "best",
    label: int | None = None,
    temperature: float | None = None,
    truncation: float | None = None,
    caption: str | None = None,
    size: Sequence[int] | None = None,
    show: str = "samples",
    accelerator: str = "auto",
    data_root: Path | None = None,
) -> tuple[Path, ...]:
    """Write ``n`` samples of a run's checkpoint into its folder ``samples``: a PNG and an .npz with key ``x``, and a
    .wav of sound or a .txt of text. Another ``show`` writes what the model makes of ``n`` test examples instead.
    With a ``truncation`` they are samples of less variety, of models that have one. With a ``caption``, all samples are
    drawn under it in place of the test examples' conditions; with a ``size`` [height, width] they are pictures of that
    size.

    Returns the paths, the picture's first and the array's last. For a finished or an interrupted run alike.
    """
    if n < 1:
        raise UserError(f"n={n} must be at least 1.")
    device = find_device({"accelerator": accelerator})
    found = load_run(run, checkpoint=checkpoint, device=device, data_root=data_root)
    spec, name = found.spec, f"{checkpoint}-n{n}-s{seed}"
    check_label(found, label)
    if caption is not None and show != "samples":
        raise UserError(f"caption= is for samples, and show={show} looks at test examples; leave one of them out.")
    if show != "samples":
        return _show(found, show, n, seed, data_root, found.path / "samples" / f"{name}-{show}")
    name += "" if label is None else f"-y{label}"
    name += "" if temperature is None else f"-t{temperature:g}"
    if size is not None:
        if any(each is not None for each in (label, temperature, truncation, caption)):
            raise UserError("size= goes without label=, temperature=, truncation= and caption=; leave these out.")
        height, width = size
        x = draw_sized(found.model, n, (height, width), seed=seed, device=device)
        target = found.path / "samples" / f"{name}-{height}x{width}"
        sized = replace(spec, shape=(spec.shape[0], height, width))
        return *write_samples(target.with_name(f"{target.name}.png"), x, sized), _write_array(target, {"x": x})
    if truncation is not None:
        if not isinstance(found.model, CanTruncate):
            raise UserError(
                f"truncation={truncation}: {type(found.model).__name__} does not draw samples at a truncation; leave "
                "it out."
            )
        found.model.truncate(truncation, keyed_generator("truncate", seed, device=device))
        name += f"-trunc{truncation:g}"
    target = found.path / "samples" / name
    if caption is not None:
        return _under_caption(found, caption, n, seed, temperature, target)
    chunks = conditions(found, seed=seed, data_root=data_root)
    own = None if chunks is None else chunks.beside
    x = draw(found.model, n, seed=seed, device=device, label=label, temperature=temperature, beside=own)
    written, arrays = write_samples(target.with_name(f"{name}.png"), x, spec), {"x": x}
    if chunks is not None and spec.given is not None:
        rows = chunks.beside(0, n).index
        (examples,) = evaluation_batches(chunks.data, "test", batch_size=n, device=device, rows=rows)
        assert examples.given is not None
        arrays |= {"given": examples.given, "truth": examples.x}
        few = picked(examples, torch.arange(min(ROWS, n)))
        assert isinstance(found.model, CanSample)
        every = samples_under(found.model, few, seed=seed, first=x[:ROWS])
        write_conditions(target.with_name(f"{name}.png"), few, every, spec)
    return *written, _write_array(target, arrays)


def _under_caption(
    found: Run, caption: str, n: int, seed: int, temperature: float | None, target: Path
) -> tuple[Path, ...]:
    """Samples under one sentence; the files' names end in its words."""
    if found.spec.given is None:
        raise UserError(f"caption={caption}: this model was trained on data without captions; leave caption out.")
    tokens = torch.from_numpy(one_caption(caption, found.spec.given)).to(found.device)

    def beside(start: int, count: int) -> Batch:
        return Batch(torch.empty(0, device=found.device), given=tokens.expand(count, -1))

    x = draw(found.model, n, seed=seed, device=found.device, temperature=temperature, beside=beside)
    words = "-".join(re.findall(r"\w+", caption.lower()))[:MOST_NAME]
    target = target.with_name(f"{target.name}-{words}")
    written = write_samples(target.with_name(f"{target.name}.png"), x, found.spec)
    return *written, _write_array(target, {"x": x, "given": tokens})


def conditions(found: Run, *, seed: int, data_root: Path | None) -> Chunks | None:
    """The test examples under whose conditions and lengths samples are drawn; None where these need neither."""
    if found.spec.given is None and not found.spec.lengths:
        return None
    return Chunks(_data(found, data_root), "test", seed=seed, device=found.device)


def _data(found: Run, data_root: Path | None) -> DataSet:
    """The data of a run, as they were written."""
    data = load_data(found.config, data_root)
    data.verify()
    return data


def check_label(found: Run, label: int | None) -> None:
    """Refuse a label that is not a class of the data."""
    classes = found.spec.num_classes
    if label is not None and not 0 <= label < (classes or 0):
        known = f"0 to {classes - 1}" if classes else "none: these data have no classes"
        raise UserError(f"label={label} is not a class of {found.config['names']['data']} (classes: {known}).")


def _show(found: Run, show: str, n: int, seed: int, data_root: Path | None, target: Path) -> tuple[Path, ...]:
    """What the model makes of ``n`` test examples, written as ``target`` with one ending or another."""
    data, picture = _data(found, data_root), target.with_name(f"{target.name}.png")
    examples = joined(list(Chunks(data, "test", seed=seed, limit=n, device=found.device).batches()))
    if len(examples.x) == 1:  # several looks at the only one
        examples = picked(examples, torch.zeros(min(n, ROWS), dtype=torch.int64))
    if show == "predictions":
        values = predictions(found.model, examples)
        return *write_predictions(picture, data.spec, values), _write_array(target, values)
    if show == "alignments":
        values = alignments(found.model, examples)
        return *write_alignments(picture, values, data.spec), _write_array(target, values)
    if show == "traversals":
        rows = traversals(found.model, examples, data.spec)
        return *write_traversals(picture, rows, data.spec), _write_array(target, {"x": rows.x, "values": rows.values})
    generator = keyed_generator(show, seed, device=found.device)
    made = SHOWN[show](found.model, examples, data.spec, generator)
    written = write_samples(picture, made.flatten(0, 1), data.spec, columns=made.shape[1])
    return *written, _write_array(target, {"x": made.flatten(0, 1)})


def _write_array(target: Path, values: Mapping[str, Tensor]) -> Path:
    array, buffer = target.with_name(f"{target.name}.npz"), io.BytesIO()
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
    elif isinstance(model, FindsPaths):
        write_alignments(path, alignments(model, picked(batch, torch.arange(min(n, len(batch.x))))), spec)
    elif (show := shown_in_training(model, batch)) is not None:
        few = picked(batch, torch.arange(min(n // 4, len(batch.x))))
        made = SHOWN[show](model, few, spec, keyed_generator(show, seed, device=device))
        write_picture(path, made.flatten(0, 1), spec, columns=made.shape[1])
