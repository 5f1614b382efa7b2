"""What the tests of input from strangers share: trying until the time is over, and ways to damage bytes and values."""

from __future__ import annotations

import copy
import faulthandler
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import psutil
import pytest
from resless.errors import InputError
from resless.testing import caused_by, peak_memory, reset_peak_memory

SECONDS = 0.9  # of each case, unless RESLESS_FUZZ_MINUTES says how long all of them take
FEW = 20  # tries of a case at least
HANGS_S = 300  # a machine can be busy
MIB = 2**20
HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 10**12, 10**30, 0.5, -0.5, 1e308, float("nan"), float("inf")),
    *("", "..", "../../../etc/passwd", "/etc/passwd", "/dev/zero", "resnet20", "shrunk", "folded", "blockdrop", "adn"),
    *("a" * 5000, "\0", "None", "two\nlines"),
    *([], {}, [[]], [-1], [0, 0], [5, 3], list(range(2000)), {"": 1}, {"name": "resnet20"}, [None], ["a"]),
]


def seconds_each(cases: int) -> float:
    """How long one of so many cases takes."""
    minutes = os.environ.get("RESLESS_FUZZ_MINUTES")
    return SECONDS if minutes is None else 60 * float(minutes) / cases


class Fuzz:
    """Damages what a test has prepared, again and again: each time it is taken, or refused in one sentence."""

    def __init__(self, name: str, seconds: float, record: Callable[[str, object], None]) -> None:
        """The `name` is the seed; `record` gets how often files were tried and refused."""
        self._name, self._seconds, self._record = name, seconds, record

    def __call__(
        self,
        damage: Callable[[random.Random], object],
        attempt: Callable[[], object],
        *,
        least_refused: float,
        most_mib: int = 300,
    ) -> None:
        """Fails at any other exception, at memory that runs out, a hang, or hundreds of MiB for what is small.

        Args:
            damage: changes the files below `tmp_path`, where pytest leaves them, and returns what a failure is to tell
                beside them; None where the files say all.
            attempt: reads them.
            least_refused: the part of the tries that is refused at least, or the damage was none.
            most_mib: what the process may grow by.
        """
        chance, counts = random.Random(self._name), {"tried": 0, "refused": 0}
        attempt()
        before, end = reset_peak_memory(), time.monotonic() + self._seconds
        try:
            with limited_memory():
                while counts["tried"] < FEW or time.monotonic() < end:
                    damaged = damage(chance)
                    told = f"try {counts['tried']} of {self._name}, {damaged!r:.2000}"
                    counts["tried"] += 1
                    counts["refused"] += refused(attempt, told)
                    grown = (peak_memory() - before) / MIB
                    assert grown < most_mib, f"{grown:.0f} MiB at {told}"
        finally:
            for key, value in counts.items():
                self._record(key, value)
        assert counts["refused"] >= least_refused * counts["tried"]


def refused(attempt: Callable[[], object], told: str) -> bool:
    """Whether it was refused; fails, with what is `told`, at any other exception, a hang, or memory that ran out."""
    refusal = None
    try:
        with no_hang(told):
            attempt()
    except InputError as error:
        refusal = error
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} at {told}: {error}") from error
    assert not caused_by(refusal, MemoryError), f"memory ran out at {told}: {refusal}"
    return refusal is not None


@contextmanager
def limited_memory() -> Iterator[None]:
    """No more than 4 GiB on top, so that what would take all of it fails instead of the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 4096 * MIB, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def no_hang(told: str) -> Iterator[None]:
    """The test fails if this has not ended after some minutes.

    No signal is handled inside of C code: if that does not end, the process does, a minute later. The last line of
    `pytest -v`, or pytest-xdist, then names the test.
    """

    def stop(*_: object) -> NoReturn:
        pytest.fail(f"not ended after {HANGS_S} s at {told}")  # no Exception, so that no reader takes it for damage

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS_S)
    faulthandler.dump_traceback_later(HANGS_S + 60, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- damage ----------------------------------------------------------------------------------------------------------


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a value of dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from places(item)


def hostile(chance: random.Random) -> Any:
    """A value that does not belong where it is put."""
    return copy.deepcopy(chance.choice(HOSTILE))


def broken(whole: bytes, chance: random.Random) -> bytes:
    """Some bytes of a file replaced, or its end missing, or both; now and then neither."""
    content = bytearray(whole)
    if chance.random() < 0.3:
        del content[chance.randrange(len(content)) :]
    for _ in range(chance.randint(0, 4)):
        if content:
            # Half of them where the structure is: at the start, or, of an archive, at the end.
            near = chance.choice([0, max(0, len(content) - 2000)]) + chance.randrange(min(2000, len(content)))
            at = near if chance.random() < 0.5 and near < len(content) else chance.randrange(len(content))
            content[at] = chance.randrange(256)
    return bytes(content)
