"""The one LightningModule that trains every model: Lightning's side, resumes, stages, what happens between updates."""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from dgmbench.data.batches import evaluation_batches
from dgmbench.data.random import keyed_generator, keyed_seed
from dgmbench.nn.batchnorm import moments_layers
from dgmbench.training import standing
from dgmbench.training.ema import Ema
from dgmbench.training.files import restore_rng_state, rng_state, seed_everything
from dgmbench.training.update import Updates

# How long a slice of training runs before Lightning's loop gets a look in; several processes must agree, so they count.
SLICE_SECONDS = 0.05
SLICE_UPDATES = 20
# Examples of each piece in which a model sees the training set to settle its statistics.
SETTLE_BATCH = 1000


class Interrupted(Exception):
    """A signal asked the run to stop; a resumable checkpoint has been written."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


class Training(Updates):
    """Trains any ``Model`` by manual optimisation.

    The state at the start of update u, together with (seed, u), decides everything that follows: batches, noise and
    learning rates are pure functions of them. A checkpoint taken between updates therefore resumes bit by bit, and
    Lightning's own loop counters are not needed: a resumed run is a fresh ``fit`` that starts at the stored clock.
    """

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
        self.model.prepare(self.plan.facts)
        if self._pending is not None:
            self._restore(self._pending)
            self._pending = None
        else:
            seed_everything(keyed_seed(self.seed, "initialise"))
            generator = keyed_generator(self.seed, "initialise", device=self.device)
            if self._initial is not None:  # weights that come from another run have their starting values
                self.model.initialise(self._initial(), generator)
        self._last_checkpoint = self._entered = time.monotonic()
        self.hooks.started()

    def on_train_batch_start(self, batch: int, batch_idx: int) -> None:
        """Between two updates: end a stage and enter the next, validate, sample, save, stop. The only place where a
        state is saved before the end.
        """
        index = self.plan.stage_index(self.clock.update)
        if index != self.clock.stage:
            if self.clock.stage >= 0:
                self._between(self._due() if self._stopping() else self._unfinished())
            self._enter_stage(index)
        self._between(self._due())

    def training_step(self, update: int, batch_idx: int) -> None:
        """A slice of training: updates until something is due between two of them, or a moment has passed.

        One slice instead of one update a call keeps the loop around it from costing more than the model's mathematics.
        """
        end = time.monotonic() + SLICE_SECONDS
        while not self.done:  # Lightning has asked for one slice ahead
            self._update(self.clock.update)
            alone = self.ranks.world == 1
            over = time.monotonic() >= end if alone else self.clock.update % SLICE_UPDATES == 0
            if over or self._due():
                return

    def on_train_end(self) -> None:
        """The end of the budget: last validation and samples, and the final checkpoint."""
        self._between(self._unfinished() | {"save"})

    @property
    def done(self) -> bool:
        """Whether no update is left: the budget is used up, or a validation has ended the training."""
        return self.clock.stopped or self.clock.update >= self.plan.updates

    @property
    def ended(self) -> bool:
        """Whether all updates are done, and so is what comes after the last one."""
        clock = self.clock
        return self.done and clock.validated_at == clock.sampled_at == clock.batches

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

    # ------------------------------------------------------------------ between updates

    def _enter_stage(self, index: int) -> None:
        generator = keyed_generator(self.seed, "stage", index, device=self.device)
        with torch.no_grad():
            self.model.enter_stage(self.plan.stages[index], generator)
            self.model.advance(self.plan.stages[index], 0.0)
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
        if self._wants_save() if self.ranks.world == 1 else self._agreed["save"]:
            due.add("save")
        return {"save", "stop"} if self._stopping() else due

    def _stopping(self) -> bool:
        return bool(self.hooks.interrupted()) if self.ranks.world == 1 else self._agreed["stop"]

    def _unfinished(self) -> set[str]:
        """What has to be done with the state at a stage's end and has not been yet."""
        clock = self.clock
        done = {"validate": clock.validated_at, "sample": clock.sampled_at, "save": clock.saved_at}
        return {what for what, at in done.items() if at != clock.batches} | ({"row"} if self._window else set())

    def _between(self, due: set[str]) -> None:
        due = due - {"stage"}
        if not due:
            return
        self.clock.train_seconds += self._lap()
        self._entered = math.inf  # what follows is no training
        self._check_finite()
        if "row" in due:
            self._write_row()
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


@dataclass
class _Slices:
    """The data loader that Lightning iterates over: the number of the next update, until none is left.

    There is one slice at least, since without any Lightning would not come to the end of the training either.
    """

    module: Training

    def __iter__(self) -> Iterator[int]:
        yield self.module.clock.update
        while not self.module.done:
            yield self.module.clock.update
