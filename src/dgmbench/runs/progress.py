"""What a person sees while waiting: a bar for training, a spinner with a word for everything else that takes long."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

REFRESH_SECONDS = 0.2


class TrainingBar:
    """A progress bar in images with loss, images/s and time left; silent when disabled or not on a terminal."""

    def __init__(self, *, total: int, done: int, enabled: bool) -> None:
        self.enabled = enabled
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
            TextColumn("{task.fields[speed]} images/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}", markup=False),
            console=Console(stderr=True),
            disable=not enabled,
            transient=True,
        )
        self._task: TaskID = self._bar.add_task("training", total=total, completed=done, speed="...", loss="")
        self._begin, self._first, self._next = time.monotonic(), done, 0.0

    def __enter__(self) -> "TrainingBar":
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):  # the terminal may be gone
            self._bar.stop()

    def advance(self, images: int, stage: str, losses: Callable[[], str]) -> None:
        """Move to ``images``; ``losses`` is only asked when the bar is redrawn."""
        now = time.monotonic()
        if not self.enabled or now < self._next:
            return
        self._next = now + REFRESH_SECONDS
        speed = (images - self._first) / max(now - self._begin, 1e-9)
        self._bar.update(self._task, completed=images, description=stage, speed=f"{speed:,.0f}", loss=losses())


@contextmanager
def spinner(*, enabled: bool) -> Iterator[Callable[[str], None]]:
    """Show that something is being done; the function that is given out says what."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        disable=not enabled,
        transient=True,
    ) as bar:
        task = bar.add_task("")

        def note(text: str) -> None:
            bar.update(task, description=text)

        yield note


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning's remarks are about things that this module does itself (loggers, checkpoints, workers)."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
