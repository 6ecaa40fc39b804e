"""Generator and discriminator networks: mlp (any shape), dcgan and resnet (square images).

A generator maps latents z (b, latent) to scaled data (b, *shape). A discriminator maps scaled data to ``outputs``
numbers (b, outputs), through ``features`` (b, f), its last hidden layer; with two outputs per latent it serves as an
encoder. With ``classes`` > 0 both also take one-hot labels (b, classes): joined to z, and to x as constant planes
(images in convolutional nets) or as further coordinates (mlp). A convolutional generator can take them in its
batch-norm instead (``labels="batch_norm"``); discriminators by projection, and of pairs (x, z), are in
``nn.adversarial_pairs``.

Convolutional nets halve or double the side between the image and a base of 4 or 7 pixels, so they take sides such as
16, 28, 32, 64.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.batchnorm import BatchNorm, ConditionalBatchNorm

NetName = Literal["mlp", "dcgan", "resnet"]
Norm = Literal["batch", "layer", "none"]
Labels = Literal["joined", "batch_norm"]


def base_and_doublings(spec: DataSpec, net: str) -> tuple[int, int]:
    """Return (base, k) with side = base * 2^k and base 4 or 7, or say why there is none.

    >>> base_and_doublings(DataSpec((1, 28, 28), "discrete", levels=256), "dcgan")
    (7, 2)
    """
    if spec.is_image and spec.shape[1] == spec.shape[2]:
        for base in (4, 7):
            doublings = (spec.shape[1] // base).bit_length() - 1
            if doublings >= 2 and base * 2**doublings == spec.shape[1]:
                return base, doublings
    raise UserError(
        f"net={net} takes square images with a side of 16, 28, 32 or 64, not {spec}; "
        "choose net=mlp or another data set, such as digits32."
    )


def with_planes(x: Tensor, labels: Tensor | None) -> Tensor:
    """Append one-hot labels (b, k) to images (b, c, h, w) as k constant planes."""
    if labels is None:
        return x
    return torch.cat([x, labels[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)


def joined(*parts: Tensor | None) -> Tensor:
    """Concatenate the parts that are there along the second dimension."""
    return torch.cat([part for part in parts if part is not None], 1)


def hidden_layers(sizes: Sequence[int]) -> list[nn.Module]:
    """Linear layers between the sizes, each followed by leaky ReLU."""
    return [layer for m, n in itertools.pairwise(sizes) for layer in (nn.Linear(m, n), nn.LeakyReLU(0.2))]


def batch_norm(channels: int, condition: int) -> BatchNorm | ConditionalBatchNorm:
    """Batch-norm, with scale and shift given by a condition of so many dimensions if there are any."""
    return ConditionalBatchNorm(channels, condition) if condition else BatchNorm(channels)


def through(layers: Iterable[nn.Module], x: Tensor, condition: Tensor | None) -> Tensor:
    """x through the layers one after the other; those that are conditional also get the condition."""
    for layer in layers:
        x = layer(x, condition) if isinstance(layer, ConditionalBatchNorm | ResidualBlock) else layer(x)
    return x


class MlpGenerator(nn.Module):
    """Fully connected: z -> hidden layers with leaky ReLU -> x, through tanh where the data are bounded."""

    def __init__(self, spec: DataSpec, *, latent: int, hidden_sizes: Sequence[int], classes: int = 0) -> None:
        super().__init__()
        self.shape, self.bounded = spec.shape, spec.kind != "real"
        sizes = [latent + classes, *hidden_sizes]
        self.net = nn.Sequential(*hidden_layers(sizes), nn.Linear(sizes[-1], spec.dim))

    def forward(self, z: Float[Tensor, "b latent"], labels: Tensor | None = None) -> Float[Tensor, " b *shape"]:
        """Scaled data at latents z."""
        x = self.net(joined(z, labels)).view(-1, *self.shape)
        return torch.tanh(x) if self.bounded else x


class MlpDiscriminator(nn.Module):
    """Fully connected with leaky ReLU and no normalisation."""

    def __init__(
        self, spec: DataSpec, *, hidden_sizes: Sequence[int], outputs: int = 1, classes: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        sizes = [spec.dim + classes, *hidden_sizes]
        self.trunk = nn.Sequential(*hidden_layers(sizes))
        self.head = nn.Linear(sizes[-1], outputs, bias=bias)

    def features(self, x: Float[Tensor, " b *shape"], labels: Tensor | None = None) -> Float[Tensor, "b f"]:
        """The last hidden layer."""
        return self.trunk(joined(x.flatten(1), labels))

    def forward(self, x: Float[Tensor, " b *shape"], labels: Tensor | None = None) -> Float[Tensor, "b outputs"]:
        """The outputs at scaled data x."""
        return self.outputs(self.features(x, labels))

    def outputs(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b outputs"]:
        """The outputs at features."""
        return self.head(features)


def initialise_dcgan(net: nn.Module) -> None:
    """Weights ~ N(0, 0.02), batch-norm scales ~ N(1, 0.02), as published (section 4) and as released."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, BatchNorm | nn.GroupNorm) and module.weight is not None:
            nn.init.normal_(module.weight, 1.0, 0.02)


class DcganGenerator(nn.Module):
    """Transposed convolutions that double the side; batch-norm and ReLU after each but the last, which ends in tanh.

    At 64 pixels and 64 channels: z -> 512 x 4 x 4 -> 256 x 8 x 8 -> 128 x 16 x 16 -> 64 x 32 x 32 -> c x 64 x 64.
    """

    def __init__(
        self, spec: DataSpec, *, latent: int, channels: int, classes: int = 0, labels: Labels = "joined"
    ) -> None:
        super().__init__()
        self.condition = classes if labels == "batch_norm" else 0
        base, doublings = base_and_doublings(spec, "dcgan")
        self.bounded = spec.kind != "real"
        widths = [channels * 2**k for k in reversed(range(doublings))]
        inputs = latent + classes - self.condition
        layers: list[nn.Module] = [nn.ConvTranspose2d(inputs, widths[0], base, bias=False)]
        for before, after in zip(widths, [*widths[1:], spec.shape[0]], strict=True):
            norm = batch_norm(before, self.condition)
            layers += [norm, nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]
        self.net = nn.Sequential(*layers)
        initialise_dcgan(self)

    def forward(self, z: Float[Tensor, "b latent"], labels: Tensor | None = None) -> Float[Tensor, "b c h w"]:
        """Scaled images at latents z."""
        z = z if self.condition else joined(z, labels)
        x = through(self.net, z[:, :, None, None], labels)
        return torch.tanh(x) if self.bounded else x


class DcganDiscriminator(nn.Module):
    """Strided convolutions that halve the side; leaky ReLU, and normalisation in all layers but the first.

    At 64 pixels and 64 channels: c x 64 x 64 -> 64 x 32 x 32 -> 128 x 16 x 16 -> 256 x 8 x 8 -> 512 x 4 x 4 -> outputs.
    ``norm="layer"`` serves gradient penalties, which batch-norm would make meaningless by tying the examples together;
    ``norm="none"`` leaves the scale to spectral normalisation, and gives every convolution a bias.
    """

    def __init__(
        self, spec: DataSpec, *, channels: int, outputs: int = 1, classes: int = 0, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        base, doublings = base_and_doublings(spec, "dcgan")
        widths = [channels * 2**k for k in range(doublings)]
        free = norm == "none"  # else normalisation would remove a bias again, all but the first layer's
        layers: list[nn.Module] = [nn.Conv2d(spec.shape[0] + classes, channels, 4, 2, 1, bias=free), nn.LeakyReLU(0.2)]
        for before, after in itertools.pairwise(widths):
            layers.append(nn.Conv2d(before, after, 4, 2, 1, bias=free))
            if not free:
                layers.append(BatchNorm(after) if norm == "batch" else nn.GroupNorm(1, after))
            layers.append(nn.LeakyReLU(0.2))
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(widths[-1], outputs, base, bias=False)
        initialise_dcgan(self)

    def features(self, x: Float[Tensor, "b c h w"], labels: Tensor | None = None) -> Float[Tensor, "b f"]:
        """The last hidden layer, flattened."""
        return self.trunk(with_planes(x, labels)).flatten(1)

    def forward(self, x: Float[Tensor, "b c h w"], labels: Tensor | None = None) -> Float[Tensor, "b outputs"]:
        """The outputs at scaled images x."""
        return self.head(self.trunk(with_planes(x, labels))).flatten(1)

    def outputs(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b outputs"]:
        """The outputs at features."""
        return F.linear(features, self.head.weight.flatten(1))


class ResidualBlock(nn.Module):
    """Pre-activation block: [norm] ReLU conv [norm] ReLU conv, beside a 1x1 shortcut, with up- or down-sampling.

    A block that sees data does not ``activate`` them first.
    """

    def __init__(
        self,
        before: int,
        after: int,
        *,
        resample: Literal["up", "down", "none"] = "none",
        norm: bool = False,
        condition: int = 0,
        activate: bool = True,
    ) -> None:
        super().__init__()
        self.resample, self.activate = resample, activate
        self.norm1 = batch_norm(before, condition) if norm else nn.Identity()
        self.norm2 = batch_norm(after, condition) if norm else nn.Identity()
        # A batch-norm further on removes any constant of a channel, so biases before it would be idle.
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=not norm)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=not norm)
        plain = before == after and resample == "none"
        self.shortcut = nn.Identity() if plain else nn.Conv2d(before, after, 1, bias=not norm)

    def forward(self, x: Float[Tensor, "b c h w"], condition: Tensor | None = None) -> Float[Tensor, "b d i j"]:
        """Transform the maps x, given the condition (b, condition) of a conditional batch-norm."""
        h = through([self.norm1], x, condition)
        h = F.relu(h) if self.activate else h
        if self.resample == "up":
            h, x = F.interpolate(h, scale_factor=2.0), F.interpolate(x, scale_factor=2.0)
        h = self.conv2(F.relu(through([self.norm2], self.conv1(h), condition)))
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + self.shortcut(x)


def initialise_resnet(net: nn.Module) -> None:
    """He initialisation of every convolution, biases zero, as in the WGAN-GP release."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ResnetGenerator(nn.Module):
    """The WGAN-GP paper's CIFAR-10 generator (128 channels there): up-sampling residual blocks with batch-norm."""

    def __init__(
        self, spec: DataSpec, *, latent: int, channels: int, classes: int = 0, labels: Labels = "joined"
    ) -> None:
        super().__init__()
        self.condition = condition = classes if labels == "batch_norm" else 0
        self.base, doublings = base_and_doublings(spec, "resnet")
        self.bounded = spec.kind != "real"
        self.project = nn.Linear(latent + classes - condition, channels * self.base**2)
        self.blocks = nn.Sequential(
            *[
                ResidualBlock(channels, channels, resample="up", norm=True, condition=condition)
                for _ in range(doublings)
            ]
        )
        self.last = nn.Sequential(
            batch_norm(channels, condition), nn.ReLU(), nn.Conv2d(channels, spec.shape[0], 3, padding=1)
        )
        initialise_resnet(self)

    def forward(self, z: Float[Tensor, "b latent"], labels: Tensor | None = None) -> Float[Tensor, "b c h w"]:
        """Scaled images at latents z."""
        z = z if self.condition else joined(z, labels)
        h = self.project(z).unflatten(1, (-1, self.base, self.base))
        x = through([*self.blocks, *self.last], h, labels)
        return torch.tanh(x) if self.bounded else x


class ResnetDiscriminator(nn.Module):
    """The WGAN-GP paper's CIFAR-10 critic: residual blocks down to 7 or 8 pixels, two more, mean over the pixels."""

    def __init__(self, spec: DataSpec, *, channels: int, outputs: int = 1, classes: int = 0, bias: bool = True) -> None:
        super().__init__()
        base, doublings = base_and_doublings(spec, "resnet")
        halvings = doublings if base == 7 else doublings - 1
        self.stem = nn.Conv2d(spec.shape[0] + classes, channels, 3, padding=1)
        self.blocks = nn.Sequential(
            *[ResidualBlock(channels, channels, resample="down") for _ in range(halvings)],
            ResidualBlock(channels, channels),
            ResidualBlock(channels, channels),
        )
        self.head = nn.Linear(channels, outputs, bias=bias)
        initialise_resnet(self)

    def features(self, x: Float[Tensor, "b c h w"], labels: Tensor | None = None) -> Float[Tensor, "b f"]:
        """The last hidden layer: one number a channel."""
        return F.relu(self.blocks(self.stem(with_planes(x, labels)))).mean((2, 3))

    def forward(self, x: Float[Tensor, "b c h w"], labels: Tensor | None = None) -> Float[Tensor, "b outputs"]:
        """The outputs at scaled images x."""
        return self.outputs(self.features(x, labels))

    def outputs(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b outputs"]:
        """The outputs at features."""
        return self.head(features)


Discriminator = MlpDiscriminator | DcganDiscriminator | ResnetDiscriminator


def make_generator(
    net: NetName,
    spec: DataSpec,
    *,
    latent: int,
    hidden_sizes: Sequence[int],
    channels: int,
    classes: int = 0,
    labels: Labels = "joined",
) -> nn.Module:
    """The generator called ``net``; ``hidden_sizes`` serves the mlp, ``channels`` the convolutional nets.

    Labels are joined to z, or give scale and shift of batch-norm, which the mlp lacks.
    """
    if net not in get_args(NetName):
        raise UserError(f"net must be mlp, dcgan or resnet, not '{net}'.")
    if net == "mlp":
        if labels == "batch_norm":
            raise UserError("labels=batch_norm needs a generator with batch-norm: net=dcgan or net=resnet, not mlp.")
        return MlpGenerator(spec, latent=latent, hidden_sizes=hidden_sizes, classes=classes)
    kind = {"dcgan": DcganGenerator, "resnet": ResnetGenerator}[net]
    return kind(spec, latent=latent, channels=channels, classes=classes, labels=labels)


def make_discriminator(
    net: NetName,
    spec: DataSpec,
    *,
    hidden_sizes: Sequence[int],
    channels: int,
    outputs: int = 1,
    classes: int = 0,
    norm: Norm = "batch",
    bias: bool = True,
) -> Discriminator:
    """The discriminator called ``net``.

    ``norm`` concerns dcgan, the only one that normalises; ``bias`` is that of the last layer, which dcgan lacks anyway.
    """
    if net == "dcgan":
        return DcganDiscriminator(spec, channels=channels, outputs=outputs, classes=classes, norm=norm)
    if net == "resnet":
        return ResnetDiscriminator(spec, channels=channels, outputs=outputs, classes=classes, bias=bias)
    return MlpDiscriminator(spec, hidden_sizes=hidden_sizes, outputs=outputs, classes=classes, bias=bias)
