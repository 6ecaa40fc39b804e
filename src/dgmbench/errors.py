"""The errors that people see: one clear sentence each, mapped to an exit code by the command line."""

import difflib
import errno
import math
from collections.abc import Collection, Iterable, Sequence


class UserError(Exception):
    """Bad input or environment (exit code 2): what was wrong, with the value, and what to do about it."""


class RunFailed(Exception):
    """A run that started properly failed while running (exit code 1), for instance on a non-finite loss."""


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


def some_of(names: Collection[str], what: str, *, most: int = 3) -> str:
    """How many there are, and the first of them by name.

    >>> some_of(["a.txt"], "file"), some_of(["a.txt", "b.txt", "c.txt", "d.txt"], "file")
    ('1 file (a.txt)', '4 files (a.txt, b.txt, c.txt, ...)')
    """
    first = [*list(names)[:most], *(["..."] if len(names) > most else [])]
    return f"{len(names):,} {what}{'s' * (len(names) != 1)} ({', '.join(first)})"
