r"""Adversarial autoencoders: a critic that cannot tell codes of data from draws of a prior takes the place of the KL.

    critic       minimises  -E_p(z) log D(z) - E_data log(1 - D(f(x))),
    autoencoder  minimises  -E_data log p(x | f(x)) - weight E_data log D(f(x)),

with an encoder z = f(x) without noise. Only draws of the prior are needed, so that it can be anything: a Gaussian, a
mixture, a swiss roll (``nn/code_priors.py``). The adversarial term reaches encoder and critic, the reconstruction
encoder and decoder. Labels enter in one of three ways:

    critic   D also sees the label, or that it is not known: codes of class y are matched to part y of the prior;
    style    the decoder sees the label, p(x | y, z), so that z is left with the style; all examples are labelled;
    semi     the encoder also gives q(y | x), which the decoder sees as the label: a second critic compares it with
             one-hot draws of p(y), and labelled examples add -label_weight log q(y | x).

Shapes and units: x is raw (b, *shape), labels (b,), -1 where unknown, z (b, latent); nats per example.

Paper: Makhzani, Shlens, Jaitly, Goodfellow, Frey, "Adversarial Autoencoders", ICLR 2016 workshop,
https://arxiv.org/abs/1511.05644.

What differs: the encoder steps once on the sum of both losses, with a weight, where the paper's two phases have a step
and a rate each; Adam in place of momentum; the decoder is an observation model with a probability in place of a squared
error; networks are tanh mlps of 200 units in place of ReLU and 1000.
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
from dgmbench.nn.adversarial import MlpDiscriminator
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss
from dgmbench.nn.code_priors import CodePrior, PriorName
from dgmbench.nn.encoders import NetName, build_decoder, build_encoder
from dgmbench.nn.labels import count_classes, draw_classes, label_nll, labels_of, one_hot, start_class_prior
from dgmbench.nn.observation import ObservationName, build_observation
from dgmbench.nn.scaling import Scaling

PARTS = 10  # of the prior, where labels do not say how many


class Codes(nn.Module):
    """What the encoder says of examples: codes z (b, latent) and, semi-supervised, logits of the label."""

    def __init__(self, net: nn.Module, latent: int) -> None:
        super().__init__()
        self.net, self.latent = net, latent

    def forward(self, x: Float[Tensor, "b *shape"]) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b c"]]:
        """Codes and logits, of which there are none (b, 0) without labels."""
        out = self.net(x)
        return out[:, : self.latent], out[:, self.latent :]


class Aae(Model):
    """Adversarial autoencoder (Makhzani et al. 2016).

    Args:
        spec: The data space; with labels, unless ``labels`` is none.
        prior: ``gaussian``, ``mixture`` or ``swiss_roll``, the last two with ``latent=2``.
        labels: ``none``, ``critic``, ``style`` or ``semi``, see above.
        latent: Dimensions of z.
        weight: Of the adversarial terms in the autoencoder's loss; 0 is a plain autoencoder.
        label_weight: Of -log q(y | x) on labelled examples.
        critic_sizes: Widths of the critics' hidden layers.
        loss: An object of ``nn.adversarial_losses`` or its name.
        net, hidden_sizes, channels: The encoder and, mirrored, the decoder, as of ``Vae``.
        observation, sigma, components: p(x | z), as of ``Vae``.
    """

    class_log_prior: Tensor

    def __init__(
        self, spec: DataSpec, *, prior: PriorName = "gaussian",
        labels: Literal["none", "critic", "style", "semi"] = "none", latent: int = 8, weight: float = 10.0,
        label_weight: float = 10.0, critic_sizes: Sequence[int] = (200, 200),
        loss: AdversarialLossName | AdversarialLoss = "non_saturating", net: NetName = "auto",
        hidden_sizes: Sequence[int] = (200, 200), channels: int = 32, observation: ObservationName = "auto",
        sigma: float | None = None, components: int = 5,
    ) -> None:  # fmt: skip
        super().__init__(spec)
        if labels not in ("none", "critic", "style", "semi"):
            raise UserError(f"model.labels must be none, critic, style or semi, not {labels!r}.")
        require(least=1, latent=latent, critic_sizes=critic_sizes)
        require(least=0, weight=weight, label_weight=label_weight)
        if labels == "critic" and prior == "gaussian":
            raise UserError("model.labels=critic matches classes to parts of the prior; set model.prior=mixture, say.")
        if labels != "none":
            start_class_prior(self, spec)  # refuses data without labels
        self.labels, self.weight, self.label_weight = labels, weight, label_weight
        classes = 0 if labels == "none" else len(self.class_log_prior)
        self.classes, self.prior = classes, CodePrior(prior, latent=latent, parts=classes or PARTS)
        self.adversarial = adversarial_loss(loss)
        self.observation = build_observation(observation, spec, sigma=sigma, components=components)
        self.scaling = Scaling(spec, low=0.0)
        sizes, beside = tuple(hidden_sizes), classes if labels in ("style", "semi") else 0
        encoder = build_encoder(
            net, spec.shape, latent + (classes if labels == "semi" else 0), hidden_sizes=sizes, channels=channels
        )
        self.encoder = Codes(encoder, latent)
        self.decoder = build_decoder(
            net, latent + beside, self.observation.parameters_per_dim, spec.shape, hidden_sizes=sizes[::-1],
            channels=channels,
        )  # fmt: skip
        told = classes + 1 if labels == "critic" else 0
        widths = tuple(critic_sizes)
        self.critic = MlpDiscriminator(DataSpec((latent,), "real"), hidden_sizes=widths, classes=told)
        self.label_critic = (
            MlpDiscriminator(DataSpec((classes,), "real"), hidden_sizes=widths) if labels == "semi" else None
        )
        if self.adversarial.sees_real:
            raise UserError(f"aae's encoder is judged by codes alone; loss={self.adversarial} looks at the prior too.")
        if labels == "semi":
            self.classify = self.label_log_prob  # a capability of this setting alone

    # ---- training ----

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The critics, and the autoencoder after them."""
        critics = [*self.critic.parameters(), *([] if self.label_critic is None else self.label_critic.parameters())]
        return {"critic": critics, "autoencoder": [*self.encoder.parameters(), *self.decoder.parameters()]}

    def batch_policy(self) -> BatchPolicy | None:
        """Half of every batch is labelled where labels help, all of it where the decoder needs them."""
        return BatchPolicy(labelled=0.5) if self.labels in ("critic", "semi") else super().batch_policy()

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Count the classes, where labels enter."""
        if self.labels != "none":
            count_classes(self.class_log_prior, batch.y)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas."""
        truth = labels_of(batch) if self.labels != "none" else torch.full((len(batch.x),), -1, device=batch.x.device)
        told = self._told(truth)
        if player == "critic":
            with torch.no_grad():
                z, logits = self.encoder(self.scaling(batch.x))
                prior = self.prior.draw(self._parts(truth, generator), generator, z.dtype)
            loss = self.adversarial.discriminator(self.critic(prior, told)[:, 0], self.critic(z, told)[:, 0])
            if self.label_critic is not None:
                drawn = draw_classes(self.class_log_prior, len(z), generator)
                real = self.label_critic(one_hot(drawn, logits.shape[1], z.dtype))[:, 0]
                loss = loss + self.adversarial.discriminator(real, self.label_critic(logits.softmax(1))[:, 0])
            return loss, {"critic": loss.detach()}
        z, logits = self.encoder(self.scaling(batch.x))
        game = self.adversarial.generator(self.critic(z, told)[:, 0])
        if self.label_critic is not None:
            game = game + self.adversarial.generator(self.label_critic(logits.softmax(1))[:, 0])
        beside = one_hot(truth, self.classes, z.dtype) if self.labels == "style" else logits.softmax(1)
        reconstruction = self._log_prob(batch.x, z, beside).mean()
        loss, logs = self.weight * game - reconstruction, {"reconstruction": reconstruction, "game": game}
        if self.labels == "semi":
            logs["labels"] = label_nll(logits, truth)
            loss = loss + self.label_weight * logs["labels"]
        return loss, {name: value.detach() for name, value in logs.items()}

    # ---- use ----

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples from p(x | z), z from the prior, raw (n, *shape); of classes y (n,) where labels enter."""
        weight = next(self.parameters())
        unknown = torch.full((n,), -1, device=weight.device)
        if self.labels == "none":
            y = unknown
        elif y is None:
            y = draw_classes(self.class_log_prior, n, generator)
        z = self.prior.draw(self._parts(y if self.labels == "critic" else unknown, generator), generator, weight.dtype)
        beside = one_hot(y, self.classes, z.dtype) if self.labels in ("style", "semi") else z[:, :0]
        return self.observation.sample(self.decoder(torch.cat([z, beside], 1)), generator=generator)

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The codes z of raw x (b, *shape), without what is said of the label."""
        return self.encoder(self.scaling(x))[0]

    def label_log_prob(self, x: Tensor) -> Float[Tensor, "b c"]:
        """Log q(y | x) of raw x (b, *shape), of the semi-supervised model."""
        return self.encoder(self.scaling(x))[1].log_softmax(1)

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """E[x | z] at the code of raw x, float (b, *shape) on the raw scale; nothing is drawn."""
        z, beside = self._known(x)
        return self.observation.mean(self.decoder(torch.cat([z, beside], 1)))

    def reconstruction_log_prob(self, x: Tensor) -> Float[Tensor, " b"]:
        """Log p(x | z) of raw x (b, *shape) at its own code."""
        return self._log_prob(x, *self._known(x))

    def _known(self, x: Tensor) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b c"]]:
        """The code of raw x and what the decoder sees beside it; as style, the label that explains x best."""
        z, logits = self.encoder(self.scaling(x))
        if self.labels != "style":
            return z, logits.softmax(1)
        every = torch.eye(self.classes, device=z.device, dtype=z.dtype)
        scores = torch.stack([self._log_prob(x, z, label.expand(len(z), -1)) for label in every], 1)
        return z, every[scores.argmax(1)]

    def _log_prob(self, x: Tensor, z: Float[Tensor, "b z"], beside: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
        return self.observation.log_prob(self.decoder(torch.cat([z, beside], 1)), x)

    def _told(self, truth: Tensor) -> Float[Tensor, "b c"] | None:
        """What the critic sees of labels (b,): one-hot, unknown ones as a class of their own."""
        if self.labels != "critic":
            return None
        known = torch.where(truth >= 0, truth, self.classes)
        return one_hot(known, self.classes + 1, next(self.parameters()).dtype)

    def _parts(self, truth: Tensor, generator: Generator | None) -> Tensor:
        """Parts of the prior (n,): those of known labels where the critic sees them, else drawn."""
        if self.labels == "critic":
            drawn = draw_classes(self.class_log_prior, len(truth), generator)
            return torch.where(truth >= 0, truth, drawn)
        return torch.randint(self.prior.parts, truth.shape, generator=generator, device=truth.device)
