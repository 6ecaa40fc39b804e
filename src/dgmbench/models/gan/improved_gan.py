"""Improved GAN: a classifier of K classes and of samples as one more, which learns from data without labels, too.

The discriminator has a score l_k(x) for each class; samples are class K + 1, whose score is 0, for a constant added to
all scores changes nothing. With Z(x) = sum_k exp l_k(x), it says D(x) = Z / (Z + 1) that x is of the data, so that

    L = -E_labelled log p(y | x, y <= K)  -  unsupervised (E_data log D(x) + E_z log(1 - D(G(z))))
    log D = log Z - softplus(log Z)       log(1 - D) = -softplus(log Z)       log Z = logsumexp_k l_k

    discriminator  minimises  L + history ||theta - mean of theta[1..t]||^2
    generator      minimises  ||E_data f(x) - E_z f(G(z))||^2 (feature matching, f the last hidden layer of the
                              discriminator) or -E_z log D(G(z)), + history ||theta - mean of theta[1..t]||^2

Samples that match the data's features, without being like them in all, lie between the classes, where the classifier
then keeps its boundaries. The other techniques of the paper are settings: ``history`` (historical averaging),
``label_smoothing`` (one-sided), ``norm="virtual"`` (virtual batch normalisation of G), ``kernels`` (minibatch
discrimination), which makes good samples and, as published, poor classifiers.

Shapes and units: raw x (b, *shape) is scaled to [-1, 1] (``real`` data pass unchanged); labels (b,), -1 where unknown;
z (b, latent) ~ N(0, I); cross-entropies are means in nats, over the examples that each is about.

Paper: Salimans et al. 2016, https://arxiv.org/abs/1606.03498 (sections 3 and 5).

What differs: the networks are those of the paper's MNIST experiment (Gaussian noise on every layer of D, weight
normalisation there, softplus and batch-norm in G), narrower, with a Gaussian z. The second term's E_data is over
unlabelled examples where there are any. Closeness in a minibatch is added to all scores alike: it tells data from
samples, and says nothing of the class, which would depend on the neighbours.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model
from dgmbench.models.tasks import HeldOut
from dgmbench.nn.adversarial_classifier import NoisyClassifier, SoftplusGenerator
from dgmbench.nn.adversarial_losses import NonSaturating
from dgmbench.nn.batchnorm import absorb_statistics, statistics_of
from dgmbench.nn.labels import class_count, label_nll, labels_of
from dgmbench.nn.scaling import Scaling


class ImprovedGan(Model):
    """A classifier with samples as one more class, for few labels (Salimans et al. 2016).

    Args:
        spec: the data's space, with labels.
        latent: dimensions of the noise z.
        hidden_sizes: hidden layers of the discriminator.
        generator_sizes: hidden layers of the generator.
        noise: deviation of the Gaussian noise on the discriminator's input, and on its hidden layers.
        objective: what the generator minimises: ``feature_matching``, or ``adversarial``.
        unsupervised: weight of the game beside the cross-entropy of the labels.
        history: weight of the squared distance to the mean of a player's past parameters.
        label_smoothing: D aims at 1 - label_smoothing on data (one-sided).
        kernels: of minibatch discrimination; 0 leaves it out.
        norm: the generator's: ``batch``, or ``virtual``, by a reference batch that never changes.
        labelled: share of every batch that is labelled, where some examples are not.
    """

    steps: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 100,
        hidden_sizes: Sequence[int] = (1000, 500, 250, 250, 250),
        generator_sizes: Sequence[int] = (500, 500),
        noise: Sequence[float] = (0.3, 0.5),
        objective: Literal["feature_matching", "adversarial"] = "feature_matching",
        unsupervised: float = 1.0,
        history: float = 0.0,
        label_smoothing: float = 0.0,
        kernels: int = 0,
        norm: Literal["batch", "virtual"] = "batch",
        labelled: float = 0.5,
    ) -> None:
        super().__init__(spec)
        require(least=1, latent=latent, hidden_sizes=hidden_sizes, generator_sizes=generator_sizes)
        require(least=0, noise=noise, unsupervised=unsupervised, history=history, kernels=kernels)
        require(least=0, below=1, label_smoothing=label_smoothing)
        require(above=0, most=1, labelled=labelled)
        if objective not in ("feature_matching", "adversarial"):
            raise UserError(f"model.objective must be feature_matching or adversarial, not '{objective}'.")
        if norm not in ("batch", "virtual"):
            raise UserError(f"model.norm must be batch or virtual, not '{norm}'.")
        if len(noise) != 2:
            raise UserError(f"model.noise={list(noise)} must be two deviations: of the input, and of hidden layers.")
        self.objective, self.unsupervised, self.history = objective, unsupervised, history
        self.label_smoothing, self.labelled = label_smoothing, labelled
        self.latent = self.noise_dim = latent
        self.adversarial, self.scaling = NonSaturating(), Scaling(spec)
        self.discriminator = NoisyClassifier(
            spec.dim,
            classes=class_count(spec),
            hidden_sizes=tuple(hidden_sizes),
            noise=(noise[0], noise[1]),
            kernels=kernels,
        )
        self.generator = SoftplusGenerator(
            spec, latent=latent, hidden_sizes=tuple(generator_sizes), virtual=norm == "virtual"
        )
        if history:
            self.register_buffer("steps", torch.zeros(2))  # of each player
            for player, own in self.players().items():
                for k, parameter in enumerate(own):
                    self.register_buffer(f"{player}_mean_{k}", parameter.detach().clone())

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The two networks."""
        return {
            "discriminator": list(self.discriminator.parameters()),
            "generator": list(self.generator.parameters()),
        }

    def batch_policy(self) -> BatchPolicy:
        """Labelled examples in every batch, however few there are."""
        return BatchPolicy(labelled=self.labelled)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas."""
        d, x, y = self.discriminator, self.scaling(batch.x), labels_of(batch)
        z = torch.randn(len(x), self.latent, device=x.device, generator=generator)
        unlabelled = torch.ones_like(y, dtype=torch.bool) if bool((y >= 0).all()) else y < 0
        if player == "generator":
            with statistics_of(self.generator):
                fake = d.features(self.generator(z), generator)
            if self.objective == "feature_matching":
                with torch.no_grad():
                    wanted = d.features(x[unlabelled], generator).mean(0)
                loss = (fake.mean(0) - wanted).square().sum()
            else:
                loss = self.adversarial.generator(d.scores(fake, generator).logsumexp(1))
            return loss + self.history * self.distance(player), {"game": loss.detach()}
        with torch.no_grad():
            samples = self.generator(z)
        both = d.features(torch.cat([x, samples]), generator).split(len(x))
        scores, fakes = (d.scores(features, generator) for features in both)
        labels, real, fake = label_nll(scores, y), scores[unlabelled].logsumexp(1), fakes.logsumexp(1)
        game = self.adversarial.discriminator(real, fake, label_smoothing=self.label_smoothing)
        loss = labels + self.unsupervised * game + self.history * self.distance(player)
        logs = {"labels": labels, "game": game, "real": real.mean(), "fake": fake.mean()}
        return loss, {name: value.detach() for name, value in logs.items()}

    def distance(self, player: str) -> Float[Tensor, ""]:
        """||theta - mean of theta[1..t]||^2 of a player's parameters, 0 without ``history``."""
        total = torch.zeros((), device=next(self.parameters()).device)
        if self.history:
            for k, parameter in enumerate(self.players()[player]):
                total = total + (parameter - self.get_buffer(f"{player}_mean_{k}")).square().sum()
        return total

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take the parameters into their mean, and the generator's batch-norm statistics up."""
        if self.history:
            at = list(self.players()).index(player)
            self.steps[at] += 1
            for k, parameter in enumerate(self.players()[player]):
                self.get_buffer(f"{player}_mean_{k}").lerp_(parameter, 1 / self.steps[at])
        if player == "generator":
            absorb_statistics(self.generator)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """n raw values G(z), rounded to the levels; labels y do not matter, for G takes none."""
        z = torch.randn(n, self.latent, device=next(self.parameters()).device, generator=generator)
        return self.scaling.inverse(self.generator(z))

    def generate(self, noise: Float[Tensor, "b latent"]) -> Tensor:
        """G(z) before rounding, float (b, *shape) on the raw scale, of standard normal noise z."""
        return self.scaling.unrounded(self.generator(noise))

    @torch.no_grad()
    def classify(self, x: Tensor) -> Float[Tensor, "b classes"]:
        """The scores l_k of raw values x (b, *shape)."""
        d = self.discriminator
        return d.head(d.features(self.scaling(x)))

    def objectives(self) -> dict[str, HeldOut]:
        """Checkpoints are chosen by the error of the classifier."""
        return {"label_error": HeldOut("share", "lower")}

    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> dict[str, Tensor]:
        """1 where the largest score is another label's, NaN where the label is not known."""
        y = labels_of(batch)
        wrong = (self.classify(batch.x).argmax(1) != y).double()
        return {"label_error": wrong.masked_fill(y < 0, torch.nan)}
