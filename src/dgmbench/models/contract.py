"""What a model is: the base class and the capabilities that the trainer, the evaluator and the reports ask for.

A model is a plain ``nn.Module`` that works without trainer or configuration: ``Vae(spec).elbo(x)``. It says what it
can do by the methods it has; nothing in dgmbench asks for a model's name. ``docs/adding_a_model.md`` shows a whole one.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Generator, Tensor, nn

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.space import METHODS, in_space
from dgmbench.models.stages import Facts as Facts
from dgmbench.models.stages import Stage as Stage
from dgmbench.models.undirected import AnnealingPath as AnnealingPath
from dgmbench.models.undirected import HasConditions as HasConditions
from dgmbench.models.undirected import HasStepConditions as HasStepConditions
from dgmbench.models.undirected import HasTransition as HasTransition
from dgmbench.models.undirected import HasUnnormalisedElbo as HasUnnormalisedElbo
from dgmbench.models.undirected import HasUnnormalisedLogProb as HasUnnormalisedLogProb
from dgmbench.models.undirected import StartsFromData as StartsFromData
from dgmbench.nn.bijections import Bijection

Logs = Mapping[str, Tensor]
Parameters = list[nn.Parameter] | Mapping[str, list[nn.Parameter]]
"""A player's parameters: all in one list, or in groups by name that the optimiser may treat differently."""


class Model(nn.Module):
    """Base of every model. A subclass takes the ``DataSpec`` and keyword-only arguments, and defines ``loss``.

    *Randomness.* Every method that draws takes a ``generator`` on the model's device; equal generators give equal
    results. Training also seeds torch's default generator per batch, so that dropout repeats as well.

    *What is given.* If ``spec.given`` is a spec, the model is one of p(x | given): all its methods about x take
    ``given=`` (b, *spec.given.shape), ``sample(n, given=...)`` too, and ``loss`` finds ``batch.given``. Likewise with
    ``spec.lengths`` they take ``length=`` (b,), and nothing depends on what lies behind a sequence's end; samples are
    zero there. A method that needs neither does not name it. The card says ``given: true`` and ``lengths: true``.

    *Labels.* ``batch.y`` is -1 where a label is not known; ``batch_policy`` says which examples make up a batch.
    ``initialise`` and ``settle`` see all examples.

    *Values.* Methods about raw values x refuse, in a sentence, an x of another size, and fractions where the data have
    none.

    *State.* ``loss`` computes and changes nothing. Whatever changes without an optimiser (chains, fast weights,
    clipping, running means, step counters) is a registered buffer and changes in ``after_step``.
    """

    objectives_compare: bool = False
    """Whether validation objectives of different stages compare, because all stages train the same model for one end.
    Else the best checkpoint is that of the last stage.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in METHODS:
            if inspect.isfunction(method := cls.__dict__.get(name)):
                setattr(cls, name, in_space(method))

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec

    def players(self) -> "Mapping[str, Parameters]":
        """Name those who have an objective, and an optimiser, of their own, and give the parameters of each.

        Either as a list, or in named groups that settings can treat apart, ``{"generator": {"mapping": [...], "main":
        [...]}}``: ``optimizer.players.generator.groups.mapping.lr_multiplier=0.01``.
        """
        return {"model": list(self.parameters())}

    def stages(self) -> tuple[Stage, ...]:
        """The parts of the training, in order; one by default, with every player."""
        return (Stage("train", tuple(self.players())),)

    def turn(self, step: int, stage: Stage) -> Sequence[str]:
        """The players that step on the ``step``-th update (from 0), in order; all of the stage's by default."""
        return stage.players

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Set data-dependent starting values (visible biases, actnorm, ...) from up to 10,000 training examples.

        Called once, before the first update of a new run, never on a resume.
        """

    def prepare(self, facts: Facts) -> None:
        """Take note of the training set's size and the like: before ``initialise``, and again on each resume.

        What evaluation needs of it belongs in a buffer.
        """

    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Prepare parameters and buffers as a stage begins (also the first); not repeated on a resume."""

    def advance(self, stage: Stage, share: float) -> None:
        """Set buffers that follow the clock (fading in, annealing): ``share`` of the stage is done, from 0 to 1.

        Called as the stage begins, with 0, and after each of its updates; with 1 after the last one, before the state
        at the stage's end is validated.
        """

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """Return the scalar that ``player`` minimises on this batch, and detached scalars worth logging.

        Only the gradients of the player's own parameters are used.
        """
        raise NotImplementedError(f"{type(self).__name__} must define loss(player, batch, generator)")

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Change buffers (or clip parameters) after ``player``'s optimiser step, without gradients.

        The gradients of that step are still in ``.grad``.
        """

    def batch_policy(self) -> BatchPolicy | None:
        """How batches are made where it matters which labels they hold; None takes examples as they come.

        By default a class-conditional model learns from labelled examples alone, and all others from all alike.
        """
        return BatchPolicy(labelled=1.0) if isinstance(self, IsClassConditional) else None

    def settle(self, batches: Iterator[Batch], generator: Generator) -> None:
        """Set buffers that evaluation needs from the whole training set, its moments say, before each validation.

        Called in eval mode and without gradients, with the averaged weights if there are any. ``batches`` goes through
        the training set once, in order; left alone, it costs nothing.
        """


def player_parameters(model: Model) -> dict[str, list[nn.Parameter]]:
    """Each player's parameters in one list, those of its groups one after the other."""
    return {
        player: [p for group in own.values() for p in group] if isinstance(own, Mapping) else list(own)
        for player, own in model.players().items()
    }


@runtime_checkable
class HasLogProb(Protocol):
    """Exact log-likelihood, nats per example."""

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of raw values x (b, *shape), as (b,)."""
        ...


@runtime_checkable
class HasElbo(Protocol):
    """A stochastic lower bound of the log-likelihood whose expectation is the bound, nats per example."""

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """One draw of the bound for raw values x (b, *shape), as (b,)."""
        ...


@runtime_checkable
class HasLogWeights(Protocol):
    """Importance weights log p(x, z) - log q(z | x): their log-mean-exp bounds the log-likelihood from below."""

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Tensor:
        """k independent log-weights of each raw value x (b, *shape), as (k, b)."""
        ...


@runtime_checkable
class HasDecoder(Protocol):
    """p(x) = E p(x | noise) over standard normal noise, so that annealing over the noise estimates p(x).

    Other priors are a map of the noise that belongs to the decoder: uniform latents are its distribution function,
    a deep stack of Gaussians takes the noise of every layer (mean + sigma * noise), a learned prior is a flow of it.
    """

    noise_dim: int
    """Dimensions of the noise of one example."""

    def log_prob_given(self, x: Tensor, noise: Tensor) -> Tensor:
        """log p(x | noise) of raw values x (b, *shape) at noise (b, noise_dim), as (b,); has a gradient in noise."""
        ...

    def sample_given(self, noise: Tensor, *, generator: Generator | None = None) -> Tensor:
        """One draw of x for each noise (b, noise_dim), as raw values (b, *shape)."""
        ...


@runtime_checkable
class CanGenerate(Protocol):
    """Implicit models: x is a function of standard normal noise, rounded to the levels of the data if there are any.

    The function is that of ``sample``: it includes the labels' distribution, truncation and the like.
    """

    noise_dim: int
    """Dimensions of the noise of one example."""

    def generate(self, noise: Tensor) -> Tensor:
        """x before rounding, float (b, *shape) on the raw scale, of noise (b, noise_dim); has a gradient in noise."""
        ...


@runtime_checkable
class HasLogProbEstimate(Protocol):
    """An estimate of the log-likelihood, or of a bound, that is neither: its log-determinant is random or truncated."""

    def log_prob_estimate(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """One draw of the estimate for raw values x (b, *shape), as (b,), nats per example."""
        ...

    def estimate_protocol(self) -> Mapping[str, Any]:
        """What it depends on; ``of`` says what it estimates: log_likelihood or elbo."""
        ...

    def estimate_bias(self) -> float:
        """The most by which the estimate's mean may miss what it estimates, nats per example; 0 if it is unbiased."""
        ...


@runtime_checkable
class CanSample(Protocol):
    """Samples in data space."""

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """n raw values (n, *shape) of the spec's dtype, given labels y (n,) where the model is conditional."""
        ...


@runtime_checkable
class CanReconstruct(Protocol):
    """Reconstructions: raw values -> code -> values on the raw scale."""

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Expected reconstruction of raw values x (b, *shape), as float (b, *shape) on the raw scale.

        Of tokens, which have no expectation, the most likely ones, raw.
        """
        ...


@runtime_checkable
class HasReconstructionLogProb(Protocol):
    """log p(x | code of x) of an autoencoder, nats per example: no likelihood of x, because the code has seen x."""

    def reconstruction_log_prob(self, x: Tensor) -> Tensor:
        """The log-probability that the decoder gives to raw values x (b, *shape) at their own code, as (b,)."""
        ...


@runtime_checkable
class CanEncode(Protocol):
    """Codes of data."""

    def encode(self, x: Tensor) -> Tensor:
        """The mean code of raw values x (b, *shape), as (b, latent)."""
        ...


@runtime_checkable
class HasCodeMaps(Protocol):
    """Codes that are names out of books."""

    code_books: Mapping[str, int]
    """How many names each book has."""

    def code_maps(self, x: Tensor) -> Mapping[str, Tensor]:
        """The names (b, ...) int64 that raw values x (b, *shape) get from each book, 0 ... size - 1."""
        ...


@runtime_checkable
class CanClassify(Protocol):
    """Labels of data, such as those of a semi-supervised model."""

    def classify(self, x: Tensor) -> Tensor:
        """Scores of the labels of raw values x (b, *shape), as (b, num_classes); the largest is the model's choice."""
        ...


@runtime_checkable
class CanDecode(Protocol):
    """The way back from codes to data; with ``encode`` it allows interpolation between examples."""

    def decode(self, code: Tensor) -> Tensor:
        """The expected data of codes (b, latent), as float (b, *shape) on the raw scale.

        Of tokens, which have no expectation, the most likely ones, raw.
        """
        ...


@runtime_checkable
class CanComplete(Protocol):
    """Conditional completion: the unknown part of an example given the known part (inpainting)."""

    def complete(self, x: Tensor, known: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Raw values like x (b, *shape) that keep x where ``known`` (b, *shape, bool) and are drawn elsewhere."""
        ...


class _ByState(type):
    """Capabilities that rest on buffers or submodules: the instance has all that the class names, and none is None.

    These are no attributes of a class, nor in an instance's ``__dict__``: since Python 3.12, isinstance of a protocol
    does not find them.
    """

    def __instancecheck__(cls, instance: object) -> bool:
        return all(getattr(instance, name, None) is not None for name in cls.__annotations__)


class IsClassConditional(metaclass=_ByState):
    """p(x | y): ``sample(n, y)`` takes labels y, and draws them from the prior without.

    ``log_prob``, ``elbo`` and ``log_weights``, where there are any, take ``y=`` too, and give the marginal without:
    log p(x) = log sum_y p(y) p(x | y), so that numbers compare with those of other models. A model that is conditional
    only by a setting registers the buffer only then.
    """

    class_log_prior: Tensor
    """log p(y), (num_classes,): a buffer, the frequencies in the training data."""


class HasBijection(metaclass=_ByState):
    """A density by change of variables: log p(v) = log p(z) + log |det dz/dv| with z, log_det = bijection(v)."""

    bijection: Bijection
    """From continuous data (b, *shape) to noise (b, dim)."""

    continuous: Callable[..., Tensor]
    """``continuous(x, generator=None)``: values v (b, *shape) where the density is evaluated for raw x (b, *shape), x
    itself or x with noise.
    """


@runtime_checkable
class HasTemperature(Protocol):
    """Samples at a temperature: ``sample`` multiplies its noise by this attribute, which is 1 but for pictures."""

    temperature: float


@runtime_checkable
class IsAutoregressive(Protocol):
    """A product of conditionals p(x_i | x_before(i)) in a stated order."""

    def conditional_logits(self, x: Tensor) -> Tensor:
        """The conditionals' parameters given raw values x (b, *shape), as (b, dim, parameters per dimension)."""
        ...

    def ordering(self) -> Tensor:
        """Positions in the order, (dim,) int64: dimension i may depend on j only if ordering[j] < ordering[i]."""
        ...
