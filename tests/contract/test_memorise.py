"""Every model with an explicit likelihood of binary data learns eight images by heart, down to their entropy.

The images are three fair bits, each repeated all over the image. Whatever the order of the pixels, a pixel is a fair
coin or the copy of one that came before, so that even a logistic regression on the pixels before represents them: the
supremum of every autoregressive model's mean log-likelihood is -3 log 2. It lies below by Gibbs' inequality, so that a
"density" that sums to more than 1 overshoots. A flow has a bound in place of the density and leaves mass between the
images, as it cannot tear its noise apart.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dgmbench.cards import read_cards
from dgmbench.config import complete, compose, instantiate
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import HasLogProb, HasLogWeights, Model, Stage

CARDS = {name: card for name, card in read_cards().items() if card.likelihood == "exact" and "binary" in card.kinds}
ENTROPY = 3 * math.log(2)
EXACT = 0.05
"""How many nats from the entropy training may end, with the exact likelihood."""
BOUND = 0.125
"""And with an importance-weighted bound, a dimension: six start 2.1 nats away and may end 0.75 away."""
DRAWS = 256
UPDATES = 800
LEARNING_RATES = (0.02, 0.1, 0.005)
"""One of them does it: what is tested is that the model can."""


def nodes(name: str) -> tuple[dict[str, Any], tuple[int, ...], int | None]:
    """The model's node with the sizes of its card's tiny instance, that instance's shape and its classes."""
    tiny = CARDS[name].tiny
    block = next((block for block in tiny if block["kind"] == "binary"), tiny[0])
    node = complete(compose("train", [f"model={name}"]))["model"]
    return {**node, **(block.get("args") or {})}, tuple(block["shape"]), block.get("num_classes")


def build(name: str) -> Model:
    """The model on 4 x 4 images or, where it has a bound only, on vectors of six; where it takes neither, on less."""
    node, tiny, classes = nodes(name)
    found = None
    for shape in ((1, 4, 4), (16,), (6,), tiny):
        torch.manual_seed(0)
        try:
            model = instantiate(node, DataSpec(shape, "binary", num_classes=classes))
        except UserError:
            continue
        if isinstance(model, HasLogProb) or shape == (6,):
            return model
        found = found or model
    assert isinstance(found, Model), f"{name} can be built for no small binary data"
    return found


def images(spec: DataSpec) -> torch.Tensor:
    """All eight settings of three bits, bit i at the pixels i, i + 3, ..."""
    bits = torch.tensor(list(itertools.product((0, 1), repeat=3)), dtype=spec.dtype)
    return bits[:, torch.arange(spec.dim) % 3].reshape(8, *spec.shape)


@torch.no_grad()
def mean_log_likelihood(model: Model) -> float:
    x = images(model.spec)
    model.eval()
    if isinstance(model, HasLogProb):
        found = model.log_prob(x).mean()
    else:
        assert isinstance(model, HasLogWeights)
        log_w = model.log_weights(x, DRAWS, generator=torch.Generator().manual_seed(0))
        found = (log_w.logsumexp(0) - math.log(DRAWS)).mean()
    model.train()
    return float(found)


def turns(model: Model) -> Iterator[tuple[int, Stage, bool]]:
    """The updates with their stage, and whether it begins; the stages have equal parts."""
    stages, before = model.stages(), -1
    for step in range(UPDATES):
        number = step * len(stages) // UPDATES
        yield step, stages[number], number > before
        before = number


def train(model: Model, learning_rate: float, enough: float) -> None:
    """Train on all images at once until the mean log-likelihood is enough."""
    x, classes = images(model.spec), model.spec.num_classes
    batch = Batch(x.repeat(4, *[1] * len(model.spec.shape)), torch.arange(32) % classes if classes else None)
    optimisers = {player: torch.optim.Adam(own, lr=learning_rate) for player, own in model.players().items()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.train().initialise(batch, generator)
    for step, stage, first in turns(model):
        if first:
            with torch.no_grad():
                model.enter_stage(stage, generator)
        seen = batch if stage.view is None else stage.view(batch, generator)
        for player in model.turn(step, stage):
            model.zero_grad()
            model.loss(player, seen, generator)[0].backward()
            optimisers[player].step()
            with torch.no_grad():
                model.after_step(player, seen, generator)
        if step % 25 == 24 and mean_log_likelihood(model) > enough:
            return


@pytest.mark.parametrize("name", CARDS)
def test_eight_images_are_learnt_down_to_their_entropy(name: str) -> None:
    ends = []
    for learning_rate in LEARNING_RATES:
        model = build(name)
        tolerance = EXACT if isinstance(model, HasLogProb) else BOUND * model.spec.dim
        assert mean_log_likelihood(model) < -ENTROPY - 2 * tolerance, "before training there is something to learn"
        train(model, learning_rate, -ENTROPY - 0.8 * tolerance)
        ends.append(mean_log_likelihood(model))
        assert ends[-1] < -ENTROPY + 1e-4, "Gibbs' inequality"
        if ends[-1] > -ENTROPY - tolerance:
            break
    assert max(ends) > -ENTROPY - tolerance
