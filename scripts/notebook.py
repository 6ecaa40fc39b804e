"""Write ``docs/notebooks/first_run.ipynb`` and execute it: a run is trained, loaded, sampled from and drawn.

    python scripts/notebook.py            # write it anew; half a minute
    python scripts/notebook.py --check    # only execute what is there, and see that it ends

Needs ``pip install 'dgmbench[docs]'``.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from textwrap import dedent
from typing import Any

FILE = Path(__file__).resolve().parent.parent / "docs" / "notebooks" / "first_run.ipynb"
CELLS = [
    """
    # A run from start to end

    A variational autoencoder learns 8x8 digits; its run is loaded as an object, asked for numbers, drawn and sampled.
    `pip install dgmbench` is all that is needed: the digits come with it.
    """,
    """
    import subprocess
    import sys

    import dgmbench

    # as on the command line: dgm train model=vae trainer.budget=60ep protocol=demo
    words = ["train", "model=vae", "trainer.budget=60ep", "protocol=demo", "trainer.progress=false"]
    done = subprocess.run([sys.executable, "-m", "dgmbench", *words], capture_output=True, text=True, check=True)

    run = dgmbench.load_run(done.stdout.splitlines()[-1])  # the folder is all it needs: no data, no configuration
    run.spec
    """,
    """
    ## What was measured

    Every number has a kind and a protocol. Here are those that say most.
    """,
    """
    for name in ("elbo", "iw_bound_k50", "energy_distance", "linear_probe_error"):
        if metric := run.result["metrics"].get(name):
            print(f"{name:20} {metric['value']:9.4g} {metric['unit']:14} {metric['kind']}")
    """,
    """
    ## Learning curve

    `metrics.jsonl` has a row for each validation pass and for about a thousand of the updates, by images seen.
    """,
    """
    import json

    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    valid = [row for row in rows if row["kind"] == "valid"]
    plt.figure(figsize=(5, 2.4))
    plt.plot([row["images"] for row in valid], [row["elbo"] for row in valid])
    plt.xlabel("images seen")
    plt.ylabel("ELBO, validation (nats)")
    plt.show()
    """,
    """
    ## Samples

    The same seed gives the same samples.
    """,
    """
    x = run.sample(32, seed=1)

    figure, axes = plt.subplots(4, 8, figsize=(5, 2.6))
    for picture, place in zip(x, axes.flat, strict=True):
        place.imshow(picture[0], cmap="gray")
        place.axis("off")
    plt.show()
    """,
    """
    ## The model itself

    It is a plain `torch.nn.Module`: bounds of single examples come from its methods, in nats of the raw data.
    """,
    """
    import torch

    with torch.no_grad():
        bounds = run.model.elbo(x)
    print(f"ELBO of its own samples: {bounds.mean():.2f} nats, from {bounds.min():.2f} to {bounds.max():.2f}")
    """,
    """
    More: [guides](../guides.md), [metrics](../metrics.md), [adding a model](../adding_a_model.md).
    """,
]


def notebook() -> Any:
    """The notebook without outputs."""
    import nbformat

    made = nbformat.v4.new_notebook()
    for number, text in enumerate(CELLS):
        text = dedent(text).strip()
        new = nbformat.v4.new_markdown_cell if text.startswith(("# ", "## ", "More:")) else nbformat.v4.new_code_cell
        cell = new(text)
        cell["id"] = f"cell-{number}"
        made.cells.append(cell)
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return made


def executed(made: Any) -> Any:
    """The notebook with what its cells print and draw, run in a folder that is removed."""
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory(prefix="dgm-notebook-") as folder:
        os.environ["DGM_OUTPUTS"] = str(Path(folder) / "outputs")
        NotebookClient(made, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    for cell in made.cells:
        cell.metadata.pop("execution", None)  # times, which differ at every run
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("text/html", None)
    made.metadata.pop("language_info", None)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="execute the stored notebook and keep nothing")
    arguments = parser.parse_args()
    import nbformat

    made = nbformat.read(FILE, as_version=4) if arguments.check else notebook()
    done = executed(made)
    if arguments.check:
        print(f"{FILE.name}: {sum(cell.cell_type == 'code' for cell in done.cells)} cells executed")
        return
    nbformat.write(done, FILE)
    size = FILE.stat().st_size
    print(f"{FILE}: {size / 1000:.0f} kB")
    if size > 300_000:
        sys.exit("the notebook is larger than 300 kB")


if __name__ == "__main__":
    main()
