"""What is none of a model's values is refused by its own methods, in a sentence."""

import inspect

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data import DataSpec
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.made import Made
from dgmbench.models.conditions import takes
from dgmbench.models.contract import Model
from dgmbench.models.vae.vae import Vae

BITS = DataSpec((1, 4, 4), "binary")


def test_values_of_the_space_pass_in_any_dtype_that_holds_them() -> None:
    made, x = Made(BITS), torch.randint(2, (3, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(made.log_prob(x), made.log_prob(x.float()))
    assert Made(DataSpec((3,), "real")).log_prob(torch.full((2, 3), 0.25)).shape == (2,)
    assert Vae(DataSpec((2, 2), "discrete", levels=5)).elbo(torch.full((2, 2, 2), 4)).shape == (2,)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.rand(3, 1, 4, 4), r"takes raw values, for binary 1x4x4; this x has fractions such as 0\."),
        (torch.zeros(3, 1, 5, 4), r"takes x of shape \(n, 1, 4, 4\), for binary 1x4x4; .* shape \(3, 1, 5, 4\)"),
        (torch.zeros(16), r"takes x of shape \(n, 1, 4, 4\)"),
    ],
)
def test_others_are_refused_by_every_method_that_takes_them(x: Tensor, sentence: str) -> None:
    vae = Vae(BITS)
    for name, more in (("elbo", ()), ("log_weights", (2,)), ("encode", ()), ("reconstruct", ())):
        with pytest.raises(UserError, match=rf"Vae\.{name} {sentence}"):
            getattr(vae, name)(x, *more)
    with pytest.raises(UserError, match=rf"Made\.log_prob {sentence}"):
        Made(BITS).log_prob(x)


class Conditional(Model):
    def log_prob(
        self, x: Tensor, y: Tensor | None = None, *, given: Tensor, generator: Generator | None = None
    ) -> Tensor:
        return x.flatten(1).sum(1).double() + given


def test_what_a_method_takes_can_still_be_told() -> None:
    model = Conditional(BITS)
    assert list(inspect.signature(model.log_prob).parameters) == ["x", "y", "given", "generator"]
    assert takes(model.log_prob, "given")
    assert not takes(model.log_prob, "length")
    assert model.log_prob(torch.ones(2, 1, 4, 4), given=torch.ones(2)).tolist() == [17, 17]
