"""Run as a script: train like ``dgm train`` in several processes, and save what each of them ends with.

    python two.py FOLDER KILL_AT OVERRIDE...

Writes FOLDER/rank<r>.pt with the state of the model and the seed of its last noise, and FOLDER/connected<r> if a
process still belongs to a group when it is about to exit. With KILL_AT > 0, SIGKILL strikes the whole process group at
the start of that update; with KILL_AT=13:1, process 1 alone at the start of update 13.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from dgmbench.config import compose
from dgmbench.runs.run import train
from dgmbench.training.module import Training

if __name__ == "__main__":
    folder, (kill_at, _, victim) = Path(sys.argv[1]), sys.argv[2].partition(":")
    end, one_update = Training.on_train_end, Training._update

    def saving_end(self: Training) -> None:
        end(self)
        assert self._generator is not None
        state = {"state": self.model.state_dict(), "noise": self._generator.initial_seed(), "world": self.ranks.world}
        torch.save(state, folder / f"rank{self.ranks.rank}.pt")

    def killed_update(self: Training, update: int) -> None:
        if update == int(kill_at) > 0:
            if not victim:
                os.killpg(0, signal.SIGKILL)
            elif self.ranks.rank == int(victim):
                os.kill(os.getpid(), signal.SIGKILL)
        one_update(self, update)

    Training.on_train_end, Training._update = saving_end, killed_update
    try:
        train(compose("train", sys.argv[3:]))
    finally:
        if torch.distributed.is_initialized():
            (folder / f"connected{torch.distributed.get_rank()}").touch()
