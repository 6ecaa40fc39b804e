"""An exponential moving average of each player's parameters, in the time of that player's own steps."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dgmbench.training.standing import Statistics


class Ema:
    """Averaged weights: shadow <- d shadow + (1 - d) theta with d = min(decay, (1 + t) / (10 + t)), t a player's steps.

    The rising d keeps the start free of the random initialisation's bias. A player's average moves when that player
    steps, so that a generator with five critic steps to one of its own is averaged over as many steps as one that
    steps each time. Parameters of no player are not averaged, and neither are buffers: ``statistics`` holds what
    batch-norm needs at the averaged weights, measured at them (``training.standing``).
    """

    def __init__(self, players: Mapping[str, Sequence[nn.Parameter]], decay: float) -> None:
        self.parameters: dict[str, list[Tensor]] = {player: list(own) for player, own in players.items()}
        self.decay = decay
        self.steps = dict.fromkeys(self.parameters, 0)
        kept = {id(p): p.detach().clone() for own in self.parameters.values() for p in own}
        # players may share parameters, which then have one average that moves with each of them
        self.shadow = {player: [kept[id(p)] for p in own] for player, own in self.parameters.items()}
        self.statistics: Statistics = {}

    @torch.no_grad()
    def update(self, player: str) -> None:
        """Take the player's parameters into the average, after its step."""
        decay = min(self.decay, (1 + self.steps[player]) / (10 + self.steps[player]))
        self.steps[player] += 1
        torch._foreach_lerp_(self.shadow[player], self.parameters[player], 1 - decay)
        self.statistics = {}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Hold the averaged weights in the model for the time of a ``with`` block."""
        live = {player: [p.detach().clone() for p in own] for player, own in self.parameters.items()}
        self._write(self.shadow)
        try:
            yield
        finally:
            self._write(live)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Sequence[Tensor]]) -> None:
        for player, own in self.parameters.items():
            for parameter, value in zip(own, values[player], strict=True):
                parameter.copy_(value)

    def copy_to_model(self) -> None:
        """Put the averaged weights into the model for good."""
        self._write(self.shadow)

    def state_dict(self) -> dict[str, object]:
        """The shadow weights, each player's count of steps, and the statistics that belong to the weights."""
        return {"steps": self.steps, "shadow": self.shadow, "statistics": self.statistics}

    def load_state_dict(self, state: Mapping[str, Mapping]) -> None:
        """Restore what ``state_dict`` gave."""
        self.steps = dict(state["steps"])
        for player, own in self.shadow.items():
            for mine, saved in zip(own, state["shadow"][player], strict=True):
                mine.copy_(saved)
        self.statistics = {name: value.clone() for name, value in state["statistics"].items()}
