"""Adversarial autoencoders: who learns from which loss, the priors, and held-out codes against their prior."""

import math
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.config import compose, resolve
from dgmbench.data import load
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import CanClassify, IsClassConditional
from dgmbench.models.vae.aae import Aae
from dgmbench.nn.code_priors import CodePrior
from dgmbench.nn.mmd import rbf_mixture, squared_distances

SPEC = DataSpec((1, 3, 3), "binary", num_classes=3)
X = torch.randint(2, (30, 1, 3, 3), generator=Generator().manual_seed(1)).byte()
Y = torch.arange(30) % 4 - 1


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(**settings: object) -> Aae:
    torch.manual_seed(0)
    return Aae(SPEC, **{"hidden_sizes": (8,), "critic_sizes": (6,), "latent": 2, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", ["none", "critic", "style", "semi"])
def test_the_game_reaches_encoder_and_critic_and_the_reconstruction_encoder_and_decoder(labels: str) -> None:
    """The decoder's gradient does not depend on the game's weight, the encoder's does; the critic's loss is its own."""
    batch = Batch(X, y=Y.clamp(min=0) if labels == "style" else Y)
    found = {}
    for weight in (0.0, 5.0):
        model = make(labels=labels, prior="mixture", weight=weight)
        model.loss("autoencoder", batch, seeded())[0].backward()
        found[weight] = [[p.grad for p in net.parameters()] for net in (model.decoder, model.encoder)]
    assert all(torch.equal(a, b) for a, b in zip(found[0.0][0], found[5.0][0], strict=True))
    assert any(bool((a != b).any()) for a, b in zip(found[0.0][1], found[5.0][1], strict=True))
    model = make(labels=labels, prior="mixture")
    model.loss("critic", batch, seeded())[0].backward()
    assert all(p.grad is None for net in (model.decoder, model.encoder) for p in net.parameters())
    assert all(p.grad is not None for p in model.players()["critic"])


def test_both_losses_by_hand() -> None:
    model, batch = make(weight=3.0), Batch(X)
    model.critic.head.weight.data.zero_()
    model.critic.head.bias.data.fill_(0.4)
    assert model.loss("critic", batch, seeded())[0].item() == pytest.approx(
        math.log1p(math.exp(-0.4)) + math.log1p(math.exp(0.4)), abs=1e-6
    )
    loss = model.loss("autoencoder", batch, seeded())[0].item()
    assert loss == pytest.approx(
        3 * math.log1p(math.exp(-0.4)) - model.reconstruction_log_prob(X).mean().item(), abs=1e-5
    )


def test_the_priors_have_their_shapes() -> None:
    part = torch.arange(10).repeat(2000)
    mixture = CodePrior("mixture", latent=2, parts=10).draw(part, seeded(), torch.float64)
    for k in (0, 3):
        own, angle = mixture[part == k], 2 * math.pi * k / 10
        along = own @ torch.tensor([math.cos(angle), math.sin(angle)]).double()
        across = own @ torch.tensor([-math.sin(angle), math.cos(angle)]).double()
        assert abs(along.mean() - 2) < 4.5 * 0.5 / 2000**0.5
        assert along.std().item() == pytest.approx(0.5, rel=4.5 / 4000**0.5)
        assert abs(across.mean()) < 4.5 * 0.1 / 2000**0.5
        assert across.std().item() == pytest.approx(0.1, rel=4.5 / 4000**0.5)
    roll = CodePrior("swiss_roll", latent=2, parts=10).draw(part, seeded(), torch.float64)
    radius = roll.norm(dim=1)
    angle = 4 * math.pi * radius / 3
    torch.testing.assert_close(roll, torch.stack([radius * angle.cos(), radius * angle.sin()], 1))
    u = (radius / 3).square()
    assert ((u >= part / 10 - 1e-9) & (u <= (part + 1) / 10 + 1e-9)).all()


def test_labels_enter_where_the_setting_says() -> None:
    critic = make(labels="critic", prior="mixture")
    told = critic._told(torch.tensor([0, 2, -1]))
    assert told is not None
    assert told.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    parts = critic._parts(torch.tensor([0, 2] + [-1] * 300), seeded())
    assert parts[:2].tolist() == [0, 2]
    assert set(parts[2:].tolist()) == {0, 1, 2}
    style = make(labels="style")
    z, beside = style._known(X)
    scores = [style._log_prob(X, z, torch.eye(3)[k].expand(30, 3)) for k in range(3)]
    assert torch.equal(beside.argmax(1), torch.stack(scores, 1).argmax(1))
    semi = make(labels="semi", label_weight=2.0)
    changed = make(labels="semi", label_weight=3.0)
    nll = -semi.label_log_prob(X)[Y >= 0].gather(1, Y[Y >= 0, None]).mean().item()
    losses = [model.loss("autoencoder", Batch(X, y=Y), seeded())[0].item() for model in (semi, changed)]
    assert losses[1] - losses[0] == pytest.approx(nll, abs=1e-5)
    for labels, classifies in (("none", False), ("style", False), ("semi", True)):
        model = make(labels=labels)
        assert isinstance(model, CanClassify) == classifies
        assert isinstance(model, IsClassConditional) == (labels != "none")


def gram(points: Tensor) -> Tensor:
    return rbf_mixture(torch.tensor([1.0, 2.0, 4.0]))(squared_distances(points, points))


def discrepancy(k: Tensor, rows: Tensor) -> Tensor:
    """MMD^2 (V-statistic) between the points that ``rows`` (2n,) names first and those after them."""
    k, n = k[rows][:, rows], len(rows) // 2
    return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()


def test_held_out_codes_are_far_closer_to_the_prior_than_a_plain_autoencoders(tmp_path: Path) -> None:
    data = load(resolve(compose("train", ["model=made", "data=digits_binary"]))["data"], tmp_path)
    train = torch.tensor(data.splits["train"].x[:])
    held_out = torch.cat([torch.tensor(data.splits[name].x[:]) for name in ("valid", "test")])[:500]
    found = {}
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        model, g = Aae(data.spec, hidden_sizes=(64,), critic_sizes=(64,), latent=2, weight=weight), seeded()
        optimisers = {name: torch.optim.Adam(own, lr=2e-3) for name, own in model.players().items()}
        for _ in range(300):
            batch = Batch(train[torch.randint(len(train), (100,), generator=g)])
            for name, optimiser in optimisers.items():
                optimiser.zero_grad()
                model.loss(name, batch, g)[0].backward()
                optimiser.step()
        with torch.no_grad():
            codes = model.encode(held_out)
        prior = model.prior.draw(torch.zeros(500, dtype=torch.int64), seeded(7), codes.dtype)
        k = gram(torch.cat([codes, prior]))
        own = discrepancy(k, torch.arange(1000)).item()
        others = [discrepancy(k, torch.randperm(1000, generator=g)).item() for _ in range(99)]
        found[weight] = own, sum(value >= own for value in others)
    assert found[0.0][1] < 5, "the permutation test rejects the plain autoencoder's codes"
    assert found[10.0][0] < found[0.0][0] / 10


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prior": "mixture", "latent": 3}, "lies in the plane"),
        ({"labels": "critic"}, "set model.prior=mixture"),
        ({"weight": -1.0}, "weight=-1.0"),
        ({"loss": "relativistic_average"}, "looks at the prior"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make(**settings)
    with pytest.raises(UserError, match="needs data with labels"):
        Aae(DataSpec((4,), "binary"), labels="style")
