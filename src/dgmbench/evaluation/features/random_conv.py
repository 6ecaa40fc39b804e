r"""A convolutional network with random weights: features that need no training, no labels and no download.

Random filters with a rectifier see edges, contrast and texture, at three scales for images; averages over the positions
make the features robust to small shifts (Saxe et al. 2011 on why random convolutions are good features). 128 features:
the positions' mean at the first two scales, a 2 x 2 grid at the third. Vectors go through one random layer instead.
Weights come from numpy's ``RandomState``, whose stream is frozen: the hash is the same on every machine.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dgmbench.data import DataSpec
from dgmbench.errors import require
from dgmbench.evaluation.features.net import Standardised

CHANNELS = (32, 32, 16)
WIDTH = 128


class RandomConv(Standardised):
    """128 random features. ``seed`` chooses the weights."""

    weight0: Tensor
    bias0: Tensor

    def __init__(self, spec: DataSpec, *, seed: int = 0) -> None:
        super().__init__(spec)
        require("features.random_conv", least=0, seed=seed)
        random = np.random.RandomState(seed)

        def uniform(*shape: int, bound: float) -> Tensor:
            return torch.from_numpy((random.random_sample(shape) * 2 - 1) * bound).float()

        if spec.is_image:
            inputs = spec.shape[0]
            for layer, channels in enumerate(CHANNELS):
                bound = math.sqrt(6 / (9 * inputs))  # keeps the scale through rectifiers (He et al. 2015)
                self.register_buffer(f"weight{layer}", uniform(channels, inputs, 3, 3, bound=bound))
                self.register_buffer(f"bias{layer}", uniform(channels, bound=0.5))
                inputs = channels
        else:
            self.register_buffer("weight0", uniform(WIDTH, spec.dim, bound=math.sqrt(6 / spec.dim)))
            self.register_buffer("bias0", uniform(WIDTH, bound=1.0))

    def features(self, x: Tensor) -> Tensor:
        """Averages of rectified random filters."""
        h = self.standardised(x)
        if not self.spec.is_image:
            return F.relu(F.linear(h.flatten(1), self.weight0, self.bias0))
        found = []
        for layer in range(len(CHANNELS)):
            if layer and min(h.shape[2:]) >= 4:
                h = F.avg_pool2d(h, 2)
            h = F.relu(F.conv2d(h, getattr(self, f"weight{layer}"), getattr(self, f"bias{layer}"), padding=1))
            found.append(F.adaptive_avg_pool2d(h, 1 if layer < len(CHANNELS) - 1 else 2).flatten(1))
        return torch.cat(found, 1)
