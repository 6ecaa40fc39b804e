"""Supervised GSN: its loss by hand, its joint chain, what unknown labels do, and that it classifies."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from dgmbench.data import BatchStream, DataSet, Split
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gsn.gsn import Gsn
from dgmbench.models.gsn.supervised_gsn import SupervisedGsn

from .alphabet import generator

SPEC = DataSpec((6,), "binary", num_classes=3)


def small(**settings) -> SupervisedGsn:
    torch.manual_seed(0)
    model = SupervisedGsn(SPEC, **{"hidden_sizes": (5, 4), "walkback": 3, **settings})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def batch(n: int = 8, seed: int = 1) -> Batch:
    x = torch.randint(2, (n, 6), generator=generator(seed)).byte()
    return Batch(x, torch.randint(3, (n,), generator=generator(seed + 1)))


class Recorder(SupervisedGsn):
    """Keeps what each step started from, and its conditionals."""

    def joint_step(self, x, y, hidden, *, generator=None):
        log_x, log_y, states = super().joint_step(x, y, hidden, generator=generator)
        self.steps.append((x.clone(), y.clone(), log_x, log_y))
        return log_x, log_y, states


@pytest.mark.parametrize("generative", [0.0, 0.3, 1.0])
def test_the_loss_by_hand(generative):
    torch.manual_seed(0)
    model = Recorder(SPEC, hidden_sizes=(5, 4), walkback=3, generative=generative)
    model.steps = []
    data = batch()
    loss, logs = model.loss("model", data, generator())
    assert len(model.steps) == 3
    assert torch.equal(model.steps[0][0], data.x)
    image = label = 0.0
    for _, _, log_x, log_y in model.steps:
        image -= sum(log_x[b, d, int(data.x[b, d])].item() for b in range(8) for d in range(6)) / 8 / 3
        label -= sum(log_y[b, int(data.y[b])].item() for b in range(8)) / 8 / 3
    assert logs["image"].item() == pytest.approx(image, rel=1e-5)
    assert logs["label"].item() == pytest.approx(label, rel=1e-5)
    assert loss.item() == pytest.approx(generative * image + (1 - generative) * label, rel=1e-5)


@torch.no_grad()
def test_one_update_by_hand():
    model = small(hidden_noise=0.0)
    v, h1, h2 = torch.tensor([[1, 0, 1, 1, 0, 0]]).byte(), torch.randn(1, 5), torch.randn(1, 4)
    w, b, up = list(model.weights), list(model.biases), model.label_weight
    n1 = torch.tanh(v.float() @ w[0] + h2 @ w[1].T + b[1])
    n2 = torch.tanh(n1 @ w[1] + b[2] + up[2])
    above = model.from_label(torch.tensor([2]))
    _, states = model.denoise(v, [h1, h2], above=above)
    assert torch.allclose(states[1], n2, atol=1e-6)
    assert torch.allclose(model.label_log_prob(states).exp(), (n2 @ up.T + model.label_bias).softmax(1), atol=1e-6)
    assert not model.from_label(torch.tensor([-1])).any(), "an unknown label says nothing"
    mixed = model.from_label(torch.tensor([[0.2, 0.3, 0.5]]))
    assert torch.allclose(mixed, 0.2 * up[:1] + 0.3 * up[1:2] + 0.5 * up[2:])


def test_examples_without_a_label_have_no_label_term_and_their_image_counts():
    data = batch()
    partly = data._replace(y=torch.where(torch.arange(8) < 3, data.y, -1))
    model = small(generative=0.0)
    gradients = []
    for y in (partly.y, torch.where(partly.y < 0, -1, partly.y)):
        model.zero_grad()
        model.loss("model", partly._replace(y=y), generator())[0].backward()
        gradients.append(model.label_weight.grad.clone())
    assert torch.equal(*gradients)
    nobody, logs = model.loss("model", data._replace(y=torch.full((8,), -1)), generator())
    assert nobody.item() == logs["label"].item() == 0.0
    assert logs["image"] > 0
    torch.manual_seed(0)
    recorder = Recorder(SPEC, hidden_sizes=(5, 4), walkback=1, unknown=0.0)
    recorder.steps = []
    recorder.loss("model", partly, generator())
    assert torch.equal(recorder.steps[0][1], partly.y)
    recorder.unknown = 1.0
    recorder.loss("model", partly, generator())
    assert (recorder.steps[1][1] == -1).all(), "all walks start from an unknown label"


def test_half_of_every_batch_of_half_labelled_data_is_labelled():
    """What the class asks of its batches: without it, unlabelled images would never be seen."""
    y = np.where(np.arange(200) < 20, np.arange(200) % 3, -1)
    split = Split(np.zeros((200, 6), np.uint8), y)
    data = DataSet("toy", SPEC, dict.fromkeys(("train", "valid", "test"), split), "0" * 64)
    stream = BatchStream(data, batch_size=10, seed=0, policy=small().batch_policy())
    seen = torch.cat([stream.batch(b).index for b in range(40)])
    assert all((stream.batch(b).y >= 0).sum() == 5 for b in range(40))
    assert set(seen.tolist()) == set(range(200))


@torch.no_grad()
def test_labels_are_corrupted_at_the_stated_rate():
    model, n = small(corruption=0.3), 60_000
    found = torch.bincount(model.corrupt_label(torch.full((n,), 1), generator=generator()), minlength=3) / n
    expected = torch.tensor([0.1, 0.8, 0.1])
    assert ((found - expected).abs() < 4.5 * (expected * (1 - expected) / n).sqrt()).all()
    assert (model.corrupt_label(torch.full((100,), -1), generator=generator()) == -1).all()


@torch.no_grad()
def test_samples_hold_the_label_that_is_given():
    model = small(corruption=0.3, hidden_noise=0.0, sample_steps=5)
    model.label_weight.zero_()
    model.label_weight[0], model.label_weight[1] = -20.0, 20.0  # they saturate the top layer, which drives the rest
    model.weights[0].fill_(0.5)
    model.weights[1].fill_(1.0)
    for bias in model.biases:
        bias.zero_()
    ones = model.sample(300, torch.full((300,), 1), generator=generator()).double().mean()
    others = model.sample(300, torch.full((300,), 0), generator=generator()).double().mean()
    assert ones > 0.85
    assert others < 0.15
    assert model.sample(7, generator=generator()).shape == (7, 6)


def test_classifies_better_than_a_probe_of_the_unsupervised_chain():
    x, y = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(x))
    x, y = torch.from_numpy((x[order] > 7.5).astype(np.uint8)), torch.from_numpy(y[order]).long()
    train, test = slice(0, 1400), slice(1400, None)
    spec = DataSpec((64,), "binary", num_classes=10)

    def trained(model: Gsn) -> Gsn:
        noise = generator()
        model.initialise(Batch(x[train], y[train]), noise)
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(300):
            rows = torch.randint(1400, (100,), generator=noise)
            optimiser.zero_grad()
            model.loss("model", Batch(x[rows], y[rows]), noise)[0].backward()
            optimiser.step()
        return model

    settings = {"hidden_sizes": (200, 100), "walkback": 2, "corruption": 0.15}
    torch.manual_seed(0)
    plain = trained(Gsn(spec, **settings))
    with torch.no_grad():
        codes = plain.denoise(x, plain.rest(len(x)), noisy=False)[1][-1]
    probe = LogisticRegression(max_iter=2000).fit(codes[train], y[train])
    probe_error = 1 - probe.score(codes[test], y[test])
    torch.manual_seed(0)
    own = trained(SupervisedGsn(spec, **settings, generative=0.3, unknown=1.0))
    error = (own.classify(x[test]).argmax(1) != y[test]).double().mean().item()
    assert error < probe_error
    assert error < 0.1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"generative": 1.5}, "model.generative=1.5"), ({"unknown": -0.1}, "model.unknown=-0.1")],
)
def test_wrong_arguments_are_explained(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        SupervisedGsn(SPEC, **settings)


def test_data_without_labels_are_refused():
    with pytest.raises(UserError, match="labels"):
        SupervisedGsn(DataSpec((6,), "binary"))
