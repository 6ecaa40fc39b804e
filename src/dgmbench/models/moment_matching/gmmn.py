"""Generative moment matching network: a generator trained to match all moments of the data, with no discriminator.

The kernel trick compares the means of the data's and the samples' infinitely many features k(x, .) in closed form, so
that a single smooth objective replaces the game of a GAN:

    MMD^2 = E k(x, x') + E k(G(z), G(z')) - 2 E k(x, G(z)),      k = mean_q exp(-|x - y|^2 / (2 bandwidth_q^2)),
    loss = sqrt(MMD^2), or MMD^2 with ``square_root=false``,     z uniform on [-1, 1].

The loss is the V-statistic of a batch and as many samples (survey equation 88), which never is negative; the log holds
the U-statistic, which is unbiased: about 0, and below it half of the time, once samples and data cannot be told apart.
Small batches make the V-statistic's bias favour samples of too little spread, so that in the limit the method wants
large ones; but at a given number of images they also make more steps, which counts for more here: see below.

Shapes and units: raw x (b, *shape), scaled to [-1, 1] (``real`` data pass unchanged); z (b, latent). MMD is a number
without unit, between 0 and sqrt(2).

Papers: Li, Swersky, Zemel, "Generative Moment Matching Networks", ICML 2015, https://arxiv.org/abs/1502.02761 (square
root, mixture of kernels); Dziugaite, Roy, Ghahramani, "Training generative neural networks via Maximum Mean Discrepancy
optimization", UAI 2015, https://arxiv.org/abs/1505.03906.

What differs: bandwidths are multiples of the data's median distance, where the paper tunes absolute ones for each data
set; the hidden layers have leaky ReLU in place of ReLU and tanh replaces the sigmoid, since data are on [-1, 1]; Adam
in place of momentum and a rate tuned on validation data; batches of 50 by default, where the papers have 1000 and train
for long (docs/moment_matching.md has the measurement).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.contract import Logs
from dgmbench.models.moment_matching.matching import MomentMatching
from dgmbench.nn.adversarial import NetName, make_generator
from dgmbench.nn.batchnorm import absorb_statistics, statistics_of
from dgmbench.nn.scaling import Scaling


class Gmmn(MomentMatching):
    """Generative moment matching network (Li, Swersky, Zemel 2015; Dziugaite, Roy, Ghahramani 2015).

    Args:
        spec: the data's space.
        net: the generator: ``mlp`` for any data, ``dcgan`` and ``resnet`` for square images.
        latent: dimensions of the noise z.
        hidden_sizes: hidden layers of the mlp.
        channels: width of the convolutional generators (see ``nn.adversarial``).
        bandwidths: of the kernels in the mixture, in units of the median distance between two examples.
        square_root: minimise the MMD in place of its square, so that gradients do not fade as it falls.
        block: rows and columns of the kernel matrix that are computed at once.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        net: NetName = "mlp",
        latent: int = 10,
        hidden_sizes: Sequence[int] = (64, 256, 256, 1024),
        channels: int = 64,
        bandwidths: Sequence[float] = (0.125, 0.25, 0.5, 1.0, 2.0),
        square_root: bool = True,
        block: int = 1024,
    ) -> None:
        super().__init__(spec, latent=latent, bandwidths=bandwidths, square_root=square_root, block=block)
        self.scaling = Scaling(spec)
        self.generator = make_generator(net, spec, latent=latent, hidden_sizes=tuple(hidden_sizes), channels=channels)

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Measure the median distance between examples, the unit of the bandwidths."""
        self.measure_scale(self.scaling(batch.x).flatten(1))

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The MMD, or its square, between the batch and as many fresh samples."""
        with statistics_of(self.generator):
            samples = self.generator(self.noise(len(batch.x), generator))
        squared, unbiased = self.discrepancy(self.scaling(batch.x), samples)
        return self.objective(squared), {"mmd2": squared.detach(), "mmd2_unbiased": unbiased.detach()}

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the statistics of batch-norm, which convolutional generators have."""
        absorb_statistics(self.generator)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw values G(z) (n, *shape), rounded to the levels if there are levels."""
        return self.scaling.inverse(self.generator(self.noise(n, generator)))

    def generate(self, noise: Float[Tensor, "b latent"]) -> Tensor:
        """G(z), float (b, *shape) on the raw scale, of standard normal noise."""
        return self.scaling.unrounded(self.generator(self.uniform(noise)))
