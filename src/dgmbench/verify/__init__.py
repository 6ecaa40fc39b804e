"""Prove what can be proved of a model on a tiny instance: the mathematics of its densities and the training contract.

``verify_model(lambda: MyModel(spec), spec, "exact")`` checks any model, also one of your own, and ``dgm verify
model=NAME`` prints the same table for a configured one. Which checks apply follows from the methods that the model
has. ``docs/verify.md`` lists them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from dgmbench.cards import Card
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import (
    HasElbo,
    HasLogProb,
    HasLogWeights,
    HasTransition,
    HasUnnormalisedElbo,
    HasUnnormalisedLogProb,
    IsAutoregressive,
    Model,
)
from dgmbench.verify import bounds, contract, density, training, undirected
from dgmbench.verify.check import Check, combine
from dgmbench.verify.precision import double_precision
from dgmbench.verify.subject import Subject

__all__ = ["Check", "tiny_instance", "verify_config", "verify_model"]

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
        subject.model()  # wrong arguments end here, with the model's own message
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


def verify_config(
    completed: Mapping[str, Any], card: Card, *, seed: int | None = None, progress: Progress | None = None
) -> list[Check]:
    """Check the model of a completed configuration on the tiny instance that its card describes."""
    from dgmbench.config import instantiate

    node, spec = tiny_instance(completed, card)
    seed = int(completed.get("seed", 0)) if seed is None else seed
    return verify_model(lambda: instantiate(node, spec), spec, card.likelihood, seed=seed, progress=progress)


def tiny_instance(completed: Mapping[str, Any], card: Card) -> tuple[dict[str, Any], DataSpec]:
    """The model's node with the arguments of its tiny instance, and the instance's data space."""
    node = dict(completed["model"])
    tiny = card.tiny
    if tiny:
        spec = DataSpec(
            tuple(tiny["shape"]), tiny["kind"], levels=tiny.get("levels"), num_classes=tiny.get("num_classes")
        )
        return _merged(node, tiny.get("args") or {}), spec
    for kind in card.kinds:
        if kind in TINY:
            return node, TINY[kind]
    raise UserError(f"The card names no kind of data that can be verified ({', '.join(card.kinds)}): add a tiny block.")


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
        if isinstance(subject.model(), capabilities):
            with double_precision(), torch.no_grad():
                states = [
                    (label, check) for label, model in subject.double.states for check in checks(subject.double, model)
                ]
            yield from combine(states)

    return part


PARTS: dict[str, Callable[[Subject], Iterator[Check]]] = {
    "contract": contract.checks,
    "training": training.checks,
    "density": _mathematics(density.checks, HasLogProb, IsAutoregressive),
    "bounds": _mathematics(bounds.checks, HasElbo, HasLogWeights),
    "undirected": _mathematics(undirected.checks, HasUnnormalisedLogProb, HasUnnormalisedElbo, HasTransition),
}
