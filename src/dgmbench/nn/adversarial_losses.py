"""What the players of an adversarial training minimise: objects with parameters, on a discriminator's outputs.

A discriminator gives one number a(x) for each example, with no sigmoid. A loss takes these outputs at data, ``real``
(n,), *and* at samples, ``fake`` (m,), together, and has a term for every player:

    discriminator(real, fake)   the discriminator
    generator(fake, real)       a player whose parameters move the samples; it looks at ``real`` if ``sees_real``
    encoder(real, fake)         a player whose parameters move what the discriminator sees of data, such as the code
                                E(x) in a(x, E(x)): the generator's term with real and fake exchanged
    opponents(real, fake)       generator and encoder as one player

Most losses judge every output by itself (``OutputLoss``): four functions, each (n,) -> (n,), whose means are the terms.

Papers: Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661 (minimax, non_saturating); Arjovsky et al. 2017,
https://arxiv.org/abs/1701.07875 (wasserstein); Mao et al. 2017, https://arxiv.org/abs/1611.04076 (least_squares); Lim
and Ye 2017, https://arxiv.org/abs/1705.02894 (hinge); Nowozin et al. 2016, https://arxiv.org/abs/1606.00709
(f_divergence); Jolicoeur-Martineau 2019, https://arxiv.org/abs/1807.00734 (relativistic_average); Gulrajani et al.
2017, https://arxiv.org/abs/1704.00028 (the gradient penalty); Mescheder et al. 2018,
https://arxiv.org/abs/1801.04406 (R1).
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from dgmbench.errors import UserError, nearest
from dgmbench.nn.f_divergences import DIVERGENCES, DivergenceName

AdversarialLossName = Literal[
    "non_saturating",
    "minimax",
    "wasserstein",
    "least_squares",
    "hinge",
    "f_divergence",
    "relativistic_average",
]


class AdversarialLoss:
    """One adversarial objective: a scalar for every player, a mean over the examples."""

    sees_real: ClassVar[bool] = False
    """Whether the generator's term depends on the outputs at data."""
    sees_constant: ClassVar[bool] = True
    """Whether a constant added to all outputs changes anything; if not, a bias of the last layer would be idle."""

    has_targets: bool = False
    """Whether the discriminator aims at one value on data and another on samples, between which labels smooth."""

    @abstractmethod
    def discriminator(
        self, real: Float[Tensor, " n"], fake: Float[Tensor, " m"], *, label_smoothing: float = 0.0
    ) -> Float[Tensor, ""]:
        """What the discriminator minimises; with smoothing s, data count as samples with weight s (one-sided)."""

    @abstractmethod
    def generator(self, fake: Float[Tensor, " m"], real: Float[Tensor, " n"] | None = None) -> Float[Tensor, ""]:
        """What a player behind the samples minimises."""

    @abstractmethod
    def encoder(self, real: Float[Tensor, " n"], fake: Float[Tensor, " m"] | None = None) -> Float[Tensor, ""]:
        """What a player behind the discriminator's view of data minimises."""

    def opponents(self, real: Float[Tensor, " n"], fake: Float[Tensor, " m"]) -> Float[Tensor, ""]:
        """What generator and encoder minimise as one player."""
        return self.generator(fake, real) + self.encoder(real, fake)


class OutputLoss(AdversarialLoss):
    """A loss that judges each output by itself, so that every term is a mean of a function of one output."""

    @abstractmethod
    def real(self, a: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The discriminator's loss at data."""

    @abstractmethod
    def fake(self, a: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The discriminator's loss at samples."""

    @abstractmethod
    def generated(self, a: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The generator's loss at samples."""

    @abstractmethod
    def encoded(self, a: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The encoder's loss at data."""

    def discriminator(self, real: Tensor, fake: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """E real(a(x)) + E fake(a(G(z)))."""
        at_data = self.real(real).mean()
        if label_smoothing:
            at_data = torch.lerp(at_data, self.fake(real).mean(), label_smoothing)
        return at_data + self.fake(fake).mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """E generated(a(G(z)))."""
        return self.generated(fake).mean()

    def encoder(self, real: Tensor, fake: Tensor | None = None) -> Tensor:
        """E encoded(a(x))."""
        return self.encoded(real).mean()


class Logistic(OutputLoss):
    """A discriminator of probabilities D = sigmoid(a): -log D = softplus(-a) and -log(1 - D) = softplus(a)."""

    has_targets = True

    def real(self, a: Tensor) -> Tensor:
        """-log D."""
        return F.softplus(-a)

    def fake(self, a: Tensor) -> Tensor:
        """-log(1 - D)."""
        return F.softplus(a)


@dataclass(frozen=True)
class NonSaturating(Logistic):
    """The generator minimises -log D(G(z)), whose gradient does not vanish where D(G(z)) is 0."""

    def generated(self, a: Tensor) -> Tensor:
        """-log D."""
        return F.softplus(-a)

    def encoded(self, a: Tensor) -> Tensor:
        """-log(1 - D)."""
        return F.softplus(a)


@dataclass(frozen=True)
class Minimax(Logistic):
    """min_G max_D E log D(x) + E log(1 - D(G(z))), the same value for all players."""

    def generated(self, a: Tensor) -> Tensor:
        """log(1 - D)."""
        return -F.softplus(a)

    def encoded(self, a: Tensor) -> Tensor:
        """log D."""
        return -F.softplus(-a)


@dataclass(frozen=True)
class Wasserstein(OutputLoss):
    """max_D E a(x) - E a(G(z)): the Wasserstein-1 distance, where a is held 1-Lipschitz."""

    sees_constant = False

    def real(self, a: Tensor) -> Tensor:
        """-a."""
        return torch.neg(a)

    def fake(self, a: Tensor) -> Tensor:
        """a."""
        return a

    def generated(self, a: Tensor) -> Tensor:
        """-a."""
        return torch.neg(a)

    def encoded(self, a: Tensor) -> Tensor:
        """a."""
        return a


@dataclass(frozen=True)
class LeastSquares(OutputLoss):
    """Half squared distances to a for samples, b for data and c, the value that the generator wants (eq. 2 there).

    The two codings of the paper are (a, b, c) = (-1, 1, 0), which minimises a Pearson chi-squared divergence, and (0,
    1, 1). The encoder wants c seen from the other side, a + b - c.
    """

    has_targets = True

    a: float = 0.0
    b: float = 1.0
    c: float = 1.0

    def __post_init__(self) -> None:
        if self.a == self.b:
            raise UserError(f"model.loss.a and model.loss.b must differ, and both are {self.a}.")

    def real(self, a: Tensor) -> Tensor:
        """Half (a(x) - b)^2."""
        return 0.5 * (a - self.b).square()

    def fake(self, a: Tensor) -> Tensor:
        """Half (a(G(z)) - a)^2."""
        return 0.5 * (a - self.a).square()

    def generated(self, a: Tensor) -> Tensor:
        """Half (a(G(z)) - c)^2."""
        return 0.5 * (a - self.c).square()

    def encoded(self, a: Tensor) -> Tensor:
        """Half (a(x) - (a + b - c))^2."""
        return 0.5 * (a - (self.a + self.b - self.c)).square()


@dataclass(frozen=True)
class Hinge(OutputLoss):
    """The discriminator minimises max(0, 1 - a(x)) + max(0, 1 + a(G(z))), the generator -a(G(z))."""

    def real(self, a: Tensor) -> Tensor:
        """No gradient from data beyond the margin."""
        return F.relu(1 - a)

    def fake(self, a: Tensor) -> Tensor:
        """No gradient from samples beyond the margin."""
        return F.relu(1 + a)

    def generated(self, a: Tensor) -> Tensor:
        """-a."""
        return torch.neg(a)

    def encoded(self, a: Tensor) -> Tensor:
        """a."""
        return a


@dataclass(frozen=True)
class FDivergence(OutputLoss):
    """max_D E T(x) - E f*(T(G(z))), T = g(a): a lower bound of the f-divergence D_f(p_data || p_G), which G minimises.

    f* is the conjugate of f and g the activation that puts the output into its domain (``nn.f_divergences``). With
    ``saturating=False`` the generator maximises E T(G(z)) in place of minimising -E f*(T(G(z))) (section 3.2 there).
    """

    divergence: DivergenceName = "kl"
    saturating: bool = True

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            raise UserError(nearest(self.divergence, DIVERGENCES, what="model.loss.divergence"))

    def real(self, a: Tensor) -> Tensor:
        """-T."""
        return -DIVERGENCES[self.divergence].activation(a)

    def fake(self, a: Tensor) -> Tensor:
        """f*(T)."""
        return DIVERGENCES[self.divergence].conjugate_of_output(a)

    def generated(self, a: Tensor) -> Tensor:
        """-f*(T), or -T."""
        return -self.fake(a) if self.saturating else self.real(a)

    def encoded(self, a: Tensor) -> Tensor:
        """T, or f*(T)."""
        return -self.real(a) if self.saturating else self.fake(a)


class RelativisticAverage(AdversarialLoss):
    """Outputs count relative to the other side's mean: a(x) - E a(G(z)) at data, a(G(z)) - E a(x) at samples.

    Of these differences, discriminator and opponents minimise the terms of ``base``, so that data and samples reach
    both players: the generator also wants data to look less real. With the non-saturating base it is the RaSGAN, and
    ESRGAN's loss; with least_squares (-1, 1, 1) the RaLSGAN.
    """

    sees_real = True
    sees_constant = False

    def __init__(self, base: "AdversarialLossName | OutputLoss" = "non_saturating") -> None:
        made = adversarial_loss(base)
        if not isinstance(made, OutputLoss):
            raise UserError(f"model.loss.base={base} must judge every output by itself; choose non_saturating, say.")
        self.base, self.has_targets = made, made.has_targets

    def __repr__(self) -> str:
        return f"RelativisticAverage({self.base})"

    def discriminator(self, real: Tensor, fake: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """E real(a(x) - E a(G(z))) + E fake(a(G(z)) - E a(x))."""
        return self.base.discriminator(real - fake.mean(), fake - real.mean(), label_smoothing=label_smoothing)

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """E encoded(a(x) - E a(G(z))) + E generated(a(G(z)) - E a(x))."""
        if real is None:
            raise TypeError("A relativistic loss needs the outputs at data, too: pass real (its sees_real is true).")
        return self.base.opponents(real - fake.mean(), fake - real.mean())

    def encoder(self, real: Tensor, fake: Tensor | None = None) -> Tensor:
        """The same: both sides reach every opponent."""
        if fake is None:
            raise TypeError("A relativistic loss needs the outputs at samples, too: pass fake.")
        return self.generator(fake, real)

    def opponents(self, real: Tensor, fake: Tensor) -> Tensor:
        """The same, once."""
        return self.generator(fake, real)


LOSSES: dict[str, type[AdversarialLoss]] = {
    "non_saturating": NonSaturating,
    "minimax": Minimax,
    "wasserstein": Wasserstein,
    "least_squares": LeastSquares,
    "hinge": Hinge,
    "f_divergence": FDivergence,
    "relativistic_average": RelativisticAverage,
}


def adversarial_loss(loss: str | AdversarialLoss) -> AdversarialLoss:
    """The loss itself, or the one of this name with its default parameters."""
    if isinstance(loss, AdversarialLoss):
        return loss
    if loss not in LOSSES:
        raise UserError(nearest(loss, LOSSES, what="model.loss"))
    return LOSSES[loss]()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Float[Tensor, " b *shape"],
    fake: Float[Tensor, " b *shape"],
    *,
    generator: Generator | None = None,
) -> Float[Tensor, " b"]:
    """(||grad_x a(x_hat)|| - 1)^2 per example, at x_hat = alpha real + (1 - alpha) fake (Gulrajani et al. 2017).

    One alpha ~ U(0, 1) an example; the norm is over all dimensions of an example. The gradient is taken in full
    precision, whatever autocast is on, and can be differentiated again.
    """
    alpha = torch.rand(len(real), device=real.device, dtype=real.dtype, generator=generator)
    alpha = alpha.view(-1, *[1] * (real.dim() - 1))
    with torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
        point = torch.lerp(fake.to(real.dtype), real, alpha).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(point).sum(), point, create_graph=True)
        norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (norm - 1).square()


def slope_penalty(critic: Callable[[Tensor], Tensor], real: Float[Tensor, " b *shape"]) -> Float[Tensor, " b"]:
    """||grad_x a(x)||^2 per example at data: R1 is gamma / 2 times its mean (Mescheder et al. 2018).

    As in ``gradient_penalty``, over all dimensions of an example and in full precision.
    """
    with torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
        point = real.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(point).sum(), point, create_graph=True)
    return gradient.flatten(1).square().sum(1)
