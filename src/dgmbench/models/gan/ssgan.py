"""Semi-supervised conditional GAN: one discriminator learns what data look like, a second one what their labels are.

The first, D_u, sees all examples and no label. The second, D_s, is stacked on it: it judges pairs of D_u's features
h(x) with a label, on labelled examples alone. So p(x), which needs many examples, is learned from all of them, and only
p(y|x) from the few with a label. With samples G(z, y), y drawn from the labels' frequencies,

    L_u = E_{all x} log D_u(x) + E_{z,y} log(1 - D_u(G(z, y)))
    L_s = E_{labelled (x, y)} log D_s(h(x), y) + E_{z,y} log(1 - D_s(h(G(z, y)), y))

    min_G max_{D_u, D_s}  L_u + alpha L_s

Each of the two is a game of ``nn.adversarial_losses``; ``minimax`` is the formula above.

Shapes and units: raw x (b, *shape) is scaled to [-1, 1] (``real`` data pass unchanged); labels (b,), -1 where unknown;
z (b, latent) ~ N(0, I); each expectation is a mean over those of the batch that it is about, in nats.

Paper: Sricharan et al. 2017, https://arxiv.org/abs/1708.05789.

What differs: the paper's attributes are here the class; small mlps by default. Both losses train the features h, with
the weight alpha = 1 unless it is set.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs
from dgmbench.models.gan.labelled import LabelledGan
from dgmbench.nn.adversarial import Discriminator, NetName, hidden_layers, joined, make_discriminator
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName
from dgmbench.nn.batchnorm import statistics_of
from dgmbench.nn.labels import labels_of, one_hot


class StackedDiscriminators(nn.Module):
    """D_u of x alone, and D_s of D_u's features and a label, through one hidden layer."""

    def __init__(self, marginal: Discriminator, *, classes: int, width: int, bias: bool) -> None:
        super().__init__()
        self.marginal = marginal
        features = marginal.head.weight[0].numel()
        hidden = hidden_layers([features + classes, width])
        self.conditional = nn.Sequential(*hidden, nn.Linear(width, 1, bias=bias))

    def features(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, "b f"]:
        """h(x), the last hidden layer of D_u."""
        return self.marginal.features(x)

    def of_data(self, features: Float[Tensor, "b f"]) -> Float[Tensor, " b"]:
        """D_u's outputs at features."""
        return self.marginal.outputs(features).squeeze(1)

    def of_labels(self, features: Float[Tensor, "b f"], labels: Float[Tensor, "b classes"]) -> Float[Tensor, " b"]:
        """D_s's outputs at features with their labels."""
        return self.conditional(joined(features, labels)).squeeze(1)


class SsGan(LabelledGan):
    """A conditional GAN of few labels, with two stacked discriminators (Sricharan et al. 2017).

    Args:
        spec: the data's space, with labels.
        net: the networks: ``mlp`` for any data, ``dcgan`` and ``resnet`` for square images.
        latent: dimensions of the noise z.
        hidden_sizes: hidden layers of the mlp generator; the mlp discriminator has them in reverse, and the second
            discriminator's hidden layer is as wide as the first of them.
        channels: width of the convolutional nets, as in ``Gan``.
        alpha: weight of the second game, about labels.
        loss: of both games, an object of ``nn.adversarial_losses`` or its name.
    """

    discriminator: StackedDiscriminators

    def __init__(
        self,
        spec: DataSpec,
        *,
        net: NetName = "mlp",
        latent: int = 32,
        hidden_sizes: Sequence[int] = (256, 256),
        channels: int = 64,
        alpha: float = 1.0,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
    ) -> None:
        super().__init__(spec, net=net, latent=latent, hidden_sizes=hidden_sizes, channels=channels, loss=loss)
        require(above=0, alpha=alpha)
        self.alpha = alpha
        sizes, bias = tuple(hidden_sizes), self.adversarial.sees_constant
        marginal = make_discriminator(net, spec, hidden_sizes=sizes[::-1], channels=channels, bias=bias)
        self.discriminator = StackedDiscriminators(marginal, classes=self.classes, width=sizes[0], bias=bias)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas; logs ``data``, L_u's part, and ``labels``, L_s's."""
        d, truth = self.discriminator, labels_of(batch)
        known = truth >= 0
        if not bool(known.any()):
            raise UserError("ssgan needs some labelled examples in every batch, and this one has none.")
        x = self.scaling(batch.x)
        samples, y = self.drawn(player, len(x), generator)
        h_fake = d.features(samples)
        fakes = d.of_data(h_fake), d.of_labels(h_fake, one_hot(y, self.classes, x.dtype))
        if player == "generator" and not self.adversarial.sees_real:
            data, labels = (self.adversarial.generator(fake) for fake in fakes)
        else:
            with statistics_of(d):
                h = d.features(x)
            reals = d.of_data(h), d.of_labels(h[known], one_hot(truth[known], self.classes, x.dtype))
            role = self.adversarial.generator if player == "generator" else self._discriminates
            data, labels = (role(fake, real) for fake, real in zip(fakes, reals, strict=True))
        return data + self.alpha * labels, {"data": data.detach(), "labels": labels.detach()}

    def _discriminates(self, fake: Tensor, real: Tensor) -> Tensor:
        return self.adversarial.discriminator(real, fake)
