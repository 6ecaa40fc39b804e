"""What the keys of the configuration groups without a class may be; their values live in ``configs/``."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from dgmbench.config.budget import Amount
from dgmbench.config.temperatures import schedule
from dgmbench.errors import UserError

Binarise = Literal["none", "threshold", "dynamic"]


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """How long to train, and what happens how often."""

    budget: str | int | float  # written with its unit; a bare number is refused with the advice to add one
    batch_size: int
    validate: str | int | float
    validate_examples: int | None
    samples: str | int | float
    checkpoint: str | int | float
    clip: float | None
    accumulate: int
    ema: float
    progress: bool
    patience: int | None = None
    dry_run: bool = False
    continue_from: str | None = None
    start_from: str | None = None

    def __post_init__(self) -> None:
        for key in ("budget", "validate", "samples"):
            Amount.parse(getattr(self, key), what=f"trainer.{key}")
        Amount.parse(self.checkpoint, ("s", "ep", "ba", "im"), what="trainer.checkpoint")
        _positive("trainer", self, "batch_size", "accumulate", "clip", "validate_examples", "patience")
        if not 0 <= self.ema < 1:
            raise UserError(f"trainer.ema={self.ema} must be at least 0 and less than 1 (0 = no moving average).")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the run computes on."""

    accelerator: Literal["auto", "cpu", "gpu"]
    devices: int | Literal["all"]
    nodes: int
    precision: Literal["32", "bf16"]
    threads: int | None
    compile: bool
    channels_last: bool

    def __post_init__(self) -> None:
        _positive("hardware", self, "nodes", "threads")
        if self.devices != "all":
            _positive("hardware", self, "devices")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate changes over the budget: from its value, after a linear warm-up, to a share ``final``."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    warmup: str | int | float = "0ba"
    final: float = 0.0

    def __post_init__(self) -> None:
        Amount.parse(self.warmup, what="optimizer.schedule.warmup", zero=True)
        if not 0 <= self.final <= 1:
            raise UserError(f"optimizer.schedule.final={self.final} is a share of the learning rate, from 0 to 1.")


@dataclass(frozen=True, kw_only=True)
class Ais:
    """The schedule of annealed importance sampling."""

    chains: int
    temperatures: int | list[float] | list[tuple[float, int]]
    """Steps from 0 to 1; or the inverse temperatures; or pieces [end, steps]."""
    spacing: Literal["even", "adaptive"] = "even"
    burn_in: int = 1000
    """Transitions before the reverse runs, where exact samples cannot be had."""

    def __post_init__(self) -> None:
        _positive("protocol.ais", self, "chains", "burn_in")
        if isinstance(self.temperatures, int):
            _positive("protocol.ais", self, "temperatures")
            return
        if self.spacing == "adaptive":
            raise UserError(
                f"protocol.ais.spacing=adaptive chooses the temperatures, but protocol.ais.temperatures="
                f"{self.temperatures} gives them; give their number, or spacing=even."
            )
        try:
            schedule(self.temperatures)
        except UserError as error:
            raise UserError(f"protocol.ais.temperatures={self.temperatures}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class DecoderAis:
    """Annealing over a decoder's noise; with no examples it is left out."""

    examples: int = 0
    chains: int = 16
    temperatures: int = 1000
    leapfrog: int = 10

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise UserError(f"protocol.decoder_ais.examples={self.examples} must be zero (off) or more.")
        _positive("protocol.decoder_ais", self, "chains", "temperatures", "leapfrog")


@dataclass(frozen=True, kw_only=True)
class Parzen:
    """Gaussian kernels around samples; with no samples they are left out."""

    samples: int = 0

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise UserError(f"protocol.parzen.samples={self.samples} must be zero (off) or more.")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How many samples are compared with data, and on which features."""

    samples: int = 1000
    features: list[Any] | None = None
    """Names of ``configs/features`` or nodes of the same form; null = by the data."""

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise UserError(f"protocol.quality.samples={self.samples} must be at least 2.")


@dataclass(frozen=True, kw_only=True)
class SemiSupervised:
    """Linear probes of codes that see few labels only; with no numbers of labels they are left out."""

    labels: list[int] = field(default_factory=list)
    draws: int = 10

    def __post_init__(self) -> None:
        if min(self.labels, default=1) < 1 or len(set(self.labels)) < len(self.labels):
            raise UserError(
                f"protocol.semi_supervised.labels={self.labels} must name different numbers of labels, each at least 1."
            )
        _positive("protocol.semi_supervised", self, "draws")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a measured number means."""

    name: str
    seed: int
    k: int | list[int]
    ais: dict[str, Any]
    checkpoint: list[Literal["best", "final"]]
    splits: list[Literal["train", "valid", "test"]]
    max_examples: int | None
    decoder_ais: dict[str, Any] = field(default_factory=dict)
    parzen: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    semi_supervised: dict[str, Any] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.max_examples is not None and self.max_examples < 2:
            raise UserError(
                f"protocol.max_examples={self.max_examples} must be at least 2, for a standard error; null takes all."
            )
        ks = [self.k] if isinstance(self.k, int) else self.k
        if not ks or min(ks) < 1:
            raise UserError(f"protocol.k={self.k} must name numbers of importance samples, each at least 1.")
        for key in ("checkpoint", "splits"):
            chosen = getattr(self, key)
            if not chosen:
                raise UserError(f"protocol.{key}=[] leaves nothing to evaluate: name at least one.")
            if len(set(chosen)) < len(chosen):
                raise UserError(f"protocol.{key}={chosen} must name each only once.")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What ``dgm sample`` draws."""

    n: int
    seed: int
    checkpoint: Literal["best", "final"]
    label: int | None
    temperature: float | None
    caption: str | None
    size: list[int] | None = None
    show: Literal[
        "samples",
        "reconstructions",
        "interpolations",
        "traversals",
        "completions",
        "translations",
        "enhanced",
        "panels",
        "topics",
        "growth",
        "styles",
        "parts",
        "predictions",
        "alignments",
    ] = "samples"
    truncation: float | None = None

    def __post_init__(self) -> None:
        for key in ("label", "temperature", "truncation", "size"):
            if getattr(self, key) is not None and self.show != "samples":
                raise UserError(f"{key}={getattr(self, key)} goes with show=samples, not with show={self.show}.")
        if self.n <= 0:
            raise UserError(f"n={self.n} must be more than zero: it is the number of samples.")
        for key in ("seed", "label"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise UserError(f"{key}={value} must be zero or more.")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise UserError(f"size={self.size} must be [height,width] in pixels, two whole numbers of at least 1.")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature={self.temperature} must be zero or more; 1 is the model's own distribution.")
        if self.truncation is not None and not 0 <= self.truncation < math.inf:
            raise UserError(f"truncation={self.truncation} must be zero or more; leave it out for the model's own.")


@dataclass(frozen=True, kw_only=True)
class Exporting:
    """What ``dgm export`` writes."""

    n: int
    seed: int
    checkpoint: Literal["best", "final"]
    label: int | None
    form: Literal["images", "npz"] | None
    what: Literal["samples", "weights"] = "samples"

    def __post_init__(self) -> None:
        _positive("", self, "n")
        if self.what == "weights" and (self.label is not None or self.form is not None):
            raise UserError("what=weights writes the model itself: label= and form= go with samples.")
        for key in ("seed", "label"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise UserError(f"{key}={value} must be zero or more.")


@dataclass(frozen=True, kw_only=True)
class _Logger:
    """What all loggers have: the names of others beside it, of those that need no settings."""

    also: list[Literal["csv", "tensorboard"]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class JsonlLogger(_Logger):
    """Metric rows in the run folder, which every run writes."""

    name: Literal["jsonl"]


@dataclass(frozen=True, kw_only=True)
class CsvLogger(_Logger):
    """metrics.csv, one line a metric and point in time, beside the metric rows."""

    name: Literal["csv"]


@dataclass(frozen=True, kw_only=True)
class TensorboardLogger(_Logger):
    """TensorBoard event files beside the metric rows."""

    name: Literal["tensorboard"]


@dataclass(frozen=True, kw_only=True)
class WandbLogger(_Logger):
    """Weights & Biases beside the metric rows."""

    name: Literal["wandb"]
    project: str
    mode: Literal["online", "offline", "disabled"]


LOGGERS: dict[str, type] = {
    "jsonl": JsonlLogger,
    "csv": CsvLogger,
    "tensorboard": TensorboardLogger,
    "wandb": WandbLogger,
}


def _positive(where: str, settings: object, *keys: str) -> None:
    for key in keys:
        value = getattr(settings, key)
        if value is not None and value <= 0:
            raise UserError(f"{f'{where}.{key}' if where else key}={value} must be more than zero.")
