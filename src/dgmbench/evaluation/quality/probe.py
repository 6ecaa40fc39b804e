"""What codes know about labels: a linear classifier and the nearest neighbour, trained on codes of training data."""

import warnings

import torch
from torch import Tensor

from dgmbench.errors import UserError
from dgmbench.evaluation.quality.feature_set import checked, nearest


def linear_probe_errors(train: Tensor, train_y: Tensor, test: Tensor, test_y: Tensor) -> Tensor:
    """1 for each test example (m,) that multinomial logistic regression on standardised codes gets wrong.

    The regression is scikit-learn's with its ridge of C = 1.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    _check(train, train_y, test)
    mean, scale = train.double().mean(0), train.double().std(0)
    scale = torch.where(scale > 0, scale, 1.0)
    probe = LogisticRegression(max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after so many steps its error does not move
        probe.fit(((train.double() - mean) / scale).cpu().numpy(), train_y.cpu().numpy())
    guess = torch.from_numpy(probe.predict(((test.double() - mean) / scale).cpu().numpy()))
    return (guess != test_y.cpu()).double()


def nearest_neighbour_errors(train: Tensor, train_y: Tensor, test: Tensor, test_y: Tensor) -> Tensor:
    """1 for each test example (m,) whose nearest training code has another label."""
    _check(train, train_y, test)
    _, which = nearest(test, train)
    return (train_y.cpu()[which.cpu()] != test_y.cpu()).double()


def _check(train: Tensor, train_y: Tensor, test: Tensor) -> None:
    checked(train, "training codes")
    checked(test, "test codes", least=1)
    if len(train_y.unique()) < 2:
        raise UserError("All training labels are equal, so there is nothing for a probe to tell apart.")
