"""The one exception that stands for bad input, and the sentence for a name that does not exist. Free of torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Something the user gave cannot be used.

    Not a ValueError: argument parsers turn those into messages of their own.

    The message is one sentence: what, which value, what is allowed, what to do next. Console scripts print it and
    exit with code 2, without a traceback. It is one line, also where names of files or tensors in it have more.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


def unknown_name(kind: str, name: str, known: Iterable[str], shown: Iterable[str] | None = None) -> InputError:
    """The error for a name that is not in `known`, with the nearest names first.

    Where they are too many to list, `shown` says how they look.
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    return InputError(f"unknown {kind} {name!r}: {hint}known are {', '.join(shown or known)}")


def check(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise InputError naming field, value and what is allowed, unless `condition` holds."""
    if not condition:
        raise InputError(f"{field} is {value!r}, but must be {allowed}")


def check_left_out(reason: str, **options: object) -> None:
    """Raise InputError for options that would have no effect, named with underscores; None is one that is not given."""
    for name, value in options.items():
        check(value is None, f"--{name.replace('_', '-')}", value, f"left out, {reason}")


def check_agrees(option: str, given: object, found: object, source: str) -> None:
    """Raise InputError for an option that says otherwise than `source` does, or says what that has not (None)."""
    check(given in (None, found), option, given, f"{found}, as in {source}, or left out" if found else "left out")
