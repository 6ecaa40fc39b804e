"""What generators trained by moment matching share: uniform noise, a mixture of kernels in the data's unit, samples."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Model
from dgmbench.nn.mmd import Discrepancy, Kernel, median_distance, mmd_squared, rbf_mixture, safe_sqrt


class MomentMatching(Model):
    """Base of models whose objective compares kernel means of data and of samples at z uniform on [-1, 1].

    Args:
        spec: the data's space.
        latent: dimensions of the noise z.
        bandwidths: of the kernels in the mixture, in units of the median distance between two examples.
        square_root: minimise the discrepancy in place of its square, so that gradients do not fade as it falls.
        block: rows and columns of the kernel matrix that are computed at once.
    """

    scale: Tensor

    def __init__(
        self, spec: DataSpec, *, latent: int, bandwidths: Sequence[float], square_root: bool, block: int = 1024
    ) -> None:
        super().__init__(spec)
        if not bandwidths or min(bandwidths) <= 0:
            raise UserError(f"model.bandwidths={list(bandwidths)} must hold at least one number, all above 0.")
        require(least=1, latent=latent, block=block)
        self.latent = self.noise_dim = latent
        self.square_root, self.block = square_root, block
        self.bandwidths = tuple(bandwidths)
        self.register_buffer("scale", torch.ones(()))  # the median distance between two examples

    def measure_scale(self, x: Float[Tensor, "n d"]) -> None:
        """Take the median distance between the points x as the unit of the bandwidths; 1 if all are the same."""
        distance = median_distance(x) if len(x) > 1 else torch.zeros(())
        if distance > 0:
            self.scale.copy_(distance)

    def kernel(self, dtype: torch.dtype) -> Kernel:
        """The mixture of Gaussian kernels."""
        scale = self.scale.to(dtype)
        return rbf_mixture(scale * scale.new_tensor(self.bandwidths))

    def discrepancy(self, x: Float[Tensor, " n *shape"], samples: Float[Tensor, " m *shape"]) -> Discrepancy:
        """Both estimates of MMD^2 between points x and samples."""
        kept = torch.promote_types(samples.dtype, torch.float32)  # in half precision the three sums cancel to nothing
        with torch.autocast(samples.device.type, enabled=False):
            kernel = self.kernel(torch.promote_types(kept, self.scale.dtype))
            return mmd_squared(x.flatten(1).to(kept), samples.flatten(1).to(kept), kernel, block=self.block)

    def objective(self, squared: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The squared discrepancy or its root, as ``square_root`` says."""
        return safe_sqrt(squared) if self.square_root else squared

    def noise(self, n: int, generator: Generator | None) -> Float[Tensor, "n latent"]:
        """Latents, uniform on [-1, 1]."""
        parameter = next(self.parameters())
        u = torch.rand(n, self.latent, generator=generator, device=parameter.device, dtype=parameter.dtype)
        return 2 * u - 1

    @staticmethod
    def uniform(noise: Tensor) -> Tensor:
        """Standard normal noise to latents: its distribution function makes them uniform on [-1, 1]."""
        return torch.erf(noise / 2**0.5)
