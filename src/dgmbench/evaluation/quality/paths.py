"""Perceptual path length: how fast pictures change, in features, on a straight way between two of a model's styles.

With G(t) the picture at t on the way between two random latents and phi a feature net, it is E |phi(G(t + step)) -
phi(G(t))|^2 / step^2 over ways and t ~ U(0, 1): the mean squared speed. It is small where small steps in the latent
space are small steps for the eye, and large where pictures on the way jump or show what the data do not.

Paper: Karras, Laine, Aila 2019, https://arxiv.org/abs/1812.04948 (section 4.1), on VGG16's features; no outliers are
left out here.
"""

from collections.abc import Iterator

import torch

from dgmbench.evaluation.features.build import build_net, default_features
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import SAMPLE_CHUNK, SAMPLES, Context, Found, Note
from dgmbench.models.contract import Model
from dgmbench.models.tasks import HasPaths

STEP = 1e-3
"""Share of the way; the paper's 1e-4 leaves few digits to differences of features in single precision."""


def path_length(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """The mean over as many ways as samples are asked for, on every net that the protocol names."""
    if not isinstance(model, HasPaths):
        return
    settings = context.protocol.get("quality") or {"samples": SAMPLES, "features": []}
    n, chosen = settings["samples"], settings["features"]
    for entry in default_features(context.data) if chosen is None else chosen:
        net = build_net(entry, context.data, folder=context.folder, device=context.device, note=note)
        note(f"path length on {net.name}")
        squares = []
        for number, start in enumerate(range(0, n, SAMPLE_CHUNK)):
            size = min(SAMPLE_CHUNK, n - start)
            points = model.path_points(size, STEP, generator=context.generator("paths", number))
            here, there = (net.features(net.scaling(x)).double() for x in points)
            squares.append((there - here).square().sum(1) / STEP**2)
        mean = Metric.mean_of(torch.cat(squares), unit="features^2", kind="estimate", direction="lower")
        details = {**net.record(), "paths": n, "sample_chunk": SAMPLE_CHUNK, "step": STEP, "examples": None}
        yield net.label("path_length"), mean, details
