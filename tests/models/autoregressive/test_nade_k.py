"""NADE-k: its steps, its start, its pre-training; what all orderless models share is in test_orderless.py."""

import pytest
import torch

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.deep_nade import DeepNade
from dgmbench.models.autoregressive.nade_k import NadeK
from dgmbench.verify.support import all_states

SPEC = DataSpec((8,), "binary")


def nade_k(seed=0, **kwargs):
    torch.manual_seed(seed)
    model = NadeK(SPEC, **{"hidden_sizes": (10,), **kwargs}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
        if model.missing == "mean":
            model.mean.uniform_(0.1, 0.9)
    return model


def random_known(n, seed=0):
    return torch.rand(n, 8, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.mark.parametrize("hidden_sizes", [(10,), (10, 6)])
def test_one_step_from_zero_with_the_mask_as_input_is_deep_nade(hidden_sizes):
    model = nade_k(hidden_sizes=hidden_sizes, k=1, missing="zero", mask_input=True)
    other = DeepNade(SPEC, hidden_sizes=hidden_sizes, activation="tanh").double()
    with torch.no_grad():
        for mine, its in zip(model.hidden, other.hidden, strict=True):
            its.load_state_dict(mine.state_dict())
        other.out_weight.copy_(model.out_weight[:, None])
        other.out_bias.copy_(model.out_bias)
        other.sequences.copy_(model.sequences.expand(2, -1))
    x, known = all_states(8, 2, torch.uint8)[::3].double(), random_known(86).double()
    assert torch.allclose(
        model.parameters_given(x * known, known), other.parameters_given(x * known, known), rtol=1e-12
    )
    assert torch.allclose(model.log_prob(x.byte()), other.log_prob(x.byte()), rtol=1e-10)


@pytest.mark.parametrize(("hidden_sizes", "mask_input"), [((10,), False), ((10, 6), False), ((10,), True)])
def test_the_steps_written_out(hidden_sizes, mask_input):
    model = nade_k(hidden_sizes=hidden_sizes, k=4, mask_input=mask_input)
    x, m = all_states(8, 2, torch.uint8)[5::11].double(), random_known(23, 1).double()
    x = x[:23]
    v, found = m * x + (1 - m) * model.mean, []
    for _ in range(4):
        h = torch.cat((v, m), 1) if mask_input else v
        for linear in model.hidden:
            h = torch.tanh(h @ linear.weight.T + linear.bias)
        p = torch.sigmoid(h @ model.out_weight.T + model.out_bias[:, 0])
        v = m * x + (1 - m) * p
        found.append(p)
    steps = model.steps(x * m, m)
    assert torch.allclose(torch.stack(steps).sigmoid(), torch.stack(found), rtol=1e-10)
    assert torch.allclose(model.parameters_given(x * m, m)[..., 0], steps[-1], rtol=1e-12)


@pytest.mark.parametrize("hidden_sizes", [(10,), (10, 6)])
def test_sums_to_one_in_every_tested_order(hidden_sizes):
    model, x = nade_k(hidden_sizes=hidden_sizes, k=3, orders=2), all_states(8, 2, torch.uint8)
    torch.manual_seed(5)
    for sequence in (torch.arange(8), torch.arange(7, -1, -1), torch.randperm(8), *model.sequences):
        log_prob = model.log_prob_in_order(x, sequence)
        assert log_prob.logsumexp(0).item() == pytest.approx(0.0, abs=1e-10)
        assert log_prob.std() > 0.5
    assert model.log_prob(x).logsumexp(0).item() == pytest.approx(0.0, abs=1e-10)


def test_missing_values_start_at_the_data_s_mean():
    model = NadeK(SPEC, hidden_sizes=(4,), k=1)
    x = (torch.rand(300, 8, generator=torch.Generator().manual_seed(0)) < torch.linspace(0.1, 0.9, 8)).byte()
    model.initialise(Batch(x), torch.Generator())
    assert torch.allclose(model.mean, x.float().mean(0))
    known = torch.zeros(1, 8)
    h = torch.tanh(x.float().mean(0) @ model.hidden[0].weight.T + model.hidden[0].bias)
    expected = h @ model.out_weight.T + model.out_bias[:, 0]
    assert torch.allclose(model.parameters_given(torch.zeros(1, 8), known)[0, :, 0], expected, atol=1e-5)
    started_at_zero = NadeK(SPEC, missing="zero")
    started_at_zero.initialise(Batch(x), torch.Generator())
    assert not started_at_zero.mean.any()


def test_pre_training_averages_the_steps_and_training_takes_the_last():
    model, x, known = nade_k(k=3, pretrain=0.25), all_states(8, 2, torch.uint8)[:32], random_known(32)
    each = model.losses_of_steps(x, known)
    assert each.std(0).min() > 0, "the steps' losses differ"
    first, second = model.stages()
    assert (first.share, second.share) == (0.25, 0.75)
    model.enter_stage(first, torch.Generator())
    assert torch.allclose(model.loss_given(x, known), each.mean(0), rtol=1e-12)
    model.enter_stage(second, torch.Generator())
    assert torch.allclose(model.loss_given(x, known), each[-1], rtol=1e-12)
    assert [s.name for s in NadeK(SPEC, pretrain=1.0).stages()] == ["pretrain"]
    assert [s.name for s in NadeK(SPEC, pretrain=0.0).stages()] == ["train"]


def test_the_trained_number_of_steps_fills_in_better_than_one():
    """Held-out rows of a small image set: bars, whose missing pixels follow from a few known ones."""
    g = torch.Generator().manual_seed(0)
    grid = torch.rand(600, 4, 1, generator=g) < 0.5
    x = torch.where(torch.rand(600, 1, 1, generator=g) < 0.5, grid.expand(-1, 4, 4), grid.expand(-1, 4, 4).mT)
    noisy = x ^ (torch.rand(600, 4, 4, generator=g) < 0.02)
    train, test = noisy[:400].byte(), noisy[400:].byte()
    torch.manual_seed(0)
    model = NadeK(DataSpec((4, 4), "binary"), hidden_sizes=(48,), k=5)
    model.initialise(Batch(train), g)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for stage, updates in zip(model.stages(), (100, 300), strict=True):
        model.enter_stage(stage, g)
        for _ in range(updates):
            optimiser.zero_grad()
            model.loss("model", Batch(train[torch.randint(400, (100,), generator=g)]), g)[0].backward()
            optimiser.step()
    known = torch.cat([model.draw_known(200, g) for _ in range(10)])
    with torch.no_grad():
        losses = model.losses_of_steps(test.repeat(10, 1, 1), known)
    gain = losses[0] - losses[-1]
    assert gain.mean() > 5 * gain.std() / len(gain) ** 0.5


@pytest.mark.parametrize(
    ("kind", "kwargs", "sentence"),
    [
        ("real", {}, "not real"),
        ("binary", {"k": 0}, "k=0"),
        ("binary", {"pretrain": 1.5}, "at most 1"),
        ("binary", {"hidden_sizes": ()}, "at least one hidden layer"),
    ],
)
def test_wrong_arguments_are_explained(kind, kwargs, sentence):
    with pytest.raises(UserError, match=sentence):
        NadeK(DataSpec((4,), kind), **kwargs)
