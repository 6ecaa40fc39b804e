"""The command line: ``dgm train model=vae``. One file a verb; all errors end here.

Every verb imports what it needs when it runs, so that ``dgm --help`` and ``dgm list`` answer at once. Errors are one
sentence on stderr and an exit code: 0 done; 1 a run failed while running; 2 bad input or environment; 129, 130 and 143
for a lost terminal, Ctrl-C and SIGTERM.
"""

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from dgmbench import __version__
from dgmbench.command.streams import Terminated, interruptible, open_streams, trouble_with
from dgmbench.command.tables import complain
from dgmbench.errors import FULL, UserError, explain, nearest

VERBS = (
    "train", "evaluate", "show", "sample", "export", "score", "verify", "list", "rerun", "bench", "report", "diff",
    "completion",
)  # fmt: skip
"""Each is a module of this package with a function ``run(words) -> exit code``."""

HELP = """usage: dgm VERB [key=value ...]

Train, sample, measure and compare deep generative models.

  train       train a model, evaluate it and draw samples      dgm train model=vae
  evaluate    measure a trained run again                      dgm evaluate run=DIR protocol=default
  show        show all numbers of a run                        dgm show run=DIR
  sample      draw samples of a trained run                    dgm sample run=DIR n=64
  export      write many samples of a run for other programs   dgm export run=DIR n=50000
  score       measure samples that others made                 dgm score samples=DIR data=cifar10
  verify      prove what can be proved of a model              dgm verify model=rbm
  list        show models, data sets and other choices         dgm list
  rerun       repeat a run from its folder                     dgm rerun DIR
  bench       run a suite of models, data sets and seeds       dgm bench suite=demo
  report      show what a folder of runs holds                 dgm report outputs/bench/demo
  diff        show what two runs differ in                     dgm diff DIR DIR
  completion  print the shell's completion script              dgm completion bash

'dgm VERB --help' shows each verb's settings and examples; 'dgm --version' the version.
DGM_OUTPUTS and DGM_DATA_DIR name the folders of runs and of data, DGMCONFIG_DIR one of your own configurations.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # torch reads this at its first tensor: large pages cost the kernel less where a model writes a lot of memory
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    open_streams()
    try:
        with interruptible():
            code = _run(arguments)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        complain("interrupted.")
        return 130
    except Terminated as stop:
        complain(f"stopped by {signal.Signals(stop.number).name}.")
        return 128 + stop.number
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        nameless = isinstance(error, OSError) and error.filename is None and error.errno in FULL
        if isinstance(error, OSError) and (reason := trouble_with(sys.stdout, ask=nameless)) is not None:
            complain(
                f"the standard output cannot be written: {reason}; what was asked for may have been done all the same."
            )
            return 2
        if os.environ.get("DGM_DEBUG") == "1":
            raise
        code, sentence = explain(error)
        complain(sentence)
        return code


def _run(arguments: list[str]) -> int:
    for word in arguments:
        if not word.isascii() and word != word.encode("utf-8", "replace").decode("utf-8"):
            raise UserError(
                f"The word {word.encode('utf-8', 'backslashreplace').decode()} is no text in UTF-8; rename it."
            )
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb in ("-V", "--version"):
        print(f"dgmbench {__version__}")
        return 0
    if verb == "complete":  # what the shells' completion scripts ask
        from dgmbench.command.completion import candidates

        for candidate in candidates(rest[1:] if rest[:1] == ["--"] else rest, VERBS):
            print(candidate)
        return 0
    if verb not in VERBS:
        raise UserError(f"{nearest(verb, VERBS, what='verb')} 'dgm --help' shows them all.")
    return importlib.import_module(f"dgmbench.command.{verb}").run(rest)
