"""Conditional models as the other proofs see them: under one condition held fixed, as models of x alone.

Models of sequences are seen as models of sequences of one length.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from dgmbench.models.conditions import bound
from dgmbench.models.contract import Model
from dgmbench.verify.subject import Subject

CONDITIONS = 3
OF_LENGTH = (
    "log_prob", "elbo", "log_weights", "log_prob_estimate", "sample",
    "log_prob_unnormalised", "step_log_prob_unnormalised", "step_conditions",
)  # fmt: skip
"""The methods that are seen of a model of sequences, at one length."""
OF_STEPS = ("annealing_path_given", "class_log_prior")
"""What is seen of it that has no length."""

Beside = Mapping[str, Tensor]


def instances(subject: Subject, model: Model) -> Iterator[tuple[str, Subject, Model]]:
    """The model as models of x alone, with a word on the condition of each; itself if it takes none."""
    spec = subject.spec
    if spec.given is None and not spec.lengths:
        yield "", subject, model
        return
    steps = spec.shape[0]
    lengths = list(dict.fromkeys([steps, 1, (steps + 1) // 2])) if spec.lengths else [None]
    for number in range(CONDITIONS if spec.given is not None else len(lengths)):
        length, words = lengths[number % len(lengths)], []
        alone = replace(spec, given=None, lengths=False)
        beside = condition(subject, number)
        if spec.given is not None:
            words.append(f"condition {number}")
        if length is None:
            seen = under_all(model, beside)
        else:
            words.append(f"length {length}")
            classes = None if spec.step_labels else spec.num_classes
            alone = replace(alone, shape=(length, *spec.shape[1:]), step_labels=False, num_classes=classes)
            seen = _of_length(model, {**beside, "length": torch.tensor([length])}, length, steps - length)
        yield ", ".join(words), replace(subject, spec=alone), seen


def under_one(subject: Subject, model: Model) -> Model:
    """The model under one condition, at full length, with all its methods; itself if it takes none."""
    spec, beside = subject.spec, condition(subject, 0)
    if spec.lengths:
        beside["length"] = torch.tensor([spec.shape[0]])
    return under_all(model, beside) if beside else model


def condition(subject: Subject, number: int) -> dict[str, Tensor]:
    """One of the data's conditions, with a first axis of 1; nothing if there are none."""
    if subject.data.given is None:
        return {}
    given = subject.data.given.unique(dim=0)
    return {"given": given[number * (len(given) - 1) // max(CONDITIONS - 1, 1)][None]}


def under_all(model: Model, beside: Beside) -> Model:
    """The model with what is beside the examples, one row or as many as there are, bound to each method that takes it.

    It shares parameters and buffers with the model, and has all its capabilities.
    """
    seen = copy.copy(model)
    for name in dir(type(model)):
        if not name.startswith("_") and name not in dir(Model) and callable(getattr(type(model), name)):
            seen.__dict__[name] = _bound(model, name, beside)
    seen.__dict__["loss"] = model.loss  # which has the conditions of its batch
    return seen


def _bound(model: Model, name: str, beside: Beside) -> Callable[..., Any]:
    """A method with what is beside the examples expanded to as many as it is called for."""

    def call(*arguments: Any, **named: Any) -> Any:
        n = 1 if not arguments else arguments[0] if isinstance(arguments[0], int) else len(arguments[0])
        expanded = {key: value.expand(n, *value.shape[1:]) for key, value in beside.items()}
        return bound(model, name, expanded)(*arguments, **named)

    return call


def _of_length(model: Model, beside: Beside, length: int, rest: int) -> Model:
    """The model of sequences of one length, which are padded for it and cut again."""

    def shortened(name: str) -> Callable[..., Any]:
        method = _bound(model, name, beside)

        def call(start: Any, *arguments: Any, **named: Any) -> Any:
            if isinstance(start, int):
                return method(start, *arguments, **named)[:, :length]
            padding = start.new_zeros(len(start), rest, *start.shape[2:])
            return method(torch.cat([start, padding], 1), *arguments, **named)

        return call

    methods = {name: shortened(name) for name in OF_LENGTH if hasattr(model, name)}
    others = {name: getattr(model, name) for name in OF_STEPS if hasattr(model, name)}
    return cast(Model, SimpleNamespace(**methods, **others))
