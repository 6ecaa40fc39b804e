"""Normalisation by running statistics: those that a loss keeps are those of what evaluation gives the network.

An encoder whose statistics come from samples, or a decoder whose statistics come from noise that evaluation never
draws, trains as well as any other and is evaluated wrongly. Whether a layer is normalised rightly shows in its input:
its moments when the model samples, encodes or scores are compared with those of every pass that the losses make. A
layer fails only where another pass of the same losses fits evaluation and the one that is kept does not; what no pass
fits (truncated noise, say) or evaluation never reaches (a discriminator) cannot be decided this way.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from dgmbench.models.contract import CanSample, Model
from dgmbench.nn.batchnorm import RunningMoments, moments_layers
from dgmbench.training import standing
from dgmbench.verify.check import Check, undecided
from dgmbench.verify.contract import outputs
from dgmbench.verify.shown import under_one
from dgmbench.verify.subject import Subject, Training, listed

Moments = tuple[Tensor, Tensor]
Passes = dict[tuple[str, str, int], list[Moments]]
"""The moments of a layer's input, by layer, player and number of the pass within the player's loss."""

NAME = "kept statistics are those of evaluation"
ROUNDS, SAMPLES = 4, 500
FAR, NEAR = 0.5, 0.2  # standard deviations


def moments(x: Tensor) -> Moments:
    """Mean and variance of each channel of x (b, c, ...)."""
    flat = x.detach().transpose(0, 1).flatten(1)
    return flat.mean(1), flat.var(1)


def distance(layer: RunningMoments, a: Moments, b: Moments) -> float:
    """The largest difference of means in standard deviations, or of logarithms of the standard deviations."""
    first, second = ((var + layer.eps).sqrt() for _, var in (a, b))
    means = (a[0] - b[0]).abs() / torch.maximum(first, second)
    return float(torch.maximum(means, (first / second).log().abs()).max())


def checks(subject: Subject) -> Iterator[Check]:
    """One line for the layers of the model that keep running moments."""
    training, _ = subject.trained
    if not any(True for _ in moments_layers(training.model)):
        return
    model = copy.deepcopy(training.model)  # whose statistics change here
    layers = dict(moments_layers(model))
    passes: Passes = {}
    with torch.no_grad():
        kept = standing.measure(model, _losses(model, training, layers, passes))
        if not kept:
            return
        standing.write(model, kept)
        found = _evaluated(subject, model, layers)
    wrong: list[str] = []
    unlike: list[str] = []
    values: list[float] = []
    for name, layer in layers.items():
        seen = found.get(name)
        if not seen or f"{name}.running_mean" not in kept:
            continue
        others = [_mean(each) for (where, *_), each in passes.items() if where == name]
        named = min(distance(layer, (layer.running_mean, layer.running_var), e) for e in seen)
        best = min(distance(layer, other, e) for other in others for e in seen)
        values.append(named)
        if named > FAR:
            (wrong if best < NEAR else unlike).append(name)
    if wrong:
        note = f"another pass of the loss fits, at {listed(wrong)}: name that one with statistics_of(net)"
        yield Check(NAME, f"{max(values):.2g}", FAR, False, note)
    elif unlike or not values:
        reason = f"no pass is like evaluation's at {listed(unlike)}" if unlike else "evaluation uses no such layer"
        yield undecided(NAME, reason)
    else:
        note = f"{len(values)} layers; inputs of sampling, coding and scoring, in standard deviations"
        yield Check(NAME, f"{max(values):.2g}", FAR, True, note)


def _mean(each: list[Moments]) -> Moments:
    means, variances = zip(*each, strict=True)
    return torch.stack(means).mean(0), torch.stack(variances).mean(0)


def _losses(
    model: Model, training: Training, layers: dict[str, RunningMoments], passes: Passes
) -> Iterator[Callable[[], object]]:
    """Every player's loss on all of the data, several times; notes the moments of each pass through each layer."""
    for turn in range(ROUNDS):
        for player in training.plan[-1][0].players:
            yield partial(_loss, model, training.subject, layers, passes, player, turn)


def _loss(
    model: Model, subject: Subject, layers: dict[str, RunningMoments], passes: Passes, player: str, turn: int
) -> None:
    done = dict.fromkeys(layers, 0)

    def note(name: str, x: Tensor) -> None:
        passes.setdefault((name, player, done[name]), []).append(moments(x))
        done[name] += 1

    torch.default_generator.manual_seed(turn)
    with _watched(layers, note):
        model.loss(player, subject.learned, subject.generator("statistics", player, turn))


def _evaluated(subject: Subject, trained: Model, layers: dict[str, RunningMoments]) -> dict[str, list[Moments]]:
    """The moments of each layer's inputs in each thing that evaluation does."""
    model = under_one(subject, trained.eval())
    found: dict[str, list[Moments]] = {}

    def note(name: str, x: Tensor) -> None:
        found.setdefault(name, []).append(moments(x))

    with _watched(layers, note):
        if isinstance(model, CanSample):
            model.sample(SAMPLES, generator=subject.generator("statistics"))
        for call, _ in outputs(model).values():
            call(subject.data.x, subject.generator("statistics"))
    return found


@contextmanager
def _watched(layers: dict[str, RunningMoments], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``note`` with a layer's name and its input whenever one runs."""
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
