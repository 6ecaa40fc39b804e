"""Where metric rows go besides the run's own ``metrics.jsonl``; images seen are the axis everywhere."""

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from dgmbench.errors import UserError
from dgmbench.training.files import disk_errors

POSITION = ("images", "batches", "epoch", "seconds")


class RowLogger(Protocol):
    """Takes the same rows as ``metrics.jsonl``."""

    def log(self, row: Mapping[str, Any]) -> None:
        """One row of training or validation metrics."""
        ...

    def finish(self, result: Mapping[str, Any]) -> None:
        """The run is done."""
        ...


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The metrics of a row by name; those of validation begin with ``valid/``."""
    prefix = "valid/" if row["kind"] == "valid" else ""
    for name, value in row.items():
        if isinstance(value, int | float) and name not in POSITION:
            yield prefix + name, value


class CsvLogger:
    """``metrics.csv``: one line a metric and point in time. A resume drops what lies behind the checkpoint."""

    FIELDS = (*POSITION, "stage", "metric", "value")

    def __init__(self, folder: Path, images: int) -> None:
        self.path = folder / "metrics.csv"
        kept: list[dict[str, str]] = []
        if self.path.exists() and images:
            with self.path.open(newline="") as file:
                complete = [line for line in file if line.endswith("\n")]  # a kill may have torn the last one
                kept = [line for line in csv.DictReader(complete) if int(line["images"]) <= images]
        with disk_errors(self.path), self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.FIELDS)
            writer.writeheader()
            writer.writerows(kept)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a line for each metric of the row."""
        where = {name: row[name] for name in (*POSITION, "stage")}
        with disk_errors(self.path), self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.FIELDS)
            writer.writerows({**where, "metric": name, "value": value} for name, value in _numbers(row))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Nothing is left to write."""


class TensorboardLogger:
    """TensorBoard event files in the run's folder ``tensorboard``."""

    def __init__(self, folder: Path, images: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "logger=tensorboard needs the package tensorboard: pip install 'dgmbench[tensorboard]'."
            ) from error
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=images + 1 if images else None)

    def log(self, row: Mapping[str, Any]) -> None:
        """One scalar a metric, at the number of images seen."""
        for name, value in _numbers(row):
            self._writer.add_scalar(name, value, row["images"])

    def finish(self, result: Mapping[str, Any]) -> None:
        """Add the final metrics and close the file."""
        for name, metric in result["metrics"].items():
            if metric["value"] is not None:
                self._writer.add_scalar(f"test/{name}", metric["value"], result["cost"]["images"])
        self._writer.close()


class WandbLogger:
    """Weights & Biases: one run per folder, resumed under the same id."""

    def __init__(self, folder: Path, completed: Mapping[str, Any]) -> None:
        import wandb

        settings = completed["logger"]
        self._run = wandb.init(
            project=settings["project"],
            mode=settings["mode"],
            id=folder.name,
            name=folder.name,
            resume="allow",
            dir=folder,
            config=dict(completed),
            reinit="finish_previous",
        )
        self._run.define_metric("*", step_metric="images")

    def log(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of one row."""
        self._run.log({name: row[name] for name in POSITION} | dict(_numbers(row)))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Put the final metrics into the summary and close the run."""
        self._run.summary.update({name: metric["value"] for name, metric in result["metrics"].items()})
        self._run.finish()


def row_loggers(completed: Mapping[str, Any], folder: Path, *, images: int) -> list[RowLogger]:
    """The loggers that ``logger`` names besides the run's own file; ``images`` is where a resumed run goes on."""
    settings = completed["logger"]
    makers: dict[str, Callable[[], RowLogger]] = {
        "csv": lambda: CsvLogger(folder, images),
        "tensorboard": lambda: TensorboardLogger(folder, images),
        "wandb": lambda: WandbLogger(folder, completed),
    }
    return [makers[name]() for name in dict.fromkeys((settings["name"], *settings["also"])) if name in makers]
