r"""RBM whose weights are a function of where its units lie: a small network of two coordinates, learned by CD.

    W_ij = g(c_i, u_j),      E(v, h) = -v'W h - a'v - b'h,

c_i the place of visible unit i in the data's array, each axis from -1 to 1, and u_j the place of hidden unit j in the
cube (-1, 1)^d. The number of parameters does not grow with the product of both layers, and a unit more has weights
before it has seen data. The gradient is the RBM's, through the chain rule: dL / dtheta = sum_ij dL / dW_ij dg / dtheta.

g has two hidden layers; the first is of sines, since weights that change from pixel to pixel are no smooth function of
their place:

    g(c, u) = w'tanh(B sin(A [c, u] + d) + e).

Shapes: raw x (b, *shape), flattened to v (b, visible); h (b, hidden). Units: nats.
Source: table 1 of M. Hu, J. Liu, X. Zuo, "Survey on deep generative model" (Acta Automatica Sinica),
https://doi.org/10.16383/j.aas.c190866, which names the model (apRBM) and says that the weights between the layers are a
deterministic function, without a citation. The network, the coordinates and the sines (Sitzmann et al. 2020, "Implicit
neural representations with periodic activation functions", https://arxiv.org/abs/2006.09661) are choices of this code.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from dgmbench.data.spec import DataSpec
from dgmbench.errors import require
from dgmbench.models.boltzmann.couplings import Couplings
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.rbm import Rbm


def places(shape: Sequence[int]) -> Float[Tensor, "units axes"]:
    """Coordinates from -1 to 1 of the elements of an array, along its axes of more than one."""
    axes = [torch.linspace(-1, 1, size) for size in shape if size > 1] or [torch.zeros(1)]
    return torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], -1)


class CoordinateNetwork(nn.Module):
    """g(c, u) at all pairs of coordinates.

    Args:
        visible: axes of c.
        hidden: axes of u.
        width: units of either hidden layer.
        frequency: standard deviation of the initial frequencies A, in radians per unit of length.
        std: standard deviation of the initial values, about.
    """

    def __init__(self, visible: int, hidden: int, *, width: int, frequency: float, std: float) -> None:
        super().__init__()
        self.of_visible = nn.Parameter(frequency * torch.randn(visible, width))
        self.of_hidden = nn.Parameter(frequency * torch.randn(hidden, width))
        self.phase = nn.Parameter(torch.pi * (2 * torch.rand(width) - 1))
        self.inner = nn.Linear(width, width)
        self.outer = nn.Parameter(std * (4 / width) ** 0.5 * torch.randn(width))  # tanh has a mean square of about 1/4

    def forward(self, c: Float[Tensor, "v k"], u: Float[Tensor, "h d"]) -> Float[Tensor, "v h"]:
        """Values of all pairs."""
        waves = ((c @ self.of_visible)[:, None] + (u @ self.of_hidden + self.phase)[None]).sin()
        return self.inner(waves).tanh() @ self.outer


class Aprbm(Rbm):
    """RBM of weights that are a function of its units' coordinates.

    Args:
        spec: binary data of any shape.
        hidden: number of hidden units.
        estimator: how the gradient is estimated; a copy is kept as a submodule. Default: ``CD(k=1)``.
        width: units of both hidden layers of the network.
        axes: dimensions of the cube that the hidden units lie in, at the points of a Sobol sequence.
        frequency: standard deviation of the network's initial frequencies, radians per unit of length.
        weight_decay: half the squared weights that the network gives are added to the loss with this factor.
        weight_std: standard deviation of the initial weights, about.
        sample_steps: Gibbs steps of ``sample``, started from the data's base rates.
    """

    visible_places: Tensor
    hidden_places: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: int = 500,
        estimator: Estimator | None = None,
        width: int = 48,
        axes: int = 4,
        frequency: float = 3.0,
        weight_decay: float = 0.0,
        weight_std: float = 0.01,
        sample_steps: int = 1000,
    ) -> None:
        require(least=1, width=width, axes=axes)
        require(least=0, frequency=frequency)
        self.width, self.axes, self.frequency = width, axes, frequency
        super().__init__(
            spec,
            hidden=hidden,
            estimator=estimator,
            weight_decay=weight_decay,
            weight_std=weight_std,
            sample_steps=sample_steps,
        )

    def make_weight(self, visible: int, hidden: int, std: float) -> None:
        """The coordinates and the network in place of a matrix."""
        c = places(self.spec.shape)
        u = torch.quasirandom.SobolEngine(self.axes, scramble=True, seed=0).draw(hidden)
        self.register_buffer("visible_places", c)
        self.register_buffer("hidden_places", 2 * u - 1)
        self.network = CoordinateNetwork(c.shape[1], self.axes, width=self.width, frequency=self.frequency, std=std)

    @property
    def weight(self) -> Float[Tensor, "v h"]:  # type: ignore[override]  # of an RBM a parameter, here a function of some
        """The network at every pair of places."""
        found: Tensor = self.network(self.visible_places, self.hidden_places)
        return found

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Couplings:
        """Weights and biases, with ``fast`` added to biases and to the network's parameters first if given."""
        if fast is None:
            return super().couplings()
        own = {name: slow + quick for (name, slow), quick in zip(self.overlaid().items(), fast, strict=True)}
        network = {name.removeprefix("network."): p for name, p in own.items() if name.startswith("network.")}
        weight = functional_call(self.network, network, (self.visible_places, self.hidden_places))
        return Couplings(weight, own["visible_bias"], own["hidden_bias"])

    def state_sizes(self) -> tuple[int, int]:
        """Visible and hidden units."""
        return len(self.visible_places), len(self.hidden_places)
