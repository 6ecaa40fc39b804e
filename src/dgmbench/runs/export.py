"""Many samples of a run for other programs: a picture each, or one .npz file, written as they are drawn."""

import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.data.values import as_bytes
from dgmbench.errors import UserError
from dgmbench.evaluation.parts import Note
from dgmbench.runs.build import find_device
from dgmbench.runs.load import draws, load_run
from dgmbench.runs.progress import spinner
from dgmbench.runs.sampling import check_label, conditions
from dgmbench.training.files import disk_errors

Form = Literal["images", "npz"]


def export_run(
    run: Path,
    *,
    n: int,
    seed: int = 0,
    checkpoint: Literal["best", "final"] = "best",
    label: int | None = None,
    form: Form | None = None,
    to: Path | None = None,
    accelerator: str = "auto",
    data_root: Path | None = None,
) -> Path:
    """Write ``n`` samples, as pictures where they are images unless ``form`` says otherwise, and return where.

    By default below the run's folder ``exports``. Nothing is there under its name until all of it is.
    """
    found = load_run(run, checkpoint=checkpoint, device=find_device({"accelerator": accelerator}), data_root=data_root)
    check_label(found, label)
    drawable = found.spec.is_image and found.spec.levels is not None and found.spec.shape[0] in (1, 3)
    form = form or ("images" if drawable else "npz")
    if form == "images" and not drawable:
        raise UserError(f"form=images: samples of {found.spec} are no pictures of 1 or 3 channels; take form=npz.")
    name = f"{checkpoint}-n{n}-s{seed}" + ("" if label is None else f"-y{label}")
    target = to or found.path / "exports" / (name if form == "images" else f"{name}.npz")
    if target.exists():
        raise UserError(f"{target} exists already; remove it, or name another by to=PATH.")
    examples = conditions(found, seed=seed, data_root=data_root)
    own = None if examples is None else examples.beside
    parts = draws(found.model, n, seed=seed, device=found.device, label=label, beside=own)
    partial = target.with_name(f".{target.name}.partial")
    with disk_errors(target), spinner(enabled=True) as note:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            (_write_pictures if form == "images" else _write_npz)(partial, _noted(parts, n, note), n, found.spec)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            partial.unlink(missing_ok=True)
    return target


def _noted(parts: Iterable[Tensor], n: int, note: Note) -> Iterable[Tensor]:
    """The parts, with a word on how far the drawing has come."""
    done = 0
    for part in parts:
        done += len(part)
        note(f"sample {done:,} of {n:,}")
        yield part.cpu()


def _write_pictures(folder: Path, parts: Iterable[Tensor], n: int, spec: DataSpec) -> None:
    from PIL import Image

    folder.mkdir()
    number, digits = 0, max(6, len(str(n - 1)))
    for part in parts:
        for pixels in as_bytes(part, spec).permute(0, 2, 3, 1).numpy():
            Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
                folder / f"{number:0{digits}}.png"
            )
            number += 1


def _write_npz(file: Path, parts: Iterable[Tensor], n: int, spec: DataSpec) -> None:
    """An .npz with the raw values as ``x`` (n, *shape), never all of them in memory."""
    dtype = np.dtype(str(spec.dtype).removeprefix("torch."))
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n, *spec.shape)}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w", force_zip64=True) as x:
        np.lib.format.write_array_header_1_0(x, header)
        for part in parts:
            x.write(np.ascontiguousarray(part.numpy(), dtype).tobytes())
