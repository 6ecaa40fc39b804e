"""Put all models' sample grids of a benchmark folder into one picture: contact_sheet.py FOLDER PICTURE.png."""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE, HEADER, COLUMNS = 240, 24, 4


def tile(run: Path) -> np.ndarray:
    """The last sample grid of a run with the model's name above it."""
    grid = max((run / "samples").glob("[0-9]*.png"))
    picture = Image.new("L", (SIDE + 10, SIDE + HEADER + 6), 255)
    ImageDraw.Draw(picture).text((5, 4), json.loads((run / "result.json").read_text())["model"], fill=0, font_size=14)
    picture.paste(Image.open(grid).convert("L").resize((SIDE, SIDE), Image.Resampling.NEAREST), (5, HEADER))
    return np.asarray(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    tiles = [tile(result.parent) for result in sorted(arguments.folder.glob("*/result.json"))]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % COLUMNS)
    rows = [np.concatenate(tiles[i : i + COLUMNS], 1) for i in range(0, len(tiles), COLUMNS)]
    Image.fromarray(np.concatenate(rows)).quantize(16).save(arguments.picture, optimize=True)


if __name__ == "__main__":
    main()
