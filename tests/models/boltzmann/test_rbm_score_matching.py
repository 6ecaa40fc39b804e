"""Score matching of a Gaussian RBM against autograd, the Fisher divergence by quadrature, and the sample variance."""

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import Normal

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.gaussian_rbm import GaussianRbm
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.boltzmann.score_matching import ScoreMatching

PLANE = DataSpec((2,), "real")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(seed: int = 0, hidden: int = 3) -> GaussianRbm:
    model = GaussianRbm(PLANE, hidden=hidden, estimator=ScoreMatching()).double()
    g = seeded(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return model


def objective(model: GaussianRbm, v: Tensor) -> Tensor:
    return model.estimator.loss(model, v, seeded())[0]


def by_autograd(model: GaussianRbm, v: Tensor) -> tuple[Tensor, Tensor]:
    """The score (n, 2) and the trace of its derivative (n,) at v."""
    v = v.clone().requires_grad_()
    (score,) = torch.autograd.grad(-model.couplings().free_energy(v).sum(), v, create_graph=True)
    second = [torch.autograd.grad(score[:, i].sum(), v, retain_graph=True)[0][:, i] for i in range(2)]
    return score.detach(), torch.stack(second, 1).sum(1)


def test_the_objective_is_the_trace_form() -> None:
    model = make()
    v = torch.randn(30, 2, generator=seeded(1), dtype=torch.float64)
    score, trace = by_autograd(model, v)
    wanted = (0.5 * score.square().sum(1) + trace).mean()
    assert objective(model, v).item() == pytest.approx(wanted.item(), rel=1e-10)
    loss, _ = model.loss("model", Batch(v), seeded())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert all(g.abs().max() > 1e-3 for g in gradients)


def test_it_differs_from_the_distance_of_the_scores_by_a_constant_only() -> None:
    """Equation 12 of the survey, 1/2 E |score of the model - score of the data|^2, by quadrature over N(0, S) data."""
    axis = torch.linspace(-7.0, 7.0, 141, dtype=torch.float64)
    v = torch.cartesian_prod(axis, axis)
    deviations = torch.tensor([1.0, 0.8], dtype=torch.float64)
    p = Normal(0.0, deviations).log_prob(v).sum(1).exp() * (axis[1] - axis[0]).square()
    assert p.sum().item() == pytest.approx(1, abs=1e-8)
    of_data, constants = -v / deviations.square(), []
    for seed in range(3):
        model = make(seed)
        score, trace = by_autograd(model, v)
        distance = 0.5 * (p[:, None] * (score - of_data).square()).sum()
        mine = (p * (0.5 * score.square().sum(1) + trace)).sum()
        constants.append((distance - mine).item())
        assert distance > 1e-2
    assert constants == pytest.approx([0.5 * (1 / deviations.square()).sum().item()] * 3, abs=1e-6)


def test_without_hidden_units_the_minimum_is_the_sample_variance() -> None:
    model = make()
    x = torch.randn(200, 2, generator=seeded(2), dtype=torch.float64) * torch.tensor([0.7, 1.4])
    x -= x.mean(0)
    with torch.no_grad():
        model.weight.zero_()
        model.visible_bias.zero_()
        model.log_sigma.copy_(x.square().mean(0).sqrt().log())
    (gradient,) = torch.autograd.grad(objective(model, x), model.log_sigma)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)
    least = objective(model, x).item()
    for change in (-0.05, 0.05):
        with torch.no_grad():
            model.log_sigma.add_(change)
        assert objective(model, x).item() > least
        with torch.no_grad():
            model.log_sigma.sub_(change)


def test_training_raises_the_likelihood() -> None:
    g = seeded(7)
    side = torch.randint(2, (400, 1), generator=g) * 2 - 1
    x = torch.cat([1.5 * side, side * 1.0], 1) + torch.randn(400, 2, generator=g)
    torch.manual_seed(0)
    model = GaussianRbm(PLANE, hidden=4, estimator=ScoreMatching(), weight_std=0.1)
    model.initialise(Batch(x), g)

    def log_likelihood() -> float:
        with torch.no_grad():
            return float(model.log_prob_unnormalised(x).mean() - model.annealing_path().exact_log_partition())

    before = log_likelihood()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        model.loss("model", Batch(x), g)[0].backward()
        optimiser.step()
    assert log_likelihood() > before + 0.1


def test_bits_are_refused_with_a_pointer() -> None:
    with pytest.raises(UserError, match="model/estimator=ratio_matching"):
        Rbm(DataSpec((6,), "binary"), estimator=ScoreMatching())
