r"""Samples of a model that has learned from a single picture: how like the picture's their patches are, and how varied.

With one picture to compare with there is no distribution of pictures, but one of patches: squares of ``SIDE`` pixels of
the picture and of the sample, and of both at half, a quarter, ... of their size as long as that leaves twice ``SIDE``.
Their distance, at each size, is the energy distance of both sets of patches,

    2 mean |a - b| - mean |a - a'| - mean |b - b'|

over all pairs, a patch with itself among them. It is 0 exactly where both have the same patches equally often, wherever
these lie; so a copy of the picture has 0, too. That is what the diversity is for: the standard deviation of each pixel
over the samples, averaged, over that of all values of the picture (Shaham et al. 2019, section 3); copies have 0.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dgmbench.data import DataSet
from dgmbench.data.dataset import SplitName
from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import SAMPLE_CHUNK, Context, Found
from dgmbench.evaluation.sample_distance import no_distance
from dgmbench.models.contract import CanSample
from dgmbench.nn.scaling import Scaling

SIDE = 7  # pixels of a patch
STEP = 2  # pixels from one patch to the next
ONE_PICTURE_SAMPLES = 100  # of which the diversity is measured (50 in the paper)
COMPARED, COMPARED_IN_VALIDATION = 50, 20  # samples whose patches are


def single_picture(data: DataSet, split: SplitName) -> bool:
    """Whether samples are compared with the patches of one picture, because there is no other."""
    return data.size(split) == 1 and data.spec.is_image


def of_one_picture(drawn: Tensor, context: Context) -> Iterator[Found]:
    """Both measures of raw samples (n, c, h, w)."""
    (picture,) = (x[0].cpu() for x in context.chunks)
    details = {"samples": len(drawn), "sample_chunk": SAMPLE_CHUNK}
    distance, patches = mean_distance(drawn[:COMPARED], picture, context.data.spec), {"patch": SIDE, "step": STEP}
    yield "patch_energy_distance", distance, {**details, **patches, "compared": distance.n}
    varied = diversity(drawn, picture) if len(drawn) > 1 else math.nan
    yield "sample_diversity", Metric(varied, "1", "estimate", "none", None, len(drawn)), details


def one_picture_distance(model: CanSample, chunks: Chunks) -> Metric:
    """The distance of a few samples, for validation; the noise is the same at every call."""
    (picture,), n = (x[0].cpu() for x in chunks), COMPARED_IN_VALIDATION
    try:
        drawn = model.sample(n, generator=keyed_generator("samples", chunks.seed, device=chunks.device)).cpu()
    except UserError as error:  # NaN, which is no value of the data's space
        return no_distance(chunks.data.spec, n, error)
    return mean_distance(drawn, picture, chunks.data.spec)


def mean_distance(samples: Tensor, picture: Tensor, spec: DataSpec) -> Metric:
    """The mean over raw samples (n, c, h, w) of their patches' distance to the raw picture's (c, h, w), both scaled to
    [0, 1] where they are bounded.
    """
    scale = Scaling(spec, low=0.0, high=1.0)
    real = scale(picture[None])[0]
    values = torch.tensor([patch_distance(x, real) for x in scale(samples)], dtype=torch.float64)
    return Metric.mean_of(values, unit=scale.unit, kind="estimate", direction="lower")


def patch_distance(a: Float[Tensor, "c h w"], b: Float[Tensor, "c i j"]) -> float:
    """The energy distance of the patches of two pictures, the mean over the sizes."""
    found = []
    while True:
        x, y = patches_of(a), patches_of(b)
        distance = 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()
        found.append(max(0.0, float(distance)))
        if min(*a.shape[1:], *b.shape[1:]) < 4 * SIDE:
            return sum(found) / len(found)
        a, b = (F.avg_pool2d(each[None], 2)[0] for each in (a, b))


def patches_of(picture: Float[Tensor, "c h w"]) -> Float[Tensor, "n d"]:
    """Squares of SIDE pixels that stand every STEP pixels, float64; smaller ones where the picture is."""
    return F.unfold(picture[None].double(), min(SIDE, *picture.shape[1:]), stride=STEP)[0].T


def diversity(samples: Float[Tensor, "n c h w"], picture: Float[Tensor, "c h w"]) -> float:
    """How much a pixel varies from sample to sample, over how much values vary in the picture."""
    return float(samples.double().std(0).mean() / picture.double().std())
