"""The values themselves as features: no network, no weights."""

from torch import Tensor
from torch.nn import functional as F

from dgmbench.data import DataSpec
from dgmbench.errors import require
from dgmbench.evaluation.features.net import FeatureNet


class Pixel(FeatureNet):
    """Scaled values in one row. Images with a side of more than ``size`` pixels are averaged down to it first."""

    def __init__(self, spec: DataSpec, *, size: int = 32) -> None:
        super().__init__(spec)
        require("features.pixel", least=1, size=size)
        self.size = size

    def features(self, x: Tensor) -> Tensor:
        """All values of an example."""
        if x.ndim == 4 and max(x.shape[2:]) > self.size:
            x = F.adaptive_avg_pool2d(x, (min(x.shape[2], self.size), min(x.shape[3], self.size)))
        return x.flatten(1)
