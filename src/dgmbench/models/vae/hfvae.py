r"""HFVAE: the bound of a VAE with discrete and continuous codes in its four terms, the last of them taken apart twice.

Codes come in groups, such as a category beside a few real numbers. With p(z) the product of its dimensions and q(z) =
1/N sum_n q(z | x_n), the survey's four terms are, in the mean over the data,

    elbo = E log p(x | z)/p(x) - E log q(z | x)/q(z) - KL(q(z) || p(z)) - KL(q(x) || p(x)) + a constant,
           (1)                   (2)                   (4)                (3)

of which (1) and (3) together are the reconstruction E log p(x | z), and (4) has three parts, groups d, dimensions e:

    KL(q(z) || p(z)) = KL(q(z) || prod_d q(z_d)) + sum_d KL(q(z_d) || prod_e q(z_de)) + sum_de KL(q(z_de) || p(z_de)),
                       between groups (A)          within groups (i)                    of dimensions (ii)
    loss = -E log p(x | z) + alpha (2) + beta (A) + gamma (i) + (ii).

So dimensions of different groups can be kept apart more than those of one group. q(z), q(z_d) and q(z_de) are
estimated from the batch as in ``beta_tcvae`` (``nn/aggregate_posterior.py``).

A category has a uniform prior of K values and reaches the decoder as a one-hot vector c, of which log q(c | x) = sum_k
c_k log pi_k. While training c is a draw of a Concrete distribution, a point of the simplex (``nn/concrete.py``), which
tends to a one-hot vector, and the loss to that of true categories, as ``temperature`` goes to 0; ``elbo``,
``log_weights`` and ``sample`` have true categories.

Shapes and units: x is raw (b, *shape), continuous codes (b, sum of groups), a category (b, K), all terms in nats per
example. ``encode`` gives the means of the continuous codes and, behind them, the number of each likeliest category.

Paper: Esmaeili, Wu, Jain, Bozkurt, Siddharth, Paige, Brooks, Dy, van de Meent, "Structured Disentangled
Representations", AISTATS 2019, https://arxiv.org/abs/1804.02086. Concrete: Maddison, Mnih, Teh 2017,
https://arxiv.org/abs/1611.00712.

Different from the paper: p(z) is a product, so that its own dependence, which (A) and (i) subtract, is nothing. The
terms of a soft category are linear in c as above, where the paper's code takes densities of Concretes, whose KL at one
temperature is the same at every temperature and not that of the categories. Networks are those of the other VAEs here,
and the default weights, groups and categories are for the small shapes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Facts, Logs, Model
from dgmbench.nn.aggregate_posterior import Sampling, check_sampling, log_mixtures, log_shares
from dgmbench.nn.concrete import draw_concrete
from dgmbench.nn.encoders import NetName, build_decoder, build_encoder
from dgmbench.nn.gaussians import Moments, draw_normal, gaussian_kl, standard
from dgmbench.nn.labels import classes_of_noise, one_hot
from dgmbench.nn.observation import ObservationName, build_observation, gaussian_log_density
from dgmbench.nn.scaling import Scaling


class Posterior(NamedTuple):
    """q(z | x): moments (b, z) of the continuous part, and the logarithms (b, K) of every category's probabilities."""

    moments: Moments
    categories: tuple[Tensor, ...]


class Code(NamedTuple):
    """Codes: the continuous part (n, z), and of each category (n, K) a one-hot vector, or a soft one."""

    z: Float[Tensor, "n z"]
    categories: tuple[Tensor, ...]


class KlTerms(NamedTuple):
    """The terms of E KL(q(z | x) || p(z)), nats, at every code."""

    mutual_information: Float[Tensor, " n"]
    between_groups: Float[Tensor, " n"]
    within_groups: Float[Tensor, " n"]
    dimension_kl: Float[Tensor, " n"]


class Hfvae(Model):
    """Hierarchically factorised VAE (Esmaeili et al. 2019), for binary, discrete and real data.

    Args:
        spec: The data space.
        groups: Numbers of continuous dimensions that form a group; none without any.
        categories: Numbers of values of the categories, each a group of its own; none without any.
        alpha: Weight of the mutual information of codes and examples.
        beta: Weight of the dependence between groups.
        gamma: Weight of the dependence within groups.
        temperature: That of the Concrete distributions while training.
        sampling: How log q(z) is estimated, ``mws`` or ``mss``.
        net, hidden_sizes, channels, observation, sigma, components: As of ``Vae``.
    """

    examples: Tensor

    def __init__(
        self, spec: DataSpec, *, groups: Sequence[int] = (10,), categories: Sequence[int] = (3,), alpha: float = 1.0,
        beta: float = 3.0, gamma: float = 2.0, temperature: float = 0.66, sampling: Sampling = "mws",
        net: NetName = "auto", hidden_sizes: Sequence[int] = (200, 200), channels: int = 32,
        observation: ObservationName = "auto", sigma: float | None = None, components: int = 5,
    ) -> None:  # fmt: skip
        check_sampling(sampling)
        super().__init__(spec)
        require(least=0, alpha=alpha, beta=beta, gamma=gamma)
        require(above=0, temperature=temperature, sigma=sigma)
        require(least=1, hidden_sizes=hidden_sizes, channels=channels, groups=groups, components=components)
        require(least=2, categories=categories)
        if not groups and not categories:
            raise UserError("model.groups=[] and model.categories=[] leave no code; give at least one of them.")
        self.groups, self.categories = tuple(groups), tuple(categories)
        self.alpha, self.beta, self.gamma, self.temperature = alpha, beta, gamma, temperature
        self.sampling, self.latent = sampling, sum(self.groups)
        self.noise_dim = self.latent + len(self.categories)
        sizes, width = tuple(hidden_sizes), self.latent + sum(self.categories)
        self.observation = build_observation(observation, spec, sigma=sigma, components=components)
        self.scaling = Scaling(spec, low=0.0)
        self.encoder = build_encoder(net, spec.shape, width + self.latent, hidden_sizes=sizes, channels=channels)
        self.decoder = build_decoder(
            net, width, self.observation.parameters_per_dim, spec.shape, hidden_sizes=sizes[::-1], channels=channels
        )
        self.register_buffer("examples", torch.ones((), dtype=torch.int64))

    # ---- codes ----

    def posterior(self, x: Tensor) -> Posterior:
        """q(z | x) of raw x (b, *shape)."""
        features = self.encoder(self.scaling(x).to(self._dtype))
        mean, log_variance, *logits = features.split([self.latent, self.latent, *self.categories], 1)
        return Posterior(Moments(mean, 0.5 * log_variance), tuple(each.log_softmax(1) for each in logits))

    def draw(self, q: Posterior, generator: Generator | None, *, soft: bool = False) -> Code:
        """One draw of each posterior; ``soft`` gives categories as draws of their Concrete distributions."""
        z = draw_normal(q.moments, 1, generator)[0]
        if soft:
            found = [draw_concrete(each, self.temperature, generator) for each in q.categories]
        else:
            drawn = [torch.multinomial(each.exp(), 1, generator=generator)[:, 0] for each in q.categories]
            found = [one_hot(c, each.shape[1], z.dtype) for c, each in zip(drawn, q.categories, strict=True)]
        return Code(z, tuple(found))

    def log_densities(self, code: Code, q: Posterior) -> Float[Tensor, "... parts"]:
        """Log q of every part of the codes: continuous dimensions, then categories; leading dimensions broadcast."""
        both = zip(code.categories, q.categories, strict=True)
        of_categories = [(found * log_probs).sum(-1, keepdim=True) for found, log_probs in both]
        return torch.cat([gaussian_log_density(code.z, *q.moments), *of_categories], -1)

    def prior(self, like: Code) -> Posterior:
        """p(z) in the shape of codes."""
        uniform = [torch.zeros_like(each).log_softmax(-1) for each in like.categories]
        return Posterior(standard(like.z), tuple(uniform))

    def kl_terms(self, code: Code, q: Posterior, own: Tensor, shares: Tensor) -> KlTerms:
        """The terms at codes whose own log q(z | x) in parts is ``own`` (n, parts); q(z) is the mixture of q with
        logarithms of its shares (n, m).
        """

        def pairs(z: Tensor, *categories: Tensor) -> Tensor:
            at = Code(z[:, None], tuple(each[:, None] for each in categories))
            return self.log_densities(at, q)

        sizes = (*self.groups, *[1] * len(self.categories))
        found = log_mixtures(pairs, [code.z, *code.categories], shares, groups=sizes)
        groups, parts = found.groups.sum(1), found.parts.sum(1)
        prior = self.log_densities(code, self.prior(code)).sum(1)
        return KlTerms(own.sum(1) - found.whole, found.whole - groups, groups - parts, parts - prior)

    # ---- training ----

    def prepare(self, facts: Facts) -> None:
        """Take note of N."""
        self.examples.fill_(facts.examples)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The weighted terms at soft categories; logged are the terms."""
        q = self.posterior(batch.x)
        code = self.draw(q, generator, soft=True)
        shares = log_shares(self.sampling, len(batch.x), int(self.examples), code.z)
        terms = [each.mean() for each in self.kl_terms(code, q, self.log_densities(code, q), shares)]
        reconstruction = self.observation.log_prob(self._decoded(code), batch.x).mean()
        weights = (self.alpha, self.beta, self.gamma, 1.0)
        loss = sum((w * term for w, term in zip(weights, terms, strict=True)), -reconstruction)
        logged = {"reconstruction": reconstruction, **dict(zip(KlTerms._fields, terms, strict=True))}
        return loss, {name: value.detach() for name, value in logged.items()}

    # ---- use ----

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """One draw of the bound of raw x (b, *shape), with the KL in closed form."""
        q = self.posterior(x)
        code = self.draw(q, generator)
        kl = gaussian_kl(q.moments, standard(code.z)).sum(1)
        for each in q.categories:
            kl = kl + (each.exp() * (each - each.new_zeros(each.shape[1]).log_softmax(0))).sum(1)
        return self.observation.log_prob(self._decoded(code), x) - kl

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Float[Tensor, "k b"]:
        """Draw k importance weights of each raw x (b, *shape)."""
        once = self.posterior(x)
        q = Posterior(
            Moments(*(each.repeat(k, 1) for each in once.moments)), tuple(each.repeat(k, 1) for each in once.categories)
        )
        code = self.draw(q, generator)
        change = self.log_densities(code, self.prior(code)) - self.log_densities(code, q)
        parameters = self._decoded(code).unflatten(0, (k, len(x)))
        return self.observation.log_prob(parameters, x) + change.sum(1).view(k, len(x))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples from the prior through the decoder, raw (n, *shape)."""
        noise = torch.randn(n, self.noise_dim, generator=generator, device=self.examples.device, dtype=self._dtype)
        return self.sample_given(noise, generator=generator)

    def log_prob_given(self, x: Tensor, noise: Float[Tensor, "b z"]) -> Float[Tensor, " b"]:
        """Log p(x | z) of raw x (b, *shape) at z = noise, categories by the quantiles of its last numbers."""
        return self.observation.log_prob(self._decoded(self._of_noise(noise)), x)

    @torch.no_grad()
    def sample_given(self, noise: Float[Tensor, "b z"], *, generator: Generator | None = None) -> Tensor:
        """Draw x, raw (b, *shape), from p(x | z) at z = noise."""
        return self.observation.sample(self._decoded(self._of_noise(noise)), generator=generator)

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The means of the continuous codes and the number of every likeliest category, of raw x (b, *shape)."""
        q = self.posterior(x)
        return torch.cat([q.moments.mean, *(each.argmax(1, keepdim=True).to(self._dtype) for each in q.categories)], 1)

    def decode(self, code: Float[Tensor, "b z"]) -> Tensor:
        """E[x | z], float (b, *shape) on the raw scale; numbers of categories are rounded."""
        z, *numbers = code.to(self._dtype).split([self.latent, *[1] * len(self.categories)], 1)
        found = [
            one_hot(each[:, 0].round().clamp(0, size - 1), size, z.dtype)
            for each, size in zip(numbers, self.categories, strict=True)
        ]
        return self.observation.mean(self._decoded(Code(z, tuple(found))))

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | z] at a draw z ~ q(z | x), float (b, *shape) on the raw scale."""
        return self.observation.mean(self._decoded(self.draw(self.posterior(x), generator)))

    def _of_noise(self, noise: Float[Tensor, "b z"]) -> Code:
        z, *rest = noise.to(self._dtype).split([self.latent, *[1] * len(self.categories)], 1)
        found = [
            one_hot(classes_of_noise(each.new_zeros(size).log_softmax(0), each[:, 0]), size, each.dtype)
            for each, size in zip(rest, self.categories, strict=True)
        ]
        return Code(z, tuple(found))

    def _decoded(self, code: Code) -> Tensor:
        found: Tensor = self.decoder(torch.cat([code.z, *code.categories], 1))
        return found

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype
