"""One update of a training: each player's loss, gradients, clipping, schedule, step and log, on any number of ranks."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dgmbench.data.batches import BatchStream, joined
from dgmbench.data.random import keyed_seed
from dgmbench.data.spec import Batch
from dgmbench.errors import RunFailed, UserError
from dgmbench.models.contract import Model, Parameters, player_parameters
from dgmbench.training.ema import Ema
from dgmbench.training.plan import Plan
from dgmbench.training.ranks import Ranks
from dgmbench.training.schedule import Schedule

# On an accelerator reading a loss waits for the device, so finiteness is looked at once in this many updates.
FINITE_CHECK_EVERY = 20


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
    stopped: bool = False
    """Whether the run has asked to end before its budget does."""

    def state_dict(self) -> dict[str, int | float]:
        """All counters."""
        return dict(vars(self))


@dataclass
class Hooks:
    """What the run does between batches; each is called with the module, on a state that can be saved."""

    validate: Callable[[Any], None] = lambda module: None
    samples: Callable[[Any], None] = lambda module: None
    checkpoint: Callable[[Any], None] = lambda module: None
    row: Callable[[dict[str, Any]], None] = lambda row: None
    interrupted: Callable[[], int | None] = lambda: None
    started: Callable[[], None] = lambda: None
    advanced: Callable[[Any], None] = lambda module: None


class Updates(pl.LightningModule):
    """The part of ``Training`` that is run for every update; what happens between two of them is not its business."""

    def __init__(
        self,
        model: Model,
        *,
        plan: Plan,
        stream: BatchStream,
        initial: Callable[[], Batch] | None,
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

    def _update(self, update: int) -> None:
        """Every player whose turn it is, on the group of batches of this update."""
        stage = self.plan.stages[self.clock.stage]
        group = self._group(update)
        for player in self.model.turn(update, stage):
            self._step(player, group, update)
        self.clock.update = update + 1
        self.clock.batches += len(group)
        self.clock.images = self.plan.images_before(self.clock.update)
        self.model.advance(stage, self.plan.share_done(self.clock.stage, update + 1))
        if self.clock.update % self.plan.row_every == 0:
            self._write_row()
        self.hooks.advanced(self)

    def _group(self, update: int) -> list[Batch]:
        """The batches of an update as its stage sees them."""
        stage, start = self.clock.stage, self.plan.images_before(update)
        view, size = self.plan.stages[stage].view, self.plan.stage_batch_size(stage)
        group = [self.stream.batch(b, size=size, start=start + i * size) for i, b in enumerate(self.plan.group(update))]
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
        self._after_step(player, group[0] if len(group) == 1 else joined(group), generator)
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
        seconds = clock.train_seconds + max(0.0, time.monotonic() - self._entered)
        return {
            "images": clock.images,
            "batches": clock.batches,
            "epoch": round(clock.images / self.plan.images_per_epoch, 4),
            "stage": self.plan.stages[max(0, clock.stage)].name,
            "seconds": round(seconds, 3),
        }

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

    def _wants_save(self) -> bool:
        every = self.plan.checkpoint_every
        if every is None:
            return time.monotonic() - self._last_checkpoint >= (self.plan.checkpoint_seconds or 0.0)
        return self.clock.batches // every > self.clock.saved_at // every
