"""What policies a network has learnt, from its decisions on a set of images. Arrays in, numbers out.

Letters: N images, K blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from resless.errors import InputError


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
        return float(np.where(self.correct, 1 - self.kept.mean(axis=1) ** 2, penalty).mean())

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
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{name: arrays[name] for name in ("kept", "correct", "labels", "images")})
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(f"{path} is not a readable file of decisions: {error}") from error


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
