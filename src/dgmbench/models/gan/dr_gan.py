"""DR-GAN: a thing turned to another pose, by a code of what it is, made from one picture of it or from several.

The encoder gives each picture a code f(x) and a weight w(x) in (0, 1). Pictures of one identity are fused by their
weighted mean, of which a single picture is the case n = 1; the decoder adds the pose c asked for and noise z:

    code = sum_i w(x_i) f(x_i) / sum_i w(x_i),    x' = G(code, c, z)

The discriminator has two heads on one trunk: the K identities with "made" as one more, and the poses. With y and p the
identity and pose of x, and c a pose drawn uniformly,

    D maximises  E log D(y | x) + E log D(p | x) + E log D(made | x') - (gamma / 2) E |grad log-odds of x being made|^2
    G maximises  E log D(y | x') + E log D(c | x')

where x' is made from every picture of the batch by itself, and from all those of each identity together. The last term
is R1 (``nn.adversarial_losses``); the paper has none, gamma = 0.

Shapes and units: raw images (b, c, h, w), scaled to [-1, 1] (``real`` data pass unchanged); y numbers combinations of
factors, of which one is the pose and all others together are the identity. Losses are means over pictures, in nats.

Paper: Tran, Yin, Liu 2017,
https://openaccess.thecvf.com/content_cvpr_2017/html/Tran_Disentangled_Representation_Learning_CVPR_2017_paper.html.

What differs: batches are blocks of pictures of one identity, so that one training makes pictures of one source and of
several, where the paper's has a model for either, the second started from the first. Networks are those of
``nn.adversarial`` instead of a deep stack of convolutions and its mirror image. An update is of D and then of G, where
the paper has several of G to one of D, so that the pose head, which learns from data alone, is ahead of who is to
please it; R1 is for the same end.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, nearest, require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.adversarial import NetName, make_discriminator, make_generator
from dgmbench.nn.adversarial_losses import slope_penalty
from dgmbench.nn.batchnorm import absorb_statistics, statistics_of
from dgmbench.nn.labels import factor_of, labelled_part, labels_of, one_hot
from dgmbench.nn.scaling import Scaling


class DrGan(Model):
    """Pictures turned to other poses, with a code of the identity (Tran et al. 2017).

    Args:
        spec: the data's space, images with factors, of which one is the pose.
        pose: the factor that is the pose; the others together are the identity.
        net: the networks: ``dcgan`` for square images, ``mlp`` for any.
        hidden_sizes: hidden layers of an mlp decoder; encoder and discriminator have them in reverse.
        channels: width of convolutional networks, as in ``Gan``.
        code: dimensions of an identity's code.
        noise: dimensions of z.
        block: pictures of one identity in a batch, one after another.
        gamma: weight of R1 at data.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        pose: str = "angle",
        net: NetName = "dcgan",
        hidden_sizes: Sequence[int] = (256, 256),
        channels: int = 64,
        code: int = 320,
        noise: int = 50,
        block: int = 4,
        gamma: float = 0.0,
    ) -> None:
        super().__init__(spec)
        require(least=1, channels=channels, code=code, noise=noise)
        require(least=2, block=block)
        require(least=0, gamma=gamma)
        sizes = dict(spec.factors or ())
        if pose not in sizes:
            raise UserError(nearest(pose, sizes, what="factor of the data that is model.pose, named"))
        self.domain, self.poses = pose, sizes[pose]
        self.identities = math.prod(sizes.values()) // self.poses
        if min(self.poses, self.identities) < 2:
            raise UserError(
                f"DR-GAN needs several poses and several identities, not {self.poses} of '{pose}' and "
                f"{self.identities} of the other factors; choose data=shapes_turned, say."
            )
        self.noise, self.block, self.gamma = noise, block, gamma
        self.scaling = Scaling(spec)
        seen = {"hidden_sizes": tuple(hidden_sizes)[::-1], "channels": channels, "norm": "layer"}
        self.encoder = make_discriminator(net, spec, outputs=code + 1, **seen)  # type: ignore[arg-type]
        self.decoder = make_generator(
            net, spec, latent=code + noise, hidden_sizes=hidden_sizes, channels=channels, classes=self.poses
        )
        outputs = self.identities + 1 + self.poses
        self.discriminator = make_discriminator(net, spec, outputs=outputs, **seen)  # type: ignore[arg-type]

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The discriminator, and encoder and decoder as one."""
        return {
            "discriminator": list(self.discriminator.parameters()),
            "generator": [*self.encoder.parameters(), *self.decoder.parameters()],
        }

    def batch_policy(self) -> BatchPolicy:
        """Blocks of pictures of one identity."""
        return BatchPolicy(varied=self.block, factor=self.domain)

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the batch-norm statistics of the decoder, if it has any."""
        if player == "generator":
            absorb_statistics(self.decoder)

    def pose_of(self, y: Tensor) -> Tensor:
        """The poses (b,) of labels y (b,), -1 where unknown."""
        return factor_of(y, self.spec, self.domain)

    def identity_of(self, y: Tensor) -> Tensor:
        """The identities (b,) of labels y (b,), -1 where unknown."""
        found = torch.zeros_like(y)
        for name, size in self.spec.factors or ():
            if name != self.domain:
                found = found * size + factor_of(y, self.spec, name)
        return found.where(y >= 0, -1)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """What ``player`` minimises: minus its objective in the module's formulas, as means over known examples."""
        batch = labelled_part(batch)
        x, y = self.scaling(batch.x), labels_of(batch)
        own = self.identity_of(y)
        identities, group = own.unique(return_inverse=True)
        wanted = torch.cat([own, identities])
        to = torch.randint(self.poses, wanted.shape, generator=generator, device=y.device)
        if player == "discriminator":
            with torch.no_grad():
                made = self.turned(self.codes(x, group), to, generator)
            (identity, pose), (verdict, _) = self.judged(x), self.judged(made)
            parts = {
                "identity": F.cross_entropy(identity, own),
                "pose": F.cross_entropy(pose, self.pose_of(y)),
                "made": F.cross_entropy(verdict, torch.full_like(wanted, self.identities)),
            }
            if self.gamma:
                parts["penalty"] = self.gamma / 2 * slope_penalty(self.odds, x).mean()
        else:
            codes = self.codes(x, group)
            with statistics_of(self.decoder):
                made = self.turned(codes, to, generator)
            identity, pose = self.judged(made)
            parts = {"identity": F.cross_entropy(identity, wanted), "pose": F.cross_entropy(pose, to)}
        loss = torch.stack(list(parts.values())).sum()
        return loss, {"loss": loss.detach(), **{name: value.detach() for name, value in parts.items()}}

    def judged(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        """D's scores at scaled images: of the identities and, last, of what is made (b, K + 1), and of the poses."""
        outputs = self.discriminator(x)
        return outputs[:, : self.identities + 1], outputs[:, self.identities + 1 :]

    def odds(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """The log-odds, in D's opinion, of scaled images to be data, of whatever identity."""
        scores = self.judged(x)[0]
        return scores[:, :-1].logsumexp(1) - scores[:, -1]

    def encoded(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b code"], Float[Tensor, " b"]]:
        """f(x) and w(x) of scaled images."""
        outputs = self.encoder(x)
        return outputs[:, :-1], torch.sigmoid(outputs[:, -1])

    def codes(self, x: Float[Tensor, "b c h w"], group: Tensor) -> Float[Tensor, "n code"]:
        """The code of each picture, and below them the fused one of each group."""
        each, weight = self.encoded(x)
        return torch.cat([each, fused(each, weight, group)])

    def turned(self, codes: Float[Tensor, "n code"], to: Tensor, generator: Generator | None) -> Tensor:
        """Scaled pictures of codes in the poses ``to`` (n,)."""
        z = torch.randn(len(codes), self.noise, generator=generator, device=codes.device).to(codes.dtype)
        return self.decoder(torch.cat([codes, z], 1), one_hot(to, self.poses, codes.dtype))

    @torch.no_grad()
    def translate(self, x: Tensor, to: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Raw images (b, c, h, w) in the poses ``to`` (b,), each from one picture."""
        return self.scaling.inverse(self.turned(self.encoded(self.scaling(x))[0], to, generator))

    @torch.no_grad()
    def together(self, x: Tensor, group: Tensor, to: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Raw pictures of n things in the poses ``to`` (n,), each from the raw pictures x (b, c, h, w) whose group (b,)
        is its number.
        """
        return self.scaling.inverse(self.turned(fused(*self.encoded(self.scaling(x)), group), to, generator))

    @torch.no_grad()
    def panels(self, batch: Batch, *, generator: Generator | None = None) -> Tensor:
        """(b, 1 + poses, c, h, w): each raw picture, and what it is in every pose."""
        x = batch.x
        every = torch.arange(self.poses, device=x.device).repeat(len(x))
        made = self.translate(x.repeat_interleave(self.poses, 0), every, generator=generator)
        return torch.cat([x[:, None], made.unflatten(0, (len(x), self.poses)).to(x.dtype)], 1)


def fused(codes: Float[Tensor, "b code"], weight: Float[Tensor, " b"], group: Tensor) -> Float[Tensor, "groups code"]:
    """The weighted mean of the codes of each group 0, 1, ..., where no group is empty; of one code, the code itself."""
    groups = int(group.max()) + 1
    share = weight / weight.new_zeros(groups).index_add(0, group, weight)[group]
    return codes.new_zeros(groups, codes.shape[1]).index_add(0, group, share[:, None] * codes)
