"""The factored conditional RBM against its three tensors written out in full, and its steps against mixtures."""

from itertools import product

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import Normal

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.likelihood.ais import grouped_brackets
from dgmbench.models.boltzmann.estimators import CD, PCD
from dgmbench.models.boltzmann.factored_crbm import FactoredCrbm
from dgmbench.models.boltzmann.row_weights import RowWeights
from dgmbench.models.contract import IsClassConditional

SPEC = DataSpec((4, 2), "real", num_classes=3)


def make(**settings: object) -> FactoredCrbm:
    torch.manual_seed(0)
    sizes = {"hidden": 3, "factors": 5, "features": 2, "order": 2}
    model = FactoredCrbm(SPEC, **sizes, **settings).double()  # type: ignore[arg-type]
    g = Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        model.mean.fill_(0.5)
        model.deviation.fill_(1.7)
    return model


def tensors(model: FactoredCrbm) -> tuple[Tensor, Tensor, Tensor]:
    """The three tensors in full: (visible, hidden, style), (past, visible, style), (past, hidden, style)."""
    weight, means, biases = (
        torch.einsum("if,jf,lf->ijl", one, other, torch.einsum("lk,kf->lf", model.features, gates))
        for one, other, gates in (
            (model.visible_factors, model.hidden_factors, model.weight_gates),
            (model.past_to_visible, model.visible_means.t(), model.visible_gates),
            (model.past_to_hidden, model.hidden_means.t(), model.hidden_gates),
        )
    )
    return weight, means, biases


def test_the_factored_energy_is_the_full_contraction() -> None:
    model, g = make(), Generator().manual_seed(1)
    weight, means, biases = tensors(model)
    past, v = torch.randn(6, 4, generator=g).double(), torch.randn(6, 2, generator=g).double()
    h, y = (torch.rand(6, 3, generator=g) < 0.5).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    style, sigma = torch.eye(3, dtype=torch.float64)[y], model.log_sigma.exp()
    a = model.visible_bias + torch.einsum("np,pil,nl->ni", past, means, style)
    b = model.hidden_bias + torch.einsum("np,pjl,nl->nj", past, biases, style)
    three_way = torch.einsum("ni,nj,nl,ijl->n", v / sigma, h, style, weight)
    full = ((v - a) / sigma).square().sum(1) / 2 - three_way - (h * b).sum(1)
    machine = model.machine(model.condition(past, y))
    constant = (a / sigma).square().sum(1) / 2  # of a_t alone, which log Z holds
    torch.testing.assert_close(machine.energy(v, h), full - constant)
    hs = torch.tensor(list(product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    summed = torch.stack([-machine.energy(v, one.expand(6, -1)) for one in hs]).logsumexp(0)
    torch.testing.assert_close(-machine.free_energy(v), summed)


def test_a_step_is_a_mixture_of_gaussians_given_the_past_and_the_style() -> None:
    model, x = make(), torch.randn(3, 4, 2, generator=Generator().manual_seed(1))
    weight, means, biases = tensors(model)
    y = torch.tensor([2, 0, 1])
    v = (x.double() - model.mean) / model.deviation
    padded = torch.cat([torch.zeros(3, 2, 2, dtype=torch.float64), v], 1)
    hs = torch.tensor(list(product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    sigma, wanted = model.log_sigma.exp(), []
    for one, label, frames in zip(padded, y.tolist(), v, strict=True):
        for t, frame in enumerate(frames):
            past = one[t : t + 2].flatten()
            a = model.visible_bias + past @ means[..., label]
            b = model.hidden_bias + past @ biases[..., label]
            inner = hs @ weight[..., label].t()
            weights = (hs @ b + inner @ (a / sigma) + 0.5 * inner.square().sum(1)).log_softmax(0)
            wanted.append((weights + Normal(a + sigma * inner, sigma).log_prob(frame).sum(1)).logsumexp(0))
    condition = model.step_conditions(x, y=y).detach()
    exact = model.annealing_path_given(condition).exact_log_partition()
    found = model.step_log_prob_unnormalised(x, y=y) - exact
    torch.testing.assert_close(found, torch.stack(wanted) - model.deviation.log().sum())


def test_annealing_brackets_every_steps_log_z() -> None:
    model, x = make(), torch.randn(2, 4, 2, generator=Generator().manual_seed(1))
    condition = model.step_conditions(x, y=torch.tensor([0, 2])).detach()[:4]
    exact = model.annealing_path_given(condition).exact_log_partition()
    path = model.annealing_path_given(condition.repeat_interleave(300, 0))
    found = grouped_brackets(
        path, [None] * 4, [None] * 4, chains=300, temperatures=100, spacing="even", burn_in=50, tolerance=1.0,
        generator=Generator().manual_seed(0),
    )  # fmt: skip
    for one, value in zip(found, exact.tolist(), strict=True):
        low, high = one.interval(4.0)
        assert low < value < high


def test_row_weights_are_a_matrix_for_every_row() -> None:
    g = Generator().manual_seed(0)
    left, gain, right, x = (torch.randn(*size, generator=g) for size in ((4, 6), (5, 6), (3, 6), (5, 4)))
    rows, full = RowWeights(left, gain, right), torch.einsum("if,nf,jf->nij", left, gain, right)
    assert rows.shape == (4, 3)
    torch.testing.assert_close(x @ rows, torch.einsum("ni,nij->nj", x, full))
    bias, h = torch.randn(5, 4, generator=g), torch.randn(5, 3, generator=g)
    torch.testing.assert_close(
        torch.addmm(bias, h, rows.t(), alpha=0.3), bias + 0.3 * torch.einsum("nj,nij->ni", h, full)
    )
    with pytest.raises(TypeError):
        torch.add(x, rows)


def test_training_reaches_the_gates_and_styles_are_asked_for() -> None:
    model = make(estimator=CD(k=1))
    assert isinstance(model, IsClassConditional)
    x, y = torch.randn(8, 4, 2, generator=Generator().manual_seed(1)), torch.arange(8) % 3
    model.loss("model", Batch(x, y), Generator().manual_seed(0))[0].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert float(p.grad.abs().max()) > 0, name
    with torch.no_grad():
        model.log_sigma.fill_(-3.0)
    drawn = [model.sample(200, torch.full((200,), label), generator=Generator().manual_seed(0)) for label in (0, 1)]
    assert float((drawn[0].mean(0) - drawn[1].mean(0)).abs().max()) > 0.1


def test_wrong_data_and_settings_end_in_a_sentence() -> None:
    for spec, settings, said in (
        (DataSpec((4, 2), "real"), {"order": 1}, "label|class"),
        (DataSpec((4, 2), "binary", num_classes=2), {}, "real sequences"),
        (SPEC, {"order": 4}, "frames of history"),
        (SPEC, {"order": 1, "factors": 0}, "factors"),
        (SPEC, {"order": 1, "estimator": PCD()}, "estimator=cd"),
    ):
        with pytest.raises(UserError, match=said):
            FactoredCrbm(spec, **settings)  # type: ignore[arg-type]
