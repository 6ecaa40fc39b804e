"""StarGAN: one generator between many domains, told which one to go to, and a critic that also says which one it sees.

G(x, c) shows x in domain c. The critic's map a(x) tells real images from translations, its second head the domains:

    D minimises  E a(G(x, c)) - E a(x) + penalty_weight E (||grad a(x_hat)|| - 1)^2 + domain_weight E -log D(k | x)
    G minimises  -E a(G(x, c)) + domain_weight E -log D(c | G(x, c)) + cycle E |G(G(x, c), k) - x|

with k the domain that x comes from, c another example's, and x_hat between x and G(x, c).

Shapes and units: raw images (b, c, h, w), scaled to [-1, 1] (``real`` data pass unchanged); |.| is the mean absolute
difference, all else in nats or in the critic's units, means over the batch.

Paper: Choi et al. 2018, https://arxiv.org/abs/1711.09020.

What differs: the generator's first convolution has no instance norm, which removes whatever is constant over an image,
so all that its domain planes say but at the padded border; padding is by reflection, and halving and doubling
convolutions have kernels of 3, those of ``nn.adversarial_translation``. Domains are one factor of the data or the
label, no sets of attributes; the mask vector that joins several data sets is left out.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.contract import Logs, Model, Stage
from dgmbench.nn.adversarial_losses import Wasserstein, gradient_penalty
from dgmbench.nn.adversarial_translation import DomainDiscriminator, TranslationGenerator
from dgmbench.nn.labels import domains_in, domains_of, labelled_part, one_hot
from dgmbench.nn.scaling import Scaling


class StarGan(Model):
    """Unpaired translation between many domains by one generator (Choi et al. 2018).

    Args:
        spec: the data's space, images of several domains: a factor called ``domain``, or labels.
        channels: maps of the generator's first layer.
        blocks: residual blocks of the generator.
        halvings: convolutions of the generator that halve the side, and that double it again.
        critic_channels: maps of the critic's first layer, doubling with each halving.
        domain_weight: weight of the domains' cross entropies.
        cycle: weight of the way back.
        penalty_weight: weight of the gradient penalty.
        n_critic: critic steps, each on a batch of its own, to one generator step, on the last of them.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        channels: int = 64,
        blocks: int = 6,
        halvings: int = 2,
        critic_channels: int = 64,
        domain_weight: float = 1.0,
        cycle: float = 10.0,
        penalty_weight: float = 10.0,
        n_critic: int = 5,
    ) -> None:
        super().__init__(spec)
        require(least=1, channels=channels, blocks=blocks, critic_channels=critic_channels, n_critic=n_critic)
        require(least=0, halvings=halvings, domain_weight=domain_weight, cycle=cycle, penalty_weight=penalty_weight)
        self.domain, self.domains = domains_of(spec)
        self.domain_weight, self.cycle = domain_weight, cycle
        self.penalty_weight, self.n_critic = penalty_weight, n_critic
        self.adversarial = Wasserstein()
        self.scaling = Scaling(spec)
        self.generator = TranslationGenerator(
            spec, channels=channels, blocks=blocks, halvings=halvings, planes=self.domains
        )
        self.critic = DomainDiscriminator(spec, channels=critic_channels, domains=self.domains)

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The two networks."""
        return {"critic": list(self.critic.parameters()), "generator": list(self.generator.parameters())}

    def turn(self, step: int, stage: Stage) -> Sequence[str]:
        """The critic on every step, the generator after it on every ``n_critic``-th."""
        return ("critic", "generator") if (step + 1) % self.n_critic == 0 else ("critic",)

    def batch_policy(self) -> BatchPolicy:
        """As many images of each domain in every batch."""
        return BatchPolicy(balanced=self.domain or "label")

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the examples of known domain."""
        batch = labelled_part(batch)
        x, own = self.scaling(batch.x), domains_in(batch, self.spec)
        to = own[torch.randperm(len(own), generator=generator, device=own.device)]
        if player == "critic":
            with torch.no_grad():
                there = self.moved(x, to)
            (real, domains), (fake, _) = self.critic(x), self.critic(there)
            parts = {
                "game": self.adversarial.discriminator(real, fake),
                "penalty": gradient_penalty(self.verdict, x, there, generator=generator).mean(),
                "domain": F.cross_entropy(domains, own),
            }
            weights = {"game": 1.0, "penalty": self.penalty_weight, "domain": self.domain_weight}
        else:
            there = self.moved(x, to)
            fake, domains = self.critic(there)
            parts = {
                "game": self.adversarial.generator(fake),
                "domain": F.cross_entropy(domains, to),
                "cycle": (self.moved(there, own) - x).abs().mean(),
            }
            weights = {"game": 1.0, "domain": self.domain_weight, "cycle": self.cycle}
        loss = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        return loss, {"loss": loss.detach(), **{name: value.detach() for name, value in parts.items()}}

    def verdict(self, x: Tensor) -> Tensor:
        """The critic's outputs at scaled images, each image's mean (b,)."""
        return self.critic(x)[0].flatten(1).mean(1)

    def moved(self, x: Tensor, to: Tensor) -> Tensor:
        """Scaled images (b, c, h, w) in the domains ``to`` (b,)."""
        return self.generator(x, one_hot(to, self.domains, x.dtype))

    @torch.no_grad()
    def translate(self, x: Tensor, to: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Raw images (b, c, h, w) in the domains ``to`` (b,)."""
        return self.scaling.inverse(self.moved(self.scaling(x), to))
