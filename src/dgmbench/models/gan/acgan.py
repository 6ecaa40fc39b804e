"""Auxiliary classifier GAN: the discriminator is not told the label of what it sees but has to name it.

It has two heads on one trunk, P(S|x) for the source, data or samples, and P(C|x) for the class. With G(z, c), c drawn
from the classes' frequencies,

    L_S = E_data log P(S = data | x) + E_{z,c} log P(S = sample | G(z, c))
    L_C = E_data log P(C = y | x)    + E_{z,c} log P(C = c | G(z, c))

    discriminator  maximises  L_S + L_C
    generator      maximises  L_C - L_S

so both players want samples to be recognised as of their class. L_S is a game of ``nn.adversarial_losses``:
``minimax`` is the formula above; with ``non_saturating`` the generator maximises E log P(S = data | G(z, c)) in place
of its part of -L_S.

Shapes and units: raw x (b, *shape) is scaled to [-1, 1] (``real`` data pass unchanged); labels (b,), -1 where unknown;
z (b, latent) ~ N(0, I); losses are means over the batch, in nats.

Paper: Odena, Olah, Shlens 2017, https://arxiv.org/abs/1610.09585.

What differs: the default networks are small mlps, for small data. Examples without a label take part in L_S alone.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.contract import Logs
from dgmbench.models.gan.labelled import LabelledGan
from dgmbench.nn.adversarial import NetName, make_discriminator
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName
from dgmbench.nn.batchnorm import statistics_of
from dgmbench.nn.labels import label_nll, labels_of


class AcGan(LabelledGan):
    """A conditional GAN whose discriminator classifies (Odena et al. 2017).

    Args:
        spec: the data's space, with labels.
        net: the networks: ``mlp`` for any data, ``dcgan`` and ``resnet`` for square images.
        latent: dimensions of the noise z.
        hidden_sizes: hidden layers of the mlp generator; the mlp discriminator has them in reverse.
        channels: width of the convolutional nets, as in ``Gan``.
        loss: of the source, an object of ``nn.adversarial_losses`` or its name.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        net: NetName = "mlp",
        latent: int = 100,
        hidden_sizes: Sequence[int] = (256, 256),
        channels: int = 64,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
    ) -> None:
        super().__init__(spec, net=net, latent=latent, hidden_sizes=hidden_sizes, channels=channels, loss=loss)
        self.discriminator = make_discriminator(
            net,
            spec,
            hidden_sizes=tuple(hidden_sizes)[::-1],
            channels=channels,
            outputs=1 + self.classes,
            bias=self.adversarial.sees_constant,
        )

    def judged(self, x: Float[Tensor, " b *shape"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b classes"]]:
        """The source's output a(x) at scaled values, P(S = data | x) = sigmoid(a), and the scores of the classes."""
        outputs = self.discriminator(x)
        return outputs[:, 0], outputs[:, 1:]

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """What ``player`` minimises: minus its objective in the module's formulas, as a mean over the batch."""
        x = self.scaling(batch.x)
        samples, y = self.drawn(player, len(x), generator)
        fake, fake_scores = self.judged(samples)
        classes = label_nll(fake_scores, y)
        if player == "generator":
            real = self.judged(x)[0] if self.adversarial.sees_real else None
            source = self.adversarial.generator(fake, real)
            return source + classes, {"source": source.detach(), "class": classes.detach()}
        with statistics_of(self.discriminator):
            real, scores = self.judged(x)
        source = self.adversarial.discriminator(real, fake)
        classes = classes + label_nll(scores, labels_of(batch))
        logs = {"source": source, "class": classes, "real": real.mean(), "fake": fake.mean()}
        return source + classes, {name: value.detach() for name, value in logs.items()}

    @torch.no_grad()
    def classify(self, x: Tensor) -> Float[Tensor, "b classes"]:
        """Scores of the labels of raw values x (b, *shape)."""
        return self.judged(self.scaling(x))[1]
