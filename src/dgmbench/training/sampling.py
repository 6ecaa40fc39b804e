"""Samples of a finished or interrupted run, as a picture to look at and an array to work with."""

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import CanReconstruct, CanSample, HasTemperature, IsClassConditional, Model
from dgmbench.training.build import build_model, find_device, load_data, load_weights
from dgmbench.training.files import read_checkpoint, write_atomically
from dgmbench.training.folder import RunFolder
from dgmbench.training.pictures import write_picture

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
) -> Tensor:
    """``n`` samples in data space (n, *shape), a function of the seed; ``label`` for class-conditional models.

    ``temperature`` is for models that have one; samples at another than 1 are not of the model's own distribution.
    """
    if not isinstance(model, CanSample):
        raise UserError(f"{type(model).__name__} does not draw samples: it has no sample(n) method.")
    if label is not None and not (isinstance(model, IsClassConditional) or getattr(model, "conditional", False)):
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
        parts.append(model.sample(count, labels, generator=generator))
    return torch.cat(parts)


def sample_run(
    run: Path,
    *,
    n: int = 64,
    seed: int = 0,
    checkpoint: str = "best",
    label: int | None = None,
    temperature: float | None = None,
    accelerator: str = "auto",
    data_root: Path | None = None,
) -> tuple[Path, Path]:
    """Write ``n`` samples of a run's checkpoint into its folder ``samples``: a PNG and an .npz with key ``x``.

    Returns the two paths. For a finished or an interrupted run alike.
    """
    if n < 1:
        raise UserError(f"n={n} must be at least 1.")
    if checkpoint not in ("best", "final"):
        raise UserError(f"checkpoint={checkpoint} must be best or final.")
    folder = RunFolder.existing(run)
    completed = folder.read_config()
    spec = load_data(completed, data_root).spec
    if label is not None and not 0 <= label < (spec.num_classes or 0):
        known = f"0 to {spec.num_classes - 1}" if spec.num_classes else "none: these data have no classes"
        raise UserError(f"label={label} is not a class of {completed['names']['data']} (classes: {known}).")
    device = find_device({"accelerator": accelerator})
    model = build_model(completed, spec).to(device)
    load_weights(model, read_checkpoint(folder.checkpoint(checkpoint)))
    x = draw(model, n, seed=seed, device=device, label=label, temperature=temperature)
    name = f"{checkpoint}-n{n}-s{seed}" + ("" if label is None else f"-y{label}")
    name += "" if temperature is None else f"-t{temperature:g}"
    picture, array = folder.samples / f"{name}.png", folder.samples / f"{name}.npz"
    write_picture(picture, x, spec)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=x.cpu().numpy())
    write_atomically(array, buffer.getvalue())
    return picture, array


def write_training_samples(path: Path, model: Model, spec: DataSpec, x: Tensor, *, seed: int, n: int = 64) -> None:
    """One picture at fixed latents during training: samples, or reconstructions of ``x`` where there are only those."""
    if isinstance(model, CanSample):
        write_picture(path, draw(model, n, seed=seed, device=x.device), spec)
    elif isinstance(model, CanReconstruct):
        again = model.reconstruct(x[: n // 2], generator=keyed_generator("reconstruct", seed, device=x.device))
        write_picture(path, torch.cat([x[: n // 2].float(), again]), spec)
