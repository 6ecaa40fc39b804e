"""S3GAN: with all labels the conditional model plus the rotation loss; rotations, labels and weights by hand."""

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.s3gan import S3Gan
from dgmbench.nn.batchnorm import BatchNorm

SPEC = DataSpec((1, 16, 16), "discrete", levels=4, num_classes=3)
Y = [0, -1, 2, -1, 1, 2, -1, 0, 1, -1, 2, 0]
ALL = [0, 1, 2, 2, 1, 2, 0, 0, 1, 1, 2, 0]


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def made(**arguments: object) -> S3Gan:
    torch.manual_seed(0)
    settings = {"net": "mlp", "latent": 3, "hidden_sizes": (8, 6), "channels": 2} | arguments
    return S3Gan(SPEC, **settings)  # type: ignore[arg-type]


def batch(y: list[int]) -> Batch:
    return Batch(torch.randint(4, (len(y), 1, 16, 16), generator=seeded()).to(torch.uint8), torch.tensor(y))


def drawn(model: S3Gan, n: int) -> tuple[Tensor, Tensor]:
    """The samples that a loss makes with ``seeded()``, and their labels one-hot, from the generator alone."""
    g = seeded()
    c = torch.multinomial(model.class_log_prior.exp(), n, replacement=True, generator=g)
    labels = torch.eye(3)[c]
    return model.generator(torch.randn(n, 3, generator=g), labels), labels


def rotations(model: S3Gan, x: Tensor) -> Tensor:
    """-log P(R = r) over four turns of the first quarter, one by one, turned by transposing and flipping."""
    d, values = model.discriminator, []
    for picture in x[: len(x) // 4]:
        turned = picture
        for r in range(4):
            logits = d.turn_head(d.game.features(turned[None]))[0]
            values.append(-logits.log_softmax(0)[r])
            turned = turned.transpose(1, 2).flip(1)  # a quarter turn to the left
    return torch.stack(values).mean()


def same_gradients(found: Tensor, expected: Tensor, parameters: list[torch.nn.Parameter]) -> None:
    ours, theirs = (
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        for loss in (found, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_with_all_labels_it_is_the_conditional_model_plus_the_rotation_loss() -> None:
    """Projection and hinge, conditional on the true labels, written out; values and gradients of both players."""
    model, one = made(label_weight=0.0, rotation_weight=0.7, generator_rotation_weight=0.3), batch(ALL)
    x, (samples, labels) = one.x / 1.5 - 1, drawn(model, 12)
    real, fake = (model.discriminator.game(u, c)[:, 0] for u, c in ((x, torch.eye(3)[ALL]), (samples, labels)))
    conditional = {"discriminator": F.relu(1 - real).mean() + F.relu(1 + fake).mean(), "generator": -fake.mean()}
    added = {"discriminator": 0.7 * rotations(model, x), "generator": 0.3 * rotations(model, samples)}
    for player, game in conditional.items():
        found = model.loss(player, one, seeded())[0]
        expected = game + added[player]
        torch.testing.assert_close(found, expected)
        same_gradients(found, expected, model.players()[player])


def test_unlabelled_pictures_enter_with_the_class_that_the_head_finds_and_teach_the_head_nothing() -> None:
    model, one = made(label_weight=0.5, rotation_weight=0.0), batch(Y)
    x, (samples, labels) = one.x / 1.5 - 1, drawn(model, 12)
    d = model.discriminator
    scores = d.label_head(d.game.features(x))
    found_classes = [y if y >= 0 else int(scores[i].argmax()) for i, y in enumerate(Y)]
    real, fake = d.game(x, torch.eye(3)[found_classes])[:, 0], d.game(samples, labels)[:, 0]
    known = [i for i, y in enumerate(Y) if y >= 0]
    head = -torch.stack([scores[i].log_softmax(0)[Y[i]] for i in known]).mean()
    expected = F.relu(1 - real).mean() + F.relu(1 + fake).mean() + 0.5 * head
    loss = model.loss("discriminator", one, seeded())[0]
    torch.testing.assert_close(loss, expected)
    same_gradients(loss, expected, model.players()["discriminator"])
    other = one.x.clone()
    other[1] = 3 - other[1]
    logs = [model.loss("discriminator", one._replace(x=u), seeded())[1]["labels"] for u in (one.x, other)]
    torch.testing.assert_close(logs[0], logs[1], rtol=0, atol=1e-6)


def test_four_quarter_turns_are_none_and_the_head_can_tell_them() -> None:
    """The loss is log 4 for a head that knows nothing, and falls to 0 for one that reads a marked corner."""
    model = made()
    with torch.no_grad():
        model.discriminator.turn_head.weight.zero_()
        model.discriminator.turn_head.bias.zero_()
    x = torch.zeros(8, 1, 16, 16)
    x[:, :, 0, 0] = 1.0
    assert model.rotation_nll(x).item() == pytest.approx(torch.tensor(4.0).log().item(), rel=1e-6)
    corners = [(0, 0), (-1, 0), (-1, -1), (0, -1)]  # of the marked pixel after 0 ... 3 turns to the left

    class Reader(torch.nn.Module):
        def features(self, u: Tensor) -> Tensor:
            return torch.stack([u[:, 0, i, j] for i, j in corners], 1)

    model.discriminator.game = Reader()
    model.discriminator.turn_head = torch.nn.Linear(4, 4)
    with torch.no_grad():
        model.discriminator.turn_head.weight.copy_(50 * torch.eye(4))
    assert model.rotation_nll(x).item() == pytest.approx(0, abs=1e-6)


def test_statistics_are_those_of_upright_data() -> None:
    model, one = made(net="dcgan"), batch(Y)
    model.loss("discriminator", one, seeded())
    model.after_step("discriminator", one, seeded())
    net = model.discriminator.game.net
    layer = next(m for m in net.modules() if isinstance(m, BatchNorm))
    expected = net.trunk[:3](model.scaling(one.x)).mean((0, 2, 3))  # type: ignore[index,operator]
    torch.testing.assert_close(layer.running_mean, 0.1 * expected)


def test_players_labels_and_bad_input() -> None:
    model = made()
    assert [tuple(model.turn(step, model.stages()[0])) for step in range(2)] == [
        ("discriminator",),
        ("discriminator", "generator"),
    ]
    assert model.batch_policy() == BatchPolicy(labelled=0.5)
    assert model.classify(batch(Y).x).shape == (12, 3)
    with pytest.raises(UserError, match="square images"):
        S3Gan(DataSpec((2,), "real", num_classes=2))
    with pytest.raises(UserError, match="has none"):
        S3Gan(DataSpec((1, 16, 16), "discrete", levels=4))
    with pytest.raises(UserError, match="n_critic"):
        made(n_critic=0)
    with pytest.raises(UserError, match="looks at data"):
        made(loss="relativistic_average")
