"""Measuring a model by what it can do, and choosing between checkpoints."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgmbench.data import DataSet
from dgmbench.data.dataset import SplitName
from dgmbench.data.random import keyed_generator
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.codes.measure import disentanglement
from dgmbench.evaluation.likelihood import bounds
from dgmbench.evaluation.likelihood.ais import bracket
from dgmbench.evaluation.likelihood.decoder_measure import decoder_ais, parzen
from dgmbench.evaluation.likelihood.measure import likelihood
from dgmbench.evaluation.metrics import Metric, NumberKind, protocol_id
from dgmbench.evaluation.parts import Context, Note, Part, own_part
from dgmbench.evaluation.quality.classification import classification
from dgmbench.evaluation.quality.measure import (
    DISTANCE_SAMPLES,
    codes,
    reconstruction,
    sample_distance,
    samples,
)
from dgmbench.models.contract import (
    CanSample,
    HasElbo,
    HasLogProb,
    HasLogProbEstimate,
    HasReconstructionLogProb,
    HasUnnormalisedElbo,
    HasUnnormalisedLogProb,
    Model,
)
from dgmbench.training.ranks import Ranks

# What is measured, in this order, before the parts of protocol.parts; each looks for the capabilities that it needs.
PARTS: list[Part] = [
    likelihood,
    decoder_ais,
    parzen,
    reconstruction,
    samples,
    classification,
    codes,
    disentanglement,
]
# Validation during training uses a short annealing schedule; the numbers that are reported use the protocol's.
VALIDATION: dict[str, Any] = {"chains": 50, "temperatures": 100, "burn_in": 100}

Measured = dict[str, tuple[Metric, dict[str, Any]]]
"""Each metric by its name, with the protocol whose id it carries."""


class Evaluator:
    """Measures models on one split under one protocol. Every number leaves with what it depends on.

    ``protocol`` has the keys of ``configs/protocol``; ``rule`` says which checkpoint the weights come from,
    ``averaged`` whether they are a moving average. ``folder`` is where features and feature nets are kept.
    """

    def __init__(
        self,
        data: DataSet,
        protocol: Mapping[str, Any],
        *,
        split: SplitName,
        rule: str,
        averaged: bool,
        device: torch.device,
        folder: Path | None = None,
    ) -> None:
        self.context = Context(data, protocol, split, device, folder=folder)
        self.common = self.context.common | {"checkpoint": rule, "averaged_weights": averaged}

    @torch.no_grad()
    def measure(self, model: Model, *, note: Note = lambda text: None) -> Measured:
        """All metrics that the model's capabilities allow, as {name: (metric, protocol)}.

        The model is in evaluation mode meanwhile.
        """
        found, training, context = {}, model.training, self.context.measuring()
        own = [own_part(name) for name in context.protocol.get("parts") or []]
        model.eval()
        try:
            for part in [*PARTS, *own]:
                for name, metric, details in part(model, context, note):
                    if name in found and part in own:
                        raise UserError(f"protocol.parts: {details['part']} measures {name}, which there is already.")
                    protocol = {key: value for key, value in (self.common | details).items() if value is not None}
                    found[name] = self._under(metric, protocol)
        finally:
            model.train(training)
        return found

    def relabelled(self, found: Measured) -> Measured:
        """What was found on the same split by another rule that chose the same weights, under this rule's name."""
        rule = {"checkpoint": self.common["checkpoint"]}
        return {name: self._under(metric, {**protocol, **rule}) for name, (metric, protocol) in found.items()}

    @staticmethod
    def _under(metric: Metric, protocol: dict[str, Any]) -> tuple[Metric, dict[str, Any]]:
        return replace(metric, protocol_id=protocol_id(protocol)), protocol


@torch.no_grad()
def validation_objective(
    model: Model, data: DataSet, *, device: torch.device, ranks: Ranks | None = None, limit: int | None = None
) -> tuple[str, Metric]:
    """The one number by which the best checkpoint is chosen and a sweep optimises, on the validation split.

    The strongest statement that the model can make about held-out data: exact log-likelihood, else the evidence lower
    bound, else an estimate of either, else either of them with log Z by enumeration or from a short AIS bracket, else
    an autoencoder's log-probability of the data given their codes, else the energy distance of samples to data.
    The noise is the same at every call, so that values of one training compare. Several processes share the examples;
    what they compute twice (samples, log Z) may differ in the last digits. At most ``limit`` examples are used, drawn
    at random but always the same.
    """
    chunks = Chunks(data, "valid", seed=0, limit=limit, device=device, ranks=ranks)
    if isinstance(model, HasLogProb):
        return "log_likelihood", _mean_nats(bounds.log_likelihood(model, chunks), "exact")
    if isinstance(model, HasElbo):
        return "elbo", _mean_nats(bounds.elbo(model, chunks).values, "lower bound")
    if isinstance(model, HasLogProbEstimate):
        values = bounds.log_likelihood_estimate(model, chunks).values
        return f"{model.estimate_protocol()['of']}_estimate", _mean_nats(values, "estimate")
    if isinstance(model, HasUnnormalisedLogProb | HasUnnormalisedElbo):
        kind: NumberKind
        if isinstance(model, HasUnnormalisedLogProb):
            name, kind, values = "log_likelihood", "exact", bounds.unnormalised_log_likelihood(model, chunks)
        else:
            name, kind, values = "elbo", "lower bound", bounds.unnormalised_elbo(model, chunks).values
        path = model.annealing_path()
        exact = path.exact_log_partition()
        if exact is not None:
            return name, _mean_nats(values - float(exact), kind)
        # forward runs alone flatter models that they miss a part of; all processes start from the same examples
        some = torch.cat(list(Chunks(data, "valid", seed=0, limit=VALIDATION["chains"] // 2, device=device)))
        sides = bracket(path, some, **VALIDATION, generator=keyed_generator("ais", 0, device=device))
        middle = (sides.forward.log_z + sides.reverse.log_z) / 2
        warning = f"wide bracket: {sides.trouble}" if sides.wide else None
        return f"{name}_ais", _mean_nats(values - middle, "estimate").noting(warning)
    if isinstance(model, HasReconstructionLogProb):
        return "reconstruction_log_prob", _mean_nats(bounds.reconstruction_log_prob(model, chunks), "estimate")
    if isinstance(model, CanSample):
        few = DISTANCE_SAMPLES if limit is None else min(limit, DISTANCE_SAMPLES)
        return "energy_distance", sample_distance(model, Chunks(data, "valid", seed=0, limit=few, device=device))
    raise UserError(
        f"{type(model).__name__} has no likelihood, no bound and no samples, so there is nothing to validate it by; "
        "give it one of the methods of dgmbench.models.contract."
    )


def _mean_nats(values: Tensor, kind: NumberKind) -> Metric:
    return Metric.mean_of(values, unit="nats", kind=kind, direction="higher")
