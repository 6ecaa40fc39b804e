"""Run as a script: ``dgm WORD...`` while the clock on the wall goes back by an hour each time that somebody looks.

With STOP_AT > 0, SIGTERM comes at the start of that update.

    python backwards.py STOP_AT WORD...
"""

import itertools
import os
import signal
import sys
import time

from dgmbench.command import main as cli
from dgmbench.training.module import Training

if __name__ == "__main__":
    now, hours = time.time(), itertools.count(1)
    time.time = lambda: now - 3600.0 * next(hours)
    one_update, stop_at = Training._update, int(sys.argv[1])

    def update(self: Training, number: int) -> None:
        if number == stop_at > 0:
            os.kill(os.getpid(), signal.SIGTERM)
        one_update(self, number)

    Training._update = update  # type: ignore[method-assign]
    sys.exit(cli.main(sys.argv[2:]))
