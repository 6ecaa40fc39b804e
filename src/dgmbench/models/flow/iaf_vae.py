r"""Inverse autoregressive flow: masked networks, each in one pass, make the posterior of a VAE a rich density.

The encoder gives z_0 ~ N(mean(x), diag sigma(x)^2) and a context h. Step t reads m_t and s_t off z_{t-1} and h by an
autoregressive network (those of dimension i depend on the dimensions before i, and on h), and gates like an LSTM
(survey eq. 81):

    sigma_t = sigmoid(s_t),      z_t = sigma_t z_{t-1} + (1 - sigma_t) m_t,
    log q(z_T | x) = -sum_i [1/2 eps_i^2 + 1/2 log 2 pi + log sigma_{0,i} + sum_t log sigma_{t,i}],
    elbo(x) = E[log p(x | z_T)] - KL(q(z_T | x) || N(0, I)) <= log p(x).

The Jacobian of a step is triangular with sigma_t on its diagonal, so log |det| = sum_i log sigma_{t,i}; the survey's
eq. 80 has the factor 1/2 before these terms too, where it does not belong. The order of the dimensions is reversed
from one step to the next. Densities of given z would take D passes; a posterior needs only those of its own draws.

``net`` mlp, conv or resnet has one layer of latents, ``models/vae/vae.py`` with this flow: the paper's model of MNIST
is resnet. ``net=bidirectional`` has many layers of latent maps, as the paper's model of CIFAR-10: see
``bidirectional.py``. Free bits (the KL of each dimension or map is not charged below ``free_bits`` nats, on the
batch's average) and the warm-up change the loss only: ``elbo`` and the log are those of the bound.

Shapes and units: x is raw (b, *shape), z (b, latent), log sigma (samples, b, latent); nats per example.

Paper: Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling, "Improving Variational Inference with Inverse
Autoregressive Flow", NeurIPS 2016, https://arxiv.org/abs/1606.04934.

Different from the paper: no weight normalisation with data-dependent initialisation; the output of an autoregressive
network starts at a tenth of its usual size, and the gates at sigmoid(2), so that a step starts near the identity. The
defaults are for small data: ``net`` is an mlp, where the paper has residual networks; each step's network has two
hidden layers of 320, of the paper's widths 320 and 1920, whose number it does not give; bidirectional has 32 channels
and two layers a size, where the published code has 160 and ten on CIFAR-10, with two hidden layers in each step where
there is one here. Adam at 1e-3 with no average of the weights, where the published code has Adamax at 2e-3 with one
(``trainer.ema``); no free bits, where it charges no KL below 0.25 a map (``model.free_bits``); a mixture of five
logistics for levels, where it has one.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model
from dgmbench.models.flow.bidirectional import BidirectionalVae, gated
from dgmbench.models.vae.vae import PosteriorFlow, Vae
from dgmbench.nn.masked import MaskedMlp
from dgmbench.nn.observation import ObservationName


class AutoregressiveNet(MaskedMlp):
    """Masked network (k, b, D) -> m and s of every dimension; the context is never masked."""

    def __init__(self, dim: int, hidden_sizes: Sequence[int], context: int) -> None:
        super().__init__(dim, hidden_sizes, 2, context=context, nonlinearity="elu")
        with torch.no_grad():
            self.linear(self.depth).weight.mul_(0.1)

    def given(self, z: Float[Tensor, "k b d"], context: Float[Tensor, "b c"]) -> tuple[Tensor, Tensor]:
        """m and s, each (k, b, D), in one pass."""
        out = self(z.flatten(0, 1), context=context.expand(len(z), *context.shape).flatten(0, 1))
        m, s = out.unflatten(0, z.shape[:2]).unbind(-1)
        return m, s


class InverseAutoregressiveFlow(PosteriorFlow):
    """Gated inverse autoregressive steps; every second one takes the dimensions in reverse order."""

    def __init__(self, latent: int, *, steps: int, hidden_sizes: Sequence[int], context: int) -> None:
        super().__init__()
        self.context = context
        self.nets = nn.ModuleList(AutoregressiveNet(latent, hidden_sizes, context) for _ in range(steps))

    def forward(
        self, z: Float[Tensor, "k b z"], context: Float[Tensor, "b c"]
    ) -> tuple[Float[Tensor, "k b z"], Float[Tensor, "k b z"]]:
        """The images, and the log sigmas of each dimension, summed over the steps."""
        total = torch.zeros_like(z)
        for number, net in enumerate(self.nets):
            assert isinstance(net, AutoregressiveNet)
            if number % 2:
                m, s = (value.flip(-1) for value in net.given(z.flip(-1), context))
            else:
                m, s = net.given(z, context)
            z, log_sigma = gated(z, m, s)
            total = total + log_sigma
        return z, total


class IafVae(Model):
    """VAE with an inverse autoregressive flow on its posterior (Kingma et al. 2016).

    Args:
        spec: The data space; bidirectional, conv and resnet take images.
        net: Kind of encoder and decoder.
        hidden_sizes: Widths of the mlp's hidden layers, encoder order; the decoder mirrors them. None: linear.
        channels: First width of conv and resnet, width of bidirectional.
        latent: Dimensions of z; of bidirectional, maps of each layer.
        steps: T, the number of inverse autoregressive steps; 0 is the VAE. Bidirectional has one in each layer.
        autoregressive_sizes: Hidden widths of each step's network. Bidirectional takes ``channels``.
        context: Numbers that the encoder tells the steps beside mean and sigma. Bidirectional takes ``channels``.
        layers: Layers of latents at each resolution. Bidirectional.
        observation: p(x | z); ``auto`` goes by the kind of the data.
        sigma: Fixed standard deviation of a gaussian observation; learned if None.
        components: Logistics in the mixture of a discrete dimension.
        samples: Draws of z for each example in one estimate of the bound.
        kl_warmup: Updates over which the weight of the KL rises from 0 to 1.
        free_bits: Nats of KL for each dimension, or map, that the loss does not charge for.
    """

    def __init__(
        self, spec: DataSpec, *, net: Literal["mlp", "conv", "resnet", "bidirectional"] = "mlp",
        hidden_sizes: Sequence[int] = (200, 200), channels: int = 32, latent: int = 32, steps: int = 4,
        autoregressive_sizes: Sequence[int] = (320, 320), context: int = 64, layers: int = 2,
        observation: ObservationName = "auto", sigma: float | None = None, components: int = 5, samples: int = 1,
        kl_warmup: int = 0, free_bits: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(spec)
        require(least=0, steps=steps)
        require(least=1, latent=latent, context=context, autoregressive_sizes=autoregressive_sizes)
        if not autoregressive_sizes:
            raise UserError("model.autoregressive_sizes=[] leaves no layer for the context to enter; give one width.")
        self.inner: Vae | BidirectionalVae
        if net == "bidirectional":
            self.inner = BidirectionalVae(
                spec, channels=channels, latent=latent, layers=layers, observation=observation, sigma=sigma,
                components=components, samples=samples, kl_warmup=kl_warmup, free_bits=free_bits,
            )  # fmt: skip
        else:
            flow = InverseAutoregressiveFlow(
                latent, steps=steps, hidden_sizes=tuple(autoregressive_sizes), context=context if steps else 0
            )
            self.inner = Vae(
                spec, net=net, hidden_sizes=hidden_sizes, channels=channels, latent=latent, flow=flow,
                observation=observation, sigma=sigma, components=components, samples=samples, kl_warmup=kl_warmup,
                free_bits=free_bits,
            )  # fmt: skip

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The negative bound, with warm-up and free bits where they are set."""
        return self.inner.loss(player, batch, generator)

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Advance the counter of the warm-up."""
        self.inner.after_step(player, batch, generator)

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """One draw of the bound of raw x (b, *shape), without free bits."""
        return self.inner.elbo(x, generator=generator)

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Float[Tensor, "k b"]:
        """Draw k importance weights of each raw x (b, *shape); the bound is their log-mean-exp."""
        return self.inner.log_weights(x, k, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples from the prior through the decoder, raw (n, *shape)."""
        return self.inner.sample(n, y, generator=generator)

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The code of raw x (b, *shape) with all noise at zero."""
        return self.inner.encode(x)

    def decode(self, code: Float[Tensor, "b z"]) -> Tensor:
        """E[x | z], float (b, *shape) on the raw scale."""
        return self.inner.decode(code)

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | z] at a draw z ~ q(z | x), float (b, *shape) on the raw scale."""
        return self.inner.reconstruct(x, generator=generator)
