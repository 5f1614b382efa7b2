"""Running the blocks of a residual network by a policy: what is dropped is not computed.

A kept block gives relu(shortcut(x) + residual(x)), a dropped one shortcut(x), without ReLU. Three executors give the
same features, up to the rounding of kernels that see batches of other sizes:

    masked     every block on every image, the results selected: what the authors' code does; nothing is saved
    gathered   each block on the images that keep it, at once
    grouped    the images of each policy through that policy's network, group by group

The last two wait for the device once a batch, when the policy comes to the host; which images each block runs on is
known from then on.

Letters: N images, C channels, H x W pixels, K blocks. Blocks have `shortcut` and `residual`, as those of
`resless.models.resnet`; of a block that was removed only the shortcut is left, and no policy decides on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from resless.errors import InputError, check
from torch import Tensor

EXECUTORS = ("auto", "masked", "gathered", "grouped")

IMAGES_PER_POLICY = 64
"""From so many images a policy on, on average, `auto` groups: there are then few groups, and large ones.

Measured on one core of an AMD EPYC, shared with other work, interleaved, batch 256 of 2 to 32 random policies that keep
30 to 70 % of the blocks. In bf16 grouping is 1.0 to 1.3 times as fast as gathering at 128 images a policy, 0.9 to 1.1
at 64, 0.8 to 0.9 at 32, 0.7 to 0.9 below (ResNet-32 and 110). In float32 (ResNet-32) it is 1.1 to 1.4 times as fast at
all of these, down to 8; the bound is bf16's.
"""


class Block(Protocol):
    """A residual block, its two parts apart; called as a whole, relu(shortcut(x) + residual(x))."""

    training: bool

    def __call__(self, x: Tensor) -> Tensor: ...
    def shortcut(self, x: Tensor) -> Tensor: ...
    def residual(self, x: Tensor) -> Tensor: ...


def run(blocks: Sequence[Block], x: Tensor, policy: Tensor, executor: str = "auto") -> Tensor:
    """The features after the blocks.

    Args:
        blocks: in order, K of them residual blocks, the others what is left of removed ones.
        x: features before them, [N, C, H, W]; without gradients its memory may be written to.
        policy: which blocks each image keeps, 0/1 of any type [N, K].
        executor: one of EXECUTORS. `auto` groups where there are several policies, each of IMAGES_PER_POLICY images
            or more on average, and gathers otherwise; in training mode it gathers, so that a block's batch norm sees
            all the images that keep it. Of one image or one policy, all but `masked` make the plain network.

    Raises:
        InputError: a policy of another shape or with other values, an unknown executor.
    """
    check(executor in EXECUTORS, "executor", executor, f"one of {', '.join(EXECUTORS)}")
    decided = [hasattr(block, "residual") for block in blocks]
    kept = np.zeros((len(x), len(blocks)), dtype=bool)
    kept[:, decided] = _on_host(policy, len(x), sum(decided))
    if executor == "masked":
        return _masked(blocks, x, policy.bool())
    if executor == "grouped" or (executor == "auto" and not any(block.training for block in blocks)):
        policies, group = _distinct(kept)
        few = len(policies) * IMAGES_PER_POLICY <= len(x)
        if len(policies) > 1 and (executor == "grouped" or few):
            return _grouped(blocks, x, policies, group)
    return _gathered(blocks, x, kept)


def whole(blocks: Sequence[Block], x: Tensor) -> Tensor:
    """The features after the blocks, of which none is skipped; without gradients the memory of x may be written to."""
    for block in blocks:
        x = _on_some(block, x, slice(0, len(x)))
    return x


def _masked(blocks: Sequence[Block], x: Tensor, policy: Tensor) -> Tensor:
    columns = iter(policy.unbind(dim=1))
    for block in blocks:
        shortcut = block.shortcut(x)
        if hasattr(block, "residual"):
            kept = next(columns)[:, None, None, None]
            x = torch.where(kept, torch.relu(shortcut + block.residual(x)), shortcut)
        else:
            x = shortcut
    return x


def _gathered(blocks: Sequence[Block], x: Tensor, kept: np.ndarray) -> Tensor:
    moves, spans, back = _arranged(kept)
    orders: Iterator[Tensor] = iter(())
    if moves:  # all orders in one copy to the device
        orders = iter(torch.from_numpy(np.stack([*moves.values(), back])).to(x.device, non_blocking=True))
    for index, (block, span) in enumerate(zip(blocks, spans, strict=True)):
        if index in moves:
            x = _reordered(x, next(orders))
        x = _on_some(block, x, span)
    return _reordered(x, next(orders)) if moves else x


def _arranged(kept: np.ndarray) -> tuple[dict[int, np.ndarray], list[slice], np.ndarray]:
    """Where the images are to lie, so that those which keep a block lie in a row, and none of them is ever copied back.

    One order does for two blocks: first the images that keep only the one, then both, then only the other. It stays
    for later blocks as long as it does for them.

    Returns:
        The blocks before which the images move, each with the places that they are taken from, [N]; for every block
        the places of the images that keep it; and the move at the end that puts the images back.
    """
    order = np.arange(len(kept))
    moves, spans = {}, []
    some = np.flatnonzero(kept.any(axis=0) & ~kept.all(axis=0))  # any order does for the others
    for index, column in enumerate(kept.T):
        span = _span(column[order])
        if column[order][span].all():
            spans.append(span)
            continue
        later = some[some > index]
        following = kept[:, later[0]] if len(later) else np.zeros_like(column)
        moves[index] = np.argsort(np.where(column, following, 3 - following)[order], kind="stable")
        order = order[moves[index]]
        spans.append(_span(column[order]))
    return moves, spans, np.argsort(order)


def _span(column: np.ndarray) -> slice:
    """From the first to the last image that keeps a block, bool [N]."""
    places = np.flatnonzero(column)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def _reordered(x: Tensor, order: Tensor) -> Tensor:
    """Image order[i] at place i, in the memory layout of x."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, order).permute(0, 3, 1, 2)
    return x.index_select(0, order)


def _on_some(block: Block, x: Tensor, span: slice) -> Tensor:
    """The block on the images of a span, its shortcut on all."""
    if span.start == span.stop:
        return block.shortcut(x)
    if torch.is_grad_enabled():
        if span.stop - span.start == len(x):
            return block(x)
        shortcut = block.shortcut(x)
        outputs = torch.relu(shortcut[span] + block.residual(x[span]))
        return torch.cat([shortcut[: span.start], outputs, shortcut[span.stop :]])
    residual = block.residual(x[span])
    x = block.shortcut(x)
    x[span].add_(residual).relu_()
    return x


def _grouped(blocks: Sequence[Block], x: Tensor, policies: np.ndarray, group: np.ndarray) -> Tensor:
    """`policies` are the distinct ones, bool [P, K], P >= 1; `group` says which of them each image has, int [N]."""
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group).tolist()
    there, back = torch.from_numpy(np.stack([order, np.argsort(order)])).to(x.device, non_blocking=True)
    parts = _reordered(x, there).split(sizes)
    outputs = [_plain(blocks, part, kept) for part, kept in zip(parts, policies, strict=True)]
    return _reordered(torch.cat(outputs), back)


def _plain(blocks: Sequence[Block], x: Tensor, kept: np.ndarray) -> Tensor:
    """The network of one policy, bool [K]."""
    for block, keep in zip(blocks, kept, strict=True):
        x = _on_some(block, x, slice(0, len(x) if keep else 0))
    return x


def _on_host(policy: Tensor, images: int, blocks: int) -> np.ndarray:
    """The policy as bool [N, K] on the host, checked: the batch's one synchronisation."""
    if policy.shape != (images, blocks):
        wanted = f"[{images}, {blocks}]: an image a row, a block a column"
        raise InputError(f"the policy is {list(policy.shape)}, but must be {wanted}")
    values = policy.detach().cpu()
    kept = values.bool()
    strange = values != kept
    if strange.any():
        raise InputError(f"the policy holds {values[strange][0]:g}, but its values must be 0 (dropped) or 1 (kept)")
    return kept.numpy()


def _distinct(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows, bool [P, K], and which of them each row is, int [N]."""
    packed = np.packbits(kept, axis=1)
    _, first, group = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    return kept[first], group.reshape(-1)
