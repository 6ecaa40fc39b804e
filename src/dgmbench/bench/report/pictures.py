"""Pictures of samples, small enough for one page."""

import base64
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from dgmbench.bench.report.index import stamp, write_file

MAX_PIXELS = 40_000_000
CACHE = "report.pictures.json"
PLAIN = ("samples, best weights", "samples, final weights")
IN_TRAINING = "during training"
_NAME = re.compile(
    r"(?P<weights>best|final)-n\d+-s\d+(-y(?P<label>\d+))?(-t(?P<temperature>[0-9.e+-]*\d))?(-(?P<size>\d+x\d+))?"
    r"(-(?P<show>[a-z_]+))?"
)
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = "data:image/jpeg"


def find_picture(run: Path) -> Path | None:
    """The picture that shows a run best: plain samples of its best weights, which the numbers are of, then of its last
    ones, then its newest of training, then whatever else was drawn.
    """
    found = [path for path in (run / "samples").glob("*.png") if path.is_file()]
    return max(found, key=lambda path: (_rank(path), path.stem)) if found else None


def _rank(file: Path) -> int:
    shown = what_is_shown(file)
    return next((3 - rank for rank, name in enumerate((*PLAIN, IN_TRAINING)) if shown == name), 0)


def what_is_shown(file: Path) -> str:
    """What a picture of a run shows, from its name, as ``dgm sample`` gives it.

    >>> what_is_shown(Path("best-n64-s0.png")), what_is_shown(Path("000000025160.png"))
    ('samples, best weights', 'during training')
    >>> what_is_shown(Path("best-n8-s0-t0.7.png")), what_is_shown(Path("final-n8-s1-reconstructions.png"))
    ('samples at temperature 0.7, best weights', 'reconstructions, final weights')
    >>> what_is_shown(Path("best-n8-s0-48x144.png"))
    'samples of 48x144 pixels, best weights'
    >>> what_is_shown(Path("mine.png"))
    'mine'
    """
    if file.stem.isdigit():
        return IN_TRAINING
    name = _NAME.fullmatch(file.stem)
    if name is None:
        return file.stem
    shown = name["show"] or "samples"
    shown += f" of class {name['label']}" if name["label"] else ""
    shown += f" at temperature {name['temperature']}" if name["temperature"] else ""
    shown += f" of {name['size']} pixels" if name["size"] else ""
    return f"{shown}, {name['weights']} weights"


def picture_uris(files: Sequence[Path], limit: int, cache: Path) -> list[str | None]:
    """``picture_uri`` of many files; what was made smaller before and has not changed is taken from ``cache``."""
    try:
        known = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        known = {}
    keys = [f"{file.relative_to(cache.parent)} {stamp(file)} {limit}" for file in files]
    missing = [(key, file) for key, file in zip(keys, files, strict=True) if key not in known]
    with ThreadPoolExecutor() as pool:  # decoding and encoding run outside the interpreter's lock
        made = dict(
            zip([key for key, _ in missing], pool.map(lambda m: picture_uri(m[1], limit), missing), strict=True)
        )
    found = {key: known.get(key) or made.get(key) for key in keys}
    small = {key: uri for key, uri in found.items() if uri is not None and uri.startswith(_JPEG)}
    if small.keys() != known.keys():
        write_file(cache, json.dumps(small))
    return [found[key] for key in keys]


def picture_uri(file: Path, limit: int) -> str | None:
    """A picture as a data URI of about ``limit`` bytes at most; None if it cannot be read."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    if content.startswith(_PNG) and len(content) * 4 // 3 <= min(limit, 24_000):
        return _uri("png", content)
    from PIL import Image

    try:
        with Image.open(BytesIO(content), formats=("PNG",)) as opened:  # others may start programs
            if opened.width * opened.height > MAX_PIXELS:
                return None
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    side = max(96, min(512, int((limit * 3 / 4 / 0.22) ** 0.5)))  # a JPEG of samples takes about 0.2 bytes a pixel
    for quality in (82, 60, 60, 60, 60):
        image.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=1.0)
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        small = buffer.getvalue()
        if len(small) * 4 // 3 <= limit:
            break
        side = max(64, side * 4 // 5)
    return _uri("jpeg", small)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
