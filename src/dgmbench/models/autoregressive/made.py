r"""MADE: a masked autoencoder whose outputs are the conditionals of an autoregressive model.

Masks cut every path from x_j to the parameters of p(x_i | x before i) unless j comes before i, so that one pass gives
all D conditionals and the likelihood is exact:

    log p(x) = sum_i log p(x_i | x_before(i)),      loss = -E[log p_m(x)] over data and a mask m drawn for each batch.

With M masks (different connectivities, and different orders of the dimensions if ``order=agnostic``) the model is the
uniform mixture of the M models that share the weights, log p(x) = logsumexp_m log p_m(x) - log M: an average of
probabilities. An average of logits, as sometimes seen, is no distribution: it does not sum to one.

Shapes and units: x is raw (b, *shape), flattened in C order; ``log_prob`` is in nats per example, (b,). The
conditional of a binary dimension has one logit, of a discrete one ``levels`` logits, and of a real one a mixture of
Gaussians (logits, means, log standard deviations, the last squashed softly into (-7, 7)).

Paper: Germain, Gregor, Murray, Larochelle, "MADE: Masked Autoencoder for Distribution Estimation", ICML 2015,
https://arxiv.org/abs/1502.03509. Mixtures for real data: Papamakarios et al. 2017, https://arxiv.org/abs/1705.07057.

Different from the paper: the mask of a batch is drawn at random from the M masks where the paper cycles through them,
so that the loss needs no counter; categorical and Gaussian outputs are added; samples of a mixture over masks draw
their mask first; output biases start at the data's marginals (the first dimensions see little else, and a bias
alone learns slowly); the optional "connectivity weights" that tell the network its mask are left out. Sampling
computes each hidden unit once, in order of degree, where the paper runs D full passes.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.masked import MaskedMlp, Order
from dgmbench.nn.observation import gaussian_log_density
from dgmbench.nn.scaling import Scaling

LARGEST_LOG_SIGMA = 7.0  # of either sign: a log sigma linear in x explodes when samples are fed back


class Made(Model):
    """Masked autoencoder for distribution estimation of binary, discrete and real data.

    Args:
        spec: The data space.
        hidden_sizes: Widths of the hidden layers.
        masks: M, the number of masks of the mixture.
        order: ``natural`` (C order of the array), ``random`` (one order for all masks) or ``agnostic`` (one for each).
        direct: Adds masked weights from the inputs straight to the outputs.
        components: Gaussians in the mixture of a real dimension.
    """

    def __init__(
        self, spec: DataSpec, *, hidden_sizes: Sequence[int] = (500,), masks: int = 1, order: Order = "natural",
        direct: bool = False, components: int = 10,
    ) -> None:  # fmt: skip
        super().__init__(spec)
        if spec.kind not in ("binary", "discrete", "real"):
            raise UserError(f"MADE takes binary, discrete or real data, not {spec.kind}.")
        require(least=1, hidden_sizes=hidden_sizes, masks=masks, components=components)
        if order not in ("natural", "random", "agnostic"):
            raise UserError(f"MADE's order is natural, random or agnostic, not {order!r}.")
        parameters = {"binary": 1, "discrete": spec.levels or 0, "real": 3 * components}[spec.kind]
        self.components = components
        self.scaling = Scaling(spec, low=0.0)
        self.net = MaskedMlp(spec.dim, tuple(hidden_sizes), parameters, masks=masks, order=order, direct=direct)

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Set the output biases to the marginals, so that the first dimensions, which see little else, start right."""
        bias = self.net.linear(self.net.depth).bias.view(self.spec.dim, -1)
        if self.spec.kind == "real":
            sigma, mean = torch.std_mean(self._inputs(batch.x), dim=0, correction=0)
            log_sigma = sigma.log().clamp(min=-0.9 * LARGEST_LOG_SIGMA, max=0.9 * LARGEST_LOG_SIGMA)
            _, means, log_sigmas = bias.unflatten(1, (3, self.components)).unbind(1)
            spread = torch.randn(means.shape, generator=generator, device=bias.device, dtype=bias.dtype)
            means.copy_(mean[:, None] + sigma[:, None] * spread)
            log_sigmas.copy_((log_sigma / (1 - log_sigma.abs() / LARGEST_LOG_SIGMA))[:, None])
            return
        x = batch.x.flatten(1)
        counts = torch.stack([(x == level).sum(0) for level in range(self.spec.levels or 2)], dim=1) + 0.5
        log_counts = counts.to(bias.dtype).log()
        bias.copy_(log_counts[:, 1:] - log_counts[:, :1] if self.spec.kind == "binary" else log_counts.log_softmax(1))

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """Mean negative log-likelihood under one mask drawn for the batch."""
        mask = 0
        if self.net.masks > 1:
            mask = int(torch.randint(self.net.masks, (), generator=generator, device=generator.device))
        nll = -self._log_prob_under(batch.x, mask).mean()
        return nll, {"log_prob": -nll.detach()}

    def log_prob(self, x: Tensor) -> Float[Tensor, " b"]:
        """Exact log-likelihood of raw x (b, *shape), nats per example."""
        each = torch.stack([self._log_prob_under(x, mask) for mask in range(self.net.masks)])
        return each.logsumexp(0) - math.log(self.net.masks)

    def conditional_logits(self, x: Tensor) -> Float[Tensor, "b d p"]:
        """Parameters of the first mask's conditionals given raw x (b, *shape), dimensions in C order."""
        return self.net(self._inputs(x))

    def ordering(self) -> Int[Tensor, " d"]:
        """Position of each dimension in the first mask's order."""
        return self.net.positions[0]

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n exact samples, raw (n, *shape); each example draws its mask first."""
        device = self.net.positions.device
        if self.net.masks == 1:
            return self._sample_under(n, 0, generator)
        chosen = torch.randint(self.net.masks, (n,), generator=generator, device=device)
        x = torch.empty(n, *self.spec.shape, dtype=self.spec.dtype, device=device)
        for mask in chosen.unique().tolist():
            where = chosen == mask
            x[where] = self._sample_under(int(where.sum()), mask, generator)
        return x

    def _inputs(self, x: Tensor) -> Float[Tensor, "b d"]:
        return self.scaling(x).to(self.net.linear(0).bias.dtype).flatten(1)

    def _log_prob_under(self, x: Tensor, mask: int) -> Float[Tensor, " b"]:
        inputs = self._inputs(x)
        parameters = self.net(inputs, mask)
        if self.spec.kind == "binary":
            return -F.binary_cross_entropy_with_logits(parameters[..., 0], inputs, reduction="none").sum(1)
        if self.spec.kind == "discrete":
            index = x.flatten(1).long()
            return parameters.log_softmax(-1).gather(-1, index[..., None])[..., 0].sum(1)
        logits, mean, log_sigma = self._mixture(parameters.movedim(-1, 0))
        return (logits.log_softmax(0) + gaussian_log_density(inputs, mean, log_sigma)).logsumexp(0).sum(1)

    def _mixture(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, mean, log_sigma = parameters.unflatten(0, (3, self.components)).unbind(0)
        return logits, mean, log_sigma / (1 + log_sigma.abs() / LARGEST_LOG_SIGMA)

    def _sample_under(self, n: int, mask: int, generator: Generator | None) -> Tensor:
        noise = self.noise(n, generator)
        values = self.net.ancestral(n, lambda t, parameters: self.draw(parameters, noise[:, t]), mask)
        return self.scaling.inverse(values.reshape(n, *self.spec.shape))

    def noise(self, n: int, generator: Generator | None = None) -> Float[Tensor, "two d n"]:
        """The randomness of n samples: a uniform and, for real data, a standard normal for each dimension."""
        like = self.net.linear(0).bias
        uniform = torch.rand(self.spec.dim, n, generator=generator, device=like.device, dtype=like.dtype)
        if self.spec.kind != "real":
            return uniform[None]
        return torch.stack((uniform, torch.empty_like(uniform).normal_(generator=generator)))

    def draw(self, parameters: Float[Tensor, "p n"], noise: Float[Tensor, "two n"]) -> Float[Tensor, " n"]:
        """Values of one dimension, as the network sees them, from its parameters and its noise (inverse CDFs)."""
        if self.spec.kind == "binary":
            return (noise[0] < parameters[0].sigmoid()).to(noise.dtype)
        if self.spec.kind == "discrete":
            return _categorical(parameters, noise[0]) * self.scaling.step
        logits, mean, log_sigma = self._mixture(parameters)
        chosen = _categorical(logits, noise[0])[None]
        return (mean.gather(0, chosen) + log_sigma.gather(0, chosen).exp() * noise[1])[0]


def _categorical(logits: Float[Tensor, "k n"], uniform: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    cdf = logits.softmax(0).cumsum(0)
    return (uniform >= cdf[:-1]).sum(0)
