"""A run from start to end: identity, folder, resume, training, evaluation, result."""

import contextlib
import platform
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dgmbench.config import complete, run_name
from dgmbench.data import BatchStream, DataSet, evaluation_batches
from dgmbench.data.spec import Batch
from dgmbench.errors import RunFailed, UserError, say
from dgmbench.evaluation.evaluator import validation_objective
from dgmbench.models.contract import Model
from dgmbench.runs.build import (
    OptimizerFactory,
    build_model,
    build_trainer,
    count_devices,
    find_device,
    lightning_accelerator,
    load_data,
    optimizer_factory,
    settle,
)
from dgmbench.runs.evaluate import (
    count_unlabelled,
    features_folder,
    measure_run,
    require_measurable,
    sampling_seconds_per_image,
)
from dgmbench.runs.folder import RunFolder
from dgmbench.runs.header import header
from dgmbench.runs.loggers import row_loggers
from dgmbench.runs.origin import Origin, find_origin
from dgmbench.runs.outcome import Outcome
from dgmbench.runs.progress import TrainingBar, quiet_lightning
from dgmbench.runs.record import bring_forward, is_measured, remember
from dgmbench.runs.sampling import write_training_samples
from dgmbench.runs.selection import Selection
from dgmbench.runs.signals import Signals
from dgmbench.runs.weights import load_own, own_checkpoint, resumable
from dgmbench.system import ENDINGS
from dgmbench.training.companions import Deserted, together
from dgmbench.training.files import AtomicCheckpointIO, RowWriter
from dgmbench.training.memory import peak_memory, reset_peak_memory
from dgmbench.training.module import Interrupted, Training
from dgmbench.training.plan import Plan, make_plan
from dgmbench.training.ranks import Ranks, find_ranks, strategy
from dgmbench.training.schedule import Schedule
from dgmbench.training.update import Hooks

# Examples that a model sees in ``initialise`` before the first update.
INITIAL_EXAMPLES = 10_000
FRESH = {"log_length": 0, "threads": 0, "peak_memory": 0}


def train(cfg: Mapping[str, Any], *, announce: Callable[[str], None] = lambda text: None) -> Outcome:
    """Train, evaluate and sample one configuration; resume it if it was interrupted, do nothing if it is done.

    ``announce`` is told what is about to be done once everything is loaded.

    Raises:
        UserError: for anything wrong with the input or the environment, before work is done.
        RunFailed: if the run itself fails, for instance on a non-finite loss.
        SystemExit: with code 130 or 143 after Ctrl-C or SIGTERM; the run can be resumed.
    """
    completed = complete(cfg)
    if completed["trainer"]["dry_run"]:
        raise UserError("trainer.dry_run=true tries a single 'dgm train'; leave it out of sweeps, suites and reruns.")
    hardware = completed["hardware"]
    hardware["devices"] = count_devices(hardware)
    ranks = find_ranks(hardware["devices"], hardware["nodes"])
    device = find_device(hardware, ranks.local_rank)
    data = load_data(completed)
    by_data = completed["model"].get("net") == "auto"
    settle(completed, data.spec)
    model = build_model(completed, data.spec)
    if hardware["channels_last"]:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizers = optimizer_factory(completed["optimizer"], model)
    for player, parameters in model.players().items():
        optimizers(player, parameters)  # wrong settings show before any folder is made
    stream = BatchStream(
        data,
        batch_size=completed["trainer"]["batch_size"],
        seed=completed["seed"],
        device=device,
        rank=ranks.rank,
        world_size=ranks.world,
        policy=model.batch_policy(),
    )
    plan = make_plan(completed["trainer"], images_per_epoch=stream.images_per_epoch, stages=model.stages())
    for stage in plan.stages:
        stream.check_size(stage.batch_size or plan.batch_size)
    origin = find_origin(completed, data, model, plan)
    folder = RunFolder(Path(completed["paths"]["outputs"]) / run_name(completed, data.content_hash))
    if folder.read_result() is None:
        require_measurable(model, data, completed["protocol"], features_folder(completed))
    if ranks.is_first:
        folder.acquire()
    try:
        result = folder.read_result()
        if result is not None:
            message = "was done already"
            if is_measured(result, completed["protocol"]):
                if bring_forward(result, completed["protocol"]) and ranks.is_first:
                    folder.write_result(result)
            else:
                names = ", ".join(entry["name"] for entry in result["measured"])
                message += f", and measured under protocol={names} (dgm evaluate adds others)"
            return Outcome(folder.path, result, message)
        if not folder.last.exists():
            origin.require_there()
        if ranks.is_first:
            folder.write_config(completed)
            folder.write_spec(data.spec, data.content_hash)
            announce("\n".join(header(completed, data, model, plan, device, folder.path, by_data=by_data)))
        return _Run(completed, data, model, optimizers, plan, stream, folder, ranks, origin).go()
    finally:
        folder.release()


class _Run:
    """The state of one run in this process; of several processes only the first writes files."""

    def __init__(
        self,
        completed: dict[str, Any],
        data: DataSet,
        model: Model,
        optimizers: OptimizerFactory,
        plan: Plan,
        stream: BatchStream,
        folder: RunFolder,
        ranks: Ranks,
        origin: Origin,
    ) -> None:
        self.completed, self.data, self.plan, self.folder, self.ranks = completed, data, plan, folder, ranks
        self.device, self.seed, self.hardware = stream.device, completed["seed"], completed["hardware"]
        self.signals = Signals()
        reset_peak_memory(self.device)
        self.checkpoint = resumable(folder.last, folder.path.name) if folder.last.exists() else origin.checkpoint
        if self.checkpoint is None and origin.weights is not None:
            model.load_state_dict(origin.weights)
        state: dict[str, Any] = self.checkpoint["run"] if self.checkpoint else FRESH
        self.selection, self.warned = Selection(state, compare=model.objectives_compare), False
        self.peak_before: int = state.get("peak_memory", 0)  # of the parts before a resume
        torch.set_num_threads(self.hardware["threads"] or state["threads"] or torch.get_num_threads())
        self.goes_on = self.checkpoint is not None and self.checkpoint is origin.checkpoint
        if self.goes_on and ranks.is_first:
            origin.copy_into(folder)
        self.rows = RowWriter(folder.metrics, length=state["log_length"]) if ranks.is_first else None
        schedule = Schedule(
            completed["optimizer"]["schedule"],
            images_per_epoch=plan.images_per_epoch,
            batch_size=plan.batch_size,
            accumulate=plan.accumulate,
        )
        self.module = Training(
            model,
            plan=plan,
            stream=stream,
            initial=None if origin.weights is not None else self._initial_batch,
            seed=self.seed,
            optimizers=optimizers,
            schedule=schedule,
            ranks=ranks,
            compile_loss=self.hardware["compile"],
            hooks=Hooks(
                validate=self._validate,
                samples=self._samples,
                checkpoint=self._save,
                row=self._write_row,
                interrupted=lambda: self.signals.received,
                started=self.signals.take_over,
                advanced=self._advanced,
            ),
        )
        if self.checkpoint:
            self.module.resume_from(self.checkpoint)
        done = self.module.clock.images
        self.loggers = row_loggers(completed, folder.path, images=done) if ranks.is_first else []
        self.bar = TrainingBar(
            total=plan.images, done=done, enabled=completed["trainer"]["progress"] and ranks.is_first
        )

    def go(self) -> Outcome:
        word = "went on from" if self.goes_on else "resumed at"
        resumed = f"{word} {self.module.clock.images:,} images" if self.checkpoint else "trained"
        with self.signals:
            return self._go(resumed)

    def _go(self, resumed: str) -> Outcome:
        self._status("running")
        try:
            if not self.module.ended:
                with self.signals.waiting(), self.bar, quiet_lightning(), together(self.ranks.world):
                    self._trainer().fit(self.module)
                self.ranks.leave()
            if not self.ranks.is_first:
                raise SystemExit(0)  # the first process measures and writes the result
            result = self._result()
            for logger in self.loggers:
                logger.finish(result)
        except Interrupted as stop:
            self.ranks.leave()
            self._status("interrupted", signal=stop.signal_number)
            if self.ranks.is_first:
                with contextlib.suppress(OSError):  # the terminal may be gone
                    word = ENDINGS[signal.Signals(stop.signal_number)]
                    say(f"Stopped by {word}; the same command resumes {self.folder.path}", error=True)
            raise SystemExit(128 + stop.signal_number) from stop
        except (UserError, Deserted):
            with contextlib.suppress(UserError, OSError):  # the disk may be full
                self._status("interrupted")
            raise
        except (KeyboardInterrupt, SystemExit):
            self._status("interrupted")
            raise
        except BaseException as error:
            if self.ranks.is_first:
                self.folder.write_traceback()
            self._status("failed", reason=f"{type(error).__name__}: {error}")
            raise
        finally:
            if self.rows is not None:
                self.rows.close()
        self.folder.traceback_file.unlink(missing_ok=True)
        self._status("done")
        result["files"] = self.folder.hashes()
        self.folder.write_result(result)
        return Outcome(self.folder.path, result, resumed + (" and stopped early" if result["stopped_early"] else ""))

    def _status(self, status: str, **details: Any) -> None:
        if self.ranks.is_first:
            self.folder.write_status(status, **details)

    def _trainer(self) -> Any:
        self.lightning = build_trainer(
            self.hardware,
            self.device,
            devices=self.hardware["devices"],
            num_nodes=self.hardware["nodes"],
            strategy=strategy(self.ranks, lightning_accelerator(self.device)),
            plugins=[AtomicCheckpointIO()],
            default_root_dir=self.folder.path,
        )
        return self.lightning

    # ------------------------------------------------------------------ what happens between batches

    def _initial_batch(self) -> Batch:
        size = min(INITIAL_EXAMPLES, self.data.size("train"))
        return BatchStream(self.data, batch_size=size, seed=self.seed, device=self.device).batch(0)

    def _validate(self, module: Training) -> None:
        limit = self.completed["trainer"]["validate_examples"]
        name, metric = validation_objective(module.model, self.data, device=self.device, ranks=self.ranks, limit=limit)
        # all processes must decide alike, or they would wait for each other for ever: the first one's value counts
        agreed = torch.tensor(metric.value, dtype=torch.float64, device=self.device)
        self.ranks.from_first_([agreed])
        metric = replace(metric, value=float(agreed))
        position = module.position()
        self._write_row({"kind": "valid", **position, name: metric.value})
        if module.done and module.clock.batches % self.plan.validate_every:
            self.selection.before_between()
        if self.selection.consider(name, metric, position):
            if self.selection.between and self.ranks.is_first:
                self.folder.keep_second()
            self._save_as(self.folder.best)
        last, patience = self.plan.stages[-1].name, self.completed["trainer"]["patience"]
        if patience and position["stage"] == last and self.selection.without_gain(last) >= patience:
            module.clock.stopped = True
        if not self.warned and self.ranks.is_first and (decline := self.selection.decline()) is not None:
            self.warned = True
            say(f"dgm: note: {decline}.", error=True)

    def _samples(self, module: Training) -> None:
        if not self.ranks.is_first:
            return
        batch = next(evaluation_batches(self.data, "valid", batch_size=64, device=self.device))
        path = self.folder.samples / f"{module.clock.images:012d}.png"
        write_training_samples(path, module.model, self.data.spec, batch, seed=self.seed)

    def _save(self, module: Training) -> None:
        self._save_as(self.folder.last)
        self._status("running", images=module.clock.images, batches=module.clock.batches)

    def _save_as(self, path: Path) -> None:
        self.data.verify()
        self.module.run_state = {
            **self.selection.state(),
            "name": self.folder.path.name,
            "log_length": self.rows.length() if self.rows is not None else 0,
            "threads": torch.get_num_threads(),
            "peak_memory": self._peak_memory(),
        }
        self.lightning.save_checkpoint(path)

    def _peak_memory(self) -> int:
        return max(self.peak_before, peak_memory(self.device))

    def _write_row(self, row: dict[str, Any]) -> None:
        if self.rows is not None:
            self.rows.write(row)
        for logger in self.loggers:
            logger.log(row)

    def _advanced(self, module: Training) -> None:
        stage = self.plan.stages[module.clock.stage].name
        self.bar.advance(module.clock.images, stage, module.latest_losses)

    # ------------------------------------------------------------------ the result

    def _objective(self) -> dict[str, Any]:
        """The best checkpoint's objective, with a note if it was followed by a long decline."""
        best = dict(self.selection.best or {})
        best["note"] = "; ".join(filter(None, (best.get("note"), self.selection.decline()))) or None
        return best

    def _result(self) -> dict[str, Any]:
        if not self.selection.holds_for(self.plan.stages[-1].name):
            raise RunFailed(
                "The validation objective was not a number at any time of this run or its last stage; try a smaller "
                "optimizer.lr or another seed."
            )
        clock, model = self.module.clock, self.module.model
        training_peak, begin = self._peak_memory(), time.perf_counter()
        reset_peak_memory(self.device)
        measured = measure_run(self.folder, self.completed, self.data, self.completed["protocol"], self.device)
        measuring_seconds, measuring_peak = time.perf_counter() - begin, peak_memory(self.device)
        load_own(model.to(self.device), self.folder, "best", own_checkpoint(self.folder.best, self.folder.path.name))
        names = self.completed["names"]
        result: dict[str, Any] = {
            "model": names["model"],
            "family": (self.completed["model"].get("card") or {}).get("family"),
            "data": names["data"],
            "seed": self.seed,
            "status": "done",
            "run": self.folder.path.name,
            "config_hash": self.folder.path.name.rsplit("-", 1)[-1],
            "data_hash": self.data.content_hash,
            "data_source": self.data.meta["source"],
            **({"unlabelled": unlabelled} if (unlabelled := count_unlabelled(self.data)) else {}),
            **({"origin": self.completed["origin"]} if self.completed.get("origin") else {}),
            **({"data_notes": notes} if (notes := self.data.meta["notes"]) else {}),
            "objective": self._objective(),
            "stopped_early": clock.stopped and clock.update < self.plan.updates,
            "cost": {
                "parameters": sum(p.numel() for p in model.parameters()),
                "images": clock.images,
                "batches": clock.batches,
                "train_seconds": round(clock.train_seconds, 3),
                "train_images_per_second": round(clock.images / max(clock.train_seconds, 1e-9), 1),
                "sample_seconds_per_image": sampling_seconds_per_image(model, self.data, device=self.device),
                "peak_memory_mib": round(training_peak / 2**20, 1),
                "evaluate_seconds": round(measuring_seconds, 3),
                "evaluate_peak_memory_mib": round(measuring_peak / 2**20, 1),
                "device": torch.cuda.get_device_name() if self.device.type == "cuda" else platform.processor() or "cpu",
                "threads": torch.get_num_threads(),
                "processes": self.ranks.world,
            },
            "versions": measured["versions"],
            "finished": int(time.time()),
        }
        remember(result, self.completed["protocol"], measured)
        return result
