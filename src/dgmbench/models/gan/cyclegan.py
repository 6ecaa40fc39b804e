"""CycleGAN: translation between two domains without pairs, held to what was there by the way back.

A generator G_k makes an image of domain k from one of the other domain, and a discriminator D_k tells such images from
those of domain k. Nothing of that says which image is to become which; that the way there and back has to end where it
began does:

    G minimises  sum_k  E (D_k(G_k(x_j)) - 1)^2  +  cycle E |G_k(G_j(x_k)) - x_k|  +  cycle identity E |G_k(x_k) - x_k|
    D minimises  sum_k  1/2 E (D_k(x_k) - 1)^2 + 1/2 E D_k(pool(G_k(x_j)))^2

with j the domain other than k, x_k from domain k. D_k judges patches (``nn.adversarial_translation``); its fakes come
from a pool of the last ones, half of them older.

Shapes and units: raw images (b, c, h, w) of both domains, scaled to [-1, 1] (``real`` data pass unchanged); |.| is the
mean absolute difference over pixels, E a mean over the domain's part of the batch.

Paper: Zhu et al. 2017, https://arxiv.org/abs/1703.10593.

What differs: batches hold several images of each domain where the paper's hold one of each. Fakes for D are made anew
after G's step. Biases in front of instance norm, which removes them, are left out. The domain is the data's factor of
that name, else the label; nothing else of a label is used.
"""

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.adversarial_losses import LeastSquares
from dgmbench.nn.adversarial_translation import ImagePool, PatchDiscriminator, TranslationGenerator
from dgmbench.nn.labels import by_domain, domains_of
from dgmbench.nn.scaling import Scaling


class CycleGan(Model):
    """Unpaired translation between two domains (Zhu et al. 2017).

    Args:
        spec: the data's space, images of two domains: a factor called ``domain``, or labels.
        channels: maps of the generators' first layer.
        blocks: residual blocks of a generator (9 in the paper for sides of 256, 6 below).
        halvings: convolutions of a generator that halve the side, and that double it again.
        patch_channels: maps of the discriminators' first layer.
        layers: convolutions of a discriminator that halve the side; three see patches of 70 x 70.
        cycle: weight of the cycle loss, lambda.
        identity: weight of the identity loss relative to the cycle loss.
        pool: images of each domain's pool; 0 shows every fake once.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        channels: int = 64,
        blocks: int = 9,
        halvings: int = 2,
        patch_channels: int = 64,
        layers: int = 3,
        cycle: float = 10.0,
        identity: float = 0.5,
        pool: int = 50,
    ) -> None:
        super().__init__(spec)
        require(least=1, channels=channels, blocks=blocks, patch_channels=patch_channels, layers=layers)
        require(least=0, halvings=halvings, cycle=cycle, identity=identity, pool=pool)
        self.domain, domains = domains_of(spec)
        if domains != 2:
            raise UserError(f"cyclegan translates between two domains, and these data have {domains}; choose stargan.")
        self.cycle, self.identity = cycle, identity
        self.adversarial = LeastSquares()
        self.scaling = Scaling(spec)
        self.generators = nn.ModuleList(
            TranslationGenerator(spec, channels=channels, blocks=blocks, halvings=halvings) for _ in range(2)
        )
        self.discriminators = nn.ModuleList(
            PatchDiscriminator(spec, channels=patch_channels, layers=layers) for _ in range(2)
        )
        self.pools = nn.ModuleList(ImagePool(spec, pool) for _ in range(2))

    def players(self) -> dict[str, list[nn.Parameter]]:
        """Both generators as one player, both discriminators as the other."""
        return {
            "generator": list(self.generators.parameters()),
            "discriminator": list(self.discriminators.parameters()),
        }

    def batch_policy(self) -> BatchPolicy:
        """As many images of each domain in every batch."""
        return BatchPolicy(balanced=self.domain or "label")

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas: means over each domain, summed over both."""
        data = by_domain(batch, self.scaling(batch.x), self.spec)
        if player == "discriminator":
            with torch.no_grad():
                fakes = self.exchanged(data)
                shown = [pool(fake, generator) for pool, fake in zip(self.pools, fakes, strict=True)]
            games = zip(self.discriminators, data, shown, strict=True)
            each = [self.adversarial.discriminator(judge(real), judge(fake)) for judge, real, fake in games]
            return torch.stack(each).sum(), {f"domain_{k}": loss.detach() for k, loss in enumerate(each)}
        fakes = self.exchanged(data)
        verdicts = [judge(fake) for judge, fake in zip(self.discriminators, fakes, strict=True)]
        # the loss object has a half in every square, this term of the paper has none
        fooled = 2 * torch.stack([self.adversarial.generator(a) for a in verdicts]).sum()
        cycle = self.difference(self.exchanged(fakes), data)
        loss, logs = fooled + self.cycle * cycle, {"adversarial": fooled.detach(), "cycle": cycle.detach()}
        if self.identity and self.cycle:
            kept = self.difference([net(x) for net, x in zip(self.generators, data, strict=True)], data)
            loss, logs["identity"] = loss + self.cycle * self.identity * kept, kept.detach()
        return loss, {"loss": loss.detach(), **logs}

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the pools that the discriminators' loss has left."""
        if player == "discriminator":
            for pool in self.pools:
                assert isinstance(pool, ImagePool)
                pool.absorb()

    def exchanged(self, images: list[Tensor]) -> list[Tensor]:
        """Scaled images of the domains 0 and 1 in each other's domain: G_0 of the second, G_1 of the first."""
        return [net(x) for net, x in zip(self.generators, reversed(images), strict=True)]

    @staticmethod
    def difference(ours: list[Tensor], theirs: list[Tensor]) -> Float[Tensor, ""]:
        """The mean absolute difference in each domain, summed over the domains."""
        return torch.stack([(a - b).abs().mean() for a, b in zip(ours, theirs, strict=True)]).sum()

    @torch.no_grad()
    def translate(self, x: Tensor, to: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Raw images (b, c, h, w) in the domains ``to`` (b,), whatever domain they come from."""
        scaled = self.scaling(x)
        moved = torch.empty_like(scaled)
        for k, net in enumerate(self.generators):
            if bool((to == k).any()):
                moved[to == k] = net(scaled[to == k])
        return self.scaling.inverse(moved)
