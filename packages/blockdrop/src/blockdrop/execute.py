"""Running the blocks of a residual network by a policy: what is dropped is not computed.

A kept block gives relu(shortcut(x) + residual(x)), a dropped one shortcut(x), without ReLU. Three executors give the
same features, up to the rounding of kernels that see batches of other sizes:

    masked     every block on every image, the results selected: what the authors' code does; nothing is saved
    gathered   each block on the images that keep it, at once
    grouped    the images of each policy through that policy's network, group by group

The last two wait for the device once a batch, when the policy comes to the host; which images each block runs on is
known from then on.

Letters: N images, C channels, H x W pixels, K blocks. Blocks have `shortcut` and `residual`, as those of
`resless.models.resnet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from resless.errors import InputError, check
from torch import Tensor, nn

EXECUTORS = ("auto", "masked", "gathered", "grouped")

IMAGES_PER_POLICY = 32
"""From so many images a policy on, on average, `auto` groups: gathering then costs more than small groups do."""


class Block(Protocol):
    """A residual block, its two parts apart; called as a whole, relu(shortcut(x) + residual(x))."""

    training: bool

    def __call__(self, x: Tensor) -> Tensor: ...
    def shortcut(self, x: Tensor) -> Tensor: ...
    def residual(self, x: Tensor) -> Tensor: ...


def run(blocks: Sequence[Block], x: Tensor, policy: Tensor, executor: str = "auto") -> Tensor:
    """The features after the blocks.

    Args:
        blocks: K residual blocks, in order.
        x: features before them, [N, C, H, W]; without gradients its memory may be written to.
        policy: which blocks each image keeps, 0/1 of any type [N, K].
        executor: one of EXECUTORS. `auto` takes the plain network for one image and for one policy, groups where
            there are IMAGES_PER_POLICY images a policy or more, and gathers otherwise; in training mode it gathers,
            so that a block's batch norm sees all the images that keep it.

    Raises:
        InputError: a policy of another shape or with other values, an unknown executor.
    """
    check(executor in EXECUTORS, "executor", executor, f"one of {', '.join(EXECUTORS)}")
    kept = _on_host(policy, len(x), len(blocks))
    if executor == "masked":
        return _masked(blocks, x, policy.bool())
    if executor == "gathered" or (executor == "auto" and any(block.training for block in blocks)):
        return _gathered(blocks, x, kept)
    policies, group = _distinct(kept)
    if executor == "grouped" or len(policies) == 1 or len(policies) * IMAGES_PER_POLICY <= len(x):
        return _grouped(blocks, x, policies, group)
    return _gathered(blocks, x, kept)


def _masked(blocks: Sequence[Block], x: Tensor, policy: Tensor) -> Tensor:
    for block, kept in zip(blocks, policy.unbind(dim=1), strict=True):
        shortcut = block.shortcut(x)
        x = torch.where(kept[:, None, None, None], torch.relu(shortcut + block.residual(x)), shortcut)
    return x


def _gathered(blocks: Sequence[Block], x: Tensor, kept: np.ndarray) -> Tensor:
    images = [np.flatnonzero(column) for column in kept.T]
    # All indices in one copy to the device.
    chosen = torch.from_numpy(np.concatenate(images)).to(x.device, non_blocking=True)
    for block, indices in zip(blocks, chosen.split([len(part) for part in images]), strict=True):
        if len(indices) == 0:
            x = block.shortcut(x)
        elif len(indices) == len(x):
            x = block(x)
        else:
            x = _on_some(block, x, indices)
    return x


def _on_some(block: Block, x: Tensor, indices: Tensor) -> Tensor:
    """The block on the images that keep it, its shortcut on all."""
    inputs = x.index_select(0, indices)
    residual = block.residual(inputs)
    if isinstance(block.shortcut, nn.Identity):
        shortcut, chosen = x, inputs
    else:
        shortcut = block.shortcut(x)
        chosen = shortcut.index_select(0, indices)
    outputs = residual.add_(chosen).relu_().to(shortcut.dtype)
    if torch.is_grad_enabled():
        return shortcut.index_copy(0, indices, outputs)
    return shortcut.index_copy_(0, indices, outputs)


def _grouped(blocks: Sequence[Block], x: Tensor, policies: np.ndarray, group: np.ndarray) -> Tensor:
    """`policies` are the distinct ones, bool [P, K]; `group` says which of them each image has, int [N]."""
    if len(policies) == 1:
        return _plain(blocks, x, policies[0])
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group).tolist()
    sorted_images = x.index_select(0, torch.from_numpy(order).to(x.device, non_blocking=True))
    outputs = [_plain(blocks, part, kept) for part, kept in zip(sorted_images.split(sizes), policies, strict=True)]
    back = torch.from_numpy(np.argsort(order)).to(x.device, non_blocking=True)
    return torch.cat(outputs).index_select(0, back)


def _plain(blocks: Sequence[Block], x: Tensor, kept: np.ndarray) -> Tensor:
    """The network of one policy, bool [K]."""
    for block, keep in zip(blocks, kept, strict=True):
        x = block(x) if keep else block.shortcut(x)
    return x


def _on_host(policy: Tensor, images: int, blocks: int) -> np.ndarray:
    """The policy as bool [N, K] on the host, checked: the batch's one synchronisation."""
    if policy.shape != (images, blocks):
        wanted = f"[{images}, {blocks}]: an image a row, a block a column"
        raise InputError(f"the policy is {list(policy.shape)}, but must be {wanted}")
    values = policy.detach().cpu().numpy()
    kept = values.astype(bool)
    if policy.dtype != torch.bool and not np.array_equal(values, kept):
        strange = values[values != kept].flat[0]
        raise InputError(f"the policy holds {strange:g}, but its values must be 0 (dropped) or 1 (kept)")
    return kept


def _distinct(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows, bool [P, K], and which of them each row is, int [N]."""
    packed = np.packbits(kept, axis=1)
    _, first, group = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    return kept[first], group.reshape(-1)
