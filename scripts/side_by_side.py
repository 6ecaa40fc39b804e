"""Write the table of a suite in which every model meets every data set: one Markdown table a set.

dgm bench suite=three_sets executor.time=240s executor.memory=8GiB
python scripts/side_by_side.py outputs/bench/three_sets docs/side_by_side.md
"""

import argparse
import json
from pathlib import Path
from typing import Any

from dgmbench.bench.report.numbers import HEADLINES, rounded
from dgmbench.metric_names import is_called

QUALITY = {
    "energy_distance": "energy distance",
    "fd_random_conv": "FD",
    "coverage_random_conv": "coverage",
    "parzen": "Parzen, nats",
}
HEAD = """# Every model on three sets

What `dgm bench suite=three_sets` measured: every model on binarised MNIST, grey MNIST and CIFAR-10, trained for seconds
on one core (20,000 images, or 4,000 of the slower models, one seed) and measured on a hundred test images under
`protocol=glance`. These are not the numbers that the models can reach: the table shows that one evaluator has a number
of the right kind for each, and which pairs are not defined. Standard errors are over the hundred images. Estimates by
annealing are the forward ones, which flatter; the reverse ones are in the report. *FD* and *coverage* are on random
convolutions (200 samples; with fewer images than features FD is biased upwards, alike for all); Parzen windows are
unreliable, as everywhere. The cells ran under limits of 75 to 240 s each on a machine with other work, so a timeout
says little about a model, and what was not reached is listed as not run; `dgm bench` goes on where it stopped.

    dgm bench suite=three_sets executor.time=240s executor.memory=8GiB
    python scripts/side_by_side.py outputs/bench/three_sets docs/side_by_side.md
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path, help="the suite's folder, with cells.json")
    parser.add_argument("page", type=Path, help="the page to write")
    arguments = parser.parse_args()
    cells = json.loads((arguments.suite / "cells.json").read_bytes())["cells"]
    lines = [HEAD]
    for data in dict.fromkeys(cell["data"] for cell in cells):
        lines += [
            f"## {data}",
            "",
            f"| model | likelihood, nats | metric, kind | bits/dim | {' | '.join(QUALITY.values())} |",
        ]
        lines.append("|---" * (4 + len(QUALITY)) + "|")
        missing: dict[str, list[str]] = {}
        for cell in cells:
            if cell["data"] != data:
                continue
            if cell["status"] == "done":
                lines.append(
                    row(cell["model"], json.loads((arguments.suite / cell["run"] / "result.json").read_bytes()))
                )
            else:
                missing.setdefault(why(cell), []).append(f"`{cell['model']}`")
        lines.append("")
        lines += [f"- {reason}: {', '.join(models)}" for reason, models in missing.items()]
        lines.append("")
    arguments.page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def row(model: str, result: dict[str, Any]) -> str:
    """One line of a table."""
    metrics = result["metrics"]
    likelihoods = [name for wanted in HEADLINES for name in metrics if is_called(name, wanted)]
    name = next((name for name in likelihoods if metrics[name]["unit"] == "nats"), None)
    cells = [f"`{model}`"]
    if name is None:
        cells += ["-", "none", "-"]
    else:
        bits = metrics.get(f"{name}_bits_per_dim")
        cells += [number(metrics[name]), f"`{name}`, {metrics[name]['kind']}", number(bits)]
    return f"| {' | '.join(cells + [number(metrics.get(each)) for each in QUALITY])} |"


def number(metric: dict[str, Any] | None) -> str:
    """A value with its standard error."""
    if metric is None or metric["value"] is None:
        return "-"
    se = metric["se"]
    return rounded(metric["value"], se) + (f" ± {rounded(se, se)}" if se else "")


def why(cell: dict[str, Any]) -> str:
    """Why a cell has no numbers, in a few words."""
    reason = (cell["reason"] or "").partition(";")[0]
    for word in (f"model={cell['model']} ", f", but data={cell['data']} is "):
        reason = reason.replace(word, "" if word.startswith("model") else ", not ")
    if cell["status"] == "planned":
        return "not run"
    return f"not defined: {reason}" if cell["status"] == "skipped" else f"{cell['status']}: {reason}".rstrip(": ")


if __name__ == "__main__":
    main()
