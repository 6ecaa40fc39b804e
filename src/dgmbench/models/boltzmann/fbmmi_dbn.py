"""Deep belief network on features that were made to tell words apart: feature-space boosted MMI, then the network.

    y_t = x_t + M g(x_t),      g(x) = posteriors of the Gaussians of a GMM-HMM,
    max_M  sum_u log  exp(kappa score(s*_u)) / sum_s exp(kappa score(s) - b accuracy(s, s*_u)),

score(s) the log-density of y and the path s under the GMM-HMM, s* the path of the labels, accuracy the number of frames
in which s agrees with s*: paths count the more the more of them is wrong. M starts at 0, where y is x, and is trained
with the GMM-HMM as it is; then a stack of RBMs over windows of y becomes a network that tells states and words
(``frame_network.py``), decoding as the hybrid of ``dbn_hmm.py`` does.

Shapes: x (b, t, d), standardised; g (n, k), of all components of all states; M (d, k); length (b,). Units: nats/frame.
Paper: Mohamed, Sainath, Dahl, Ramabhadran, Hinton, Picheny 2011, "Deep belief networks using discriminative features
for phone recognition", https://doi.org/10.1109/ICASSP.2011.5947494; the objective: Povey et al. 2008, "Boosted MMI for
model and feature-space discriminative training", https://doi.org/10.1109/ICASSP.2008.4518545. Differs: the sum is over
all paths through a loop of words in place of a lattice's, accuracy counts frames and not phones, g is that of the frame
itself without its neighbours', no adaptation to speakers, steps of the optimiser in place of a rate an element.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.boltzmann.frame_network import FrameNetwork
from dgmbench.models.contract import Logs, Stage
from dgmbench.models.tasks import HeldOut
from dgmbench.nn.gaussian_mixtures import Mixtures, first_mixtures, fit_mixtures
from dgmbench.nn.hmm import Chain, allowed, boosted_mmi, viterbi
from dgmbench.nn.sequences import within

FLOOR = 0.01  # of a variance, where that of all frames is 1
ITERATIONS = 20  # of EM


class FbmmiDbn(FrameNetwork):
    """Recogniser on features that boosted MMI has moved.

    Args:
        spec: real frames (t, d) with lengths and a label for each, whose factors are the word and the state in it.
        hidden_sizes: units of each hidden layer, from the data upwards.
        context: frames to either side of a window's middle.
        gaussians: components of each state's mixture, all of whose posteriors move the features.
        boost: b; the paper's 0.5 a phone is as much where a phone has ten frames.
        acoustic: kappa, the weight of scores, as frames are not independent.
        transform: share of the budget for M, where training on frames has share 1; 0 leaves M at 0.
        pretraining: share of the budget for each RBM; 0 starts at random weights.
        weight_decay: half the squared weights are added to the network's loss with this factor.
    """

    component_log_weights: Tensor
    component_means: Tensor
    component_variances: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden_sizes: Sequence[int] = (1024, 1024, 1024),
        context: int = 5,
        gaussians: int = 2,
        boost: float = 0.05,
        acoustic: float = 0.1,
        transform: float = 0.5,
        pretraining: float = 0.25,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            spec, hidden_sizes=hidden_sizes, context=context, pretraining=pretraining, weight_decay=weight_decay
        )
        require(least=1, gaussians=gaussians)
        require(least=0, boost=boost, transform=transform)
        require(above=0, acoustic=acoustic)
        self.boost, self.acoustic, self.transform = boost, acoustic, transform
        d, total = spec.shape[1], self.words * self.states
        self.moved = nn.Parameter(torch.zeros(d, total * gaussians))  # M
        self.register_buffer("component_log_weights", torch.zeros(total, gaussians).log_softmax(1))
        self.register_buffer("component_means", torch.zeros(total, gaussians, d))
        self.register_buffer("component_variances", torch.ones(total, gaussians, d))

    # ---- features ----

    def mixtures(self) -> Mixtures:
        """Of the states, over frames x."""
        return Mixtures(self.component_log_weights, self.component_means, self.component_variances)

    def posteriors(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """g: how likely standardised frames are of each component of each state."""
        return (self.mixtures().log_joint(x) + self.log_priors()[:, None]).flatten(1).softmax(1)

    def features(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """y of standardised frames."""
        return x + self.posteriors(x) @ self.moved.t()

    def frames(self, x: Float[Tensor, "b t d"], length: Int[Tensor, " b"]) -> Float[Tensor, "b t d"]:
        """y, zeros behind the end: what the windows are cut from."""
        kept = within(length, x.shape[1])
        return self.in_place(self.features(super().frames(x, length)[kept]), length, x.shape[1])

    # ---- training ----

    def acoustic_lattice(self, x: Tensor, length: Tensor) -> tuple[Chain, Float[Tensor, "b t s"]]:
        """Of the GMM-HMM over y; all scores times kappa."""
        y = self.frames(x, length)
        emission = self.acoustic * self.mixtures().log_density(y.flatten(0, 1)).unflatten(0, y.shape[:2])
        return Chain(*(self.acoustic * each for each in self.loop())).to(emission), emission

    def boosted(self, batch: Batch, boost: float) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:
        """The criterion of each utterance, nats, and whether it has one: labels of words at all its frames."""
        assert batch.length is not None
        chain, emission = self.acoustic_lattice(batch.x, batch.length)
        path = self.alignment(batch)
        known = allowed(chain, batch.length, path)
        return boosted_mmi(chain, emission, batch.length, path, boost=boost), known

    def players(self) -> dict[str, list[nn.Parameter]]:
        """M, one for each RBM, and the network."""
        return {"transform": [self.moved]} | super().players()

    def stages(self) -> tuple[Stage, ...]:
        """M, the stack, the network on frames."""
        first = (Stage("transform", ("transform",), self.transform),) if self.transform else ()
        return (*first, *super().stages())

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Fit the states' mixtures."""
        super().initialise(batch, generator)
        assert batch.length is not None
        assert batch.y is not None
        kept = within(batch.length, batch.x.shape[1]) & (batch.y >= 0)
        x, y = super().frames(batch.x, batch.length)[kept], batch.y[kept]
        states, components = self.component_log_weights.shape
        start = first_mixtures(x, y, states, components, floor=FLOOR, generator=generator)
        for own, found in zip(
            self.mixtures(), fit_mixtures(x, y, start, floor=FLOOR, iterations=ITERATIONS), strict=True
        ):
            own.copy_(found)

    @torch.no_grad()
    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Start the stack on windows of y."""
        if stage.name == "rbm_1":
            frames = self.windows.unflatten(1, (-1, self.spec.shape[1])).flatten(0, 1)
            self.windows.copy_(self.features(frames).view_as(self.windows))
        super().enter_stage(stage, generator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """Minus the criterion of utterances that are words, for each frame; other players' as the base class says."""
        if player != "transform":
            return super().loss(player, batch, generator)
        assert batch.length is not None
        value, known = self.boosted(batch, self.boost)
        loss = -torch.where(known, value, 0.0).sum() / torch.where(known, batch.length, 0).sum().clamp_min(1)
        return loss, {"boosted_mmi": -loss.detach()}

    # ---- what is measured ----

    def objectives(self) -> Mapping[str, HeldOut]:
        """Those of the network; what M is trained for, without a boost, and the path error of the GMM-HMM over y."""
        own = {"mmi": HeldOut("nats/frame", "higher"), "gmm_path_error": HeldOut("share", "lower")}
        return {**super().objectives(), **own}

    @torch.no_grad()
    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> Mapping[str, Tensor]:
        """All of each utterance; NaN without labels, ``mmi`` also where not all frames have one."""
        found = dict(super().held_out(batch, generator=generator))
        assert batch.length is not None
        unknown = torch.full_like(found["path_error"], torch.nan)
        if batch.y is None:
            return {**found, "mmi": unknown, "gmm_path_error": unknown}
        value, known = self.boosted(batch, 0.0)
        path, _ = viterbi(*self.acoustic_lattice(batch.x, batch.length), batch.length)
        wrong = ((path != batch.y) & (batch.y >= 0)).sum(1) / (batch.y >= 0).sum(1).double()
        mmi = torch.where(known, value.double() / batch.length, unknown)
        return {**found, "mmi": mmi, "gmm_path_error": wrong}
