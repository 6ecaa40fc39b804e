"""Auxiliary deep generative models against quadrature over a and z of one dimension, and against labels alone."""

import math
from pathlib import Path

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Generator, Tensor
from torch.distributions import Normal, kl_divergence

from dgmbench.config import compose, resolve
from dgmbench.data import load
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.adgm import Adgm
from dgmbench.nn.labels import label_nll

SPEC = DataSpec((1, 2, 2), "binary", num_classes=3)
POINTS = 16
NODES, WEIGHTS = (torch.from_numpy(each) for each in hermegauss(POINTS))
WEIGHTS = WEIGHTS / math.sqrt(2 * math.pi)
IMAGES = (torch.arange(16)[:, None] >> torch.arange(4) & 1).view(16, 1, 2, 2).byte()
PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(skip: bool, **settings: object) -> Adgm:
    torch.manual_seed(3)
    sizes = {"hidden_sizes": (6,), "latent": 1, "auxiliary": 1}
    model = Adgm(SPEC, skip=skip, **{**sizes, **settings}).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    model.class_log_prior.copy_(PRIOR.log())
    return model


def normal(of: tuple[Tensor, Tensor]) -> Normal:
    return Normal(of[0][..., 0], of[1][..., 0].exp())


def spread(of: Normal) -> Tensor:
    """The quadrature's points of each Gaussian (n,), (POINTS, n), whose shares are WEIGHTS."""
    return of.mean + of.stddev * NODES[:, None]


@torch.no_grad()
def exact(model: Adgm, x: Tensor) -> Tensor:
    """p(x, y) (n, classes): over z by quadrature, and over a where p(x | a, z, y) depends on it."""
    columns, n = [], POINTS * len(x)
    z = NODES[:, None].expand(-1, len(x)).reshape(-1, 1)
    many = x.repeat(POINTS, 1, 1, 1)
    for label in range(3):
        a = spread(normal(model.p_a(many, torch.full((n,), label), z))).view(-1, 1)
        parameters = model.parameters_of_x(torch.full((n * POINTS,), label), z.repeat(POINTS, 1), a)
        each = model.observation.log_prob(parameters, many.repeat(POINTS, 1, 1, 1)).exp()
        columns.append(torch.einsum("azn,a,z->n", each.view(POINTS, POINTS, -1), WEIGHTS, WEIGHTS) * PRIOR[label])
    return torch.stack(columns, 1)


@torch.no_grad()
def exact_bounds(model: Adgm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E L(x, y) (n, classes), U(x) (n,), and E log q(y | a, x) (n, classes), by quadrature over a and, inside, z."""
    q_a, n = normal(model.q_a(x)), POINTS * len(x)
    of_a = spread(q_a)
    a, many, inner = of_a.view(-1, 1), x.repeat(POINTS, 1, 1, 1), []
    for label in range(3):
        q_z, y = normal(model.q_z(many, torch.full((n,), label), a)), torch.full((n * POINTS,), label)
        z, again, of_x = spread(q_z).view(-1, 1), a.repeat(POINTS, 1), many.repeat(POINTS, 1, 1, 1)
        total = model.observation.log_prob(model.parameters_of_x(y, z, again), of_x)
        total = total + normal(model.p_a(of_x, y, z)).log_prob(again[:, 0])
        total = (total.view(POINTS, -1) * WEIGHTS[:, None]).sum(0) - kl_divergence(q_z, Normal(0.0, 1.0))
        inner.append(total.view(POINTS, -1) + PRIOR[label].log() - q_a.log_prob(of_a))
    each, log_q = torch.stack(inner, 2), model.label_log_prob(many, a).view(POINTS, -1, 3)
    of_labels = (log_q.exp() * (each - log_q)).sum(2)
    return tuple(torch.einsum("an...,a->n...", of, WEIGHTS) for of in (each, of_labels, log_q))  # type: ignore[return-value]


@pytest.mark.parametrize("skip", [False, True])
def test_the_bounds_are_those_by_quadrature_and_lie_below_the_probabilities(skip: bool) -> None:
    model = make(skip)
    joint = exact(model, IMAGES)
    assert joint.sum().item() == pytest.approx(1, abs=1e-8)
    labelled, unlabelled, _ = exact_bounds(model, IMAGES)
    assert (labelled <= joint.log() + 1e-9).all()
    assert (unlabelled <= joint.sum(1).log() + 1e-9).all()
    with torch.no_grad():
        drawn = torch.stack([model.elbo(IMAGES, generator=seeded(k)) for k in range(60)])
        of_y = torch.stack([model.elbo(IMAGES, y=torch.full((16,), 1), generator=seeded(k)) for k in range(60)])
        weights = model.log_weights(IMAGES, 2000, generator=seeded()).exp()
        under = model.log_weights(IMAGES, 2000, y=torch.full((16,), 2), generator=seeded()).exp()
    for found, wanted in (
        (drawn, unlabelled),
        (of_y, labelled[:, 1] - PRIOR[1].log()),
        (weights, joint.sum(1)),
        (under, joint[:, 2] / PRIOR[2]),
    ):
        assert ((found.mean(0) - wanted).abs() < 4.5 * found.std(0) / len(found) ** 0.5).all()


def test_the_labels_are_summed_under_each_draw_of_a() -> None:
    """Averaging q(y | a, x) over a first gives another number, so the sum has to be inside."""
    model = make(False)
    labelled, unlabelled, _ = exact_bounds(model, IMAGES)
    log_q = model.classify(IMAGES).detach()
    outside = (log_q.exp() * (labelled - log_q)).sum(1)
    assert (outside - unlabelled).abs().max() > 0.01
    with torch.no_grad():
        found = torch.stack([model.elbo(IMAGES, generator=seeded(k)) for k in range(60)]).mean(1)
    assert abs(found.mean() - unlabelled.mean()) < 4.5 * found.std() / 60**0.5


def test_the_class_is_told_by_the_mean_of_its_probabilities_over_a() -> None:
    model = make(False, draws=512)
    q_a = model.q_a(IMAGES)
    every = [w * model.label_log_prob(IMAGES, q_a.mean + q_a.log_sigma.exp() * node).exp()
             for node, w in zip(NODES, WEIGHTS, strict=True)]  # fmt: skip
    found = model.classify(IMAGES)
    torch.testing.assert_close(found.exp(), sum(every), atol=2e-3, rtol=0)
    assert torch.equal(found, model.classify(IMAGES))


@pytest.mark.parametrize("skip", [False, True])
def test_the_loss_weighs_the_bounds_as_the_data_set_does(skip: bool) -> None:
    """A batch of which half is labelled, of a set of which a quarter is."""
    model = make(skip, label_weight=0.7)
    y = torch.where(torch.arange(16) < 8, torch.arange(16) % 3, -1)
    model.initialise(Batch(IMAGES, y=torch.where(torch.arange(16) < 4, y, -1)), seeded())
    counts = torch.tensor([2.0, 1.0, 1.0]) + 1
    assert torch.allclose(model.class_log_prior.exp(), (counts / counts.sum()).double())
    model.class_log_prior.copy_(PRIOR.log())
    labelled, unlabelled, log_labels = exact_bounds(model, IMAGES)
    bound = 0.25 * labelled[:8].gather(1, y[:8, None]).mean() + 0.75 * unlabelled[8:].mean()
    wanted = -0.7 * log_labels[:8].gather(1, y[:8, None]).mean() - bound
    many, labels = IMAGES.repeat(200, 1, 1, 1), y.repeat(200)
    with torch.no_grad():
        found = torch.stack([model.loss("model", Batch(many, y=labels), seeded(k))[0] for k in range(4)])
    assert abs(found.mean() - wanted) < 4.5 * found.std() / 2 + 0.01


def test_one_loss_reaches_all_networks_and_several_draws_are_their_mean() -> None:
    y = torch.arange(16) % 4 - 1
    for skip in (False, True):
        model = make(skip)
        model.loss("model", Batch(IMAGES, y=y), seeded())[0].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    few, many = ([make(False, samples=s).loss("model", Batch(IMAGES, y=y), seeded(k))[0].item() for k in range(15)]
                 for s in (1, 16))  # fmt: skip
    few_, many_ = torch.tensor(few), torch.tensor(many)
    assert abs(few_.mean() - many_.mean()) < 4.5 * few_.std() / 15**0.5
    assert many_.std() < 0.5 * few_.std()


def gain(draw: int, x: Tensor, y: Tensor, held_out: tuple[Tensor, Tensor]) -> float:
    """How much lower the error is than that of the same q(y | a, x) trained on three labels a class alone."""
    g = seeded(draw)
    known = torch.cat(
        [of[torch.randperm(len(of), generator=g)[:3]] for of in ((y == c).nonzero()[:, 0] for c in range(4))]
    )
    few = torch.full_like(y, -1).index_copy(0, known, y[known])
    unknown = (few < 0).nonzero()[:, 0]
    found = []
    for steps, semi in ((100, True), (40, False)):
        torch.manual_seed(draw)
        settings = {"hidden_sizes": (30,), "latent": 3, "auxiliary": 3, "label_weight": 3.0, "draws": 10}
        model = Adgm(DataSpec((1, 8, 8), "binary", num_classes=4), **settings)  # type: ignore[arg-type]
        model.initialise(Batch(x, y=few), g)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(steps):
            optimiser.zero_grad()
            rows = torch.cat([known, unknown[torch.randint(len(unknown), (40,), generator=g)]])
            loss = (
                model.loss("model", Batch(x[rows], y=few[rows]), g)[0]
                if semi
                else label_nll(model.draw_a(x[known], g).labels, y[known])
            )
            loss.backward()
            optimiser.step()
        found.append((model.classify(held_out[0]).argmax(1) != held_out[1]).double().mean().item())
    return found[1] - found[0]


def test_unlabelled_examples_lower_the_error(tmp_path: Path) -> None:
    """Over five draws of the labels of the digits 0 to 3, by more than two standard errors."""
    data = load(resolve(compose("train", ["model=made", "data=digits_binary"]))["data"], tmp_path)
    parts = [(torch.tensor(part.x[:]), torch.tensor(part.y[:])) for part in map(data.splits.get, ("train", "test"))]
    (x, y), held_out = [(x[y < 4], y[y < 4]) for x, y in parts]
    gains = torch.tensor([gain(draw, x, y, held_out) for draw in range(5)])
    assert gains.mean() > 2 * gains.std() / 5**0.5


@pytest.mark.parametrize(
    ("spec", "settings", "sentence"),
    [
        (DataSpec((1, 2, 2), "binary"), {}, "needs data with labels"),
        (SPEC, {"label_weight": -1.0}, "label_weight=-1.0"),
        (SPEC, {"auxiliary": 0}, "auxiliary=0"),
        (SPEC, {"samples": 0}, "samples=0"),
    ],
)
def test_what_does_not_fit_is_refused(spec: DataSpec, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Adgm(spec, **settings)  # type: ignore[arg-type]
