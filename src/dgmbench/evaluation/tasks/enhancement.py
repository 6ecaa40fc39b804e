"""How near enhanced examples are to the true ones, beside what costs nothing: bicubic interpolation, or the copy."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.features.build import build_net, default_features
from dgmbench.evaluation.parts import Context, Found, Note
from dgmbench.evaluation.quality.similarity import psnr, ssim
from dgmbench.evaluation.tasks.held_out import mean
from dgmbench.models.contract import Model
from dgmbench.models.tasks import CanEnhance, Degrades, HeldOut
from dgmbench.nn.scaling import Scaling


def enhancement(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """Squared error, PSNR and SSIM of enhanced examples and of the baseline, and their distance on feature nets."""
    if not isinstance(model, CanEnhance):
        return
    note("enhancement")
    spec = context.data.spec
    kinds = {"mse": HeldOut(f"{Scaling(spec).unit}^2", "lower")}
    if Scaling(spec).bounded:
        kinds["psnr"] = HeldOut("dB", "higher")
        if spec.is_image:
            kinds["ssim"] = HeldOut("1", "higher")
    who = baseline_name(model, context.data.spec, next(iter(context.few(2).batches())))

    def compare(batch: Batch, generator: Generator) -> Tensor:
        given, ours = enhanced(model, batch, generator)
        columns = _likeness(ours, batch.x, spec)
        basis = baseline(given, spec)
        return torch.cat([columns] if basis is None else [columns, _likeness(basis, batch.x, spec)], 1)

    values = context.chunks.each_labelled("enhance", compare)
    for column, (name, kind) in enumerate(kinds.items()):
        ours = values[:, column]
        yield f"enhanced_{name}", mean(ours, kind), {}
        if who is not None:
            basis = values[:, len(kinds) + column]
            yield f"{who}_{name}", mean(basis, kind), {}
            yield f"enhanced_{name}_over_{who}", mean(ours - basis, kind), {}  # of the same examples: less noise
    yield from _on_features(model, context, note)


def given_of(model: CanEnhance, batch: Batch, generator: Generator) -> Tensor:
    """What is given of a batch: what the data have beside each example, or what the model makes of it."""
    if batch.given is not None:
        return batch.given
    if isinstance(model, Degrades):
        return model.degrade(batch.x, generator=generator)
    raise UserError(
        f"{type(model).__name__} enhances what is given, but these data give nothing beside each example, and the "
        "model has no degrade(x) that makes it."
    )


def enhanced(model: CanEnhance, batch: Batch, generator: Generator) -> tuple[Tensor, Tensor]:
    """What is given of a batch, and what the model makes of it (b, *shape), float on the raw scale."""
    given = given_of(model, batch, generator)
    ours = model.enhance(given, generator=generator)
    if ours.shape != batch.x.shape:
        raise UserError(
            f"{type(model).__name__}.enhance returns {tuple(ours.shape)} for examples {tuple(batch.x.shape)}; it must "
            "be of their shape."
        )
    return given, ours


def baseline(given: Tensor, spec: DataSpec) -> Tensor | None:
    """What is given as an example (b, *shape), float on the raw scale: as it is, or enlarged by bicubic interpolation.

    Cubic convolution with a = -1/2 (Keys 1981), as in the tools that published numbers were made with. None if what is
    given is no smaller picture of the same channels.
    """
    if tuple(given.shape[1:]) == spec.shape:
        return given.float()
    if not spec.is_image or given.dim() != 4 or given.shape[1] != spec.shape[0]:
        return None
    large = F.interpolate(given.float(), spec.shape[1:], mode="bicubic", antialias=True, align_corners=False)
    return large.clamp(0, spec.levels - 1) if Scaling(spec).bounded and spec.levels else large


def baseline_name(model: CanEnhance, spec: DataSpec, batch: Batch) -> str | None:
    """``bicubic`` or ``copy``; None where there is no baseline."""
    given = given_of(model, batch, torch.Generator(device=batch.x.device))
    if baseline(given, spec) is None:
        return None
    return "copy" if tuple(given.shape[1:]) == spec.shape else "bicubic"


def _likeness(ours: Tensor, x: Tensor, spec: DataSpec) -> Tensor:
    """Squared error, PSNR and SSIM of values on the raw scale (b, *shape) with raw x, as far as they apply, (b, k)."""
    scale = Scaling(spec, low=0.0, high=1.0)
    a, b = scale(ours), scale(x)
    columns = [(a - b).flatten(1).square().mean(1).double()]
    if scale.bounded:
        columns.append(psnr(a, b))
        if spec.is_image:
            columns.append(ssim(a, b))
    return torch.stack(columns, 1)


def _on_features(model: CanEnhance, context: Context, note: Note) -> Iterator[Found]:
    """The squared distance of features of the enhanced and the true example: what the eye of the net still misses."""
    chosen = context.settings("quality").get("features", [])
    if context.data.spec.kind == "tokens":
        return
    for entry in default_features(context.data) if chosen is None else chosen:
        net = build_net(entry, context.data, folder=context.folder, device=context.device, note=note)
        scale = Scaling(context.data.spec, low=0.0, high=1.0)

        def distance(batch: Batch, generator: Generator) -> Tensor:
            _, ours = enhanced(model, batch, generator)
            a, b = net(scale.inverse(scale(ours))), net(batch.x)  # noqa: B023, called before the next net
            return (a.double() - b.double()).square().mean(1)

        values = context.chunks.each_labelled("enhance", distance)
        yield net.label("enhanced_distance"), mean(values, HeldOut("features^2", "lower")), net.record()
