"""What a suite is doing: a live view on a terminal, one line for every finished cell elsewhere."""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from dgmbench.bench.cells import FAILURES, Cell
from dgmbench.bench.ledger import statuses
from dgmbench.errors import harmless, say

MOST_SHOWN = 8


class Progress:
    """Shows how many cells are done, running and failed, and which ones run."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = [cell for cell in cells if cell.status not in ("not built", "skipped")]
        self._begin = time.monotonic()
        self._before = self._finished()
        self._live: Any = None

    def _finished(self) -> int:
        return sum(cell.status not in ("planned", "running") for cell in self._cells)

    def __enter__(self) -> "Progress":
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        if console.is_terminal:
            self._live = Live(console=console, refresh_per_second=4, transient=True)
            self._live.start()
        elif self._before:
            print(f"{self._before} of {len(self._cells)} cells were done before", file=sys.stderr)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            with suppress(OSError):  # the terminal may be gone
                self._live.stop()

    def show(self, running: Sequence[tuple[str, float]]) -> None:
        """Refresh the live view; ``running`` holds names and when they began."""
        if self._live is None:
            return
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        counts, finished = statuses(self._cells), self._finished()
        failed = sum(counts.get(status, 0) for status in FAILURES)
        line = f"{finished}/{len(self._cells)} cells, {len(running)} running, {failed} failed"
        line += f", {_duration(time.monotonic() - self._begin)}"
        if self._before < finished < len(self._cells):
            each = (time.monotonic() - self._begin) / (finished - self._before)
            line += f", about {_duration(each * (len(self._cells) - finished))} to go"
        bar = ProgressBar(total=max(1, len(self._cells)), completed=finished, width=60)
        names = [Text(f"  {name}  {_duration(time.monotonic() - begin)}") for name, begin in running[:MOST_SHOWN]]
        if len(running) > MOST_SHOWN:
            names.append(Text(f"  and {len(running) - MOST_SHOWN} more"))
        with suppress(OSError):
            self._live.update(Group(bar, Text(line), *names))

    def ended(self, cell: Cell) -> None:
        """Say how a cell ended; on a terminal only if it did not end well."""
        reason = f": {cell.reason}" if cell.reason else ""
        took = "" if cell.seconds is None else f" ({cell.seconds:.1f} s)"
        line = f"{cell.status:<8} {self._finished()}/{len(self._cells)} {cell.id}{took}{reason}"
        from rich.text import Text

        if self._live is None:
            with suppress(OSError):
                say(line, error=True)
        elif cell.status != "done":
            with suppress(OSError):
                style = "red" if cell.status in FAILURES else "yellow"
                self._live.console.print(Text(harmless(line, lines=False), style=style))  # no markup: [/x] is a name


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
