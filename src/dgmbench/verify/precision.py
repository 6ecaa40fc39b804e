"""Run a model's own code in double precision, so that equalities can be checked to many digits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FLOAT, _DOUBLE = torch.Tensor.float, torch.Tensor.double
_CASTS = (torch.Tensor.to, torch.Tensor.type)


class _SingleBecomesDouble(TorchFunctionMode):
    """Casts that name float32 (``x.float()``, ``x.to(torch.float32)``, ``dtype=torch.float32``) give float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: dict | None = None
    ) -> Any:
        if func is _FLOAT:
            func = _DOUBLE
        elif func in _CASTS:
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        if not kwargs:
            return func(*args)
        if kwargs.get("dtype") is torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


@contextmanager
def double_precision() -> Iterator[None]:
    """Inside, float64 is the default dtype and models that cast to float32 compute in float64 all the same."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _SingleBecomesDouble():
            yield
    finally:
        torch.set_default_dtype(before)
