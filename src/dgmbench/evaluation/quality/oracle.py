"""Samples under the data's own distribution, where a generated set knows it: an oracle."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import SAMPLE_CHUNK, Context, Found


def against_oracle(drawn: Tensor, context: Context) -> Iterator[Found]:
    """The share of samples (n, *shape) that the data's distribution can make, and their mean -log p under it.

    Of conditional data it is the distribution under the condition that each was drawn under (``Context.draw``).

    -log p alone rewards samples of a few likely values; it is low for a good model only beside other measures, and no
    lower than the entropy of the data means that it is good.
    """
    given = context.chunks.beside(0, len(drawn)).given
    found = context.data.oracle(drawn.numpy(), None if given is None else given.cpu().numpy())
    if found is None:
        return
    log_prob = torch.from_numpy(found).double()
    possible = torch.isfinite(log_prob)
    details = {"samples": len(drawn), "sample_chunk": SAMPLE_CHUNK}
    share = Metric.mean_of(possible.double(), unit="share", kind="estimate", direction="higher")
    yield context.named("oracle_possible"), share, details
    if possible.any():
        nll = Metric.mean_of(-log_prob[possible], unit="nats", kind="estimate", direction="lower")
        yield context.named("oracle_nll"), nll, {**details, "of": "possible samples"}
