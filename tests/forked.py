"""What a process does that ``processes.py`` forks from the warm server: become the program that was asked for.

It is run by ``runpy`` with ``REQUEST`` in its globals, so that the child needs no import path to the tests. What a
program can see is set as a new interpreter would find it: arguments, environment, folder, standard streams, signals,
and at its end the threads that are waited for and the functions of ``atexit``.
"""

import atexit
import multiprocessing.forkserver
import os
import runpy
import signal
import sys
import threading
import traceback
from typing import Any


def become(request: dict[str, Any]) -> None:
    if request["group"] is not None:
        os.setpgid(0, request["group"])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[:0] = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry not in sys.path]
    for number, name in ((1, "stdout"), (2, "stderr")):
        descriptor = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
        stream = open(number, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if request["server"] is not None:  # programs that fork cells of their own do it from the warm server as well
        server = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
        server._forkserver_address, server.ensure_running = request["server"], lambda: None
    sys.argv = list(request["argv"])


def go(request: dict[str, Any]) -> None:
    """Run the module or the file that ``argv`` begins with, as ``python -m`` or ``python FILE`` would."""
    if request["module"] is not None:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")


def exit_code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)  # noqa: T201
    return 1


def run(request: dict[str, Any]) -> None:
    code = 0
    become(request)
    try:
        go(request)
    except SystemExit as end:
        code = exit_code(end)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code & 0xFF)


run(REQUEST)  # type: ignore[name-defined]
