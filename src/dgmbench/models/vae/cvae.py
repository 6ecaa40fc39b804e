r"""Conditional variational autoencoder: a VAE of x under a condition c, a label or what the data give.

The condition enters encoder, decoder and prior, so that z is left with what c does not say. GSNN (the Gaussian
stochastic network) is the same generator trained on draws of its prior alone, which is what a prediction uses; the
hybrid objective mixes the two:

    elbo(x | c) = E_q[log p(x | z, c)] - KL(q(z | x, c) || p(z | c)) <= log p(x | c),
    gsnn(x | c) = E_p(z | c)[log p(x | z, c)] <= log p(x | c),
    loss = -E_data[alpha elbo + (1 - alpha) gsnn].

gsnn is the elbo of q(z | x, c) = p(z | c), so ``alpha=0`` is a model without recognition network, which proposes from
its prior. q and p(z | c) are diagonal Gaussians, or p(z | c) = N(0, I) without ``learned_prior``. While training, the
condition is shifted by Gaussian noise of ``input_noise``.

Of labelled data p(x) = sum_y p(y) p(x | y), with the labels' frequencies; ``log_weights`` without y are its weights
sum_y p(y) w_y, w_y those of p(x | y), and ``elbo`` without y the mean of their logarithm. ``log_prob_by_prior`` is the
estimate log 1/k sum_i p(x | z_i, c), z_i ~ p(z | c), of published conditional likelihoods.

Shapes and units: x is raw (b, *shape), labels (b,), conditions raw (b, *given shape), z (b, latent); nats per example
of raw x.

Paper: Sohn, Lee, Yan, "Learning Structured Output Representation using Deep Conditional Generative Models",
NIPS 2015, https://papers.nips.cc/paper/5775-learning-structured-output-representation-using-deep-conditional-generative-models.

What differs: the encoders' sizes are those of ``vae``; there is no recurrent connection from a first, deterministic
prediction; the networks see labels as one-hot vectors, and a picture that is given as a vector of its pixels.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs
from dgmbench.models.vae.vae import ElboModel
from dgmbench.nn.encoders import JoinedEncoder, NetName, build_decoder, mlp
from dgmbench.nn.gaussians import Moments, draw_normal, gaussian_kl, moments, standard
from dgmbench.nn.labels import count_classes, draw_classes, labelled_part, marginal, one_hot, start_class_prior
from dgmbench.nn.observation import ObservationName, build_observation, gaussian_log_density
from dgmbench.nn.scaling import Scaling


class Cvae(ElboModel):
    """Conditional variational autoencoder (Sohn, Lee, Yan 2015).

    Args:
        spec: The data space, with a condition or with labels.
        net: Kind of encoder and decoder.
        hidden_sizes: Widths of the mlp's hidden layers, encoder order, and of the prior's; the decoder mirrors them.
        channels: First width of conv and resnet.
        latent: Dimensions of z.
        learned_prior: p(z | c) from a network of the condition; else N(0, I).
        alpha: Weight of the bound in the hybrid objective, the rest is GSNN's; from 0 to 1.
        input_noise: Standard deviation of the noise on the condition while training, where its values span 1.
        observation, sigma, components, samples, kl_warmup, free_bits: as of ``Vae``.
    """

    class_log_prior: Tensor

    def __init__(
        self, spec: DataSpec, *, net: NetName = "auto", hidden_sizes: Sequence[int] = (200, 200), channels: int = 32,
        latent: int = 50, learned_prior: bool = True, alpha: float = 1.0, input_noise: float = 0.0,
        observation: ObservationName = "auto", sigma: float | None = None, components: int = 5, samples: int = 1,
        kl_warmup: int = 0, free_bits: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(spec, samples=samples, kl_warmup=kl_warmup, free_bits=free_bits)
        require(least=1, hidden_sizes=hidden_sizes, channels=channels, latent=latent, components=components)
        require(least=0, most=1, alpha=alpha)
        require(least=0, input_noise=input_noise)
        if spec.given is None:
            start_class_prior(self, spec)  # refuses data without labels
            condition = len(self.class_log_prior)
        elif spec.given.kind in ("binary", "discrete", "real"):
            self.given_scaling, condition = Scaling(spec.given, low=0.0), spec.given.dim
        else:
            raise UserError(f"A CVAE takes binary, discrete or real conditions, not {spec.given}; choose other data.")
        self.latent = self.noise_dim = latent
        self.alpha, self.input_noise = alpha, input_noise
        sizes = tuple(hidden_sizes)
        self.observation = build_observation(observation, spec, sigma=sigma, components=components)
        self.scaling = Scaling(spec, low=0.0)
        self.encoder = (
            JoinedEncoder(net, spec.shape, condition, 2 * latent, hidden_sizes=sizes, channels=channels)
            if alpha > 0
            else None
        )
        self.prior = mlp([condition, *sizes, 2 * latent]) if learned_prior else None
        self.decoder = build_decoder(
            net, latent + condition, self.observation.parameters_per_dim, spec.shape, hidden_sizes=sizes[::-1],
            channels=channels,
        )  # fmt: skip

    # ---- the networks under a code (b, c) of the condition ----

    def code(self, y: Tensor | None, given: Tensor | None) -> Float[Tensor, "b c"]:
        """What the networks see of labels (b,), or of raw conditions (b, *given shape)."""
        if self.spec.given is None:
            assert y is not None
            return one_hot(y, len(self.class_log_prior), self._dtype)
        if given is None:
            raise UserError("This CVAE models x given a condition: name it, given=(b, *given shape).")
        return self.given_scaling(given).to(self._dtype).flatten(1)

    def prior_moments(self, code: Float[Tensor, "b c"]) -> Moments:
        """Mean and log sigma of p(z | c)."""
        if self.prior is None:
            return standard(code.new_empty(len(code), self.latent))
        return moments(self.prior(code))

    def posterior_moments(self, x: Tensor, code: Float[Tensor, "b c"]) -> Moments:
        """Mean and log sigma of the proposal: q(z | x, c), or p(z | c) of a model without recognition network."""
        if self.encoder is None:
            return self.prior_moments(code)
        return moments(self.encoder(self.scaling(x).to(self._dtype), code))

    def log_likelihood(self, x: Tensor, z: Float[Tensor, "k b z"], code: Float[Tensor, "b c"]) -> Float[Tensor, "k b"]:
        """Log p(x | z, c) of raw x (b, *shape) at k draws of z."""
        both = torch.cat([z, code.expand(len(z), -1, -1)], 2)
        return self.observation.log_prob(self.decoder(both.flatten(0, 1)).unflatten(0, z.shape[:2]), x)

    def terms(
        self, x: Tensor, code: Float[Tensor, "b c"], samples: int, generator: Generator | None
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b z"]]:
        """Reconstruction term, averaged over ``samples`` draws of z, and the KL of each dimension in closed form."""
        q = self.posterior_moments(x, code)
        z = draw_normal(q, samples, generator)
        return self.log_likelihood(x, z, code).mean(0), gaussian_kl(q, self.prior_moments(code))

    def weights(
        self, x: Tensor, code: Float[Tensor, "b c"], k: int, generator: Generator | None
    ) -> Float[Tensor, "k b"]:
        """Log p(x, z | c) - log q(z | x, c) at k draws of z."""
        q, prior = self.posterior_moments(x, code), self.prior_moments(code)
        z = draw_normal(q, k, generator)
        change = gaussian_log_density(z, *prior) - gaussian_log_density(z, *q)
        return self.log_likelihood(x, z, code) + change.sum(-1)

    # ---- training ----

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Count the classes where labels are the condition."""
        if self.spec.given is None:
            count_classes(self.class_log_prior, batch.y)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The negative of the hybrid objective over the examples whose condition is known."""
        batch = labelled_part(batch) if self.spec.given is None else batch
        if self.spec.given is None and batch.y is None:
            raise UserError("cvae needs labels with every batch, and this one has none.")
        code = self.code(batch.y, batch.given)
        if self.input_noise:
            code = draw_normal(Moments(code, torch.full_like(code, math.log(self.input_noise))), 1, generator)[0]
        loss, logs = self.objective(*self.terms(batch.x, code, self.samples, generator))
        if 0 < self.alpha < 1:
            gsnn = self.by_prior(batch.x, code, self.samples, generator).mean()
            loss = self.alpha * loss - (1 - self.alpha) * gsnn
            logs = {**logs, "gsnn": gsnn.detach()}
        return loss, logs

    def by_prior(
        self, x: Tensor, code: Float[Tensor, "b c"], k: int, generator: Generator | None
    ) -> Float[Tensor, "k b"]:
        """Log p(x | z, c) at k draws of the prior p(z | c)."""
        return self.log_likelihood(x, draw_normal(self.prior_moments(code), k, generator), code)

    # ---- use ----

    def log_weights(
        self, x: Tensor, k: int, *, y: Tensor | None = None, given: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "k b"]:  # fmt: skip
        """Draw k importance weights of each raw x (b, *shape) under its condition, or of p(x) without label."""
        if self.spec.given is None and y is None:
            return marginal(
                lambda label: self.weights(x, self.code(label, None), k, generator), self.class_log_prior, len(x)
            )
        return self.weights(x, self.code(y, given), k, generator)

    def elbo(
        self, x: Tensor, *, y: Tensor | None = None, given: Tensor | None = None, generator: Generator | None = None
    ) -> Float[Tensor, " b"]:
        """One draw of the bound of log p(x | c) of raw x (b, *shape), or of log p(x) without label."""
        if self.spec.given is None and y is None:
            return self.log_weights(x, 1, generator=generator)[0]
        reconstruction, kl = self.terms(x, self.code(y, given), 1, generator)
        return reconstruction - kl.sum(1)

    def log_prob_by_prior(
        self, x: Tensor, k: int, *, y: Tensor | None = None, given: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, " b"]:  # fmt: skip
        """log 1/k sum_i p(x | z_i, c) with z_i ~ p(z | c), whose mean is a lower bound of log p(x | c)."""
        return self.by_prior(x, self.code(y, given), k, generator).logsumexp(0) - math.log(k)

    @torch.no_grad()
    def sample(
        self, n: int, y: Tensor | None = None, *, given: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Draw n examples, raw (n, *shape), under labels (n,) (by default drawn, too) or under what is given."""
        if self.spec.given is None and y is None:
            y = draw_classes(self.class_log_prior, n, generator)
        code = self.code(y, given)
        z = draw_normal(self.prior_moments(code), 1, generator)
        return self.observation.sample(self._decoded(z[0], code), generator=generator)

    def log_prob_given(
        self, x: Tensor, noise: Float[Tensor, "b z"], *, given: Tensor | None = None
    ) -> Float[Tensor, " b"]:
        """Log p(x | noise) of raw x (b, *shape), z the prior's mean + sigma * noise; of labels the mixture."""
        if self.spec.given is None:
            return marginal(
                lambda label: self._at_noise(x, noise, self.code(label, None)), self.class_log_prior, len(x)
            )
        return self._at_noise(x, noise, self.code(None, given))

    @torch.no_grad()
    def sample_given(
        self, noise: Float[Tensor, "b z"], *, given: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Draw x, raw (b, *shape), at the noise of z; the label, where there is one, from its prior."""
        y = draw_classes(self.class_log_prior, len(noise), generator) if self.spec.given is None else None
        code = self.code(y, given)
        return self.observation.sample(self._decoded(self._z(noise, code), code), generator=generator)

    def encode(self, x: Tensor, *, y: Tensor | None = None, given: Tensor | None = None) -> Float[Tensor, "b z"]:
        """The mean of q(z | x, c) of raw x (b, *shape); without label under the most probable one."""
        return self.posterior_moments(x, self._known_code(x, y, given))[0]

    def reconstruct(
        self, x: Tensor, *, y: Tensor | None = None, given: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """E[x | z, c] at a draw z ~ q(z | x, c), float (b, *shape) on the raw scale; as of ``encode`` without label."""
        code = self._known_code(x, y, given)
        z = draw_normal(self.posterior_moments(x, code), 1, generator)[0]
        return self.observation.mean(self._decoded(z, code))

    def _known_code(self, x: Tensor, y: Tensor | None, given: Tensor | None) -> Float[Tensor, "b c"]:
        """The code of the condition; of labels that are not told, that of the most probable one."""
        if self.spec.given is None and y is None:
            y = self._label_scores(x).argmax(1)
        return self.code(y, given)

    def _label_scores(self, x: Tensor) -> Float[Tensor, "b k"]:
        """log p(y) plus the bound of log p(x | y) with the mean of q(z | x, y) as its draw, for every label y."""
        columns = []
        for label in range(len(self.class_log_prior)):
            code = self.code(torch.full((len(x),), label, device=x.device), None)
            q = self.posterior_moments(x, code)
            kl = gaussian_kl(q, self.prior_moments(code)).sum(1)
            columns.append(self.log_likelihood(x, q.mean[None], code)[0] - kl)
        return torch.stack(columns, 1) + self.class_log_prior

    def _z(self, noise: Float[Tensor, "b z"], code: Float[Tensor, "b c"]) -> Float[Tensor, "b z"]:
        mean, log_sigma = self.prior_moments(code)
        return mean + log_sigma.exp() * noise.to(self._dtype)

    def _at_noise(self, x: Tensor, noise: Tensor, code: Tensor) -> Float[Tensor, " b"]:
        return self.log_likelihood(x, self._z(noise, code)[None], code)[0]

    def _decoded(self, z: Float[Tensor, "b z"], code: Float[Tensor, "b c"]) -> Tensor:
        return self.decoder(torch.cat([z, code], 1))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype
