r"""The multi-stage VAE: a decoder gives a coarse picture, a residual network refines it, and both must explain x.

    coarse = decoder(z),     refined = coarse + R(coarse),      z ~ q(z | x),
    elbo(x) = E_q[log p(x | refined)] - KL(q(z | x) || N(0, I)) <= log p(x),
    loss = -E_data[elbo + coarse E_q[log p(x | coarse)]]      (with the weight ``coarse``).

What the first stage gives is blurred, as that of any VAE; the second is trained as super-resolution is, end to end with
the first. Both stages speak in the parameters of p(x | .), so the bound is that of the model which samples: the
refined one. R begins at zero, where the model is a VAE.

Shapes and units: x is raw (b, c, h, w), z (k, b, latent), parameters (n, P, c, h, w); nats per example of raw x.

Paper: Cai, Gao, Ji, "Multi-Stage Variational Auto-Encoders for Coarse-to-Fine Image Generation", 2017,
https://arxiv.org/abs/1705.07202.

Different from the paper: the second stage refines the parameters of a likelihood, where the paper's refines pixels
under an l1 or l2 loss, so that there is a bound; one second stage, at the size of the picture.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs
from dgmbench.models.vae.vae import Vae
from dgmbench.nn.encoders import NetName, ResidualBlock
from dgmbench.nn.observation import ObservationName


class TwoStages(nn.Module):
    """The decoder z -> coarse -> refined, all parameters (n, P, c, h, w)."""

    def __init__(self, coarse: nn.Module, maps: int, *, channels: int, blocks: int) -> None:
        super().__init__()
        self.coarse = coarse
        last = nn.Conv2d(channels, maps, 3, padding=1)
        with torch.no_grad():
            for parameter in last.parameters():
                parameter.zero_()
        trunk = [ResidualBlock(channels) for _ in range(blocks)]
        self.residual = nn.Sequential(nn.Conv2d(maps, channels, 3, padding=1), *trunk, nn.SiLU(), last)

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n p c h w"]:
        """The refined parameters."""
        return self.refine(self.coarse(z))

    def refine(self, coarse: Float[Tensor, "n p c h w"]) -> Float[Tensor, "n p c h w"]:
        """The second stage."""
        return coarse + self.residual(coarse.flatten(1, 2)).view(coarse.shape)


class MsVae(Vae):
    """Multi-stage VAE of images (Cai, Gao, Ji 2017).

    Args:
        spec: The data space, images.
        coarse: Weight of the first stage's own log-likelihood in the loss.
        refining_channels: Width of the second stage.
        refining_blocks: Its residual blocks.
        net: Kind of encoder and decoder.
        hidden_sizes: Widths of the mlp's hidden layers, encoder order; the decoder mirrors them. None: linear.
        channels: First width of conv and resnet.
        latent: Dimensions of z.
        observation: p(x | .) of both stages; ``auto`` goes by the kind of the data.
        sigma: Fixed standard deviation of a gaussian observation; learned if None.
        components: Logistics in the mixture of a discrete dimension.
        samples: Draws of z for each example in one estimate of the bound.
        beta: Weight of the KL in the loss.
        kl_warmup: Updates over which the weight of the KL rises from 0 to beta.
        free_bits: Nats of KL for each latent dimension that the loss does not charge for.
    """

    decoder: TwoStages  # type: ignore[assignment]

    def __init__(
        self, spec: DataSpec, *, coarse: float = 1.0, refining_channels: int = 64, refining_blocks: int = 4,
        net: NetName = "conv", hidden_sizes: Sequence[int] = (200, 200), channels: int = 32, latent: int = 50,
        observation: ObservationName = "auto", sigma: float | None = None, components: int = 5, samples: int = 1,
        beta: float = 1.0, kl_warmup: int = 0, free_bits: float = 0.0,
    ) -> None:  # fmt: skip
        if not spec.is_image:
            raise UserError(f"msvae takes images (c, h, w), not {spec}; choose such data, as data=digits32.")
        require(least=0, coarse=coarse, refining_blocks=refining_blocks)
        require(least=1, refining_channels=refining_channels)
        super().__init__(
            spec, net=net, hidden_sizes=hidden_sizes, channels=channels, latent=latent, observation=observation,
            sigma=sigma, components=components, samples=samples, beta=beta, kl_warmup=kl_warmup, free_bits=free_bits,
        )  # fmt: skip
        self.coarse_weight = coarse
        maps = self.observation.parameters_per_dim * spec.shape[0]
        first: nn.Module = self.decoder
        self.decoder = TwoStages(first, maps, channels=refining_channels, blocks=refining_blocks)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The negative bound of the refined picture, and the first stage's own negative log-likelihood."""
        q = self._draw(batch.x, self.samples, generator)
        coarse = self.decoder.coarse(q.z.flatten(0, 1))
        of_both = [
            self.observation.log_prob(each.unflatten(0, q.z.shape[:2]), batch.x).mean(0)
            for each in (coarse, self.decoder.refine(coarse))
        ]
        loss, logs = self.objective(of_both[1], self._kl(q))
        first = of_both[0].mean()
        return loss - self.coarse_weight * first, {**logs, "coarse": first.detach()}

    @torch.no_grad()
    def both_stages(self, x: Tensor, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """E[x | coarse] and E[x | refined] at one draw z ~ q(z | x), floats (b, c, h, w) on the raw scale."""
        coarse = self.decoder.coarse(self._draw(x, 1, generator).z[0])
        return self.observation.mean(coarse), self.observation.mean(self.decoder.refine(coarse))
