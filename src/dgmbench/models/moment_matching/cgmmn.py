"""Conditional generative moment matching network: a generator given a label, matched to p(x | y) for all y at once.

Matching the moments of each class apart would need many examples of each; the kernel embedding of the conditional
distribution lets neighbouring conditions share theirs, and one batch of pairs trains all of them:

    min_G sqrt(CMMD^2), or CMMD^2 with ``square_root=false``, between the pairs (y_i, x_i) and (y_i, G(z_i, y_i)),
    z uniform on [-1, 1]; CMMD^2 in ``nn/conditional_mmd.py``.

Shapes and units: raw x (b, *shape), scaled to [-1, 1] (``real`` data pass unchanged); labels (b,) as one-hot vectors;
z (b, latent). CMMD is a number without unit. A step costs O(b^3) for the inverse of the labels' Gram matrix.

Paper: Ren, Zhu, Li, Luo, "Conditional Generative Moment-Matching Networks", NeurIPS 2016,
https://arxiv.org/abs/1606.04218 (algorithm 1).

What differs: bandwidths of x are multiples of the data's median distance, as in this project's ``gmmn``; the generator
is that of ``gmmn`` with the label joined to its noise. Examples without a label (y = -1) take no part.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs
from dgmbench.models.moment_matching.matching import MomentMatching
from dgmbench.nn.adversarial import NetName, make_generator
from dgmbench.nn.batchnorm import absorb_statistics, statistics_of
from dgmbench.nn.conditional_mmd import conditional_mmd_squared
from dgmbench.nn.labels import classes_of_noise, count_classes, draw_classes, labelled_part, one_hot, start_class_prior
from dgmbench.nn.mmd import rbf_mixture
from dgmbench.nn.scaling import Scaling


class Cgmmn(MomentMatching):
    """Conditional generative moment matching network (Ren et al. 2016).

    Args:
        spec: the data's space, with labels.
        net, latent, hidden_sizes, channels, bandwidths, square_root: as of ``Gmmn``.
        condition_bandwidth: of the Gaussian kernel on one-hot labels, whose squared distance is 2.
        ridge: lambda, added to the diagonal of the labels' Gram matrix before it is inverted.
    """

    class_log_prior: Tensor

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
        condition_bandwidth: float = 0.5,
        ridge: float = 0.1,
    ) -> None:
        super().__init__(spec, latent=latent, bandwidths=bandwidths, square_root=square_root)
        require(above=0, condition_bandwidth=condition_bandwidth, ridge=ridge)
        start_class_prior(self, spec)  # refuses data without labels
        self.classes, self.ridge, self.condition_bandwidth = len(self.class_log_prior), ridge, condition_bandwidth
        self.noise_dim = latent + 1  # the last column's quantile is the label
        self.scaling = Scaling(spec)
        self.generator = make_generator(
            net, spec, latent=latent, hidden_sizes=tuple(hidden_sizes), channels=channels, classes=self.classes
        )

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """The unit of the bandwidths, and the classes' frequencies among examples with a label."""
        self.measure_scale(self.scaling(batch.x).flatten(1))
        count_classes(self.class_log_prior, batch.y)

    def conditional_discrepancy(
        self, x: Float[Tensor, " n *shape"], y: Tensor, samples: Float[Tensor, " m *shape"], samples_y: Tensor
    ) -> Float[Tensor, ""]:
        """CMMD^2 between scaled values x with labels y (n,) and samples with theirs (m,), float64."""
        with torch.autocast(x.device.type, enabled=False):
            return conditional_mmd_squared(
                x.flatten(1),
                one_hot(y, self.classes, x.dtype),
                samples.flatten(1),
                one_hot(samples_y, self.classes, x.dtype),
                kernel=self.kernel(torch.float64),
                condition_kernel=rbf_mixture(self.scale.new_tensor([self.condition_bandwidth]).double()),
                ridge=self.ridge,
            )

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The CMMD, or its square, between the labelled pairs of the batch and a sample for each of their labels."""
        batch = labelled_part(batch)
        x, y = self.scaling(batch.x), batch.y
        if y is None:
            raise UserError("cgmmn needs labels with every batch, and this one has none.")
        with statistics_of(self.generator):
            samples = self.generator(self.noise(len(y), generator), one_hot(y, self.classes, x.dtype))
        squared = self.conditional_discrepancy(x, y, samples, y)
        return self.objective(squared), {"cmmd2": squared.detach()}

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the statistics of batch-norm, which convolutional generators have."""
        absorb_statistics(self.generator)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw values G(z, y) (n, *shape), of classes y (n,), by default as frequent as in the data."""
        label = draw_classes(self.class_log_prior, n, generator) if y is None else y
        z = self.noise(n, generator)
        return self.scaling.inverse(self.generator(z, one_hot(label, self.classes, z.dtype)))

    def generate(self, noise: Float[Tensor, "b n"]) -> Tensor:
        """G(z, y), float (b, *shape) on the raw scale, of standard normal noise whose last column decides the label."""
        y = classes_of_noise(self.class_log_prior, noise[:, -1])
        z = self.uniform(noise[:, :-1])
        return self.scaling.unrounded(self.generator(z, one_hot(y, self.classes, z.dtype)))
