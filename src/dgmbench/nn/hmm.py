"""Hidden Markov models and linear chains: forward-backward and Viterbi in log space, all utterances of a batch at once.

A chain gives a path s_1, ..., s_T of states the score

    score(s) = start[s_1] + sum_t emission_t[s_t] + sum_{t>1} transition[s_{t-1}, s_t] + end[s_T].

Where start and transition are log-probabilities and emission log p(x_t | s), end 0, it is log p(x, s); with other
numbers the chain is a conditional random field, p(s | x) = exp(score(s)) / Z. The one loop is over time.

Chains may be the same for all utterances, start (s,) and transition (s, s), or each utterance's own, (b, s) and
(b, s, s); -inf forbids. Emissions are (b, t, s) and lengths (b,); what lies behind a length counts for nothing.
Tutorial: Rabiner 1989, "A tutorial on hidden Markov models and selected applications in speech recognition",
https://doi.org/10.1109/5.18626.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dgmbench.nn.sequences import within

FORBIDDEN = -1e30  # lower scores are of what is forbidden
NATS = 300.0  # sums of numbers that are no further apart can be products in float64


class Chain(NamedTuple):
    """Scores of beginnings, of steps from state to state, and of endings."""

    start: Tensor
    transition: Tensor
    end: Tensor

    def to(self, like: Tensor) -> "Chain":
        """With the dtype and on the device of a tensor."""
        return Chain(*(each.to(like) for each in self))

    def rows(self) -> "Chain":
        """With a dimension for utterances."""
        start, transition, end = self
        return Chain(
            start if start.dim() == 2 else start[None],
            transition if transition.dim() == 3 else transition[None],
            end if end.dim() == 2 else end[None],
        )


class Expected(NamedTuple):
    """log Z (b,); how likely each state is at each time, (b, t, s), 0 behind the end; expected steps (b, s, s)."""

    log_partition: Tensor
    states: Tensor
    steps: Tensor


def _finite(values: Tensor) -> Tensor:
    """-inf as a number far below all others, so that no difference and no gradient of it is undefined."""
    return values.clamp_min(torch.finfo(values.dtype).min / 1e6)


def _ready(chain: Chain, emission: Tensor, length: Tensor) -> tuple[Chain, Tensor, Tensor]:
    """A chain for each utterance, or for all, emissions that are 0 behind an end, and which times count."""
    on = within(length, emission.shape[1])
    return Chain(*map(_finite, chain.rows())), _finite(emission.masked_fill(~on[:, :, None], 0.0)), on


def _matrix(transition: Tensor) -> Tensor | None:
    """exp(transition), float64, for sums over states as products; None where that would lose small numbers."""
    allowed = transition > FORBIDDEN
    small = (transition < -NATS) | (transition > NATS)
    return None if bool((small & allowed).any()) else transition.double().exp()


def _summed(scores: Tensor, transition: Tensor, matrix: Tensor | None) -> Tensor:
    """log of the sum over i of exp(scores_i + transition_ij), (b, s): a product where the scores lie near enough."""
    top = scores.amax(1, keepdim=True)
    if matrix is None or bool(((scores < top - NATS) & (scores > FORBIDDEN)).any()):
        return (scores[:, :, None] + transition).logsumexp(1)
    total = ((scores - top).double().exp()[:, None] @ matrix)[:, 0]
    lowest = torch.finfo(scores.dtype).min / 1e6
    return torch.where(total > 0, total.log().to(scores.dtype) + top, lowest)


def _forwards(chain: Chain, emission: Tensor, on: Tensor, matrix: Tensor | None) -> list[Tensor]:
    """log-sums (b, s) over all paths up to each time; behind an utterance's end the last one stays."""
    alpha = [(chain.start + emission[:, 0]).expand(len(emission), -1)]
    for t in range(1, emission.shape[1]):
        moved = _summed(alpha[-1], chain.transition, matrix) + emission[:, t]
        alpha.append(torch.where(on[:, t, None], moved, alpha[-1]))
    return alpha


def _steps(
    before: list[Tensor], after: list[Tensor], transition: Tensor, matrix: Tensor | None, on: Tensor
) -> Float[Tensor, "b s s"]:
    """Sums over time of exp(before_i + transition_ij + after_j), where ``on``; products where nothing overflows."""
    n, s = before[0].shape if before else (len(on), transition.shape[1])
    if not before:
        return transition.new_zeros(n, s, s)
    left, right = torch.stack(before, 1), torch.stack(after, 1)
    top = left.amax(2, keepdim=True)
    left, right = (left - top).double(), (right + top).double()
    near = not bool(((left < -NATS) & (left > FORBIDDEN)).any() | (right > 2 * NATS).any())
    if matrix is not None and near:
        own = left.exp() * on[:, :, None]
        return ((own.mT @ right.exp()) * matrix).to(transition.dtype)
    total = transition.new_zeros(n, s, s)
    for t in range(left.shape[1]):
        joint = left[:, t, :, None] + transition + right[:, t, None]
        total += joint.exp() * on[:, t, None, None]
    return total


class _LogPartition(torch.autograd.Function):
    """log Z, whose gradients are the expected counts: nothing of the loop over time is taped."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, transition: Tensor, end: Tensor, emission: Tensor, length: Tensor) -> Tensor:
        found = expected(Chain(start, transition, end), emission, length)
        ctx.save_for_backward(found.states, found.steps, length)
        ctx.shared = tuple(len(each) == 1 for each in (start, transition, end))
        return found.log_partition

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        states, steps, length = ctx.saved_tensors
        slope = slopes[0][:, None]
        last = states[torch.arange(len(states), device=states.device), length - 1]
        counts = (states[:, 0] * slope, steps * slope[:, :, None], last * slope)
        own = (c.sum(0, keepdim=True) if shared else c for c, shared in zip(counts, ctx.shared, strict=True))
        return (*own, states * slope[:, :, None], None)


def log_partition(chain: Chain, emission: Float[Tensor, "b t s"], length: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """log Z, the log-sum over all paths of exp(score); log p(x) of a hidden Markov model. Has first gradients."""
    found: Tensor = _LogPartition.apply(*chain.rows(), emission, length)
    return found


def score(chain: Chain, emission: Tensor, length: Int[Tensor, " b"], path: Int[Tensor, "b t"]) -> Float[Tensor, " b"]:
    """The score of one path for each utterance; what it says behind the end counts for nothing. Has gradients."""
    (chain, emission, on), path, n = _ready(chain, emission, length), path.clamp_min(0), len(path)
    row = torch.arange(n, device=path.device)
    start, transition, end = (each.expand(n, *each.shape[1:]) for each in chain)
    own = emission.gather(2, path[:, :, None])[:, :, 0]
    steps = transition[row[:, None], path[:, :-1], path[:, 1:]]
    total = torch.where(on, own, 0.0).sum(1) + torch.where(on[:, 1:], steps, 0.0).sum(1)
    return total + start[row, path[:, 0]] + end[row, path[row, length - 1]]


def allowed(chain: Chain, length: Int[Tensor, " b"], path: Int[Tensor, "b t"]) -> Bool[Tensor, " b"]:
    """Whether a path is known (not -1) at every time, and takes no step that the chain forbids."""
    nothing = chain.start.new_zeros(*path.shape, chain.start.shape[-1])
    return (score(chain, nothing, length, path) > FORBIDDEN) & ((path >= 0).sum(1) == length)


def boosted_mmi(
    chain: Chain, emission: Float[Tensor, "b t s"], length: Int[Tensor, " b"], path: Int[Tensor, "b t"], *, boost: float
) -> Float[Tensor, " b"]:
    """log of what a path has of all, in nats, if each counts exp(-boost * its frames that are right). Has gradients.

    score(path) - log sum over all paths s of exp(score(s) - boost * #{t: s_t = path_t}): the more of a path is wrong,
    the more it is in the way. With boost 0 it is log p(path | x), maximum mutual information. Paper: Povey et al. 2008,
    "Boosted MMI for model and feature-space discriminative training", https://doi.org/10.1109/ICASSP.2008.4518545.
    """
    right = torch.arange(emission.shape[2], device=path.device) == path[:, :, None]
    return score(chain, emission, length, path) - log_partition(chain, emission - boost * right, length)


@torch.no_grad()
def expected(chain: Chain, emission: Float[Tensor, "b t s"], length: Int[Tensor, " b"]) -> Expected:
    """Forward-backward: log Z, the marginals of the states and the expected number of each step, without gradients."""
    chain, emission, on = _ready(chain, emission, length)
    matrix = _matrix(chain.transition)
    alpha = _forwards(chain, emission, on, matrix)
    total = (alpha[-1] + chain.end).logsumexp(1)
    back, n = chain.transition.mT, len(emission)
    beta = chain.end.expand(n, -1)
    states, inners = [], []
    for t in range(emission.shape[1] - 1, -1, -1):
        states.append((alpha[t] + beta - total[:, None]).exp() * on[:, t, None])
        if t:
            inner = emission[:, t] + beta
            inners.append(inner - total[:, None])
            beta = torch.where(on[:, t, None], _summed(inner, back, None if matrix is None else matrix.mT), beta)
    steps = _steps(alpha[:-1], inners[::-1], chain.transition, matrix, on[:, 1:])
    return Expected(total, torch.stack(states[::-1], 1), steps)


@torch.no_grad()
def viterbi(
    chain: Chain, emission: Float[Tensor, "b t s"], length: Int[Tensor, " b"]
) -> tuple[Int[Tensor, "b t"], Float[Tensor, " b"]]:
    """The best path of each utterance, -1 behind its end, and its score."""
    chain, emission, on = _ready(chain, emission, length)
    n, steps, s = emission.shape
    best = (chain.start + emission[:, 0]).expand(n, s)
    stay = torch.arange(s, device=best.device).expand(n, s)
    came = []
    for t in range(1, steps):
        value, back = (best[:, :, None] + chain.transition).max(1)
        best = torch.where(on[:, t, None], value + emission[:, t], best)
        came.append(torch.where(on[:, t, None], back, stay))
    value, state = (best + chain.end).max(1)
    path = [state]
    for back in reversed(came):
        path.append(back.gather(1, path[-1][:, None])[:, 0])
    return torch.stack(path[::-1], 1).masked_fill(~on, -1), value


# ---- words ----


def word_loop(words: int, states: int, stay: Float[Tensor, " s"], word: Float[Tensor, " w"] | None = None) -> Chain:
    """Words in a row, each of which goes through its states from the first to the last.

    Args:
        words: how many there are; state number ``states * word + place``.
        states: of each word.
        stay: the probability that each of the words * states states lasts another frame.
        word: log-probabilities of the words, whatever comes before; all alike by default.
    """
    total, stay = words * states, stay.double()
    word = stay.new_zeros(words).log_softmax(0) if word is None else word.to(stay)
    first, last = torch.arange(0, total, states), torch.arange(states - 1, total, states)
    start = stay.new_full((total,), -torch.inf)
    start[first] = word
    end = stay.new_full((total,), -torch.inf)
    end[last] = 0.0
    transition = stay.new_full((total, total), -torch.inf)
    leave = (-stay).log1p()
    inner = torch.tensor([n for n in range(total) if n % states < states - 1], dtype=torch.int64)
    transition[inner, inner + 1] = leave[inner]
    transition[last[:, None], first[None]] = leave[last][:, None] + word[None]
    every = torch.arange(total)
    if states == 1:  # the same word again is a longer one
        transition[every, every] = torch.logaddexp(transition[every, every], stay.log())
    else:
        transition[every, every] = stay.log()
    return Chain(start, transition, end)


def words_of(path: Int[Tensor, "b t"], states: int) -> Int[Tensor, "b w"]:
    """The words that paths of frames go through, -1 behind the last; one begins where its first state does.

    >>> words_of(torch.tensor([[3, 4, 5, 3, 3, -1], [0, 1, 1, 1, 1, 2]]), 3)
    tensor([[ 1,  1],
            [ 0, -1]])
    """
    before = torch.cat([torch.full_like(path[:, :1], -1), path[:, :-1]], 1)
    begins = (path >= 0) & (path % states == 0) & (path != before)
    found = path.new_full((len(path), max(1, int(begins.sum(1).max()) if len(path) else 1)), -1)
    row, _ = begins.nonzero(as_tuple=True)
    place = (begins.cumsum(1) - 1)[begins]
    found[row, place] = path[begins] // states
    return found


def transcript(
    chain: Chain, emission: Float[Tensor, "b t s"], words: Int[Tensor, "b w"], states: int
) -> tuple[Chain, Float[Tensor, "b t p"], Int[Tensor, "b p"]]:
    """A chain for each utterance of the places in its words, in this order; its emissions, and each place's state.

    ``chain`` is one for all, with the words' own states. The last place is behind all others, so that an utterance
    must have a frame for each.
    """
    n, most = words.shape
    place = torch.arange(most * states, device=words.device)
    number = words.clamp_min(0).repeat_interleave(states, 1) * states + place % states
    own = emission.gather(2, number[:, None].expand(-1, emission.shape[1], -1))
    steps = chain.transition.to(own)
    transition = own.new_full((n, len(place), len(place)), -torch.inf)
    transition[:, place, place] = steps[number, number]
    transition[:, place[:-1], place[1:]] = steps[number[:, :-1], number[:, 1:]]
    start = torch.where(place == 0, chain.start.to(own)[number], -torch.inf)
    last = place == (words >= 0).sum(1, keepdim=True) * states - 1
    end = torch.where(last, chain.end.to(own)[number], -torch.inf)
    return Chain(start, transition, end), own, number


@torch.no_grad()
def align(
    chain: Chain, emission: Float[Tensor, "b t s"], length: Int[Tensor, " b"], words: Int[Tensor, "b w"], states: int
) -> Int[Tensor, "b t"]:
    """The best path through these words in this order, -1 behind the end: forced alignment."""
    own_chain, own, number = transcript(chain, emission, words, states)
    path, _ = viterbi(own_chain, own, length)
    return torch.where(path >= 0, number.gather(1, path.clamp_min(0)), -1)
