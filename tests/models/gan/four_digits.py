"""Digits of four classes, and an independent classifier that says how many samples are of the class asked for."""

import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor

from dgmbench.models.contract import CanSample, Model

from .alphabet import seeded


class FourDigits:
    """Images ``x`` (n, 1, 8, 8) and labels ``y`` (n,) of 0 to 3; chance is 1/4."""

    def __init__(self) -> None:
        digits = load_digits(n_class=4)
        self.x: Tensor = torch.tensor(digits.images, dtype=torch.uint8)[:, None]
        self.y: Tensor = torch.tensor(digits.target)
        half = (torch.randperm(len(self.x), generator=seeded()) < len(self.x) // 2).numpy()
        self.classifier = SVC(gamma=0.001).fit(digits.data[half], digits.target[half])
        assert self.classifier.score(digits.data[~half], digits.target[~half]) >= 0.95

    @property
    def shuffled(self) -> Tensor:
        """The labels in an order that has nothing to do with the images."""
        return self.y[torch.randperm(len(self.y), generator=seeded(1))]

    def accuracy(self, model: Model) -> float:
        """Of 500 samples under given labels; a standard error of 0.02."""
        assert isinstance(model, CanSample)
        labels = torch.arange(4).repeat(125)
        samples = model.eval().sample(500, labels, generator=seeded())
        return float(self.classifier.score(samples.flatten(1).numpy(), labels.numpy()))
