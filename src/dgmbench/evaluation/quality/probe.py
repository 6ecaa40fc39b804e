"""What codes know about labels: a linear classifier, of all labels or of few, and the nearest neighbour.

All are trained on codes of training data.
"""

import warnings

import torch
from torch import Generator, Tensor

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


def few_label_errors(
    train: Tensor, train_y: Tensor, test: Tensor, test_y: Tensor, *, labels: int, draws: int, generator: Generator
) -> Tensor:
    """Errors (draws, m) of linear probes that see ``labels`` labelled examples only, drawn anew for each probe.

    Every class has as many of them, give or take one. That is the semi-supervised M1 of Kingma et al. (2014): a model
    of all data without labels, then a classifier of its codes (theirs a support vector machine).
    """
    classes = train_y.unique()
    least, most = labels // len(classes), -(-labels // len(classes))
    if least < 1:
        raise UserError(f"{labels} labels are too few for {len(classes)} classes; one a class is the least.")
    rarest = int(torch.bincount(train_y).index_select(0, classes).min())
    if rarest < most:
        raise UserError(f"{labels} labels take {most} examples of each class, and one of them has only {rarest}.")
    errors = []
    for _ in range(draws):
        extra = torch.randperm(len(classes), generator=generator, device=generator.device)[: labels % len(classes)]
        chosen = []
        for number, label in enumerate(classes):
            of_class = (train_y == label).nonzero()[:, 0]
            take = least + int((extra == number).any())
            order = torch.randperm(len(of_class), generator=generator, device=generator.device)
            chosen.append(of_class[order[:take].to(of_class.device)])
        few = torch.cat(chosen)
        errors.append(linear_probe_errors(train[few], train_y[few], test, test_y))
    return torch.stack(errors)


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
