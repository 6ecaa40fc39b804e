"""Labels as a condition: the class prior, and the marginal of a density that is known for each label.

A class-conditional model gives log p(x | y). Its marginal, log p(x) = log sum_y p(y) p(x | y), is a density of x alone,
so that its numbers stand beside those of models without labels.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.batches import picked
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError


def class_count(spec: DataSpec) -> int:
    """How many classes the examples are of; refuses data without labels."""
    if not spec.num_classes:
        raise UserError("A class-conditional model needs data with labels, and this data set has none.")
    if spec.step_labels:
        raise UserError("A class-conditional model needs a label for each example, and these data have one a step.")
    return spec.num_classes


def start_class_prior(model: nn.Module, spec: DataSpec) -> None:
    """Register ``class_log_prior`` (num_classes,), uniform until ``count_classes``; refuses data without labels."""
    classes = class_count(spec)
    model.register_buffer("class_log_prior", torch.full((classes,), -math.log(classes)))


def count_classes(class_log_prior: Float[Tensor, " c"], y: Tensor | None) -> None:
    """Set the prior to the frequencies of the known labels among y (n,) in place, one added to each count."""
    if y is None:
        raise UserError("A class-conditional model needs labels with every batch, and this one has none.")
    counts = torch.bincount(y[y >= 0], minlength=len(class_log_prior)).to(class_log_prior) + 1.0
    class_log_prior.copy_(torch.log(counts / counts.sum()))


def labels_of(batch: Batch) -> Tensor:
    """The labels (b,) of a batch, -1 where unknown."""
    if batch.y is None:
        raise UserError("The model needs labels with every batch, and this one has none.")
    return batch.y


def labelled_part(batch: Batch) -> Batch:
    """The examples of a batch whose label is known: the batch itself if all are."""
    if batch.y is None:
        return batch
    known = batch.y >= 0
    if bool(known.all()):
        return batch
    return picked(batch, known.nonzero()[:, 0])


def marginal(given: Callable[[Tensor], Tensor], class_log_prior: Float[Tensor, " c"], n: int) -> Tensor:
    """log sum_y p(y) p(x | y) for n examples, where ``given(y)`` returns log p(x | y), (..., n), for labels y (n,)."""
    device = class_log_prior.device
    each = [given(torch.full((n,), label, device=device)) + prior for label, prior in enumerate(class_log_prior)]
    return torch.stack(each).logsumexp(0)


def draw_classes(class_log_prior: Float[Tensor, " c"], n: int, generator: torch.Generator | None = None) -> Tensor:
    """n labels (n,) from the prior."""
    return torch.multinomial(class_log_prior.exp(), n, replacement=True, generator=generator)


def classes_of_noise(class_log_prior: Float[Tensor, " c"], noise: Float[Tensor, " b"]) -> Tensor:
    """Labels (b,) from the prior as a function of standard normal noise: the class in which its quantile falls."""
    quantile = torch.special.ndtr(noise.detach()).to(class_log_prior)
    return torch.searchsorted(class_log_prior.exp().cumsum(0), quantile).clamp(max=len(class_log_prior) - 1)


def one_hot(y: Tensor, num_classes: int, dtype: torch.dtype) -> Float[Tensor, "b c"]:
    """Labels (b,) as (b, num_classes)."""
    return F.one_hot(y.long(), num_classes).to(dtype)


def label_nll(logits: Float[Tensor, "b c"], y: Tensor) -> Float[Tensor, ""]:
    """-log p(y | x) from unnormalised scores, the mean over the examples whose label is known; 0 if none is."""
    total = F.cross_entropy(logits, y, ignore_index=-1, reduction="sum")
    return total / (y >= 0).sum().clamp_min(1)


def label_bound(bounds: Float[Tensor, "... c"], log_q: Float[Tensor, "... c"]) -> Float[Tensor, "..."]:
    """sum_y q(y | x) (bound_y - log q(y | x)): a bound of log p(x) from one of log p(x, y) for every label y.

    It is at most logsumexp_y bound_y, and equals that where q is their softmax.
    """
    return (log_q.exp() * (bounds - log_q)).sum(-1)


def population_mean(values: Float[Tensor, " b"], y: Tensor, share: Tensor) -> Float[Tensor, ""]:
    """The mean over a data set, in which a ``share`` of the labels is known, from a batch that has another share."""
    known = y >= 0
    parts = [part.mean() for part in (values[known], values[~known]) if len(part)]
    return parts[0] if len(parts) == 1 else share * parts[0] + (1 - share) * parts[1]


def factor_of(y: Tensor, spec: DataSpec, factor: str) -> Tensor:
    """The values (n,) of a factor that belong to labels y (n,), numbers of combinations; -1 stays unknown."""
    names, sizes = zip(*(spec.factors or ()), strict=True)
    place = names.index(factor)
    return (y // math.prod(sizes[place + 1 :]) % sizes[place]).where(y >= 0, -1)


def domains_of(spec: DataSpec) -> tuple[str | None, int]:
    """What says which domain an example is from, the factor ``domain`` or (None) the label, and how many there are."""
    sizes = dict(spec.factors or ())
    name, count = ("domain", sizes["domain"]) if "domain" in sizes else (None, spec.num_classes or 0)
    if spec.step_labels or count < 2:
        raise UserError(
            f"The model needs data of at least two domains, a factor called domain or labels, and these have {count}; "
            "choose data=digits_two_domains, say."
        )
    return name, count


def domain_of(y: Tensor, spec: DataSpec) -> Tensor:
    """The domains (n,) that labels y (n,) are of, -1 where unknown."""
    name, _ = domains_of(spec)
    return y if name is None else factor_of(y, spec, name)


def domains_in(batch: Batch, spec: DataSpec) -> Tensor:
    """The domains (b,) of a batch, -1 where unknown."""
    if batch.y is None:
        raise UserError("The model needs to know each example's domain, and this batch has no labels.")
    return domain_of(batch.y, spec)


def by_domain(batch: Batch, x: Tensor, spec: DataSpec) -> list[Tensor]:
    """Values x (b, ...) of a batch's examples, one tensor a domain; those of unknown domain are left out."""
    domain = domains_in(batch, spec)
    parts = [x[domain == k] for k in range(domains_of(spec)[1])]
    if any(not len(part) for part in parts):
        raise UserError(
            f"A batch of {len(x)} has no example of some of the {len(parts)} domains; set trainer.batch_size to more."
        )
    return parts
