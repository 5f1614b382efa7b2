"""The chooser, on tables and under a simulated load."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
import time
from typing import Any

import pytest
from adn.runtime import DepthController
from resless.errors import InputError

F, T = False, True
TABLE = {(F, F): 10.0, (T, F): 7.0, (F, T): 8.0, (T, T): 5.0}


def test_the_deepest_that_fits_is_chosen() -> None:
    chosen = {budget: DepthController(TABLE).choose(budget) for budget in (20, 10, 9.9, 8, 7.5, 7, 6, 5, 4, 0)}
    assert chosen == {
        20: (F, F),
        10: (F, F),
        9.9: (F, T),
        8: (F, T),
        7.5: (T, F),
        7: (T, F),
        6: (T, T),
        5: (T, T),
        4: (T, T),  # nothing fits: the fastest
        0: (T, T),
    }
    assert DepthController(TABLE).choose() == (F, F), "no budget, no limit"
    assert DepthController(TABLE, budget_ms=7.2).choose() == (T, F)


def test_accuracies_decide_where_they_are_known() -> None:
    accuracies = {(F, F): 77.6, (T, F): 77.1, (F, T): 76.0, (T, T): 76.1}
    controller = DepthController(TABLE, accuracies)
    assert [controller.choose(budget) for budget in (20, 9, 6)] == [(F, F), (T, F), (T, T)]
    assert all(DepthController(TABLE, accuracies).choose(b / 10) != (F, T) for b in range(150)), "slower and worse"


def test_a_better_one_is_taken_only_with_room_to_spare() -> None:
    controller = DepthController(TABLE, margin=0.2)
    assert controller.choose(7.5) == (T, F)
    assert controller.choose(9.9) == (T, F), "(F, T) would fit, but not within 80 %"
    assert controller.choose(10) == (F, T)
    assert controller.choose(8) == (F, T), "what runs may use the whole budget"
    assert controller.choose(7.9) == (T, F), "one that does not fit is left at once"
    assert controller.choose(12.5) == (F, F)


def test_a_deadline_moves_while_work_is_done() -> None:
    controller, deadline = DepthController(TABLE, margin=0.0), 100.030
    chosen = [controller.choose_until(deadline, now_s=100.0 + ms / 1000) for ms in (0, 21, 22.5, 24.5, 40)]
    assert chosen == [(F, F), (F, T), (T, F), (T, T), (T, T)]
    assert controller.choose_until(time.monotonic() + 60) == (F, F)


def test_the_load_follows_what_is_measured() -> None:
    controller = DepthController(TABLE, rise=0.5, fall=0.25)
    controller.observe((T, F), 14.0)
    assert controller.load == pytest.approx(1.5)
    assert controller.expected_ms((F, F)) == pytest.approx(15)
    controller.observe((T, T), 5.0)
    assert controller.load == pytest.approx(1.5 - 0.25 * 0.5)
    steady = DepthController(TABLE)
    for skip in TABLE:
        steady.observe(skip, TABLE[skip])
    assert steady.load == 1


def simulate(controller: DepthController | None, budget_ms: float, seed: int = 0) -> tuple[float, float, int]:
    """400 calls while the load is 1, 1.6, 1: the share in time, the mean number of stages run, and the changes."""
    noise, late, stages, changes = random.Random(seed), 0, 0, 0
    previous = None
    for call in range(400):
        load = 1.6 if 120 <= call < 280 else 1.0
        skip = controller.choose(budget_ms) if controller else (F, F)
        latency_ms = TABLE[skip] * load * noise.uniform(0.97, 1.03)
        if controller:
            controller.observe(skip, latency_ms)
        late += latency_ms > budget_ms
        stages += skip.count(F)
        changes += previous is not None and skip != previous
        previous = skip
    return 1 - late / 400, stages / 400, changes


@pytest.mark.parametrize("seed", range(5))
def test_under_a_simulated_load_deadlines_are_kept_and_depth_comes_back(seed: int) -> None:
    fixed, _, _ = simulate(None, 11.5, seed)
    assert fixed == pytest.approx(0.6), "the deepest alone is late whenever the load is high"
    in_time, stages, changes = simulate(DepthController(TABLE), 11.5, seed)
    assert in_time > 0.95
    assert 1.5 < stages < 1.7, "2 stages for 240 calls, 1 stage (T, F: 11.2 ms) or none for 160"
    assert changes <= 12
    swinging = simulate(DepthController(TABLE, margin=0.0, rise=1.0, fall=1.0), 11.5, seed)
    assert swinging[2] > changes, "without margin and smoothing it swings"


def test_every_choice_is_the_best_that_fits_or_the_fastest() -> None:
    draw = random.Random(1)
    for _ in range(50):
        table = {skip: draw.uniform(1, 9) for skip in itertools.product((F, T), repeat=3)}
        accuracies = {skip: draw.uniform(70, 80) for skip in table}
        budget = draw.uniform(0.5, 10)
        chosen = DepthController(table, accuracies).choose(budget)
        fitting = [skip for skip in table if table[skip] <= budget]
        if fitting:
            assert accuracies[chosen] == max(accuracies[skip] for skip in fitting)
        else:
            assert table[chosen] == min(table.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({},), "the table of latencies is {}, but must be one configuration at least"),
        (({(F, F): 1.0, (T,): 1.0},), "a configuration in the table is (True,), but must be a tuple of 2 times"),
        (({(0, 1): 1.0},), "a configuration in the table is (0, 1)"),
        (({(F,): 0.0},), "the latency of (False,) is 0.0, but must be a number of milliseconds above 0"),
        (({(F,): math.nan},), "the latency of (False,) is nan"),
        (({(F,): 1.0}, {(T,): 70.0}), "is in only one of the tables of latencies and accuracies"),
    ],
)
def test_tables_that_cannot_be(arguments: Any, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        DepthController(*arguments)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_ms": -1.0}, "budget_ms is -1.0"),
        ({"budget_ms": math.nan}, "budget_ms is nan, but must be 0 or more milliseconds"),
        ({"margin": 1.0}, "margin is 1.0"),
        ({"rise": 2.0}, "rise is 2.0, but must be in 0..1"),
        ({"fall": -0.1}, "fall is -0.1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DepthController(TABLE, **options)


def test_measurements_that_cannot_be() -> None:
    controller = DepthController(TABLE)
    with pytest.raises(InputError, match=r"skip is \(True,\), which is not in the table"):
        controller.observe((T,), 1.0)
    with pytest.raises(InputError, match="latency_ms is inf"):
        controller.observe((T, T), math.inf)
    assert controller.load == 1


def test_a_running_system_needs_no_torch_for_it() -> None:
    code = "import sys, adn.runtime; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
