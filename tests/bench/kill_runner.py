"""Run as a script: start a suite again and again, and SIGKILL its runner in the middle of it.

    python kill_runner.py KILLS SECONDS WORD...

Runs ``dgm bench WORD...``, kills it KILLS times, each time SECONDS (plus a little more each time) after its first
cell has ended, then lets it run to its end. Prints how many processes of cells outlived each kill by a second.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def cells_of(runner: int) -> set[int]:
    """The grandchildren of the runner: the cells, whose parent is the fork server."""
    children: dict[int, set[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), set()).add(int(entry.name))
    return {cell for child in children.get(runner, ()) for cell in children.get(child, ())}


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main() -> int:
    kills, seconds, words = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    command = [sys.executable, "-m", "dgmbench", "bench", *words]
    for number in range(kills):
        runner = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for line in runner.stderr or ():
            if " cells were done before" not in line:
                break
        time.sleep(seconds + 0.07 * number)
        cells = cells_of(runner.pid)
        ended = runner.poll()
        os.kill(runner.pid, signal.SIGKILL)
        runner.wait()
        time.sleep(1.0)
        text = f"kill {number}: {len(cells)} cells running, {sum(map(alive, cells))} outlived it, ended before: {ended}"
        print(text)  # noqa: T201
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
