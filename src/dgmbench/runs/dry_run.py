"""``trainer.dry_run=true``: everything that a run does, once and on a few examples, to see whether it would."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dgmbench.config import complete
from dgmbench.errors import UserError
from dgmbench.runs.build import build_model, load_data
from dgmbench.runs.run import train

# Examples that validation and measurement look at; samples, chains and draws likewise.
FEW = 20


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """A folder that is removed; a disk that is full there is not that of the outputs."""
    folder, usual = None, os.environ.get("TMPDIR") or "the system's folder for temporary files"
    try:
        with tempfile.TemporaryDirectory(prefix="dgm-dry-run-") as folder:
            yield folder
    except (OSError, UserError) as error:
        if folder is not None and folder not in str(error):
            raise  # it is about another place
        cause = error if isinstance(error, OSError) else error.__cause__
        raise UserError(
            f"The dry run cannot write its files to {usual} ({getattr(cause, 'strerror', None) or error}); make room "
            "there or name another folder by TMPDIR=DIR. Nothing was kept."
        ) from error


def dry_run(cfg: Mapping[str, Any]) -> str:
    """Train one batch of each stage, validate, draw and measure in a folder that is removed; returns what was done.

    Nothing is logged but in that folder, and no feature net is trained.
    """
    completed = complete(cfg)
    stages = [stage for stage in build_model(completed, load_data(completed).spec).stages() if stage.share > 0]
    trainer, protocol = completed["trainer"], completed["protocol"]
    with _temporary_folder() as folder:
        outcome = train(
            {
                **completed,
                "trainer": trainer
                | {"budget": f"{len(stages) * trainer['accumulate']}ba", "validate_examples": FEW, "progress": False}
                | {"dry_run": False, "continue_from": None},
                "protocol": protocol
                | {
                    "k": 2,
                    "max_examples": FEW,
                    "ais": protocol["ais"] | {"chains": FEW, "temperatures": FEW, "burn_in": FEW, "spacing": "even"},
                    "quality": protocol["quality"] | {"samples": FEW, "features": []},
                    "semi_supervised": protocol["semi_supervised"] | {"labels": []},
                },
                "hardware": completed["hardware"] | {"devices": 1, "nodes": 1},
                "logger": {"name": "jsonl"},
                "paths": completed["paths"] | {"outputs": folder},
            }
        )
    names, result = completed["names"], outcome.result
    batches = result["cost"]["batches"]
    return (
        f"dry run of {names['model']} on {names['data']}: {batches} batch{'es' * (batches > 1)} of "
        f"{trainer['batch_size']}, a validation ({result['objective']['name']}), samples and {len(result['metrics'])} "
        "numbers went well; nothing was kept."
    )
