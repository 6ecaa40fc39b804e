r"""How well translations to another domain arrive, keep what should stay, and come back.

Each example goes to one other domain, drawn uniformly, and back. *Arrived*: an independent classifier, trained on real
data only, finds it in that domain. *Kept*: classifiers of the other factors still find theirs. *Cycle error*: the mean
absolute difference of the example and what came back (Zhu et al. 2017, eq. 2), of values scaled to [0, 1].
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from dgmbench.data import DataSet, DataSpec
from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import Batch
from dgmbench.errors import UserError, nearest
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.features.build import build_net
from dgmbench.evaluation.features.classifier import Classifier
from dgmbench.evaluation.features.factor import FactorClassifier
from dgmbench.evaluation.features.net import FeatureNet
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import Context, Found, Note
from dgmbench.evaluation.sample_distance import no_distance, pixel_energy_distance
from dgmbench.evaluation.tasks.held_out import mean
from dgmbench.models.contract import Model
from dgmbench.models.tasks import CanTranslate, HeldOut
from dgmbench.nn.labels import factor_of
from dgmbench.nn.scaling import Scaling


def translation(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """Accuracy of the domain and of the other factors under classifiers, and the cycle error."""
    if not (isinstance(model, CanTranslate) and has_domains(model, context.data)):
        return
    note("translations")
    spec = context.data.spec
    nets = dict(_nets(model, context, note))

    def compare(batch: Batch, generator: Generator) -> Tensor:
        _, to, there, back = translated(model, batch, spec, generator)
        columns = [_difference(back, batch.x, spec)]
        assert batch.y is not None
        for factor, net in nets.items():
            wanted = to if factor == model.domain else factor_of(batch.y, spec, str(factor))
            logits = net.logits(net(there))
            assert logits is not None
            columns.append((logits.argmax(1) == wanted).double())
        return torch.stack(columns, 1).masked_fill((batch.y < 0)[:, None], torch.nan)

    try:
        values = context.chunks.each_labelled("translate", compare)
    except UserError as error:  # what is no value of the data's space, NaN for instance
        nothing = Metric(math.nan, "share", "estimate", "higher", note=str(error))
        yield "translation_domain_accuracy", nothing, {}
        return
    known = ~values.isnan().all(1)
    remark = None if known.all() else f"{int((~known).sum())} of {len(known)} examples have no label"
    unit = "share of tokens" if spec.kind == "tokens" else Scaling(spec).unit
    cycle = mean(values[known, 0], HeldOut(unit, "lower"))
    yield "translation_cycle_error", cycle.noting(remark), {"domain": model.domain}
    for column, (factor, net) in enumerate(nets.items(), start=1):
        name = "domain" if factor == model.domain else factor
        accuracy = mean(values[known, column], HeldOut("share", "higher")).noting(remark)
        yield f"translation_{name}_accuracy", accuracy, {"domain": model.domain, **net.record()}


def has_domains(model: CanTranslate, data: DataSet) -> bool:
    """Whether the data say which domain each example is from; a factor that they do not have is refused."""
    sizes = dict(data.spec.factors or ())
    if model.domain is not None and model.domain not in sizes:
        raise UserError(nearest(model.domain, sizes, what=f"factor of data={data.name} that is a domain, named"))
    y = data.splits["train"].y
    return y is not None and y.ndim == 1 and (model.domain is not None or bool(data.spec.num_classes))


def translated(
    model: CanTranslate, batch: Batch, spec: DataSpec, generator: Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The domains (b,) of a batch, others drawn for them, the translations (b, *shape), and what comes back of them."""
    domain, to = destinations(model, batch, spec, generator)
    there = model.translate(batch.x, to, generator=generator)
    return domain, to, there, model.translate(there, domain, generator=generator)


def destinations(model: CanTranslate, batch: Batch, spec: DataSpec, generator: Generator) -> tuple[Tensor, Tensor]:
    """The domains (b,) of a batch, 0 where unknown, and for each another one, drawn uniformly."""
    assert batch.y is not None
    if model.domain is None:
        domain, domains = batch.y, spec.num_classes or 0
    else:
        domain, domains = factor_of(batch.y, spec, model.domain), dict(spec.factors or ())[model.domain]
    if domains < 2:
        raise UserError(f"There is nothing to translate to: the data have {domains} domain(s).")
    domain = domain.clamp_min(0)
    step = torch.randint(1, domains, domain.shape, generator=generator, device=domain.device)
    return domain, (domain + step) % domains


def translation_distance(model: CanTranslate, chunks: Chunks) -> Metric:
    """The energy distance of translations into a domain to the examples of that domain, the mean over the domains.

    Cheap, and needs no features: what a translator is validated by that names no objective of its own. It says how
    translations look, not whether what they show is kept.
    """
    spec, rows = chunks.data.spec, []
    for number, batch in enumerate(chunks.labelled().batches()):
        generator = keyed_generator("translate", chunks.seed, number, device=chunks.device)
        domain, to = destinations(model, batch, spec, generator)
        try:
            rows.append((domain, to, batch.x, model.translate(batch.x, to, generator=generator)))
        except UserError as error:  # what is no value of the data's space, NaN for instance
            return no_distance(spec, chunks.examples, error)
    if not rows:
        raise UserError("A translator is validated on examples whose domain is known, and none of these is labelled.")
    domain, to, x, there = (torch.cat(each) for each in zip(*rows, strict=True))
    found = [
        pixel_energy_distance(there[to == k], x[domain == k], spec)
        for k in range(int(domain.max()) + 1)
        if min((to == k).sum(), (domain == k).sum()) > 1
    ]
    if not found:
        return no_distance(spec, len(x), UserError("no domain has two examples and two translations into it"))
    value = sum(each.value for each in found) / len(found)
    se = math.sqrt(sum((each.se or 0.0) ** 2 for each in found)) / len(found)
    return replace(found[0], value=value, se=se, se_draws=None, n=len(x))


def _nets(model: CanTranslate, context: Context, note: Note) -> Iterator[tuple[str | None, FeatureNet]]:
    """A classifier of each factor, the domain's first; none for tokens, nor where the protocol names no nets."""
    chosen = context.settings("quality").get("features", [])
    if context.data.spec.kind == "tokens" or chosen == []:
        return
    target = f"{Classifier.__module__}.{Classifier.__qualname__}"
    own = next((e for e in chosen or [] if isinstance(e, Mapping) and e.get("_target_") == target), {})
    settings: dict[str, Any] = {key: own[key] for key in ("width", "images", "seed") if key in own}
    names = [name for name, _ in context.data.spec.factors or () if name != model.domain]
    for factor in [model.domain, *(names if model.domain is not None else [])]:
        if factor is None:
            node = {"_target_": target, **settings}
        else:
            node = {"_target_": f"{FactorClassifier.__module__}.FactorClassifier", "factor": factor, **settings}
        yield factor, build_net(node, context.data, folder=context.folder, device=context.device, note=note)


def _difference(a: Tensor, b: Tensor, spec: DataSpec) -> Tensor:
    """The mean absolute difference of raw values (b, *shape), scaled; of tokens the share that differs, as (b,)."""
    if spec.kind == "tokens":
        return (a != b).flatten(1).double().mean(1)
    scale = Scaling(spec, low=0.0, high=1.0)
    return (scale(a) - scale(b)).abs().flatten(1).double().mean(1)
