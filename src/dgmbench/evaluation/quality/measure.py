"""The parts of the evaluation that look at what a model makes: reconstructions and samples."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from dgmbench.data.random import keyed_generator
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import Context, Found, Note
from dgmbench.evaluation.sample_distance import pixel_energy_distance
from dgmbench.models.contract import CanReconstruct, CanSample, Model
from dgmbench.nn.scaling import Scaling

# The energy distance compares this many samples with as many examples: its cost grows with the square.
DISTANCE_SAMPLES = 1000


def reconstruction(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """The squared error of reconstructions."""
    if not isinstance(model, CanReconstruct):
        return
    note("reconstruction")
    scale = Scaling(context.data.spec, low=0.0, high=1.0)

    def error(x: Tensor, generator: Generator) -> Tensor:
        again = model.reconstruct(x, generator=generator)
        return (scale(again) - scale(x)).flatten(1).square().mean(1)

    errors = context.chunks.each("reconstruct", error)
    mean = Metric.mean_of(errors, unit=f"{scale.unit}^2", kind="estimate", direction="lower")
    yield "reconstruction_mse", mean, {}


def samples(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """Distances of samples to data."""
    if not isinstance(model, CanSample):
        return
    note("samples")
    distance = sample_distance(model, context.few(DISTANCE_SAMPLES))
    yield "energy_distance", distance, {"features": distance.unit, "samples": distance.n}


def sample_distance(model: CanSample, chunks: Chunks) -> Metric:
    """Energy distance of as many samples as there are examples in ``chunks`` to these examples."""
    data = torch.cat(list(chunks))
    if len(data) < 2:
        raise UserError("The energy distance needs at least two examples; raise protocol.max_examples.")
    generator = keyed_generator("samples", chunks.seed, device=chunks.device)
    return pixel_energy_distance(model.sample(len(data), generator=generator), data, chunks.data.spec)
