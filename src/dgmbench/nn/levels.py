"""Conditionals of values with levels: one logit for a binary value, else one for each level, or a logistic's bins.

``parameters`` have the P numbers of a value on their last axis; values are raw, 0 ... K - 1.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec


def parameters_per_value(spec: DataSpec) -> int:
    """P: 1 for binary data (the logit of x = 1), K for data with K levels."""
    return 1 if spec.kind == "binary" else spec.levels or 0


def level_log_prob(parameters: Float[Tensor, "*b p"], x: Tensor) -> Float[Tensor, "*b"]:
    """Elementwise log p(x) of raw values, in nats."""
    if parameters.shape[-1] == 1:
        return -F.binary_cross_entropy_with_logits(parameters[..., 0], x.to(parameters), reduction="none")
    return parameters.log_softmax(-1).gather(-1, x.long()[..., None])[..., 0]


def every_log_prob(parameters: Float[Tensor, "*b p"]) -> Float[Tensor, "*b k"]:
    """The log-probability of every level."""
    if parameters.shape[-1] == 1:
        return F.logsigmoid(torch.cat((-parameters, parameters), -1))
    return parameters.log_softmax(-1)


def logistic_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor, *, levels: int, low: float) -> Tensor:
    """Elementwise log P(x) of raw values under logistics on a scale where the levels span ``low`` to 1, broadcast.

    A level has the mass between the middles to its neighbours, the outermost ones all that lies beyond. The sigmoid's
    difference s(b) - s(a) is s(b) s(-a) (1 - exp(a - b)), whose logarithm never cancels.
    """
    step, inverse = (1 - low) / (levels - 1), torch.exp(-log_scale)
    centre, half = (x.to(mean) * step + low - mean) * inverse, 0.5 * step * inverse
    upper, lower = F.logsigmoid(centre + half), F.logsigmoid(half - centre)
    inside = upper + lower + torch.log(-torch.expm1(-2 * half))
    return torch.where(x == 0, upper, torch.where(x == levels - 1, lower, inside))


def draw_levels(parameters: Float[Tensor, "*b p"], uniform: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """The raw values at which the cumulative probability passes ``uniform``, int64."""
    if parameters.shape[-1] == 1:
        return (uniform < parameters[..., 0].sigmoid()).long()
    return draw_categories(parameters, uniform)


def draw_categories(logits: Float[Tensor, "*b k"], uniform: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """The categories at which the cumulative probability passes ``uniform``, int64; a single category is certain."""
    cdf = logits.softmax(-1).cumsum(-1)
    return torch.searchsorted(cdf, uniform[..., None].contiguous(), right=True)[..., 0].clamp_(max=logits.shape[-1] - 1)


def level_counts(x: Tensor, levels: int) -> Int[Tensor, "d k"]:
    """How often each level occurs in each dimension of raw values x (n, d)."""
    index = x.long() + levels * torch.arange(x.shape[1], device=x.device)
    return torch.bincount(index.flatten(), minlength=levels * x.shape[1]).view(-1, levels)


def marginal_parameters(x: Tensor, levels: int, parameters: int) -> Float[Tensor, "d p"]:
    """The parameters whose conditionals are the frequencies of raw values x (n, d), half an example added to each."""
    log_counts = (level_counts(x, levels) + 0.5).log()
    return log_counts[:, 1:] - log_counts[:, :1] if parameters == 1 else log_counts.log_softmax(1)
