"""Pictures of a colour in their upper or lower half, with captions that say both: small enough to learn in seconds."""

import torch
from torch import Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.contract import Model

from .alphabet import seeded

CAPTIONS = DataSpec((3,), "tokens", 5, end=0)
HALVES = DataSpec((3, 16, 16), "discrete", levels=256, given=CAPTIONS)


def coloured(n: int, seed: int) -> tuple[Batch, Tensor]:
    """Pictures of one of three colours, in one half or the other, and captions (colour, half) that say so."""
    g = seeded(seed)
    colour, half = torch.randint(3, (n,), generator=g), torch.randint(2, (n,), generator=g)
    x = torch.randint(0, 60, (n, 3, 16, 16), generator=g)
    rows = (torch.arange(16)[None] // 8 == half[:, None])[:, None, :, None]
    x = torch.where(rows & (torch.arange(3)[None, :, None, None] == colour[:, None, None, None]), x + 190, x)
    given = torch.stack([1 + colour, torch.where(half == 0, 1, 4), torch.zeros_like(half)], 1)
    return Batch(x.to(torch.uint8), given=given), torch.stack([colour, half], 1)


def seen(x: Tensor) -> Tensor:
    """The colour, and the half that it is in, of each picture."""
    halves = x.float().view(len(x), 3, 2, -1).mean(3)
    return torch.stack([halves.sum(2).argmax(1), halves.amax(1).argmax(1)], 1)


def learn(model: Model, updates: dict[str, int]) -> dict[str, Tensor]:
    """Train so many updates a stage; the share of 200 samples that fit their captions after each, colour and half."""
    data, facts = coloured(300, 0)
    held, wanted = coloured(200, 1)
    assert (seen(data.x) == facts).all()
    assert data.given is not None
    assert held.given is not None
    g, found = seeded(), {}
    players = model.players()
    optimisers = {name: torch.optim.Adam(own, lr=4e-3, betas=(0.5, 0.999)) for name, own in players.items()}
    for stage in model.stages():
        model.enter_stage(stage, g)
        for _ in range(updates[stage.name]):
            rows = torch.randint(300, (24,), generator=g)
            one = Batch(data.x[rows], given=data.given[rows])
            for name in stage.players:
                optimisers[name].zero_grad()
                model.loss(name, one, g)[0].backward()
                optimisers[name].step()
                model.after_step(name, one, g)
        drawn = model.eval().sample(200, given=held.given, generator=seeded())  # type: ignore[operator]
        found[stage.name] = (seen(drawn) == wanted).double().mean(0)
        model.train()
    return found


def chance(factor: int, errors: float) -> float:
    """What 200 samples without a caption would reach, and so many standard errors more."""
    share = (1 / 3, 1 / 2)[factor]
    return share + errors * (share * (1 - share) / 200) ** 0.5
