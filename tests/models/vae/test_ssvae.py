"""Semi-supervised VAEs against quadrature over codes of one dimension, and against a network of the labels alone."""

import math
from pathlib import Path
from statistics import fmean

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Generator, Tensor
from torch.distributions import Normal, kl_divergence

from dgmbench.config import compose, resolve
from dgmbench.data import load
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.m2 import M2
from dgmbench.models.vae.ssvae import Ssvae
from dgmbench.nn.labels import label_bound, label_nll, population_mean

SPEC = DataSpec((1, 2, 2), "binary", num_classes=3)
NODES, WEIGHTS = (torch.from_numpy(each) for each in hermegauss(100))
LOG_WEIGHTS = (WEIGHTS / math.sqrt(2 * math.pi)).log()[:, None]
IMAGES = (torch.arange(16)[:, None] >> torch.arange(4) & 1).view(16, 1, 2, 2).byte()
PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(variant: str, **settings: object) -> Ssvae:
    torch.manual_seed(3)
    model = Ssvae(SPEC, **{"variant": variant, "hidden_sizes": (6,), "latent": 1, **settings}).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.2)
    if model.class_log_prior is not None:
        model.class_log_prior.copy_(PRIOR)
    return model


def m2_of(model: Ssvae) -> M2:
    assert isinstance(model.top, M2)
    return model.top


def log_joint(model: M2, x: Tensor) -> Tensor:
    """log p(x, y) (n, classes) by quadrature over z ~ N(0, 1)."""
    z = NODES[:, None, None].expand(-1, len(x), 1)
    columns = []
    for y in range(3):
        code = model.code(torch.full((len(x),), y), None)
        columns.append((model.log_likelihood(x, z, code) + LOG_WEIGHTS).logsumexp(0) + PRIOR[y])
    return torch.stack(columns, 1).detach()


def exact_labelled_bound(model: M2, x: Tensor) -> Tensor:
    """E L(x, y) (n, classes), its expectation by quadrature and its KL by torch.distributions."""
    columns = []
    for y in range(3):
        code = model.code(torch.full((len(x),), y), None)
        mean, log_sigma = model.posterior_moments(x, code)
        z = mean + log_sigma.exp() * NODES[:, None, None]
        inner = (model.log_likelihood(x, z, code) * LOG_WEIGHTS.exp()).sum(0)
        columns.append(inner - kl_divergence(Normal(mean, log_sigma.exp()), Normal(0.0, 1.0)).sum(1) + PRIOR[y])
    return torch.stack(columns, 1).detach()


def test_the_unlabelled_bound_is_the_sum_over_the_labels_and_lies_below_the_probability() -> None:
    model = make("m2")
    exact, bounds = log_joint(m2_of(model), IMAGES), exact_labelled_bound(m2_of(model), IMAGES)
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert (bounds <= exact + 1e-9).all()
    log_q = model.classify(IMAGES).detach()
    wanted = (log_q.exp() * bounds).sum(1) - (log_q.exp() * log_q).sum(1)  # sum q L + H(q)
    assert (wanted <= exact.logsumexp(1) + 1e-9).all()
    with torch.no_grad():
        drawn = torch.stack([model.elbo(IMAGES, generator=seeded(k)) for k in range(200)])
        of_y = torch.stack([model.elbo(IMAGES, y=torch.full((16,), 1), generator=seeded(k)) for k in range(200)])
        weights = model.log_weights(IMAGES, 3000, generator=seeded()).exp()
    assert ((drawn.mean(0) - wanted).abs() < 4.5 * drawn.std(0) / 200**0.5).all()
    assert ((of_y.mean(0) - (bounds[:, 1] - PRIOR[1])).abs() < 4.5 * of_y.std(0) / 200**0.5).all()
    assert ((weights.mean(0) - exact.exp().sum(1)).abs() < 4.5 * weights.std(0) / 3000**0.5).all()
    torch.testing.assert_close(label_bound(bounds, log_q), wanted)
    best = label_bound(bounds, bounds.log_softmax(1))
    torch.testing.assert_close(best, bounds.logsumexp(1))
    assert (best >= wanted).all()


def test_the_loss_weighs_labelled_and_unlabelled_examples_as_the_data_set_does() -> None:
    """A batch of which half is labelled, of a set of which a quarter is."""
    values, y = torch.tensor([1.0, 2.0, 30.0, 50.0]), torch.tensor([0, 2, -1, -1])
    assert population_mean(values, y, torch.tensor(0.25)).item() == pytest.approx(0.25 * 1.5 + 0.75 * 40)
    assert population_mean(values, y.clamp(min=0), torch.tensor(0.25)).item() == pytest.approx(values.mean().item())
    model = make("m2", label_weight=0.7)
    y = torch.where(torch.arange(16) < 8, torch.arange(16) % 3, -1)
    model.initialise(Batch(IMAGES, y=torch.where(torch.arange(16) < 4, y, -1)), seeded())
    assert m2_of(model).labelled_share.item() == 0.25
    m2_of(model).class_log_prior.copy_(PRIOR)
    many, labels = IMAGES.repeat(2000, 1, 1, 1), y.repeat(2000)
    with torch.no_grad():
        found = model.loss("classes", Batch(many, y=labels), seeded())[0].item()
    bounds, log_q = exact_labelled_bound(m2_of(model), IMAGES), model.classify(IMAGES).detach()
    own = bounds[:8].gather(1, y[:8, None]).mean()
    bound = 0.25 * own + 0.75 * label_bound(bounds, log_q)[8:].mean()
    assert found == pytest.approx((0.7 * -log_q[:8].gather(1, y[:8, None]).mean() - bound).item(), abs=0.02)


@pytest.mark.parametrize("variant", ["m1", "m1+m2"])
def test_stacked_weights_average_to_the_probability_by_quadrature(variant: str) -> None:
    """Over z_1 from its prior: N(0, 1) of M1, the mixture of M2's densities of codes else."""
    model = make(variant)
    assert model.features is not None
    with torch.no_grad():
        if variant == "m1":
            z, log_w = NODES, LOG_WEIGHTS
        else:
            z = torch.linspace(-40, 40, 4001, dtype=torch.float64)
            log_w = (log_joint(m2_of(model), z[:, None]).logsumexp(1) + math.log(z[1] - z[0]))[:, None]
        assert log_w.exp().sum().item() == pytest.approx(1, abs=1e-3)
        exact = torch.stack([model.features.log_prob_given(x.expand(len(z), 1, 2, 2), z[:, None]) for x in IMAGES], 1)
        exact = (exact + log_w).logsumexp(0)
        weights = model.log_weights(IMAGES, 3000, generator=seeded()).exp()
        bound = torch.stack([model.elbo(IMAGES, generator=seeded(k)) for k in range(200)])
    assert ((weights.mean(0) - exact.exp()).abs() < 4.5 * weights.std(0) / 3000**0.5 + 1e-3 * exact.exp()).all()
    assert (bound.mean(0) <= exact + 4.5 * bound.std(0) / 200**0.5).all()


def test_what_is_above_the_features_does_not_change_them() -> None:
    batch = Batch(IMAGES, y=torch.arange(16) % 4 - 1)
    for variant, stages in (("m1", 1), ("m1+m2", 2), ("m2", 1)):
        model = make(variant)
        assert len(model.stages()) == stages
        model.loss("classes", batch, seeded())[0].backward()
        if model.features is not None:
            assert all(p.grad is None for p in model.features.parameters())
        assert all(p.grad is not None for p in model.top.parameters())


def error(model: Ssvae, x: Tensor, y: Tensor) -> float:
    return (model.classify(x).argmax(1) != y).double().mean().item()


def gain(draw: int, x: Tensor, y: Tensor, held_out: tuple[Tensor, Tensor]) -> float:
    """How much lower the error of M2 is than that of its own classifier trained on three labels a class alone."""
    g = seeded(draw)
    known = torch.cat(
        [of[torch.randperm(len(of), generator=g)[:3]] for of in ((y == c).nonzero()[:, 0] for c in range(4))]
    )
    few = torch.full_like(y, -1).index_copy(0, known, y[known])
    unknown = (few < 0).nonzero()[:, 0]
    found = []
    for steps, semi in ((240, True), (80, False)):
        torch.manual_seed(draw)
        model = Ssvae(DataSpec((1, 8, 8), "binary", num_classes=4), hidden_sizes=(50,), latent=5, label_weight=2.0)
        model.initialise(Batch(x, y=few), g)
        optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(steps):
            optimiser.zero_grad()
            rows = torch.cat([known, unknown[torch.randint(len(unknown), (40,), generator=g)]])
            loss = (
                model.loss("classes", Batch(x[rows], y=few[rows]), g)[0]
                if semi
                else label_nll(model.classify(x[known]), y[known])
            )
            loss.backward()
            optimiser.step()
        found.append(error(model, *held_out))
    return found[1] - found[0]


def test_unlabelled_examples_lower_the_error(tmp_path: Path) -> None:
    """The mean of five draws of the labels of the digits 0 to 3."""
    data = load(resolve(compose("train", ["model=made", "data=digits_binary"]))["data"], tmp_path)
    parts = [(torch.tensor(part.x[:]), torch.tensor(part.y[:])) for part in map(data.splits.get, ("train", "test"))]
    (x, y), held_out = [(x[y < 4], y[y < 4]) for x, y in parts]
    assert fmean(gain(draw, x, y, held_out) for draw in range(5)) > 0.03


@pytest.mark.parametrize(
    ("spec", "settings", "sentence"),
    [
        (DataSpec((1, 2, 2), "binary"), {}, "needs data with labels"),
        (SPEC, {"label_weight": -1.0}, "label_weight=-1.0"),
    ],
)
def test_what_does_not_fit_is_refused(spec: DataSpec, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Ssvae(spec, **settings)  # type: ignore[arg-type]
