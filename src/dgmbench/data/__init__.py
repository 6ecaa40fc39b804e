"""Data: what an example is, readers, the prepared cache, and batches as functions of (seed, number)."""

from dgmbench.data.batches import BatchStream, evaluation_batches
from dgmbench.data.dataset import DataSet, Split, load
from dgmbench.data.pairs import check_pair, spec_from_card
from dgmbench.data.random import keyed_generator, keyed_seed
from dgmbench.data.spec import Batch, DataSpec

__all__ = [
    "Batch",
    "BatchStream",
    "DataSet",
    "DataSpec",
    "Split",
    "check_pair",
    "evaluation_batches",
    "keyed_generator",
    "keyed_seed",
    "load",
    "spec_from_card",
]
