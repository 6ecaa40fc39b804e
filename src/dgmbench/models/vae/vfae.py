r"""The variational fair autoencoder: codes that tell a task's label and not a sensitive attribute.

The generative model is given the attribute s, so that the code z_1 need not say it, and a penalty compares the codes of
the two groups. Above z_1 stand the label t and what it leaves open, z_2:

    p(x, z_1, z_2 | s, t) = N(z_2; 0, I) p(z_1 | z_2, t) p(x | z_1, s),
    q(z_1, z_2 | x, s, t) = q(z_1 | x, s) q(z_2 | z_1, t),
    L = E_q[log p(x | z_1, s) + log p(z_1 | z_2, t) - log q(z_1 | x, s) - KL(q(z_2 | z_1, t) || N(0, I))]
      <= log p(x | s, t),
    loss = -L - label_weight E_q[log q(t | z_1)] + mmd_weight MMD^2(z_1 where s = 0, z_1 where s = 1),

MMD^2 by random Fourier features of a Gaussian kernel, drawn anew for every batch, on draws of q(z_1 | x, s). Where the
two groups' codes have one distribution, nothing tells s from them.

``elbo`` and ``log_weights`` without a label are of log p(x) = log sum_y p(y) p(x | y), y = (s, t). Held out: the bound
given the label, how often q(t | z_1) is right, and how often a logistic regression tells s, beside the share of the
larger group; both see a draw of z_1, and the regression is fitted to draws of the training set. (Means of z_1 can tell
more: there, no noise hides a small difference.)

Shapes and units: x is raw (b, *shape), labels (b,) number (s, t), z_1 and z_2 are (b, latent); nats per example.

Paper: Louizos, Swersky, Li, Welling, Zemel, "The Variational Fair Autoencoder", ICLR 2016,
https://arxiv.org/abs/1511.00830.

What differs: labels come as pairs, so examples of which t alone is unknown are not used; s has two values; the
frequencies of (s, t) take the place of p(t) and the given s; tanh in place of rectifiers. The kernel's bandwidth is the
median distance of a batch's codes, through which no gradient goes, so that the penalty does not depend on their scale.
``conditioned=False`` leaves s out of both networks of x, for comparison.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model
from dgmbench.models.tasks import HeldOut
from dgmbench.nn.encoders import build_decoder, build_encoder, mlp
from dgmbench.nn.gaussians import Moments, draw_normal, gaussian_kl, moments, standard
from dgmbench.nn.labels import (
    count_classes,
    draw_classes,
    factor_of,
    label_nll,
    labels_of,
    marginal,
    one_hot,
    start_class_prior,
)
from dgmbench.nn.logistic_probe import fit_logistic
from dgmbench.nn.mmd import median_distance
from dgmbench.nn.observation import ObservationName, build_observation, gaussian_log_density
from dgmbench.nn.random_features import draw_features, feature_mmd_squared
from dgmbench.nn.scaling import Scaling


class Vfae(Model):
    """Variational fair autoencoder (Louizos et al. 2016).

    Args:
        spec: The data space, whose labels have the factors ``sensitive``, of two values, and ``target``.
        hidden_sizes: Widths of the hidden layers, encoder order; the decoder mirrors them.
        latent: Dimensions of z_1 and of z_2.
        label_weight: Weight of the loss of q(t | z_1).
        mmd_weight: Weight of the penalty, per example.
        features: Random features of one estimate of the penalty.
        conditioned: Whether q(z_1 | x, s) and p(x | z_1, s) are given s.
        observation, sigma, components: p(x | z_1, s), as of ``Vae``.
    """

    class_log_prior: Tensor
    probe: Tensor
    larger: Tensor

    def __init__(
        self, spec: DataSpec, *, hidden_sizes: Sequence[int] = (60,), latent: int = 50, label_weight: float = 1.0,
        mmd_weight: float = 100.0, features: int = 500, conditioned: bool = True,
        observation: ObservationName = "auto", sigma: float | None = None, components: int = 5,
    ) -> None:  # fmt: skip
        super().__init__(spec)
        require(least=1, hidden_sizes=hidden_sizes, latent=latent, features=features, components=components)
        require(least=0, label_weight=label_weight, mmd_weight=mmd_weight)
        start_class_prior(self, spec)  # refuses data without labels
        factors = dict(spec.factors or ())
        if factors.get("sensitive") != 2 or "target" not in factors:
            raise UserError(
                "The model needs labels with the factors sensitive, of two values, and target, and these data have "
                f"{', '.join(f'{name} ({size})' for name, size in factors.items()) or 'none'}; choose "
                "data=fairness_tabular, say."
            )
        self.latent, self.targets, self.features, self.conditioned = latent, factors["target"], features, conditioned
        self.label_weight, self.mmd_weight = label_weight, mmd_weight
        self.observation = build_observation(observation, spec, sigma=sigma, components=components)
        self.scaling = Scaling(spec, low=0.0)
        sizes, code = tuple(hidden_sizes), latent + self.targets
        self.encoder_1 = build_encoder("mlp", (spec.dim + 1,), 2 * latent, hidden_sizes=sizes)
        self.classifier = mlp([latent, *sizes, self.targets])
        self.encoder_2 = mlp([code, *sizes, 2 * latent])
        self.decoder_1 = mlp([code, *sizes[::-1], 2 * latent])
        per_dim = self.observation.parameters_per_dim
        self.decoder = build_decoder("mlp", latent + 1, per_dim, spec.shape, hidden_sizes=sizes[::-1])
        self.register_buffer("probe", torch.zeros(latent + 1))
        self.register_buffer("larger", torch.zeros((), dtype=torch.int64))

    # ---- the five networks; the sixth is the prior ----

    def q_1(self, x: Tensor, s: Tensor) -> Moments:
        """q(z_1 | x, s) of raw x."""
        flat = self.scaling(x).to(self.probe.dtype).flatten(1)
        return moments(self.encoder_1(torch.cat([flat, self._attribute(s)], 1)))

    def target_log_prob(self, z: Float[Tensor, "b z"]) -> Float[Tensor, "b t"]:
        """Log q(t | z_1) of every t."""
        scores: Tensor = self.classifier(z)
        return scores.log_softmax(1)

    def q_2(self, z: Float[Tensor, "b z"], t: Tensor) -> Moments:
        """q(z_2 | z_1, t)."""
        return moments(self.encoder_2(torch.cat([z, one_hot(t, self.targets, z.dtype)], 1)))

    def p_1(self, z: Float[Tensor, "b z"], t: Tensor) -> Moments:
        """p(z_1 | z_2, t)."""
        return moments(self.decoder_1(torch.cat([z, one_hot(t, self.targets, z.dtype)], 1)))

    def parameters_of_x(self, z: Float[Tensor, "b z"], s: Tensor) -> Tensor:
        """Those of p(x | z_1, s)."""
        found: Tensor = self.decoder(torch.cat([z, self._attribute(s)], 1))
        return found

    def _attribute(self, s: Tensor) -> Float[Tensor, "b 1"]:
        return (s.to(self.probe.dtype) * self.conditioned)[:, None]

    def sensitive(self, y: Tensor) -> Tensor:
        """s (b,) of labels y (b,); -1 stays unknown."""
        return factor_of(y, self.spec, "sensitive")

    def target(self, y: Tensor) -> Tensor:
        """t (b,) of labels y (b,); -1 stays unknown."""
        return factor_of(y, self.spec, "target")

    # ---- bound and loss ----

    def bound_at(
        self, x: Tensor, y: Tensor, z: Float[Tensor, "b z"], q: Moments, generator: Generator | None, *, closed: bool
    ) -> Float[Tensor, " b"]:
        """A draw of L at z_1 from q; ``closed`` takes the KL of z_2 in closed form."""
        t = self.target(y)
        q_2 = self.q_2(z, t)
        z_2 = draw_normal(q_2, 1, generator)[0]
        of_x = self.observation.log_prob(self.parameters_of_x(z, self.sensitive(y)), x)
        of_z = gaussian_log_density(z, *self.p_1(z_2, t)) - gaussian_log_density(z, *q)
        if closed:
            return of_x + (of_z - gaussian_kl(q_2, standard(z_2))).sum(1)
        return of_x + (of_z + gaussian_log_density(z_2, *standard(z_2)) - gaussian_log_density(z_2, *q_2)).sum(1)

    def penalty(self, z: Float[Tensor, "b z"], s: Tensor, generator: Generator | None) -> Float[Tensor, ""]:
        """MMD^2 between the codes of the two groups; 0 where a batch has one of them alone."""
        groups = z[s == 0], z[s == 1]
        if min(map(len, groups)) == 0:
            return z.new_zeros(())
        return feature_mmd_squared(*groups, draw_features(z, self.features, float(median_distance(z)), generator))

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Count the combinations of attribute and label."""
        count_classes(self.class_log_prior, batch.y)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The negative bound, the loss of the label, and the penalty."""
        y = labels_of(batch)
        s = self.sensitive(y)
        q = self.q_1(batch.x, s)
        z = draw_normal(q, 1, generator)[0]
        bound = self.bound_at(batch.x, y, z, q, generator, closed=True).mean()
        labels, apart = label_nll(self.target_log_prob(z), self.target(y)), self.penalty(z, s, generator)
        loss = self.label_weight * labels + self.mmd_weight * apart - bound
        return loss, {"bound": bound.detach(), "labels": labels.detach(), "mmd": apart.detach()}

    def settle(self, batches: Iterator[Batch], generator: Generator) -> None:
        """Fit the probe of s to draws of z_1 of the training set."""
        codes, attributes = [], []
        for batch in batches:
            s = self.sensitive(labels_of(batch))
            known = s >= 0
            codes.append(draw_normal(self.q_1(batch.x[known], s[known]), 1, generator)[0])
            attributes.append(s[known])
        s = torch.cat(attributes)
        self.probe.copy_(fit_logistic(torch.cat(codes), s))
        self.larger.copy_(2 * s.sum() > len(s))

    # ---- use ----

    def elbo(self, x: Tensor, *, y: Tensor | None = None, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """One draw of a bound of log p(x | y) of raw x (b, *shape), or, without a label, of log p(x)."""
        if y is None:
            return marginal(lambda label: self.elbo(x, y=label, generator=generator), self.class_log_prior, len(x))
        q = self.q_1(x, self.sensitive(y))
        return self.bound_at(x, y, draw_normal(q, 1, generator)[0], q, generator, closed=True)

    def log_weights(
        self, x: Tensor, k: int, *, y: Tensor | None = None, generator: Generator | None = None
    ) -> Float[Tensor, "k b"]:
        """Draw k importance weights of raw x (b, *shape), of p(x | y) or p(x)."""
        if y is None:
            return marginal(lambda to: self.log_weights(x, k, y=to, generator=generator), self.class_log_prior, len(x))
        many, labels = x.repeat(k, *[1] * (x.dim() - 1)), y.repeat(k)
        q = self.q_1(many, self.sensitive(labels))
        z = draw_normal(q, 1, generator)[0]
        return self.bound_at(many, labels, z, q, generator, closed=False).view(k, len(x))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples, raw (n, *shape), of labels y (n,); by default these are drawn, too."""
        if y is None:
            y = draw_classes(self.class_log_prior, n, generator)
        z_2 = draw_normal(standard(self.probe.new_empty(n, self.latent)), 1, generator)[0]
        z_1 = draw_normal(self.p_1(z_2, self.target(y)), 1, generator)[0]
        return self.observation.sample(self.parameters_of_x(z_1, self.sensitive(y)), generator=generator)

    def objectives(self) -> dict[str, HeldOut]:
        """The bound given the label; then how well the label, and how well the attribute, is told by the code."""
        share = HeldOut("share", "lower")
        return {
            "bound_given_labels": HeldOut("nats", "higher", "lower bound"),
            "target_accuracy": HeldOut("share", "higher"),
            "sensitive_accuracy": share,
            "sensitive_accuracy_over_larger_group": share,
        }

    @torch.no_grad()
    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> dict[str, Tensor]:
        """These of each example; NaN where the label is not known."""
        y = labels_of(batch)
        known = y >= 0
        told = y.clamp(min=0)
        s, t = self.sensitive(told), self.target(told)
        z = draw_normal(self.q_1(batch.x, s), 1, generator)[0]
        right = ((z @ self.probe[:-1] + self.probe[-1] > 0).long() == s).to(z)
        found = {
            "bound_given_labels": self.elbo(batch.x, y=told, generator=generator),
            "target_accuracy": (self.target_log_prob(z).argmax(1) == t).to(z),
            "sensitive_accuracy": right,
            "sensitive_accuracy_over_larger_group": right - (s == self.larger).to(z),
        }
        return {name: value.where(known, torch.nan) for name, value in found.items()}
