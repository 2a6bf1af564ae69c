"""Errors that are written for the person who reads them."""

import difflib
from collections.abc import Iterable


class ExpungeError(Exception):
    """Base of every error this package raises on purpose; a command ends with exit code 1."""


class InputError(ExpungeError):
    """What the user gave is wrong; a command ends with exit code 2 and one clear line."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """Build the error for a name that is not in a table.

    Args:
        kind: What the name stands for, such as ``"method"``.
        name: What was given.
        choices: The names that exist.

    Returns:
        An error that says what was found, the nearest existing name and all of them.
    """
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {name!r}.{hint} Available: {', '.join(known)}.")
