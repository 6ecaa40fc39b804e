"""Supervised generative stochastic network: the chain also denoises a label, which sits on the topmost hidden layer.

Image and label enter at the two ends of one network and walk through the same hidden states, so that the chain learns
their joint distribution; a trade-off lambda says how much of the objective is spent on the image and how much on the
label. One step from (x, y, h):

    x~ as in a GSN; y~ = y, another class drawn uniformly with probability ``corruption``, or unknown (zeros),
    h      updated as in a GSN, its top layer receiving V y~ besides,
    x'     ~ P(x' | h_1),      y' ~ P(y' | h_top) = softmax(V' h_top + c),

    loss = 1/k sum_t  lambda E[-log P(x_0 | h_1 of step t)] + (1 - lambda) E[-log P(y_0 | h_top of step t)].

The walk starts with the label unknown in a share ``unknown`` of the examples, so that its first steps must find it in
the image: this is how the network classifies. Examples without a label (y = -1) start unknown, too, and have no label
term. ``classify`` holds the clean image fixed, starts from an unknown label and runs the chain on its means, without
noise. ``sample(n, y)`` holds the label; without y both are drawn.

Shapes and units: as in ``gsn.py``; labels (b,) int64, scores (b, num_classes); losses in nats per example and step.

Paper: Zohrer and Pernkopf, "General Stochastic Networks for Classification", NeurIPS 2014,
https://papers.nips.cc/paper/5281-general-stochastic-networks-for-classification.

What differs: 300 and 100 hidden units for small images, where the paper has three layers of 2000, and a constant lambda
where it starts at the generative end and moves towards the discriminative one, so that the objective stays one and the
same.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.contract import Logs
from dgmbench.models.gsn.gsn import Gsn
from dgmbench.nn.labels import count_classes, draw_classes, start_class_prior


class SupervisedGsn(Gsn):
    """GSN with a label on its top layer and a hybrid objective (Zohrer and Pernkopf 2014).

    Args:
        spec: binary or discrete data of any shape, with labels.
        hidden_sizes: units of each hidden layer, from the data upwards; the label joins the last.
        generative: lambda, the weight of the image's term, from 0 to 1; the label's has the rest.
        unknown: share of the labelled examples whose walk starts without the label.
        corruption, hidden_noise, walkback, sample_steps: as of ``Gsn``; the label is corrupted at the same rate.
    """

    class_log_prior: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden_sizes: Sequence[int] = (300, 100),
        generative: float = 0.3,
        unknown: float = 0.5,
        corruption: float = 0.15,
        hidden_noise: float = 0.1,
        walkback: int = 6,
        sample_steps: int = 200,
    ) -> None:
        super().__init__(
            spec,
            hidden_sizes=hidden_sizes,
            corruption=corruption,
            hidden_noise=hidden_noise,
            walkback=walkback,
            sample_steps=sample_steps,
        )
        require(least=0, most=1, generative=generative, unknown=unknown)
        start_class_prior(self, spec)  # refuses data without labels
        self.generative, self.unknown = generative, unknown
        classes = len(self.class_log_prior)
        self.label_weight = nn.Parameter(torch.empty(classes, hidden_sizes[-1]))
        self.label_bias = nn.Parameter(torch.zeros(classes))
        nn.init.xavier_uniform_(self.label_weight)

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Frequencies of the levels and of the labels that are known, and biases to match."""
        super().initialise(batch, generator)
        count_classes(self.class_log_prior, batch.y)
        self.label_bias.copy_(self.class_log_prior)

    # ---- the chain ----

    def from_label(self, y: Tensor) -> Float[Tensor, "b top"]:
        """What the top layer receives from labels (b,), nothing from unknown ones, or from probabilities (b, c)."""
        if y.dim() == 1:
            y = F.one_hot(y.clamp_min(0), len(self.label_bias)) * (y >= 0)[:, None]
        return y.to(self.label_weight.dtype) @ self.label_weight

    def label_log_prob(self, hidden: Sequence[Tensor]) -> Float[Tensor, "b c"]:
        """log P(y | h_top) of each class."""
        return (hidden[-1] @ self.label_weight.T + self.label_bias).log_softmax(-1)

    def corrupt_label(self, y: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Labels (b,), each replaced with probability ``corruption`` by a uniformly drawn one; unknown ones stay."""
        u = torch.rand(y.shape, generator=generator, device=y.device)
        other = torch.randint(len(self.label_bias), y.shape, generator=generator, device=y.device)
        return torch.where((u < self.corruption) & (y >= 0), other, y)

    def joint_step(
        self, x: Tensor, y: Tensor, hidden: Sequence[Tensor], *, generator: Generator | None = None
    ) -> tuple[Float[Tensor, "b d k"], Float[Tensor, "b c"], list[Tensor]]:
        """Corrupt raw x (b, *shape) and labels y (b,), and update: log P(x' | h_1), log P(y' | h_top), the states."""
        above = self.from_label(self.corrupt_label(y, generator=generator))
        log_p, states = self.denoise(self.corrupt(x, generator=generator), hidden, above=above, generator=generator)
        return log_p, self.label_log_prob(states), states

    # ---- training and use ----

    def batch_policy(self) -> BatchPolicy:
        """Half of every batch is labelled where some examples are not: the others teach what images look like."""
        return BatchPolicy(labelled=0.5)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The clean image's and the true label's negative log-probabilities over a walk that starts there."""
        truth = batch.x.new_full((len(batch.x),), -1, dtype=torch.int64) if batch.y is None else batch.y
        known = (truth >= 0).to(self.label_bias.dtype)
        target = batch.x.flatten(1).long()[..., None]
        hide = torch.rand(truth.shape, generator=generator, device=truth.device) < self.unknown
        x, y, hidden = batch.x, torch.where(hide, -1, truth), self.rest(len(batch.x))
        images, labels = [], []
        for _ in range(self.walkback):
            log_x, log_y, hidden = self.joint_step(x, y, hidden, generator=generator)
            images.append(-log_x.gather(2, target).sum((1, 2)).mean())
            hits = log_y.gather(1, truth.clamp_min(0)[:, None])[:, 0]
            labels.append(-(hits * known).sum() / known.sum().clamp_min(1))
            x = self.draw(log_x.detach(), generator=generator)
            y = torch.multinomial(log_y.detach().exp(), 1, generator=generator)[:, 0]
        image, label = torch.stack(images).mean(), torch.stack(labels).mean()
        loss = self.generative * image + (1 - self.generative) * label
        return loss, {"image": image.detach(), "label": label.detach()}

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """The state x of n chains after ``sample_steps`` steps, raw (n, *shape); labels y (n,) are held if given."""
        x = self.draw(self.frequencies.log().expand(n, -1, -1), generator=generator)
        label = draw_classes(self.class_log_prior, n, generator) if y is None else y
        hidden = self.rest(n)
        for _ in range(self.sample_steps):
            if y is None:
                log_x, log_y, hidden = self.joint_step(x, label, hidden, generator=generator)
                label = torch.multinomial(log_y.exp(), 1, generator=generator)[:, 0]
            else:
                above, seen = self.from_label(label), self.corrupt(x, generator=generator)
                log_x, hidden = self.denoise(seen, hidden, above=above, generator=generator)
            x = self.draw(log_x, generator=generator)
        return x

    @torch.no_grad()
    def classify(self, x: Tensor) -> Float[Tensor, "b c"]:
        """log P(y | h_top) of raw x (b, *shape) after ``walkback`` noiseless steps that start from an unknown label."""
        hidden = self.rest(len(x))
        above = self.from_label(torch.full((len(x),), -1, device=x.device))
        for _ in range(self.walkback):
            _, hidden = self.denoise(x, hidden, above=above, noisy=False)
            log_y = self.label_log_prob(hidden)
            above = self.from_label(log_y.exp())
        return log_y
