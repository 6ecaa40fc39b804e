"""The one LightningModule that trains every model: players, stages, clipping, accumulation, EMA and the clock."""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dgmbench.data.batches import BatchStream, evaluation_batches
from dgmbench.data.random import keyed_generator, keyed_seed
from dgmbench.data.spec import Batch
from dgmbench.errors import RunFailed, UserError
from dgmbench.models.contract import Model, Parameters, player_parameters
from dgmbench.nn.batchnorm import moments_layers
from dgmbench.training import standing
from dgmbench.training.ema import Ema
from dgmbench.training.files import restore_rng_state, rng_state, seed_everything
from dgmbench.training.plan import Plan
from dgmbench.training.ranks import Ranks
from dgmbench.training.schedule import Schedule

# On an accelerator reading a loss waits for the device, so finiteness is looked at once in this many updates.
FINITE_CHECK_EVERY = 20
# How long a slice of training runs before Lightning's loop gets a look in; several processes must agree, so they count.
SLICE_SECONDS = 0.05
SLICE_UPDATES = 20
# Examples of each piece in which a model sees the training set to settle its statistics.
SETTLE_BATCH = 1000


@dataclass
class Clock:
    """Where a run stands. Counts batches and images, never optimiser steps."""

    update: int = 0
    batches: int = 0
    images: int = 0
    stage: int = -1
    validated_at: int = 0
    sampled_at: int = -1
    saved_at: int = 0
    train_seconds: float = 0.0

    def state_dict(self) -> dict[str, int | float]:
        """All counters."""
        return dict(vars(self))


@dataclass
class Hooks:
    """What the run does between batches; each is called with the module, on a state that can be saved."""

    validate: Callable[["Training"], None] = lambda module: None
    samples: Callable[["Training"], None] = lambda module: None
    checkpoint: Callable[["Training"], None] = lambda module: None
    row: Callable[[dict[str, Any]], None] = lambda row: None
    interrupted: Callable[[], int | None] = lambda: None
    started: Callable[[], None] = lambda: None
    advanced: Callable[["Training"], None] = lambda module: None


class Interrupted(Exception):
    """A signal asked the run to stop; a resumable checkpoint has been written."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


class Training(pl.LightningModule):
    """Trains any ``Model`` by manual optimisation.

    The state at the start of update u, together with (seed, u), decides everything that follows: batches, noise and
    learning rates are pure functions of them. A checkpoint taken between updates therefore resumes bit by bit, and
    Lightning's own loop counters are not needed: a resumed run is a fresh ``fit`` that starts at the stored clock.
    """

    def __init__(
        self,
        model: Model,
        *,
        plan: Plan,
        stream: BatchStream,
        initial: Callable[[], Batch],
        seed: int,
        optimizers: Callable[[str, Parameters], Optimizer],
        schedule: Schedule,
        hooks: Hooks | None = None,
        ranks: Ranks | None = None,
        compile_loss: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.ranks = ranks or Ranks()
        self._loss = torch.compile(model.loss) if compile_loss else model.loss
        self.model = model
        self.plan, self.stream, self.seed = plan, stream, seed
        self.hooks = hooks or Hooks()
        self.clock = Clock()
        self.ema: Ema | None = None
        self._initial, self._make_optimizer, self._schedule = initial, optimizers, schedule
        self._parameters_of = player_parameters(model)
        self._others = {
            player: [p for p in model.parameters() if p.requires_grad and id(p) not in {id(q) for q in own}]
            for player, own in self._parameters_of.items()
        }
        self._optimizers: dict[str, Optimizer] = {}
        self._base_lr: dict[str, list[float]] = {}
        self._window: dict[str, list[Tensor]] = {}
        self._latest: dict[str, Tensor] = {}
        self._generator: torch.Generator | None = None
        self._pending: Mapping[str, Any] | None = None
        self._last_checkpoint = time.monotonic()
        self._entered = 0.0
        self.run_state: dict[str, Any] = {}
        self._agreed = {"save": False, "stop": False}

    # ------------------------------------------------------------------ Lightning's side

    def configure_optimizers(self) -> list[Optimizer]:
        """One optimiser a player, with its saved state after a resume."""
        self._optimizers = {
            player: self._make_optimizer(player, parameters) for player, parameters in self.model.players().items()
        }
        self._base_lr = {
            player: [group["lr"] for group in optimizer.param_groups] for player, optimizer in self._optimizers.items()
        }
        if self._pending is not None:
            for player, optimizer in self._optimizers.items():
                optimizer.load_state_dict(self._pending["optimizers"][player])
        return list(self._optimizers.values())

    def train_dataloader(self) -> "_Slices":
        """Slices of the training that is left; batches are fetched by their number in ``training_step``."""
        return _Slices(self)

    def transfer_batch_to_device(self, batch: int, device: torch.device, dataloader_idx: int) -> int:
        """Batches come from the stream on the right device already."""
        return batch

    def on_train_start(self) -> None:
        """Initialise a new run from data, or put back what a resume needs; runs after Lightning's own set-up."""
        self.model.train()
        self._generator = torch.Generator(device=self.device)
        if self.plan.ema:
            self.ema = Ema(self._parameters_of, decay=self.plan.ema)  # here: weights are on their device now
        if self._pending is not None:
            self._restore(self._pending)
            self._pending = None
        else:
            seed_everything(keyed_seed(self.seed, "initialise"))
            generator = keyed_generator(self.seed, "initialise", device=self.device)
            self.model.initialise(self._initial(), generator)
        self._last_checkpoint = self._entered = time.monotonic()
        self.hooks.started()

    def on_train_batch_start(self, batch: int, batch_idx: int) -> None:
        """Between two updates: enter a stage, validate, sample, save, stop. The only place where a state is saved
        before the end.
        """
        index = self.plan.stage_index(self.clock.update)
        if index != self.clock.stage:
            self._enter_stage(index)
        self._between()

    def training_step(self, update: int, batch_idx: int) -> None:
        """A slice of training: updates until something is due between two of them, or a moment has passed.

        One slice instead of one update a call keeps the loop around it from costing more than the model's mathematics.
        """
        end = time.monotonic() + SLICE_SECONDS
        while self.clock.update < self.plan.updates:  # Lightning has asked for one slice ahead
            self._update(self.clock.update)
            alone = self.ranks.world == 1
            over = time.monotonic() >= end if alone else self.clock.update % SLICE_UPDATES == 0
            if over or self._due():
                return

    def on_train_end(self) -> None:
        """The end of the budget: last validation and samples, and the final checkpoint."""
        self.clock.train_seconds += self._lap()
        if self._window:
            self._write_row()
        self._check_finite()
        if self.clock.validated_at != self.clock.batches:
            self._validate()
        if self.clock.sampled_at != self.clock.batches:
            self._sample()
        self._save()

    @property
    def ended(self) -> bool:
        """Whether all updates are done, and so is what comes after the last one."""
        clock = self.clock
        return clock.update >= self.plan.updates and clock.validated_at == clock.sampled_at == clock.batches

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add our part: clock, optimisers by player, EMA and every process's open window of logs."""
        self._measure_standing()
        checkpoint["dgmbench"] = {
            "clock": self.clock.state_dict(),
            "optimizers": {player: optimizer.state_dict() for player, optimizer in self._optimizers.items()},
            "ema": None if self.ema is None else self.ema.state_dict(),
            "windows": self.ranks.gathered({self.ranks.rank: self._window}),
            "rng": rng_state(),
        }
        checkpoint["run"] = self.run_state
        checkpoint["optimizer_states"] = []  # kept by player above

    # ------------------------------------------------------------------ resume

    def resume_from(self, checkpoint: Mapping[str, Any]) -> None:
        """Continue from a loaded checkpoint; call before ``Trainer.fit``."""
        self.load_state_dict(checkpoint["state_dict"])
        self._pending = checkpoint["dgmbench"]
        for name, value in checkpoint["dgmbench"]["clock"].items():
            setattr(self.clock, name, value)

    def _restore(self, state: Mapping[str, Any]) -> None:
        restore_rng_state(state["rng"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        window = state["windows"][self.ranks.rank]
        self._window = {name: [v.to(self.device) for v in values] for name, values in window.items()}

    # ------------------------------------------------------------------ one update

    def _update(self, update: int) -> None:
        """Every player whose turn it is, on the group of batches of this update."""
        group = self._group(update)
        for player in self.model.turn(update, self.plan.stages[self.clock.stage]):
            self._step(player, group, update)
        self.clock.update = update + 1
        self.clock.batches += len(group)
        self.clock.images = self.clock.batches * self.plan.batch_size
        if self.clock.update % self.plan.row_every == 0:
            self._write_row()
        self.hooks.advanced(self)

    def _group(self, update: int) -> list[Batch]:
        """The batches of an update as its stage sees them."""
        view = self.plan.stages[self.clock.stage].view
        group = [self.stream.batch(b) for b in self.plan.group(update)]
        if view is not None:  # once an update, so that all its players see the same
            group = [view(batch, self._seeded("view", update, i)) for i, batch in enumerate(group)]
        return group

    def _step(self, player: str, group: list[Batch], update: int) -> None:
        optimizer, parameters = self._optimizers[player], self._parameters_of[player]
        generator = self._seeded("step", update, player)
        others = self._others[player]
        for parameter in others:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.grad = None
        losses = []
        for batch in group:
            loss, logs = self._loss(player, batch, generator)
            if self.ranks.world == 1 and self.device.type == "cpu" and not math.isfinite(loss.item()):
                self._not_finite(player, loss)
            self._backward(loss / len(group) if len(group) > 1 else loss)
            losses.append(loss.detach())
            for name, value in logs.items():
                self._note(f"{player}/{name}", value.detach())
        for parameter in others:
            parameter.requires_grad_(True)
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        if self.ranks.world > 1:
            loss = self._averaged(player, loss, parameters)
        self._note(f"{player}/loss", loss)
        self._latest[player] = loss
        if self.plan.clip is not None:
            norm = nn.utils.clip_grad_norm_(parameters, self.plan.clip)
            self._note(f"{player}/gradient_norm", norm.detach())
        if not self._schedule.is_constant:
            updates = self.plan.stage_updates(self.clock.stage)
            factor = self._schedule.factor(update - updates.start, len(updates))
            for settings, base in zip(optimizer.param_groups, self._base_lr[player], strict=True):
                settings["lr"] = base * factor
        optimizer.step()
        self._after_step(player, group[0] if len(group) == 1 else _joined(group), generator)
        if self.ema is not None:
            self.ema.update(player)
        if self.device.type != "cpu" and update % FINITE_CHECK_EVERY == 0:
            self._check_finite()

    def _backward(self, loss: Tensor) -> None:
        try:
            loss.backward()
        except RuntimeError as error:
            if "double backward" in str(error):
                raise UserError(
                    "hardware.compile=true cannot be used with this model: its loss holds a gradient (a penalty on the "
                    "critic, say), and PyTorch does not differentiate compiled code twice. Leave it at false."
                ) from error
            raise

    @torch.no_grad()
    def _averaged(self, player: str, loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
        """Average the player's gradients over the processes, and with them the loss and the wish to save or stop.

        All of it in one all-reduce, so that every process decides alike.
        """
        wishes = torch.tensor([float(self._wants_save()), float(bool(self.hooks.interrupted()))], device=self.device)
        loss = loss.clone()
        self.ranks.mean_([*(p.grad for p in parameters if p.grad is not None), loss, wishes])
        self._agreed = {"save": bool(wishes[0] > 0), "stop": bool(wishes[1] > 0)}
        if self.device.type == "cpu" and not math.isfinite(loss.item()):
            self._not_finite(player, loss)
        return loss

    @torch.no_grad()
    def _after_step(self, player: str, batch: Batch, generator: torch.Generator) -> None:
        """Let the model change its state; what it changed is the first process's on all of them."""
        self._from_first(lambda: self.model.after_step(player, batch, generator))

    def _from_first(self, change: Callable[[], None]) -> None:
        """Let the model change its state, and give all processes the first one's."""
        if self.ranks.world == 1:
            change()
            return
        before = {id(t): t._version for t in self._state()}
        change()
        self.ranks.from_first_([t for t in self._state() if before.get(id(t)) != t._version])

    def _state(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]

    def _seeded(self, *keys: int | str) -> torch.Generator:
        """Seed this step's generator, and torch's default one for dropout, from (seed, keys); each process its own."""
        assert self._generator is not None
        seed = keyed_seed(self.seed, *keys, *([self.ranks.rank] if self.ranks.rank else []))
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        return self._generator.manual_seed(seed)

    def _note(self, name: str, value: Tensor) -> None:
        self._window.setdefault(name, []).append(value)

    def _write_row(self) -> None:
        means = {name: torch.stack([v.float() for v in values]).mean() for name, values in self._window.items()}
        self.ranks.mean_(list(means.values()))
        self._window = {}
        self.hooks.row({"kind": "train", **self.position(), **{name: float(v) for name, v in means.items()}})

    def latest_losses(self) -> str:
        """The players' newest losses, for a person to watch."""
        return "  ".join(f"{player} loss {float(value):.4g}" for player, value in self._latest.items())

    def position(self) -> dict[str, Any]:
        """The clock in the form that every row carries."""
        clock = self.clock
        seconds = clock.train_seconds + (time.monotonic() - self._entered)
        return {
            "images": clock.images,
            "batches": clock.batches,
            "epoch": round(clock.images / self.plan.images_per_epoch, 4),
            "stage": self.plan.stages[max(0, clock.stage)].name,
            "seconds": round(seconds, 3),
        }

    # ------------------------------------------------------------------ between updates

    def _enter_stage(self, index: int) -> None:
        generator = keyed_generator(self.seed, "stage", index, device=self.device)
        with torch.no_grad():
            self.model.enter_stage(self.plan.stages[index], generator)
        self.clock.stage = index
        if self.ema is not None:
            self.ema = Ema(self._parameters_of, self.plan.ema)

    def _due(self) -> set[str]:
        """What has to be done before the next update; all but the signal and the timed save follow from the clock."""
        clock, plan = self.clock, self.plan
        due = set()
        if self.plan.stage_index(clock.update) != clock.stage:
            due.add("stage")
        if clock.batches // plan.validate_every > clock.validated_at // plan.validate_every:
            due.add("validate")
        if clock.sampled_at < 0 or clock.batches // plan.samples_every > clock.sampled_at // plan.samples_every:
            due.add("sample")
        alone = self.ranks.world == 1
        if self._wants_save() if alone else self._agreed["save"]:
            due.add("save")
        if bool(self.hooks.interrupted()) if alone else self._agreed["stop"]:
            due = {"save", "stop"}
        return due

    def _wants_save(self) -> bool:
        every = self.plan.checkpoint_every
        if every is None:
            return time.monotonic() - self._last_checkpoint >= (self.plan.checkpoint_seconds or 0.0)
        return self.clock.batches // every > self.clock.saved_at // every

    def _between(self) -> None:
        due = self._due() - {"stage"}
        if not due:
            return
        self.clock.train_seconds += self._lap()
        self._check_finite()
        if "validate" in due:
            self._validate()
        if "sample" in due:
            self._sample()
        if "save" in due:
            self._save()
        if "stop" in due:
            raise Interrupted(self.hooks.interrupted() or signal.SIGTERM)
        self._entered = time.monotonic()

    def _save(self) -> None:
        self.clock.saved_at = self.clock.batches
        self.hooks.checkpoint(self)
        self._last_checkpoint = time.monotonic()
        self._agreed = {"save": False, "stop": False}

    def _lap(self) -> float:
        now = time.monotonic()
        spent, self._entered = now - self._entered, now
        return spent

    def _validate(self) -> None:
        with self.evaluating():
            self.clock.validated_at = self.clock.batches
            self._settle()
            self.hooks.validate(self)

    def _settle(self) -> None:
        """Let the model set what it needs from the whole training set; the noise is the same at every call."""
        data = self.stream.dataset
        batches = evaluation_batches(data, "train", batch_size=SETTLE_BATCH, device=self.device, seed=self.seed)
        generator = keyed_generator(self.seed, "settle", device=self.device)
        self._from_first(lambda: self.model.settle(batches, generator))
        if self.ema is not None:  # moments that the model settles itself are the ones that belong to the weights
            self.ema.statistics = standing.read(self.model, self.ema.statistics)

    def _sample(self) -> None:
        with self.evaluating():
            self.clock.sampled_at = self.clock.batches
            self.hooks.samples(self)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode, no gradients, averaged weights if any, with batch-norm's statistics at them; afterwards all is as
        before, the default generator too.

        That generator is seeded alike on all processes, for models that draw from it behind our back.
        """
        self._measure_standing()
        rng = torch.get_rng_state()
        torch.default_generator.manual_seed(keyed_seed(self.seed, "evaluate", self.clock.batches))
        self.model.eval()
        try:
            with torch.no_grad(), ExitStack() as lent:
                if self.ema is not None:
                    lent.enter_context(self.ema.applied())
                    lent.enter_context(standing.lent(self.model, self.ema.statistics))
                yield
        finally:
            self.model.train()
            torch.set_rng_state(rng)

    def _measure_standing(self) -> None:
        """Measure batch-norm's statistics at the averaged weights, if these have moved since the last time.

        On the batches and with the noise of the updates that were the last, so that it is a function of the state.
        """
        if self.ema is None or self.ema.statistics or not moments_layers(self.model):
            return
        last = max(self.clock.update, standing.STANDING_BATCHES)
        updates = range(last - standing.STANDING_BATCHES, min(last, self.plan.updates))
        rng = torch.get_rng_state()
        with self.ema.applied():
            self.ema.statistics = standing.measure(self.model, self._losses(updates))
        torch.set_rng_state(rng)
        self.ranks.from_first_(list(self.ema.statistics.values()))

    def _losses(self, updates: Iterable[int]) -> Iterator[Callable[[], object]]:
        """The calls of ``loss`` of some updates, every player of the stage on each."""
        for update in updates:
            batch = self._group(update)[0]
            for player in self.plan.stages[self.clock.stage].players:
                generator = self._seeded("step", update, player)
                yield partial(self.model.loss, player, batch, generator)

    def _check_finite(self) -> None:
        for player, parameters in self._parameters_of.items():
            for values in self._window.get(f"{player}/loss", []):
                if not bool(torch.isfinite(values)):
                    self._not_finite(player, values)
            norms = torch.stack(torch._foreach_norm([p.detach() for p in parameters if p.is_floating_point()]))
            if not bool(torch.isfinite(norms).all()):
                self._not_finite(player, norms.sum())

    def _not_finite(self, player: str, value: Tensor) -> None:
        raise RunFailed(
            f"The loss or the parameters of '{player}' became {value.item()} at batch {self.clock.batches} "
            f"({self.clock.images} images); the last good checkpoint is kept. Try a smaller optimizer.lr, "
            "trainer.clip=1.0 or another seed."
        )


@dataclass
class _Slices:
    """The data loader that Lightning iterates over: the number of the next update, until none is left.

    There is one slice at least, since without any Lightning would not come to the end of the training either.
    """

    module: Training

    def __iter__(self) -> Iterator[int]:
        yield self.module.clock.update
        while self.module.clock.update < self.module.plan.updates:
            yield self.module.clock.update


def _joined(group: list[Batch]) -> Batch:
    """The batches of an accumulated update as one."""
    first = group[0]
    return Batch(
        torch.cat([b.x for b in group]),
        None if first.y is None else torch.cat([b.y for b in group if b.y is not None]),
        None if first.index is None else torch.cat([b.index for b in group if b.index is not None]),
    )
