"""Numbers about policies, against closed forms and counts by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from blockdrop import analyse
from blockdrop.analyse import Decisions
from resless.errors import InputError


def decided(policies: list[str], correct: list[bool], labels: list[int]) -> Decisions:
    """Decisions on images 0, 1, ... from policies written as digits."""
    kept = np.array([[digit == "1" for digit in policy] for policy in policies])
    return Decisions(kept, np.array(correct), np.array(labels), np.arange(len(policies)))


# Blocks used: 3, 1, 3, 2, 1, 3.
SIX = decided(
    ["0111", "1000", "1110", "0011", "1000", "0111"],
    correct=[True, True, False, True, False, True],
    labels=[2, 0, 2, 2, 0, 3],
)


def test_distinct_policies_are_ordered_by_frequency_then_kept_first() -> None:
    found = analyse.policies(SIX.kept)
    assert [found.name(index) for index in range(4)] == ["1000", "0111", "1110", "0011"]
    assert found.counts.tolist() == [2, 2, 1, 1]
    assert found.of_image.tolist() == [1, 0, 2, 3, 0, 1]
    assert found.accuracies(SIX.correct).tolist() == [0.5, 1.0, 0.0, 1.0]


def test_entropy() -> None:
    assert analyse.policies(SIX.kept).entropy_bits == pytest.approx(2 * (1 / 3) * math.log2(3) + (1 / 3) * math.log2(6))
    every = np.array([[number >> bit & 1 for bit in range(5)] for number in range(32)], dtype=bool)
    assert analyse.policies(every).entropy_bits == pytest.approx(5)
    one = analyse.policies(np.ones((7, 3), bool)).entropy_bits
    assert (one, math.copysign(1, one)) == (0, 1)


def test_keep_rates_of_blocks_and_classes() -> None:
    np.testing.assert_allclose(analyse.keep_rates(SIX.kept), [3 / 6, 3 / 6, 4 / 6, 3 / 6])
    rates = analyse.keep_rates_per_class(SIX, 5)
    np.testing.assert_allclose(rates[[0, 2, 3]], [[1, 0, 0, 0], [1 / 3, 2 / 3, 1, 2 / 3], [0, 1, 1, 1]])
    assert np.isnan(rates[[1, 4]]).all()


def test_blocks_used_and_reward() -> None:
    assert analyse.blocks_used_counts(SIX).tolist() == [[0, 1, 0, 1, 0], [0, 1, 1, 2, 0]]
    right = [1 - (used / 4) ** 2 for used in (3, 1, 2, 3)]
    assert SIX.reward(-5) == pytest.approx((sum(right) - 5 * 2) / 6)
    assert SIX.record("held_out", -5) == pytest.approx(
        {"held_out_top1": 4 / 6, "held_out_blocks_used": 13 / 6, "held_out_reward": SIX.reward(-5)}
    )


def test_samples_of_a_policy_take_turns_between_classes_the_most_frequent_first() -> None:
    labels = np.array([5, 1, 5, 1, 5, 0, 9])
    found = analyse.policies(np.array([[True]] * 6 + [[False]]))
    assert analyse.samples_of_policy(found, 0, labels, 10).tolist() == [0, 1, 5, 2, 3, 4]
    assert analyse.samples_of_policy(found, 0, labels, 2).tolist() == [0, 1]
    assert analyse.samples_of_policy(found, 1, labels, 2).tolist() == [6]


def test_easy_and_hard_images_are_right_and_of_several_classes() -> None:
    used = [1, 1, 1, 2, 4, 4, 1, 2, 4]
    policies = ["1" * count + "0" * (4 - count) for count in used]
    found = decided(policies, [True] * 6 + [False] * 3, labels=[0, 0, 0, 1, 1, 2, 3, 3, 3])
    # The six right ones use 13 / 6 blocks on average.
    easy, hard = analyse.easy_and_hard(found, count=3, per_class=2)
    assert (easy.tolist(), hard.tolist()) == ([0, 1, 3], [4, 5])
    easy, hard = analyse.easy_and_hard(found, count=1, per_class=2)
    assert (easy.tolist(), hard.tolist()) == ([0], [4])


@pytest.mark.parametrize("correct", [True, False])
def test_nothing_is_easy_where_all_use_as_many_blocks_or_nothing_is_right(correct: bool) -> None:
    found = decided(["10", "01", "10"], [correct] * 3, [0, 1, 2])
    easy, hard = analyse.easy_and_hard(found, count=3, per_class=2)
    assert (len(easy), len(hard)) == (0, 0)


def test_record_holds_every_policy_and_class_as_json() -> None:
    found = json.loads(json.dumps(analyse.record(SIX, ["a", "b", "c", "d"]), allow_nan=False))
    assert found["policies"][1] == {"policy": "0111", "blocks": 3, "images": 2, "share": 2 / 6, "top1": 1.0}
    assert sum(policy["images"] for policy in found["policies"]) == 6
    assert [line["class"] for line in found["classes"]] == ["a", "b", "c", "d"]
    assert found["classes"][1] == {"class": "b", "images": 0, "top1": None, "blocks_used": None, "keep_rates": None}
    assert found["classes"][2]["keep_rates"] == pytest.approx([1 / 3, 2 / 3, 1, 2 / 3])
    assert (found["classes"][2]["top1"], found["classes"][2]["blocks_used"]) == pytest.approx((2 / 3, 8 / 3))
    assert found["images_by_blocks_used"] == {"right": [0, 1, 1, 2, 0], "wrong": [0, 1, 0, 1, 0]}


def test_collapse_names_what_happened() -> None:
    assert "all images keep all blocks" in str(analyse.collapse(np.ones((3, 2), bool)))
    assert "no image keeps any block" in str(analyse.collapse(np.zeros((3, 2), bool)))
    assert "the same policy, 10:" in str(analyse.collapse(np.array([[True, False]] * 3)))
    assert analyse.collapse(SIX.kept) is None


def test_decisions_are_read_as_they_were_written(tmp_path: Path) -> None:
    SIX.save(tmp_path / "policies.npz")
    read = Decisions.load(tmp_path / "policies.npz")
    for name in ("kept", "correct", "labels", "images"):
        np.testing.assert_array_equal(getattr(read, name), getattr(SIX, name), strict=True)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "policies.npz"
    with pytest.raises(InputError, match="not a readable file of decisions"):
        Decisions.load(path)
    SIX.save(path)
    whole = path.read_bytes()
    for content in (b"", b"no zip", whole[: len(whole) // 2], whole[:80] + bytes(20) + whole[100:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a readable file of decisions"):
            Decisions.load(path)
    with path.open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(InputError, match="not a readable file of decisions"):
        Decisions.load(path)
    np.savez(path, kept=SIX.kept)
    with pytest.raises(InputError, match="not a readable file of decisions"):
        Decisions.load(path)
    np.savez(path, kept=SIX.kept, correct=SIX.correct[1:], labels=SIX.labels, images=SIX.images)
    with pytest.raises(InputError, match="do not fit together"):
        Decisions.load(path)
