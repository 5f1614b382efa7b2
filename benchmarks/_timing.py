"""Several things timed in turns, in one process, and ratios formed turn by turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def call(function: Callable[[], None], count: int) -> None:
    """Call so many times."""
    for _ in range(count):
        function()


def take_turns(runs: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds of each run in every turn, after one turn that does not count; whoever is first goes round."""
    names, seconds = list(runs), {name: [] for name in runs}
    for name in names:
        runs[name]()
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(0.05)  # workers that still prefetch for another run come to rest
            started = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ms(seconds: list[float], calls: int) -> float:
    """Median milliseconds a call."""
    return 1000 * statistics.median(seconds) / calls


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratios, turn by turn."""
    return summary([a / b for a, b in zip(above, below, strict=True)])


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q25": low, "q75": high}
