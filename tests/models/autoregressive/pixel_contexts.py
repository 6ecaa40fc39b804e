"""Who sees whom in a model of images: by gradient, and by set arithmetic over the layers, written independently.

A context is a boolean table (d, d) over dimensions in C order of (c, h, w): row i has the inputs that output i sees.
"""

import itertools

import torch

BESIDE = range(-1, 2)


def by_gradient(model, seed=0):
    """Which inputs have a gradient to the parameters of each dimension, at random images."""
    g = torch.Generator().manual_seed(seed)
    shape, d = model.spec.shape, model.spec.dim
    inputs = torch.randn(24, *shape, generator=g, dtype=torch.float64).requires_grad_()
    model._inputs = lambda _: inputs
    parameters = model.given(torch.zeros(24, *shape, dtype=torch.uint8), None)
    weights = torch.randn(parameters.shape[-1], generator=g, dtype=torch.float64)
    seen = torch.zeros(d, d, dtype=torch.bool)
    for i in range(d):
        (gradient,) = torch.autograd.grad((parameters[:, i] @ weights).sum(), inputs, retain_graph=True)
        seen[i] = (gradient != 0).any(0).flatten()
    del model._inputs
    return seen


class Contexts:
    """The contexts of all features (y, x, channel) of a map, as sets of input dimensions (channel, y, x)."""

    def __init__(self, shape, sets=None):
        self.shape = shape
        self.sets = sets or {}

    def at(self, y, x, channels):
        return frozenset().union(*(self.sets.get((y, x, k), frozenset()) for k in channels))

    def build(self, see):
        """A map whose feature (y, x, k) sees the union of what ``see(y, x, k)`` yields: (y, x, channels)."""
        c, h, w = self.shape
        sets = {}
        for y, x, k in itertools.product(range(h), range(w), range(c)):
            sets[y, x, k] = frozenset().union(*(self.at(*place) for place in see(y, x, k)))
        return Contexts(self.shape, sets)

    def __or__(self, other):
        return Contexts(self.shape, {key: value | other.sets[key] for key, value in self.sets.items()})

    def table(self):
        c, h, w = self.shape
        seen = torch.zeros(c * h * w, c * h * w, dtype=torch.bool)
        for (y, x, k), inputs in self.sets.items():
            for channel, row, column in inputs:
                seen[(k * h + y) * w + x, (channel * h + row) * w + column] = True
        return seen


def image(shape):
    """The image itself: every value sees itself."""
    c, h, w = shape
    places = itertools.product(range(h), range(w), range(c))
    return Contexts(shape, {(y, x, k): frozenset([(k, y, x)]) for y, x, k in places})


def masked_conv(below, half, mask):
    """A square kernel over ``half`` pixels on all sides, masked."""
    everything = range(below.shape[0])

    def see(y, x, k):
        for dy in range(-half, 0):
            for dx in range(-half, half + 1):
                yield y + dy, x + dx, everything
        for dx in range(-half, 0):
            yield y, x + dx, everything
        yield y, x, range(k + (mask == "B"))

    return below.build(see)


def before(shape):
    """All dimensions before each in raster order, channels last."""
    c, h, w = shape
    position = torch.arange(h * w)[None] * c + torch.arange(c)[:, None]
    return position.flatten() < position.flatten()[:, None]
