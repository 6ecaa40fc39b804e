"""Support vector machines on an RBM's features: few labels, and a fit that nothing but training data moves."""

import copy

import numpy as np
import pytest
import torch
from sklearn.svm import SVC
from torch import Generator, Tensor

from dgmbench.data.digits import Digits
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.rbm_svm import RbmSvm

SPEC = DataSpec((1, 8, 8), "binary", num_classes=10)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Batch]:
    parts = Digits(size=8).read(tmp_path_factory.mktemp("none")).parts
    found = {}
    for name, part in parts.items():
        assert isinstance(part.x, np.ndarray)
        assert part.y is not None
        found[name] = Batch(torch.from_numpy(part.x >= 8).to(torch.uint8), torch.from_numpy(part.y))
    return found


@pytest.fixture(scope="module")
def trained(digits: dict[str, Batch]) -> RbmSvm:
    """On all digits, without a label."""
    torch.manual_seed(0)
    g, model, x = seeded(), RbmSvm(SPEC, hidden=500), digits["train"].x
    model.initialise(Batch(x), g)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)
    for _ in range(60):
        order = torch.randperm(len(x), generator=g)
        for rows in order.split(50):
            optimiser.zero_grad()
            model.loss("model", Batch(x[rows]), g)[0].backward()
            optimiser.step()
    return model.eval()


def few(train: Batch, draw: int, per_class: int = 10) -> Batch:
    """The training set with ``per_class`` labels of each class kept."""
    assert train.y is not None
    y = torch.full_like(train.y, -1)
    rng = np.random.RandomState(draw)
    for label in range(10):
        kept = rng.permutation(np.flatnonzero(train.y.numpy() == label))[:per_class]
        y[torch.from_numpy(kept)] = label
    return Batch(train.x, y)


def error(scores: Tensor, y: Tensor) -> float:
    return float((scores.argmax(1) != y).double().mean())


def test_with_ten_labels_a_class_it_errs_less_than_the_same_machine_on_pixels(
    trained: RbmSvm, digits: dict[str, Batch]
) -> None:
    test, gains = digits["test"], []
    assert test.y is not None
    for draw in range(5):
        labelled = few(digits["train"], draw)
        assert labelled.y is not None
        trained.settle(iter([labelled]), seeded())
        known = labelled.y >= 0
        pixels = SVC(C=trained.cost).fit(labelled.x[known].flatten(1).numpy(), labelled.y[known].numpy())
        raw = 1 - pixels.score(test.x.flatten(1).numpy(), test.y.numpy())
        gains.append(raw - error(trained.classify(test.x), test.y))
    mean, se = float(np.mean(gains)), float(np.std(gains, ddof=1)) / 5**0.5
    assert mean > 2 * se
    assert mean > 0.01


def test_the_mean_ink_is_predicted_better_than_by_a_constant(trained: RbmSvm, digits: dict[str, Batch]) -> None:
    trained.settle(iter([few(digits["train"], 0)]), seeded())
    target = trained.target(digits["test"])
    torch.testing.assert_close(target, digits["test"].x.double().mean((1, 2, 3)))
    errors = (trained.predict(digits["test"]._replace(y=None)) - target).square()
    constant = (target - target.mean()).square()  # even the test set's own
    assert float(errors.mean()) < 0.5 * float(constant.mean())


def test_nothing_but_labelled_training_examples_and_weights_moves_the_fit(digits: dict[str, Batch]) -> None:
    torch.manual_seed(0)
    model, test = RbmSvm(SPEC, hidden=20, weight_std=0.5), digits["test"]
    labelled = few(digits["train"], 1)
    model.settle(iter([labelled]), seeded())
    scores = model.classify(test.x[:50])
    again = copy.deepcopy(model)
    again.classify(1 - digits["valid"].x)  # looking at other data
    torch.testing.assert_close(again.classify(test.x[:50]), scores)
    torch.testing.assert_close(torch.cat([model.classify(x[None]) for x in test.x[:5]]), scores[:5])
    assert labelled.y is not None
    known = labelled.y >= 0
    by_hand = SVC(C=3.0).fit(model.encode(labelled.x[known]).detach().double().numpy(), labelled.y[known].numpy())
    expected = by_hand.decision_function(model.encode(test.x[:50]).detach().double().numpy())
    torch.testing.assert_close(scores.double(), torch.from_numpy(expected), rtol=0, atol=1e-5)
    # in pieces, and with other unlabelled examples, it is the same fit
    pieces = [Batch(labelled.x[rows], labelled.y[rows]) for rows in torch.arange(len(labelled.x)).split(100)]
    again.settle(iter([*pieces, Batch(1 - labelled.x, torch.full_like(labelled.y, -1))]), seeded())
    torch.testing.assert_close(again.classify(test.x[:50]), scores)
    # a checkpoint holds it all, and other weights make another fit
    other = RbmSvm(SPEC, hidden=20)
    assert error(other.classify(test.x), torch.zeros(len(test.x))) == 0.0, "no label yet: no class is preferred"
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.classify(test.x[:50]), scores)
    with torch.no_grad():
        other.weight.neg_()
    assert not torch.allclose(other.classify(test.x[:50]), scores)


def test_the_first_labelled_examples_are_kept_and_labels_that_are_unknown_have_no_error() -> None:
    model = RbmSvm(DataSpec((3,), "binary", num_classes=4), hidden=4, most=3)
    x = torch.tensor([[0, 0, 1], [1, 1, 1], [1, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=torch.uint8)
    y = torch.tensor([2, -1, 0, 2, 1])
    model.settle(iter([Batch(x[:2], y[:2]), Batch(x[2:], y[2:])]), seeded())
    assert model.labels.tolist() == [2, 0, 2]
    assert model.examples.tolist() == x[[0, 2, 3]].tolist()
    scores = model.classify(x)
    assert scores.shape == (5, 4)
    assert float(scores[:, [1, 3]].max()) < float(scores[:, [0, 2]].min()), "classes that were never seen are below"
    errors = model.held_out(Batch(x, y))["svm_error"]
    assert torch.equal(errors.isnan(), y < 0)
    assert float(errors[4]) == 1.0
    model.settle(iter([Batch(x[:1], y[:1])]), seeded())
    assert model.classify(x).argmax(1).tolist() == [2] * 5


def test_bad_values_are_refused() -> None:
    with pytest.raises(UserError, match=r"rbm_svm classifies, but these data .* have no classes"):
        RbmSvm(DataSpec((3,), "binary"))
    with pytest.raises(UserError, match="cost"):
        RbmSvm(SPEC, cost=0.0)
