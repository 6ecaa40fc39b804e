"""``dgm show``: all numbers of a run."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dgmbench.command.parser import Parser, parse
from dgmbench.command.tables import print_metrics
from dgmbench.errors import UserError, nearest, say


def run(rest: list[str]) -> int:
    """Run ``dgm show`` with these words and return the exit code."""
    parser = Parser(
        "show",
        "Show all numbers of a run with their kinds and protocols, or those whose names hold one of the words.",
        """examples:
  dgm show run=outputs/vae-digits_binary-s0-1a2b3c4d
  dgm show run=DIR elbo fd_          names that hold 'elbo' or 'fd_'
  dgm show run=DIR '*@final'         by a pattern
""",
        "run=DIR [WORD ...]",
    )
    words = parse(parser, rest).overrides
    runs = [word.partition("=")[2] for word in words if word.startswith("run=")]
    wanted = [word for word in words if not word.startswith("run=")]
    if len(runs) != 1 or not runs[0]:
        raise UserError("dgm show takes the folder of one run: dgm show run=DIR [WORD ...].")
    from dgmbench.bench.report.difference import read_result

    path = Path(runs[0]).expanduser()
    if not (path / "config.yaml").is_file():
        raise UserError(f"run={runs[0]} is not the folder of a run: it has no config.yaml.")
    result = read_result(path)
    if not result:
        raise UserError(f"The run {path} has no result yet; give its 'dgm train' command again to resume it.")
    if not isinstance(result.get("metrics"), dict) or not result["metrics"]:
        raise UserError(f"{path / 'result.json'} holds no numbers; give the run's command again.")
    metrics = {name: each for name, each in result["metrics"].items() if not wanted or _fits(name, wanted)}
    if not metrics:
        raise UserError(nearest(wanted[0], result["metrics"], what="number in this run called"))
    print_metrics(metrics)
    try:
        say(f"{result['model']} on {result['data']}, seed {result['seed']}; {_objective(result['objective'])}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / 'result.json'} is of another version of dgm: it lacks {error}.") from error
    return 0


def _fits(name: str, wanted: list[str]) -> bool:
    return any(word in name or fnmatch(name, word) for word in wanted)


def _objective(best: dict[str, Any]) -> str:
    return f"best {best['name']} on validation: {best['value']:.6g} {best['unit']} after {best['images']:,} images"
