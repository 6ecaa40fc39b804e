"""Encoded pictures -> rows of uint8 arrays: decode exactly, crop the centre, resize, many at a time.

Only what has a known meaning in 8 bits is converted. 16 bits are divided by 257, so that white stays white; 32-bit
integers and floats need to be told which values are black and white; transparent parts are laid on a ground of a stated
colour. Pillow's own conversion would clip the first two at 255, and show whatever colour hides under the third.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from dgmbench.data.reader import Chunks
from dgmbench.errors import UserError, some_of

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # others may start programs, such as EPS
ROWS = 256  # pictures decoded before they are written
NAMED = 20  # pictures that an error names
PLAIN = ("1", "L", "P", "RGB", "RGBX", "LA", "PA", "RGBA", "CMYK", "YCbCr")  # Pillow's modes of 8 bits a channel
SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")
BITS_PER_SAMPLE = 258  # a TIFF tag

Size = int | Sequence[int]
"""The side of a square, or [height, width], in pixels."""

TRANSPARENT, PAGES, DEEP = "transparent", "pages", "deep"


@dataclass(frozen=True)
class Decoder:
    """How every picture of a set becomes (channels, height, width) uint8: its centre, cropped to the form that is asked
    for (of side ``crop``, by default as large as fits), resized by Lanczos' filter. ``size`` is [height, width] or the
    side of a square; with ``size=None`` each keeps the size that it has.

    ``background`` is the colour under transparent parts, ``value_range`` the values that are black and white in
    pictures of more than 8 bits; without it, 16 bits have theirs, and others are refused. ``advice`` is what to do
    about damaged pictures.
    """

    size: Size | None
    channels: int
    crop: int | None = None
    background: str = "white"
    value_range: tuple[float, float] | None = None
    advice: str = "repair or remove what is damaged"
    _seen: dict[str, dict[str, None]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.size is not None:
            check_size(self.size, self.channels)
        _colour(self.background)
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise UserError(
                f"data.value_range={list(self.value_range)} must be two numbers [black, white], black below white."
            )

    def decode(self, content: bytes) -> tuple[np.ndarray, list[str]]:
        """One picture, and what had to be done with it beyond cropping: TRANSPARENT, PAGES, DEEP."""
        from PIL import Image, ImageOps

        warnings.simplefilter("error", Image.DecompressionBombWarning)  # of sizes that are announced
        with Image.open(BytesIO(content), formats=FORMATS) as file:
            announced, most = file.width * file.height, Image.MAX_IMAGE_PIXELS
            if most is not None and announced > most:  # where another thread has changed the filters of warnings
                raise ValueError(f"it announces {announced} pixels, more than {most}")
            image, did = ImageOps.exif_transpose(file), []
            if image.mode in SIXTEEN or image.mode in ("I", "F"):
                image = self._of_depth(image, file)
                did.append(DEEP)
            elif image.mode not in PLAIN:
                raise ValueError(f"its mode {image.mode} has no exact conversion to {self._mode}")
            if _more_than_one(file):
                did.append(PAGES)
        if image.has_transparency_data:
            image, transparent = self._on_ground(image)
            did += [TRANSPARENT] if transparent else []
        image = image.convert(self._mode)
        if self.size is not None:
            height, width = sides(self.size)
            tall, wide = (self.crop, self.crop) if self.crop else largest(image.size, height, width)
            left, top = (image.width - wide) // 2, (image.height - tall) // 2
            image = image.crop((left, top, left + wide, top + tall))
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.LANCZOS)
        pixels = np.asarray(image).reshape(image.height, image.width, self.channels)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), did

    def decode_all(self, names: Sequence[str], read: Callable[[str], bytes], every: Iterable[str] = ()) -> Chunks:
        """The pictures ``names`` in this order, each decoded from ``read(name)`` when its turn comes.

        If one is damaged, the error names all damaged ones among ``every``, by default ``names``.
        """

        def rows() -> Iterator[np.ndarray]:
            for some in _pieces(names):
                yield np.stack(self._decoded(some, read, every or names))

        assert self.size is not None
        return Chunks((len(names), self.channels, *sides(self.size)), np.dtype(np.uint8), rows)

    def as_they_are(self, names: Sequence[str], read: Callable[[str], bytes]) -> np.ndarray:
        """Pictures of one size, (n, channels, height, width), neither cropped nor resized."""
        found = [x for some in _pieces(names) for x in self._decoded(some, read, names)]
        for name, x in zip(names, found, strict=True):
            if x.shape != found[0].shape:
                a, b = ("x".join(map(str, each.shape[:0:-1])) for each in (found[0], x))
                raise UserError(f"The picture {names[0]} has {a} pixels and {name} {b}; all must have one size.")
        return np.stack(found)

    def _decoded(self, names: Sequence[str], read: Callable[[str], bytes], every: Iterable[str]) -> list[np.ndarray]:
        found = list(self._tried(names, read))
        if any(isinstance(each, str) for each in found):
            raise self._error(self.damaged(list(every), read))
        for name, (_, did) in zip(names, found, strict=True):
            for what in did:
                self._seen.setdefault(what, {})[name] = None
        return [x for x, _ in found]

    def damaged(self, names: Sequence[str], read: Callable[[str], bytes]) -> dict[str, str]:
        """The pictures that cannot be decoded, and why."""
        return {
            name: each
            for some in _pieces(names)
            for name, each in zip(some, self._tried(some, read), strict=True)
            if isinstance(each, str)
        }

    def notes(self) -> list[str]:
        """What was done with pictures beyond cropping and resizing, once they are decoded."""
        limits = "as their format says" if self.value_range is None else "at {:g} and {:g}".format(*self.value_range)
        words = {
            TRANSPARENT: f"have transparent parts, which were laid on data.background={self.background}",
            PAGES: "have several pages or frames, of which the first was taken",
            DEEP: f"have more than 8 bits and were brought to 8, black and white {limits}",
        }
        return [f"{some_of(sorted(self._seen[what]), 'picture')} {words[what]}" for what in words if what in self._seen]

    def _error(self, damaged: Mapping[str, str]) -> UserError:
        named = [f"{name} ({why})" for name, why in list(damaged.items())[:NAMED]]
        if len(damaged) == 1:
            ((name, why),) = damaged.items()
            return UserError(f"The picture {name} cannot be decoded ({why}); {self.advice}.")
        more = f" and {len(damaged) - len(named)} more" if len(damaged) > len(named) else ""
        return UserError(f"{len(damaged)} pictures cannot be decoded: {', '.join(named)}{more}; {self.advice}.")

    @property
    def _mode(self) -> str:
        return "L" if self.channels == 1 else "RGB"

    def _tried(self, names: Sequence[str], read: Callable[[str], bytes]) -> Iterator[Any]:
        """For each picture what ``decode`` gives, or why it cannot be decoded."""
        contents = [read(name) for name in names]
        # PIL decodes outside the interpreter lock, so threads do run side by side
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield from pool.map(self._try, names, contents)

    def _try(self, name: str, content: bytes) -> tuple[np.ndarray, list[str]] | str:
        try:
            return self.decode(content)
        except UserError as error:
            raise UserError(f"The picture {name} {error}") from error
        except Exception as error:  # PIL raises many kinds for damaged files; one of them names a memory address
            return "no known picture format" if type(error).__name__ == "UnidentifiedImageError" else str(error)

    def _of_depth(self, image: "Image", file: "Image") -> "Image":
        """A picture of 16 or 32 bits or floats as 8 bits, with an alpha channel if one of its values is transparent."""
        from PIL import Image

        raw = np.asarray(image).astype(np.float64)
        smallest, largest = raw.min(), raw.max()
        if not np.isfinite(raw).all():
            raise ValueError("it holds values that are not finite")
        limits = self.value_range or _range_of(image.mode, file)
        what = "floats" if image.mode == "F" else f"{16 if image.mode in SIXTEEN else 32}-bit integers"
        if limits is None:
            raise UserError(
                f"holds {what} from {smallest:g} to {largest:g}, and nothing says which values are black and white; "
                "give them as data.value_range=[black,white]."
            )
        low, high = limits
        if smallest < low or largest > high:
            raise UserError(
                f"holds {what} from {smallest:g} to {largest:g}, beyond data.value_range=[{low:g},{high:g}]; give a "
                "range that holds them all."
            )
        grey = Image.fromarray(np.rint((raw - low) / (high - low) * 255).astype(np.uint8))
        key = image.info.get("transparency")
        if key is not None:
            grey.putalpha(Image.fromarray(np.where(raw == key, 0, 255).astype(np.uint8)))
        return grey

    def _on_ground(self, image: "Image") -> tuple["Image", bool]:
        """A picture laid on the background, and whether any of that can be seen."""
        from PIL import Image

        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*_colour(self.background), 255))
        return Image.alpha_composite(ground, image), image.getchannel("A").getextrema() != (255, 255)


def _range_of(mode: str, file: "Image") -> tuple[float, float] | None:
    """Black and white of a picture whose format says so; Pillow has brought PGM's and PNG's to 16 bits."""
    if mode in SIXTEEN:
        tags: Mapping[int, Any] = getattr(file, "tag_v2", {})
        return (0.0, 4095.0) if tags.get(BITS_PER_SAMPLE) in (12, (12,)) else (0.0, 65535.0)
    return (0.0, 65535.0) if mode == "I" and file.format in ("PPM", "PNG") else None


def _more_than_one(file: "Image") -> bool:
    try:
        return bool(getattr(file, "is_animated", False))
    except Exception:  # damage behind the first frame, which is the one that counts
        return True


def _pieces(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + ROWS] for start in range(0, len(names), ROWS))


def _colour(name: str) -> tuple[int, int, int]:
    from PIL import ImageColor

    try:
        red, green, blue, *_ = ImageColor.getrgb(name)
    except ValueError as error:
        raise UserError(
            f"data.background={name} is no colour; give a name such as white, or #rrggbb in hexadecimal digits."
        ) from error
    return red, green, blue


def check_size(size: Size, channels: int) -> None:
    """Refuse sizes that no picture has."""
    both = [size] if isinstance(size, int) else list(size)
    if len(both) not in (1, 2) or any(not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in both):
        raise UserError(f"data.size is {size!r}; give the side of a square or [height, width] in pixels, at least 1.")
    if channels not in (1, 3):
        raise UserError(f"data.channels is {channels!r}; pictures have 1 (grey) or 3 (colour) channels.")


def sides(size: Size) -> tuple[int, int]:
    """Height and width of a size."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def largest(picture: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Height and width of the largest part of a picture (width, height) that has the form height x width."""
    wide, tall = picture
    if wide * height >= tall * width:  # the picture is wider than the form
        return tall, max(1, round(tall * width / height))
    return max(1, round(wide * height / width)), wide
