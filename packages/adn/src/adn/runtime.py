"""Choosing a configuration while a system runs: the most accurate that a budget of time allows.

Free of torch: a table of measured latencies goes in, flags come out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from resless.errors import InputError, check

Skip = tuple[bool, ...]


class DepthController:
    """Chooses the skip flags for each call from measured latencies, a budget, and the load it is told about.

    The load is how many times longer calls take now than in the table, 1 at first. A configuration fits if its latency
    times the load is within the budget. The best that fits is chosen, but a better one than the present only if it
    fits with `margin` to spare, so that the choice does not swing. If none fits, the fastest is chosen. Configurations
    that are slower than another and no better are never chosen.

    Args:
        latencies_ms: milliseconds of a call for each configuration that may be chosen.
        accuracies: a number for each of them, larger is better; left out, the one with fewer stages skipped is better,
            and of two with equally many the slower.
        budget_ms: for a call, if `choose` is not given another.
        margin: fraction of the budget that must be left for a better configuration.
        rise, fall: how fast the load follows measurements above and below it: 1 is at once, 0 never. It rises faster
            than it falls, for a missed deadline costs more than an idle moment.

    Raises:
        InputError: an empty table, flags or numbers that cannot be, accuracies of other configurations.
    """

    def __init__(
        self,
        latencies_ms: Mapping[Skip, float],
        accuracies: Mapping[Skip, float] | None = None,
        *,
        budget_ms: float = math.inf,
        margin: float = 0.1,
        rise: float = 0.5,
        fall: float = 0.1,
    ) -> None:
        _check_table(latencies_ms, accuracies)
        _check_budget(budget_ms)
        check(0 <= margin < 1, "margin", margin, "0 or more and below 1")
        for name, rate in (("rise", rise), ("fall", fall)):
            check(0 <= rate <= 1, name, rate, "in 0..1")
        self.budget_ms = budget_ms
        self.load = 1.0
        self.current: Skip | None = None
        """What `choose` gave last."""
        self._margin, self._rise, self._fall = margin, rise, fall
        self._latencies = dict(latencies_ms)
        self._ranked = _best_first(self._latencies, accuracies)

    def choose(self, budget_ms: float | None = None) -> Skip:
        """The flags for the next call. Raises InputError for a budget that is no number of milliseconds."""
        budget = self.budget_ms if budget_ms is None else budget_ms
        _check_budget(budget)
        for skip in self._ranked:
            needed = self.expected_ms(skip)
            # From the present one on downwards, what fits is taken as it is.
            better = self.current is not None and self._rank(skip) < self._rank(self.current)
            if needed <= budget * (1 - self._margin if better else 1):
                self.current = skip
                break
        else:
            self.current = self._ranked[-1]
        return self.current

    def choose_until(self, deadline_s: float, now_s: float | None = None) -> Skip:
        """The flags for a call that must end at a moment of `time.monotonic()`; `now_s` is the present one."""
        now = time.monotonic() if now_s is None else now_s
        return self.choose(max(0.0, 1000 * (deadline_s - now)))

    def observe(self, skip: Skip, latency_ms: float) -> None:
        """Take note of how long a call with these flags took. Raises InputError for flags that are not in the table."""
        if skip not in self._latencies:
            raise InputError(f"skip is {skip!r}, which is not in the table of latencies")
        _check_latency("latency_ms", latency_ms)
        change = latency_ms / self._latencies[skip] - self.load
        self.load += change * (self._rise if change > 0 else self._fall)

    def expected_ms(self, skip: Skip) -> float:
        """How long a call with these flags takes under the present load."""
        return self._latencies[skip] * self.load

    def _rank(self, skip: Skip) -> int:
        return self._ranked.index(skip)


def _best_first(latencies_ms: Mapping[Skip, float], accuracies: Mapping[Skip, float] | None) -> list[Skip]:
    """The configurations that no other beats in both respects: falling in accuracy, and in latency with it."""

    def quality(skip: Skip) -> tuple[float, float]:
        return (accuracies[skip], -latencies_ms[skip]) if accuracies else (-sum(skip), latencies_ms[skip])

    ranked: list[Skip] = []
    for skip in sorted(latencies_ms, key=quality, reverse=True):
        if not ranked or latencies_ms[skip] < latencies_ms[ranked[-1]]:
            ranked.append(skip)
    return ranked


def _check_table(latencies_ms: Mapping[Skip, float], accuracies: Mapping[Skip, float] | None) -> None:
    check(len(latencies_ms) > 0, "the table of latencies", dict(latencies_ms), "one configuration at least")
    first = next(iter(latencies_ms))
    stages = len(first) if isinstance(first, tuple) else 1
    for skip, latency_ms in latencies_ms.items():
        valid = isinstance(skip, tuple) and len(skip) == stages and all(isinstance(flag, bool) for flag in skip)
        check(valid, "a configuration in the table", skip, f"a tuple of {stages} times True or False, as the first is")
        _check_latency(f"the latency of {skip}", latency_ms)
    if accuracies is not None and accuracies.keys() != latencies_ms.keys():
        odd = next(iter(accuracies.keys() ^ latencies_ms.keys()))
        raise InputError(
            f"{odd} is in only one of the tables of latencies and accuracies: they must have the same rows"
        )


def _check_latency(field: str, value: float) -> None:
    valid = isinstance(value, int | float) and math.isfinite(value) and value > 0
    check(valid, field, value, "a number of milliseconds above 0")


def _check_budget(value: float) -> None:
    check(value >= 0, "budget_ms", value, "0 or more milliseconds")  # NaN is not
