"""Capabilities that rest on buffers and submodules are found, on every version of Python."""

import inspect

import pytest
import torch
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.models.contract import HasBijection, IsClassConditional, Model
from dgmbench.nn.bijections import Logit


class Everything(Model):
    def __init__(self) -> None:
        super().__init__(DataSpec((2,), "real"))
        self.register_buffer("class_log_prior", torch.zeros(1))
        self.bijection = Logit(1.0)

    def continuous(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return x


@pytest.mark.parametrize("capability", [IsClassConditional, HasBijection])
def test_an_instance_has_what_its_buffers_and_submodules_say(capability: type) -> None:
    model = Everything()
    assert isinstance(model, capability)
    assert not isinstance(Model(model.spec), capability)
    assert not isinstance(nn.Linear(1, 1), capability)


def test_a_buffer_that_is_none_is_no_capability() -> None:
    model = Everything()
    model.class_log_prior = None
    assert not isinstance(model, IsClassConditional)
    assert isinstance(model, HasBijection)


@pytest.mark.parametrize("name", ["class_log_prior", "bijection"])
def test_a_protocol_would_not_find_them(name: str) -> None:
    """Why these are no protocols: since Python 3.12 isinstance looks at attributes statically."""
    with pytest.raises(AttributeError):
        inspect.getattr_static(Everything(), name)
