"""Where a run's weights come from, other than from its seed.

*Going on*, ``trainer.continue_from=DIR``: a finished run is trained further, to a larger budget. Its last checkpoint is
one of the longer run's own if nothing until there depends on the budget; then this is the longer run itself, with the
name that it has from the beginning, and only its first part has been computed already. Where something does depend on
it, the result is that of another training: ``exact`` is false, ``because`` says why, and the name differs.

*Starting from weights*, ``trainer.start_from=DIR``: a new run whose model starts from the weights of another run, on
the same data or on others of the same space, with fresh optimisers, clock and averages.

Both are recorded in the configuration and the result as ``origin``, the weights by their hash.
"""

import copy
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from dgmbench.config import complete, run_name
from dgmbench.config.bounded import read_bytes
from dgmbench.config.identity import what_counts
from dgmbench.data import DataSet
from dgmbench.errors import UserError
from dgmbench.models.contract import Facts, Model
from dgmbench.runs.folder import RunFolder
from dgmbench.runs.load import load_run
from dgmbench.runs.weights import own_checkpoint, weights_of
from dgmbench.training.files import AtomicCheckpointIO, write_atomically
from dgmbench.training.plan import Plan, make_plan
from dgmbench.training.tensors import weights_hash

MAY_DIFFER = ("trainer.budget", "trainer.patience")  # between a run and the one that goes on from it
RELATIVES = ("shape", "kind", "levels", "end", "given", "lengths", "step_labels")  # of a spec: what weights lean on


@dataclass(frozen=True)
class Origin:
    """What a run comes from: its records, by ``continued`` and ``started``, and what is needed to begin."""

    records: dict[str, dict[str, Any]]
    folder: RunFolder | None = None
    checkpoint: dict[str, Any] | None = None  # to go on from
    weights: dict[str, Tensor] | None = None  # to start from
    best: dict[str, Any] | None = None  # the checkpoint that is the best one until there

    def copy_into(self, longer: RunFolder) -> None:
        """Give the longer run what this one has found: its best checkpoint, its log and its pictures."""
        assert self.folder is not None
        assert self.best is not None
        assert self.checkpoint is not None
        mine = {**self.best, "run": {**self.best["run"], "name": longer.path.name}}
        AtomicCheckpointIO().save_checkpoint(mine, longer.best)
        write_atomically(longer.metrics, read_bytes(self.folder.metrics)[: self.checkpoint["run"]["log_length"]])
        for picture in sorted(self.folder.samples.glob("[0-9]*.*")):
            write_atomically(longer.samples / picture.name, picture.read_bytes())

    def require_there(self) -> None:
        """Refuse to begin a run whose origin is only known from its configuration."""
        if self.records and self.checkpoint is None and self.weights is None:
            (how, record), *_ = self.records.items()
            setting = "continue_from" if how == "continued" else "start_from"
            raise UserError(
                f"The run {record['run']} that this one comes from is not at {record['folder']} any more: give its "
                f"folder by trainer.{setting}=DIR."
            )


def find_origin(completed: dict[str, Any], data: DataSet, model: Model, plan: Plan) -> Origin:
    """Read what ``trainer.continue_from`` and ``trainer.start_from`` name, and write it into the configuration.

    A run that is repeated from its own configuration may have lost what it came from; it needs it only to begin.
    """
    trainer, known = completed["trainer"], completed.pop("origin", {})
    if trainer["continue_from"] is not None:
        origin = _continued(completed, data, model, plan, known)
    elif trainer["start_from"] is not None:
        origin = _started(completed, model, known)
    else:
        return Origin({})
    completed["origin"] = origin.records
    return origin


# ---------------------------------------------------------------------- going on


def _continued(completed: dict[str, Any], data: DataSet, model: Model, plan: Plan, known: Mapping[str, Any]) -> Origin:
    trainer = completed["trainer"]
    path = trainer["continue_from"]
    setting = f"trainer.continue_from={path}"
    if known and not Path(path).expanduser().exists():
        return Origin(dict(known))
    folder = RunFolder.existing(path)
    result = folder.read_result()
    if result is None:
        raise UserError(f"{setting} is not finished: give its own 'dgm train' command again to resume it.")
    before = complete(folder.read_config())
    started = before.get("origin", {}).get("started")
    own_start = before["trainer"]["start_from"]
    if trainer["start_from"] is None:
        trainer["start_from"] = own_start
    if trainer["start_from"] and _absolute(trainer["start_from"]) != own_start:
        raise UserError(f"{setting} has another trainer.start_from; leave it out: a run that goes on keeps its own.")
    _require_same(setting, before, completed)
    if result["data_hash"] != data.content_hash:
        raise UserError(
            f"{setting} was trained on data that have changed since (content {result['data_hash'][:8]}, now "
            f"{data.content_hash[:8]}); trainer.start_from={path} starts from its weights on the data of now."
        )
    if len(plan.stages) > 1:
        raise UserError(
            f"{setting}: this model trains in {len(plan.stages)} stages, each with its share of the budget, so a "
            "larger budget is another training from the beginning: leave trainer.continue_from out."
        )
    name = run_name(before, data.content_hash)
    checkpoint = weights_of(folder, "final", name, result)
    done = checkpoint["dgmbench"]["clock"]
    if plan.batches <= done["batches"]:
        raise UserError(
            f"trainer.budget={trainer['budget']} is {plan.batches:,} batches, and {path} has had {done['batches']:,}: "
            "give a larger one to go on."
        )
    if result["stopped_early"] and (trainer["patience"] or plan.batches) <= (before["trainer"]["patience"] or 0):
        raise UserError(
            f"{path} stopped early, by trainer.patience={before['trainer']['patience']}, so a larger budget changes "
            "nothing: give a larger trainer.patience, or null, to go on."
        )
    earlier = before.get("origin", {}).get("continued")
    because = _because(completed, model, plan, make_plan(before["trainer"], **_of(plan, model)), done["batches"])
    best = _best_until(folder, name, checkpoint, on_period=done["batches"] % plan.validate_every == 0)
    if best is None:
        because.append("the best weights are those of its end, where the larger budget has no validation")
    if earlier is not None and not earlier["exact"]:
        because.append("it is not exact itself")
    record = _record(folder, name, "final", done["images"], checkpoint["state_dict"])
    record |= {"exact": not because, "because": because, **({} if earlier is None else {"before": earlier})}
    checkpoint["dgmbench"]["clock"] = {**done, "stopped": False}
    return Origin(
        {**({} if started is None else {"started": started}), "continued": record},
        folder=folder,
        checkpoint=checkpoint,
        best=best or own_checkpoint(folder.best, name),
    )


def _best_until(folder: RunFolder, name: str, last: dict[str, Any], *, on_period: bool) -> dict[str, Any] | None:
    """The checkpoint that was the best one at the last validation which a larger budget has, too; ``last`` forgets a
    later one. None if it was not kept.
    """
    between = last["run"].pop("between", None)
    if between is None:
        return own_checkpoint(folder.best, name) if on_period else None  # of before: nobody knows
    moved = between["best"] != last["run"]["best"]
    file = folder.second if moved else folder.best
    best = own_checkpoint(file, name) if file.exists() and between["best"] is not None else None
    if best is not None and best["dgmbench"]["clock"]["images"] != between["best"]["images"]:
        best = None
    if best is not None:
        last["run"] |= between
    return best


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _of(plan: Plan, model: Model) -> dict[str, Any]:
    return {"images_per_epoch": plan.images_per_epoch, "stages": model.stages()}


def _require_same(setting: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a run that differs in more than its budget, by the first setting that differs."""
    then, wanted = (dict(_leaves(what_counts({**each, "origin": {}}))) for each in (before, now))
    for key in sorted(then.keys() | wanted.keys()):
        if key not in MAY_DIFFER and then.get(key) != wanted.get(key):
            raise UserError(
                f"{setting} was trained with {key}={then.get(key)}, and this command says {wanted.get(key)}: a run "
                "goes on with its own settings (dgm train run=DIR trainer.budget=...); trainer.start_from=DIR starts "
                "another one from its weights."
            )


def _leaves(node: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in node.items():
        found += _leaves(value, f"{above}{key}.") if isinstance(value, Mapping) else [(f"{above}{key}", value)]
    return found


def _because(completed: Mapping[str, Any], model: Model, plan: Plan, old: Plan, batches: int) -> list[str]:
    """Why training to a budget and going on is not training to the larger one at once; empty if it is."""
    found = []
    schedule = completed["optimizer"]["schedule"]["name"]
    if schedule != "constant":
        found.append(f"optimizer.schedule.name={schedule} falls over the budget")
    if _paced(model, plan):
        found.append(f"{type(model).__name__} paces its training by the budget")
    if batches == old.batches and old.batches % plan.accumulate:
        found.append(f"its last update had fewer than trainer.accumulate={plan.accumulate} batches")
    if batches % plan.validate_every and type(model).settle is not Model.settle:
        found.append(f"{type(model).__name__} settles at validations, and its end has one more than the larger budget")
    return found


class _Asked(Facts):
    """Facts that note whether the number of updates, which the budget decides, was asked for."""

    def __getattribute__(self, name: str) -> Any:
        if name == "updates":
            object.__setattr__(self, "asked", True)
        return super().__getattribute__(name)


def _paced(model: Model, plan: Plan) -> bool:
    """Whether what a model does depends on how long its training is."""
    if type(model).advance is not Model.advance:
        return True
    facts = _Asked(**{field.name: getattr(plan.facts, field.name) for field in dataclasses.fields(Facts)})
    object.__setattr__(facts, "asked", False)
    copy.deepcopy(model).prepare(facts)
    return bool(vars(facts)["asked"])


# ---------------------------------------------------------------------- starting from weights


def _started(completed: Mapping[str, Any], model: Model, known: Mapping[str, Any]) -> Origin:
    path = completed["trainer"]["start_from"]
    setting = f"trainer.start_from={path}"
    if known and not Path(path).expanduser().exists():
        return Origin(dict(known))
    run = load_run(path, device="cpu")
    if run.result is None:
        raise UserError(f"{setting} is not finished: give its own 'dgm train' command again to resume it.")
    if type(run.model) is not type(model):
        _unfit(setting, f"it is a run of {run.config['names']['model']}, this is one of {completed['names']['model']}")
    for part in RELATIVES:
        if (theirs := getattr(run.spec, part)) != (ours := getattr(model.spec, part)):
            _unfit(setting, f"its data have {part}={theirs}, these {ours}")
    theirs, ours = run.model.state_dict(), model.state_dict()
    for name in (*theirs, *ours):
        if _shape(theirs, name) != _shape(ours, name):
            _unfit(setting, f"its {name} is {_shape(theirs, name)}, this model's {_shape(ours, name)}")
    record = _record(RunFolder(run.path), run.result["run"], "best", run.images, theirs)
    return Origin({"started": record}, weights=theirs)


def _shape(weights: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(weights[name].shape)) if name in weights else "not there"


def _unfit(setting: str, reason: str) -> NoReturn:
    raise UserError(f"{setting}: {reason}; weights fit the same model, with the same sizes, on data of the same space.")


# ---------------------------------------------------------------------- records


def _record(folder: RunFolder, name: str, rule: str, images: int, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "run": name,
        "folder": str(folder.path.absolute()),
        "checkpoint": rule,
        "images": images,
        "sha256": weights_hash(weights),
    }


def in_words(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader must know of a run's origin, in sentences."""
    found = []
    if (record := records.get("started")) is not None:
        found.append(f"starts from the {record['checkpoint']} weights of {record['run']}")
    if (record := records.get("continued")) is not None:
        equal = "equal to one training of this budget"
        if record["because"]:
            equal = f"not {equal}, because {' and '.join(record['because'])}"
        found.append(f"goes on from {record['run']} after {record['images']:,} images, {equal}")
    return found
