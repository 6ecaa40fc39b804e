"""Break the code one line at a time, and see whether the tests notice.

    python scripts/mutants.py                      # all of scripts/mutants/*.yaml
    python scripts/mutants.py --only models/flow   # those whose list, file or change contains the words
    python scripts/mutants.py --check              # only whether every mutant still applies; seconds

A list in ``scripts/mutants/*.yaml`` has entries ``{file, old, new, tests}``: ``old`` is part of one line that stands
once in ``file``, ``new`` takes its place, and at least one of ``tests`` (files or node ids) must then fail. The tests
must pass before. The checkout is left alone: a mutant lives in a copy of ``src`` and ``configs``. The exit code is 1 if
one survives.
"""

import argparse
import ast
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
LISTS = ROOT / "scripts" / "mutants"


@dataclass(frozen=True)
class Mutant:
    part: str  # the list it is from
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.old.strip()}  ->  {self.new.strip() or '(nothing)'}"

    def wrong(self) -> str | None:
        """Why the mutant does not apply, or None."""
        path = ROOT / self.file
        if not path.is_file():
            return "there is no such file"
        count = path.read_text(encoding="utf-8").count(self.old)
        if count != 1:
            return f"'{self.old}' stands {count} times in it, not once"
        if "\n" in self.old or self.old == self.new:
            return "it must change part of one line"
        try:
            (ast.parse if path.suffix == ".py" else yaml.safe_load)(self.mutated(path))
        except (SyntaxError, yaml.YAMLError) as error:
            return f"what becomes of the file cannot be read, which no test needs to notice: {error}"
        missing = [test for test in self.tests if not _exists(test)]
        if missing or not self.tests:
            return f"no such tests: {', '.join(missing) or 'none are named'}"
        return None

    def mutated(self, path: Path) -> str:
        """The text of the file with the change made."""
        return path.read_text(encoding="utf-8").replace(self.old, self.new)


def _exists(test: str) -> bool:
    """Whether there is such a file or folder, with such a function if one is named."""
    name, _, function = test.partition("::")
    path = ROOT / name
    if not function:
        return path.exists()
    return path.is_file() and f"def {function.partition('[')[0]}(" in path.read_text(encoding="utf-8")


def read(folder: Path = LISTS) -> list[Mutant]:
    """The mutants of all lists, in the order of the files."""
    return [
        Mutant(list_.stem, entry["file"], entry["old"], entry["new"], tuple(entry["tests"]))
        for list_ in sorted(folder.glob("*.yaml"))
        for entry in yaml.safe_load(list_.read_text(encoding="utf-8")) or []
    ]


@contextlib.contextmanager
def copy_of_source(mutant: Mutant | None) -> Iterator[Path]:
    """A folder with ``src`` and ``configs``, which the package looks for beside it, mutated or not."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "configs", folder / "configs")  # no link: a mutant may be of one of these files
        if mutant is not None:
            path = folder / mutant.file
            path.write_text(mutant.mutated(path), encoding="utf-8")
        yield folder


def passes(tests: Sequence[str], source: Path, log: Path, limit: float) -> bool:
    """Whether the tests pass on this source, in a child that starts with the heavy packages imported."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ["PYTHONPATH"] = str(source)
        os.chdir(ROOT)
        sys.path.insert(0, str(source))
        code = 1
        try:
            import pytest

            how = ["-q", "-x", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist"]
            how += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # Hydra, a plugin of pytest, is here already
            code = int(pytest.main([*how, *tests]))
        except BaseException:
            traceback.print_exc()
        finally:  # whatever happens: the folders that the parent will remove are not the child's to remove
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + limit
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:  # a mutant may loop for ever
            os.killpg(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            break
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what the tests have left running
    return os.waitstatus_to_exitcode(status) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutants whose description contains this")
    parser.add_argument("--check", action="store_true", help="look whether every mutant applies, run nothing")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which a mutant counts as noticed")
    arguments = parser.parse_args()
    mutants = [mutant for mutant in read() if arguments.only in f"{mutant.part} {mutant}"]
    wrong = [f"{mutant}\n    {why}" for mutant in mutants if (why := mutant.wrong())]
    if wrong:
        sys.exit("These mutants do not apply:\n" + "\n".join(wrong))
    if arguments.check or not mutants:
        print(f"{len(mutants)} mutants apply")
        return
    import hydra  # noqa: F401  # imported once here, and there in every child
    import pytorch_lightning  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch  # noqa: F401

    survivors: list[Mutant] = []
    untried: list[Mutant] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as logs, copy_of_source(None) as whole:
        log = Path(logs, "log.txt")
        every = tuple(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
        # all at once, which costs one start; one after another only if something fails
        sound = dict.fromkeys((mutant.tests for mutant in mutants), True)
        if not passes(every, whole / "src", log, arguments.limit * len(every)):
            print(log.read_text()[-3000:])
            sound = {tests: passes(tests, whole / "src", log, arguments.limit) for tests in sound}
        for number, mutant in enumerate(mutants, start=1):
            if not sound[mutant.tests]:
                untried.append(mutant)
                print(f"{number}/{len(mutants)} untried: its tests fail without it  {mutant}", flush=True)
                continue
            begin = time.monotonic()
            with copy_of_source(mutant) as source:
                alive = passes(mutant.tests, source / "src", log, arguments.limit)
            survivors += [mutant] if alive else []
            said, seconds = "SURVIVED" if alive else "noticed", time.monotonic() - begin
            print(f"{number}/{len(mutants)} {said} ({seconds:.0f} s)  {mutant}", flush=True)
    print(f"{len(mutants) - len(survivors) - len(untried)} of {len(mutants)} noticed")
    if survivors or untried:
        sys.exit("\n".join(["Survivors:", *map(str, survivors), "Untried:", *map(str, untried)]))


if __name__ == "__main__":
    main()
