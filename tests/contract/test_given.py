"""``verify`` proves conditional models under several conditions, and finds those that mix or ignore what is given."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.config.cards import read_cards
from dgmbench.config.files import import_from
from dgmbench.data import DataSpec
from dgmbench.data.spec import Batch
from dgmbench.models.contract import Model
from dgmbench.verify import verify_model
from dgmbench.verify.subject import Subject

OWN = Path(__file__).parents[1] / "my_given"
import_from([OWN])
my_given: Any = importlib.import_module("my_given")
my_sequences: Any = importlib.import_module("my_sequences")

SPEC = my_given.SPEC
FOLLOW = ("samples follow the probabilities", "samples follow their own condition")
SEQUENCES = DataSpec((4,), "binary", num_classes=2, step_labels=True, lengths=True)


class OfTheFirst(my_given.Pixels):  # type: ignore[misc, name-defined]
    """All examples under the first one's condition."""

    def log_prob(self, x: Tensor, *, given: Tensor) -> Tensor:
        found: Tensor = super().log_prob(x, given=given[:1].expand_as(given))
        return found


class Blind(my_given.Pixels):  # type: ignore[misc, name-defined]
    """A density that never looks at the condition, and samples of it."""

    def _of(self, given: Tensor) -> Tensor:
        return self.logits.mean(0).expand(len(given), -1)


class SamplesOfTheFirst(my_given.Pixels):  # type: ignore[misc, name-defined]
    """Samples that are all under the first one's condition."""

    def sample(self, n: int, y: Tensor | None = None, *, given: Tensor, generator: Generator | None = None) -> Tensor:
        found: Tensor = super().sample(n, given=given[:1].expand_as(given), generator=generator)
        return found


class Unnormalised(my_given.Pixels):  # type: ignore[misc, name-defined]
    """p(x | c) that sums to 1 for c = 0 alone."""

    def log_prob(self, x: Tensor, *, given: Tensor) -> Tensor:
        found: Tensor = super().log_prob(x, given=given) + 0.1 * given.sum(1)
        return found


class CountsPadding(my_sequences.Chain):  # type: ignore[misc, name-defined]
    """One step too many counts."""

    def log_prob(self, x: Tensor, *, length: Tensor) -> Tensor:
        found: Tensor = super().log_prob(x, length=(length + 1).clamp(max=x.shape[1]))
        return found


class PeeksAtPadding(my_sequences.Chain):  # type: ignore[misc, name-defined]
    """Reconstructions that see what lies behind the end."""

    def reconstruct(self, x: Tensor, *, length: Tensor, generator: Generator | None = None) -> Tensor:
        found: Tensor = super().reconstruct(x, length=length) + 0.01 * x.sum(1, keepdim=True)
        return found.clamp(0.0, 1.0)


class LearnsPadding(my_sequences.Chain):  # type: ignore[misc, name-defined]
    """The loss, alone, counts the padding."""

    def loss(self, player: str, batch: Any, generator: Generator) -> Any:
        return super().loss(player, batch._replace(length=torch.full_like(batch.length, 4)), generator)


class FillsPadding(my_sequences.Chain):  # type: ignore[misc, name-defined]
    """Samples go on behind their end."""

    def sample(self, n: int, y: Tensor | None = None, *, length: Tensor, generator: Generator | None = None) -> Tensor:
        found: Tensor = super().sample(n, length=torch.full_like(length, 4), generator=generator)
        return found


class Drawn(Model):
    """Samples and nothing else: bits whose logits are linear in the condition."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        assert spec.given is not None
        self.logits = nn.Linear(spec.given.dim, spec.dim)

    def seen(self, given: Tensor) -> Tensor:
        return given

    def loss(self, player: str, batch: Batch, generator: Generator) -> Any:
        assert batch.given is not None
        logits = self.logits(batch.given.flatten(1).float())
        loss = F.binary_cross_entropy_with_logits(logits, batch.x.flatten(1).float())
        return loss, {"loss": loss.detach()}

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, given: Tensor, generator: Generator | None = None) -> Tensor:
        logits = self.logits(self.seen(given).flatten(1).to(self.logits.weight.dtype))
        noise = torch.rand(logits.shape, generator=generator, dtype=logits.dtype)
        return (noise < torch.sigmoid(logits)).to(torch.uint8).view(-1, *self.spec.shape)


class DrawnBlindly(Drawn):
    """Samples that never look at the condition."""

    def seen(self, given: Tensor) -> Tensor:
        return torch.zeros_like(given)


class DrawnTogether(Drawn):
    """Samples under the conditions of their neighbours."""

    def seen(self, given: Tensor) -> Tensor:
        return given.roll(1, 0)


def failures(model: type[Model], spec: DataSpec, likelihood: str = "exact") -> set[str]:
    def build() -> Model:
        return model(spec)

    return {check.name for check in verify_model(build, spec, likelihood) if check.passed is not True}


@pytest.mark.parametrize(
    ("model", "spec", "likelihood"),
    [
        (my_given.Pixels, SPEC, "exact"),
        (my_given.Mixture, SPEC, "lower bound"),
        (my_sequences.Chain, SEQUENCES, "exact"),
        (Drawn, SPEC, "none"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_right_models_pass(model: type[Model], spec: DataSpec, likelihood: str) -> None:
    assert failures(model, spec, likelihood) == set()


@pytest.mark.parametrize(
    ("model", "spec", "wanted"),
    [
        (OfTheFirst, SPEC, {"each example has its own condition"}),
        (Blind, SPEC, {"what is given matters"}),
        (SamplesOfTheFirst, SPEC, {"samples follow their own condition"}),
        (Unnormalised, SPEC, {"probabilities sum to 1", *FOLLOW}),
        (CountsPadding, SEQUENCES, {"probabilities sum to 1", "padding counts for nothing", FOLLOW[0]}),
        (PeeksAtPadding, SEQUENCES, {"padding counts for nothing"}),
        (LearnsPadding, SEQUENCES, {"padding counts for nothing"}),
        (FillsPadding, SEQUENCES, {"samples end at their length"}),
        (DrawnBlindly, SPEC, {"what is given matters"}),
        (DrawnTogether, SPEC, {"each example has its own condition"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_broken_models_fail_what_is_there_for_them(model: type[Model], spec: DataSpec, wanted: set[str]) -> None:
    likelihood = "none" if issubclass(model, Drawn) else "exact"
    assert failures(model, spec, likelihood) == wanted


def test_data_of_verify_have_unknown_labels_conditions_that_tell_and_padding() -> None:
    subject = Subject(lambda: Model(SPEC), DataSpec((3,), "binary", num_classes=3, given=SPEC.given), "none")
    data = subject.data
    assert 10 < int((data.y == -1).sum()) < 60
    assert len(data.given.unique(dim=0)) > 2
    data = Subject(lambda: Model(SEQUENCES), SEQUENCES, "none").data
    behind = torch.arange(4) >= data.length[:, None]
    assert not data.x[behind].any()
    assert (data.y[behind] == -1).all()


def test_cards_say_what_a_model_takes() -> None:
    cards = read_cards([OWN])
    assert (cards["pixels_given"].given, cards["pixels_given"].lengths) == (True, False)
    assert (cards["chain"].given, cards["chain"].lengths) == (False, True)
    assert not cards["vae"].given
