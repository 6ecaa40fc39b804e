"""Whether pictures show what their captions say: the factors of the data that they were drawn under.

A generated set can read the factors of any picture off (``Reader.factors_of``), that of a sample as well as that of an
example. Samples are drawn under the captions of the split's examples; a factor agrees where the sample has the value of
the example. Chance is what a sample would reach whose value is drawn uniformly.
"""

from collections.abc import Iterator

import numpy as np
import torch

from dgmbench.errors import UserError
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import SAMPLE_CHUNK, Context, Found, Note
from dgmbench.evaluation.tasks.held_out import mean
from dgmbench.models.contract import CanSample, Model
from dgmbench.models.tasks import HeldOut


def caption_agreement(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """The share of samples that agree with their captions in each factor, and in all of them."""
    spec, labels = context.data.spec, context.data.splits[context.split].y
    if not isinstance(model, CanSample) or spec.given is None or spec.given.kind != "tokens":
        return
    if spec.factors is None or labels is None:
        return
    n = context.samples
    try:
        drawn = context.draw(model, n, note)
    except UserError as error:  # NaN, which is no value of the data's space
        yield "caption_agreement", Metric(np.nan, "share", "estimate", "higher", n=0, note=str(error)), {}
        return
    found = context.data.factors_of(drawn.numpy())
    if found is None:
        return
    rows = context.chunks.beside(0, n).index
    assert rows is not None
    sizes = tuple(size for _, size in spec.factors)
    wanted = np.stack(np.unravel_index(labels[rows.numpy()], sizes), 1)
    agrees = torch.from_numpy(found == wanted).double()
    details = {"samples": n, "sample_chunk": SAMPLE_CHUNK, "read_by": context.data.name}
    share = HeldOut("share", "higher")
    for column, (name, size) in enumerate(spec.factors):
        yield f"caption_{name}_agreement", mean(agrees[:, column], share), {**details, "chance": round(1 / size, 4)}
    chance = round(1 / float(np.prod(sizes)), 4)
    yield "caption_agreement", mean(agrees.prod(1), share), {**details, "chance": chance}
