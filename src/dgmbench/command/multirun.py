"""``dgm train -m``: several runs from one command, by Hydra's own launchers and sweepers.

Hydra deals the overrides out; every job composes its configuration again by :func:`dgmbench.config.compose`, so that
it is the same as in a single run. A job that fails says why in one sentence, and the others go on.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgmbench.config import (
    complete_paths,
    compose,
    config_dir,
    hydra_errors,
    import_from,
    options,
    quoted,
    resolve,
    rewrite,
    search_path,
    search_path_override,
)
from dgmbench.errors import UserError, explain, say

if TYPE_CHECKING:
    from omegaconf import DictConfig

STUDIES = Path(".sweeps", "optuna.db")
"""The studies of Optuna, below the outputs."""


def multirun(overrides: Sequence[str], config_dirs: Iterable[str | Path] = ()) -> int:
    """Run the sweep and return the worst exit code of its jobs: 2 over 1 over 0."""
    import hydra

    config_dirs = list(config_dirs)
    rewritten = rewrite(overrides, multirun=True, config_dirs=config_dirs)
    cfg = compose("train", _first_of(rewritten, config_dirs), config_dirs=config_dirs)  # errors show before any work
    _refuse_processes(cfg.hardware.devices, cfg.hardware.nodes)
    outputs = Path(complete_paths(resolve(cfg.paths))["outputs"]).absolute()
    folder = _new_folder(outputs / ".sweeps")
    study = _study(rewritten, outputs)
    kept = [f"hydra.sweeper.{key}={quoted(value)}" for key, value in study.items()]
    argv = ["dgm", "--multirun", f"hydra.sweep.dir={quoted(folder)}", *search_path_override(config_dirs), *kept]
    argv += rewritten
    environment = {
        "DGM_CONFIG_DIR": os.pathsep.join(map(str, search_path(config_dirs)[:-1])),  # for the jobs' processes
        "HYDRA_FULL_ERROR": "1",  # Hydra's exceptions come here instead of being printed
    }
    try:
        with hydra_errors("train", [], config_dirs), _process_state(argv, environment):
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(_job)()
    finally:
        code = _summary(folder)
        if study:
            say(f"Optuna's study {study['study_name']} is kept in {outputs / STUDIES}: the same command adds trials")
    return code


def _study(overrides: Sequence[str], outputs: Path) -> dict[str, str]:
    """Where Optuna keeps its study, so that a sweep can be gone on with: named by what is swept over, not by how many
    trials there are. Nothing for other sweepers, or where the user says where.
    """
    keys = {text.partition("=")[0].lstrip("+") for text in overrides}
    if "hydra/sweeper=optuna" not in overrides or keys & {"hydra.sweeper.storage", "hydra.sweeper.study_name"}:
        return {}
    if not _can_keep():
        print(
            "dgm: note: this Optuna keeps no study beside SQLAlchemy 2: pip install 'dgmbench[hpo]'.", file=sys.stderr
        )
        return {}
    swept = sorted(text for text in overrides if not text.startswith("hydra"))
    name = hashlib.sha256("\n".join(swept).encode()).hexdigest()[:8]
    return {"storage": f"sqlite:///{outputs / STUDIES}", "study_name": name}


def _can_keep() -> bool:
    """Whether Optuna's database works: the version that Hydra's sweeper needs is older than SQLAlchemy 2."""
    try:
        return int(version("sqlalchemy").partition(".")[0]) < 2
    except PackageNotFoundError:
        return False


def _refuse_processes(devices: object, nodes: object) -> None:
    """A job of a sweep trains in its own process alone."""
    if (isinstance(devices, int) and devices > 1) or (isinstance(nodes, int) and nodes > 1):
        raise UserError(
            f"A sweep runs one process a job, but hardware.devices={devices} and hardware.nodes={nodes} ask for more: "
            "leave out -m, or leave both at 1."
        )


@contextmanager
def _process_state(argv: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Set what Hydra reads from the process, and set it back."""
    before = sys.argv, {key: os.environ.get(key) for key in environment}
    sys.argv = argv
    os.environ.update(environment)
    try:
        yield
    finally:
        sys.argv = before[0]
        for key, value in before[1].items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value


def _first_of(overrides: Sequence[str], config_dirs: Sequence[str | Path]) -> list[str]:
    """The overrides of one job, to try them out: each choice's first value, and no ranges."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, Glob

    chosen = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.get_key_element(), override.value()
        if isinstance(value, ChoiceSweep):
            chosen.append(f"{key}={next(override.sweep_string_iterator())}")
        elif isinstance(value, Glob):
            chosen += [f"{key}={name}" for name in value.filter(options(key, config_dirs))[:1]]
        elif not override.is_sweep_override():
            chosen.append(override.input_line or "")
    return [text for text in chosen if not text.startswith("hydra.searchpath")]


def _new_folder(root: Path) -> Path:
    """Make the first numbered folder below ``root`` that does not exist yet."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        for number in count():
            with suppress(FileExistsError):
                (root / str(number)).mkdir()
                return root / str(number)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"The folder {root} cannot be made ({reason}): choose another with paths.outputs=DIR."
        ) from error
    raise AssertionError("count() does not end")


def _job(cfg: "DictConfig") -> float:
    """Train one configuration of the sweep, and return what a sweeper minimises; infinity for a failure."""
    from hydra.core.hydra_config import HydraConfig

    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    name = " ".join(override.lstrip("+") for override in overrides)
    say(f"job {hydra_config.job.num}: {name}", error=True)
    import_from(search_path()[:-1])
    try:
        from dgmbench.runs.run import train

        one = compose("train", overrides)
        _refuse_processes(one.hardware.devices, one.hardware.nodes)
        outcome = train(one)
        best = {key: outcome.result["objective"][key] for key in ("name", "value", "unit", "direction")}
        record = {"code": 0, "job": name, "run": str(outcome.run), "objective": best}
        objective = _cost(outcome.run)
    except Exception as error:
        if os.environ.get("DGM_DEBUG") == "1":
            raise
        code, sentence = explain(error)
        say(f"dgm: {name}: {sentence}", error=True)
        record, objective = {"code": code, "job": name, "error": sentence}, math.inf  # NaN would end Optuna's study
    file = Path(hydra_config.sweep.dir) / f"job-{hydra_config.job.num}.json"
    file.write_text(json.dumps(record), encoding="utf-8")
    return objective


def _cost(run: Path) -> float:
    """The run's validation objective, its sign such that less is better: Hydra's sweepers minimise by default."""
    objective = json.loads((run / "result.json").read_bytes())["objective"]
    return -objective["value"] if objective["direction"] == "higher" else objective["value"]


def _summary(folder: Path) -> int:
    """Print each job's objective and run folder or that it failed, then the winners; returns the worst code."""
    files = sorted(folder.glob("job-*.json"), key=lambda file: int(file.stem.partition("-")[2]))
    records = [json.loads(file.read_bytes()) for file in files]
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        found = record.get("objective")
        say(f"{record['job']}: {_words(found)}; {record['run']}" if found else f"{record['job']}: failed")
        if found and math.isfinite(found["value"]):
            key = found["name"], found["unit"]
            sign = 1 if found["direction"] == "higher" else -1
            if key not in best or sign * found["value"] > sign * best[key]["objective"]["value"]:
                best[key] = record
    for record in best.values():
        better = record["objective"]["direction"]
        say(f"best: {record['job']}: {_words(record['objective'])} on validation ({better} is better)")
    failed = sum(record["code"] != 0 for record in records)
    say(f"{len(records) - failed} of {len(records)} runs done; records in {folder}")
    return max((record["code"] for record in records), default=1)


def _words(objective: dict[str, Any]) -> str:
    return f"{objective['name']} {objective['value']:.6g} {objective['unit']}".strip()
