"""The errors that people see: one clear sentence each, mapped to an exit code by the command line; and what is said."""

import difflib
import errno
import lzma
import math
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from json import JSONDecodeError
from pathlib import Path


class UserError(Exception):
    """Bad input or environment (exit code 2): what was wrong, with the value, and what to do about it."""


class RunFailed(Exception):
    """A run that started properly failed while running (exit code 1), for instance on a non-finite loss."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No more can be written: the disk, the quota, or what one file may hold."""
_OTHER_FOLDER = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "The disk quota is used up",
    errno.EFBIG: "The limit on the size of files is reached",
    errno.EACCES: "Permission is denied",
    errno.EPERM: "Permission is denied",
    errno.EROFS: "The file system is read-only",
}
# Of what is read, each library has its own words for damage.
_DAMAGE = (zlib.error, EOFError, zipfile.BadZipFile, lzma.LZMAError, tarfile.TarError, UnicodeError, JSONDecodeError)


@contextmanager
def in_hand(what: object) -> Iterator[None]:
    """Within the block, errors that do not say what they are about are about this file or folder."""
    try:
        yield
    except Exception as error:
        if not hasattr(error, "in_hand"):
            with suppress(AttributeError):
                error.in_hand = str(what)  # type: ignore[attr-defined]
        raise


def explain(error: Exception) -> tuple[int, str]:
    """The exit code of an error, and the sentence that says what was wrong and what to do."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return 2, text
    if isinstance(error, RunFailed):
        return 1, text
    what = str(getattr(error, "filename", None) or getattr(error, "in_hand", ""))
    if isinstance(error, OSError):
        if error.errno in _OTHER_FOLDER:
            place = f" ({what})" if what else ""
            advice = "choose another folder with paths.outputs=DIR or paths.data=DIR"
            if _is_temporary(what):
                advice = f"make room there, or {advice}, or for temporary files with TMPDIR=DIR"
            return 2, f"{_OTHER_FOLDER[error.errno]}{place}: {advice}."
        if "temporary directory" in text:
            return 2, f"No folder for temporary files can be written ({error.strerror}): name one by TMPDIR=DIR."
        return 2, f"{what or 'A file'} cannot be read or written: {error.strerror or text or type(error).__name__}."
    if isinstance(error, MemoryError):
        return (
            2,
            f"The memory is full{f' (with {what})' if what else ''}: {text or 'take smaller batches or less data'}.",
        )
    kind = type(error).__name__
    if isinstance(error, RecursionError):
        return 2, f"{what or 'The input'} is nested too deeply ({text})."
    if isinstance(error, _DAMAGE):
        return 2, f"{what or 'A file'} is damaged ({kind}: {text or 'it ends too early'}); get it again."
    about = f" with {what}" if what else ""
    return 1, f"{kind}{about}: {text or 'no message'} (set DGM_DEBUG=1 to see the traceback)."


def _is_temporary(file: str) -> bool:
    """Whether a file lies where temporary files do; no where there is no such place."""
    with suppress(OSError):
        return Path(tempfile.gettempdir()) in Path(file).parents
    return False


def require(
    where: str = "model",
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    **values: float | Sequence[float] | None,
) -> None:
    """Raise a UserError for the first argument outside the bounds; lists are checked by entry, None passes.

    >>> require(least=1, latent=0)
    Traceback (most recent call last):
    dgmbench.errors.UserError: model.latent=0 must be at least 1.
    """
    bounds = [f"at least {least}" if least is not None else "", f"more than {above}" if above is not None else ""]
    bounds += [f"at most {most}" if most is not None else "", f"less than {below}" if below is not None else ""]
    for name, value in values.items():
        entries = () if value is None else value if isinstance(value, Sequence) else (value,)
        for entry in entries:
            inside = math.isfinite(entry) and (least is None or entry >= least) and (above is None or entry > above)
            if not (inside and (most is None or entry <= most) and (below is None or entry < below)):
                each = "each entry of " if isinstance(value, Sequence) else ""
                shown = list(value) if isinstance(value, Sequence) else value
                raise UserError(f"{each}{where}.{name}={shown} must be {' and '.join(filter(None, bounds))}.")


def nearest(name: str, known: Iterable[str], *, what: str) -> str:
    """Return the sentence for an unknown ``name`` among ``known``, with the nearest names first.

    >>> nearest("glwo", ["glow", "vae"], what="model")
    "There is no model 'glwo'; did you mean glow?"
    """
    options = sorted(known)
    if not options:
        return f"There is no {what} '{name}'; there are none at all."
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if close:
        return f"There is no {what} '{name}'; did you mean {' or '.join(close)}?"
    return f"There is no {what} '{name}'; choose one of: {', '.join(options)}."


JOINERS = "\u200c\u200d"
"""Signs without a shape of their own that belong to how words are written, in Persian say."""


def harmless(text: str, *, lines: bool = True) -> str:
    """A text as a terminal may be given it: signs that would command it, or turn what follows round, out of a file say,
    by their number. ``lines`` leaves the ends of lines as they are.
    """
    kept = JOINERS + "\t" + "\n" * lines
    return "".join(
        sign if sign.isprintable() or sign in kept or "\udc80" <= sign <= "\udcff" else repr(sign)[1:-1]
        for sign in text
    )


def say(*texts: object, error: bool = False) -> None:
    """Print each as one line, whatever it holds."""
    for text in texts:
        print(harmless(str(text), lines=False), file=sys.stderr if error else sys.stdout, flush=True)


def some_of(names: Collection[str], what: str, *, most: int = 3) -> str:
    """How many there are, and the first of them by name.

    >>> some_of(["a.txt"], "file"), some_of(["a.txt", "b.txt", "c.txt", "d.txt"], "file")
    ('1 file (a.txt)', '4 files (a.txt, b.txt, c.txt, ...)')
    """
    first = [*(harmless(name, lines=False) for name in list(names)[:most]), *(["..."] if len(names) > most else [])]
    return f"{len(names):,} {what}{'s' * (len(names) != 1)} ({', '.join(first)})"
