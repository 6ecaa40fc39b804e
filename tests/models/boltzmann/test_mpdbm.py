"""Multi-prediction: the unrolled mean field by hand, the machine with labels by enumeration, and what it is good at."""

from pathlib import Path

import pytest
import torch
from torch import Generator

from dgmbench.data.digits import Digits
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.dbm import Dbm
from dgmbench.models.boltzmann.estimators import PCD
from dgmbench.models.boltzmann.mpdbm import MpDbm, filled_in

SPEC = DataSpec((6,), "binary", num_classes=3)
EYE = torch.eye(3, dtype=torch.float64)


def seeded(seed=0):
    return Generator().manual_seed(seed)


def make(scale=0.7, spec=SPEC, hidden_sizes=(4, 3), **args):
    model = MpDbm(spec, hidden_sizes=hidden_sizes, tolerance=1e-12, mean_field_steps=500, **args).double()
    g = seeded()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return model


def minus_energy(model, v, h1, h2, y):
    """-E of states, from the definition."""
    (w1, w2, u), (a, b1, b2, c) = model.weights, model.biases
    value = v @ a + h1 @ b1 + h2 @ b2 + y @ c
    return value + ((v @ w1) * h1).sum(-1) + ((h1 @ w2) * h2).sum(-1) + ((h2 @ u) * y).sum(-1)


def everything(states):
    """All states of (v, h1, h2, y)."""
    parts = (states(6), states(4), states(3), EYE)
    rows = torch.cartesian_prod(*(torch.arange(len(part)) for part in parts)).T
    return [part[row] for part, row in zip(parts, rows, strict=True)]


def data(n=30):
    g = seeded(1)
    return torch.randint(2, (n, 6), generator=g).to(torch.uint8), torch.randint(3, (n,), generator=g)


def test_labels_are_one_softmax_of_the_machine(states):
    model = make()
    layers = everything(states)
    with torch.no_grad():
        joint = minus_energy(model, *layers)
        path = model.annealing_path()
        torch.testing.assert_close(path.exact_log_partition(), joint.logsumexp(0))
        log_p = joint.view(64, -1).logsumexp(1) - joint.logsumexp(0)
        bound = model.elbo_unnormalised(states(6)) - joint.logsumexp(0)
        # states of the path are v and h2: h1 and y are summed out
        even = torch.cat([layers[0], layers[2]], 1).view(64, 16, 8, 3, 9)[:, 0, :, 0].flatten(0, 1)
        by_hand = joint.view(64, 16, 8, 3).logsumexp((1, 3)).flatten()
        torch.testing.assert_close(path.log_unnormalised(even, 1.0), by_hand)
    assert (bound <= log_p + 1e-9).all()
    assert (log_p - bound).max() > 1e-3


def test_the_objective_is_the_unrolled_mean_fields(states):
    model = make(updates=3, missing=0.4)
    x, y = data()
    y[::4] = -1
    known, known_label = model.draw_known(len(x), seeded(3))
    assert abs(known.double().mean() - 0.6) < 4 * (0.24 / known.numel()) ** 0.5
    (w1, w2, u), (a, b1, b2, c) = model.weights, model.biases
    v, shown = x.double(), (known_label & (y >= 0))[:, None]
    v_now, y_now = torch.where(known, v, a.sigmoid()), torch.where(shown, EYE[y.clamp_min(0)], c.softmax(0))
    h2 = b2.sigmoid()
    for _ in range(3):
        h1 = (v_now @ w1 + h2 @ w2.T + b1).sigmoid()
        h2 = (h1 @ w2 + y_now @ u.T + b2).sigmoid()
        of_y = (h2 @ u + c).softmax(1)
        y_now = torch.where(shown, y_now, of_y)
        of_v = (h1 @ w1.T + a).sigmoid()
        v_now = torch.where(known, v, of_v)
    inputs = -(torch.where(x > 0, of_v, 1 - of_v).log() * ~known).sum(1)
    labels = -of_y.gather(1, y.clamp_min(0)[:, None])[:, 0].log() * (~known_label & (y >= 0))
    found = model.nll(Batch(x, y), known, known_label)
    torch.testing.assert_close(found[0], inputs)
    torch.testing.assert_close(found[1], labels)
    assert labels[::4].abs().max() == 0
    expected = torch.autograd.grad((inputs + labels).mean(), list(model.parameters()))
    loss, _ = model.loss("model", Batch(x, y), seeded(3))
    for p, gradient in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(p, gradient)


def test_with_small_weights_predictions_are_the_exact_conditionals(states):
    """Mean field errs by the square of the weights."""
    model = make(scale=0.05)
    with torch.no_grad():
        model.biases[0].copy_(torch.tensor([1.0, -1.0, 0.5, 0.0, -2.0, 2.0]))
    layers = everything(states)
    p = minus_energy(model, *layers).detach().softmax(0)
    x, known = torch.tensor([[1.0, 0, 1, 0, 1, 1]], dtype=torch.float64), torch.tensor([[True, True, False] * 2])
    fits = (layers[0] == x)[:, known[0]].all(1).double() * p
    with torch.no_grad():
        means, _ = filled_in(model.machine(), {0: (x, known)}, 1, 50)
    for layer, mean in zip(layers, means, strict=True):
        exact = (fits @ layer) / fits.sum()
        torch.testing.assert_close(mean[0], exact, rtol=0, atol=2e-4)


def log_q_of_missing(machine, x, known):
    with torch.no_grad():
        _, eta = filled_in(machine, {0: (x, known)}, len(x), 30)
    right = torch.where(x > 0, eta[0], -eta[0])
    return (torch.nn.functional.logsigmoid(right) * ~known).sum(1)


def test_it_fills_in_missing_inputs_better_than_a_machine_trained_for_likelihood():
    """At equal updates and layers, with the same mean field, on halves of held-out digits; and it knows the labels."""
    parts = Digits().read(Path()).parts
    (x, y), (held_out, truth) = (
        ((torch.as_tensor(parts[name].x) >= 8).to(torch.uint8), torch.as_tensor(parts[name].y).long())
        for name in ("train", "test")
    )
    torch.manual_seed(0)
    spec = DataSpec((1, 8, 8), "binary", num_classes=10)
    plain = Dbm(spec, hidden_sizes=(60, 60), pretraining=0.0, centring="average", estimator=PCD(k=2), tolerance=1e-2)
    ours = MpDbm(spec, hidden_sizes=(60, 60), updates=5)
    makers = ((plain, lambda own: torch.optim.SGD(own, lr=0.05, momentum=0.5)),
              (ours, lambda own: torch.optim.Adam(own, lr=6e-3)))  # fmt: skip
    for model, make_optimizer in makers:
        g = seeded()
        model.initialise(Batch(x, y), g)
        optimizer = make_optimizer(model.players()["model"])
        for _ in range(300):
            rows = torch.randint(len(x), (50,), generator=g)
            loss, _ = model.loss("model", Batch(x[rows], y[rows]), g)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.after_step("model", Batch(x[rows], y[rows]), g)
    known = torch.rand(held_out.flatten(1).shape, generator=seeded(4)) < 0.5
    v = held_out.flatten(1).float()
    a, b = (log_q_of_missing(model.machine(), v, known) for model in (ours, plain))
    assert (a - b).mean() > 4 * (a - b).std() / len(a) ** 0.5
    assert (ours.classify(held_out).argmax(1) == truth).double().mean() > 0.5


def test_without_labels_there_is_no_label_layer():
    model = make(spec=DataSpec((6,), "binary"))
    assert len(model.weights) == 2
    x, _ = data()
    assert model.encode(x).shape == (30, 3)
    with pytest.raises(UserError, match="have no labels"):
        model.classify(x)


@pytest.mark.parametrize(
    ("spec", "args", "sentence"),
    [
        (DataSpec((4,), "real"), {}, "models binary data"),
        (SPEC, {"hidden_sizes": (4,)}, "needs two or more hidden layers"),
        (SPEC, {"missing": 1.5}, "model.missing=1.5 must be at least 0 and at most 1"),
    ],
)
def test_what_it_cannot_be_made_of(spec, args, sentence):
    with pytest.raises(UserError, match=sentence):
        MpDbm(spec, **args)
