"""A user's own module as a feature net: any ``nn.Module`` that a ``_target_`` names."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from dgmbench.config.feature_nets import default_name
from dgmbench.config.targets import dotted
from dgmbench.data import DataSet, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.features.net import FeatureNet


class Own(FeatureNet):
    """The module gets values scaled to [0, 1], (b, *shape) float32, and returns (b, d).

    ``made_by`` is the class or function that made it. The hash covers the source files of that and of the classes of
    all its parts, with the files beside them that they import, all parameters and buffers, and the plain attributes.
    """

    def __init__(self, spec: DataSpec, module: nn.Module, made_by: Callable[..., Any] | None = None) -> None:
        super().__init__(spec)
        self.module, self.made_by = module.eval(), made_by or type(module)
        self.name, self.target = default_name(self.made_by), dotted(self.made_by)

    def require(self, data: DataSet, folder: Path | None) -> None:
        """Try the module, so that what it cannot do shows before a model is trained."""
        self.try_out(data)

    def features(self, x: Tensor) -> Tensor:
        """The module's output, as float32."""
        try:
            found = self.module(x)
            return found.float() if isinstance(found, Tensor) and not found.is_complex() else found
        except UserError:
            raise
        except Exception as error:  # whatever the module's code raises
            kinds = sorted({str(p.dtype) for p in self.module.parameters()} - {"torch.float32"})
            weights = f" (its weights are {' and '.join(kinds)})" if kinds else ""
            raise UserError(
                f"{self.who}{weights} fails on float32 values of shape {tuple(x.shape)}: {said(error)}."
            ) from error

    def made_of(self) -> tuple[Callable[..., Any], ...]:
        """This class, what made the module, and the classes of all its parts that are not PyTorch's own."""
        kinds = [self.made_by, *(type(part) for part in self.module.modules())]
        own = [kind for kind in kinds if kind.__module__.partition(".")[0] != "torch"]
        return (*super().made_of(), *dict.fromkeys(own))

    def state(self) -> Iterator[tuple[str, Any]]:
        """With the attributes of all parts that are numbers, texts or arrays: they may decide what is computed."""
        yield from super().state()
        usual = vars(nn.Module()).keys()
        for path, part in self.module.named_modules():
            for key, value in vars(part).items():
                known = value.tolist() if isinstance(value, np.ndarray) else value
                if key not in usual and (isinstance(known, Tensor) or _is_plain(known)):
                    yield f"{path}.{key} attribute", known


def said(error: Exception) -> str:
    """An error of somebody else's code in one line."""
    text = (str(error).splitlines() or [""])[0].strip().rstrip(".")[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, [*value.keys(), *value.values()]))
    return value is None or isinstance(value, bool | int | float | str)
