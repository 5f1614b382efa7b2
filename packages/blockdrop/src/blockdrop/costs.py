"""What an image costs under a policy, in MACs (1 multiply-add = 1), the policy network included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from resless import costs
from torch import Tensor

from blockdrop.model import BlockDropNet

PAPER_UNITS = 2
"""The paper counts a multiply-add as two operations: its "FLOPs" are so many times our MACs."""


@dataclass(frozen=True)
class BlockCosts:
    """MACs of one image of a stated size, from layers that ran."""

    always: int
    """Of stem, shortcuts and classifier: what no policy saves."""
    blocks: tuple[int, ...]
    """Of each block's residual branch."""
    policy: int
    """Of the policy network."""

    @property
    def dense(self) -> int:
        """Of the residual network with all its blocks, without a policy network."""
        return self.always + sum(self.blocks)

    def per_image(self, kept: np.ndarray) -> np.ndarray:
        """MACs [N] of images under policies, bool [N, K], the policy network included."""
        return self.policy + self.always + kept.astype(np.int64) @ np.array(self.blocks)


def count(net: BlockDropNet, example: Tensor) -> BlockCosts:
    """Count the costs of one image [1, C, H, W], running each block alone."""
    example = example.to(next(net.parameters()).device)
    none = torch.zeros(1, net.num_blocks, dtype=torch.bool)
    one = torch.eye(net.num_blocks, dtype=torch.bool)[:, None]
    always = costs.macs(net.resnet, example, none)
    blocks = tuple(costs.macs(net.resnet, example, policy) - always for policy in one)
    return BlockCosts(always, blocks, costs.macs(net.policy, example))
