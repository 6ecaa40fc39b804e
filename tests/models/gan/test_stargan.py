"""StarGAN: losses by hand, what the domain planes reach, and translations that arrive in the domain asked for."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.svm import SVC
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.many_domains import DigitsManyDomains
from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.stargan import StarGan

THREE = DataSpec((1, 8, 8), "discrete", levels=17, num_classes=3)


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def made(spec: DataSpec = THREE, **arguments: object) -> StarGan:
    torch.manual_seed(0)
    settings = {"channels": 3, "blocks": 1, "halvings": 1, "critic_channels": 3} | arguments
    return StarGan(spec, **settings)  # type: ignore[arg-type]


def batch(y: list[int], spec: DataSpec = THREE) -> Batch:
    return Batch(torch.randint(17, (len(y), *spec.shape), generator=seeded()).to(torch.uint8), torch.tensor(y))


def test_losses_by_hand() -> None:
    """The targets are another order of the batch's own domains; examples without a domain take no part."""
    model, one = made(domain_weight=0.5, cycle=7.0, penalty_weight=3.0), batch([0, 2, -1, 1, 0])
    x, own = one.x[[0, 1, 3, 4]] / 8.0 - 1, torch.tensor([0, 2, 1, 0])
    g = seeded()
    to = own[torch.randperm(4, generator=g)]
    assert not torch.equal(to, own)
    there = model.generator(x, F.one_hot(to, 3).float())
    (real, of_real), (fake, of_fake) = model.critic(x), model.critic(there)

    def nats(scores: Tensor, domains: Tensor) -> Tensor:
        return -scores.log_softmax(1)[torch.arange(4), domains].mean()

    back = model.generator(there, F.one_hot(own, 3).float())
    wanted = -fake.mean() + 0.5 * nats(of_fake, to) + 7.0 * (back - x).abs().mean()
    torch.testing.assert_close(model.loss("generator", one, seeded())[0], wanted)
    alpha = torch.rand(4, generator=g)[:, None, None, None]
    between = (alpha * x + (1 - alpha) * there).detach().requires_grad_()
    slope = torch.autograd.grad(model.critic(between)[0].mean((1, 2, 3)).sum(), between)[0].flatten(1).norm(dim=1)
    wanted = fake.mean() - real.mean() + 0.5 * nats(of_real, own) + 3.0 * (slope - 1).square().mean()
    torch.testing.assert_close(model.loss("critic", one, seeded())[0], wanted)


def test_the_domain_reaches_every_pixel() -> None:
    """Instance norm in front of the first ReLU would remove it from all but what the border's padding sees."""
    model = made(halvings=0)
    x = torch.rand(1, 1, 8, 8, generator=seeded())
    first, second = (model.generator(x, F.one_hot(torch.tensor([k]), 3).float()) for k in (0, 1))
    assert ((first - second).abs() > 1e-7).float().mean() > 0.95
    assert not any(isinstance(layer, nn.InstanceNorm2d) for layer in model.generator.net[:2])


def test_the_generator_steps_after_every_fifth_critic_step_and_batches_are_balanced() -> None:
    model = made()
    turns = [model.turn(step, model.stages()[0]) for step in range(10)]
    assert [len(turn) for turn in turns] == [1, 1, 1, 1, 2] * 2
    assert model.batch_policy() == BatchPolicy(balanced="label")
    assert made(DataSpec((1, 8, 8), "discrete", 17, 6, factors=(("domain", 3), ("class", 2)))).domain == "domain"


def trained(x: Tensor, y: Tensor, spec: DataSpec) -> StarGan:
    model, g = made(spec, channels=8, halvings=0, critic_channels=12, n_critic=2), seeded()
    players = model.players()
    optimisers = {name: torch.optim.Adam(ps, lr=3e-3, betas=(0.5, 0.999)) for name, ps in players.items()}
    for update in range(STEPS):
        chosen = torch.randint(len(x), (12,), generator=g)
        one = Batch(x[chosen], y[chosen])
        for name in model.turn(update, model.stages()[0]):
            loss = model.loss(name, one, g)[0]
            for parameter, gradient in zip(players[name], torch.autograd.grad(loss, players[name]), strict=True):
                parameter.grad = gradient
            optimisers[name].step()
    return model


STEPS = 140


def test_translations_arrive_where_they_were_sent_and_by_chance_where_training_labels_were_shuffled() -> None:
    """By a classifier that is right on real images; each domain is sent to all four, so chance is a quarter."""
    decoded = DigitsManyDomains().read(Path())
    (x, y), (held, of_held) = (
        (torch.from_numpy(part.x), torch.from_numpy(part.y)) for part in (decoded.parts["train"], decoded.parts["test"])
    )
    classifier = SVC().fit(x.flatten(1).numpy() / 16, y.numpy() // 10)
    now = of_held.numpy() // 10
    assert np.mean(classifier.predict(held.flatten(1).numpy() / 16) == now) > 0.95
    to = torch.from_numpy((now + np.arange(len(now))) % 4)
    right = []
    for labels in (y, y[torch.randperm(len(y), generator=seeded())]):
        there = trained(x, labels, decoded.spec).translate(held, to)
        right.append(np.mean(classifier.predict(there.flatten(1).numpy() / 16) == to.numpy()))
    assert right[0] > 0.8
    assert abs(right[1] - 0.25) < 0.15


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (DataSpec((1, 8, 8), "discrete", levels=17), {}, "at least two domains"),
        (DataSpec((1, 9, 8), "discrete", levels=17, num_classes=3), {}, "multiples of 2"),
        (THREE, {"n_critic": 0}, "n_critic"),
        (THREE, {"cycle": -1.0}, "cycle"),
    ],
)
def test_bad_input_is_explained(spec: DataSpec, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(spec, **arguments)


def test_loss_changes_no_state() -> None:
    model, one = made(), batch([0, 1, 2, 0])
    before = copy.deepcopy(model.state_dict())
    for player in model.players():
        assert torch.equal(model.loss(player, one, seeded())[0], model.loss(player, one, seeded())[0])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
