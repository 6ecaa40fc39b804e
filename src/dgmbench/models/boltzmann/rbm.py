"""Restricted Boltzmann machine: visible and hidden binary units joined by weights, with none inside a layer.

    E(v, h) = -v'W h - a'v - b'h,     p(v) = exp(-F(v)) / Z,     F(v) = -a'v - sum_j softplus(b_j + (v'W)_j)

Its log-likelihood gradient is the difference of <v h'> under the data and under the model. How the second term (the
negative phase) is estimated is an object of its own, ``estimator``: see ``estimators.py``. log Z is exact by
enumeration where one layer has at most 20 units, and else comes from annealed importance sampling (``annealing_path``).

*Centring* (Montavon & Mueller 2012; Melchior, Fischer, Wiskott 2016): with offsets mu and lambda (running means of the
visible and hidden units under the data) the energy is written

    E(v, h) = -(v - mu)'W (h - lambda) - (v - mu)'a - (h - lambda)'b,

the same family of distributions in coordinates whose gradient is better conditioned. When the offsets move, the biases
are changed such that p(v) stays the same. Terms that depend on neither v nor h are left out of E, F and log Z alike.

Shapes: raw x (b, *shape), flattened to v (b, visible); h (b, hidden). Units: nats.
Papers: Smolensky 1986, "Information processing in dynamical systems: foundations of harmony theory"; Hinton 2002,
"Training products of experts by minimizing contrastive divergence", https://doi.org/10.1162/089976602760128018.
``sample`` is Markov chain Monte Carlo, so its draws are as good as ``sample_steps`` Gibbs steps can make them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.couplings import Couplings
from dgmbench.models.boltzmann.energy_model import TwoSided
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.contract import Logs
from dgmbench.nn.unit_layers import BERNOULLI, Independent, smoothed_rates


class Rbm(TwoSided):
    """Binary restricted Boltzmann machine.

    Args:
        spec: binary data of any shape.
        hidden: number of hidden units.
        estimator: how the gradient is estimated; a copy is kept as a submodule. Default: ``CD(k=1)``.
        centred: use centring offsets.
        centring_rate: how fast the offsets follow the data's means, per update.
        weight_decay: half the squared weights, never the biases, are added to the loss with this factor (Hinton 2012).
        weight_std: standard deviation of the initial weights (Hinton 2012, "A practical guide to training RBMs").
        sample_steps: Gibbs steps of ``sample``, started from the data's base rates.
    """

    weight: Tensor
    base_logits: Tensor
    visible_offset: Tensor
    hidden_offset: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: int = 500,
        estimator: Estimator | None = None,
        centred: bool = False,
        centring_rate: float = 0.01,
        weight_decay: float = 0.0,
        weight_std: float = 0.01,
        sample_steps: int = 1000,
    ) -> None:
        super().__init__(spec, sample_steps=sample_steps)
        if spec.kind != "binary":
            raise UserError(
                f"rbm models binary data, but these are {spec}; choose a binary data set, such as data=digits_binary."
            )
        require(least=1, hidden=hidden)
        require(least=0, weight_std=weight_std, weight_decay=weight_decay)
        require(least=0, most=1, centring_rate=centring_rate)
        self.weight_decay = weight_decay
        self.centred, self.centring_rate = centred, centring_rate
        self.make_weight(spec.dim, hidden, weight_std)
        self.visible_bias = nn.Parameter(torch.zeros(spec.dim))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.register_buffer("base_logits", torch.zeros(spec.dim))  # the data's log-odds: base of AIS, noise of NCE
        self.register_buffer("visible_offset", torch.full((spec.dim,), 0.5 if centred else 0.0))
        self.register_buffer("hidden_offset", torch.full((hidden,), 0.5 if centred else 0.0))
        self.train_by(estimator)

    def make_weight(self, visible: int, hidden: int, std: float) -> None:
        """Register ``weight`` (visible, hidden), or what makes it."""
        self.weight = nn.Parameter(std * torch.randn(visible, hidden))

    # ---- the distribution ----

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Couplings:
        """Weights and biases of the plain energy (offsets multiplied out), with ``fast`` added first if given."""
        total = Couplings(self.weight, self.visible_bias, self.hidden_bias)
        if fast is not None:
            weight, a, b = (slow + quick for slow, quick in zip(total, fast, strict=True))
            total = Couplings(weight, a, b)
        return self.plain(total)

    def plain(self, total: Couplings) -> Couplings:
        """The energy with its offsets multiplied out."""
        if not self.centred:
            return total
        weight, a, b = total
        return Couplings(weight, a - weight @ self.hidden_offset, b - self.visible_offset @ weight)

    def base(self) -> Independent:
        """Independent bits with the data's means."""
        return Independent(BERNOULLI, self.base_logits)

    def state_sizes(self) -> tuple[int, int]:
        """Visible and hidden units."""
        visible, hidden = self.weight.shape
        return visible, hidden

    def energy(self, v: Float[Tensor, "b v"], h: Float[Tensor, "b h"]) -> Float[Tensor, " b"]:
        """E(v, h)."""
        return self.couplings().energy(v, h)

    def hidden_probability(self, v: Float[Tensor, "b v"]) -> Float[Tensor, "b h"]:
        """p(h_j = 1 | v)."""
        return self.couplings().hidden_logits(v).sigmoid()

    def visible_probability(self, h: Float[Tensor, "b h"]) -> Float[Tensor, "b v"]:
        """p(v_i = 1 | h)."""
        return self.couplings().visible_logits(h).sigmoid()

    # ---- training ----

    @torch.no_grad()
    def set_base_rates(self, means: Float[Tensor, " v"], count: int) -> None:
        """Take the visible units' means over ``count`` examples as base rates, with one example of each value added."""
        smoothed = smoothed_rates(means, count)
        self.base_logits.copy_(smoothed.log() - (-smoothed).log1p())
        if self.centred:
            self.visible_offset.copy_(smoothed)

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Visible biases at the data's log-odds (Hinton 2012), then the estimator's chains."""
        v = self.flatten(batch.x)
        self.set_base_rates(v.mean(0), len(v))
        self.visible_bias.copy_(self.base_logits)
        self.estimator.initialise(self, generator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """A scalar whose gradient is the estimator's, and that of the weights' decay."""
        loss, logs = super().loss(player, batch, generator)
        return (loss + 0.5 * self.weight_decay * self.weight.square().sum() if self.weight_decay else loss), logs

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Advance chains and fast weights, then move the centring offsets."""
        super().after_step(player, batch, generator)
        if self.centred:
            v = self.flatten(batch.x)
            self.move_offsets(v.mean(0), self.hidden_probability(v).mean(0), self.centring_rate)

    @torch.no_grad()
    def move_offsets(self, visible: Float[Tensor, " v"], hidden: Float[Tensor, " h"], rate: float) -> None:
        """Move the offsets by ``rate`` towards the given means; the biases compensate, so that p(v) does not change."""
        down, up = rate * (visible - self.visible_offset), rate * (hidden - self.hidden_offset)
        self.visible_bias.add_(self.weight @ up)
        self.hidden_bias.add_(down @ self.weight)
        self.visible_offset.add_(down)
        self.hidden_offset.add_(up)

    # ---- capabilities ----

    def encode(self, x: Tensor) -> Float[Tensor, "b h"]:
        """Probabilities of the hidden units."""
        return self.hidden_probability(self.flatten(x))

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """One mean-field step up and down: probabilities of the visible units (b, *shape)."""
        return self.visible_probability(self.encode(x)).view(x.shape)
