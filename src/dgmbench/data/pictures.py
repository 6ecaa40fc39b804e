"""Encoded pictures -> rows of uint8 arrays: decode, crop the centre, resize, many at a time."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np

from dgmbench.data.reader import Chunks
from dgmbench.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # others may start programs, such as EPS
ROWS = 256  # pictures decoded before they are written


def decode(content: bytes, *, size: int, channels: int, crop: int | None = None) -> np.ndarray:
    """One picture as (channels, size, size) uint8: its central square of side ``crop`` (by default as large as fits),
    resized by Lanczos' filter.
    """
    from PIL import Image, ImageOps

    warnings.simplefilter("error", Image.DecompressionBombWarning)  # of sizes that are announced
    with Image.open(BytesIO(content), formats=FORMATS) as file:
        image = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
    side = crop or min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


def decode_all(
    names: Sequence[str], read: Callable[[str], bytes], *, size: int, channels: int, crop: int | None = None
) -> Chunks:
    """The pictures ``names`` in this order, each decoded from ``read(name)`` when its turn comes."""

    def one(name: str, content: bytes) -> np.ndarray:
        try:
            return decode(content, size=size, channels=channels, crop=crop)
        except Exception as error:  # PIL raises many kinds for damaged files; one of them names a memory address
            what = "no known picture format" if type(error).__name__ == "UnidentifiedImageError" else error
            raise UserError(f"The picture {name} cannot be decoded ({what}); repair or remove it.") from error

    def rows() -> Iterator[np.ndarray]:
        # PIL decodes outside the interpreter lock, so threads do run side by side
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(names), ROWS):
                some = names[start : start + ROWS]
                yield np.stack(list(pool.map(one, some, [read(name) for name in some])))

    return Chunks((len(names), channels, size, size), np.dtype(np.uint8), rows)


def check_size(size: int, channels: int) -> None:
    """Refuse sizes that no picture has."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"data.size is {size!r}; give the side length in pixels, at least 1.")
    if channels not in (1, 3):
        raise UserError(f"data.channels is {channels!r}; pictures have 1 (grey) or 3 (colour) channels.")
