"""What a model makes of examples, side by side: columns of pictures, or predictions."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from dgmbench.data.batches import picked
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.tasks.enhancement import baseline, enhanced
from dgmbench.evaluation.tasks.prediction import target_and_prediction
from dgmbench.evaluation.tasks.translation import translated
from dgmbench.models.conditions import under
from dgmbench.models.contract import CanClassify, CanComplete, CanDecode, CanEncode, CanReconstruct, Model
from dgmbench.models.tasks import CanEnhance, CanPredict, CanTranslate, Grows, HasTopics, MixesStyles

# Pictures from one example to the next, ends included, and draws of what completes one.
STEPS, DRAWS = 10, 6


@torch.no_grad()
def reconstructions(model: Model, batch: Batch, spec: DataSpec, generator: Generator) -> Tensor:
    """Examples (n, *shape) and beside each its reconstruction, (n, 2, *shape) on the raw scale."""
    if not isinstance(model, CanReconstruct):
        raise UserError(f"{type(model).__name__} does not reconstruct: it has no reconstruct(x) method.")
    again = under(model, batch).reconstruct(batch.x, generator=generator)
    return torch.stack([batch.x.to(again.dtype), again], 1)


@torch.no_grad()
def interpolations(model: Model, batch: Batch, spec: DataSpec, generator: Generator) -> Tensor:
    """From each example (n, *shape) to the next in equal steps between their codes, (n, STEPS, *shape)."""
    if not (isinstance(model, CanEncode) and isinstance(model, CanDecode)):
        raise UserError(f"{type(model).__name__} does not interpolate: it lacks encode(x) or decode(code).")
    if len(batch.x) < 2:
        raise UserError("An interpolation needs two examples: n must be at least 2.")
    start = under(model, batch).encode(batch.x)
    share = torch.linspace(0, 1, STEPS, device=start.device, dtype=start.dtype)
    share = share.view(1, -1, *[1] * (start.dim() - 1))
    codes = torch.lerp(start[:, None], start.roll(-1, 0)[:, None], share)
    every = picked(batch, torch.arange(len(batch.x)).repeat_interleave(STEPS))  # with its own condition
    return under(model, every).decode(codes.flatten(0, 1)).unflatten(0, (len(batch.x), STEPS))


@torch.no_grad()
def completions(model: Model, batch: Batch, spec: DataSpec, generator: Generator) -> Tensor:
    """Examples (n, *shape), the first half alone (upper rows of images, first steps), and draws of the rest given it.

    Returns (n, 2 + DRAWS, *shape).
    """
    if not isinstance(model, CanComplete):
        raise UserError(f"{type(model).__name__} does not complete: it has no complete(x, known) method.")
    x, own = batch.x, under(model, batch)
    rows = x.shape[2] if x.dim() == 4 else x.shape[1]
    first = torch.arange(rows, device=x.device) < (rows + 1) // 2
    known = (first[:, None] if x.dim() > 2 else first).expand_as(x)
    drawn = [own.complete(x, known, generator=generator) for _ in range(DRAWS)]
    return torch.stack([x, torch.where(known, x, torch.zeros_like(x)), *drawn], 1)


@torch.no_grad()
def translations(model: Model, batch: Batch, spec: DataSpec, generator: Generator) -> Tensor:
    """Source | translated to another domain | and back, of each example, (n, 3, *shape)."""
    if not isinstance(model, CanTranslate):
        raise UserError(f"{type(model).__name__} does not translate: it has no translate(x, to) method.")
    if batch.y is None:
        raise UserError("These data do not say which domain an example is from: they have no labels.")
    _, _, there, back = translated(model, batch, spec, generator)
    return torch.stack([batch.x, there, back], 1)


@torch.no_grad()
def enhancements(model: Model, batch: Batch, spec: DataSpec, generator: Generator) -> Tensor:
    """Given (enlarged by repetition) | baseline | ours | truth, of each example, (n, 4, *shape) on the raw scale.

    Where what is given cannot be shown as an example, ours | truth alone.
    """
    if not isinstance(model, CanEnhance):
        raise UserError(f"{type(model).__name__} does not enhance: it has no enhance(given) method.")
    given, ours = enhanced(model, batch, generator)
    basis = baseline(given, spec)
    columns = [ours, batch.x.to(ours.dtype)]
    if basis is not None:
        same = tuple(given.shape[1:]) == spec.shape
        seen = given.float() if same else F.interpolate(given.float(), spec.shape[1:], mode="nearest")
        columns = [seen.to(ours.dtype), basis.to(ours.dtype), *columns]
    return torch.stack(columns, 1)


@torch.no_grad()
def topics(model: Model, batch: Batch, spec: DataSpec, generator: Generator) -> Tensor:
    """The words of each topic, (topics, 1, *shape); examples have no part in it."""
    if not isinstance(model, HasTopics):
        raise UserError(f"{type(model).__name__} knows no topics: it has no topics() method.")
    return model.topics()[:, None]


@torch.no_grad()
def growth(model: Model, batch: Batch, spec: DataSpec, generator: Generator) -> Tensor:
    """As many samples as there are examples, at every size from small to large, (n, sizes, *shape)."""
    if not isinstance(model, Grows):
        raise UserError(
            f"{type(model).__name__} does not make samples from small to large: it has no growth(n) method."
        )
    return model.growth(len(batch.x), generator=generator)


@torch.no_grad()
def styles(model: Model, batch: Batch, spec: DataSpec, generator: Generator) -> Tensor:
    """Samples in the first column and row, as many as there are examples, and their mixtures."""
    if not isinstance(model, MixesStyles):
        raise UserError(f"{type(model).__name__} does not mix styles: it has no style_mixtures(n, columns) method.")
    return model.style_mixtures(len(batch.x), min(len(batch.x), STEPS), generator=generator)


@torch.no_grad()
def predictions(model: Model, batch: Batch) -> dict[str, Tensor]:
    """Examples x (n, *shape), and beside them ``target`` and ``predicted``."""
    if not isinstance(model, CanPredict | CanClassify):
        raise UserError(f"{type(model).__name__} does not predict: it has no predict(batch) or classify(x) method.")
    if isinstance(model, CanPredict):
        target, predicted = target_and_prediction(model, batch)
    else:
        if batch.y is None:
            raise UserError("These data have no labels to compare predictions with.")
        target, predicted = batch.y, model.classify(batch.x).argmax(1)
    return {"x": batch.x, "target": target, "predicted": predicted}


def shown_in_training(model: Model, batch: Batch) -> str | None:
    """What of a model without samples and reconstructions is looked at during training."""
    if isinstance(model, CanTranslate) and batch.y is not None and batch.y.dim() == 1:
        return "translations"
    return "enhanced" if isinstance(model, CanEnhance) else None


Show = Callable[[Model, Batch, DataSpec, Generator], Tensor]
SHOWN: dict[str, Show] = {
    "reconstructions": reconstructions,
    "interpolations": interpolations,
    "completions": completions,
    "translations": translations,
    "enhanced": enhancements,
    "topics": topics,
    "growth": growth,
    "styles": styles,
}
