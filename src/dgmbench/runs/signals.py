"""SIGTERM, a lost terminal and Ctrl-C during a run."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dgmbench.system import heeded
from dgmbench.training.module import Interrupted


class Signals:
    """These signals end a run in good order: between two updates while training, at once at any other time."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._training = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self._previous = {number: signal.getsignal(number) for number in heeded()}
        self.take_over()
        return self

    def take_over(self) -> None:
        """Handle the signals here; once more after Lightning has installed handlers of its own."""
        for number in self._previous:
            signal.signal(number, self._note)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that looks at ``received`` itself, and is left by ``Interrupted`` if it did not get to it."""
        self._training = True
        try:
            yield
        finally:
            self._training = False
        if self.received is not None:
            raise Interrupted(self.received)

    def _note(self, number: int, frame: object) -> None:
        if not self._training:
            raise Interrupted(number)
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: stop in the middle of a batch
        self.received = number
