"""The part of the evaluation that asks how many of the names in its code books a quantised model uses."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import WITHOUT_NOISE, Context, Found, Note
from dgmbench.models.conditions import under
from dgmbench.models.contract import HasCodeMaps, Model


def code_usage(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """Perplexity and share in use of every code book, over all places of all examples of the split."""
    if not isinstance(model, HasCodeMaps):
        return
    note("use of the codes")
    maps = [
        {name: index.flatten(1).cpu() for name, index in under(model, batch).code_maps(batch.x).items()}
        for batch in context.chunks.batches()
    ]
    for name, size in model.code_books.items():
        index = torch.cat([each[name] for each in maps])
        shared = {"codes": size, "places": index.shape[1], **WITHOUT_NOISE}
        perplexity, se, used = usage(index, size)
        yield f"{name}_perplexity", Metric(perplexity, "codes", "estimate", "higher", se, len(index)), shared
        yield f"{name}_usage", Metric(used, "share", "estimate", "higher", None, len(index)), shared


def usage(index: Tensor, size: int) -> tuple[float, float | None, float]:
    """Of codes (n, places): exp of their entropy, its standard error over the examples, and the share that occurs.

    The entropy moves with an example by its mean -log frequency, to first order.
    """
    share = torch.bincount(index.flatten(), minlength=size).double() / index.numel()
    surprise = -share[index].log().mean(1)
    perplexity = math.exp(float(surprise.mean()))
    se = perplexity * float(surprise.std()) / math.sqrt(len(index)) if len(index) > 1 else None
    return perplexity, se, float((share > 0).double().mean())
