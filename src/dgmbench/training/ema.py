"""An exponential moving average of the parameters, keyed to our own count of updates."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averaged weights: shadow <- d shadow + (1 - d) theta with d = min(decay, (1 + t) / (10 + t)) at update t.

    The rising d keeps the start free of the random initialisation's bias. Buffers are not averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.parameters: list[Tensor] = list(model.parameters())
        self.decay, self.updates = decay, 0
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the current parameters into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self.shadow, self.parameters, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Hold the averaged weights in the model for the time of a ``with`` block."""
        live = [p.detach().clone() for p in self.parameters]
        self._write(self.shadow)
        try:
            yield
        finally:
            self._write(live)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def copy_to_model(self) -> None:
        """Put the averaged weights into the model for good."""
        self._write(self.shadow)

    def state_dict(self) -> dict[str, object]:
        """The shadow weights and the count of updates."""
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict) -> None:
        """Restore what ``state_dict`` gave."""
        self.updates = state["updates"]
        for mine, saved in zip(self.shadow, state["shadow"], strict=True):
            mine.copy_(saved)
