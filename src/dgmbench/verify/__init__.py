"""Prove what can be proved of a model on a tiny instance: the mathematics of its densities and the training contract.

``verify_model(lambda: MyModel(spec), spec, "exact")`` checks any model, also one of your own, and ``dgm verify
model=NAME`` prints the same table for a configured one. Which checks apply follows from the methods that the model
has. ``docs/verify.md`` lists them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from dgmbench.config.cards import Card
from dgmbench.data.pairs import check_pair, spec_from_card
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import (
    CanComplete,
    CanGenerate,
    HasBijection,
    HasConditions,
    HasDecoder,
    HasElbo,
    HasLogProb,
    HasLogWeights,
    HasStepConditions,
    HasTransition,
    HasUnnormalisedElbo,
    HasUnnormalisedLogProb,
    IsAutoregressive,
    IsClassConditional,
    Model,
)
from dgmbench.verify import (
    bijection,
    bounds,
    conditional,
    contract,
    decoder,
    density,
    given,
    statistics,
    training,
    undirected,
)
from dgmbench.verify.check import Check, combine, undecided
from dgmbench.verify.precision import double_precision
from dgmbench.verify.shown import instances
from dgmbench.verify.subject import Subject

__all__ = ["Check", "tiny_instances", "verify_config", "verify_model"]

Progress = Callable[[str], None]

TINY = {
    "binary": DataSpec((1, 3, 3), "binary"),
    "discrete": DataSpec((1, 2, 2), "discrete", levels=4),
    "real": DataSpec((2,), "real"),
    "counts": DataSpec((4,), "counts"),
    "tokens": DataSpec((4,), "tokens", levels=5),
}
"""The instances for models that name none: a few dimensions each, so that all values of x can be enumerated."""


def verify_model(
    build: Callable[[], Model], spec: DataSpec, likelihood: str, *, seed: int = 0, progress: Progress | None = None
) -> list[Check]:
    """Check a model against mathematics and the training contract.

    Args:
        build: makes the model, for instance ``lambda: Made(spec, hidden_sizes=(8,))``. It is called several times, with
            torch's default generator seeded; small instances are proved more thoroughly and faster.
        spec: the data space that the model was built for.
        likelihood: what the model's card states: exact, lower bound, AIS estimate or none.
        seed: of the parameters, the data and all draws; equal seeds give equal tables.
        progress: called with the name of each part as it begins.
    """
    subject = Subject(build, spec, likelihood, seed)
    checks: list[Check] = []
    with torch.random.fork_rng(devices=[]):
        _ = subject.specimen  # wrong arguments end here, with the model's own message
        for name, part in PARTS.items():
            if progress is not None:
                progress(name)
            found: list[Check] = []
            try:
                for check in part(subject):
                    found.append(check)
            except Exception as error:  # a model that raises has failed the check, and the others still count
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                found.append(Check(f"{name} can be checked", "raised", "no error", False, reason))
            checks += found
    return checks


Instance = tuple[dict[str, Any], DataSpec]
"""A model's node with the arguments of a tiny instance, and the instance's data space."""


def verify_config(
    completed: Mapping[str, Any], card: Card, *, seed: int | None = None, progress: Progress | None = None
) -> list[Check]:
    """Check the model of a completed configuration on the tiny instances that its card describes.

    Several instances share one line a check, which shows the first that fails. An instance that the settings do not
    fit (logistics on real data) is stated as undecided.
    """
    from dgmbench.config.objects import factory

    seed = int(completed.get("seed", 0)) if seed is None else seed
    instances = tiny_instances(completed, card)
    refused = {spec: error for node, spec in instances if (error := _refusal(node, spec))}
    if len(refused) == len(instances):
        raise _too_small(completed, card, *next(iter(refused.items())))
    found = []
    for node, spec in instances:
        if spec not in refused:
            build = partial(factory(node), spec)
            checks = verify_model(build, spec, card.likelihood, seed=seed, progress=progress)
            found += [(str(spec), check) for check in checks]
    lines = combine(found) if len(instances) > 1 else [check for _, check in found]
    return lines + [undecided(f"the model on {spec}", str(error)) for spec, error in refused.items()]


def tiny_instances(completed: Mapping[str, Any], card: Card) -> list[Instance]:
    """The card's tiny instances; where the configuration chose other data than the card's, those of its kind."""
    node = dict(completed["model"])
    instances: list[Instance] = []
    for tiny in card.tiny:
        plain = ("levels", "num_classes", "end", "given", "step_labels", "lengths", "factors")
        numbers = {key: tiny[key] for key in plain if key in tiny}
        spec = DataSpec(tuple(tiny["shape"]), tiny["kind"], **numbers)
        instances.append((_merged(node, tiny.get("args") or {}), spec))
    if not instances:
        given = TINY["binary"] if card.given else None
        instances = [(node, replace(TINY[kind], given=given)) for kind in card.kinds if kind in TINY][:1]
    if not instances:
        kinds = ", ".join(card.kinds)
        raise UserError(f"The card names no kind of data that can be verified ({kinds}): add a tiny block.")
    data = _chosen_data(completed, card)
    if data is None:
        return instances
    node, first = instances[0]
    other = TINY[data.kind]
    other = replace(
        other,
        shape=first.shape if card.image else other.shape,
        num_classes=first.num_classes,
        given=first.given,
        lengths=first.lengths,
    )
    return [instance for instance in instances if instance[1].kind == data.kind] or [(node, other)]


def _chosen_data(completed: Mapping[str, Any], card: Card) -> DataSpec | None:
    """The space of the chosen data, or None if they are the card's own, or only the data themselves tell."""
    if "data" not in completed:
        return None
    name, data = completed["names"]["data"], spec_from_card(completed["data"])
    if data is None or (name == card.data and data.kind == completed["data"]["card"]["kind"]):
        return None
    check_pair(completed["model"].get("card") or {}, data, name, card.name)
    return data


def _refusal(node: Mapping[str, Any], spec: DataSpec) -> UserError | None:
    """Why the model cannot be built for this data space, or None if it can."""
    from dgmbench.config import instantiate

    try:
        with torch.random.fork_rng(devices=[]):
            instantiate(node, spec)
    except UserError as error:
        return error
    return None


def _too_small(completed: Mapping[str, Any], card: Card, spec: DataSpec, error: UserError) -> UserError:
    """The error of a model that cannot be verified: its own, unless the model could be built for larger data."""
    large = [replace(spec, shape=(1, 32, 32))]
    if "data" in completed and (data := spec_from_card(completed["data"])) is not None:
        large.append(data)
    if all(_refusal(completed["model"], data) for data in large):
        return error
    reason = str(error).partition(";")[0].rstrip(".")
    return UserError(
        f"The tiny instance of model={card.name} is too small for these settings ({reason}): verify a larger one by "
        "dgmbench.verify.verify_model, or leave the settings out."
    )


def _merged(node: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(node)
    for key, value in arguments.items():
        inner = merged.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(inner, value) if both else value  # type: ignore[arg-type]
    return merged


Mathematics = Callable[[Subject, Model], Iterator[Check]]


def _mathematics(checks: Mathematics, *capabilities: type) -> Callable[[Subject], Iterator[Check]]:
    """Make checks in double precision on every state of a model that has one of the capabilities."""

    def part(subject: Subject) -> Iterator[Check]:
        if isinstance(subject.specimen, capabilities):
            with double_precision(), torch.no_grad():
                states = [
                    (label, check)
                    for label, model in subject.double.states
                    for check in _under_conditions(checks, subject.double, model, capabilities)
                ]
            yield from combine(states)

    return part


def _under_conditions(
    checks: Mathematics, subject: Subject, model: Model, capabilities: tuple[type, ...]
) -> Iterable[Check]:
    """The checks of a model of x alone; those of a conditional model under several conditions, one line a check."""
    found = [
        (words, check)
        for words, own, seen in instances(subject, model)
        if isinstance(seen, capabilities)
        for check in checks(own, seen)
    ]
    conditional = subject.spec.given is not None or subject.spec.lengths
    return combine(found) if conditional else [check for _, check in found]


def _given(subject: Subject) -> Iterator[Check]:
    """What only a model with conditions or lengths has to show, in double precision on every state of it."""
    if subject.spec.given is None and not subject.spec.lengths:
        return
    with double_precision(), torch.no_grad():
        yield from combine(
            (label, check) for label, model in subject.double.states for check in given.checks(subject.double, model)
        )


PARTS: dict[str, Callable[[Subject], Iterator[Check]]] = {
    "contract": contract.checks,
    "training": training.checks,
    "statistics": statistics.checks,
    "density": _mathematics(density.checks, HasLogProb, IsAutoregressive),
    "bijection": _mathematics(bijection.checks, HasBijection),
    "given": _given,
    "bounds": _mathematics(bounds.checks, HasElbo, HasLogWeights),
    "conditional": _mathematics(conditional.checks, IsClassConditional, CanComplete),
    "decoder": _mathematics(decoder.checks, HasDecoder, CanGenerate),
    "undirected": _mathematics(
        undirected.checks,
        HasUnnormalisedLogProb,
        HasUnnormalisedElbo,
        HasConditions,
        HasStepConditions,
        HasTransition,
    ),
}
