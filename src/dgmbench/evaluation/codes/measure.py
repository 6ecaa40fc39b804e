"""The part of the evaluation that asks whether code dimensions stand for the factors of variation of the data."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from dgmbench.errors import UserError
from dgmbench.evaluation.codes import disentanglement as scores
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import Context, Found, Note
from dgmbench.models.conditions import under
from dgmbench.models.contract import CanEncode, Model

BINS = 20


def disentanglement(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """MIG, the beta-VAE and FactorVAE scores, DCI and SAP, of codes of all examples of the split."""
    factors = context.data.spec.factors
    if factors is None or not isinstance(model, CanEncode):
        return
    labelled = context.labelled()
    if labelled is None:
        return
    batches = [(under(model, each).encode(each.x).flatten(1).double().cpu(), each.y) for each in labelled.batches()]
    codes = torch.cat([code for code, _ in batches]).numpy()
    labels = torch.cat([y.cpu() for _, y in batches if y is not None]).numpy()
    values = np.stack(np.unravel_index(labels, [size for _, size in factors]), axis=1)
    common = {"factors": [name for name, _ in factors], **context.unlabelled()}

    try:
        scores.checked(codes, values)
    except UserError as error:
        yield "mig", Metric(math.nan, "1", "estimate", "higher", None, len(codes), note=str(error)), common
        return

    varying = sum(len(np.unique(column)) > 1 for column in values.T)

    def found(name: str, value: float, **details: object) -> Found:
        return name, Metric(value, "1", "estimate", "higher", None, len(codes)), {**common, **details}

    note("mutual information gap")
    cut = {"bins": BINS, "cut": "equal width", "outliers": scores.OUTLIERS}
    yield found("mig", scores.mutual_information_gap(codes, values, bins=BINS), **cut)
    linear = {"classifier": "discriminant", "held_out": scores.HELD_OUT}
    if varying > 1:  # to tell one factor from itself is no achievement
        note("beta-VAE and FactorVAE scores")
        beta = scores.beta_vae_score(codes, values, seed=context.seed)
        yield found("beta_vae_score", beta, points=scores.BETA_POINTS, pairs=scores.BETA_PAIRS, **linear)
        votes = {"votes": scores.VOTES, "examples_a_vote": scores.VOTE_EXAMPLES, "still": scores.STILL}
        yield found("factor_vae_score", scores.factor_vae_score(codes, values, seed=context.seed), **votes)
        note("DCI")
        for name, value in scores.dci(codes, values, seed=context.seed)._asdict().items():
            yield found(f"dci_{name}", value, trees=scores.TREES, held_out=scores.HELD_OUT)
    note("SAP")
    yield found("sap", scores.attribute_predictability(codes, values, seed=context.seed), **linear)
