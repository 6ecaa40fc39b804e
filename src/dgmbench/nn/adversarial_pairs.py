"""Discriminators of pairs: of data with a label, by projection, and of data with a code.

What a network is conditioned on is an argument with a name: ``labels`` are classes y, one-hot (b, classes), ``code`` is
a latent z (b, latent). A discriminator of one kind does not take the other.

Papers: Miyato and Koyama 2018, https://arxiv.org/abs/1802.05637 (projection); Donahue et al. 2017,
https://arxiv.org/abs/1605.09782 (BiGAN), Dumoulin et al. 2017, https://arxiv.org/abs/1606.00704 (ALI).
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.nn.adversarial import NetName, Norm, hidden_layers, joined, make_discriminator


@runtime_checkable
class JudgesByFeatures(Protocol):
    """A network whose outputs are a function of its last hidden layer, as all of ``nn.adversarial`` are."""

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer (b, f) at scaled data x (b, *shape)."""
        ...

    def outputs(self, features: Tensor) -> Tensor:
        """The outputs (b, outputs) at features (b, f)."""
        ...


class ProjectionDiscriminator(nn.Module):
    """a(x, y) = psi(phi(x)) + <V y, phi(x)>, with the features phi and the head psi of a discriminator of x alone.

    The form that the log-ratio of two conditional densities has where log p(y|x) is linear in phi (equation 3 there).
    Every output of the head gets the same projection.
    """

    net: JudgesByFeatures

    def __init__(self, net: JudgesByFeatures, *, classes: int, features: int) -> None:
        super().__init__()
        self.net = net
        self.embedding = nn.Linear(classes, features, bias=False)

    def features(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, "b f"]:
        """phi(x), the last hidden layer, which does not see the label."""
        return self.net.features(x)

    def forward(self, x: Float[Tensor, " b *shape"], labels: Float[Tensor, "b classes"]) -> Float[Tensor, "b outputs"]:
        """The outputs at scaled data x with their labels."""
        phi = self.features(x)
        return self.net.outputs(phi) + (self.embedding(labels) * phi).sum(1, keepdim=True)


class JointDiscriminator(nn.Module):
    """a(x, z): hidden layers of a view of x joined with z, where the view is x itself or a network's outputs at x."""

    def __init__(
        self,
        view: nn.Module,
        width: int,
        *,
        latent: int,
        hidden_sizes: Sequence[int],
        outputs: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.view = view
        sizes = [width + latent, *hidden_sizes]
        self.trunk = nn.Sequential(*hidden_layers(sizes))
        self.head = nn.Linear(sizes[-1], outputs, bias=bias)

    def features(self, x: Float[Tensor, " b *shape"], code: Float[Tensor, "b latent"]) -> Float[Tensor, "b f"]:
        """The last hidden layer."""
        return self.trunk(joined(self.view(x), code))

    def forward(self, x: Float[Tensor, " b *shape"], code: Float[Tensor, "b latent"]) -> Float[Tensor, "b outputs"]:
        """The outputs at scaled data x with their codes."""
        return self.head(self.features(x, code))


def make_projection_discriminator(
    net: NetName,
    spec: DataSpec,
    *,
    classes: int,
    hidden_sizes: Sequence[int],
    channels: int,
    norm: Norm = "batch",
    bias: bool = True,
) -> ProjectionDiscriminator:
    """The discriminator of x called ``net``, made one of (x, y) by projection; ``bias`` is that of the last layer."""
    plain = make_discriminator(net, spec, hidden_sizes=hidden_sizes, channels=channels, norm=norm, bias=bias)
    return ProjectionDiscriminator(plain, classes=classes, features=plain.head.weight[0].numel())


def make_joint_discriminator(
    net: NetName,
    spec: DataSpec,
    *,
    latent: int,
    hidden_sizes: Sequence[int],
    channels: int,
    norm: Norm = "batch",
    bias: bool = True,
) -> JointDiscriminator:
    """A discriminator of (x, z): hidden layers of x and z (mlp), or of z and as many outputs of ``net`` at x.

    ``bias`` is that of the last layer.
    """
    if net == "mlp":
        return JointDiscriminator(nn.Flatten(), spec.dim, latent=latent, hidden_sizes=hidden_sizes, bias=bias)
    width = hidden_sizes[0]
    view = make_discriminator(net, spec, hidden_sizes=(), channels=channels, outputs=width, norm=norm)
    activated = nn.Sequential(view, nn.LeakyReLU(0.2))
    return JointDiscriminator(activated, width, latent=latent, hidden_sizes=hidden_sizes, bias=bias)
