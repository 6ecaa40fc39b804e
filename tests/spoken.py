"""Spoken digits and short trainings for tests of recognisers."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Generator

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.data.tone_digits import ToneDigits
from dgmbench.evaluation.tasks.prediction import word_error
from dgmbench.models.boltzmann.frame_network import FrameNetwork

WORDS = DataSpec((6, 2), "real", num_classes=6, factors=(("word", 2), ("state", 3)), step_labels=True, lengths=True)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@cache
def spoken() -> tuple[DataSpec, Batch, Batch]:
    """The space, 250 training utterances and 150 others."""
    decoded = ToneDigits(train=250, valid=2, test=150).read(Path())
    found = []
    for split in ("train", "test"):
        part = decoded.parts[split]
        arrays = (np.asarray(each) for each in (part.x, part.y, part.length))
        x, y, length = (torch.from_numpy(each) for each in arrays)
        found.append(Batch(x, y, None, None, length))
    return decoded.spec, found[0], found[1]


def random_utterances(n: int = 12) -> Batch:
    """Frames and lengths of ``WORDS`` at random, float64, labels that go through one word or two."""
    g = seeded(3)
    x = torch.randn(n, 6, 2, generator=g, dtype=torch.float64)
    paths = torch.tensor([[0, 0, 1, 2, -1, -1], [3, 4, 5, 0, 1, 2], [3, 4, 4, 5, 5, 5]])
    y = paths[torch.arange(n) % 3]
    length = (y >= 0).sum(1)
    return Batch(x.masked_fill((y < 0)[:, :, None], 0.0), y, None, None, length)


def picked(batch: Batch, rows: torch.Tensor) -> Batch:
    """These utterances, without the frames behind the longest."""
    assert batch.y is not None
    assert batch.length is not None
    most = int(batch.length[rows].max())
    return Batch(batch.x[rows, :most], batch.y[rows, :most], None, None, batch.length[rows])


def fit(model: FrameNetwork, data: Batch, updates: dict[str, int], *, lr: float = 3e-3) -> None:
    """Stages in their order, so many updates of each, from those that are named on."""
    g = seeded()
    for stage in model.stages():
        if stage.name not in updates:
            continue
        model.enter_stage(stage, g)
        own = {player: torch.optim.Adam(model.players()[player], lr=lr) for player in stage.players}
        for _ in range(updates[stage.name]):
            batch = picked(data, torch.randint(len(data.x), (20,), generator=g))
            for player, optimiser in own.items():
                optimiser.zero_grad()
                model.loss(player, batch, g)[0].backward()
                optimiser.step()
                model.after_step(player, batch, g)
        with torch.no_grad():
            model.settle(iter([data]), g)


def word_error_of(model: FrameNetwork, batch: Batch) -> float:
    """Edits for each true word."""
    truth, said = model.target(batch), model.predict(batch._replace(y=None))
    rows = zip(truth.tolist(), said.tolist(), strict=True)
    return word_error([([w for w in a if w >= 0], [w for w in b if w >= 0]) for a, b in rows]).value
