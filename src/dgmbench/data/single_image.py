"""One photograph, which trains, validates and tests alike: for models that learn everything from a single picture.

Origin: the photographs "china" and "flower" of ``sklearn.datasets.load_sample_images``, CC BY (Wikimedia Commons).
"""

from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np

from dgmbench.data.pictures import Decoder, Size, sides
from dgmbench.data.reader import ALONE, Decoded, Part, Reader, alone
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, nearest

PHOTOGRAPHS = ("china", "flower")
WHOLE = (427, 640)


class SingleImage(Reader):
    """One photograph (3, height, width) of 256 levels: the largest centre of this form, resized (Lanczos).

    The photographs have 427 x 640 pixels; a temple by a lake (``china``) and a flower.
    """

    prepared = False

    def __init__(self, *, picture: Literal["china", "flower"] = "china", size: Size = (48, 72)) -> None:
        if picture not in PHOTOGRAPHS:
            raise UserError(nearest(picture, PHOTOGRAPHS, what="data.picture"))
        self.picture, self.decoder = picture, Decoder(size, 3)
        self.size = sides(size)
        if any(not 8 <= side <= whole for side, whole in zip(self.size, WHOLE, strict=True)):
            raise UserError(
                f"data.size={list(self.size)} must be from [8,8] to [427,640], the photographs' own pixels."
            )

    def read(self, folder: Path) -> Decoded:
        """Crop and resize the photograph."""
        from PIL import Image
        from sklearn.datasets import load_sample_images

        content = BytesIO()
        Image.fromarray(load_sample_images().images[PHOTOGRAPHS.index(self.picture)]).save(content, "PNG")
        pixels, _ = self.decoder.decode(content.getvalue())
        part = Part(pixels[None], None, f"sklearn.datasets.load_sample_images {self.picture}", np.arange(1))
        spec = DataSpec((3, *self.size), "discrete", levels=256)
        return Decoded(spec, alone(part), notes=lambda: [ALONE], alone=True)
