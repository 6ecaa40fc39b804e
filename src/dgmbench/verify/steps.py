"""Sequences whose steps are undirected models given the steps before: the whole is a distribution, so is each step."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from dgmbench.models.contract import AnnealingPath, HasStepConditions, IsClassConditional
from dgmbench.verify import density
from dgmbench.verify.check import Check, combine, undecided
from dgmbench.verify.path import path_checks
from dgmbench.verify.subject import Subject


class Whole:
    """A model of sequences, less log Z of every step by enumeration: one with an exact log p(x), or p(x | y)."""

    def __init__(self, model: Any, label: int | None = None) -> None:
        self.model, self.label = model, label

    def beside(self, n: int) -> dict[str, Tensor]:
        """The label, n times, where there is one."""
        return {} if self.label is None else {"y": torch.full((n,), self.label)}

    def conditions(self, x: Tensor) -> Tensor:
        """Of every step, (steps, ...)."""
        found: Tensor = self.model.step_conditions(x, **self.beside(len(x)))
        return found

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x)."""
        own, row = self.conditions(x).unique(dim=0, return_inverse=True)
        log_z = self.model.annealing_path_given(own).exact_log_partition()[row].view(len(x), -1).sum(1)
        found: Tensor = self.model.log_prob_unnormalised(x, **self.beside(len(x))).double() - log_z
        return found

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """The model's own draws."""
        found: Tensor = self.model.sample(n, self.beside(n).get("y"), generator=generator)
        return found


class OneHistory:
    """The path of a step after one history, for any number of states."""

    def __init__(self, model: HasStepConditions, condition: Tensor) -> None:
        self.model, self.condition = model, condition
        self._paths: dict[int, AnnealingPath] = {}  # a path remembers its last states

    def of(self, n: int) -> AnnealingPath:
        """The same history n times."""
        if n not in self._paths:
            rows = self.condition.expand(n, *self.condition.shape[1:])
            self._paths[n] = self.model.annealing_path_given(rows)
        return self._paths[n]

    def log_base_partition(self) -> Tensor:
        """As of the path, a scalar."""
        return self.of(1).log_base_partition().flatten()[0]

    def exact_log_partition(self) -> Tensor | None:
        """As of the path, a scalar."""
        found = self.of(1).exact_log_partition()
        return None if found is None else found.flatten()[0]

    def sample_base(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """As of the path."""
        return self.of(n).sample_base(n, generator=generator)

    def log_unnormalised(self, v: Tensor, beta: float) -> Tensor:
        """As of the path."""
        return self.of(len(v)).log_unnormalised(v, beta)

    def transition(self, v: Tensor, beta: float, *, generator: Generator | None = None) -> Tensor:
        """As of the path."""
        return self.of(len(v)).transition(v, beta, generator=generator)


def checks(subject: Subject, model: HasStepConditions) -> Iterator[Check]:
    """The sum over whole sequences, of every class where there are any, and the path of a step."""
    labels = list(range(len(model.class_log_prior))) if isinstance(model, IsClassConditional) else [None]
    found: list[tuple[str, Check]] = []
    for label in labels:
        whole, words = Whole(model, label), "" if label is None else f"class {label}"
        history = whole.conditions(subject.data.x[:1])[-1:]
        if model.annealing_path_given(history).exact_log_partition() is None:
            found.append((words, undecided("probabilities sum to 1", "log Z of a step cannot be enumerated")))
        else:
            found += [(words, check) for check in density.normalised(subject, whole)]
        if label == labels[-1] and subject.spec.shape[0] > 1:  # the rest is of one step and one history
            path = OneHistory(model, history)
            for check in path_checks(subject, path, path.exact_log_partition()):
                found.append((words, replace(check, name=f"of a step, {check.name}")))
    yield from combine(found) if len(labels) > 1 else (check for _, check in found)
