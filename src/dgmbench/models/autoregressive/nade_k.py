r"""NADE-k: what is missing is filled in by k steps that resemble mean-field inference, and the last one is the answer.

One step is a network's guess of the missing values, and the next starts from that guess; all steps share their weights.
With m = 1 where x is known and missing values started at the data's mean mu,

    v_0 = m x + (1 - m) mu,   h_t = g(W v_{t-1} + c),   p_t = sigmoid(V h_t + b),   v_t = m x + (1 - m) p_t,
    log p(x_i | x_known) = log p_k(x_i),    loss = -E[ D / (D - d) sum_{i missing} log p_k(x_i) ],

where a second hidden layer puts another g(W_2 h + c_2) between. It learns for all orders at once, and is exact in each
(``orderless.py``). In the first part of the training, pre-training, the loss is the mean of all k steps' losses.

Shapes and units: x is raw and binary (b, *shape), flattened in C order; ``log_prob`` is in nats per example, (b,), at
k M D passes for M orders.

Paper: Raiko, Yao, Cho, Bengio, "Iterative Neural Autoregressive Distribution Estimator (NADE-k)", NIPS 2014,
https://arxiv.org/abs/1406.1485. The authors' code pre-trains for 1000 epochs and then trains for 3000.

Different from the paper: any of torch's optimisers, Adam at 1e-3 by default, in place of Adadelta; a penalty of the
weights is the optimiser's and off, where the authors' code has 0.0012 with two hidden layers, and none with one; each
example has its own number of known values; output biases start at the marginals, and weights uniform within
1 / sqrt(inputs), where that code draws them with a deviation of 0.01. Pre-training has the same share, a quarter, of a
training that is by default shorter. One order, where EoNADE-k averages over 128 (``orders``).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.autoregressive.deep_nade import ACTIVATIONS, Activation
from dgmbench.models.autoregressive.orderless import Orderless
from dgmbench.models.contract import Stage


class NadeK(Orderless):
    """Iterative NADE of binary data, and its mixture over orders.

    Args:
        spec: The data space.
        hidden_sizes: Widths of the hidden layers; the paper has one or two.
        k: Steps of inference.
        pretrain: Share of the training whose loss is the mean over all steps.
        missing: What missing values start at, the data's ``mean`` or ``zero``.
        mask_input: Lets the network see which values are known. With it, k=1 and missing=zero, this is deep NADE.
        activation: g.
        orders: M, the number of orders in the mixture.
    """

    mean: Tensor
    step_weights: Tensor

    def __init__(
        self, spec: DataSpec, *, hidden_sizes: Sequence[int] = (500,), k: int = 5, pretrain: float = 0.25,
        missing: Literal["mean", "zero"] = "mean", mask_input: bool = False, activation: Activation = "tanh",
        orders: int = 1,
    ) -> None:  # fmt: skip
        if spec.kind != "binary":
            raise UserError(f"NADE-k takes binary data, not {spec.kind}.")
        if len(hidden_sizes) < 1:
            raise UserError("NADE-k needs at least one hidden layer: hidden_sizes=[500].")
        super().__init__(spec, orders=orders)
        require(least=1, hidden_sizes=hidden_sizes, k=k)
        require(least=0, most=1, pretrain=pretrain)
        self.k, self.pretrain, self.missing, self.mask_input = k, pretrain, missing, mask_input
        self.activation = ACTIVATIONS[activation]
        inputs = spec.dim * (2 if mask_input else 1)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([inputs, *hidden_sizes]))
        self.out_weight = nn.Parameter(
            torch.empty(spec.dim, hidden_sizes[-1]).uniform_(-1, 1) * hidden_sizes[-1] ** -0.5
        )
        self.out_bias = nn.Parameter(torch.zeros(spec.dim, 1))
        self.register_buffer("mean", torch.zeros(spec.dim))
        self.register_buffer("step_weights", torch.ones(k) / k)

    objectives_compare = True  # both stages are of one density, whose logarithm validation measures

    def stages(self) -> tuple[Stage, ...]:
        """Pre-training on all steps' losses, then training on the last one's."""
        stages = (Stage("pretrain", ("model",), self.pretrain), Stage("train", ("model",), 1 - self.pretrain))
        return tuple(stage for stage in stages if stage.share > 0)

    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Weigh the steps' losses: all alike, or the last one alone."""
        self.step_weights.fill_(1 / self.k)
        if stage.name == "train":
            self.step_weights.zero_()[-1] = 1

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Keep the data's mean for missing values, and start the output biases at the marginals."""
        super().initialise(batch, generator)
        if self.missing == "mean":
            self.mean.copy_(self.conditionals.inputs(batch.x, self.out_bias).mean(0))

    def steps(self, values: Float[Tensor, "b d"], known: Float[Tensor, "b d"]) -> list[Float[Tensor, "b d"]]:
        """The logits of every value after each of the k steps; ``values`` are 0 where ``known`` is 0."""
        found: list[Tensor] = []
        v = values + (1 - known) * self.mean
        for _ in range(self.k):
            if found:
                v = values + (1 - known) * found[-1].sigmoid()
            h = torch.cat((v, known), 1) if self.mask_input else v
            for linear in self.hidden:
                h = self.activation(linear(h))
            found.append(F.linear(h, self.out_weight, self.out_bias[:, 0]))
        return found

    def parameters_given(self, values: Float[Tensor, "b d"], known: Float[Tensor, "b d"]) -> Float[Tensor, "b d p"]:
        """The logit of every conditional p(x_i | x_known), after k steps."""
        return self.steps(values, known)[-1][..., None]

    def loss_given(self, x: Tensor, known: Bool[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """D / (D - d) sum_{i missing} -log p(x_i | x_known), averaged over steps in pre-training."""
        return self.step_weights @ self.losses_of_steps(x, known)

    def losses_of_steps(self, x: Tensor, known: Bool[Tensor, "b d"]) -> Float[Tensor, "k b"]:
        """The loss as if each of the steps were the last: how far inference has come."""
        mask = known.to(self.out_bias.dtype)
        steps = self.steps(self.conditionals.inputs(x, self.out_bias) * mask, mask)
        return torch.stack([self._scaled(logits[..., None], x, known) for logits in steps])
