"""Class-conditional models learn from labelled examples alone, and count those alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data import Batch, DataSpec
from dgmbench.data.policy import BatchPolicy
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.pixelcnn import PixelCnn
from dgmbench.models.autoregressive.wavenet import WaveNet
from dgmbench.models.contract import Model
from dgmbench.models.flow.glow import Glow
from dgmbench.models.flow.maf import Maf
from dgmbench.models.gan.gan import Gan
from dgmbench.models.vae.vae import Vae
from dgmbench.nn.labels import labelled_part

IMAGES = DataSpec((1, 4, 4), "discrete", 4, num_classes=3)

MODELS: dict[str, Callable[[DataSpec], Model]] = {
    "cgan": lambda spec: Gan(spec, hidden_sizes=(8,), latent=2, conditional=True),
    "maf": lambda spec: Maf(spec, hidden_sizes=(8,), layers=2, class_conditional=True),
    "glow": lambda spec: Glow(spec, width=4, steps=1, conditional=True),
    "pixelcnn": lambda spec: PixelCnn(spec, features=4, blocks=1, head=4, conditional=True),
    "wavenet": lambda spec: WaveNet(spec, dilations=(1, 2), channels=4, skip_channels=4, conditional=True),
}


def batch(y: Tensor) -> Batch:
    x = torch.randint(4, (len(y), 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Batch(x, y, torch.arange(len(y)))


@pytest.mark.parametrize("name", MODELS)
def test_unknown_labels_change_nothing_of_what_starts_from_the_known_ones(name: str) -> None:
    """The class prior is that of the labelled examples, one added to each count; settling takes all examples."""
    y = torch.tensor([0, -1, 2, 2, -1, 0, 0, -1] * 5)
    torch.manual_seed(0)
    model = MODELS[name](IMAGES)
    model.initialise(batch(y), Generator().manual_seed(1))
    wanted = torch.tensor([15.0, 0.0, 10.0]) + 1
    assert torch.allclose(model.class_log_prior.exp(), wanted / wanted.sum())
    with torch.no_grad():
        model.settle(iter([batch(y), batch(y.roll(3))]), Generator().manual_seed(2))
    assert all(bool(buffer.isfinite().all()) for buffer in model.buffers() if buffer.is_floating_point())
    assert model.batch_policy() == BatchPolicy(labelled=1.0)


def test_flows_start_at_the_moments_of_labelled_examples() -> None:
    """The rest may be anything: a flow starts the same without it."""
    y = torch.tensor([0, 1, 2, 1, 0, -1, -1, -1])
    starts = []
    for kept in (slice(None), slice(5)):
        torch.manual_seed(0)
        model = MODELS["glow"](IMAGES)
        some = batch(y)
        model.initialise(Batch(some.x[kept], y[kept]), Generator().manual_seed(1))
        starts.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*starts)


def test_the_labelled_part_of_a_batch() -> None:
    some = batch(torch.tensor([1, -1, 0]))._replace(given=torch.arange(3.0))
    part = labelled_part(some)
    assert part.y.tolist() == [1, 0]
    assert part.index.tolist() == [0, 2]
    assert part.given.tolist() == [0.0, 2.0]
    assert torch.equal(part.x, some.x[[0, 2]])
    whole = batch(torch.tensor([1, 2]))
    assert labelled_part(whole) is whole


def test_models_of_all_examples_take_them_as_they_come() -> None:
    assert Vae(IMAGES, hidden_sizes=(4,), latent=2).batch_policy() is None


def test_labels_of_steps_are_none_of_examples() -> None:
    spec = DataSpec((8,), "discrete", 4, num_classes=3, step_labels=True)
    with pytest.raises(UserError, match="a label for each example"):
        MODELS["wavenet"](spec)
