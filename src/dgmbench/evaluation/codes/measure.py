"""The part of the evaluation that asks whether code dimensions stand for the factors of variation of the data."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from dgmbench.errors import UserError
from dgmbench.evaluation.codes import disentanglement as scores
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import Context, Found, Note
from dgmbench.models.contract import CanEncode, Model

BINS = 20


def disentanglement(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """MIG, the beta-VAE and FactorVAE scores, DCI and SAP, of codes of all examples of the split."""
    factors = context.data.spec.factors
    if factors is None or not isinstance(model, CanEncode):
        return
    batches = [(model.encode(batch.x).flatten(1).double().cpu(), batch.y) for batch in context.chunks.batches()]
    codes = torch.cat([code for code, _ in batches]).numpy()
    labels = torch.cat([y.cpu() for _, y in batches if y is not None]).numpy()
    values = np.stack(np.unravel_index(labels, [size for _, size in factors]), axis=1)
    common = {"factors": [name for name, _ in factors]}

    try:
        scores.checked(codes, values)
    except UserError as error:
        yield "mig", Metric(math.nan, "1", "estimate", "higher", None, len(codes), note=str(error)), common
        return

    def found(name: str, value: float, **details: object) -> Found:
        return name, Metric(value, "1", "estimate", "higher", None, len(codes)), {**common, **details}

    note("mutual information gap")
    yield found("mig", scores.mutual_information_gap(codes, values, bins=BINS), bins=BINS, cut="equal width")
    note("beta-VAE and FactorVAE scores")
    yield found("beta_vae_score", scores.beta_vae_score(codes, values, seed=context.seed), classifier="discriminant")
    yield found("factor_vae_score", scores.factor_vae_score(codes, values, seed=context.seed))
    note("DCI")
    for name, value in scores.dci(codes, values, seed=context.seed)._asdict().items():
        yield found(f"dci_{name}", value, forests="50 trees")
    note("SAP")
    yield found("sap", scores.attribute_predictability(codes, values, seed=context.seed), classifier="discriminant")
