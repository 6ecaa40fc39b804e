"""The main job on embedded data: train, evaluate and sample one model after another on real handwritten digits.

    python scripts/demo.py [--fresh]

Runs go to ``outputs/demo``; a second call finds them done. Ends with a table and a picture of everybody's samples.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from dgmbench import cli

OUTPUTS = Path("outputs/demo")
# Model, and what differs from its defaults so that all of them together take a few minutes on two cores.
CELLS: list[tuple[str, list[str]]] = [
    ("made", ["trainer.budget=40ep"]),
    ("vae", ["trainer.budget=60ep"]),
    ("rbm_pcd", ["model.hidden=100", "trainer.budget=60ep"]),
    ("dbn", ["model.hidden_sizes=[100,100]", "trainer.budget=60ep"]),
    ("helmholtz", ["trainer.budget=60ep"]),
    ("gan", ["trainer.budget=200ep"]),
    ("wgan_gp", ["trainer.budget=200ep"]),
    ("vae_gan", ["trainer.budget=100ep"]),
]
COMMON = [f"paths.outputs={OUTPUTS}", "trainer.validate=5ep", "trainer.samples=20ep", "protocol=demo"]
HEADLINE = ("log_likelihood", "log_likelihood_ais", "elbo", "elbo_ais")


def run(model: str, overrides: list[str]) -> dict:
    code = cli.main(["train", f"model={model}", *COMMON, *overrides])
    if code != 0:
        sys.exit(code)
    newest = max(OUTPUTS.glob(f"{model}-*/result.json"), key=lambda path: path.stat().st_mtime)
    code = cli.main(["sample", f"run={newest.parent}", "n=64"])
    if code != 0:
        sys.exit(code)
    return json.loads(newest.read_text())


def contact_sheet(results: list[dict], path: Path) -> None:
    """All sample grids side by side, with their models' names."""
    tiles = []
    for result in results:
        grid = Image.open(OUTPUTS / result["run"] / "samples" / "best-n64-s0.png").convert("L").resize((300, 300), 0)
        tile = Image.new("L", (310, 330), 255)
        ImageDraw.Draw(tile).text((5, 6), result["model"], fill=0, font_size=14)
        tile.paste(grid, (5, 25))
        tiles.append(np.asarray(tile))
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % 4)
    rows = [np.concatenate(tiles[i : i + 4], 1) for i in range(0, len(tiles), 4)]
    Image.fromarray(np.concatenate(rows)).save(path)


def table(results: list[dict]) -> Table:
    found = Table(title="8x8 handwritten digits, test split")
    for column, justify in (("model", "left"), ("family", "left"), ("nats per image", "right"), ("what it is", "left"),
                            ("energy distance", "right"), ("training", "right")):  # fmt: skip
        found.add_column(column, justify=justify)
    for result in results:
        metrics = result["metrics"]
        name = next((name for name in HEADLINE if name in metrics), None)
        nats = f"{metrics[name]['value']:.2f} +- {metrics[name]['se']:.2f}" if name else "-"
        kind = f"{name}, {metrics[name]['kind']}, {result['data']}" if name else f"no likelihood, {result['data']}"
        distance = metrics["energy_distance"]["value"]
        seconds = result["cost"]["train_seconds"]
        found.add_row(result["model"], result["family"], nats, kind, f"{distance:.3f}", f"{seconds:.0f} s")
    return found


def main() -> None:
    if "--fresh" in sys.argv:
        shutil.rmtree(OUTPUTS, ignore_errors=True)
    begin = time.monotonic()
    results = [run(model, overrides) for model, overrides in CELLS]
    sheet = OUTPUTS / "samples.png"
    contact_sheet(results, sheet)
    console = Console()
    console.print(table(results))
    console.print(f"{len(results)} models in {time.monotonic() - begin:.0f} s; samples of all of them: {sheet}")


if __name__ == "__main__":
    main()
