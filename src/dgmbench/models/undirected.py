"""Capabilities of models whose density is known up to log Z, and of the paths that anneal to them."""

from typing import Protocol, runtime_checkable

from torch import Generator, Tensor


@runtime_checkable
class HasUnnormalisedLogProb(Protocol):
    """log p(x) + log Z of an undirected model, nats per example; log Z comes from ``annealing_path``."""

    def log_prob_unnormalised(self, x: Tensor) -> Tensor:
        """log of the unnormalised probability of raw values x (b, *shape), as (b,)."""
        ...

    def annealing_path(self) -> "AnnealingPath":
        """The path from a tractable base to this model, for annealed importance sampling."""
        ...


@runtime_checkable
class HasUnnormalisedElbo(Protocol):
    """A lower bound of log p(x) + log Z for models with an undirected part; log Z comes from ``annealing_path``."""

    def elbo_unnormalised(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """One draw of the bound for raw values x (b, *shape), as (b,)."""
        ...

    def annealing_path(self) -> "AnnealingPath":
        """The path from a tractable base to the undirected part."""
        ...


@runtime_checkable
class AnnealingPath(Protocol):
    """Distributions p_beta(v) = exp(log_unnormalised(v, beta)) / Z_beta for beta in [0, 1]; Z_0 is known."""

    def log_base_partition(self) -> Tensor:
        """log Z_0, a float64 scalar."""
        ...

    def sample_base(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """n exact samples of p_0, as (n, d)."""
        ...

    def log_unnormalised(self, v: Tensor, beta: float) -> Tensor:
        """log of the unnormalised p_beta at states v (n, d), as (n,) float64."""
        ...

    def transition(self, v: Tensor, beta: float, *, generator: Generator | None = None) -> Tensor:
        """One step, reversible with respect to p_beta, for all chains v (n, d) at once."""
        ...

    def exact_log_partition(self) -> Tensor | None:
        """log Z_1 by enumeration where one side has at most 20 units, else None."""
        ...


@runtime_checkable
class StartsFromData(Protocol):
    """An ``AnnealingPath`` that knows the states of data, so that chains of p_1 can start where the data are."""

    def state_from(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """A state for each raw value x (b, *shape), as (b, d): x itself, or drawn given x where the states are units
        above it.
        """
        ...


@runtime_checkable
class HasConditions(Protocol):
    """log p(x | c) + log Z(c) of an undirected model whose log Z depends on what is given: a length, a history."""

    def log_prob_unnormalised(self, x: Tensor) -> Tensor:
        """log of the unnormalised probability of raw values x (b, *shape) given their own condition, as (b,)."""
        ...

    def condition_of(self, x: Tensor) -> Tensor:
        """What log Z depends on for raw values x, (b, ...); examples of equal conditions share it."""
        ...

    def annealing_path_given(self, condition: Tensor) -> AnnealingPath:
        """The paths of conditions (n, ...) side by side: ``sample_base(n)`` gives a state for each, and row i of every
        state is that of condition i. ``log_base_partition`` and ``exact_log_partition`` are (n,).
        """
        ...


@runtime_checkable
class HasStepConditions(Protocol):
    """Sequences: log p(x) = sum_t log p*(x_t | x_before(t)) - log Z(x_before(t)), an undirected model at every step
    whose log Z depends on the steps before.

    What there is of every step comes in one row a step, those of the first example first, its padding left out. Models
    with a class prior take ``y=`` (b,) in all these methods, and are of p(x | y).
    """

    def log_prob_unnormalised(self, x: Tensor) -> Tensor:
        """The sum over the steps of raw values x (b, *shape), as (b,)."""
        ...

    def step_log_prob_unnormalised(self, x: Tensor) -> Tensor:
        """log p*(x_t | x_before(t)) of every step, as (steps,)."""
        ...

    def step_conditions(self, x: Tensor) -> Tensor:
        """What log Z of every step depends on, (steps, ...); steps of equal conditions share it."""
        ...

    def annealing_path_given(self, condition: Tensor) -> AnnealingPath:
        """The paths of single steps under conditions (n, ...), as in ``HasConditions``; data are (n, *shape[1:])."""
        ...


@runtime_checkable
class HasTransition(Protocol):
    """A Markov kernel on x that leaves the model's distribution invariant."""

    def transition(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """One step from raw values x (b, *shape) to raw values of the same shape."""
        ...
