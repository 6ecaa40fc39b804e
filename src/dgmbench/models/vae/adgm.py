r"""Auxiliary deep generative models: M2 with an auxiliary variable a, which makes q(y, z | x) more than a Gaussian.

The class y and the style z are told of x through a draw a of q(a | x): under it q(y | x) and q(z | x, y) are mixtures.
The generative model says a again from what it has drawn, so that p(x) stays what it is without a:

    p(x, y, a, z) = p(y) N(z; 0, I) p(a | z, y, x) p(x | z, y),
    q(a, y, z | x) = q(a | x) q(y | a, x) q(z | a, y, x),
    labelled    log p(x, y) >= L(x, y) = E_q(a | x) L(x, y, a),
                L(x, y, a) = E_q(z | a, y, x)[log p(x | z, y) + log p(a | z, y, x)] - log q(a | x) + log p(y)
                             - KL(q(z | a, y, x) || N(0, I)),
    unlabelled  log p(x) >= U(x) = E_q(a | x)[sum_y q(y | a, x) (L(x, y, a) - log q(y | a, x))],
    loss = -E_data[L where y is known, else U] - label_weight E_labelled E_q(a | x)[log q(y | a, x)].

U is summed over all classes for each draw of a. With ``skip`` this is SDGM, the skip deep generative model, in which a
is a second layer of the generative model: p(a | z, y) p(x | a, z, y).

``classify`` is log E_q(a | x)[q(y | a, x)] at ``draws`` points of q(a | x) that are the same for every x. With a label,
``elbo`` and ``log_weights`` are of log p(x | y); without, ``log_weights`` draw y from q(y | a, x).

Shapes and units: x is raw (b, *shape), labels (b,), -1 where unknown, a (b, auxiliary), z (b, latent); nats per example
of raw x.

Paper: Maaloe, Soenderby, Soenderby, Winther, "Auxiliary Deep Generative Models", ICML 2016,
https://arxiv.org/abs/1602.05473.

What differs: the KL of z is in closed form, where the paper draws it; p(y) are the frequencies of the known labels; no
batch-norm, so that no example's value depends on others; tanh, or conv and resnet, in place of rectifiers. The first
expectation of the loss is over the data set, whatever share of a batch is labelled; ``label_weight`` is the paper's
beta.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.encoders import JoinedEncoder, NetName, build_decoder, build_encoder, mlp
from dgmbench.nn.gaussians import Moments, draw_normal, gaussian_kl, moments, standard
from dgmbench.nn.labels import (
    count_classes,
    draw_classes,
    label_bound,
    label_nll,
    labels_of,
    one_hot,
    population_mean,
    start_class_prior,
)
from dgmbench.nn.observation import ObservationName, build_observation, gaussian_log_density
from dgmbench.nn.scaling import Scaling


class Auxiliary(NamedTuple):
    """A draw of q(a | x), and the logarithms of its density and of q(y | a, x)."""

    a: Float[Tensor, "n a"]
    log_q: Float[Tensor, " n"]
    labels: Float[Tensor, "n c"]


class Adgm(Model):
    """Auxiliary deep generative model, or skip deep generative model (Maaloe et al. 2016).

    Args:
        spec: The data space, with labels.
        skip: p(x | a, z, y) p(a | z, y), the skip model, in place of p(x | z, y) p(a | z, y, x).
        net: Kind of encoders and decoder of x.
        hidden_sizes: Widths of the hidden layers, encoder order; the decoder mirrors them.
        channels: First width of conv and resnet.
        auxiliary: Dimensions of a.
        latent: Dimensions of z.
        label_weight: Weight of the loss of q(y | a, x) on labelled examples.
        samples: Draws of a and z for each example in one estimate of the bounds.
        draws: Points of q(a | x) over which ``classify`` averages.
        observation, sigma, components: p(x | z, y), as of ``Vae``.
    """

    class_log_prior: Tensor
    labelled_share: Tensor
    points: Tensor

    def __init__(
        self, spec: DataSpec, *, skip: bool = False, net: NetName = "auto", hidden_sizes: Sequence[int] = (500, 500),
        channels: int = 32, auxiliary: int = 100, latent: int = 100, label_weight: float = 0.1, samples: int = 1,
        draws: int = 100, observation: ObservationName = "auto", sigma: float | None = None, components: int = 5,
    ) -> None:  # fmt: skip
        super().__init__(spec)
        require(least=1, hidden_sizes=hidden_sizes, channels=channels, auxiliary=auxiliary, latent=latent)
        require(least=1, samples=samples, draws=draws, components=components)
        require(least=0, label_weight=label_weight)
        start_class_prior(self, spec)  # refuses data without labels
        classes, sizes = len(self.class_log_prior), tuple(hidden_sizes)
        self.latent, self.skip, self.samples, self.label_weight = latent, skip, samples, label_weight
        self.observation = build_observation(observation, spec, sigma=sigma, components=components)
        self.scaling = Scaling(spec, low=0.0)

        def joined(condition: int, features: int) -> JoinedEncoder:
            return JoinedEncoder(net, spec.shape, condition, features, hidden_sizes=sizes, channels=channels)

        self.encoder_a = build_encoder(net, spec.shape, 2 * auxiliary, hidden_sizes=sizes, channels=channels)
        self.classifier = joined(auxiliary, classes)
        self.encoder_z = joined(auxiliary + classes, 2 * latent)
        code = latent + classes
        self.decoder_a = mlp([code, *sizes[::-1], 2 * auxiliary]) if skip else joined(code, 2 * auxiliary)
        self.decoder = build_decoder(
            net, code + auxiliary * skip, self.observation.parameters_per_dim, spec.shape, hidden_sizes=sizes[::-1],
            channels=channels,
        )  # fmt: skip
        uniform = torch.quasirandom.SobolEngine(auxiliary, scramble=True, seed=0).draw(draws, dtype=torch.float64)
        self.register_buffer("points", torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)).float(), persistent=False)
        self.register_buffer("labelled_share", torch.ones(()))

    # ---- the five networks; the sixth is the prior ----

    def q_a(self, x: Tensor) -> Moments:
        """q(a | x) of raw x."""
        return moments(self.encoder_a(self._scaled(x)))

    def label_log_prob(self, x: Tensor, a: Float[Tensor, "b a"]) -> Float[Tensor, "b c"]:
        """Log q(y | a, x) of every label."""
        return cast(Tensor, self.classifier(self._scaled(x), a)).log_softmax(1)

    def q_z(self, x: Tensor, y: Tensor, a: Float[Tensor, "b a"]) -> Moments:
        """q(z | a, y, x)."""
        return moments(self.encoder_z(self._scaled(x), torch.cat([a, self._code(y)], 1)))

    def p_a(self, x: Tensor, y: Tensor, z: Float[Tensor, "b z"]) -> Moments:
        """p(a | z, y, x), or p(a | z, y) of the skip model."""
        code = torch.cat([z, self._code(y)], 1)
        return moments(self.decoder_a(code) if self.skip else self.decoder_a(self._scaled(x), code))

    def parameters_of_x(self, y: Tensor, z: Float[Tensor, "b z"], a: Float[Tensor, "b a"]) -> Tensor:
        """Those of p(x | z, y), or of p(x | a, z, y) of the skip model."""
        return cast(Tensor, self.decoder(torch.cat([z, self._code(y), *([a] if self.skip else [])], 1)))

    # ---- the bounds ----

    def draw_a(self, x: Tensor, generator: Generator | None) -> Auxiliary:
        """One draw of q(a | x) for each example."""
        q = self.q_a(x)
        a = draw_normal(q, 1, generator)[0]
        return Auxiliary(a, gaussian_log_density(a, *q).sum(1), self.label_log_prob(x, a))

    def log_ratio(
        self, x: Tensor, y: Tensor, a: Float[Tensor, "n a"], generator: Generator | None, *, closed: bool
    ) -> Float[Tensor, " n"]:
        """Log p(x, a, z | y) - log q(z | a, y, x) at a draw of z; ``closed`` takes the KL of z in closed form."""
        q = self.q_z(x, y, a)
        z = draw_normal(q, 1, generator)[0]
        of_x = self.observation.log_prob(self.parameters_of_x(y, z, a), x)
        of_a = gaussian_log_density(a, *self.p_a(x, y, z)).sum(1)
        if closed:
            return of_x + of_a - gaussian_kl(q, standard(z)).sum(1)
        return of_x + of_a + (gaussian_log_density(z, *standard(z)) - gaussian_log_density(z, *q)).sum(1)

    def labelled_bound(self, x: Tensor, y: Tensor, of: Auxiliary, generator: Generator | None) -> Float[Tensor, " n"]:
        """A draw of L(x, y)."""
        return self.log_ratio(x, y, of.a, generator, closed=True) - of.log_q + self.class_log_prior[y]

    def unlabelled_bound(self, x: Tensor, of: Auxiliary, generator: Generator | None) -> Float[Tensor, " n"]:
        """A draw of U(x): one of a, and of z for every label."""
        classes = len(self.class_log_prior)
        every = torch.arange(classes, device=x.device).repeat_interleave(len(x))
        each = self.log_ratio(_repeated(x, classes), every, of.a.repeat(classes, 1), generator, closed=True)
        bounds = each.view(classes, len(x)).T - of.log_q[:, None] + self.class_log_prior
        return label_bound(bounds, of.labels)

    # ---- training ----

    def batch_policy(self) -> BatchPolicy:
        """Half of every batch is labelled; the bounds are weighted as the data set is."""
        return BatchPolicy(labelled=0.5)

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Count the classes, and how many examples have a label."""
        count_classes(self.class_log_prior, batch.y)
        self.labelled_share.copy_((labels_of(batch) >= 0).double().mean())

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The negative bound over the data set, and the classifier's loss on what is labelled."""
        x, y = _repeated(batch.x, self.samples), labels_of(batch).repeat(self.samples)
        of, known = self.draw_a(x, generator), y >= 0
        bounds = torch.empty_like(of.log_q)
        if known.any():
            own = Auxiliary(*(each[known] for each in of))
            bounds[known] = self.labelled_bound(x[known], y[known], own, generator)
        if not known.all():
            own = Auxiliary(*(each[~known] for each in of))
            bounds[~known] = self.unlabelled_bound(x[~known], own, generator)
        bound, labels = population_mean(bounds, y, self.labelled_share), label_nll(of.labels, y)
        return self.label_weight * labels - bound, {"bound": bound.detach(), "labels": labels.detach()}

    # ---- use ----

    def elbo(self, x: Tensor, *, y: Tensor | None = None, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """One draw of the bound of log p(x) of raw x (b, *shape), or of log p(x | y)."""
        of = self.draw_a(x, generator)
        if y is None:
            return self.unlabelled_bound(x, of, generator)
        return self.labelled_bound(x, y, of, generator) - self.class_log_prior[y]

    def log_weights(
        self, x: Tensor, k: int, *, y: Tensor | None = None, generator: Generator | None = None
    ) -> Float[Tensor, "k b"]:
        """Draw k importance weights of raw x (b, *shape), over a, z and the label if it is not told."""
        many = _repeated(x, k)
        of = self.draw_a(many, generator)
        change = -of.log_q
        if y is None:
            labels = torch.multinomial(of.labels.exp(), 1, generator=generator)[:, 0]
            change = change + self.class_log_prior[labels] - of.labels.gather(1, labels[:, None])[:, 0]
        else:
            labels = y.repeat(k)
        return (change + self.log_ratio(many, labels, of.a, generator, closed=False)).view(k, len(x))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples, raw (n, *shape), of classes y (n,); by default these are drawn, too."""
        if y is None:
            y = draw_classes(self.class_log_prior, n, generator)
        z = draw_normal(standard(self.points.new_empty(n, self.latent)), 1, generator)[0]
        a = draw_normal(self.p_a(z, y, z), 1, generator)[0] if self.skip else z
        return self.observation.sample(self.parameters_of_x(y, z, a), generator=generator)

    def classify(self, x: Tensor) -> Float[Tensor, "b c"]:
        """Log q(y | x) of raw x (b, *shape), at fixed points of q(a | x)."""
        mean, log_sigma = self.q_a(x)
        total = mean.new_full((len(x), len(self.class_log_prior)), -torch.inf)
        for point in self.points:
            total = torch.logaddexp(total, self.label_log_prob(x, mean + log_sigma.exp() * point))
        return total - math.log(len(self.points))

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The mean of z under the most probable label and the mean of a, of raw x (b, *shape)."""
        return self.q_z(x, self.classify(x).argmax(1), self.q_a(x).mean).mean

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | z, y] at a draw of a and z under the most probable label, float (b, *shape) on the raw scale."""
        y, a = self.classify(x).argmax(1), draw_normal(self.q_a(x), 1, generator)[0]
        z = draw_normal(self.q_z(x, y, a), 1, generator)[0]
        return self.observation.mean(self.parameters_of_x(y, z, a))

    def _scaled(self, x: Tensor) -> Tensor:
        return self.scaling(x).to(self.points.dtype)

    def _code(self, y: Tensor) -> Float[Tensor, "b c"]:
        return one_hot(y, len(self.class_log_prior), self.points.dtype)


def _repeated(x: Tensor, k: int) -> Tensor:
    """The examples k times, one round after another."""
    return x.repeat(k, *[1] * (x.dim() - 1))
