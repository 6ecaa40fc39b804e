"""What every dimension of a code stands for: one example decoded while one dimension runs through its values."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.conditions import under
from dgmbench.models.contract import CanDecode, CanEncode, Model
from dgmbench.runs.pictures import image_grid, write_samples
from dgmbench.training.files import write_atomically

# Pictures from one end of a dimension to the other, the share of examples beyond either end, and dimensions shown.
STEPS, BEYOND, MOST = 9, 0.05, 16
STILL = 0.05  # of the largest change, below which a dimension says nothing


class Traversals(NamedTuple):
    """Rows of decoded examples (rows, STEPS, *shape), and what each row varies; the dimension that changes most first.

    ``values`` (rows, STEPS) are those of the dimension.
    """

    x: Tensor
    names: list[str]
    values: Tensor


@torch.no_grad()
def traversals(model: Model, batch: Batch, spec: DataSpec) -> Traversals:
    """The first example's code with one dimension at a time between the quantiles of all examples (n, *shape).

    A row is named after its dimension and, where the factors of the data are known, the one that explains most of it,
    or called unused if it changes next to nothing.
    """
    if not (isinstance(model, CanEncode) and isinstance(model, CanDecode)):
        raise UserError(f"{type(model).__name__} has no traversals: it lacks encode(x) or decode(code).")
    if len(batch.x) < 2:
        raise UserError("A traversal needs the codes of several examples: n must be at least 2.")
    codes = under(model, batch).encode(batch.x)
    if codes.dim() != 2:
        raise UserError(f"Traversals are of codes that are vectors, and one here has shape {tuple(codes.shape[1:])}.")
    dims = codes.shape[1]
    ends = torch.quantile(codes, codes.new_tensor([BEYOND, 1 - BEYOND]), dim=0)
    share = torch.linspace(0, 1, STEPS, device=codes.device, dtype=codes.dtype)
    values = torch.lerp(ends[0][:, None], ends[1][:, None], share)
    every = codes[0].repeat(dims, STEPS, 1)
    every[torch.arange(dims), :, torch.arange(dims)] = values
    beside = {name: each for name, each in batch._asdict().items() if each is not None}
    first = batch._replace(**{n: each[:1].expand(dims * STEPS, *each.shape[1:]) for n, each in beside.items()})
    x = under(model, first).decode(every.flatten(0, 1)).unflatten(0, (dims, STEPS))
    change = (x.double() - x.double().mean(1, keepdim=True)).abs().flatten(1).mean(1)
    order = change.argsort(descending=True, stable=True)[:MOST]
    names = explained(codes, batch.y, spec)
    used = (change > STILL * change.max()).tolist()
    return Traversals(x[order], [names[i] if used[i] else f"z{i} unused" for i in order.tolist()], values[order])


def explained(codes: Float[Tensor, "n d"], y: Tensor | None, spec: DataSpec) -> list[str]:
    """The name of every dimension, with the factor that explains the most of its variance, if factors are known."""
    names = [f"z{i}" for i in range(codes.shape[1])]
    if spec.factors is None or y is None or not bool((y >= 0).all()):
        return names
    sizes = [size for _, size in spec.factors]
    factors = np.unravel_index(y.cpu().numpy(), sizes)
    shares = np.stack([variance_explained(codes.double().cpu().numpy(), factor) for factor in factors])
    best = shares.argmax(0)
    return [f"{name} {spec.factors[best[i]][0]} {shares[best[i], i]:.2f}" for i, name in enumerate(names)]


def variance_explained(codes: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The share of each dimension's variance that lies between the means of the factor's values; 0 of a constant."""
    total = codes.var(0)
    means = np.stack([codes[factor == value].mean(0) for value in np.unique(factor)])
    counts = np.unique(factor, return_counts=True)[1]
    between = (counts[:, None] * (means - codes.mean(0)) ** 2).sum(0) / len(codes)
    return np.where(total > 0, between / np.where(total > 0, total, 1.0), 0.0)


def write_traversals(picture: Path, found: Traversals, spec: DataSpec) -> list[Path]:
    """Write the rows as a picture, images with their names beside them, and the names as text; returns the paths."""
    names = picture.with_suffix(".names.txt")
    write_atomically(names, "".join(name + "\n" for name in found.names).encode())
    if not spec.is_image:
        return [*write_samples(picture, found.x.flatten(0, 1), spec, columns=STEPS), names]
    from matplotlib.figure import Figure

    rows = len(found.names)
    figure = Figure(figsize=(9, 0.95 * rows + 0.1), layout="constrained")
    places = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for place, row, name in zip(places, found.x, found.names, strict=True):
        place.imshow(image_grid(row, spec, STEPS), cmap="gray", interpolation="nearest", vmin=0, vmax=255)
        place.set_xticks([])
        place.set_yticks([])
        place.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")  # constrained layout leaves no room for names
    write_atomically(picture, buffer.getvalue())
    return [picture, names]
