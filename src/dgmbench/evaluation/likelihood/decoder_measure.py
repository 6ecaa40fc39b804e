"""The parts of the evaluation that give a likelihood to decoders and samplers: annealing over noise, Parzen windows."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import CHUNK, Chunks
from dgmbench.evaluation.likelihood.bounds import BLOCK_NUMBERS, LEAST_WIDTH
from dgmbench.evaluation.likelihood.decoder_ais import (
    Annealing,
    LogLikelihood,
    Runs,
    annealed,
    annealed_back,
    blurred_log_density,
    sigmoid_schedule,
    tuned_steps,
)
from dgmbench.evaluation.likelihood.parzen import parzen_jackknife, parzen_log_density, squared_distances
from dgmbench.evaluation.likelihood.sigma import TOLERANCE, best_sigma
from dgmbench.evaluation.likelihood.units import bits_per_dim
from dgmbench.evaluation.metrics import Metric, NumberKind
from dgmbench.evaluation.parts import SAMPLE_CHUNK, Context, Found, Note
from dgmbench.models.contract import CanGenerate, CanSample, HasDecoder, Model
from dgmbench.nn.hmc import ACCEPTANCE
from dgmbench.nn.scaling import Scaling

# First candidates for sigma, in units of the data's range on [0, 1], or of the standard deviation of real data: samples
# of noise lie sqrt(2) of it apart, so kernels may have to be wider.
SIGMAS = tuple(round(10 ** (-2 + k / 4), 4) for k in range(11))
PARZEN_CHOOSING = 1000  # examples that sigma is chosen on
JACKKNIFE_BLOCKS = 10  # of samples, for the error that comes from their draw
BLUR_CHOOSING = 40  # annealing costs more
BLUR_SIGMAS = SIGMAS[:9:2]
# A note warns of annealing with a gap of more nats between its two sides, of fewer effective chains an example, and of
# an acceptance farther from its target: moves that hardly go anywhere are taken too often or too seldom.
WIDE_GAP = 1.0
LEAST_CHAINS = 2.0
ACCEPTANCE_OFF = 0.25
SCALED = ("binary", "discrete", "real")
UNRELIABLE = "unreliable: Parzen windows rank models wrongly in many dimensions"


@dataclass(frozen=True)
class Decoder:
    """What annealing needs of a model: log p(x | noise) of examples x (b, ...), and draws of x given noise."""

    noise_dim: int
    log_prob: Callable[[Tensor, Tensor], Tensor]
    sample: Callable[[Tensor, Generator], Tensor]
    dtype: torch.dtype

    def noise(self, n: int, generator: Generator) -> Tensor:
        """Standard normal noise (n, noise_dim)."""
        return torch.randn(n, self.noise_dim, generator=generator, device=generator.device, dtype=self.dtype)

    def given(self, x: Tensor, chains: int) -> LogLikelihood:
        """The log-likelihood of noise (chains * b, noise_dim), chain by chain, at examples x."""
        repeated = x.repeat(chains, *[1] * (x.dim() - 1))
        return lambda z: self.log_prob(repeated, z)


def decoder_ais(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """log p(x) by annealing over the noise: of a decoder's own p(x | z), else of an implicit model with blur."""
    settings = context.settings("decoder_ais")
    spec = context.data.spec
    if not settings.get("examples") or spec.kind not in SCALED or spec.given is not None or spec.lengths:
        return
    annealing = Annealing(settings["chains"], sigmoid_schedule(settings["temperatures"]), settings["leapfrog"])
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    if isinstance(model, HasDecoder):
        own = Decoder(model.noise_dim, model.log_prob_given, lambda z, g: model.sample_given(z, generator=g), dtype)
        yield from _annealing(own, context, note, "decoder_ais", "lower bound", annealing, {"chunk": lambda x: x})
    elif isinstance(model, CanGenerate):
        scale = Scaling(context.data.spec, low=0.0, high=1.0)
        unit = _unit(context, scale)
        note("choosing the blur of samples on held-out examples")
        sigma, odd = _chosen_blur(model, context, scale, annealing, dtype, unit)
        details = {"space": f"density of {scale.unit}", "sigma": _choosing(context, BLUR_SIGMAS, BLUR_CHOOSING)}
        yield "blurred_ais_sigma", Metric(sigma, scale.unit, "estimate", "none", note=odd), details
        if not math.isfinite(sigma):
            details = {"decoder_ais": _settings(context), "spacing": "sigmoid", **details}
            yield "blurred_ais", Metric(math.nan, "nats", "estimate", "higher", note=odd), details
            return
        blurred = _blurred(model, scale, sigma, dtype)
        extra = {"chunk": scale, "note": f"of samples blurred by sigma = {sigma:.3g} {scale.unit}", **details}
        yield from _annealing(blurred, context, note, "blurred_ais", "estimate", annealing, extra)


def _blurred(model: CanGenerate, scale: Scaling, sigma: float, dtype: torch.dtype) -> Decoder:
    """x = G(z) + sigma * noise on scaled values."""

    def log_prob(x: Tensor, z: Tensor) -> Tensor:
        return blurred_log_density(x.to(z.dtype), scale(model.generate(z)).to(z.dtype), sigma)

    def sample(z: Tensor, generator: Generator) -> Tensor:
        centre = scale(model.generate(z))
        noise = torch.randn(centre.shape, generator=generator, device=centre.device, dtype=centre.dtype)
        return centre + sigma * noise

    return Decoder(model.noise_dim, log_prob, sample, dtype)


def _chosen_blur(
    model: CanGenerate, context: Context, scale: Scaling, annealing: Annealing, dtype: torch.dtype, unit: float
) -> tuple[float, str | None]:
    """The sigma of the largest likelihood of held-out examples, by runs of a tenth of the temperatures."""
    short = replace(annealing, betas=sigmoid_schedule(max(20, len(annealing.betas) // 10)))
    chunks = _held_out(context, BLUR_CHOOSING)

    def value(sigma: float) -> float:
        return float(_each(_blurred(model, scale, sigma, dtype), chunks, short, "blur", scale)[:, 0].mean())

    return best_sigma(value, [unit * sigma for sigma in BLUR_SIGMAS], context.data.spec.dim)


def _each(
    decoder: Decoder, chunks: Chunks, annealing: Annealing, name: str, scaled: Callable[[Tensor], Tensor]
) -> Tensor:
    """Value, variance over runs, effective chains and acceptance of every example, (n, 4)."""

    def value(x: Tensor, generator: Generator) -> Tensor:
        width = max(LEAST_WIDTH, x[0].numel())
        parts = scaled(x).split(max(1, BLOCK_NUMBERS // (annealing.chains * width)))
        return torch.cat([_columns(_forward(decoder, part, annealing, generator)[0]) for part in parts])

    return chunks.each(name, value)


def _forward(decoder: Decoder, x: Tensor, annealing: Annealing, generator: Generator) -> tuple[Runs, Tensor]:
    n, given = len(x), decoder.given(x, annealing.chains)
    rows = annealing.chains * n
    steps = tuned_steps(given, decoder.noise(rows, generator), n, annealing, generator)
    return annealed(given, decoder.noise(rows, generator), n, steps, annealing, generator), steps


def _columns(runs: Runs) -> Tensor:
    return torch.stack([runs.log_mean(), runs.variance(), runs.ess(), runs.acceptance], dim=1)


def _gap(decoder: Decoder, context: Context, annealing: Annealing, n: int) -> Tensor:
    """Upper minus lower bound on n examples that the model has made, (n,)."""
    generator = context.generator("decoder_ais", "gap")
    z = decoder.noise(n, generator)
    x = decoder.sample(z, generator)
    size = max(1, BLOCK_NUMBERS // (annealing.chains * max(LEAST_WIDTH, x[0].numel())))
    gaps = []
    for part, exact in zip(x.split(size), z.split(size), strict=True):
        forward, steps = _forward(decoder, part, annealing, generator)
        back = annealed_back(decoder.given(part, annealing.chains), exact, steps, annealing, generator)
        gaps.append(-back.log_mean() - forward.log_mean())
    return torch.cat(gaps).cpu()


def _annealing(
    decoder: Decoder,
    context: Context,
    note: Note,
    name: str,
    kind: NumberKind,
    annealing: Annealing,
    extra: dict[str, Any],
) -> Iterator[Found]:
    settings = _settings(context)
    scaled, about = extra.pop("chunk"), extra.pop("note", None)
    details = {"decoder_ais": settings, "spacing": "sigmoid", **extra}
    note(f"annealing the noise of {settings['examples']} examples, {settings['chains']} chains each")
    found = _each(decoder, context.few(settings["examples"]), annealing, name, scaled)
    note("annealing back from the noise of the model's own examples")
    gaps = _gap(decoder, context, annealing, min(CHUNK, len(found)))
    gap = Metric.mean_of(gaps, unit="nats", kind="estimate", direction="lower")
    ess = Metric.mean_of(found[:, 2], unit="chains", kind="estimate", direction="higher")
    acceptance = Metric.mean_of(found[:, 3], unit="share", kind="estimate", direction="none")
    wide, few, off = _warnings(gap.value, ess.value, acceptance.value)
    warning = "; ".join(filter(None, (about, wide, few, off))) or None
    nats = Metric.mean_of(
        found[:, 0], unit="nats", kind=kind, direction="higher", draw_variance=found[:, 1], note=warning
    )
    yield name, nats, details
    if kind == "lower bound" and context.data.spec.kind in ("binary", "discrete"):
        yield f"{name}_bits_per_dim", bits_per_dim(nats, context.data.spec.dim), details
    yield f"{name}_gap", gap.noting(wide), details
    yield f"{name}_ess", ess.noting(few), details
    yield f"{name}_acceptance", acceptance.noting(off), details


def _warnings(gap: float, ess: float, acceptance: float) -> tuple[str | None, str | None, str | None]:
    """What is wrong with the gap, the effective chains and the acceptance; what is not finite is wrong."""
    wide = None if abs(gap) <= WIDE_GAP else f"wide: {gap:.2g} nats between both directions of annealing"
    few = None if ess >= LEAST_CHAINS else f"{ess:.1f} effective chains an example"
    off = None if abs(acceptance - ACCEPTANCE) <= ACCEPTANCE_OFF else f"acceptance {acceptance:.2f}, not {ACCEPTANCE}"
    return wide, few, off


def _settings(context: Context) -> dict[str, Any]:
    """The protocol's settings for annealing, with the number of examples that there are."""
    settings = dict(context.settings("decoder_ais"))
    return settings | {"examples": _count(context.few(settings["examples"]))}


def parzen(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """The log-density of data under Gaussian kernels around samples."""
    n, spec = context.settings("parzen").get("samples"), context.data.spec
    if not n or not isinstance(model, CanSample) or spec.kind not in SCALED or spec.given is not None or spec.lengths:
        return
    note(f"Parzen windows around {n} samples")
    scale, dim = Scaling(context.data.spec, low=0.0, high=1.0), context.data.spec.dim
    samples = scale(context.draw(model, n, note).to(context.device)).flatten(1)
    chosen_on = torch.cat(list(_held_out(context, PARZEN_CHOOSING)))
    distances = squared_distances(scale(chosen_on).flatten(1), samples)
    unit = _unit(context, scale)
    sigma, odd = best_sigma(
        lambda sigma: float(parzen_log_density(distances, sigma, dim).mean()), [unit * s for s in SIGMAS], dim
    )
    details = {
        "samples": n,
        "sample_chunk": SAMPLE_CHUNK,
        "space": f"density of {scale.unit}",
        "sigma": _choosing(context, SIGMAS, PARZEN_CHOOSING),
    }
    found = Metric(math.nan, "nats", "estimate", "higher")
    if math.isfinite(sigma):
        found = _parzen_mean(samples, context.chunks, scale, sigma)
    yield "parzen", found.noting(UNRELIABLE).noting(odd), details
    yield "parzen_sigma", Metric(sigma, scale.unit, "estimate", "none", note=odd), details


def _parzen_mean(samples: Tensor, chunks: Chunks, scale: Scaling, sigma: float) -> Metric:
    """The mean over all chunks, with the error of the draw of the samples (S, D) by a jackknife over blocks of them.

    That sigma was chosen with the same samples adds nothing of the first order, because the value is flat there.
    """
    blocks = min(JACKKNIFE_BLOCKS, len(samples))

    def value(x: Tensor, _: Generator) -> Tensor:
        distances = squared_distances(scale(x).flatten(1), samples)
        return parzen_jackknife(distances, sigma, samples.shape[1], blocks)

    values = chunks.each("parzen", value)
    found = Metric.mean_of(values[:, 0], unit="nats", kind="estimate", direction="higher")
    if blocks < 2:
        return found
    se_draws = math.sqrt((blocks - 1) * float(values[:, 1:].mean(0).var(correction=0)))
    return replace(found, se=None if found.se is None else math.hypot(found.se, se_draws), se_draws=se_draws)


def _unit(context: Context, scale: Scaling) -> float:
    """What candidates for sigma are multiples of: the range of bounded data, the standard deviation of real ones."""
    if scale.bounded:
        return 1.0
    x = torch.cat(list(_held_out(context, PARZEN_CHOOSING)))
    spread = float(x.double().flatten(1).var(0, correction=0).mean().sqrt())
    return spread if spread > 0 else 1.0


def _held_out(context: Context, most: int) -> Chunks:
    """Examples to choose sigma on."""
    split = context.other()
    if context.data.size(split) == 0:
        raise UserError(
            f"sigma is chosen on the {split} split, and that of {context.data.name} has no examples; give it some, or "
            "leave out protocol.parzen and protocol.decoder_ais."
        )
    return context.few(most, split)


def _choosing(context: Context, sigmas: tuple[float, ...], most: int) -> dict[str, Any]:
    """How sigma is chosen, for the protocol."""
    chunks = _held_out(context, most)
    return {
        "from": sigmas[0],
        "to": sigmas[-1],
        "tolerance": TOLERANCE,
        "split": chunks.split,
        "examples": _count(chunks),
    }


def _count(chunks: Chunks) -> int:
    n = chunks.data.size(chunks.split)
    return n if chunks.limit is None else min(n, chunks.limit)
