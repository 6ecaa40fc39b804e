"""What a model can do with an example besides modelling it: translate, enhance, predict, by an objective of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Generator, Tensor

from dgmbench.data.spec import Batch

NumberKind = Literal["exact", "lower bound", "upper bound", "estimate"]
Direction = Literal["higher", "lower", "none"]


@dataclass(frozen=True)
class HeldOut:
    """What one of a model's own held-out numbers means, the mean of values of single examples."""

    unit: str
    direction: Direction
    """Which is better."""
    kind: NumberKind = "estimate"
    some: bool = False
    """Whether it is about some of the examples only, such as small objects: the others' value is NaN, and left out."""


@runtime_checkable
class HasObjective(Protocol):
    """An objective of the model's own on held-out data, for models without samples or likelihood.

    It takes precedence over what the evaluator would choose: checkpoints and sweeps are decided by it.
    """

    def objectives(self) -> Mapping[str, HeldOut]:
        """What is measured, by its name; the first is the objective, the others are measured beside it."""
        ...

    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> Mapping[str, Tensor]:
        """The values (b,) of single examples for every name; NaN where an example without label (-1) has none."""
        ...


@runtime_checkable
class HasPanels(Protocol):
    """Pictures of what the model sees in an example and makes of it: boxes, masks, enlarged parts."""

    def panels(self, batch: Batch, *, generator: Generator | None = None) -> Tensor:
        """(b, k, *shape) on the raw scale: k pictures of each example, side by side."""
        ...


@runtime_checkable
class HasTopics(Protocol):
    """Topics of documents, told by their words."""

    def topics(self) -> Tensor:
        """What each topic gives to every word, (topics, *shape); more is more of the topic."""
        ...


@runtime_checkable
class Grows(Protocol):
    """Samples that are made from small to large, or stroke by stroke."""

    def growth(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """n samples at every size or step on their way, on the raw scale (n, sizes, *shape), the last the sample."""
        ...


@runtime_checkable
class CanTruncate(Protocol):
    """Samples of less variety and more quality, from a part of the latent space."""

    def truncate(self, truncation: float, generator: Generator | None = None) -> None:
        """Draw samples at this truncation from now on, with whatever it changes set anew."""
        ...


@runtime_checkable
class MixesStyles(Protocol):
    """Samples with what is large in one of two samples and the details of the other."""

    def style_mixtures(self, n: int, columns: int, *, generator: Generator | None = None) -> Tensor:
        """Raw values (n + 1, columns + 1, *shape): mixtures of the samples in the first column with those in the first
        row.
        """
        ...


@runtime_checkable
class DrawsAnySize(Protocol):
    """Pictures of other sizes than the data's, by networks that have none of their own."""

    def sample_sized(self, n: int, size: tuple[int, int], *, generator: Generator | None = None) -> Tensor:
        """n raw pictures (n, c, *size), height and width; ``UserError`` for sizes that the model cannot draw."""
        ...


@runtime_checkable
class HasPaths(Protocol):
    """Straight ways between two samples in the latent space that the model calls its own."""

    def path_points(self, n: int, step: float, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Two points of each of n ways, at t ~ U(0, 1) and ``step`` farther: floats (n, *shape) on the raw scale."""
        ...


@runtime_checkable
class HasParts(Protocol):
    """What of an example is explained by which part of the model."""

    def parts(self, x: Tensor) -> Tensor:
        """Float (b, parts, *shape) on the raw scale of raw values x (b, *shape); the parts add up to x."""
        ...


@runtime_checkable
class CanTranslate(Protocol):
    """Examples taken to another domain; what else they show should stay."""

    domain: str | None
    """The factor of the data (``DataSpec.factors``) that ``to`` sets; None for the label itself."""

    def translate(self, x: Tensor, to: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Raw values like x (b, *shape) in the domains ``to`` (b,) int64."""
        ...


@runtime_checkable
class CanEnhance(Protocol):
    """The example behind a poorer version of it: super-resolution, denoising, deblurring.

    The poorer version is what the data give beside each example, or a function of it (``Degrades``).
    """

    def enhance(self, given: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Float (b, *shape) on the raw scale of what is given (b, *given shape), raw."""
        ...


@runtime_checkable
class Degrades(Protocol):
    """A model that makes what is given from the example, such as a picture of a quarter of the size."""

    def degrade(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """What is given (b, *given shape) of raw values x (b, *shape), on the same raw scale."""
        ...


@runtime_checkable
class CanPredict(Protocol):
    """A prediction of something about each example: a label, a sequence of labels, real values."""

    def target(self, batch: Batch) -> Tensor:
        """What is to be predicted: labels (b,) int64, -1 where unknown; sequences of labels (b, t) int64 with -1
        behind their end; or real values (b, ...) float.
        """
        ...

    def predict(self, batch: Batch) -> Tensor:
        """The prediction for a batch without labels (``y`` is None), in the form of ``target``; t may be another."""
        ...


@runtime_checkable
class FindsPaths(Protocol):
    """Recognition of sequences step by step."""

    def best_path(self, x: Tensor, length: Tensor) -> Tensor:
        """The label of every step (b, t) that is recognised, -1 behind a sequence's end."""
        ...


@runtime_checkable
class HasPredictiveDensity(Protocol):
    """Predictions with a probability or density."""

    def log_predictive(self, batch: Batch) -> Tensor:
        """log p(target | x) of each example of a batch with labels, as (b,), nats."""
        ...
