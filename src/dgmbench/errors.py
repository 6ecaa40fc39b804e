"""The errors that people see: one clear sentence each, mapped to an exit code by the command line."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or environment (exit code 2): what was wrong, with the value, and what to do about it."""


class RunFailed(Exception):
    """A run that started properly failed while running (exit code 1), for instance on a non-finite loss."""


def nearest(name: str, known: Iterable[str], *, what: str) -> str:
    """Return the sentence for an unknown ``name`` among ``known``, with the nearest names first.

    >>> nearest("glwo", ["glow", "vae"], what="model")
    "There is no model 'glwo'; did you mean glow?"
    """
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if close:
        return f"There is no {what} '{name}'; did you mean {' or '.join(close)}?"
    return f"There is no {what} '{name}'; choose one of: {', '.join(options)}."
