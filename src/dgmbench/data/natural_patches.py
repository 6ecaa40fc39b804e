"""Patches of scikit-learn's two photographs, a temple and a flower: statistics of real images, with no download.

The photographs are cut into 96 regions, which are dealt out to the splits, and a patch lies within one region: no pixel
is in two splits. Within a region patches overlap.

Origin: ``sklearn.datasets.load_sample_images``, 427x640 pixels each, CC BY 2.0: china.jpg by danielbuechele
(https://www.flickr.com/photos/danielbuechele/6061409035), flower.jpg by vultilion
(https://www.flickr.com/photos/vultilion/6056698931).
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from dgmbench.data.reader import Decoded, Reader, split_at_random, take_parts
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

ROWS, COLUMNS = 6, 8  # regions of one photograph
HEIGHT, WIDTH = 427 // ROWS, 640 // COLUMNS  # pixels of a region; the last row of pixels is in none


class NaturalPatches(Reader):
    """``per_region`` patches (channels, size, size) with 256 levels from random places of each of 96 regions.

    With ``components`` = K they are real (K,): uniform noise fills the levels, and the K leading principal components
    of the training patches are taken at variance 1 and mean 0 (PCA-whitened). Densities are then of these values.
    ``valid`` and ``test``, shares or numbers of regions, are dealt out by ``split_seed``; ``draw`` chooses the places.
    """

    prepared = False

    def __init__(
        self,
        *,
        size: int = 16,
        channels: Literal[1, 3] = 1,
        per_region: int = 150,
        components: int = 0,
        draw: int = 0,
        valid: int | float = 0.1,
        test: int | float = 0.2,
        split_seed: int = 0,
    ) -> None:
        if not 2 <= size <= HEIGHT:
            raise UserError(f"data.size={size} must be from 2 to {HEIGHT}, the height of a region of the photographs.")
        if channels not in (1, 3):
            raise UserError(f"data.channels={channels} must be 1 (grey) or 3 (colour).")
        places = (HEIGHT - size + 1) * (WIDTH - size + 1)
        if not 1 <= per_region <= places:
            raise UserError(
                f"data.per_region={per_region} must be from 1 to {places}, the places of a {size}x{size} patch in a "
                "region."
            )
        if not 0 <= components <= channels * size**2:
            raise UserError(
                f"data.components={components} must be from 0 (the patches as they are) to {channels * size**2}, "
                "the numbers of a patch."
            )
        self.size, self.channels, self.per_region, self.components = size, channels, per_region, components
        self.draw, self.valid, self.test, self.split_seed = draw, valid, test, split_seed

    def read(self, folder: Path) -> Decoded:
        """Cut the patches out; ``index`` is the place of a patch's upper left pixel in both photographs, row by row."""
        from sklearn.datasets import load_sample_images

        photographs = np.stack(load_sample_images().images)  # (2, 427, 640, 3)
        if self.channels == 1:
            photographs = grey(photographs)
        regions = 2 * ROWS * COLUMNS
        places = self._places(np.random.RandomState(self.draw), regions).reshape(3, -1)
        windows = np.lib.stride_tricks.sliding_window_view(photographs, (self.size, self.size), axis=(1, 2))
        x = np.ascontiguousarray(windows[tuple(places)])  # (n, channels, size, size)
        dealt = split_at_random(regions, seed=self.split_seed, valid=self.valid, test=self.test)
        each = np.arange(len(x)).reshape(regions, self.per_region)
        splits = {split: each[own].ravel() for split, own in dealt.items()}
        index = np.ravel_multi_index(tuple(places), photographs.shape[:3])
        spec = DataSpec((self.channels, self.size, self.size), "discrete", levels=256)
        if self.components:
            x = whitened(x, splits["train"], self.components, np.random.RandomState(self.draw))
            spec = DataSpec((self.components,), "real")
        parts = take_parts(x, None, splits, "sklearn.datasets.load_sample_images")
        parts = {split: replace(part, index=index[part.index]) for split, part in parts.items()}
        return Decoded(spec, parts, {"regions": {split: own.tolist() for split, own in dealt.items()}})

    def _places(self, random: np.random.RandomState, regions: int) -> np.ndarray:
        """Photograph, row and column of the upper left pixel of each patch, (3, regions, per_region), none twice.

        ``RandomState`` because its stream is frozen across numpy versions, as a recorded choice must be.
        """
        down, across = HEIGHT - self.size + 1, WIDTH - self.size + 1
        within = np.stack([random.permutation(down * across)[: self.per_region] for _ in range(regions)])
        photograph, row, column = (part[:, None] for part in np.unravel_index(np.arange(regions), (2, ROWS, COLUMNS)))
        rows, columns = np.unravel_index(within, (down, across))
        return np.stack([photograph + 0 * rows, row * HEIGHT + rows, column * WIDTH + columns])


def grey(colours: np.ndarray) -> np.ndarray:
    """RGB (..., 3) uint8 to the luma of ITU-R 601 (..., 1) uint8, in integers: the same bytes everywhere."""
    return ((colours.astype(np.int64) @ np.array([299, 587, 114]) + 500) // 1000).astype(np.uint8)[..., None]


def whitened(x: np.ndarray, train: np.ndarray, components: int, random: np.random.RandomState) -> np.ndarray:
    """The leading principal components of x + u, u uniform on (0, 1), at the training rows' unit variance, float32.

    The sign of each is such that the largest number of its direction is positive.
    """
    flat = x.reshape(len(x), -1) + random.random_sample((len(x), x[0].size))
    mean = flat[train].mean(0)
    values, vectors = np.linalg.eigh(np.cov(flat[train].T, bias=True))
    values, vectors = values[::-1][:components], vectors[:, ::-1][:, :components]
    signs = np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0))
    return ((flat - mean) @ (vectors * signs / np.sqrt(values))).astype(np.float32)
