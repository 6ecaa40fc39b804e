"""How much videos move: the mean absolute change of a pixel from one frame to the next, of values scaled to [0, 1]."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import SAMPLE_CHUNK, WITHOUT_NOISE, Context, Found, Note
from dgmbench.evaluation.tasks.held_out import mean
from dgmbench.models.contract import CanSample, Model
from dgmbench.models.tasks import HeldOut
from dgmbench.nn.scaling import Scaling


def motion(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """The change from frame to frame of samples and of data, and the ratio of the two, which is 1 where they agree."""
    spec = context.data.spec
    if not isinstance(model, CanSample) or spec.frame is None or spec.lengths or spec.shape[0] < 2:
        return
    n = context.samples
    details = {"samples": n, "sample_chunk": SAMPLE_CHUNK}
    meaning = HeldOut(f"{Scaling(spec).unit} a frame", "none")
    data = torch.cat([frame_change(batch.x, spec).cpu() for batch in context.chunks.batches()])
    yield "data_frame_change", mean(data, meaning), WITHOUT_NOISE
    try:
        samples = frame_change(context.draw(model, n, note), spec)
    except UserError as error:  # NaN, which is no value of the data's space
        yield "frame_change", Metric(math.nan, meaning.unit, "estimate", "none", n=0, note=str(error)), details
        return
    yield "frame_change", mean(samples, meaning), details
    if float(data.mean()) > 0 and len(samples) > 1:
        ratio = float(samples.mean() / data.mean())
        relative = [float(each.var()) / len(each) / float(data.mean()) ** 2 for each in (samples, data)]
        se = math.sqrt(relative[0] + ratio**2 * relative[1])  # of a ratio of independent means
        yield "frame_change_ratio", Metric(ratio, "1", "estimate", "none", se, n), details


def frame_change(x: Float[Tensor, "b t d"], spec: DataSpec) -> Float[Tensor, " b"]:
    """The mean absolute change of each raw video."""
    scaled = Scaling(spec, low=0.0, high=1.0)(x)
    return scaled.diff(dim=1).abs().flatten(1).double().mean(1)
