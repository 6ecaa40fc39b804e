"""Run as a script: train like ``dgm train``, but let SIGKILL strike at a given point of a given update.

    python kill.py POINT UPDATE OVERRIDE...

POINT is ``before`` (at the update's start), ``middle`` (after the first player's optimiser step) or ``saving``
(half-way through writing a checkpoint, at the first one after the update) or ``leaving`` (when all has been done with a
stage's last state and the next stage, which starts at the update, has not begun).
"""

import os
import signal
import sys
from pathlib import Path

from dgmbench.config import compose, import_from, search_path
from dgmbench.runs.run import train
from dgmbench.training import files
from dgmbench.training.module import Training


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, update: int) -> None:
    step, one_update, write = Training._step, Training._update, files.write_atomically
    enter = Training._enter_stage
    now = {"update": -1}

    def killed_update(self: Training, u: int) -> None:
        now["update"] = u
        if point == "before" and u == update:
            die()
        one_update(self, u)

    def killed_step(self: Training, player: str, group: list, u: int) -> None:
        step(self, player, group, u)
        if point == "middle" and u == update:
            die()

    def killed_write(path: Path, content: bytes) -> None:
        if point == "saving" and now["update"] >= update and path.suffix == ".ckpt":
            path.with_name(f".{path.name}.tmp").write_bytes(bytes(content)[: len(content) // 2])
            die()
        write(path, content)

    def killed_enter(self: Training, index: int) -> None:
        if point == "leaving" and self.clock.update == update:
            die()
        enter(self, index)

    Training._enter_stage = killed_enter
    Training._update, Training._step, files.write_atomically = killed_update, killed_step, killed_write


if __name__ == "__main__":
    import_from(search_path()[:-1])
    arm(sys.argv[1], int(sys.argv[2]))
    train(compose("train", sys.argv[3:]))
