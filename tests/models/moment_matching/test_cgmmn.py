"""CGMMN: the conditional discrepancy against direct formulas and its limits; samples belong to their class."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.moment_matching.cgmmn import Cgmmn
from dgmbench.nn.conditional_mmd import conditional_mmd_squared
from dgmbench.nn.mmd import mmd_squared, rbf_mixture

DIGITS = DataSpec((1, 8, 8), "discrete", levels=17, num_classes=10)
KERNEL = rbf_mixture(torch.tensor([0.5, 2.0], dtype=torch.float64))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def discrepancy(x, c, s, e, ridge: float = 0.3) -> torch.Tensor:
    return conditional_mmd_squared(x, c, s, e, kernel=KERNEL, condition_kernel=KERNEL, ridge=ridge)


def test_zero_for_identical_pairs_and_equal_to_a_direct_computation():
    x, c, s, e = points(15, 3, 0), points(15, 2, 1), points(11, 3, 2), points(11, 2, 3)
    assert abs(discrepancy(x, c, x, c).item()) < 1e-8

    def gram(a, b):
        return KERNEL((a[:, None] - b).square().sum(-1)).numpy()

    k_x, k_s = (np.linalg.inv(gram(a, a) + 0.3 * np.eye(len(a))) for a in (c, e))
    direct = (
        np.trace(gram(c, c) @ k_x @ gram(x, x) @ k_x)
        + np.trace(gram(e, e) @ k_s @ gram(s, s) @ k_s)
        - 2 * np.trace(gram(e, c) @ k_x @ gram(x, s) @ k_s)
    )
    assert discrepancy(x, c, s, e).item() == pytest.approx(direct, rel=1e-10)
    assert direct > 0


@pytest.mark.parametrize("ridge", [0.1, 1.0, 10.0])
def test_with_one_constant_condition_it_is_the_shrunken_mmd(ridge):
    n, one = 12, torch.ones(12, 2, dtype=torch.float64)
    x, s = points(n, 3, 0), points(n, 3, 1) + 0.5
    plain = mmd_squared(x, s, KERNEL).v_statistic
    expected = n**2 / (n + ridge) ** 2 * plain
    assert discrepancy(x, one, s, one, ridge).item() == pytest.approx(expected.item(), rel=1e-10)


def test_falls_with_n_for_one_conditional_and_not_for_a_shifted_one():
    def mean(n: int, shift: float) -> float:
        values = []
        for seed in range(8):
            c, e = points(n, 1, 4 * seed), points(n, 1, 4 * seed + 1)
            x = c.sin() + 0.3 * points(n, 1, 4 * seed + 2)
            s = e.sin() + 0.3 * points(n, 1, 4 * seed + 3) + shift
            values.append(
                discrepancy(x, c, s, e, ridge=0.1 * n).item()
            )  # the shrinkage of the paper: N times a constant
        return float(np.mean(values))

    same, shifted = [mean(n, 0.0) for n in (20, 60, 180)], [mean(n, 1.0) for n in (20, 60, 180)]
    assert same[0] > 2 * same[1] > 4 * same[2]
    assert shifted[2] > 0.8 * shifted[0]
    assert shifted[2] > 5 * same[2]


def test_gradients_against_finite_differences():
    x, c, s, e = points(5, 2, 0), points(5, 1, 1), points(4, 2, 2), points(4, 1, 3)
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: discrepancy(x, c, a, e), (s,))


def test_the_loss_leaves_unlabelled_examples_out():
    torch.manual_seed(0)
    model = Cgmmn(DIGITS, hidden_sizes=(8,), latent=2, square_root=False)
    x = torch.randint(17, (12, 1, 8, 8), generator=generator()).byte()
    y = torch.tensor([0, 1, -1, 2, 3, -1, 4, 5, 6, 7, 8, 9])
    model.initialise(Batch(x, y), generator())
    assert model.class_log_prior.exp().sum().item() == pytest.approx(1.0)
    partly = model.loss("model", Batch(x, y), generator(1))[0]
    without = model.loss("model", Batch(x[y >= 0], y[y >= 0]), generator(1))[0]
    assert partly.item() == without.item() > 0


def test_samples_belong_to_their_class_and_shuffled_labels_take_that_away():
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x.astype(np.uint8)).view(-1, 1, 8, 8), torch.from_numpy(y).long()
    judge = LogisticRegression(max_iter=300).fit(x[::2].flatten(1).numpy(), y[::2].numpy())
    assert judge.score(x[1::2].flatten(1).numpy(), y[1::2].numpy()) > 0.93
    accuracy = {}
    for shuffled in (False, True):
        torch.manual_seed(0)
        noise = generator()
        labels = y[torch.randperm(len(y), generator=noise)] if shuffled else y
        model = Cgmmn(DIGITS, hidden_sizes=(64, 128))
        model.initialise(Batch(x[:1000], labels[:1000]), noise)
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(100 if shuffled else 300):
            rows = torch.randint(len(x), (100,), generator=noise)
            optimiser.zero_grad()
            model.loss("model", Batch(x[rows], labels[rows]), noise)[0].backward()
            optimiser.step()
        wanted = torch.arange(10).repeat(50)
        samples = model.sample(500, wanted, generator=generator(7)).flatten(1).numpy()
        accuracy[shuffled] = judge.score(samples, wanted.numpy())
    assert accuracy[False] > 0.8
    assert accuracy[True] < 0.1 + 4 * (0.1 * 0.9 / 500) ** 0.5 + 0.05


@torch.no_grad()
def test_generate_is_sample_as_a_function_of_the_noise():
    """The first columns' quantiles are the latents, uniform on [-1, 1]; that of the last column decides the label."""
    torch.manual_seed(0)
    model = Cgmmn(DIGITS, hidden_sizes=(8,), latent=2)
    model.class_log_prior.copy_(torch.tensor([0.5, 0.2, *[0.0375] * 8]).log())
    noise = torch.randn(400, 3, generator=generator())
    share = torch.special.ndtr(noise[:, 2])
    y = (share >= 0.5).long() + (share >= 0.7) + ((share - 0.7).clamp_min(0) / 0.0375).long()
    z = 2 * torch.special.ndtr(noise[:, :2]) - 1
    expected = model.scaling.unrounded(model.generator(z, torch.eye(10)[y.clamp(max=9)]))
    assert torch.allclose(model.generate(noise), expected, atol=1e-4)
    samples = model.sample(4, torch.tensor([1, 1, 2, 3]), generator=generator(1))
    direct = model.generator(model.noise(4, generator(1)), torch.eye(10)[[1, 1, 2, 3]])
    assert torch.equal(samples, model.scaling.inverse(direct))


@pytest.mark.parametrize(
    ("settings", "sentence"), [({"ridge": 0.0}, "ridge=0.0"), ({"condition_bandwidth": -1.0}, "condition_bandwidth")]
)
def test_wrong_arguments_are_explained(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Cgmmn(DIGITS, **settings)


def test_data_without_labels_are_refused():
    with pytest.raises(UserError, match="labels"):
        Cgmmn(DataSpec((2,), "real"))
