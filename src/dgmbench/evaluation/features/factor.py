"""A classifier of one known factor of the data, trained as the one of labels is."""

from dataclasses import replace
from pathlib import Path

import torch

from dgmbench.data import DataSet, DataSpec
from dgmbench.data.dataset import Split
from dgmbench.errors import UserError, nearest
from dgmbench.evaluation.features.classifier import Classifier
from dgmbench.evaluation.features.net import Note
from dgmbench.nn.labels import factor_of


class FactorClassifier(Classifier):
    """As :class:`Classifier`, of the values of ``factor`` instead of the labels.

    Arguments:
        spec: the data, which must have factors.
        factor: the name of one.
        width: channels of the first convolution.
        images: examples seen in training.
        seed: of weights and order.
    """

    def __init__(self, spec: DataSpec, *, factor: str, width: int = 32, images: int = 200_000, seed: int = 0) -> None:
        sizes = dict(spec.factors or ())
        if factor not in sizes:
            raise UserError(nearest(factor, sizes, what="factor of these data, named"))
        super().__init__(
            replace(spec, num_classes=sizes[factor], class_names=None), width=width, images=images, seed=seed
        )
        self.factor = factor

    def prepare(self, data: DataSet, folder: Path | None, note: Note) -> None:
        """Train on the factor's values."""
        self.require(data, folder)

        def relabelled(split: Split) -> Split:
            if split.y is None:
                return split
            return replace(split, y=factor_of(torch.tensor(split.y), data.spec, self.factor).numpy())

        splits = {name: relabelled(split) for name, split in data.splits.items()}
        spec = replace(data.spec, num_classes=self.spec.num_classes, class_names=None)
        super().prepare(replace(data, spec=spec, splits=splits), folder, note)
