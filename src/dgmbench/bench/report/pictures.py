"""Pictures of samples, small enough for one page."""

import base64
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from dgmbench.bench.report.index import stamp, write_file

MAX_PIXELS = 40_000_000
CACHE = "report.pictures.json"
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = "data:image/jpeg"


def find_picture(run: Path) -> Path | None:
    """The picture that shows a run best: drawn from its best weights, else its newest of training."""
    found = [path for path in (run / "samples").glob("*.png") if path.is_file()]
    if not found:
        return None
    ranks = {"best": 2, "final": 1}
    return max(found, key=lambda path: (ranks.get(path.stem.partition("-")[0], 0), path.stem))


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
