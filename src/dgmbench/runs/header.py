"""What a run is about to do, in a few lines for who started it."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

import torch

from dgmbench.data import DataSet
from dgmbench.data.dataset import SplitName
from dgmbench.models.contract import Model
from dgmbench.runs.origin import in_words
from dgmbench.training.plan import Plan

WIDTH = 80
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")


def header(
    completed: Mapping[str, Any],
    data: DataSet,
    model: Model,
    plan: Plan,
    device: torch.device,
    run: Path,
    *,
    by_data: bool = False,
) -> list[str]:
    """Data, model, budget, device and folder, and what was done with the data, a line each.

    ``by_data``: the model's network was chosen by the data.
    """
    names, trainer = completed["names"], completed["trainer"]
    sizes = ", ".join(f"{data.size(split):,} {split}" for split in SPLITS)
    classes = f", {data.spec.num_classes} classes" if data.spec.num_classes else ""
    parameters = sum(p.numel() for p in model.parameters())
    players = model.players()
    trained_by = f" of {len(players)} players ({', '.join(players)})" if len(players) > 1 else ""
    stages = f" in {len(plan.stages)} stages" if len(plan.stages) > 1 else ""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return [
        f"data    {names['data']}: {sizes}",
        f"        {data.spec}{classes}",
        *(fill(note, WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 10) for note in data.meta.get("notes", [])),
        f"model   {names['model']}: {parameters:,} parameters{trained_by}",
        *(
            [f"        net={completed['model']['net']}, by the shape of the data; model.net=... sets it"]
            if by_data
            else []
        ),
        f"budget  {trainer['budget']}: {plan.images:,} images in batches of {plan.batch_size}{stages}, on {where}",
        *(
            fill(text, WIDTH, initial_indent="origin  ", subsequent_indent=" " * 10)
            for text in in_words(completed.get("origin", {}))
        ),
        f"folder  {run}",
    ]
