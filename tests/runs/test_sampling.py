"""What ``dgm sample`` shows beside samples: reconstructions, interpolations and completions of test examples."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from dgmbench.config import compose
from dgmbench.config.schemas import Sampling
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Model
from dgmbench.runs.load import draw_sized
from dgmbench.runs.run import train
from dgmbench.runs.sampling import sample_run
from dgmbench.runs.shows import DRAWS, STEPS, completions, growth, interpolations, parts, reconstructions, styles


class Copies(Model):
    """Codes are twice the values; what is unknown is drawn as fair coins."""

    def encode(self, x: Tensor) -> Tensor:
        return 2.0 * x.flatten(1)

    def decode(self, code: Tensor) -> Tensor:
        return (code / 2).reshape(-1, *self.spec.shape)

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        return self.decode(self.encode(x))

    def complete(self, x: Tensor, known: Tensor, *, generator: Generator | None = None) -> Tensor:
        return torch.where(known, x, torch.randint(2, x.shape, generator=generator).to(x.dtype))


class Counts(Model):
    """Says how many pictures it was asked for by their values."""

    def growth(self, n: int, *, generator: Generator | None = None) -> Tensor:
        return torch.full((n, 3, *self.spec.shape), n)

    def style_mixtures(self, n: int, columns: int, *, generator: Generator | None = None) -> Tensor:
        return torch.full((n + 1, columns + 1, *self.spec.shape), columns)


@pytest.fixture
def examples() -> Tensor:
    return torch.randint(2, (3, 1, 5, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture
def model(examples: Tensor) -> Copies:
    return Copies(DataSpec(tuple(examples.shape[1:]), "binary"))


def test_interpolations_are_straight_lines_between_codes(model: Copies, examples: Tensor) -> None:
    found = interpolations(model, Batch(examples), model.spec, torch.Generator())
    assert found.shape == (3, STEPS, 1, 5, 4)
    x = examples.double()
    for i, share in enumerate(np.linspace(0, 1, STEPS)):
        assert torch.allclose(found[:, i].double(), (1 - share) * x + share * x[[1, 2, 0]], atol=1e-6)
    with pytest.raises(UserError, match="n must be at least 2"):
        interpolations(model, Batch(examples[:1]), model.spec, torch.Generator())


def test_completions_keep_the_upper_half_and_draw_the_lower(model: Copies, examples: Tensor) -> None:
    found = completions(model, Batch(examples), model.spec, torch.Generator().manual_seed(1))
    assert found.shape == (3, 2 + DRAWS, 1, 5, 4)
    assert found.dtype == torch.uint8
    assert torch.equal(found[:, 0], examples)
    assert (found[:, :, :, :3] == examples[:, None, :, :3]).all()
    assert not found[:, 1, :, 3:].any()
    lower = found[:, 2:, :, 3:].flatten(2)
    assert not (lower == lower[:, :1]).all()


def test_reconstructions_stand_beside_their_originals(model: Copies, examples: Tensor) -> None:
    found = reconstructions(model, Batch(examples), model.spec, torch.Generator())
    assert torch.equal(found[:, 0], examples.float())
    assert torch.equal(found[:, 1], examples.float())


def test_growth_and_styles_make_as_many_rows_as_there_are_examples_and_styles_few_columns(examples: Tensor) -> None:
    model = Counts(spec := DataSpec((1, 5, 4), "binary"))
    assert torch.equal(growth(model, Batch(examples), spec, torch.Generator()), torch.full((3, 3, 1, 5, 4), 3))
    assert styles(model, Batch(examples), spec, torch.Generator()).shape == (4, 4, 1, 5, 4)
    many = Batch(examples[:1].expand(2 * STEPS, -1, -1, -1))
    assert styles(model, many, spec, torch.Generator()).shape == (2 * STEPS + 1, STEPS + 1, 1, 5, 4)


@pytest.mark.parametrize(
    ("show", "sentence"),
    [
        (reconstructions, "does not reconstruct"),
        (interpolations, "does not interpolate"),
        (completions, "does not complete"),
        (growth, "from small to large"),
        (styles, "neither mixes styles"),
        (parts, "has no parts to show"),
    ],
)
def test_a_model_that_cannot_says_so(show: object, sentence: str, examples: Tensor) -> None:
    assert callable(show)
    with pytest.raises(UserError, match=sentence):
        show(Model(spec := DataSpec((1, 5, 4), "binary")), Batch(examples), spec, torch.Generator())


def test_from_a_run(tmp_path: Path) -> None:
    words = ["model=vae", "model.hidden_sizes=[8]", "trainer.budget=3ba", "protocol=quick", "trainer.progress=false"]
    run = train(compose("train", [*words, f"paths.outputs={tmp_path}"])).run
    shown = {show: sample_run(run, n=3, show=show) for show in ("reconstructions", "interpolations")}
    for show, columns in (("reconstructions", 2), ("interpolations", STEPS)):
        picture, array = shown[show]
        assert picture.name == f"best-n3-s0-{show}.png"
        assert np.load(array)["x"].shape == (3 * columns, 1, 8, 8)
    again = sample_run(run, n=3, show="interpolations")[1]
    assert again.read_bytes() == shown["interpolations"][1].read_bytes()
    with pytest.raises(UserError, match="does not complete"):
        sample_run(run, show="completions")


class Painter(Model):
    """Pictures of any size, all of one value."""

    def sample_sized(self, n: int, size: tuple[int, int], *, generator: Generator | None = None) -> Tensor:
        value = torch.randint(17, (n, 1, 1, 1), generator=generator).to(torch.uint8)
        return value.expand(n, 1, *size)


def test_pictures_of_any_size_are_a_function_of_the_seed_however_many_there_are() -> None:
    model, cpu = Painter(DataSpec((1, 8, 8), "discrete", levels=17)), torch.device("cpu")
    x = draw_sized(model, 5, (3, 7), seed=1, device=cpu)
    assert x.shape == (5, 1, 3, 7)
    assert torch.equal(x[:2], draw_sized(model, 2, (3, 7), seed=1, device=cpu))
    assert not torch.equal(x, draw_sized(model, 5, (3, 7), seed=2, device=cpu))
    with pytest.raises(UserError, match=r"size=\[3,7\]: Copies draws pictures of the data's size; leave size out"):
        draw_sized(Copies(model.spec), 1, (3, 7), seed=0, device=cpu)


@pytest.mark.parametrize("size", [[3], [3, 4, 5], [0, 3]])
def test_a_size_is_height_and_width(size: list[int]) -> None:
    with pytest.raises(UserError, match=r"must be \[height,width\]"):
        Sampling(n=1, seed=0, checkpoint="best", label=None, temperature=None, caption=None, size=size)


def test_a_size_goes_with_samples() -> None:
    with pytest.raises(UserError, match=r"size=\[3, 4\] goes with show=samples"):
        Sampling(n=1, seed=0, checkpoint="best", label=None, temperature=None, caption=None, size=[3, 4], show="growth")
