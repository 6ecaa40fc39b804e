"""Gaussian process on the features of a deep belief network: unlabelled data shape its kernel, few labels tune it.

A stack of RBMs learns features F(x), the means of its highest layer, from all data, with labels or without. A Gaussian
process with the kernel

    K(x, x') = alpha exp(-|F(x) - F(x')|^2 / (2 beta))

predicts labels from the few that there are; first kernel and noise, then the network's weights too, are trained by
back-propagation through the log marginal likelihood of the n labelled examples,

    max  log p(t) = -t'(K + s I)^-1 t / 2 - log det(K + s I) / 2 - n log(2 pi) / 2,      summed over the classes.

Each class has a process of its own with targets t of 1 and -1, all with one kernel. The label of new data is the class
whose process, noise included, is the largest; its probability is an integral over one dimension.

Shapes: raw x (b, *shape), scaled to [0, 1]; features (b, units); scores (b, classes). Units: nats; time O(n^3).
Paper: Salakhutdinov & Hinton 2008, "Using deep belief nets to learn covariance kernels for Gaussian processes",
https://papers.nips.cc/paper/3211. Differs: classes by regression, which keeps the marginal likelihood in closed form;
gradient descent on all labels at once, where the paper has conjugate gradients; at most ``most`` labelled
examples are kept, the first of the training set.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.boltzmann.stack import Stack
from dgmbench.models.contract import Logs, Stage
from dgmbench.models.tasks import HeldOut
from dgmbench.nn.gaussian_process import gaussian_kernel, log_largest, log_marginal_likelihood, posterior
from dgmbench.nn.labels import labelled_part, one_hot


class DbnGp(Stack):
    """Gaussian process classifier with a kernel on a stack of RBMs.

    Args:
        spec: bits or grey levels of any shape, with labels.
        hidden_sizes: units of each hidden layer, from the data upwards.
        pretraining: share of the budget for each RBM, where tuning the kernel and then all have share 1 each; few
            updates of a few labels suffice, and more of them fit the labels alone.
        most: labelled examples that are kept.
        weight_decay: half the squared weights of an RBM are added to its loss with this factor.
    """

    tuned: Tensor
    labelled_x: Tensor
    labelled_y: Tensor
    count: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden_sizes: Sequence[int] = (1000, 1000, 1000),
        pretraining: float = 10.0,
        most: int = 1000,
        weight_decay: float = 2e-4,
    ) -> None:
        super().__init__(spec)
        if spec.kind not in ("binary", "discrete"):
            raise UserError(
                f"dbn_gp takes bits or grey levels, but these are {spec}; choose a data set such as "
                "data=digits_few_labels."
            )
        if (spec.num_classes or 0) < 2 or spec.step_labels:
            raise UserError(
                f"dbn_gp predicts labels, but these data have {spec.num_classes or 0} classes; choose a data set with "
                "two or more, such as data=digits_few_labels."
            )
        if not hidden_sizes:
            raise UserError("dbn_gp needs a hidden layer, but model.hidden_sizes is empty.")
        require(least=1, hidden_sizes=hidden_sizes, most=most)
        require(above=0, pretraining=pretraining)
        self.pretraining, self.classes = pretraining, cast(int, spec.num_classes)
        pairs = list(pairwise((spec.dim, *hidden_sizes)))
        self.stack(
            [Rbm(DataSpec((below,), "binary"), hidden=above, weight_decay=weight_decay) for below, above in pairs],
            "mean",
        )
        self.features = nn.ModuleList(nn.Linear(below, above) for below, above in pairs)
        self.log_amplitude = nn.Parameter(torch.zeros(()))
        self.log_width = nn.Parameter(torch.zeros(()))
        self.log_noise = nn.Parameter(torch.tensor(-2.0))
        self.register_buffer("tuned", torch.zeros((), dtype=torch.bool))  # whether the features' own weights count
        self.register_buffer("labelled_x", torch.zeros(most, spec.dim, dtype=spec.dtype))
        self.register_buffer("labelled_y", torch.zeros(most, dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    # ---- the process ----

    def encode(self, x: Tensor) -> Float[Tensor, "b h"]:
        """The features of raw x (b, *shape)."""
        v = self.lowest(x)
        for n, linear in enumerate(self.features):
            v = (linear(v) if self.tuned else self._up(n, v)).sigmoid()
        return v

    def _kernel(self, a: Tensor, b: Tensor) -> Float[Tensor, "n m"]:
        """Of features, in float64."""
        return gaussian_kernel(a.double(), b.double(), self.log_amplitude.double().exp(), self.log_width.double().exp())

    def _labelled(self) -> tuple[Tensor, Float[Tensor, "n h"], Float[Tensor, "n c"]]:
        """Kernel matrix, features and targets of the labelled examples."""
        n = int(self.count)
        features = self.encode(self.labelled_x[:n])
        return (
            self._kernel(features, features),
            features,
            2 * one_hot(self.labelled_y[:n], self.classes, torch.float64) - 1,
        )

    def log_evidence(self) -> Float[Tensor, ""]:
        """Log marginal likelihood of the labels that are kept, over all classes, nats."""
        kernel, _, targets = self._labelled()
        return log_marginal_likelihood(kernel, self.log_noise.double().exp(), targets)

    def predictive(self, x: Tensor) -> tuple[Float[Tensor, "b c"], Float[Tensor, " b"]]:
        """Mean of each class's process at raw x, and the variance, the noise included, that all have."""
        noise = self.log_noise.double().exp()
        kernel, features, targets = self._labelled()
        new = self.encode(x)
        prior = self.log_amplitude.double().exp().expand(len(x))
        mean, variance = posterior(kernel, noise, targets, self._kernel(new, features), prior)
        return mean, variance + noise

    # ---- training ----

    def players(self) -> dict[str, list[nn.Parameter]]:
        """One for each RBM, the kernel with the noise, and the features' weights."""
        kernel = [self.log_amplitude, self.log_width, self.log_noise]
        return super().players() | {"kernel": kernel, "features": list(self.features.parameters())}

    def stages(self) -> tuple[Stage, ...]:
        """The RBMs from the data upwards, then the kernel, then kernel and features."""
        tuning = (Stage("kernel", ("kernel",)), Stage("fine_tuning", ("kernel", "features")))
        return (*self.greedy(self.pretraining), *tuning)

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Start the first RBM and keep the labelled examples."""
        super().initialise(batch, generator)
        known = labelled_part(batch)
        if known.y is None or len(known.y.unique()) < 2:
            found = 0 if known.y is None else len(known.y.unique())
            raise UserError(
                f"dbn_gp needs labelled examples of two or more classes, but the training set has some of {found}."
            )
        n = min(len(known.x), len(self.labelled_x))
        self.labelled_x[:n] = known.x[:n].flatten(1)
        self.labelled_y[:n] = known.y[:n]
        self.count.fill_(n)

    @torch.no_grad()
    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Start an RBM; take over the RBMs' weights, and start the kernel at the features' mean distance."""
        super().enter_stage(stage, generator)
        if stage.name == "kernel":
            for n, linear in enumerate(self.features):
                weight, _, bias = self.rbm(n).couplings()
                cast(nn.Linear, linear).weight.copy_(weight.t())
                cast(nn.Linear, linear).bias.copy_(bias)
            self.tuned.fill_(True)
            features = self.encode(self.labelled_x[: int(self.count)])
            self.log_width.copy_(2 * features.var(0, correction=0).sum().clamp_min(1e-6).log() / 2)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The RBMs' own losses; -log evidence for each of the labels kept, whatever the batch."""
        if player.startswith("rbm_"):
            return super().loss(player, batch, generator)
        return -self.log_evidence() / self.count.clamp_min(1), {}

    # ---- what is measured ----

    def classify(self, x: Tensor) -> Float[Tensor, "b c"]:
        """Log-probabilities of the labels of raw x."""
        return log_largest(*self.predictive(x))

    def objectives(self) -> Mapping[str, HeldOut]:
        """How often the label is wrong, and its log-probability."""
        return {"label_error": HeldOut("share", "lower", "exact"), "label_nll": HeldOut("nats", "lower", "exact")}

    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> Mapping[str, Tensor]:
        """Both of each example; NaN without a label."""
        scores = self.classify(batch.x)
        y = torch.full((len(batch.x),), -1, device=scores.device) if batch.y is None else batch.y
        nll = -scores.gather(1, y.clamp_min(0)[:, None])[:, 0]
        values = {"label_error": (scores.argmax(1) != y).to(scores.dtype), "label_nll": nll}
        return {name: torch.where(y >= 0, value, torch.nan) for name, value in values.items()}
