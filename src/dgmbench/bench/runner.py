"""``dgm bench suite=NAME``: run what is not done yet, survive whatever happens to cells, and say what came out."""

import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dgmbench.bench.cells import FAILURES, Cell, check_one_process, choose, make_cells, require_one
from dgmbench.bench.executors import Executor, check_executor, make_executor
from dgmbench.bench.ledger import Fingerprints, Ledger, retried, statuses
from dgmbench.bench.progress import Progress
from dgmbench.bench.suite import read_suite, value_of
from dgmbench.bench.summary import estimate, measured_rows, published_rows
from dgmbench.bench.worker import Outcome, Task
from dgmbench.config import complete, compose, resolve, search_path
from dgmbench.errors import UserError, harmless, say
from dgmbench.system import heeded

OWN = ("suite", "model")
SETTINGS = ("executor", "paths")


def bench(
    words: Sequence[str],
    *,
    config_dirs: Sequence[str | Path] = (),
    dry_run: bool = False,
    retry: str | None = None,
    stale: bool = False,
) -> int:
    """Run a suite; returns 0, 1 if a cell failed, 130 or 143 if it was interrupted."""
    again = retried(retry)
    folders = [str(Path(entry).expanduser().absolute()) for entry in config_dirs]
    settings, extra = _split(words)
    name = value_of(words, "suite")
    if name is None:
        raise UserError("No suite is chosen: add suite=NAME ('dgm list suite' shows the names).")
    suite = read_suite(name, folders)
    cfg = resolve(compose("bench", settings, config_dirs=folders))
    executor_settings = check_executor(cfg["executor"])
    folder = Path(cfg["paths"]["outputs"]).expanduser().absolute() / "bench" / name
    extra += [text for text in settings if text.startswith("paths.data=")]
    models = value_of(words, "model")
    cells = make_cells(suite, folder, overrides=extra, models=models, config_dirs=folders)
    chosen = choose(cells, models)
    check_one_process(chosen, folders)
    narrowed = any(value_of(extra, key) is not None for key in ("data", "seed"))
    names = [cell.id for cell in make_cells(suite, folder, config_dirs=folders)] if narrowed else []
    ledger = Ledger(folder, suite, cells, chosen, names)
    if dry_run:
        ledger.restore(Fingerprints(folders))
        _check(chosen, again, stale, folders)
        _prepare(ledger, chosen, again, stale, move=False)
        return _dry_run(chosen, ledger.cells, executor_settings, folders)
    ledger.acquire()
    try:
        ledger.restore(Fingerprints(folders))
        _check(chosen, again, stale, folders)
        _prepare(ledger, chosen, again, stale, move=True)
        return _run(ledger, chosen, executor_settings, folders)
    finally:
        ledger.release()


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The benchmark's own settings, and those for every cell."""
    settings: list[str] = []
    extra: list[str] = []
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals:
            raise UserError(f"'{word}' is not of the form key=value, such as suite=demo or executor.slots=2.")
        if key not in OWN:
            (settings if key.split(".")[0] in SETTINGS else extra).append(word)
    return settings, extra


def _check(chosen: Sequence[Cell], again: Sequence[str], stale: bool, config_dirs: list[str]) -> None:
    """Complete the configuration of one planned cell of each kind, so that a wrong setting stops before anything runs.

    A setting of the model or the data that only some of them lack is left to their cells, which fail alone.
    """
    kinds: dict[tuple[str, ...], Cell] = {}
    for cell in chosen:
        if cell.status == "planned" or cell.status in again or (stale and cell.status == "stale"):
            rest = [text for text in cell.overrides if text.partition("=")[0] not in ("data", "seed")]
            kinds.setdefault((cell.experiment or "", *rest), cell)
    if not kinds:
        return
    from dgmbench.config.files import import_from

    import_from(search_path(config_dirs)[:-1])
    errors = [_mistake(cell.overrides, config_dirs) for cell in kinds.values()]
    if None not in errors and errors[0] is not None:
        raise errors[0]
    for cell, error in zip(kinds.values(), errors, strict=True):
        if error is None:
            continue
        general = [text for text in cell.overrides if not text.lstrip("+").startswith(("model.", "data."))]
        if (error := _mistake(general, config_dirs)) is not None:
            raise error


def _mistake(overrides: Sequence[str], config_dirs: list[str]) -> UserError | None:
    try:
        completed = complete(compose("train", overrides, config_dirs=config_dirs))
        for key in ("devices", "nodes"):
            value = completed["hardware"][key]
            require_one(key, value, f"hardware.{key}={value}")
    except UserError as error:
        return error
    except (Exception, SystemExit):
        return None  # what a class's module does when it is imported is left to its cell
    return None


def _prepare(ledger: Ledger, chosen: Sequence[Cell], again: Sequence[str], stale: bool, *, move: bool) -> None:
    """Plan the cells that the user wants to run once more."""
    for cell in chosen:
        if cell.status in again:
            cell.status, cell.reason = "planned", None
        elif cell.status == "stale" and stale:
            if move:
                ledger.set_aside(cell)
            cell.status, cell.reason = "planned", None


def _run(ledger: Ledger, chosen: Sequence[Cell], settings: dict[str, Any], config_dirs: list[str]) -> int:
    planned = [cell for cell in chosen if cell.status == "planned"]
    stopped = None
    if planned:
        ledger.write(now=True)
        executor = make_executor(settings, ledger.folder)
        try:
            stopped = _Loop(ledger, chosen, executor, planned, config_dirs, settings["threads"]).go()
        finally:
            executor.close()
    ledger.write(now=True)
    if stopped is not None:
        with suppress(OSError):  # the terminal may be gone
            say(f"Stopped; the same command goes on with the suite in {ledger.folder}", error=True)
        return 128 + stopped
    _print_summary(ledger, chosen, config_dirs)
    from dgmbench.bench.report import write_report

    say(write_report(ledger.folder))
    counts = statuses(chosen)
    return 1 if any(counts.get(status) for status in (*FAILURES, "planned")) else 0


class _Loop:
    """Hands planned cells to the executor and takes their outcomes, until all are done or a signal comes."""

    def __init__(
        self,
        ledger: Ledger,
        chosen: Sequence[Cell],
        executor: Executor,
        planned: Sequence[Cell],
        config_dirs: list[str],
        threads: int,
    ) -> None:
        self.ledger, self.chosen, self.executor = ledger, chosen, executor
        self.config_dirs, self.threads = config_dirs, threads
        self.waiting = deque(planned)
        self.running: dict[str, tuple[Cell, float]] = {}
        self.signals: list[int] = []

    def go(self) -> int | None:
        """Returns the signal that stopped the suite, or None."""
        with _noting(self.signals), Progress(self.chosen) as progress:
            heard = 0
            while self.running or (self.waiting and not self.signals):
                if not self.signals:
                    self._fill()
                elif len(self.signals) > heard:
                    heard = len(self.signals)
                    self.executor.interrupt(at_once=heard > 1)
                progress.show([(cell.id, begin) for cell, begin in self.running.values()])
                for name, outcome in self.executor.wait(0.5):
                    cell = self._take(name, outcome)
                    progress.ended(cell)
                self.ledger.write()
        return self.signals[0] if self.signals else None

    def _fill(self) -> None:
        cells = [self.waiting.popleft() for _ in range(min(self.executor.slots - len(self.running), len(self.waiting)))]
        if not cells:
            return
        folder = str(self.ledger.folder)
        self.executor.submit(
            [
                Task(
                    id=cell.id,
                    overrides=cell.overrides,
                    folder=folder,
                    config_dirs=self.config_dirs,
                    threads=self.threads,
                )
                for cell in cells
            ]
        )
        for cell in cells:
            cell.status, cell.reason = "running", None
            self.running[cell.id] = cell, time.monotonic()

    def _take(self, name: str, outcome: Outcome) -> Cell:
        cell, _ = self.running.pop(name)
        cell.run = outcome.run or cell.run
        cell.status, cell.reason = outcome.status, outcome.reason
        if outcome.status == "interrupted":
            cell.status, cell.reason = "planned", outcome.reason or "interrupted; the same command resumes it"
        # a run that was found done took no time: what it cost is known from before
        if outcome.seconds is not None and (cell.seconds is None or outcome.seconds > cell.seconds):
            cell.seconds = outcome.seconds
        return cell


@contextmanager
def _noting(received: list[int]) -> Iterator[None]:
    """Note the signals that ask for an end instead of dying of them."""
    previous = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _dry_run(chosen: Sequence[Cell], cells: Sequence[Cell], settings: dict[str, Any], config_dirs: list[str]) -> int:
    from dgmbench.bench.executors import LocalSettings

    slots = settings["slots"]
    if settings["name"] == "local":
        from dgmbench.bench.executors.local import make_slots, visible_gpus
        from dgmbench.system import cores

        slots = len(make_slots(LocalSettings(**settings), cores(), visible_gpus()))
    each, total = estimate(chosen, cells, slots)
    tried: dict[str, Outcome] = {}
    if settings["name"] == "local" and (untold := [cell for cell in chosen if each.get(cell.id, 0.0) is None]):
        from dgmbench.bench.trial import try_out

        print("trying a few batches of what has not run here yet ...", file=sys.stderr)
        tried = try_out(untold, settings, config_dirs)
        each, total = estimate(
            chosen,
            cells,
            slots,
            {name: outcome.seconds for name, outcome in tried.items() if outcome.status == "tried"},
        )
    for cell in chosen:
        seconds = each.get(cell.id)
        about = "~" if cell.id in tried else ""
        time_text = "" if cell.status != "planned" else "unknown" if seconds is None else f"{about}{seconds:.0f} s"
        reason = cell.reason
        if (outcome := tried.get(cell.id)) is not None and outcome.status != "tried":
            reason = outcome.reason if outcome.status == "skipped" else f"a trial {outcome.status}: {outcome.reason}"
        say(f"{cell.status:<10} {time_text:>8}  {cell.id}{f'  ({reason})' if reason else ''}")
        if cell.status == "planned":
            say(f"{'':21}{cell.command}")
    counts = ", ".join(f"{number} {status}" for status, number in statuses(chosen).items())
    print(f"{len(chosen)} cells ({counts}); {slots} at a time", end="; ")
    unknown = sum(value is None for value in each.values())
    if not each:
        print("nothing to do")
    elif total is not None:
        print(f"about {total:.0f} s")
    else:
        known = sum(value for value in each.values() if value is not None) / max(1, slots)
        print(f"time unknown for {unknown} of {len(each)} planned cells, about {known:.0f} s for the others")
    if any(outcome.status == "tried" for outcome in tried.values()):
        print("~: from a few batches and one validation tried here; the measuring after training comes on top")
    return 0


def _print_summary(ledger: Ledger, chosen: Sequence[Cell], config_dirs: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 200)

    def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if not rows:
            return
        table = Table(*columns, box=box.SIMPLE_HEAD, title=title, title_justify="left")
        for row in rows:
            table.add_row(*(Text(harmless(cell)) for cell in row))
        console.print(table)

    stored = {cell.id: ledger.result(cell) if cell.status in ("done", "stale") else None for cell in chosen}
    published = published_rows(chosen, lambda cell: stored[cell.id])
    show(
        f"{ledger.suite.title}: published and measured",
        ("experiment", "published", "ours mean +- sd (n)", "difference", "same protocol?"),
        published,
    )
    shown = [cell for cell in chosen if cell.status != "not built"]
    show(
        ledger.suite.title,
        ("model", "family", "data", "headline metric, mean +- sd (n)", "unit, kind", "energy distance", "training", ""),
        measured_rows(shown, lambda cell: stored[cell.id], config_dirs),
    )
    missing = list(dict.fromkeys(cell.model for cell in chosen if cell.status == "not built"))
    if missing:
        console.print(Text(f"not built yet: {', '.join(missing)}"))
    counts = ", ".join(f"{number} {status}" for status, number in statuses(chosen).items())
    say(f"{len(chosen)} cells: {counts}; {ledger.folder}")
