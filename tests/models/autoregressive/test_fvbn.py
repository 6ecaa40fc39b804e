"""FVBN against scikit-learn's logistic regressions, enumeration and its own linear formula."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.fvbn import Fvbn
from dgmbench.verify.check import chi_squared
from dgmbench.verify.support import all_states, state_index


def fvbn(spec, seed=0, **kwargs):
    """A model with strong dependencies, in float64."""
    torch.manual_seed(seed)
    model = Fvbn(spec, **kwargs).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 1.5)
    return model


def correlated(n, dim, levels=2, seed=0):
    """Draws whose dimensions depend on each other: a noisy running sum."""
    g = torch.Generator().manual_seed(seed)
    steps = torch.randint(levels, (n, dim), generator=g)
    keep = torch.rand(n, dim, generator=g) < 0.6
    x = steps.clone()
    for i in range(1, dim):
        x[:, i] = torch.where(keep[:, i], (x[:, i - 1] + (i % 2)) % levels, steps[:, i])
    return x.byte()


def fit(model, x):
    """Minimise the model's own loss to the last digits."""
    optimiser = torch.optim.LBFGS(
        model.parameters(), lr=1, max_iter=500, tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = model.loss("model", Batch(x), torch.Generator())[0]
        loss.backward()
        return loss

    optimiser.step(closure)
    return model


@pytest.mark.parametrize(("levels", "order"), [(2, "natural"), (2, "random"), (4, "natural")])
def test_the_maximum_is_that_of_separate_logistic_regressions(levels, order):
    n, dim, l2 = 400, 6, 0.02
    x = correlated(n, dim, levels)
    spec = DataSpec((dim,), "binary") if levels == 2 else DataSpec((dim,), "discrete", levels)
    torch.manual_seed(3)
    model = fit(Fvbn(spec, order=order, l2=l2).double(), x)
    log_prob = torch.zeros(n, dtype=torch.float64)
    values = x.numpy() / (levels - 1)
    sequence = model.ordering().argsort().tolist()
    weight = model.net.linear(0).weight.detach().view(dim, -1, dim)
    for t, i in enumerate(sequence):
        if t == 0:
            frequency = torch.bincount(x[:, i], minlength=levels).double() / n
            log_prob += frequency.log()[x[:, i].long()]
            continue
        before = sequence[:t]
        regression = LogisticRegression(C=1 / (n * l2), tol=1e-12, max_iter=10_000).fit(values[:, before], x[:, i])
        ours = weight[i][:, before].numpy()
        assert np.allclose(ours, regression.coef_, atol=2e-5)
        log_prob += torch.from_numpy(regression.predict_log_proba(values[:, before]))[range(n), x[:, i].long()]
    assert torch.allclose(model.log_prob(x), log_prob, atol=1e-4)


def test_without_penalty_no_other_weights_are_more_likely():
    x = correlated(500, 5)
    model = fit(Fvbn(DataSpec((5,), "binary")).double(), x)
    best = model.log_prob(x).mean().item()
    gradient = torch.autograd.grad(model.log_prob(x).mean(), list(model.parameters()))
    assert max(g.abs().max().item() for g in gradient) < 1e-7
    for i in range(1, 5):
        regression = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(x[:, :i], x[:, i])
        assert np.allclose(model.net.linear(0).weight.detach()[i, :i], regression.coef_[0], atol=1e-4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1e-2 * torch.randn_like(p))
    assert model.log_prob(x).mean().item() < best


@pytest.mark.parametrize("order", ["natural", "random"])
@pytest.mark.parametrize("spec", [DataSpec((10,), "binary"), DataSpec((1, 2, 2), "discrete", 5)], ids=str)
def test_sums_to_one_and_samples_follow(spec, order):
    model = fvbn(spec, order=order)
    x = all_states(spec.dim, spec.levels, torch.uint8).reshape(-1, *spec.shape)
    log_prob = model.log_prob(x).detach()
    assert log_prob.logsumexp(0).item() == pytest.approx(0.0, abs=1e-10)
    assert log_prob.std() > 0.5
    samples = model.sample(40_000, generator=torch.Generator().manual_seed(1))
    counts = torch.bincount(state_index(samples.flatten(1), spec.levels), minlength=len(x))
    assert chi_squared(counts, log_prob.exp()) > 1e-3


def test_the_logits_are_one_masked_product():
    model = fvbn(DataSpec((7,), "binary"), order="random")
    x = torch.randint(0, 2, (20, 7), generator=torch.Generator().manual_seed(0)).byte()
    position = model.ordering()
    weight = torch.where(position[:, None] > position, model.net.linear(0).weight, 0.0)
    assert torch.allclose(model.conditional_logits(x)[..., 0], x.double() @ weight.T + model.net.linear(0).bias)


def test_starts_at_the_marginals():
    x = correlated(300, 8)
    model = Fvbn(DataSpec((8,), "binary"))
    model.initialise(Batch(x), torch.Generator())
    p = (x.float().mean(0) * 300 + 0.5) / 301
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    cross = -(x.float().mean(0) * p.log() + (1 - x.float().mean(0)) * (1 - p).log())
    assert model.log_prob(x).mean().item() == pytest.approx(-cross.sum().item(), abs=1e-4)
    assert abs(cross.sum() - entropy.sum()) < 0.05


def test_the_penalty_is_of_the_weights_only():
    model = fvbn(DataSpec((4,), "binary"), l2=0.5)
    x = correlated(50, 4)
    loss, logs = model.loss("model", Batch(x), torch.Generator())
    penalty = loss + model.log_prob(x).mean()
    seen = model.net.linear(0).weight.tril(-1)
    assert penalty.item() == pytest.approx(0.25 * seen.square().sum().item(), rel=1e-9)
    assert logs["log_prob"].item() == pytest.approx(model.log_prob(x).mean().item())
    assert math.isfinite(loss.item())


@pytest.mark.parametrize(
    ("kind", "kwargs", "sentence"),
    [("real", {}, "not real"), ("binary", {"l2": -1.0}, "l2=-1.0"), ("binary", {"order": "agnostic"}, "natural or")],
)
def test_wrong_arguments_are_explained(kind, kwargs, sentence):
    with pytest.raises(UserError, match=sentence):
        Fvbn(DataSpec((4,), kind), **kwargs)
