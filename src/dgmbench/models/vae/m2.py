"""M2 of Kingma et al. 2014, a VAE of x under a label that is inferred where it is not known; see ``ssvae.py``.

Apart from ``ssvae.py`` because its x may be data, or the codes of another VAE.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.contract import Logs
from dgmbench.models.vae.cvae import Cvae
from dgmbench.nn.encoders import NetName, build_encoder
from dgmbench.nn.labels import label_bound, label_nll, labels_of, population_mean


class M2(Cvae):
    """The generative semi-supervised model: a VAE under the label, and q(y | x) for those that are not known.

    Args:
        spec: The data space, with labels.
        label_weight: Weight of -log q(y | x) on labelled examples.
        net, hidden_sizes, channels, settings: As of ``Cvae``.
    """

    labelled_share: Tensor

    def __init__(self, spec: DataSpec, *, label_weight: float, net: NetName, hidden_sizes: Sequence[int],
                 channels: int, **settings: Any) -> None:  # fmt: skip
        super().__init__(spec, learned_prior=False, net=net, hidden_sizes=hidden_sizes, channels=channels, **settings)
        self.label_weight = label_weight
        self.classifier = build_encoder(
            net, spec.shape, len(self.class_log_prior), hidden_sizes=tuple(hidden_sizes), channels=channels
        )
        self.register_buffer("labelled_share", torch.ones(()))

    def label_log_prob(self, x: Tensor) -> Float[Tensor, "b c"]:
        """Log q(y | x) of every label."""
        return self.classifier(self.scaling(x).to(self._dtype)).log_softmax(1)

    def labelled_bound(self, x: Tensor, y: Tensor, generator: Generator | None) -> Float[Tensor, " b"]:
        """L(x, y), with one draw of z."""
        reconstruction, kl = self.terms(x, self.code(y, None), 1, generator)
        return reconstruction - kl.sum(1) + self.class_log_prior[y]

    def unlabelled_bound(self, x: Tensor, generator: Generator | None) -> Float[Tensor, " b"]:
        """U(x), with one draw of z for every label."""
        classes = len(self.class_log_prior)
        every = torch.arange(classes, device=x.device).repeat_interleave(len(x))
        bounds = self.labelled_bound(x.repeat(classes, *[1] * (x.dim() - 1)), every, generator)
        return label_bound(bounds.view(classes, len(x)).T, self.label_log_prob(x))

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Count the classes, and how many examples have a label."""
        super().initialise(batch, generator)
        self.labelled_share.copy_((labels_of(batch) >= 0).double().mean())

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The negative bound over the data set, and the classifier's loss on what is labelled."""
        x, y = batch.x, labels_of(batch)
        known = y >= 0
        bounds = x.new_empty(len(x), dtype=self._dtype)
        if known.any():
            bounds[known] = self.labelled_bound(x[known], y[known], generator)
        if not known.all():
            bounds[~known] = self.unlabelled_bound(x[~known], generator)
        bound, labels = population_mean(bounds, y, self.labelled_share), label_nll(self.label_log_prob(x), y)
        return self.label_weight * labels - bound, {"bound": bound.detach(), "labels": labels.detach()}

    def elbo(
        self, x: Tensor, *, y: Tensor | None = None, given: Tensor | None = None, generator: Generator | None = None
    ) -> Float[Tensor, " b"]:
        """One draw of the bound of log p(x | y), or of U(x) without label."""
        return self.unlabelled_bound(x, generator) if y is None else super().elbo(x, y=y, generator=generator)

    def log_weights(
        self, x: Tensor, k: int, *, y: Tensor | None = None, given: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "k b"]:  # fmt: skip
        """Draw k importance weights of raw x (b, *shape): of p(x | y), or of p(x) with labels from q(y | x)."""
        if y is not None:
            return super().log_weights(x, k, y=y, generator=generator)
        log_q = self.label_log_prob(x)
        drawn = torch.multinomial(log_q.exp(), k, replacement=True, generator=generator)
        change = self.class_log_prior[drawn] - log_q.gather(1, drawn)
        many, labels = x.repeat_interleave(k, 0), drawn.flatten()
        return (self.weights(many, self.code(labels, None), 1, generator)[0].view(len(x), k) + change).T

    def _label_scores(self, x: Tensor) -> Float[Tensor, "b c"]:
        return self.label_log_prob(x)
