"""Measuring a model by what it can do, and choosing between checkpoints."""

from collections.abc import Mapping, Sequence
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
from dgmbench.evaluation.codes.usage import code_usage
from dgmbench.evaluation.likelihood import bounds
from dgmbench.evaluation.likelihood.ais import Bracket, bracket
from dgmbench.evaluation.likelihood.conditions import Conditions, brackets, exact_log_partitions
from dgmbench.evaluation.likelihood.decoder_measure import decoder_ais, parzen
from dgmbench.evaluation.likelihood.measure import CONDITIONED_EXAMPLES, likelihood
from dgmbench.evaluation.likelihood.steps import STEP_CHAINS, Steps, step_brackets
from dgmbench.evaluation.likelihood.units import nats_per_token
from dgmbench.evaluation.metrics import Metric, NumberKind, protocol_id
from dgmbench.evaluation.names import CONDITIONAL
from dgmbench.evaluation.parts import Context, Note, Part, own_part
from dgmbench.evaluation.quality.classification import classification
from dgmbench.evaluation.quality.measure import (
    DISTANCE_SAMPLES,
    codes,
    reconstruction,
    sample_distance,
    samples,
)
from dgmbench.evaluation.quality.patches import one_picture_distance, single_picture
from dgmbench.evaluation.quality.paths import path_length
from dgmbench.evaluation.tasks.agreement import caption_agreement
from dgmbench.evaluation.tasks.enhancement import enhancement
from dgmbench.evaluation.tasks.held_out import held_out, own_objectives
from dgmbench.evaluation.tasks.motion import motion
from dgmbench.evaluation.tasks.prediction import prediction
from dgmbench.evaluation.tasks.translation import translation, translation_distance
from dgmbench.models.contract import (
    CanSample,
    HasConditions,
    HasElbo,
    HasLogProb,
    HasLogProbEstimate,
    HasReconstructionLogProb,
    HasStepConditions,
    HasUnnormalisedElbo,
    HasUnnormalisedLogProb,
    IsClassConditional,
    Model,
)
from dgmbench.models.tasks import CanTranslate, HasObjective
from dgmbench.training.ranks import Ranks

# What is measured, in this order, before the parts of protocol.parts; each looks for the capabilities that it needs.
PARTS: list[Part] = [
    own_objectives,
    likelihood,
    decoder_ais,
    parzen,
    reconstruction,
    samples,
    path_length,
    caption_agreement,
    motion,
    classification,
    prediction,
    translation,
    enhancement,
    codes,
    disentanglement,
    code_usage,
]
# Validation during training uses a short annealing schedule; the numbers that are reported use the protocol's.
VALIDATION: dict[str, Any] = {"chains": 50, "temperatures": 1000, "burn_in": 100}
# Where every condition has a log Z of its own, chains are shared out: so many states in all, and at least so many each.
VALIDATION_ROWS, FEWEST_CHAINS = 5_000, 10
VALIDATION_STEPS = 100  # of sequences, where every step has one

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
                    if name in found:
                        raise UserError(
                            f"{type(model).__name__} names its own number '{name}', which is measured of it anyway; "
                            "choose another name."
                        )
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

    The objective that the model names itself, if it does. Else the strongest statement that the model can make about
    held-out data: exact log-likelihood, else the evidence lower
    bound, else an estimate of either, else either of them with log Z by enumeration or from a short AIS bracket, else
    an autoencoder's log-probability of the data given their codes, else the energy distance of samples to data (of
    their patches, where the data are a single picture), else that of translations to the data of their domain.
    Of conditional data, all of them are under each example's own condition.

    The noise is the same at every call, so that values of one training compare. Several processes share the examples;
    what they compute twice (samples, log Z) may differ in the last digits. At most ``limit`` examples are used, drawn
    at random but always the same.
    """
    chunks = Chunks(data, "valid", seed=0, limit=limit, device=device, ranks=ranks)
    if isinstance(model, HasObjective):
        return next(iter(held_out(model, chunks).items()))
    given = "" if data.spec.given is None else CONDITIONAL
    if isinstance(model, HasLogProb):
        return f"{given}log_likelihood", _mean_nats(bounds.log_likelihood(model, chunks), "exact")
    if isinstance(model, HasElbo):
        return f"{given}elbo", _mean_nats(bounds.elbo(model, chunks).values, "lower bound")
    if isinstance(model, HasLogProbEstimate):
        values = bounds.log_likelihood_estimate(model, chunks).values
        return f"{given}{model.estimate_protocol()['of']}_estimate", _mean_nats(values, "estimate")
    if isinstance(model, HasConditions):
        return _by_condition(model, data, chunks, device)
    if isinstance(model, HasStepConditions):
        return _by_step(model, chunks, device)
    if isinstance(model, HasUnnormalisedLogProb | HasUnnormalisedElbo):
        kind: NumberKind
        if isinstance(model, HasUnnormalisedLogProb):
            name, kind, values = f"{given}log_likelihood", "exact", bounds.unnormalised_log_likelihood(model, chunks)
        else:
            name, kind, values = f"{given}elbo", "lower bound", bounds.unnormalised_elbo(model, chunks).values
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
    if isinstance(model, CanSample) and single_picture(data, "valid"):
        return "patch_energy_distance", one_picture_distance(model, chunks)
    if isinstance(model, CanSample):
        few = DISTANCE_SAMPLES if limit is None else min(limit, DISTANCE_SAMPLES)
        return "energy_distance", sample_distance(model, Chunks(data, "valid", seed=0, limit=few, device=device))
    if isinstance(model, CanTranslate):
        return "translation_distance", translation_distance(model, chunks)
    raise UserError(
        f"{type(model).__name__} has no likelihood, no bound and no samples, so there is nothing to validate it by; "
        "give it one of the methods of dgmbench.models.contract, or an objective of its own (objectives and held_out "
        "of dgmbench.models.tasks)."
    )


def _by_condition(model: HasConditions, data: DataSet, chunks: Chunks, device: torch.device) -> tuple[str, Metric]:
    """The log-likelihood where log Z depends on what is given: exact, or in the middle of short brackets."""
    values = bounds.unnormalised_log_likelihood(model, chunks)
    conditions = Conditions.of(bounds.conditions(model, chunks))
    exact = exact_log_partitions(model, conditions, device)
    if exact is not None:
        return "log_likelihood", _mean_nats(values - exact[conditions.of_example], "exact")
    some = torch.cat(list(Chunks(data, "valid", seed=0, limit=CONDITIONED_EXAMPLES, device=device)))
    examples = conditions.examples(some, model.condition_of(some).double().cpu())
    chains = max(FEWEST_CHAINS, min(VALIDATION["chains"], VALIDATION_ROWS // len(conditions.values)))
    generator = keyed_generator("ais", 0, device=device)
    found = brackets(model, conditions, examples, None, schedule=VALIDATION | {"chains": chains}, generator=generator)
    middle = torch.tensor([(one.forward.log_z + one.reverse.log_z) / 2 for one in found], dtype=torch.float64)
    return "log_likelihood_ais", _mean_nats(values - middle[conditions.of_example], "estimate").noting(_wide(found))


def _by_step(model: HasStepConditions, chunks: Chunks, device: torch.device) -> tuple[str, Metric]:
    """The log-likelihood a step where every step has a log Z: exact, or in short brackets' middle for some."""
    labelled = isinstance(model, IsClassConditional)
    steps, given = Steps.of(model, chunks.labelled() if labelled else chunks), "_given_y" if labelled else ""
    every = Conditions.of(steps.conditions)
    exact = exact_log_partitions(model, every, device)
    if exact is not None:
        found = nats_per_token(steps.summed(steps.values - exact[every.of_example]), steps.counts, "exact")
        return f"log_likelihood{given}_per_step", found.scaled(-1.0, "nats/step")
    generator = keyed_generator("ais", 0, device=device)
    some = steps.some(VALIDATION_STEPS, keyed_generator("steps", 0))
    schedule = VALIDATION | {"chains": STEP_CHAINS}
    conditions, sides = step_brackets(model, some, schedule=schedule, generator=generator)
    middle = torch.tensor([(one.forward.log_z + one.reverse.log_z) / 2 for one in sides], dtype=torch.float64)
    values = some.values - middle[conditions.of_example]
    metric = Metric.mean_of(values, unit="nats/step", kind="estimate", direction="higher")
    return f"log_likelihood{given}_ais_per_step", metric.noting(_wide(sides))


def _wide(found: Sequence[Bracket]) -> str | None:
    """How many brackets of several conditions are wide, and why the first is."""
    wide = [one.trouble for one in found if one.wide]
    return f"wide bracket for {len(wide)} of {len(found)} conditions: {wide[0]}" if wide else None


def _mean_nats(values: Tensor, kind: NumberKind) -> Metric:
    return Metric.mean_of(values, unit="nats", kind=kind, direction="higher")
