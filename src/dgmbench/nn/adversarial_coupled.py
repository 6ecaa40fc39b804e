"""Generators and discriminators of several domains that share the layers far from the data.

A coupled generator makes one example of each domain from one latent: its first layers, which decide what is shown, are
one module, its last ones, which decide how, are each domain's own. A coupled discriminator is the mirror image: first
layers of each domain's own, last layers shared. ``own`` is the number of layers with weights that each domain has to
itself; the networks of the domains have the shapes of ``nn.adversarial``.

Paper: Liu and Tuzel 2016, https://arxiv.org/abs/1606.07536.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.nn.adversarial import DcganDiscriminator, DcganGenerator, MlpDiscriminator, MlpGenerator

CoupledNetName = Literal["mlp", "dcgan"]


def blocks(layers: Sequence[nn.Module]) -> list[nn.Sequential]:
    """The layers in blocks, each of which begins with weights: a linear map or a convolution."""
    found: list[list[nn.Module]] = []
    for layer in layers:
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            found.append([])
        found[-1].append(layer)
    return [nn.Sequential(*block) for block in found]


class CoupledGenerator(nn.Module):
    """z -> one example of every domain: ``trunk`` is shared, ``branches`` are the domains' own last layers."""

    def __init__(self, nets: Sequence[MlpGenerator | DcganGenerator], spec: DataSpec, *, own: int) -> None:
        super().__init__()
        self.shape, self.bounded = spec.shape, nets[0].bounded
        self.convolutional = isinstance(nets[0], DcganGenerator)
        each = [blocks(list(net.net)) for net in nets]
        shared = max(0, len(each[0]) - own)
        self.trunk = nn.Sequential(*each[0][:shared])
        self.branches = nn.ModuleList(nn.Sequential(*net[shared:]) for net in each)

    def forward(self, z: Float[Tensor, "b latent"]) -> list[Tensor]:
        """Scaled data (b, *shape) of every domain at the same latents."""
        h = self.trunk(z[:, :, None, None] if self.convolutional else z)
        examples = [branch(h).view(-1, *self.shape) for branch in self.branches]
        return [torch.tanh(x) for x in examples] if self.bounded else examples


class CoupledDiscriminator(nn.Module):
    """Examples of every domain -> one output each: ``stems`` are the domains' own first layers, ``trunk`` is shared.

    All domains pass the shared layers as one batch.
    """

    def __init__(self, nets: Sequence[MlpDiscriminator | DcganDiscriminator], *, own: int) -> None:
        super().__init__()
        each = [blocks([*net.trunk, net.head]) for net in nets]
        self.flat = isinstance(nets[0], MlpDiscriminator)
        self.stems = nn.ModuleList(nn.Sequential(*net[:own]) for net in each)
        self.trunk = nn.Sequential(*each[0][own:])

    def forward(self, examples: Sequence[Tensor]) -> list[Tensor]:
        """The outputs (b_k,) at scaled data (b_k, *shape) of each domain k."""
        seen = [stem(x.flatten(1) if self.flat else x) for stem, x in zip(self.stems, examples, strict=True)]
        outputs = self.trunk(torch.cat(seen)).flatten()
        return list(outputs.split([len(x) for x in examples]))


def make_coupled_generator(
    net: CoupledNetName,
    spec: DataSpec,
    *,
    domains: int,
    own: int,
    latent: int,
    hidden_sizes: Sequence[int],
    channels: int,
) -> CoupledGenerator:
    """Generators called ``net`` of so many domains, coupled."""

    def made() -> MlpGenerator | DcganGenerator:
        if net == "dcgan":
            return DcganGenerator(spec, latent=latent, channels=channels)
        return MlpGenerator(spec, latent=latent, hidden_sizes=hidden_sizes)

    return CoupledGenerator([made() for _ in range(domains)], spec, own=own)


def make_coupled_discriminator(
    net: CoupledNetName,
    spec: DataSpec,
    *,
    domains: int,
    own: int,
    hidden_sizes: Sequence[int],
    channels: int,
    bias: bool = True,
) -> CoupledDiscriminator:
    """Discriminators called ``net`` of so many domains, coupled; ``bias`` is that of the last layer."""

    def made() -> MlpDiscriminator | DcganDiscriminator:
        if net == "dcgan":
            return DcganDiscriminator(spec, channels=channels)
        return MlpDiscriminator(spec, hidden_sizes=hidden_sizes, bias=bias)

    return CoupledDiscriminator([made() for _ in range(domains)], own=own)
