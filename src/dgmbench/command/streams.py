"""The process of a command: its standard streams, which may be closed, full or narrow, and Ctrl-C as it starts."""

import codecs
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, TextIO


def open_streams() -> None:
    """See to it that the standard streams are there, and print any name of a file: as it is, or as signs stand for it.

    A closed one would give its number to the next file that is opened, which then would hold what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for good
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    codecs.register_error("printable", _printable)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # one that a program has put in its place
            stream.reconfigure(errors="printable")  # type: ignore[union-attr]


def _printable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a file's name that are no text come out as they are; signs that a stream lacks by their number."""
    assert isinstance(error, UnicodeEncodeError)
    sign = error.object[error.start]
    if 0xDC80 <= ord(sign) <= 0xDCFF:
        return sign.encode("utf-8", "surrogateescape"), error.start + 1
    return sign.encode("ascii", "backslashreplace").decode(), error.start + 1


def trouble_with(stream: TextIO, *, ask: bool = False) -> str | None:
    """Why a stream takes nothing any more, or None if it does; what it holds is given up. ``ask`` it by an empty line:
    what did not fit into it is forgotten.
    """
    try:
        stream.flush()
        if ask:
            os.write(stream.fileno(), b"\n")
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # it would be flushed again at the end
        return getattr(error, "strerror", None) or str(error)
    return None


# those of system.ENDINGS, whose module is too heavy to wait for before the first line; Windows has no SIGHUP
ENDS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Terminated(SystemExit):
    """SIGTERM, or the end of the terminal, where nothing else looks after it: what was begun is put away on the way."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends a command by KeyboardInterrupt, SIGTERM and the end of its terminal by ``Terminated``, but in the
    middle of an import all of them at once, with their exit code.

    Libraries in C++ abort where an exception reaches them as they are loaded.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDS}
    taken = [number for number, handler in before.items() if handler in (signal.default_int_handler, signal.SIG_DFL)]
    for number in taken:  # nohup lets SIGHUP pass
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) is _end:
                signal.signal(number, before[number])


def _end(number: int, frame: FrameType | None) -> NoReturn:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"dgm: interrupted.\n" if number == signal.SIGINT else b"dgm: stopped.\n")
            os._exit(128 + number)
        frame = frame.f_back
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(number)
