"""MMD GAN: moment matching under a kernel that an adversary chooses, k(f(x), f(y)) with a critic f that autoencodes.

A fixed kernel on pixels sees little of an image. Here the critic f maximises the discrepancy that the kernel on f sees,
and the generator minimises it; a decoder d that gives x back from f(x) keeps f from throwing data away. With
MMD_f^2 = MMD^2(f(x), f(G(z))) under k = mean_q exp(-|a - b|^2 / (2 bandwidth_q^2)) and R = sum_i min(0, E f_i(x) -
E f_i(G(z))) / code, which is 0 on the feasible side and keeps the features of data above those of samples,

    critic      maximises  MMD_f + rank_weight R - autoencoder_weight (E |x - d(f(x))|^2 + E |G - d(f(G))|^2),
    generator   minimises  MMD_f + rank_weight R,

with MMD_f the root of the V-statistic of a batch and as many samples; squared errors are means over dimensions. The
critic's weights are clipped to [-clip, clip]; or, with ``regulariser=gradient_penalty``, the gradient norm of its
witness function w(u) = E k(f(u), f(x)) - E k(f(u), f(G)) is held at one between data and samples.

Shapes and units: raw x (b, *shape), scaled to [-1, 1] (``real`` data pass unchanged); f(x) (b, code); z ~ N(0, I).

Paper: Li, Chang, Cheng, Yang, Poczos, "MMD GAN: Towards Deeper Understanding of Moment Matching Network", NeurIPS 2017,
https://arxiv.org/abs/1705.08584 (algorithm 1; weights 8 and 16 and the bandwidths from the authors' release); the
penalty on the witness function: Binkowski et al. 2018, https://arxiv.org/abs/1801.01401.

What differs: fully connected networks for small data, whose clipping bound is larger than the 0.01 of the release; five
critic steps for every generator step throughout, where the release takes 100 at first.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model, Stage
from dgmbench.nn.adversarial import NetName, make_discriminator, make_generator
from dgmbench.nn.adversarial_losses import gradient_penalty
from dgmbench.nn.batchnorm import absorb_statistics, statistics_of
from dgmbench.nn.mmd import Discrepancy, Kernel, mmd_squared, rbf_mixture, safe_sqrt, squared_distances
from dgmbench.nn.scaling import Scaling


class MmdGan(Model):
    """Generator against a critic that chooses the kernel of the MMD (Li et al. 2017).

    Args:
        spec: the data's space.
        net: the networks: ``mlp`` for any data, ``dcgan`` and ``resnet`` for square images.
        latent: dimensions of the noise z.
        code: dimensions of the critic's features f(x).
        hidden_sizes: hidden layers of the mlp generator and decoder; the critic has them in reverse.
        channels: width of the convolutional networks (see ``nn.adversarial``).
        bandwidths: of the kernels in the mixture, on the scale of f.
        autoencoder_weight: weight of the critic's squared reconstruction errors.
        rank_weight: weight of R, which keeps the features of data above those of samples.
        regulariser: what bounds the critic: ``clip`` or ``gradient_penalty``.
        clip: bound on every weight of the critic after its step.
        penalty_weight: weight of the gradient penalty.
        n_critic: critic steps, each on a batch of its own, to one generator step, on the last of them.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        net: NetName = "mlp",
        latent: int = 16,
        code: int = 16,
        hidden_sizes: Sequence[int] = (256, 256),
        channels: int = 64,
        bandwidths: Sequence[float] = (1.0, 2.0, 4.0, 8.0, 16.0),
        autoencoder_weight: float = 8.0,
        rank_weight: float = 16.0,
        regulariser: Literal["clip", "gradient_penalty"] = "clip",
        clip: float = 0.1,
        penalty_weight: float = 1.0,
        n_critic: int = 5,
    ) -> None:
        super().__init__(spec)
        if regulariser not in ("clip", "gradient_penalty"):
            raise UserError(f"regulariser must be clip or gradient_penalty, not '{regulariser}'.")
        require(least=1, latent=latent, code=code, hidden_sizes=hidden_sizes, channels=channels, n_critic=n_critic)
        require(above=0, bandwidths=bandwidths, clip=clip)
        require(least=0, autoencoder_weight=autoencoder_weight, rank_weight=rank_weight, penalty_weight=penalty_weight)
        self.latent = self.noise_dim = latent
        self.bandwidths, self.regulariser = tuple(bandwidths), regulariser
        self.autoencoder_weight, self.rank_weight, self.penalty_weight = autoencoder_weight, rank_weight, penalty_weight
        self.clip, self.n_critic = clip, n_critic
        self.scaling = Scaling(spec)
        sizes = tuple(hidden_sizes)
        norm: Literal["layer", "batch"] = "layer" if regulariser == "gradient_penalty" else "batch"
        self.generator = make_generator(net, spec, latent=latent, hidden_sizes=sizes, channels=channels)
        self.critic: nn.Module = make_discriminator(
            net, spec, hidden_sizes=sizes[::-1], channels=channels, outputs=code, norm=norm
        )
        self.decoder = make_generator(net, spec, latent=code, hidden_sizes=sizes, channels=channels)

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The critic with its decoder, and the generator."""
        return {
            "critic": [*self.critic.parameters(), *self.decoder.parameters()],
            "generator": list(self.generator.parameters()),
        }

    def turn(self, step: int, stage: Stage) -> Sequence[str]:
        """The critic on every step, the generator after it on every ``n_critic``-th."""
        return ("critic", "generator") if (step + 1) % self.n_critic == 0 else ("critic",)

    # ---- the objective ----

    def kernel(self) -> Kernel:
        """The mixture of Gaussian kernels on features."""
        return rbf_mixture(torch.tensor(self.bandwidths, device=next(self.parameters()).device))

    def discrepancy(self, real: Float[Tensor, "n code"], fake: Float[Tensor, "m code"]) -> Discrepancy:
        """Both estimates of MMD^2 between features."""
        kept = torch.promote_types(fake.dtype, torch.float32)  # in half precision the three sums cancel to nothing
        with torch.autocast(fake.device.type, enabled=False):
            return mmd_squared(real.to(kept), fake.to(kept), self.kernel())

    @staticmethod
    def rank(real: Float[Tensor, "n code"], fake: Float[Tensor, "m code"]) -> Float[Tensor, ""]:
        """R: the mean over features of min(0, E f(x) - E f(G(z)))."""
        return (real.mean(0) - fake.mean(0)).clamp(max=0).mean()

    def adversarial(self, real: Float[Tensor, "n code"], fake: Float[Tensor, "m code"]) -> tuple[Tensor, Logs]:
        """What the critic maximises and the generator minimises at the features of data and of samples."""
        squared, unbiased = self.discrepancy(real, fake)
        rank = self.rank(real, fake)
        logs = {"mmd2": squared.detach(), "mmd2_unbiased": unbiased.detach(), "rank": rank.detach()}
        return safe_sqrt(squared) + self.rank_weight * rank, logs

    def reconstruction(self, x: Float[Tensor, " b *shape"], features: Float[Tensor, "b code"]) -> Float[Tensor, ""]:
        """Mean squared error of the decoder at the features of scaled x."""
        return F.mse_loss(self.decoder(features), x)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas."""
        x, z = self.scaling(batch.x), self.noise(len(batch.x), generator)
        if player == "generator":
            with torch.no_grad():
                real = self.critic(x)
            with statistics_of(self.generator):
                samples = self.generator(z)
            return self.adversarial(real, self.critic(samples))
        with torch.no_grad():
            samples = self.generator(z)
        fake = self.critic(samples)
        error = self.reconstruction(samples, fake)
        with statistics_of(self.critic), statistics_of(self.decoder):  # they are used on data
            real = self.critic(x)
            error = error + self.reconstruction(x, real)
        value, logs = self.adversarial(real, fake)
        loss = self.autoencoder_weight * error - value
        if self.regulariser == "gradient_penalty":
            penalty = gradient_penalty(self.witness(real, fake), x, samples, generator=generator).mean()
            loss, logs = loss + self.penalty_weight * penalty, {**logs, "penalty": penalty.detach()}
        return loss, {**logs, "squared_error": error.detach()}

    def witness(self, real: Float[Tensor, "n code"], fake: Float[Tensor, "m code"]) -> "Witness":
        """The function w of scaled values in which data and samples differ most, at features of both."""
        return Witness(self.critic, self.kernel(), real, fake)

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Clip the critic's weights, and take up the batch-norm statistics of the networks that stepped."""
        if player == "critic" and self.regulariser == "clip":
            for parameter in self.critic.parameters():
                parameter.clamp_(-self.clip, self.clip)
        for net in (self.critic, self.decoder) if player == "critic" else (self.generator,):
            absorb_statistics(net)

    # ---- use ----

    @torch.no_grad()
    def encode(self, x: Tensor) -> Float[Tensor, "b code"]:
        """The critic's features of raw x (b, *shape)."""
        return self.critic(self.scaling(x))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The critic's autoencoder at raw x (b, *shape), float on the raw scale."""
        return self.scaling.unrounded(self.decoder(self.critic(self.scaling(x))))

    def generate(self, noise: Float[Tensor, "b latent"]) -> Tensor:
        """G(z), float (b, *shape) on the raw scale, of standard normal noise."""
        return self.scaling.unrounded(self.generator(noise))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw values G(z) (n, *shape), rounded to the levels if there are levels."""
        return self.scaling.inverse(self.generator(self.noise(n, generator)))

    def noise(self, n: int, generator: Generator | None) -> Float[Tensor, "n latent"]:
        """Latents from N(0, I)."""
        return torch.randn(n, self.latent, generator=generator, device=next(self.parameters()).device)


class Witness:
    """w(u) = mean_i k(f(u), a_i) - mean_j k(f(u), b_j) of scaled values u, at features a of data and b of samples."""

    def __init__(self, critic: nn.Module, kernel: Kernel, real: Tensor, fake: Tensor) -> None:
        self.critic, self.kernel, self.real, self.fake = critic, kernel, real, fake

    def __call__(self, u: Float[Tensor, " b *shape"]) -> Float[Tensor, " b"]:
        """The values, (b,)."""
        features = self.critic(u)
        at_real, at_fake = (self.kernel(squared_distances(features, points)) for points in (self.real, self.fake))
        return at_real.mean(1) - at_fake.mean(1)
