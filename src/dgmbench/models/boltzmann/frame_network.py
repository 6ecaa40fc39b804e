"""Deep belief networks that tell the states of a hidden Markov model from frames of speech, and the words by them.

What goes in is a window of frames around each, standardised. A stack of RBMs, the lowest one Gaussian, learns from
windows without labels; then it becomes a network with a softmax over states,

    h_0 = window,      h_l = sigmoid(W_l h_{l-1} + b_l),      log p(s | x_t) = log softmax(U h_L + c)_s,

trained frame by frame on the cross-entropy of an alignment. What is recognised are the words on the best path through
a loop of words (``nn/hmm.py``). A subclass adds stages of its own and says what the path's scores are (``lattice``).

Labels of frames are words and states in one, ``states`` of them a word: the data's factors. Shapes: x (b, t, d), y
(b, t), length (b,); frames that count lie side by side, (n, ...); scores (b, t, s).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.energy_model import TwoSided
from dgmbench.models.boltzmann.gaussian_rbm import GaussianRbm
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.contract import Logs, Model, Stage
from dgmbench.models.tasks import HeldOut
from dgmbench.nn.hmm import Chain, viterbi, word_loop, words_of
from dgmbench.nn.sequences import within

WINDOWS = 2000  # that are kept to start the RBMs


class FrameNetwork(Model):
    """A stack of RBMs over windows of frames that becomes a network with a softmax over states.

    Args:
        spec: real frames (t, d) with lengths and a label for each, whose factors are the word and the state in it.
        hidden_sizes: units of each hidden layer, from the data upwards.
        context: frames to either side of a window's middle.
        pretraining: share of the budget for each RBM, where training on frames has share 1; 0 starts at random weights.
    """

    windows: Tensor
    mean: Tensor
    deviation: Tensor
    state_counts: Tensor
    stay_counts: Tensor
    tuned: Tensor

    def __init__(
        self, spec: DataSpec, *, hidden_sizes: Sequence[int], context: int, pretraining: float, weight_decay: float
    ) -> None:
        super().__init__(spec)
        name = type(self).__name__
        if spec.kind != "real" or len(spec.shape) != 2 or not spec.lengths:
            raise UserError(
                f"{name} recognises sequences of real frames (t, d) with lengths, but these are {spec}; choose a data "
                "set such as data=tone_digits or data=fsdd_words."
            )
        if not spec.step_labels or spec.factors is None or len(spec.factors) != 2:
            raise UserError(
                f"{name} needs a label for every frame, made of a word and a state in it (two factors), which these "
                "data have not; choose a data set such as data=tone_digits or data=fsdd_words."
            )
        if not hidden_sizes:
            raise UserError(f"{name} needs a hidden layer, but model.hidden_sizes is empty.")
        require(least=1, hidden_sizes=hidden_sizes)
        require(least=0, context=context, pretraining=pretraining, weight_decay=weight_decay)
        (_, self.words), (_, self.states) = spec.factors
        self.context, self.pretraining, self.weight_decay = context, pretraining, weight_decay
        total, d = self.words * self.states, spec.shape[1]
        width = d * (2 * context + 1)
        pairs = list(pairwise((width, *hidden_sizes)))
        self.layers = nn.ModuleList(nn.Linear(below, above) for below, above in pairs)
        self.top = nn.Linear(hidden_sizes[-1], total)
        rbms: list[TwoSided] = []
        for n, (below, above) in enumerate(pairs if pretraining else []):
            plain = DataSpec((below,), "binary" if n else "real")
            rbms.append(Rbm(plain, hidden=above) if n else GaussianRbm(plain, hidden=above))
        self.rbms = nn.ModuleList(rbms)
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("deviation", torch.ones(d))
        self.register_buffer("state_counts", torch.ones(total))
        self.register_buffer("stay_counts", torch.ones(total))
        self.register_buffer("windows", torch.zeros(WINDOWS if rbms else 0, width))
        self.register_buffer("tuned", torch.tensor(not rbms))  # whether the network's own weights count

    def rbm(self, layer: int) -> TwoSided:
        """The RBM below hidden layer ``layer + 1``."""
        return cast(TwoSided, self.rbms[layer])

    # ---- from frames to scores ----

    def frames(self, x: Float[Tensor, "b t d"], length: Int[Tensor, " b"]) -> Float[Tensor, "b t d"]:
        """What the windows are cut from: the frames, standardised; zeros behind the end."""
        kept = within(length, x.shape[1])[:, :, None]
        return torch.where(kept, (x.to(self.mean.dtype) - self.mean) / self.deviation, 0.0)

    def cut(self, frames: Float[Tensor, "b t d"], length: Int[Tensor, " b"]) -> Float[Tensor, "n w"]:
        """The windows around all frames that count; the first and the last frame are repeated beyond the ends."""
        steps = frames.shape[1]
        offsets = torch.arange(-self.context, self.context + 1, device=frames.device)
        place = (torch.arange(steps, device=frames.device)[:, None] + offsets).clamp_min(0)
        place = torch.minimum(place, (length - 1)[:, None, None])  # (b, t, window)
        row = torch.arange(len(frames), device=frames.device)[:, None, None]
        kept = within(length, steps)
        return frames[row.expand_as(place)[kept], place[kept]].flatten(1)

    def hidden(self, windows: Float[Tensor, "n w"], layers: int | None = None) -> Float[Tensor, "n h"]:
        """Means of the highest hidden layer, or after some of the layers."""
        h = windows
        for n, layer in enumerate(list(self.layers)[:layers]):
            if self.tuned:
                h = cast(Tensor, layer(h)).sigmoid()
            else:
                rbm = self.rbm(n)
                h = rbm.couplings().hidden_logits(rbm.flatten(h)).sigmoid()
        return h

    def logits(self, x: Float[Tensor, "b t d"], length: Int[Tensor, " b"]) -> Float[Tensor, "n s"]:
        """Scores of the states at all frames that count."""
        return cast(Tensor, self.top(self.hidden(self.cut(self.frames(x, length), length))))

    def scores(self, x: Float[Tensor, "b t d"], length: Int[Tensor, " b"]) -> Float[Tensor, "b t s"]:
        """The same in their places; zeros behind the ends."""
        return self.in_place(self.logits(x, length), length, x.shape[1])

    def in_place(self, each: Float[Tensor, "n s"], length: Int[Tensor, " b"], steps: int) -> Float[Tensor, "b t s"]:
        """Values of the frames that count where they belong; zeros behind the ends."""
        kept = within(length, steps)
        return each.new_zeros(*kept.shape, each.shape[1]).index_put(tuple(kept.nonzero(as_tuple=True)), each)

    # ---- words ----

    def loop(self) -> Chain:
        """A loop of all words, alike before any is heard; states last as long as those of the alignment do."""
        stay = (self.stay_counts / (self.state_counts + 1)).clamp(0.01, 0.99)
        return word_loop(self.words, self.states, stay)

    def log_priors(self) -> Float[Tensor, " s"]:
        """Of the states, by the alignment."""
        return (self.state_counts / self.state_counts.sum()).log()

    def lattice(self, x: Tensor, length: Tensor) -> tuple[Chain, Float[Tensor, "b t s"]]:
        """The chain whose best path is what is recognised, and its scores at each frame: log p(s | x) - log p(s)."""
        return self.loop(), self.scores(x, length).log_softmax(2) - self.log_priors()

    def best_path(self, x: Tensor, length: Tensor) -> Int[Tensor, "b t"]:
        """The states that are recognised, -1 behind the end."""
        chain, scores = self.lattice(x, length)
        return viterbi(chain.to(scores), scores, length)[0]

    # ---- training ----

    def players(self) -> dict[str, list[nn.Parameter]]:
        """One for each RBM, and the network."""
        players = {f"rbm_{n}": list(rbm.parameters()) for n, rbm in enumerate(self.rbms, start=1)}
        return players | {"network": [*self.layers.parameters(), *self.top.parameters()]}

    def greedy(self) -> tuple[Stage, ...]:
        """The RBMs from the data upwards."""
        names = [f"rbm_{n}" for n in range(1, len(self.rbms) + 1)]
        return tuple(Stage(name, (name,), self.pretraining) for name in names)

    def stages(self) -> tuple[Stage, ...]:
        """The RBMs from the data upwards, then the network."""
        return (*self.greedy(), Stage("frames", ("network",)))

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Take the frames' moments, count the alignment, and keep windows for the start of the RBMs."""
        assert batch.length is not None
        kept = within(batch.length, batch.x.shape[1])
        each = batch.x[kept].to(self.mean.dtype)
        self.mean.copy_(each.mean(0))
        self.deviation.copy_(each.std(0, correction=0).clamp_min(1e-3))
        if batch.y is None or not bool((batch.y >= 0).any()):
            raise UserError(f"{type(self).__name__} needs utterances with labels, but the training set has none.")
        self.count(batch.y)
        missing = (self.state_counts == 0).nonzero()[:, 0].tolist()
        if missing:
            names = self.spec.class_names
            named = ", ".join(names[n] if names else str(n) for n in missing[:5])
            raise UserError(
                f"{len(missing)} of the {len(self.state_counts)} states never occur in the training set ({named}), so "
                "that nothing is known of them; give more utterances."
            )
        if self.rbms:
            windows = self.cut(self.frames(batch.x, batch.length), batch.length)
            chosen = torch.randint(len(windows), (WINDOWS,), device=windows.device, generator=generator)
            self.windows.copy_(windows[chosen])

    def count(self, path: Int[Tensor, "b t"]) -> None:
        """How often each state is there, and is there again a frame later, by an alignment."""
        total, own = len(self.state_counts), path[path >= 0]
        again = path[:, 1:][(path[:, 1:] == path[:, :-1]) & (path[:, 1:] >= 0)]
        self.state_counts.copy_(own.bincount(minlength=total))
        self.stay_counts.copy_(again.bincount(minlength=total))

    @torch.no_grad()
    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Start an RBM on what lies below it; make the stack a network."""
        if stage.name.startswith("rbm_"):
            layer = int(stage.name.removeprefix("rbm_")) - 1
            self.rbm(layer).initialise(Batch(self.hidden(self.windows, layer)), generator)
        elif stage.name == "frames" and self.rbms:
            for n, module in enumerate(self.layers):
                rbm, linear = self.rbm(n), cast(nn.Linear, module)
                now, scale = rbm.couplings(), torch.ones_like(linear.weight[0])
                shift = torch.zeros_like(scale)
                if isinstance(rbm, GaussianRbm):  # which sees (window - mean) / deviation / sigma
                    scale, shift = 1 / (rbm.deviation * rbm.log_sigma.exp()), rbm.mean
                linear.weight.copy_((now.weight * scale[:, None]).t())
                linear.bias.copy_(now.hidden_bias - linear.weight @ shift)
            self.tuned.fill_(True)

    def below(self, player: str, batch: Batch) -> tuple[TwoSided, Batch]:
        """An RBM, and what it learns from: windows, or the means of the layer below."""
        assert batch.length is not None
        layer = int(player.removeprefix("rbm_")) - 1
        with torch.no_grad():
            windows = self.cut(self.frames(batch.x, batch.length), batch.length)
            return self.rbm(layer), Batch(self.hidden(windows, layer))

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The RBM's own; the cross-entropy of the alignment, a mean over the frames."""
        if player.startswith("rbm_"):
            rbm, seen = self.below(player, batch)
            return rbm.loss("model", seen, generator)
        assert batch.length is not None
        y = self.alignment(batch)
        logits = self.logits(batch.x, batch.length)
        loss = F.cross_entropy(logits, y[within(batch.length, y.shape[1])], ignore_index=-1)
        return loss + self.decay(), {"cross_entropy": loss.detach()}

    def decay(self) -> Tensor:
        """Half the squared weights of the network times ``weight_decay``."""
        return 0.5 * self.weight_decay * torch.stack([p.square().sum() for p in self.layers.parameters()]).sum()

    def alignment(self, batch: Batch) -> Int[Tensor, "b t"]:
        """The states that the network is to tell."""
        if batch.y is None:
            raise UserError(f"{type(self).__name__} learns from labels of frames, and a batch has none.")
        return batch.y

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Move the RBM's estimator."""
        if player.startswith("rbm_"):
            rbm, seen = self.below(player, batch)
            rbm.after_step("model", seen, generator)

    # ---- what is measured ----

    def objectives(self) -> Mapping[str, HeldOut]:
        """The shares of an utterance's frames whose state is another: on the best path, and each by itself."""
        return {"path_error": HeldOut("share", "lower"), "frame_error": HeldOut("share", "lower")}

    @torch.no_grad()
    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> Mapping[str, Tensor]:
        """Both of each utterance; NaN without labels."""
        assert batch.length is not None
        path = self.best_path(batch.x, batch.length)
        each = self.scores(batch.x, batch.length).argmax(2)
        y = torch.full_like(path, -1) if batch.y is None else batch.y
        known = y >= 0
        count = known.sum(1).double()
        shares = {"path_error": path, "frame_error": each}
        return {name: ((found != y) & known).sum(1) / count for name, found in shares.items()}

    def target(self, batch: Batch) -> Int[Tensor, "b w"]:
        """The words of the labels."""
        if batch.y is None:
            raise UserError("These data have no labels, so there are no words to compare with.")
        return words_of(batch.y, self.states)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Int[Tensor, "b w"]:
        """The words that are recognised."""
        assert batch.length is not None
        return words_of(self.best_path(batch.x, batch.length), self.states)
