r"""Semi-supervised VAEs: a few labels and many examples without one, in the models M1, M2 and M1+M2 of one paper.

M1 is a VAE whose codes a classifier learns from. In M2 the class y is a latent variable beside the style z, known for
some examples and inferred by q(y | x) for the others:

    p(x, y, z) = p(y) N(z; 0, I) p(x | y, z),      q(y, z | x) = q(y | x) q(z | x, y),
    labelled    log p(x, y) >= L(x, y) = E_q(z | x, y)[log p(x | y, z)] + log p(y) - KL(q(z | x, y) || N(0, I)),
    unlabelled  log p(x) >= U(x) = sum_y q(y | x) L(x, y) + H(q(y | x)) <= logsumexp_y L(x, y),
    loss = -E_data[L where y is known, else U] - label_weight E_labelled[log q(y | x)].

U is summed over all classes. It equals its own upper limit where q(y | x) is proportional to exp L(x, y). The first
expectation is over the data set, whatever share of a batch is labelled. M1+M2 is M2 with the codes z_1 of M1 as its x,

    p(x, z_1, y, z_2) = p(y) N(z_2; 0, I) p(z_1 | y, z_2) p(x | z_1),

trained after M1 and with M1 held fixed, on draws of q(z_1 | x).

``elbo`` without a label draws z alone; ``log_weights`` without one draw y, too, from q(y | x). With a label both are of
log p(x | y). M1 has no classes: there the label counts for ``classify`` alone.

Shapes and units: x is raw (b, *shape), labels (b,), -1 where unknown, z (b, latent); nats per example of raw x.

Paper: Kingma, Rezende, Mohamed, Welling, "Semi-supervised Learning with Deep Generative Models", NIPS 2014,
https://arxiv.org/abs/1406.5298.

What differs: M1's classifier is a softmax of the code's mean, where the paper takes a transductive SVM, and it learns
beside the VAE, into which its gradient does not reach; sigma of q(z | x, y) may depend on y; p(y) are the
frequencies of the known labels; networks are those of ``vae``, where the paper has softplus units in layers of 500.
``label_weight`` is the paper's alpha / N.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model, Stage
from dgmbench.models.vae.m2 import M2
from dgmbench.models.vae.vae import Vae
from dgmbench.nn.encoders import NetName
from dgmbench.nn.gaussians import Moments, draw_normal, standard
from dgmbench.nn.labels import class_count, label_nll, labels_of, population_mean
from dgmbench.nn.observation import ObservationName, gaussian_log_density

Variant = Literal["m1", "m2", "m1+m2"]


class CodeClassifier(nn.Module):
    """What M1 has above its codes z ~ N(0, I): a softmax of the code, of which no code depends."""

    class_log_prior = None

    def __init__(self, latent: int, classes: int) -> None:
        super().__init__()
        self.net = nn.Linear(latent, classes)

    def label_log_prob(self, z: Float[Tensor, "b z"]) -> Float[Tensor, "b c"]:
        """Log q(y | z) of every label."""
        return self.net(z).log_softmax(1)

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Nothing to count."""

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """-log q(y | z) of what is labelled."""
        labels = label_nll(self.label_log_prob(batch.x), labels_of(batch))
        return labels, {"labels": labels.detach()}

    def elbo(self, z: Tensor, *, y: Tensor | None = None, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """log N(z; 0, I), exact and the same under every label."""
        return gaussian_log_density(z, *standard(z)).sum(1)

    def log_weights(
        self, z: Tensor, k: int, *, y: Tensor | None = None, generator: Generator | None = None
    ) -> Float[Tensor, "k b"]:
        """The same, k times."""
        return self.elbo(z).expand(k, -1)

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Float[Tensor, "n z"]:
        """Draw n codes."""
        weight = self.net.weight
        return torch.randn(n, weight.shape[1], generator=generator, device=weight.device, dtype=weight.dtype)


class Ssvae(Model):
    """Semi-supervised variational autoencoder (Kingma et al. 2014).

    Args:
        spec: The data space, with labels.
        variant: ``m2``; ``m1``, a VAE and a classifier of its codes; or ``m1+m2``, M2 on the codes of M1.
        net: Kind of encoders and decoders of x.
        hidden_sizes: Widths of the hidden layers, encoder order; the decoder mirrors them.
        channels: First width of conv and resnet.
        latent: Dimensions of z, and of z_1 where there are two.
        label_weight: Weight of the loss of q(y | x) on labelled examples; M1's classifier has no other.
        observation, sigma, components: p(x | z), as of ``Vae``.
    """

    labelled_share: Tensor

    def __init__(
        self, spec: DataSpec, *, variant: Variant = "m2", net: NetName = "auto",
        hidden_sizes: Sequence[int] = (200, 200), channels: int = 32, latent: int = 50, label_weight: float = 0.1,
        observation: ObservationName = "auto", sigma: float | None = None, components: int = 5,
    ) -> None:  # fmt: skip
        super().__init__(spec)
        if variant not in ("m1", "m2", "m1+m2"):
            raise UserError(f"model.variant must be m1, m2 or m1+m2, not {variant!r}.")
        require(least=0, label_weight=label_weight)
        classes = class_count(spec)  # refuses data without labels
        sizes: dict[str, Any] = {"hidden_sizes": hidden_sizes, "channels": channels, "latent": latent}
        of_x: dict[str, Any] = {"net": net, "observation": observation, "sigma": sigma, "components": components}
        self.features = None if variant == "m2" else Vae(spec, **sizes, **of_x)
        self.top: CodeClassifier | M2
        if variant == "m1":
            self.top = CodeClassifier(latent, classes)
        elif variant == "m2":
            self.top = M2(spec, label_weight=label_weight, **sizes, **of_x)
        else:
            codes = DataSpec((latent,), "real", num_classes=classes)
            self.top = M2(codes, label_weight=label_weight, net="mlp", **sizes)
        self.register_buffer("labelled_share", torch.ones(()))

    @property
    def class_log_prior(self) -> Tensor | None:
        """log p(y); M1's examples depend on no class."""
        return self.top.class_log_prior

    # ---- training ----

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The features, if there are any, and what is learned on top of them, or of x."""
        own = {} if self.features is None else {"features": list(self.features.parameters())}
        return {**own, "classes": list(self.top.parameters())}

    def stages(self) -> tuple[Stage, ...]:
        """M2 is trained on codes that M1 has learned; M1's classifier follows them as they change."""
        if self.features is not None and self.class_log_prior is not None:
            return (Stage("features", ("features",)), Stage("classes", ("classes",)))
        return super().stages()

    def batch_policy(self) -> BatchPolicy:
        """Half of every batch is labelled; the bounds are weighted as the data set is."""
        return BatchPolicy(labelled=0.5)

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Count the labels."""
        self.labelled_share.copy_((labels_of(batch) >= 0).double().mean())
        self.top.initialise(batch, generator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """M1's bound for the features; on top of them, or of x, the loss of M2 or of M1's classifier."""
        if player == "features":
            assert self.features is not None
            bounds = self.features.elbo(batch.x, generator=generator)
            bound = population_mean(bounds, labels_of(batch), self.labelled_share)
            return -bound, {"bound": bound.detach()}
        if self.features is not None:
            with torch.no_grad():
                batch = batch._replace(x=draw_normal(self._posterior(batch.x), 1, generator)[0])
        return self.top.loss(player, batch, generator)

    # ---- use ----

    def elbo(self, x: Tensor, *, y: Tensor | None = None, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """One draw of the bound of log p(x) of raw x (b, *shape), or of log p(x | y)."""
        if self.features is None:
            return self.top.elbo(x, y=y, generator=generator)
        codes, change = self._draw(x, 1, generator)
        return change[0] + self.top.elbo(codes[0], y=y, generator=generator)

    def log_weights(
        self, x: Tensor, k: int, *, y: Tensor | None = None, generator: Generator | None = None
    ) -> Float[Tensor, "k b"]:
        """Draw k importance weights of raw x (b, *shape), over z, z_1 and the label if it is not told."""
        if self.features is None:
            return self.top.log_weights(x, k, y=y, generator=generator)
        codes, change = self._draw(x, k, generator)
        labels = None if y is None else y.repeat(k)
        above = self.top.log_weights(codes.flatten(0, 1), 1, y=labels, generator=generator)
        return change + above.view(k, len(x))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples, raw (n, *shape), of classes y (n,); by default these are drawn, too."""
        code = self.top.sample(n, y, generator=generator)
        return code if self.features is None else self.features.sample_given(code, generator=generator)

    def classify(self, x: Tensor) -> Float[Tensor, "b c"]:
        """Log q(y | x) of raw x (b, *shape), or log q(y | z_1) at the mean of z_1."""
        return self.top.label_log_prob(x if self.features is None else self.features.encode(x))

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The mean of z under the most probable label, or of z_1 where there are two or no label, of raw x."""
        return self._of_x.encode(x)

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | z] at a draw of the code, float (b, *shape) on the raw scale; of M2 under the most probable label."""
        return self._of_x.reconstruct(x, generator=generator)

    @property
    def _of_x(self) -> M2 | Vae:
        """The network pair that sees x itself."""
        own = self.top if self.features is None else self.features
        assert isinstance(own, M2 | Vae)
        return own

    def _posterior(self, x: Tensor) -> Moments:
        """Those of q(z_1 | x)."""
        assert self.features is not None
        return Moments(*self.features.posterior(x))

    def _draw(self, x: Tensor, k: int, generator: Generator | None) -> tuple[Tensor, Float[Tensor, "k b"]]:
        """k draws of z_1 for each raw x, and log p(x | z_1) - log q(z_1 | x)."""
        assert self.features is not None
        q = self._posterior(x)
        z = draw_normal(q, k, generator)
        return z, self.features._log_likelihood(x, z) - gaussian_log_density(z, *q).sum(-1)
