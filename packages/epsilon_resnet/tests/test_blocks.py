"""What a run remembers of its blocks: fractions of steps, means of responses, who is gone, and resumption."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from epsilon_resnet.blocks import BlockRecord
from torch import Tensor

K = 4
# Gates of the steps of three epochs, a column each block: closed always, in the second epoch, in two steps of four, and
# never.
EPOCHS = [
    ["0111", "0101", "0111", "0101"],
    ["0001", "0001", "0001", "0011"],
    ["0101", "0111", "0111", "0101"],
]
FRACTIONS = [[1, 0, 0.5, 0], [1, 1, 0.75, 0], [1, 0, 0.5, 0]]
SIZES = [0.5, 0.01, 0.03, 1.0]


def step(gates: str, number: int) -> tuple[Tensor, Tensor]:
    """The gates and largest responses of the n-th step; sums of the latter are exact."""
    return torch.tensor([float(gate) for gate in gates]), torch.arange(1.0, len(gates) + 1) * number / 4


def add(record: BlockRecord, steps: list[str], first: int = 1) -> None:
    for number, gates in enumerate(steps, first):
        record.add(*step(gates, number))


def recorded(epochs: list[list[str]], sizes: list[float] = SIZES) -> BlockRecord:
    record = BlockRecord(len(epochs[0][0]))
    for steps in epochs:
        add(record, steps)
        record.end_epoch(sizes)
    return record


def test_an_epoch_is_fractions_means_and_sizes() -> None:
    record = BlockRecord(K)
    found = []
    for number, steps in enumerate(EPOCHS, 1):
        add(record, steps)
        assert record.steps == 4 * number
        found.append(record.end_epoch([number * size for size in SIZES]))
    assert found == [[0, 2], [0, 1, 2], [0, 2]], "discarded in half of the steps is discarded"
    assert [epoch["discarded"] for epoch in record.history] == FRACTIONS
    # (1 + 2 + 3 + 4) / 4 steps, of quarters.
    assert [epoch["largest"] for epoch in record.history] == [[0.625, 1.25, 1.875, 2.5]] * 3
    assert [epoch["size"] for epoch in record.history] == [[n * size for size in SIZES] for n in (1, 2, 3)]
    assert record.steps == 12


def test_nothing_of_an_epoch_stays_for_the_next() -> None:
    record = recorded([["0000"] * 3, ["1111"]])
    assert record.history[1]["discarded"] == [0] * K
    assert record.history[1]["largest"] == [0.25, 0.5, 0.75, 1.0]
    assert record.history[0]["discarded"] == [1] * K


def test_an_epoch_without_steps_discards_nothing() -> None:
    record = BlockRecord(K)
    assert record.end_epoch(SIZES) == []
    assert record.history == [{"discarded": [0] * K, "largest": [0] * K, "size": SIZES}]
    assert record.steps == 0


def test_a_steps_own_tensors_are_not_changed_or_kept() -> None:
    record, gates, largest = BlockRecord(2), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])
    record.add(gates, largest)
    assert (gates.tolist(), largest.tolist()) == ([0, 1], [1, 2])
    gates.fill_(9), largest.fill_(9)
    record.end_epoch([1.0, 1.0])
    assert record.history[0] == {"discarded": [1, 0], "largest": [1, 2], "size": [1, 1]}


@pytest.mark.parametrize("steps", [3, 7, 391])
def test_a_fraction_is_1_only_if_all_steps_were_closed(steps: int) -> None:
    """Whatever the rounding of steps / steps: it is exact."""
    record = recorded([["01" if number else "00" for number in range(steps)]], [0.0, 0.0])
    assert record.history[0]["discarded"][0] == 1
    assert record.history[0]["discarded"][1] == pytest.approx(1 / steps)
    assert record.gone(0.05) == [0]


# --- who is gone


@pytest.mark.parametrize(
    ("bound", "epochs", "expected"),
    [
        (0.05, 1, []),  # the only block that was closed in all steps is too large
        (0.5, 1, []),  # at the bound is not under it
        (0.6, 1, [0]),
        (0.6, 3, [0]),
        (0.6, 4, []),  # more epochs than there were
        (2.0, 1, [0]),  # open blocks are not gone, however small
    ],
)
def test_gone_is_closed_in_all_steps_of_the_last_epochs_and_small(
    bound: float, epochs: int, expected: list[int]
) -> None:
    assert recorded(EPOCHS).gone(bound, epochs) == expected


def test_gone_looks_at_the_last_epochs_only() -> None:
    record = recorded(EPOCHS[:2])
    assert record.gone(0.05) == [1]
    assert record.gone(0.05, 2) == []
    assert record.gone(0.6, 2) == [0]
    add(record, ["0001"])
    record.end_epoch([0.6, 0.01, 0.01, 0.01])
    assert record.gone(0.05, 2) == [1]
    assert record.gone(0.05, 1) == [1, 2]
    assert record.gone(0.6, 2) == [1], "the sizes are those at the end"


def test_nothing_is_gone_before_the_first_epoch() -> None:
    assert BlockRecord(K).gone(0.05) == []


def test_a_step_that_has_not_ended_its_epoch_does_not_count() -> None:
    record = recorded([["0111"]], [0.0] * K)
    add(record, ["1111"])
    assert record.gone(0.05) == [0]


def test_retired_blocks_are_noted_with_their_last_epoch() -> None:
    record = recorded(EPOCHS[:1])
    record.retire([2])
    record.retire([])
    add(record, EPOCHS[1])
    record.end_epoch(SIZES)
    record.retire([0, 3])
    assert record.retired == {2: 0, 0: 1, 3: 1}


# --- resumption


def written_and_read(state: dict[str, Any]) -> dict[str, Any]:
    """As in a checkpoint: by torch, and read by its weights-only reader."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_a_run_goes_on_inside_an_epoch_as_if_it_had_not_stopped(at: int) -> None:
    whole, broken = recorded(EPOCHS[:2]), recorded(EPOCHS[:2])
    whole.retire([0])
    broken.retire([0])
    add(whole, EPOCHS[2])
    add(broken, EPOCHS[2][:at])
    resumed = BlockRecord(K)
    resumed.load_state_dict(written_and_read(broken.state_dict()))
    assert resumed.steps == 8 + at
    add(resumed, EPOCHS[2][at:], at + 1)
    assert resumed.end_epoch(SIZES) == whole.end_epoch(SIZES)
    assert resumed.history == whole.history
    assert len(whole.history) == 3
    assert resumed.retired == whole.retired == {0: 1}
    assert resumed.steps == whole.steps == 12
    assert resumed.gone(0.6, 3) == whole.gone(0.6, 3) == [0]
