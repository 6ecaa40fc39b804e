"""Where metric rows go besides the run's own ``metrics.jsonl``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class RowLogger(Protocol):
    """Takes the same rows as ``metrics.jsonl``, with images seen as the axis."""

    def log(self, row: Mapping[str, Any]) -> None:
        """One row of training or validation metrics."""
        ...

    def finish(self, result: Mapping[str, Any]) -> None:
        """The run is done."""
        ...


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
        prefix = "valid/" if row["kind"] == "valid" else ""
        position = ("images", "batches", "epoch", "seconds")
        numbers = {k if k in position else prefix + k: v for k, v in row.items() if isinstance(v, int | float)}
        self._run.log(numbers)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Put the final metrics into the summary and close the run."""
        self._run.summary.update({name: metric["value"] for name, metric in result["metrics"].items()})
        self._run.finish()


def row_loggers(settings: Mapping[str, Any], folder: Path, completed: Mapping[str, Any]) -> list[RowLogger]:
    """The loggers of the ``logger`` group; ``jsonl`` needs none besides the run's own file."""
    return [WandbLogger(folder, completed)] if settings["name"] == "wandb" else []
