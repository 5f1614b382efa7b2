"""ε-ResNet's mathematics: Yu, Yu, Ramalingam, Learning Strict Identity Mappings in Deep Residual Networks (CVPR 2018).

arXiv 1804.01661, section 3. A block adds its response F(x) to its shortcut only if some value of it reaches ε, over
all images of the batch, channels and pixels:

    gate (eq. 3)           S(F) = 0 if max|F(x)| < ε, else 1;          output = S(F) · F(x) + shortcut(x)
    by four ReLUs          s = max(relu(F - ε) + relu(-F - ε)),        S = relu(1 - L · relu(1 - L · s)),  L = 10^6
    side supervision       loss = cross-entropy(logits) + 0.1 · cross-entropy(logits of a head at half depth)
    learning rate          falls at the milestones; whenever a block is lost it starts anew, with milestones of its own

While S = 0 no gradient reaches the block, so that weight decay alone acts on it and its weights go to zero. Then it is
gone: its response could not reach ε again.

Letters: N images, C channels, H x W pixels, K blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

SIDE_WEIGHT = 0.1
"""Weight of the side head's cross-entropy (section 3.3)."""
SHARPNESS = 1e6
"""L of the four ReLUs."""
AVERAGE_DECAY = 0.95
"""Of the moving average of a block's indicator: what a step leaves of the average before it."""
DISCARDED = 0.999
"""A moving average from here on counts as 1, which it reaches only in the limit: 135 steps after the last response."""


def largest_response(response: Tensor) -> Tensor:
    """max|F| over a whole batch: float32 scalar, without gradient."""
    return response.detach().abs().amax().float()  # aminmax is many times slower on the CPU in channels_last


def strict_identity(response: Tensor, epsilon: float) -> Tensor:
    """The gate S of a residual response F (eq. 3), by comparison.

    Args:
        response: F(x), [N, C, H, W] or of any other shape: a whole batch.
        epsilon: ε >= 0; with 0 the gate is always open.

    Returns:
        float32 scalar 0 or 1, without gradient.
    """
    return is_open(largest_response(response), epsilon)


def is_open(largest: Tensor, epsilon: float) -> Tensor:
    """The gate S from max|F|, which may be the maximum over several processes: float32 0 or 1."""
    return (largest >= epsilon).float()


def strict_identity_by_relus(response: Tensor, epsilon: float, sharpness: float = SHARPNESS) -> Tensor:
    """The gate as the authors write it, of four ReLUs (section 3.2): equal to `strict_identity`, its gradient too,
    unless max|F| lies within 1 / `sharpness` above ε."""
    size = (F.relu(response - epsilon) + F.relu(-response - epsilon)).amax()
    return F.relu(1 - sharpness * F.relu(1 - sharpness * size))


def mostly(fraction: float) -> bool:
    """Whether a block that was discarded in this fraction of steps counts as discarded: in half of them or more."""
    return fraction >= 0.5


def loss(logits: Tensor, side_logits: Tensor | None, labels: Tensor, side_weight: float = SIDE_WEIGHT) -> Tensor:
    """Cross-entropy of the logits [N, classes], plus that of the side head's, weighted: a scalar (section 3.3)."""
    total = F.cross_entropy(logits, labels)
    return total if side_logits is None else total + side_weight * F.cross_entropy(side_logits, labels)


def relative_size(weight: Tensor) -> float:
    """How large a convolution's weights [O, I, h, w] are: root mean square over the standard deviation of He's
    initialisation, sqrt(2 / (O h w)). 1 at the start, towards 0 in a discarded block."""
    initial = (2 / weight[:, 0].numel()) ** 0.5
    return float(weight.detach().square().mean().sqrt()) / initial


def relative_sizes(blocks: Iterable[nn.Module]) -> list[float]:
    """Of each block, the `relative_size` of the convolution that is largest by it, shortcuts aside."""
    return [max(relative_size(conv.weight) for conv in _residual_convolutions(block)) for block in blocks]


def _residual_convolutions(block: nn.Module) -> Iterable[nn.Conv2d]:
    return (part for name, part in block.named_children() if isinstance(part, nn.Conv2d) and name != "shortcut")


@dataclass(frozen=True)
class Milestones:
    """A learning rate that falls: `rates[i]` from `epochs[i - 1]` on, `rates[0]` before."""

    rates: Sequence[float]
    epochs: Sequence[int]

    def at(self, epoch: int) -> float:
        """The rate in an epoch, counted from 0."""
        return self.rates[sum(epoch >= milestone for milestone in self.epochs)]


@dataclass
class AdaptiveSchedule:
    """The learning rate, which starts anew whenever a block is lost (section 3.4); a run's checkpoints carry it.

    A block is lost when more blocks are discarded in an epoch than in the epoch before.

    Args:
        base: the schedule until the first loss.
        restarted: the schedule from a loss on, whose epochs are counted from the one in which the block was lost;
            None never restarts.
    """

    base: Milestones
    restarted: Milestones | None = None
    restarts: list[dict[str, Any]] = field(default_factory=list)
    """What happened: `epoch` (counted from 0) of each loss, and `blocks`, those discarded in it and not before."""
    discarded: list[int] = field(default_factory=list)
    """The blocks that were discarded in the last epoch."""

    def learning_rate(self, epoch: int) -> float:
        """The rate in an epoch, counted from 0."""
        if self.restarted is None or not self.restarts:
            return self.base.at(epoch)
        return self.restarted.at(epoch - self.restarts[-1]["epoch"])

    def update(self, epoch: int, discarded: Sequence[int]) -> list[int]:
        """Take note of the blocks discarded in an epoch; returns those for which the schedule starts anew, or none."""
        lost = [] if len(discarded) <= len(self.discarded) else sorted(set(discarded) - set(self.discarded))
        self.discarded = sorted(discarded)
        if lost and self.restarted is not None:
            self.restarts.append({"epoch": epoch, "blocks": lost})
            return lost
        return []

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"restarts": self.restarts, "discarded": self.discarded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.restarts, self.discarded = state["restarts"], state["discarded"]
