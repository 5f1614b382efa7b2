"""What policies a network has learnt, from its decisions on a set of images. Arrays in, numbers out.

Letters: N images, K blocks.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resless.errors import InputError

from blockdrop import method

CONTROLS = {
    "most_frequent": "most frequent policy for all",
    "random": "random policies, same keep rates",
    "all_blocks": "all blocks",
    "dense": "all blocks, before this fine-tuning",
}
"""What a policy network is compared with, and how that is called in tables and pictures."""


@dataclass(frozen=True)
class Decisions:
    """What a network decided for N images, and whether it was right."""

    kept: np.ndarray
    """Blocks that ran, bool [N, K]."""
    correct: np.ndarray
    """Whether the prediction was right, bool [N]."""
    labels: np.ndarray
    """Classes, int64 [N]."""
    images: np.ndarray
    """Which images of the data set they are, int64 [N]."""

    @property
    def top1(self) -> float:
        """Fraction of images whose prediction is right."""
        return float(self.correct.mean())

    @property
    def blocks_used(self) -> np.ndarray:
        """Blocks that each image ran through, int64 [N]."""
        return self.kept.sum(axis=1)

    def reward(self, penalty: float) -> float:
        """Mean reward (eq. 3)."""
        correct, kept = torch.from_numpy(self.correct), torch.from_numpy(self.kept)
        return method.reward(correct, kept, penalty).mean().item()

    def record(self, prefix: str, penalty: float) -> dict[str, float]:
        """What a run logs of them."""
        found = {"top1": self.top1, "blocks_used": float(self.blocks_used.mean()), "reward": self.reward(penalty)}
        return {f"{prefix}_{name}": value for name, value in found.items()}

    def save(self, path: Path) -> None:
        """Write them as `.npz`."""
        np.savez_compressed(path, kept=self.kept, correct=self.correct, labels=self.labels, images=self.images)

    @classmethod
    def load(cls, path: Path) -> Decisions:
        """Read what `save` wrote. Raises InputError for another file."""
        try:
            with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
                found = cls(**{name: arrays[name] for name in ("kept", "correct", "labels", "images")})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path} is not a readable file of decisions: {error}") from error
        rows = [found.kept.shape[:1], found.correct.shape, found.labels.shape, found.images.shape]
        if found.kept.ndim != 2 or 0 in found.kept.shape or len(set(rows)) != 1:
            raise InputError(
                f"{path} does not hold a decision for each image and block: its arrays do not fit together"
            )
        return found


@dataclass(frozen=True)
class Policies:
    """The distinct policies of a set of images, the most frequent first."""

    kept: np.ndarray
    """Blocks that each policy keeps, bool [P, K]."""
    counts: np.ndarray
    """Images that have it, int64 [P]."""
    of_image: np.ndarray
    """Which policy each image has, int64 [N]."""

    @property
    def entropy_bits(self) -> float:
        """Entropy of the policy of an image drawn at random, in bits."""
        share = self.counts / self.counts.sum()
        return float(-(share * np.log2(share)).sum()) + 0.0  # not -0.0 for one policy

    def accuracies(self, correct: np.ndarray) -> np.ndarray:
        """Share of each policy's images that are `correct` (bool [N]), [P]."""
        return np.bincount(self.of_image[correct], minlength=len(self.counts)) / self.counts

    def name(self, index: int) -> str:
        """A policy as K digits, first block first."""
        return digits(self.kept[index])


def policies(kept: np.ndarray) -> Policies:
    """The distinct policies among bool [N, K]; equally frequent ones in order of their digits, kept before dropped."""
    distinct, group, counts = np.unique(kept, axis=0, return_inverse=True, return_counts=True)
    order = np.lexsort((-np.arange(len(distinct)), -counts))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return Policies(distinct[order], counts[order], rank[group.reshape(-1)])


def keep_rates(kept: np.ndarray) -> np.ndarray:
    """Share of the images that keep each block, [K]."""
    return kept.mean(axis=0)


def keep_rates_per_class(decisions: Decisions, num_classes: int) -> np.ndarray:
    """Share of each class's images that keep each block, [classes, K]; NaN for a class without images."""
    rates = np.full((num_classes, decisions.kept.shape[1]), np.nan)
    for label in np.unique(decisions.labels):
        rates[label] = decisions.kept[decisions.labels == label].mean(axis=0)
    return rates


def blocks_used_counts(decisions: Decisions) -> np.ndarray:
    """Images by blocks used, int64 [2, K + 1]: row 0 those with a wrong prediction, row 1 those with a right one."""
    used, bins = decisions.blocks_used, decisions.kept.shape[1] + 1
    return np.stack([np.bincount(used[decisions.correct == right], minlength=bins) for right in (False, True)])


def samples_of_policy(found: Policies, index: int, labels: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` rows of images that have a policy, int64: one of each class, its most frequent class first, then
    a second of each, and so on."""
    rows = np.flatnonzero(found.of_image == index)
    own = labels[rows]
    order = np.lexsort((own, -np.bincount(own)[own], _rank_in_class(own)))
    return rows[order[:count]]


def easy_and_hard(decisions: Decisions, count: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the correctly classified images that use the fewest blocks, and of those that use the most.

    Easy is what uses fewer blocks than the mean of the correctly classified images, hard what uses more: where all use
    as many, nothing is either.

    Args:
        decisions: of N images.
        count: largest number of easy images, and of hard ones.
        per_class: largest number among them of images of one class.

    Returns:
        Two int64 arrays, the easiest and the hardest first; equal ones in order of their rows.
    """
    rows = np.flatnonzero(decisions.correct)
    if not len(rows):
        return rows, rows
    excess = decisions.blocks_used[rows] - decisions.blocks_used[rows].mean()
    easy, hard = (_first(rows, sign * excess, decisions.labels, count, per_class) for sign in (1, -1))
    return easy, hard


def record(decisions: Decisions, class_names: Sequence[str]) -> dict[str, Any]:
    """JSON values: every policy, the most frequent first; every class; images by blocks used (0 to K)."""
    found = policies(decisions.kept)
    accuracies, num_images = found.accuracies(decisions.correct), len(decisions.correct)
    wrong, right = blocks_used_counts(decisions)
    return {
        "policies": [
            {
                "policy": found.name(index),
                "blocks": int(found.kept[index].sum()),
                "images": int(images),
                "share": float(images / num_images),
                "top1": float(accuracies[index]),
            }
            for index, images in enumerate(found.counts)
        ],
        "classes": [_class_record(decisions, label, name) for label, name in enumerate(class_names)],
        "images_by_blocks_used": {"right": right.tolist(), "wrong": wrong.tolist()},
    }


def collapse(kept: np.ndarray) -> str | None:
    """In which way the policies bool [N, K] have collapsed, as a sentence; None if they have not."""
    if kept.all():
        return "all images keep all blocks: nothing is saved; a penalty nearer to 0 asks for more saving"
    if not kept.any():
        return "no image keeps any block: a penalty further below 0 asks for more accuracy"
    if (kept == kept[0]).all():
        return f"all images have the same policy, {digits(kept[0])}: --specialise gives it without a policy network"
    return None


def digits(kept: np.ndarray) -> str:
    """A policy, bool [K], as K digits 0 or 1, first block first."""
    return "".join("1" if keep else "0" for keep in kept)


def _first(rows: np.ndarray, value: np.ndarray, labels: np.ndarray, count: int, per_class: int) -> np.ndarray:
    """The rows of the smallest negative values, at most `count`, of a class at most `per_class`."""
    order = np.argsort(value, kind="stable")
    order = order[value[order] < 0]
    return rows[order[_rank_in_class(labels[rows[order]]) < per_class]][:count]


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many of the entries before each one have the same label, int64 [n]."""
    order = np.argsort(labels, kind="stable")
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(first, counts)
    return rank


def _class_record(decisions: Decisions, label: int, name: str) -> dict[str, Any]:
    own = decisions.labels == label
    kept, images = decisions.kept[own], int(own.sum())
    return {
        "class": name,
        "images": images,
        "top1": float(decisions.correct[own].mean()) if images else None,
        "blocks_used": float(kept.sum(axis=1).mean()) if images else None,
        "keep_rates": keep_rates(kept).tolist() if images else None,
    }
