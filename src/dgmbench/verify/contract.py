"""The training contract and the form of every output: what the trainer and the evaluator take for granted."""

import io
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

from dgmbench.data.spec import Batch
from dgmbench.models.contract import (
    CanComplete,
    CanDecode,
    CanEncode,
    CanReconstruct,
    CanSample,
    HasBijection,
    HasConditions,
    HasElbo,
    HasLogProb,
    HasLogProbEstimate,
    HasLogWeights,
    HasReconstructionLogProb,
    HasStepConditions,
    HasTransition,
    HasUnnormalisedElbo,
    HasUnnormalisedLogProb,
    IsAutoregressive,
    Model,
)
from dgmbench.verify.check import Check
from dgmbench.verify.precision import double_precision
from dgmbench.verify.shown import under_one
from dgmbench.verify.subject import Subject, Training, changed, listed, same, tensors

Output = Callable[[Tensor, Generator], Tensor]


def outputs(model: Model) -> dict[str, tuple[Output, int]]:
    """Each capability that maps x to values: the call with its noise from a generator, and the axis of examples."""
    found: dict[str, tuple[Output, int]] = {}
    if isinstance(model, HasLogProb):
        found["log_prob"] = (lambda x, g: model.log_prob(x), 0)
    if isinstance(model, HasElbo):
        found["elbo"] = (lambda x, g: model.elbo(x, generator=g), 0)
    if isinstance(model, HasLogProbEstimate):
        found["log_prob_estimate"] = (lambda x, g: model.log_prob_estimate(x, generator=g), 0)
    if isinstance(model, HasLogWeights):
        found["log_weights"] = (lambda x, g: model.log_weights(x, 3, generator=g), 1)
    if isinstance(model, HasUnnormalisedLogProb | HasConditions | HasStepConditions):
        found["log_prob_unnormalised"] = (lambda x, g: model.log_prob_unnormalised(x), 0)
    if isinstance(model, HasUnnormalisedElbo):
        found["elbo_unnormalised"] = (lambda x, g: model.elbo_unnormalised(x, generator=g), 0)
    if isinstance(model, CanReconstruct):
        found["reconstruct"] = (lambda x, g: model.reconstruct(x, generator=g), 0)
    if isinstance(model, HasReconstructionLogProb):
        found["reconstruction_log_prob"] = (lambda x, g: model.reconstruction_log_prob(x), 0)
    if isinstance(model, CanEncode):
        found["encode"] = (lambda x, g: model.encode(x), 0)
        if isinstance(model, CanDecode):
            found["decode"] = (lambda x, g: model.decode(model.encode(x)), 0)
    if isinstance(model, CanComplete):
        found["complete"] = (lambda x, g: model.complete(x, _every_second(x), generator=g), 0)
    if isinstance(model, HasTransition):
        found["transition"] = (lambda x, g: model.transition(x, generator=g), 0)
    if isinstance(model, IsAutoregressive):
        found["conditional_logits"] = (lambda x, g: model.conditional_logits(x), 0)
    return found


def _every_second(x: Tensor) -> Tensor:
    """A mask of x, true at every second of its dimensions."""
    return (torch.arange(x[0].numel()) % 2 == 0).reshape(x.shape[1:]).expand(x.shape)


def checks(subject: Subject) -> Iterator[Check]:
    """All checks of this module."""
    watch = _Contract()
    training = Training(subject.model(), subject)
    start = tensors(training.model)
    training.run(watch=watch)
    yield from watch.checks(training, start)
    model = under_one(subject, training.model.eval())
    state = tensors(model)
    with torch.no_grad():
        yield _card(subject, model)
        yield from _forms(subject, model)
        yield from _draws(subject, model)
        touched = changed(state, tensors(model))
        yield _nothing("evaluation changes no state", touched, "parameters and buffers, bit for bit")
        yield _save_and_load(subject, model)
    with double_precision(), torch.no_grad():
        if outputs(model):
            yield _examples_are_independent(subject.double)


class _Contract:
    """Looks on while the reference loop trains: purity, gradients and what each step changes."""

    def __init__(self) -> None:
        self.losses: dict[str, float] = {}
        self.non_finite: list[str] = []
        self.touched: list[str] = []
        self.differing: list[str] = []
        self.default_rng: list[str] = []
        self.unfrozen: list[str] = []
        self.strangers: list[str] = []
        self.reached: dict[str, set[int]] = {}
        self.looked: dict[tuple[int, str], int] = {}
        self.kept: dict[str, Tensor] = {}

    def before(self, training: Training, player: str, batch: Batch) -> None:
        model = training.model
        own = {id(p) for p in training.players[player]}
        self.kept = {n: p.detach().clone() for n, p in model.named_parameters() if id(p) not in own}
        stage = sum(first for _, first in training.plan[: training.step + 1])
        looks = self.looked[stage, player] = self.looked.get((stage, player), 0) + 1
        if looks > 2:
            return
        state = tensors(model)
        first = training.loss(player, batch)[0].detach()
        self.touched += changed(state, tensors(model))
        self.touched += [f"{n}.grad" for n, p in model.named_parameters() if p.grad is not None]
        self._restore(model, state)
        if not same(first, training.loss(player, batch)[0].detach()):
            self.differing.append(player)
        self._restore(model, state)
        model.eval()
        torch.default_generator.manual_seed(0)
        rng = torch.get_rng_state()
        model.loss(player, batch, training.subject.generator("eval"))
        if not torch.equal(rng, torch.get_rng_state()):
            self.default_rng.append(player)
        model.train()
        self._restore(model, state)
        if looks == 1:
            self._frozen(training, player, batch)

    def _frozen(self, training: Training, player: str, batch: Batch) -> None:
        """Gradients of the player's own parameters must not depend on whether the others require gradients."""
        own = [p for p in training.players[player] if p.requires_grad]
        alone = torch.autograd.grad(training.loss(player, batch)[0], own, allow_unused=True)
        state = [p.requires_grad for p in training.model.parameters()]
        for p in training.model.parameters():
            p.requires_grad_(id(p) in training.learning)
        together = torch.autograd.grad(training.loss(player, batch)[0], own, allow_unused=True)
        for p, flag in zip(training.model.parameters(), state, strict=True):
            p.requires_grad_(flag)
        for a, b in zip(alone, together, strict=True):
            zero = torch.zeros(())
            a, b = zero if a is None else a, zero if b is None else b
            if float((a - b).abs().max()) > 1e-4 * (1 + float(b.abs().max())):
                self.unfrozen.append(player)
                break

    @staticmethod
    def _restore(model: Model, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, t in [*model.named_parameters(), *model.named_buffers()]:
                if t.shape == state[name].shape:
                    t.copy_(state[name])

    def after(self, training: Training, player: str, batch: Batch) -> None:
        self.losses[player] = float(training.value)
        if not bool(training.value.isfinite()) or training.value.dim():
            self.non_finite.append(player)
        parameters = dict(training.model.named_parameters())
        self.strangers += changed(self.kept, {n: parameters[n].detach() for n in self.kept})
        reached = self.reached.setdefault(player, set())
        for p in training.players[player]:
            if p.grad is not None and not bool(p.grad.isfinite().all()):
                self.non_finite.append(player)
            if p.grad is not None and bool(p.grad.ne(0).any()):
                reached.add(id(p))

    def checks(self, training: Training, start: dict[str, Tensor]) -> Iterator[Check]:
        model, players = training.model, training.players
        names = {id(p): n for n, p in model.named_parameters()}
        updates = f"{len(training.plan)} updates, players {', '.join(players)}"
        values = ", ".join(f"{player} {value:.4g}" for player, value in self.losses.items())
        absent = [player for player in players if player not in self.losses]
        yield Check(
            "losses are finite scalars",
            values,
            "finite, with finite gradients",
            not self.non_finite and not absent,
            _names("not so for", self.non_finite) or _names("in no stage's turn:", absent) or updates,
        )
        yield _nothing("loss changes no state", self.touched, "parameters, buffers and gradients, bit for bit")
        yield _nothing("equal generators give equal losses", self.differing, "bit for bit")
        yield _nothing(
            "loss draws from its generator only", self.default_rng, "torch's default generator stays put in eval mode"
        )
        missed = [
            names[id(p)]
            for player, parameters in players.items()
            for p in parameters
            if id(p) in training.learning and id(p) not in self.reached.get(player, set())
        ]
        total = sum(len(parameters) for parameters in players.values())
        yield Check(
            "gradients reach every parameter",
            f"{total - len(missed)} of {total}",
            "all",
            not missed,
            _names("never a gradient for", missed) or "each from its own player's loss",
        )
        owned = {id(p) for parameters in players.values() for p in parameters}
        orphans = [n for n, p in model.named_parameters() if id(p) in training.learning and id(p) not in owned]
        frozen = [n for n, p in model.named_parameters() if id(p) not in training.learning]
        yield Check(
            "every parameter has a player",
            f"{len(orphans)} without",
            "0",
            not orphans,
            _names("no player has", orphans) or _names("fixed by requires_grad:", frozen) or "players() names them all",
        )
        yield _nothing("a player's gradients stand alone", self.unfrozen, "the same with the others frozen or not")
        yield _nothing("a step changes its own player only", self.strangers, "other parameters, bit for bit")
        moved = set(changed(start, tensors(model)))
        still = [
            player
            for player, parameters in players.items()
            if not any(names[id(p)] in moved for p in parameters if id(p) in training.learning)
        ]
        yield _nothing("training moves every player", still, updates)


def _nothing(name: str, offenders: list[str], note: str) -> Check:
    """A check that passes if the list of offenders is empty."""
    offenders = list(dict.fromkeys(offenders))
    return Check(name, f"{len(offenders)} exceptions", "0", not offenders, _names("not so for", offenders) or note)


def _names(start: str, names: list[str]) -> str:
    return f"{start} {listed(list(dict.fromkeys(names)))}" if names else ""


def _card(subject: Subject, model: Model) -> Check:
    """The kind of likelihood that the card states needs a method that computes it."""
    needed: dict[str, tuple[type, ...]] = {
        "exact": (HasLogProb,),
        "lower bound": (HasElbo, HasLogWeights, HasUnnormalisedElbo, HasLogProb),
        "AIS estimate": (HasUnnormalisedLogProb, HasUnnormalisedElbo, HasConditions, HasStepConditions),
        "none": (Model,),
    }
    if subject.likelihood == "exact" and subject.spec.levels and isinstance(model, HasBijection):
        needed["exact"] = (HasLogWeights,)  # exact is a flow's density of dequantised levels, which bounds their mass
    passed = isinstance(model, needed.get(subject.likelihood, ()))
    found = [name for name in outputs(model) if name.startswith(("log_", "elbo"))]
    return Check("stated likelihood has its method", subject.likelihood, "a method", passed, listed(found, 5) or "none")


def _forms(subject: Subject, model: Model) -> Iterator[Check]:
    """Shapes, dtypes and finiteness of everything that the model returns."""
    spec, b = subject.spec, 5
    x = subject.data.x[:b]
    wanted: dict[str, tuple[int, ...]] = {
        "log_weights": (3, b),
        "reconstruct": (b, *spec.shape),
        "decode": (b, *spec.shape),
        "complete": (b, *spec.shape),
        "transition": (b, *spec.shape),
        "encode": (b, -1),
        "conditional_logits": (b, spec.dim, -1),
    }
    found = outputs(model)
    wrong = []
    for name, (call, _) in found.items():
        value, shape = call(x, subject.generator("form")), wanted.get(name, (b,))
        right = len(value.shape) == len(shape) and all(m in (-1, n) for m, n in zip(shape, value.shape, strict=True))
        raw = name in ("transition", "complete") or (spec.kind == "tokens" and name in ("reconstruct", "decode"))
        dtype = value.dtype == spec.dtype if raw else value.is_floating_point()
        if not (right and dtype and bool(value.isfinite().all())):
            wrong.append(f"{name} {tuple(value.shape)} {value.dtype}".replace("torch.", ""))
        elif spec.levels and (raw or name in ("reconstruct", "decode")):
            low, high = float(value.min()), float(value.max())
            if low < -1e-4 or high > spec.levels - 1 + 1e-4:
                wrong.append(f"{name} from {low:.4g} to {high:.4g}")
    if found:
        yield _nothing("outputs have the stated form", wrong, ", ".join(found))
    if not isinstance(model, CanSample):
        return
    wrong = []
    for n in (1, 7):
        labels = [None] if spec.num_classes is None else [None, torch.arange(n) % spec.num_classes]
        for y in labels:
            s = model.sample(n, y, generator=subject.generator("form"))
            if s.shape != (n, *spec.shape) or s.dtype != spec.dtype:
                wrong.append(f"{tuple(s.shape)} {s.dtype}".replace("torch.", ""))
            elif spec.kind == "real" and not bool(s.isfinite().all()):
                wrong.append("values that are not finite")
            elif spec.kind != "real" and (int(s.min()) < 0 or (spec.levels and int(s.max()) >= spec.levels)):
                wrong.append(f"values from {int(s.min())} to {int(s.max())}")
    yield _nothing("samples lie in the data space", wrong, f"{spec}, {spec.dtype}".replace("torch.", ""))


def _draws(subject: Subject, model: Model) -> Iterator[Check]:
    """Everything random comes from the generator, or from torch's default generator if there is none."""
    x = subject.data.x[:9]
    calls: dict[str, Callable[[Generator | None], Tensor]] = {
        name: lambda g, call=call: call(x, g)  # type: ignore[misc]
        for name, (call, _) in outputs(model).items()
    }
    if isinstance(model, CanSample):
        calls["sample"] = lambda g: model.sample(9, generator=g)
    if not calls:
        return
    differing, default = [], []
    for name, call in calls.items():
        rng = torch.get_rng_state()
        a, b = call(subject.generator("draw")), call(subject.generator("draw"))
        if not torch.equal(rng, torch.get_rng_state()):
            default.append(name)
        torch.default_generator.manual_seed(1)
        c = call(None)
        torch.default_generator.manual_seed(1)
        if not same(a, b) or not same(c, call(None)):
            differing.append(name)
    yield _nothing("equal generators give equal draws", differing, ", ".join(calls))
    yield _nothing("draws leave the default generator alone", default, "its state, bit for bit, where one is passed")


def _save_and_load(subject: Subject, model: Model) -> Check:
    """A saved state, read as data only, makes a new model with other initial parameters give the same outputs."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = under_one(subject, subject.model(copy=1).eval())
    other.load_state_dict(torch.load(file, weights_only=True))
    x, wrong = subject.data.x[:9], []
    first, second = outputs(model), outputs(other)
    for name in first:
        if not same(first[name][0](x, subject.generator("load")), second[name][0](x, subject.generator("load"))):
            wrong.append(name)
    if isinstance(model, CanSample) and isinstance(other, CanSample):
        a, b = (m.sample(9, generator=subject.generator("load")) for m in (model, other))
        wrong += [] if same(a, b) else ["sample"]
    for player in model.players():
        with torch.enable_grad():
            a, b = (m.loss(player, subject.batch(0), subject.generator("load"))[0].detach() for m in (model, other))
        wrong += [] if same(a, b) else [f"loss of {player}"]
    return _nothing("a loaded state gives the same outputs", wrong, "bit for bit, read with weights_only")


def _examples_are_independent(subject: Subject) -> Check:
    """The output for one example must not depend on the others in its batch (in eval mode, at equal noise)."""
    model = under_one(subject, subject.states[-1][1])
    x, tolerance = subject.data.x[:8], 1e-9
    worst, wrong = 0.0, []
    for name, (call, axis) in outputs(model).items():
        together = call(x, subject.generator("batch"))
        for row in (0, 5):
            y = subject.data.x[8:16].clone()
            y[row] = x[row]
            a, b = (v.select(axis, row).double() for v in (together, call(y, subject.generator("batch"))))
            difference = float((a - b).abs().max()) / (1 + float(a.abs().max()))
            worst = max(worst, difference)
            if not difference <= tolerance:
                wrong.append(name)
    note = _names("not so for", wrong) or "other rows replaced at equal noise, in eval mode"
    return Check("examples do not see their batch", worst, tolerance, not wrong, note)
