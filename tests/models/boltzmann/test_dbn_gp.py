"""Gaussian process on features: scikit-learn's with the features frozen; what features and their tuning are for."""

import copy
import math

import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from torch import Generator

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.dbn_gp import DbnGp
from dgmbench.nn.gaussian_process import gaussian_kernel, log_largest, log_marginal_likelihood, posterior

SPEC = DataSpec((6,), "discrete", levels=5, num_classes=3)


def seeded(seed=0):
    return Generator().manual_seed(seed)


def data(n=40):
    g = seeded(1)
    y = torch.randint(3, (n,), generator=g)
    y[::4] = -1
    return torch.randint(5, (n, 6), generator=g).to(torch.uint8), y


def make():
    """With random weights, as kernel and features are about to be tuned."""
    model = DbnGp(SPEC, hidden_sizes=(5, 4)).double()
    model.initialise(Batch(*data()), seeded())
    g = seeded()
    with torch.no_grad():
        for p in model.rbms.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    model.enter_stage(model.stages()[-2], seeded())
    with torch.no_grad():
        model.log_amplitude.fill_(0.4)
        model.log_noise.fill_(-1.3)
    return model


def peer(model):
    """Scikit-learn's process on the same features and targets."""
    x, y = data()
    features = model.encode(x[y >= 0]).detach().numpy()
    targets = 2.0 * torch.eye(3)[y[y >= 0]].double().numpy() - 1
    amplitude, width, noise = (p.exp().item() for p in (model.log_amplitude, model.log_width, model.log_noise))
    kernel = ConstantKernel(amplitude) * RBF(math.sqrt(width)) + WhiteKernel(noise)
    return GaussianProcessRegressor(kernel, alpha=0.0, optimizer=None).fit(features, targets)


def test_the_marginal_likelihood_and_its_gradient_are_scikit_learns():
    model = make()
    value = model.log_evidence()
    own = torch.autograd.grad(value, [model.log_amplitude, model.log_width, model.log_noise])
    gp = peer(model)
    expected, slopes = gp.log_marginal_likelihood(gp.kernel_.theta, eval_gradient=True)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    factors = (1.0, 0.5, 1.0)  # its length is the square root of the width
    for one, other, factor in zip(own, slopes, factors, strict=True):
        assert one.item() == pytest.approx(factor * other, rel=1e-6)


def test_predictions_are_scikit_learns():
    model = make()
    x = torch.randint(5, (9, 6), generator=seeded(5)).to(torch.uint8)
    with torch.no_grad():
        mean, variance = model.predictive(x)
    expected, std = peer(model).predict(model.encode(x).detach().numpy(), return_std=True)
    torch.testing.assert_close(mean, torch.as_tensor(expected))
    torch.testing.assert_close(variance, torch.as_tensor(std[:, 0]) ** 2)


def test_the_gradient_runs_into_every_layer():
    model = make()
    weights = [linear.weight for linear in model.features]
    slopes = torch.autograd.grad(model.log_evidence(), weights)
    for weight, slope in zip(weights, slopes, strict=True):
        values = []
        with torch.no_grad():
            for step in (1e-5, -1e-5):
                weight[1, 2] += step
                values.append(model.log_evidence().item())
                weight[1, 2] -= step
        assert slope[1, 2].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def test_a_labels_probability_is_that_of_its_process_being_the_largest():
    mean = torch.tensor([[0.3, -0.4], [2.0, -1.0]], dtype=torch.float64)
    variance = torch.tensor([0.5, 1.3], dtype=torch.float64)
    p = torch.special.ndtr((mean[:, 0] - mean[:, 1]) / (2 * variance).sqrt())
    torch.testing.assert_close(log_largest(mean, variance).exp()[:, 0], p, rtol=0, atol=1e-6)
    mean = torch.tensor([[0.3, -0.4, 1.0]], dtype=torch.float64)
    drawn = mean + 0.9 * torch.randn(200_000, 3, generator=seeded(), dtype=torch.float64)
    share = torch.bincount(drawn.argmax(1), minlength=3) / 200_000
    found = log_largest(mean, torch.tensor([0.81], dtype=torch.float64)).exp()[0]
    assert ((found - share).abs() < 4 * (found * (1 - found) / 200_000).sqrt()).all()


def noisy_causes(n, seed):
    """Six hidden causes, each shown by eight bits of which a fifth are wrong; the label is the first two causes."""
    g = seeded(seed)
    causes = torch.randint(2, (n, 6), generator=g)
    wrong = torch.rand(n, 48, generator=g) < 0.2
    return (causes.repeat_interleave(8, 1) ^ wrong).to(torch.uint8), 2 * causes[:, 0] + causes[:, 1]


def on_pixels(x, y, held_out):
    """Predictions of the same process, tuned as well, with the values themselves as features."""
    x, held_out, targets = x.double(), held_out.double(), 2 * torch.eye(4, dtype=torch.float64)[y] - 1
    start = [0.0, (2 * x.var(0).sum()).log().item(), -2.0]
    logs = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logs], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        amplitude, width, noise = logs.exp()
        loss = -log_marginal_likelihood(gaussian_kernel(x, x, amplitude, width), noise, targets) / len(x)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        amplitude, width, noise = logs.exp()
        kernel, cross = (gaussian_kernel(each, x, amplitude, width) for each in (x, held_out))
        return posterior(kernel, noise, targets, cross, amplitude.expand(len(held_out)))[0].argmax(1)


def tune(model, stage, updates):
    model.enter_stage(stage, seeded())
    rates = {"kernel": 0.02, "features": 0.003}
    own = [{"params": model.players()[player], "lr": rates[player]} for player in stage.players]
    optimizer = torch.optim.Adam(own)
    for _ in range(updates):
        optimizer.zero_grad()
        loss, _ = model.loss(stage.players[0], Batch(model.examples), seeded())
        loss.backward()
        optimizer.step()


def test_features_of_unlabelled_data_help_few_labels_and_tuning_them_helps_again():
    """The mean error over five draws of sixteen labels a class, of 1500 examples in all."""
    torch.manual_seed(0)
    x, y = noisy_causes(1500, seed=0)
    held_out, truth = noisy_causes(500, seed=1)
    spec, g = DataSpec((48,), "binary", num_classes=4), seeded()
    stack = DbnGp(spec, hidden_sizes=(24,), most=64)
    stack.initialise(Batch(x, y), g)
    optimizer = torch.optim.SGD(stack.players()["rbm_1"], lr=0.1, momentum=0.5)
    for _ in range(500):
        loss, _ = stack.loss("rbm_1", Batch(x[torch.randint(len(x), (50,), generator=g)]), g)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    errors = []
    for draw in range(5):
        few = torch.cat([(y == label).nonzero()[16 * draw : 16 * draw + 16, 0] for label in range(4)])
        model = copy.deepcopy(stack)
        model.labelled_x.copy_(x[few])
        model.labelled_y.copy_(y[few])
        row = [(on_pixels(x[few], y[few], held_out) != truth).double().mean()]
        for stage, updates in zip(model.stages()[-2:], (60, 40), strict=True):
            tune(model, stage, updates)
            with torch.no_grad():
                row.append((model.classify(held_out).argmax(1) != truth).double().mean())
        errors.append(torch.stack(row))
    pixels, frozen, tuned = torch.stack(errors).mean(0)
    assert frozen < pixels - 0.03
    assert tuned < frozen - 0.01


def test_labels_that_are_kept_are_those_that_are_known():
    model, (x, y) = make(), data()
    n = int(model.count)
    assert n == int((y >= 0).sum())
    assert torch.equal(model.labelled_y[:n], y[y >= 0])
    values = model.held_out(Batch(x, y))
    assert torch.equal(values["label_nll"].isnan(), y < 0)
    scores = model.classify(x[1:2])[0]
    torch.testing.assert_close(values["label_nll"][1], -scores[y[1]])
    wrong = (model.classify(x).argmax(1) != y).double()
    assert torch.equal(values["label_error"][y >= 0], wrong[y >= 0])
    assert 0 < wrong[y >= 0].mean() < 0.5


@pytest.mark.parametrize(
    ("spec", "args", "sentence"),
    [
        (DataSpec((4,), "real", num_classes=2), {}, "takes bits or grey levels"),
        (DataSpec((4,), "binary", num_classes=1), {}, "these data have 1 classes"),
        (SPEC, {"hidden_sizes": ()}, "needs a hidden layer"),
    ],
)
def test_what_it_cannot_be_made_of(spec, args, sentence):
    with pytest.raises(UserError, match=sentence):
        DbnGp(spec, **args)


def test_one_class_alone_is_refused():
    x, y = data()
    with pytest.raises(UserError, match="of two or more classes, but the training set has some of 1"):
        DbnGp(SPEC, hidden_sizes=(3,)).initialise(Batch(x, torch.where(y > 0, -1, y)), seeded())
