"""Helmholtz machine: a sigmoid belief net that generates downwards, and a second one that recognises upwards.

    p(x, h1, ..., hL) = p(hL) p(h_{L-1} | hL) ... p(x | h1),     q(h | x) = q(h1 | x) ... q(hL | h_{L-1})

All factors are independent bits with log-odds that are affine in the states of the next layer.

*Wake-sleep* (default). Wake: draw h ~ q(h | x) at data and descend -log p(x, h) in the generative weights, for one
layer the delta rule (x - p) h'. Sleep: draw (x, h) ~ p and descend -log q(h | x) in the recognition weights, with the
rule (h - q) x'. Wake ascends the bound E_q [log p(x, h) - log q(h | x)]; sleep fits q in the reverse direction of the
divergence.

*Reweighted wake-sleep* (Bornschein, Bengio 2015, https://arxiv.org/abs/1406.2751). k draws of h with weights w~_i
proportional to p(x, h_i) / q(h_i | x): wake descends -sum_i w~_i log p(x, h_i), an estimate of the gradient of log
p(x); the recognition weights descend the mean of the sleep loss and of the wake-phase loss -sum_i w~_i log q(h_i |
x).

Shapes: raw x (b, *shape); layer states are floats (b, units). Units: nats.
Papers: Dayan, Hinton, Neal, Zemel 1995, "The Helmholtz machine", https://doi.org/10.1162/neco.1995.7.5.889; Hinton,
Dayan, Frey, Neal 1995, "The wake-sleep algorithm for unsupervised neural networks". Sizes default to the two layers of
200 units in which such nets are compared today; the papers' own nets were smaller.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import log
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.unit_layers import draw, log_bernoulli


class Helmholtz(Model):
    """Helmholtz machine of binary units.

    Args:
        spec: binary data of any shape.
        hidden_sizes: units of each hidden layer, from the data upwards.
        objective: wake-sleep, or reweighted wake-sleep.
        k: draws of h for each datum; only reweighted wake-sleep takes more than one.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden_sizes: Sequence[int] = (200, 200),
        objective: Literal["wake_sleep", "reweighted"] = "wake_sleep",
        k: int = 1,
    ) -> None:
        super().__init__(spec)
        if spec.kind != "binary":
            raise UserError(
                f"helmholtz models binary data, but these are {spec}; choose binary data, such as data=digits_binary."
            )
        if not hidden_sizes:
            raise UserError("helmholtz needs at least one hidden layer, but model.hidden_sizes is empty.")
        require(least=1, hidden_sizes=hidden_sizes, k=k)
        if objective not in ("wake_sleep", "reweighted"):
            raise UserError(f"model.objective must be wake_sleep or reweighted, but it is {objective}.")
        if k > 1 and objective == "wake_sleep":
            raise UserError(f"model.k is {k}, but wake-sleep takes one draw; use model.objective=reweighted.")
        self.objective, self.k = objective, k
        sizes = (spec.dim, *hidden_sizes)
        self.prior_logits = nn.Parameter(torch.zeros(sizes[-1]))
        self.generative = nn.ModuleList(nn.Linear(above, below) for below, above in pairwise(sizes))
        self.recognition = nn.ModuleList(nn.Linear(below, above) for below, above in pairwise(sizes))
        for layer in (*self.generative, *self.recognition):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    # ---- the two directions ----

    def flatten(self, x: Tensor) -> Float[Tensor, "b v"]:
        """Raw values (b, *shape) to states (b, visible)."""
        return x.flatten(1).to(self.prior_logits.dtype)

    def upwards(self, v: Tensor, generator: Generator | None = None) -> list[Tensor]:
        """States [v, h1, ..., hL], h drawn from q given v (n, visible)."""
        states = [v]
        for layer in self.recognition:
            states.append(draw(layer(states[-1]).sigmoid(), generator))
        return states

    def downwards(self, n: int, generator: Generator | None = None) -> list[Tensor]:
        """Draw n joint states [v, h1, ..., hL] of p."""
        states = [draw(self.prior_logits.sigmoid().expand(n, -1), generator)]
        for layer in reversed(self.generative):
            states.insert(0, draw(layer(states[0]).sigmoid(), generator))
        return states

    def log_joint(self, states: Sequence[Tensor]) -> Float[Tensor, " n"]:
        """Log p(x, h1, ..., hL)."""
        below = zip(self.generative, pairwise(states), strict=True)
        terms = [log_bernoulli(low, layer(high)) for layer, (low, high) in below]
        return torch.stack(terms).sum(0) + log_bernoulli(states[-1], self.prior_logits)

    def log_recognition(self, states: Sequence[Tensor]) -> Float[Tensor, " n"]:
        """Log q(h1, ..., hL | x)."""
        above = zip(self.recognition, pairwise(states), strict=True)
        return torch.stack([log_bernoulli(high, layer(low)) for layer, (low, high) in above]).sum(0)

    # ---- training ----

    def players(self) -> dict[str, list[nn.Parameter]]:
        """``wake`` owns the generative weights, ``sleep`` the recognition weights."""
        return {
            "wake": [self.prior_logits, *self.generative.parameters()],
            "sleep": list(self.recognition.parameters()),
        }

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Visible biases at the data's log-odds, with one example of each value added."""
        v = self.flatten(batch.x)
        self.generative[0].bias.copy_(torch.logit((v.sum(0) + 1) / (len(v) + 2)))  # type: ignore[operator]

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """Wake: -log p of recognised states. Sleep: -log q of dreams; if reweighted, of recognised states too."""
        v = self.flatten(batch.x)
        if player == "sleep":
            with torch.no_grad():
                dream = self.downwards(len(v), generator)
            sleep = -self.log_recognition(dream).mean()
            if self.objective == "wake_sleep":
                return sleep, {}
        log_p, log_q = self._recognised(v, self.k, generator)
        log_w = (log_p - log_q).detach()
        weights = torch.softmax(log_w, 0)
        if player == "sleep":
            return (sleep - (weights * log_q).sum(0).mean()) / 2, {}
        bound = (log_w.logsumexp(0) - log(self.k)).mean()
        return -(weights * log_p).sum(0).mean(), {"bound": bound}

    # ---- capabilities ----

    def _recognised(self, v: Tensor, k: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Log p(x, h) and log q(h | x) of k draws of h for each v, both (k, b)."""
        with torch.no_grad():
            states = self.upwards(v.repeat(k, 1), generator)
        return self.log_joint(states).view(k, -1), self.log_recognition(states).view(k, -1)

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Float[Tensor, "k b"]:
        """Draw k values of log p(x, h) - log q(h | x), h ~ q."""
        log_p, log_q = self._recognised(self.flatten(x), k, generator)
        return log_p - log_q

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """One draw of the bound."""
        return self.log_weights(x, 1, generator=generator)[0]

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n exact samples of p(x)."""
        return self.downwards(n, generator)[0].to(torch.uint8).view(n, *self.spec.shape)

    def encode(self, x: Tensor) -> Float[Tensor, "b h"]:
        """Mean activities passed up to the top layer."""
        h = self.flatten(x)
        for layer in self.recognition:
            h = layer(h).sigmoid()
        return h

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Mean activities up to the top layer and down again: probabilities (b, *shape)."""
        h = self.encode(x)
        for layer in reversed(self.generative):
            h = layer(h).sigmoid()
        return h.view(x.shape)
