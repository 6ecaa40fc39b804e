"""Batch-norm's statistics at given weights, measured by passes in training mode ("standing statistics").

Running statistics follow the weights that step. Averaged weights have activations of their own, of which those
statistics know nothing. So they are measured at the averaged weights: over a number of batches, each player's loss
makes the same passes as in training, and every layer takes the mean of the moments that it kept (Brock et al. 2019,
https://arxiv.org/abs/1809.11096, section 3.1 and appendix B).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dgmbench.nn.batchnorm import moments_layers

STANDING_BATCHES = 16  # as in Brock et al. 2019

Statistics = dict[str, Tensor]
"""Values of buffers by their names in the model."""


def measure(model: nn.Module, losses: Iterable[Callable[[], object]]) -> Statistics:
    """The mean moments that each layer keeps over ``losses``, calls of ``model.loss``; the model is left as it was.

    Layers that keep nothing, because their player does not train at present, are left out.
    """
    layers, training = moments_layers(model), model.training
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {}
    model.train()
    for loss in losses:
        with torch.enable_grad():  # a loss may differentiate on its way
            loss()
        for name, layer in layers:
            if layer.seen is not None:
                kept.setdefault(name, []).append(layer.seen)
                layer.seen = None
    model.train(training)
    found: Statistics = {}
    for name, moments in kept.items():
        for buffer, values in zip(("running_mean", "running_var"), zip(*moments, strict=True), strict=True):
            found[f"{name}.{buffer}"] = torch.stack(values).mean(0).detach()
    return found


def read(model: nn.Module, names: Iterable[str]) -> Statistics:
    """Copies of the buffers of these names."""
    return {name: model.get_buffer(name).clone() for name in names}


@torch.no_grad()
def write(model: nn.Module, statistics: Statistics) -> None:
    """Put the statistics into the model's buffers."""
    for name, value in statistics.items():
        model.get_buffer(name).copy_(value)


@contextmanager
def lent(model: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Hold the statistics in the model for the time of a ``with`` block."""
    live = read(model, statistics)
    write(model, statistics)
    try:
        yield
    finally:
        write(model, live)
