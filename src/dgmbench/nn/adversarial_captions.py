"""Parts of adversarial models of pictures given captions: what a caption means, its augmentation, judges of pairs.

A caption's embedding is learned first, by telling which pictures and captions belong together, and then kept. It is
conditioned on as a draw of a Gaussian around it, and joined to the maps of a discriminator as constant planes.
"""

import itertools

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.adversarial import initialise_dcgan, with_planes
from dgmbench.nn.batchnorm import BatchNorm
from dgmbench.nn.gaussians import Moments, gaussian_kl, moments, standard
from dgmbench.nn.sentence_reader import SentenceReader

BASE = 4  # side of the smallest maps


def doublings(side: int) -> int:
    """How often a side of 4 pixels is doubled to make this one."""
    count = (side // BASE).bit_length() - 1
    if side < BASE or BASE * 2**count != side:
        raise UserError(
            f"Pictures of captions have a side of 8, 16, 32, 64, ..., here from stage to stage, not {side}."
        )
    return count


def captions_of(spec: DataSpec) -> DataSpec:
    """The space of the captions of square pictures; other data are refused."""
    if not spec.is_image or spec.shape[1] != spec.shape[2]:
        raise UserError(f"Pictures of captions must be square images, not {spec}; choose data=shapes_captions, say.")
    if spec.given is None or spec.given.kind != "tokens":
        raise UserError(f"Every picture needs a caption, tokens of words, and these data are {spec}.")
    return spec.given


class CaptionEmbedding(nn.Module):
    """phi(t) (b, embedding) of captions t, learned jointly with an embedding v(x) of their pictures.

    With s_ij = scale <v(x_i), phi(t_j)> between unit vectors of a batch, the loss is the mean of -log softmax_j(s)_ii
    and -log softmax_i(s)_ii: each picture finds its caption, and each caption its picture.
    """

    def __init__(self, spec: DataSpec, *, embedding: int, width: int, channels: int) -> None:
        super().__init__()
        captions = captions_of(spec)
        self.reader = SentenceReader(captions.levels or 0, captions.end, width=width, hidden=width, outputs=embedding)
        halvings = doublings(spec.shape[1])
        widths = [spec.shape[0], *(channels * 2**k for k in range(halvings))]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.viewer = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * BASE**2, embedding))
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, captions: Int[Tensor, "b t"]) -> Float[Tensor, "b e"]:
        """phi of raw captions, of length sqrt(embedding)."""
        vectors = F.normalize(self.reader(captions), dim=1)
        return vectors * vectors.shape[1] ** 0.5

    def loss(self, x: Float[Tensor, "b c h w"], captions: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
        """The loss above, nats, at scaled pictures and their captions."""
        phi, v = F.normalize(self.reader(captions), dim=1), F.normalize(self.viewer(x), dim=1)
        scores = self.log_scale.exp() * v @ phi.T
        own = torch.arange(len(x), device=x.device)
        return 0.5 * (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own))


class ConditioningAugmentation(nn.Module):
    """c ~ N(mu(phi), diag sigma(phi)^2) (b, condition), so that captions between the known ones have pictures, too."""

    def __init__(self, embedding: int, condition: int) -> None:
        super().__init__()
        self.moments = nn.Linear(embedding, 2 * condition)

    def forward(self, phi: Float[Tensor, "b e"]) -> Moments:
        """mu and log sigma."""
        return moments(self.moments(phi))

    def draw(
        self, phi: Float[Tensor, "b e"], generator: Generator | None
    ) -> tuple[Float[Tensor, "b c"], Float[Tensor, ""]]:
        """One c of each embedding, and the mean over the batch of KL(N(mu, diag sigma^2) || N(0, I)), nats."""
        q = self(phi)
        noise = torch.randn(q.mean.shape, device=phi.device, generator=generator)
        return q.mean + q.log_sigma.exp() * noise, gaussian_kl(q, standard(q.mean)).sum(1).mean()


def up(before: int, after: int) -> nn.Sequential:
    """Nearest neighbours at twice the side, a convolution, batch-norm, ReLU."""
    conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return nn.Sequential(nn.Upsample(scale_factor=2.0), conv, BatchNorm(after), nn.ReLU())


def mixed(before: int, after: int) -> nn.Sequential:
    """A convolution at the same side, batch-norm, ReLU: of maps joined with planes."""
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), BatchNorm(after), nn.ReLU())


class Residual(nn.Module):
    """ReLU(x + norm(conv(ReLU(norm(conv(x)))))) on maps that keep their size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.net = nn.Sequential(mixed(channels, channels), last, BatchNorm(channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The maps with what the block adds."""
        return F.relu(x + self.net(x))


class Picture(nn.Module):
    """Maps -> scaled pictures: a convolution, and tanh where the data are bounded."""

    def __init__(self, before: int, spec: DataSpec) -> None:
        super().__init__()
        self.conv, self.bounded = nn.Conv2d(before, spec.shape[0], 3, padding=1), spec.kind != "real"

    def forward(self, h: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h w"]:
        """The pictures."""
        x = self.conv(h)
        return torch.tanh(x) if self.bounded else x


class Seed(nn.Module):
    """(z, c) -> maps: a linear map to 4 x 4, then doublings of the side that halve the maps down to ``channels``."""

    def __init__(self, inputs: int, *, side: int, channels: int) -> None:
        super().__init__()
        widths = [channels * 2**k for k in reversed(range(doublings(side) + 1))]
        self.project = nn.Linear(inputs, widths[0] * BASE**2, bias=False)
        self.norm = BatchNorm(widths[0])
        self.net = nn.Sequential(*[up(*pair) for pair in itertools.pairwise(widths)])

    def forward(self, z: Float[Tensor, "b i"]) -> Float[Tensor, "b d h w"]:
        """The maps at the noise joined with the condition."""
        return self.net(F.relu(self.norm(self.project(z).unflatten(1, (-1, BASE, BASE)))))


class PairDiscriminator(nn.Module):
    """a(x, phi), and a(x) where it also judges ``alone``: convolutions halve the side to 4, then phi joins as planes.

    Args:
        spec: of the pictures; the side is an argument of its own.
        side: Of the pictures that are judged.
        channels: Maps of the first layer, doubling with every halving.
        embedding: Numbers of phi, 0 for a judge of pictures alone.
        condition: Planes that phi becomes.
        alone: Has a second output, of x without phi.
        bias: Of the last layers.
    """

    def __init__(
        self, spec: DataSpec, *, side: int, channels: int, embedding: int, condition: int, alone: bool, bias: bool
    ) -> None:
        super().__init__()
        widths = [channels * 2**k for k in range(doublings(side))]
        layers: list[nn.Module] = [nn.Conv2d(spec.shape[0], widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), BatchNorm(after), nn.LeakyReLU(0.2)]
        self.trunk, last = nn.Sequential(*layers), widths[-1]
        if embedding:
            self.compress = nn.Linear(embedding, condition)
            joint = nn.Conv2d(last + condition, last, 1, bias=False)
            self.joint = nn.Sequential(joint, BatchNorm(last), nn.LeakyReLU(0.2), nn.Conv2d(last, 1, BASE, bias=bias))
        if alone:
            self.alone = nn.Conv2d(last, 1, BASE, bias=bias)
        initialise_dcgan(self)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d 4 4"]:
        """The maps that both outputs are made of."""
        return self.trunk(x)

    def pair(self, features: Float[Tensor, "b d 4 4"], phi: Float[Tensor, "b e"]) -> Float[Tensor, " b"]:
        """a(x, phi)."""
        return self.joint(with_planes(features, self.compress(phi))).flatten()

    def single(self, features: Float[Tensor, "b d 4 4"]) -> Float[Tensor, " b"]:
        """a(x)."""
        return self.alone(features).flatten()
