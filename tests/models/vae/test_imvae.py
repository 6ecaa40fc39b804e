"""The infinite mixture of VAEs: components grow and vanish with the data, the mixture's likelihood, and labels."""

import math

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Facts
from dgmbench.models.vae.imvae import Component, Imvae

SPEC = DataSpec((1, 2, 2), "binary", num_classes=3)
N, DIM = 60, 16
TRUTH = torch.arange(N) % 3
CLUSTERS = DataSpec((DIM,), "binary", num_classes=3)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def clusters(n: int, seed: int) -> Tensor:
    """n examples of three patterns in turn, each bit of which is wrong with probability 0.05."""
    pattern = (torch.arange(DIM) * 3 // DIM)[None] == (torch.arange(n) % 3)[:, None]
    return (pattern ^ (torch.rand(n, DIM, generator=seeded(seed)) < 0.05)).byte()


def small(counts: list[int], **settings: object) -> Imvae:
    torch.manual_seed(0)
    model = Imvae(SPEC, **{"components": len(counts), "hidden_sizes": (4,), "latent": 1, **settings}).double()  # type: ignore[arg-type]
    model.prepare(Facts(sum(counts), {}))
    model.slots.copy_(torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))
    model.counts.copy_(torch.tensor(counts))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    return model


@pytest.fixture(scope="module")
def fitted() -> dict[int, Imvae]:
    found = {}
    for start in (1, 10):
        torch.manual_seed(0)
        model = Imvae(
            CLUSTERS, start=start, concentration=0.1, components=12, hidden_sizes=(8,), latent=1, certainty=0.9
        )
        model.prepare(Facts(N, {}))
        y = torch.where(torch.arange(N) < 30, TRUTH, -1)
        batch, g = Batch(clusters(N, 0), y, torch.arange(N)), seeded(1)
        model.initialise(batch, g)
        assert int((model.counts > 0).sum()) == start
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
        for _ in range(40):
            optimiser.zero_grad()
            model.loss("model", batch, g)[0].backward()
            optimiser.step()
            model.after_step("model", batch, g)
        assert torch.equal(model.counts, torch.bincount(model.slots, minlength=12))
        found[start] = model.eval()
    return found


@pytest.mark.parametrize("start", [1, 10])
def test_three_clusters_are_found_from_one_component_and_from_ten(fitted: dict[int, Imvae], start: int) -> None:
    model = fitted[start]
    large = (model.counts >= N / 20).nonzero()[:, 0].tolist()
    assert len(large) == 3
    for k in large:
        assert (TRUTH[model.slots == k].bincount(minlength=3) > 0).sum() == 1  # each is of one cluster
    assert sum(int(model.counts[k]) for k in large) >= 0.9 * N
    x = clusters(90, 5)
    named = model.code_maps(x)["component"][:, 0]
    assert len({int(named[k::3].mode().values) for k in range(3)}) == 3
    assert (model.classify(x).argmax(1) == torch.arange(90) % 3).double().mean() > 0.9
    mean = model.reconstruct(x, generator=seeded())
    assert ((mean > 0.5) == x).double().mean() > 0.9


def test_samples_are_of_the_clusters(fitted: dict[int, Imvae]) -> None:
    drawn, patterns = fitted[1].sample(300, generator=seeded(2)), clusters(3, 0)
    pattern = ((torch.arange(DIM) * 3 // DIM)[None] == torch.arange(3)[:, None]).byte()
    assert patterns.shape == pattern.shape
    wrong = (drawn[:, None] != pattern).sum(2)
    assert wrong.min(1).values.double().mean() < 2.0  # of 16; another cluster's pattern is 10 away
    share = wrong.argmin(1).bincount(minlength=3) / 300
    assert (share > 0.2).all()


def test_the_likelihood_is_that_of_the_mixture_by_quadrature() -> None:
    model, alpha = small([5, 0, 2, 0], concentration=0.8), 0.8
    pi = torch.tensor([5, alpha / 2, 2, alpha / 2]).double() / (7 + alpha)
    torch.testing.assert_close(model.log_mixture.exp(), pi)
    every = torch.cartesian_prod(*[torch.arange(2)] * 4).view(16, 1, 2, 2).byte()
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    with torch.no_grad():
        each = []
        for node, weight in zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True):
            z = torch.full((16, 1), node, dtype=torch.float64)
            each_p = torch.stack([component.vae.log_prob_given(every, z).exp() for component in model.components], 1)
            p = each_p @ pi
            torch.testing.assert_close(model.log_prob_given(every, z), p.log())
            each.append(weight * p)
        exact = torch.stack(each).sum(0)
        w = model.log_weights(every, 4000, generator=seeded()).exp() / exact
    assert exact.sum().item() == pytest.approx(1.0)
    assert ((w.mean(0) - 1).abs() < 4.5 * w.std(0) / 4000**0.5).all()
    # a full store has nothing to give to new components
    torch.testing.assert_close(small([5, 2]).log_mixture.exp(), torch.tensor([5, 2]).double() / 7)


def test_each_example_teaches_its_own_component() -> None:
    model = small([3, 2, 0], label_weight=2.0)
    x = torch.randint(2, (5, 1, 2, 2), generator=seeded(1)).byte()
    batch = Batch(x[[0, 3]], torch.tensor([1, -1]), torch.tensor([0, 3]))  # of components 0 and 1
    loss, _ = model.loss("model", batch, seeded(2))
    g = seeded(2)
    first, second = model.components[0], model.components[1]
    bounds = first.vae.elbo(x[:1], generator=g) + second.vae.elbo(x[3:4], generator=g)
    labels = -first.label_log_prob(x[:1])[0, 1]
    assert loss.item() == pytest.approx((2 * labels - bounds / 2).item())
    loss.backward()
    assert all(p.grad is None for p in model.components[2].parameters())
    assert all(p.grad is not None for k in (0, 1) for p in model.components[k].vae.parameters())


def test_a_known_label_counts_in_the_assignment() -> None:
    """Two equal components whose classifiers differ: where the label is known, p(c) q_c(y | x) decides."""
    model, n = small([1000, 1000]), 2000
    model.components[1].load_state_dict(model.components[0].state_dict())
    with torch.no_grad():
        for k, bias in enumerate(([2.0, 0.0, 0.0], [0.0, 2.0, 0.0])):
            model.components[k].classifier.weight.zero_()
            model.components[k].classifier.bias.copy_(torch.tensor(bias))
    x = torch.ones(n, 1, 2, 2).byte()
    y = torch.where(torch.arange(n) % 2 == 0, 0, -1)
    # the noise of the bound is another for each component, so compare with its own expectation by a large sample
    batch = Batch(x, y, torch.arange(n))
    model.after_step("model", batch, seeded(3))
    known, unknown = ((model.slots[y == label] == 0).double().mean().item() for label in (0, -1))
    assert unknown == pytest.approx(0.5, abs=0.2)
    assert known > unknown + 0.2  # odds e^2 to 1 in its favour


def test_new_components_are_sure_of_an_example() -> None:
    """The base measure: a decoder whose last bias is a random example, so sure of each pixel."""
    torch.manual_seed(0)
    component = Component(SPEC, hidden_sizes=(4,), latent=1, classes=3)
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    component.draw(x, 0.9, seeded())
    with torch.no_grad():  # what the decoder says where its last hidden layer is silent
        silent = dict(component.vae.decoder.named_parameters())
        (bias,) = (p for name, p in silent.items() if name.endswith("bias") and p.numel() == 4 and p.abs().amin() > 2)
    torch.testing.assert_close(bias.sigmoid(), torch.tensor([0.9, 0.1, 0.1, 0.9]))
    before = [p.clone() for p in component.parameters()]
    component.draw(x, 0.9, seeded())
    assert all(torch.equal(a, b) for a, b in zip(before, component.parameters(), strict=True))
    component.draw(x, 0.9, seeded(1))
    assert not torch.equal(before[0], next(component.parameters()))


def test_assignments_of_any_number_of_examples_are_loaded() -> None:
    model, other = small([3, 2, 1]), Imvae(SPEC, components=3, hidden_sizes=(4,), latent=1).double()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.slots, model.slots)
    x = torch.ones(2, 1, 2, 2).byte()
    assert torch.equal(other.elbo(x, generator=seeded()), model.elbo(x, generator=seeded()))


@pytest.mark.parametrize(
    ("spec", "arguments", "said"),
    [
        (DataSpec((4,), "real", num_classes=2), {}, "takes binary data"),
        (DataSpec((4,), "binary"), {}, "data with labels"),
        (SPEC, {"concentration": 0.0}, "model.concentration=0.0"),
        (SPEC, {"start": 5, "components": 4}, "model.start=5 is more than model.components=4"),
        (SPEC, {"certainty": 1.0}, "model.certainty=1.0"),
    ],
)
def test_what_it_does_not_take(spec: DataSpec, arguments: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Imvae(spec, **arguments)


def test_examples_need_their_positions() -> None:
    with pytest.raises(UserError, match="by its position"):
        Imvae(SPEC, components=2).loss("model", Batch(torch.ones(1, 1, 2, 2).byte(), torch.zeros(1).long()), seeded())
    assert math.isfinite(Imvae(SPEC, components=2).elbo(torch.ones(1, 1, 2, 2).byte()).item())
