r"""RBM with noisy rectified hidden units (NReLU), on real data, data with levels, or bits.

Every hidden unit stands for infinitely many copies of a bit with the same weights, whose biases are b - 1/2, b - 3/2,
...; how many of them are on is what the visible units see. Their sum is drawn in one go, as

    h_j | v ~ max(0, N(eta_j, sigmoid(eta_j))),      eta = b + W'f(v),

the variance being sigmoid(eta), not the deviation. f(v) is v / sigma of Gaussian visible units (``gaussian_rbm.py``),
v of bits. With the copies summed out,

    F(v) = (that of the visible units alone) - sum_j A(eta_j),      A(eta) = sum_i softplus(eta - i + 1/2),

whose derivative is about softplus(eta). Chains of training draw the normal; what is measured is the machine of the
copies themselves (``nn/rectified_units.py``): its annealing, and the last steps of its samples, draw those.

*Normalisable.* A grows like eta^2 / 2, so that of Gaussian visible units F(v) >= (1 - |W|^2) |f(v)|^2 / 2 + linear
terms: Z is finite if the spectral norm |W| is below 1. After each step singular values above ``max_norm`` are cut off.

Shapes: raw x (b, *shape), v (b, visible), h (b, hidden). Units: nats.
Paper: Nair, Hinton 2010, "Rectified linear units improve restricted Boltzmann machines",
https://icml.cc/Conferences/2010/papers/432.pdf.

Different from the paper: the weights are bounded, so that there is a density; sigma is learned; the paper's translation
equivariance (no biases) is not imposed.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.couplings import Couplings, GeometricPath
from dgmbench.models.boltzmann.energy_model import TwoSided
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.gaussian_rbm import GaussianRbm
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.boltzmann.real_data import Dequantised
from dgmbench.nn.rectified_units import Rectified, SteppedSigmoid

EXACT_STEPS = 20  # of a sample's chain, the last ones


class Stepped(TwoSided):
    """Mixed into a machine of ``Rectified`` hidden units, this measures and samples that of the copies."""

    def stepped(self) -> Couplings:
        """The machine whose hidden units count copies of bits."""
        return replace(cast(Couplings, self.couplings()), hidden_units=SteppedSigmoid())

    def annealing_path(self) -> GeometricPath:
        """From the base to the machine of the copies."""
        path = super().annealing_path()
        return GeometricPath.between(self.base(), self.stepped(), upwards=path.upwards)

    @torch.no_grad()
    def gibbs(
        self, v: Float[Tensor, "b v"], steps: int = 1, *, generator: Generator | None = None
    ) -> Float[Tensor, "b v"]:
        """``steps`` block Gibbs steps, the last ``EXACT_STEPS`` of them with all copies."""
        last = min(steps, EXACT_STEPS)
        return self.stepped().gibbs(super().gibbs(v, steps - last, generator=generator), last, generator)

    @torch.no_grad()
    def transition(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """One Gibbs step of the machine of the copies, from raw values to raw values."""
        return self.raw(self.stepped().gibbs(self.flatten(x), 1, generator))


class OfKind(Stepped, GaussianRbm):
    """What chooses the class for a kind of data, apart from ``ReluRbm``, whose signature is its constructor's."""

    def __new__(cls, spec: DataSpec | None = None, **settings: Any) -> Any:
        """The class for this kind of data; without a spec (copying, unpickling), the class itself."""
        if spec is not None and spec.kind == "binary":
            return BinaryReluRbm(spec, **settings)
        return super().__new__(cls, spec, **settings)


class ReluRbm(OfKind):
    """RBM of rectified hidden units; ``ReluRbm(spec)`` is one of real data, of levels or of bits, as the spec says.

    Args:
        spec: real data, discrete data of any number of levels, or binary data.
        hidden: number of hidden units.
        estimator: how the gradient is estimated; a copy is kept as a submodule. Default: ``CD(k=1)``.
        max_norm: the largest spectral norm of the weights to Gaussian visible units, below 1.
        weight_std: standard deviation of the initial weights.
        sample_steps: Gibbs steps of ``sample``, started from independent units with the data's moments.
    """

    on_levels: ClassVar[type[GaussianRbm]]
    hidden_units = Rectified()

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: int = 500,
        estimator: Estimator | None = None,
        max_norm: float = 0.95,
        weight_std: float = 0.01,
        sample_steps: int = 1000,
    ) -> None:
        super().__init__(spec, hidden=hidden, estimator=estimator, weight_std=weight_std, sample_steps=sample_steps)
        require(least=0, most=0.999, max_norm=max_norm)
        self.max_norm = max_norm
        self.bound()

    def refuse(self, spec: DataSpec, name: str) -> None:
        """Raise a UserError about data that no visible units take."""
        if spec.kind not in ("real", "discrete"):
            raise UserError(
                f"relu_rbm models real data, grey levels or bits, but these are {spec}; choose such data, for example "
                "data=digits."
            )

    @torch.no_grad()
    def bound(self) -> None:
        """Cut off the weights' singular values above ``max_norm``."""
        if float(torch.linalg.matrix_norm(self.weight, 2)) > self.max_norm:
            left, values, right = torch.linalg.svd(self.weight, full_matrices=False)
            self.weight.copy_((left * values.clamp(max=self.max_norm)) @ right)

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Bound the weights, then advance chains and fast weights."""
        self.bound()
        super().after_step(player, batch, generator)


class DequantisedReluRbm(Dequantised, ReluRbm):
    """RBM of rectified hidden units, of data with levels."""

    transition = None  # type: ignore[assignment]  # as of all machines of dequantised data


class BinaryReluRbm(Stepped, Rbm):
    """RBM of rectified hidden units, of bits: normalisable whatever the weights."""

    def __init__(self, spec: DataSpec, *, max_norm: float = 0.95, **settings: Any) -> None:
        super().__init__(spec, **settings)

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Couplings:
        """Weights and biases as of bits."""
        return replace(super().couplings(fast), hidden_units=Rectified())

    def hidden_probability(self, v: Float[Tensor, "b v"]) -> Float[Tensor, "b h"]:
        """The expected number of copies that are on."""
        now = self.couplings()
        return now.hidden_units.mean(now.hidden_logits(v))


ReluRbm.on_levels = DequantisedReluRbm
