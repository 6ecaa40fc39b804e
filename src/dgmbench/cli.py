"""The command line: ``dgm train model=vae``.

Every verb imports what it needs when it runs, so that ``dgm --help`` and ``dgm list`` answer at once. All errors end
here, in one sentence on stderr and an exit code: 0 done; 1 a run failed while running; 2 bad input or environment;
130 and 143 for Ctrl-C and SIGTERM.
"""

import argparse
import errno
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dgmbench import __version__
from dgmbench.errors import RunFailed, UserError, nearest

HELP = """usage: dgm VERB [key=value ...]

Train, sample, measure and compare deep generative models.

  train       train a model, evaluate it and draw samples      dgm train model=vae
  evaluate    measure a trained run again                      dgm evaluate run=DIR protocol=default
  sample      draw samples of a trained run                    dgm sample run=DIR n=64
  verify      prove what can be proved of a model              dgm verify model=rbm
  list        show models, data sets and other choices         dgm list
  rerun       repeat a run from its folder                     dgm rerun DIR
  bench       run a suite of models, data sets and seeds       dgm bench suite=demo
  report      show what a folder of runs holds                 dgm report outputs/bench/demo
  diff        show what two runs differ in                     dgm diff DIR DIR
  completion  print the shell's completion script              dgm completion bash

'dgm VERB --help' shows each verb's settings and examples; 'dgm --version' the version.
DGM_OUTPUTS and DGM_DATA_DIR name the folders of runs and of data, DGM_CONFIG_DIR one of your own configurations.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # torch reads this at its first tensor: large pages cost the kernel less where a model writes a lot of memory
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        _complain("interrupted.")
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("DGM_DEBUG") == "1":
            raise
        code, sentence = explain(error)
        _complain(sentence)
        return code


def explain(error: Exception) -> tuple[int, str]:
    """The exit code of an error, and the sentence that says what was wrong and what to do."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return 2, text
    if isinstance(error, RunFailed):
        return 1, text
    if isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        reasons = {
            errno.ENOSPC: "The disk is full",
            errno.EDQUOT: "The disk quota is used up",
            errno.EACCES: "Permission is denied",
            errno.EPERM: "Permission is denied",
            errno.EROFS: "The file system is read-only",
        }
        if error.errno in reasons:
            return 2, f"{reasons[error.errno]}{place}: choose another folder with paths.outputs=DIR or paths.data=DIR."
    kind = type(error).__name__
    return 1, f"{kind}: {text or 'no message'} (set DGM_DEBUG=1 to see the traceback)."


def _complain(sentence: str) -> None:
    print(f"dgm: {sentence}", file=sys.stderr)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb in ("-V", "--version"):
        print(f"dgmbench {__version__}")
        return 0
    if verb == "complete":
        return _complete(rest)
    if verb not in VERBS:
        raise UserError(f"{nearest(verb, VERBS, what='verb')} 'dgm --help' shows them all.")
    return VERBS[verb](rest)


class _Parser(argparse.ArgumentParser):
    """A parser of one verb's flags and overrides, whose errors are sentences."""

    def __init__(self, verb: str, description: str, epilog: str, usage: str = "[key=value ...]") -> None:
        super().__init__(
            prog=f"dgm {verb}",
            usage=f"dgm {verb} {usage}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("overrides", nargs="*", metavar="key=value", help="settings, in Hydra's syntax")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}; '{self.prog} --help' shows what there is.")

    def add_config_flags(self) -> "_Parser":
        self.add_argument("--config-dir", action="append", default=[], metavar="DIR", help=_CONFIG_DIR)
        self.add_argument("--cfg", action="store_true", help="print the complete configuration and stop")
        return self


_CONFIG_DIR = "a folder of your own configurations (DIR/model/NAME.yaml); your code in DIR or here can be imported"


def _choices(*groups: str) -> str:
    """The groups of a verb's configuration with their options, for ``--help``."""
    from dgmbench.config import options

    lines = []
    for group in groups:
        names = options(group)
        text = ", ".join(names)
        if len(text) > 300:
            text = text[:300].rpartition(",")[0] + f", ... ({len(names)}; dgm list {group})"
        lines.append(textwrap.fill(text, 100, initial_indent=f"  {group:<10} ", subsequent_indent=" " * 13))
    return "choices (key=NAME):\n" + "\n".join(lines)


def _parse(parser: argparse.ArgumentParser, rest: list[str]) -> argparse.Namespace:
    arguments = parser.parse_intermixed_args(rest)
    from dgmbench.config import search_path

    own = search_path(getattr(arguments, "config_dir", []))[:-1]
    if own:
        import_from(own)
    return arguments


def import_from(folders: Sequence[Path]) -> None:
    """Let the user's own classes be imported from ``folders`` and the current one; installed packages come first."""
    for entry in (*map(str, folders), os.getcwd()):
        if entry not in sys.path:
            sys.path.append(entry)


def _train(rest: list[str]) -> int:
    parser = _Parser(
        "train",
        "Train a model, evaluate it and draw samples. The last line printed is the folder of the run; the same\n"
        "command resumes a run that was interrupted, and does nothing if it is done.",
        _choices("model", "data", "optimizer", "trainer", "hardware", "logger", "protocol")
        + """

some settings:
  trainer.budget=20ep      or 5000ba (batches), 3e6im (images)     trainer.batch_size=100
  optimizer.lr=1e-3        optimizer.schedule.name=cosine          seed=0
  paths.outputs=DIR        paths.data=DIR                          model.KEY=VALUE (any argument of the class)

examples:
  dgm train model=vae
  dgm train model=vae data=digits trainer.budget=5ep model.latent=8
  dgm train model=rbm model.estimator=pcd model.estimator.k=5
  dgm train -m model=vae,made seed=0,1
  dgm train -m model=vae seed=0,1,2,3 hydra/launcher=joblib
  dgm train --config-dir my_configs model=my_model
  dgm train experiment=burda2016_vae_mnist
""",
        "[-m] [--cfg] [--config-dir DIR] model=NAME [key=value ...]",
    ).add_config_flags()
    parser.add_argument("-m", "--multirun", action="store_true", help="several runs: key=a,b,c or Hydra's sweepers")
    arguments = _parse(parser, rest)
    if any(word.startswith("experiment=") for word in arguments.overrides):
        from dgmbench.bench.suite import expand_experiments

        arguments.overrides = expand_experiments(arguments.overrides, arguments.config_dir)
    if arguments.multirun:
        if arguments.cfg:
            raise UserError("--cfg shows one run's configuration: leave out -m and give one value for each key.")
        from dgmbench.multirun import multirun

        return multirun(arguments.overrides, arguments.config_dir)
    from dgmbench.config import complete, compose

    cfg = compose("train", arguments.overrides, config_dirs=arguments.config_dir)
    if arguments.cfg:
        return _print_config(complete(cfg))
    return _train_one(cfg)


def _train_one(cfg: Any) -> int:
    from dgmbench.training.run import train

    outcome = train(cfg)
    _print_metrics(outcome.result["metrics"])
    print(f"{outcome.message}; {outcome.objective_text}")
    print(outcome.run)
    return 0


def _print_config(completed: dict[str, Any]) -> int:
    import yaml

    print(yaml.safe_dump(completed, sort_keys=False), end="")
    return 0


def _evaluate(rest: list[str]) -> int:
    parser = _Parser(
        "evaluate",
        "Measure a finished run again, under a protocol, without training it.",
        _choices("protocol", "hardware")
        + """

examples:
  dgm evaluate run=outputs/vae-digits_binary-s0-1a2b3c4d
  dgm evaluate run=DIR protocol.k=5000 protocol.splits=[valid,test]
""",
        "run=DIR [protocol=NAME] [key=value ...]",
    ).add_config_flags()
    arguments = _parse(parser, rest)
    from dgmbench.config import complete_hardware, complete_paths, complete_protocol, compose, resolve

    cfg = resolve(compose("evaluate", arguments.overrides, config_dirs=arguments.config_dir))
    protocol, hardware = complete_protocol(cfg["protocol"]), complete_hardware(cfg["hardware"])
    paths = complete_paths(cfg["paths"])
    if arguments.cfg:
        return _print_config({"run": cfg["run"], "protocol": protocol, "hardware": hardware, "paths": paths})
    from dgmbench.evaluation.evaluate import evaluate_run

    run = Path(str(cfg["run"])).expanduser()
    result = evaluate_run(run, protocol, hardware=hardware, data_root=Path(paths["data"]))
    _print_metrics(result["metrics"])
    print(run)
    return 0


def _print_metrics(metrics: dict[str, dict[str, Any]]) -> None:
    rows = []
    for name, metric in sorted(metrics.items()):
        error = "" if metric["se"] is None else f" +- {metric['se']:.2g}"
        value = "not finite" if metric["value"] is None else f"{metric['value']:.6g}{error}"
        rows.append((name, value, metric["unit"], metric["kind"], metric["protocol_id"], metric.get("note") or ""))
    _print_table(("metric", "value", "unit", "kind", "protocol", ""), rows)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD)
    styles = {"passed": "green", "FAILED": "bold red", "undecided": "yellow"}
    for row in rows:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    console = Console(width=200)  # rows are never cut; a narrow terminal wraps them
    console.print(table)


def _sample(rest: list[str]) -> int:
    parser = _Parser(
        "sample",
        "Draw samples of a trained run into its folder: a PNG, an .npz with the raw values (key x), and a .wav of\n"
        "sound or a .txt of text.",
        """examples:
  dgm sample run=outputs/vae-digits_binary-s0-1a2b3c4d
  dgm sample run=DIR n=100 seed=1 checkpoint=final
  dgm sample run=DIR show=completions n=8        the lower halves of eight test images, drawn given the upper ones
""",
        "run=DIR [n=64] [seed=0] [checkpoint=best|final] [label=CLASS] [temperature=T]\n"
        "                  [show=samples|reconstructions|interpolations|completions]",
    )
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR", help=_CONFIG_DIR)
    arguments = _parse(parser, rest)
    from dgmbench.config import checked, complete_hardware, complete_paths, compose, resolve
    from dgmbench.settings import Sampling

    cfg = resolve(compose("sample", arguments.overrides, config_dirs=arguments.config_dir))
    paths, hardware = complete_paths(cfg.pop("paths")), complete_hardware(cfg.pop("hardware"))
    run = Path(str(cfg.pop("run"))).expanduser()
    sampling = checked(cfg, Sampling, "")
    from dgmbench.training.sampling import sample_run

    for path in sample_run(run, **sampling, accelerator=hardware["accelerator"], data_root=Path(paths["data"])):
        print(path)
    return 0


def _verify(rest: list[str]) -> int:
    parser = _Parser(
        "verify",
        "Prove what can be proved of a model on a tiny instance: its densities, its training, save and resume.\n"
        "The exit code is 1 if a check fails.",
        _choices("model")
        + """

examples:
  dgm verify model=made
  dgm verify model=rbm model.estimator=pcd
  dgm verify --config-dir my_configs model=my_model
""",
        "[--config-dir DIR] model=NAME [key=value ...]",
    ).add_config_flags()
    arguments = _parse(parser, rest)
    from dgmbench.cards import read_cards
    from dgmbench.config import complete, compose

    completed = complete(compose("train", arguments.overrides, config_dirs=arguments.config_dir))
    if arguments.cfg:
        return _print_config(completed)
    card = read_cards(arguments.config_dir)[completed["names"]["model"]]
    from rich.console import Console

    from dgmbench.verify import verify_config

    console = Console(stderr=True)
    with console.status("verifying") as status:
        checks = verify_config(completed, card, progress=lambda part: status.update(f"verifying: {part}"))
    verdicts = {True: "passed", False: "FAILED", None: "undecided"}
    rows = [(c.name, _cell(c.measured), _cell(c.tolerance), verdicts[c.passed], c.note) for c in checks]
    _print_table(("check", "measured", "tolerance", "verdict", "note"), rows)
    counts = {word: sum(verdicts[c.passed] == word for c in checks) for word in verdicts.values()}
    print(f"model={card.name}: " + ", ".join(f"{count} {word}" for word, count in counts.items() if count))
    return 1 if counts["FAILED"] else 0


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _list(rest: list[str]) -> int:
    parser = _Parser(
        "list",
        "Show the models by family, or the choices of a group, or one model's card.",
        """examples:
  dgm list
  dgm list data
  dgm list optimizer
  dgm list model=vae
""",
        "[GROUP | model=NAME]",
    )
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR", help=_CONFIG_DIR)
    arguments = _parse(parser, rest)
    from dgmbench import listing

    words = arguments.overrides or ["model"]
    for word in words:
        print(listing.listing(word, arguments.config_dir))
    return 0


def _rerun(rest: list[str]) -> int:
    parser = _Parser(
        "rerun",
        "Repeat a run from the configuration in its folder: resume it, or do nothing if it is done; with --fresh\n"
        "train it anew below another folder, to see whether the same numbers come out.",
        """examples:
  dgm rerun outputs/vae-digits_binary-s0-1a2b3c4d
  dgm rerun outputs/vae-digits_binary-s0-1a2b3c4d --fresh /tmp/again
""",
        "DIR [--fresh OUTPUTS]",
    )
    parser.add_argument("--fresh", metavar="OUTPUTS", help="the folder to put a new run into")
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR", help=_CONFIG_DIR)
    arguments = _parse(parser, rest)
    if len(arguments.overrides) != 1:
        raise UserError("dgm rerun takes the folder of one run: dgm rerun DIR.")
    from dgmbench.rerun import check_name, version_warning
    from dgmbench.training.folder import RunFolder

    folder = RunFolder.existing(arguments.overrides[0].removeprefix("run="))
    outputs = Path(arguments.fresh).expanduser() if arguments.fresh else folder.path.absolute().parent
    if warning := version_warning(folder):
        _complain(warning)
    cfg = folder.read_config()
    if not arguments.fresh:
        check_name(folder)
    return _train_one({**cfg, "paths": {**cfg["paths"], "outputs": str(outputs)}})


def _bench(rest: list[str]) -> int:
    parser = _Parser(
        "bench",
        "Run every cell of a suite, skip what is done, compare with published numbers and write a report, whose path\n"
        "is the last line printed. The same command again goes on where it stopped.",
        _choices("suite", "executor")
        + """

some settings:
  executor.slots=4         executor.time=3600s     executor.memory=4GiB     paths.outputs=DIR
  model=vae,made           only these of the suite's models
  seed=0,1,2               in place of the suite's seeds
  KEY=VALUE                any setting of 'dgm train', for every cell

examples:
  dgm bench suite=demo
  dgm bench suite=table2 --dry-run
  dgm bench suite=demo --retry failed
  dgm bench suite=table3 executor=slurm executor.partition=gpu executor.gpus=1
""",
        "suite=NAME [--dry-run] [--retry failed|oom|timeout|all] [--stale] [key=value ...]",
    )
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR", help=_CONFIG_DIR)
    parser.add_argument("--dry-run", action="store_true", help="list the cells and estimate the time, run nothing")
    parser.add_argument("--retry", metavar="STATUS", help="run cells again that ended so: failed, oom, timeout or all")
    parser.add_argument("--stale", action="store_true", help="run cells again whose model's source has changed")
    arguments = _parse(parser, rest)
    from dgmbench.bench.runner import bench

    return bench(
        arguments.overrides,
        config_dirs=arguments.config_dir,
        dry_run=arguments.dry_run,
        retry=arguments.retry,
        stale=arguments.stale,
    )


def _report(rest: list[str]) -> int:
    parser = _Parser(
        "report",
        "Write what a folder of runs holds into it: report.html to look at, report.md, report.tex and report.csv.\n"
        "The last line printed is the path of the page.",
        """examples:
  dgm report outputs/bench/demo
  dgm report outputs
""",
        "DIR",
    )
    arguments = _parse(parser, rest)
    if len(arguments.overrides) != 1:
        raise UserError("dgm report takes one folder: dgm report DIR.")
    from dgmbench.bench.report import write_report_with_notes

    page, notes = write_report_with_notes(Path(arguments.overrides[0]).expanduser())
    for note in notes[:20]:
        _complain(f"note: {note}")
    if len(notes) > 20:
        _complain(f"note: {len(notes) - 20} more notes stand at the top of the page.")
    print(page)
    return 0


def _diff(rest: list[str]) -> int:
    parser = _Parser(
        "diff",
        "Show what two runs differ in: settings, versions, protocols and numbers.",
        """examples:
  dgm diff outputs/vae-digits_binary-s0-1a2b3c4d outputs/vae-digits_binary-s1-5e6f7a8b
""",
        "DIR DIR",
    )
    arguments = _parse(parser, rest)
    if len(arguments.overrides) != 2:
        raise UserError("dgm diff takes the folders of two runs: dgm diff DIR DIR.")
    from dgmbench.bench.report.difference import differences

    rows = differences(*(Path(word).expanduser() for word in arguments.overrides))
    if rows:
        _print_table(("where", "what", "first", "second", "difference"), rows)
    else:
        print("The runs do not differ.")
    return 0


def _completion(rest: list[str]) -> int:
    from dgmbench.completion import SCRIPTS

    if len(rest) != 1 or rest[0] not in SCRIPTS:
        raise UserError("dgm completion prints the script for one shell: dgm completion bash, zsh or fish.")
    print(SCRIPTS[rest[0]], end="")
    return 0


def _complete(rest: list[str]) -> int:
    from dgmbench.completion import candidates

    for candidate in candidates(rest[1:] if rest[:1] == ["--"] else rest):
        print(candidate)
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "sample": _sample,
    "verify": _verify,
    "list": _list,
    "rerun": _rerun,
    "bench": _bench,
    "report": _report,
    "diff": _diff,
    "completion": _completion,
}
