"""Write the table of a suite in which every model meets every data set: one Markdown table a set.

dgm bench suite=three_sets executor.time=240s executor.memory=8GiB
python scripts/side_by_side.py outputs/bench/three_sets docs/side_by_side.md
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from dgmbench.bench.report.numbers import HEADLINES, rounded
from dgmbench.data import DataSet, evaluation_batches
from dgmbench.evaluation.evaluator import Evaluator
from dgmbench.models.contract import Model
from dgmbench.runs.build import load_data
from dgmbench.runs.evaluate import features_folder
from dgmbench.runs.folder import RunFolder
from dgmbench.runs.metric_names import bound_samples, is_called

QUALITY = {
    "energy_distance": "energy distance",
    "fd_random_conv": "FD",
    "coverage_random_conv": "coverage",
    "parzen": "Parzen, nats",
}
HEAD = """# Every model on three sets

What `dgm bench suite=three_sets` measured: every model on binarised MNIST, grey MNIST and CIFAR-10, trained for
seconds on one core (200 to 20,000 images, one seed; the slowest with smaller networks, as
`configs/suite/three_sets.yaml` says) and measured on a hundred test images under `protocol=glance`. These are not the
numbers that the models can reach: the table shows that one evaluator has a number of the right kind for each, and
which pairs are not defined. Standard errors are over the hundred images, and over draws. Estimates by annealing are
the forward ones, which flatter; the reverse ones are in the report. *FD* and *coverage* are on random convolutions
(200 samples; with so few images FD is biased upwards, alike for all); Parzen windows are unreliable, as everywhere.
The first row of each table is of real images: of the training set, in the place of samples.

    dgm bench suite=three_sets executor.time=240s executor.memory=8GiB
    python scripts/side_by_side.py outputs/bench/three_sets docs/side_by_side.md

What to look at: real images come out best by energy distance, FD and coverage, as they should; Parzen windows prefer
VAE/GAN to real images on CIFAR-10. Models that hardly left the data's marginals (exact likelihoods near -200 nats on
binarised MNIST, close to 8 bits on CIFAR-10, where 8 is uniform noise) have a small energy distance, because every
pixel is right on average, and no coverage; those that draw shapes (RBMs, GANs, VAE/GAN) have it the other way round.
One measure alone ranks them wrongly.
"""


class Training(Model):
    """Draws training images, so that what it is measured by is what real images reach."""

    def __init__(self, data: DataSet) -> None:
        super().__init__(data.spec)
        self.data = data

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        chosen = torch.randint(self.data.size("train"), (n,), generator=generator)
        return torch.cat([batch.x for batch in evaluation_batches(self.data, "train", batch_size=n, rows=chosen)])


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
        done = [cell for cell in cells if cell["data"] == data and cell["status"] == "done"]
        if done:
            lines.append(real_row(arguments.suite / done[0]["run"]))
        for cell in cells:
            if cell["data"] != data:
                continue
            if cell["status"] == "done":
                result = json.loads((arguments.suite / cell["run"] / "result.json").read_bytes())
                lines.append(row(f"`{cell['model']}`", result["metrics"]))
            else:
                missing.setdefault(why(cell), []).append(f"`{cell['model']}`")
        lines.append("")
        lines += [f"- {reason}: {', '.join(models)}" for reason, models in missing.items()]
        lines.append("")
    arguments.page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def real_row(run: Path) -> str:
    """The line of real images, on the data and under the protocol of a run."""
    completed = RunFolder.existing(run).read_config()
    result = json.loads((run / "result.json").read_bytes())
    data, protocol = load_data(completed), result["measured"][-1]["protocol"]
    cpu, folder = torch.device("cpu"), features_folder(completed)
    evaluator = Evaluator(data, protocol, split="test", rule="best", averaged=False, device=cpu, folder=folder)
    found = {name: metric.as_dict() for name, (metric, _) in evaluator.measure(Training(data)).items()}
    return row("*real images*", found)


def row(label: str, metrics: dict[str, Any]) -> str:
    """One line of a table."""
    likelihoods = [name for wanted in HEADLINES for name in metrics if is_called(name, wanted)]
    nats = [name for name in likelihoods if metrics[name]["unit"] == "nats"]
    # of several bounds the tightest
    name = nats[0] if nats and not bound_samples(nats[0]) else max(nats, key=samples_of, default=None)
    cells = [label]
    if name is None:
        cells += ["-", "none", "-"]
    else:
        bits = metrics.get(f"{name}_bits_per_dim")
        cells += [number(metrics[name]), f"`{name}`, {metrics[name]['kind']}", number(bits)]
    return f"| {' | '.join(cells + [number(metrics.get(each)) for each in QUALITY])} |"


def samples_of(name: str) -> int:
    """k of a bound of k samples, else 0."""
    return bound_samples(name) or 0


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
