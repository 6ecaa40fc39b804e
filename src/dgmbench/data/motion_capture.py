"""Captured human walking: root and joint angles of a body at every frame.

The data of E. Hsu (MIT) in the file ``motion.mat`` that goes with G. W. Taylor, G. E. Hinton, S. T. Roweis: Modeling
human motion using binary latent variables (2007). Three sequences of 438, 260 and 3,128 frames of 108 values, the
root's rotation and place (in millimetres; the walker stays in place) and the joints' rotations as exponential maps;
those of joints that do not turn are constant, and left out.
"""

from pathlib import Path

import numpy as np

from dgmbench.data.files import PublishedFile, PublishedReader
from dgmbench.data.mat import read_cells
from dgmbench.data.reader import SPLITS, Decoded, Part
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require

FILE = "motion.mat"
CONSTANT = 1e-3  # standard deviation below which a value does not move


class MotionCapture(PublishedReader):
    """Real (length, 49): windows of every ``skip``-th frame, from every one of the first ``skip`` on.

    The last fifth of each sequence tests and the tenth before it validates; windows do not overlap, and what is left of
    a part shorter than a window is dropped.
    """

    files = (PublishedFile(FILE, "sha256:378bf28e6f3ac4f9b7271bd793b4fd03f0cc406f92e6525c0026a931df38a6e9"),)
    instead = "get it with the code of the conditional RBM (github.com/taneishi/CRBM has it)"

    def __init__(self, *, length: int = 40, skip: int = 4, download: bool = False, verify: bool = True) -> None:
        super().__init__(download=download, verify=verify)
        require("data", least=2, length=length)
        require("data", least=1, skip=skip)
        self.length, self.skip = length, skip

    def read(self, folder: Path) -> Decoded:
        """Decode the file."""
        path = self.path(folder, FILE)
        sequences = read_motion(path)
        moves = np.concatenate(sequences).std(0) > CONSTANT
        windows: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        for sequence in sequences:
            for split, part in _in_time(sequence[:, moves]).items():
                for first in range(self.skip):
                    frames = part[first :: self.skip]
                    windows[split] += [
                        frames[start : start + self.length]
                        for start in range(0, len(frames) - self.length + 1, self.length)
                    ]
        short = [split for split in SPLITS if len(windows[split]) < 2]
        if short:
            raise UserError(
                f"data.length={self.length} with data.skip={self.skip} leaves fewer than two windows to {short[0]}; "
                "lower either."
            )
        parts = {
            split: Part(np.stack(found).astype(np.float32), None, f"windows of {FILE}, {split}", np.arange(len(found)))
            for split, found in windows.items()
        }
        return Decoded(
            DataSpec((self.length, int(moves.sum())), "real"), parts, {"values": np.flatnonzero(moves).tolist()}
        )


def read_motion(path: Path) -> list[np.ndarray]:
    """The sequences (frames, values) of the file."""
    sequences = [one.astype(np.float64) for one in read_cells(path, ["Motion"])["Motion"]]
    if any(one.shape[1] != sequences[0].shape[1] for one in sequences):
        raise UserError(f"The frames of Motion of {path} have different numbers of values; get it again.")
    return sequences


def _in_time(sequence: np.ndarray) -> dict[str, np.ndarray]:
    """Train, valid and test, one after the other."""
    train, valid = int(0.7 * len(sequence)), int(0.8 * len(sequence))
    return {"train": sequence[:train], "valid": sequence[train:valid], "test": sequence[valid:]}
