"""Checks of the options that describe a network: types and ranges, before anything is allocated. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resless.errors import InputError, check, unknown_name

MAX_SIZE = 65_536
MAX_IMAGE_SIZE = 4_096
MAX_DEPTH = 10_000

IMAGENET_STAGES = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
"""Kind of block, and number of blocks in each stage, of the ImageNet ResNets by their depth."""


def whole_number(field: str, value: Any, low: int = 1, high: int = MAX_SIZE) -> int:
    """`value`, if it is an int in low..high; InputError otherwise."""
    valid = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    check(valid, field, value, f"a whole number in {low}..{high}")
    return value


def choice(field: str, value: Any, allowed: Sequence[str]) -> str:
    """`value`, if it is one of the strings `allowed`; InputError otherwise."""
    check(isinstance(value, str), field, value, f"one of {', '.join(allowed)}")
    if value not in allowed:
        raise unknown_name(field, value, allowed)
    return value


def widths(field: str, value: Any, count: int) -> tuple[int, ...]:
    """`value` as a tuple, if it is a list or tuple of `count` layer widths; InputError otherwise."""
    check(isinstance(value, list | tuple) and len(value) == count, field, value, f"a list of {count} whole numbers")
    return tuple(whole_number(f"{field}[{position}]", width) for position, width in enumerate(value))


def kept_indices(field: str, value: Any, total: int) -> tuple[int, ...] | None:
    """`value` as a tuple, if it lists increasing indices in 0..total-1; None (all are kept) stays None.

    Raises InputError for anything else, an empty list included.
    """
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"{field} must be a non-empty list of whole numbers, or left out to keep all {total}")
    previous = -1
    for position, index in enumerate(value):
        whole_number(f"{field}[{position}]", index, 0, total - 1)
        check(index > previous, f"{field}[{position}]", index, f"greater than the index before it, {previous}")
        previous = index
    return tuple(value)


def cifar_depth(depth: int, block: str | None = None) -> tuple[str, int]:
    """Kind of block and number of blocks per stage of a three-stage CIFAR ResNet.

    A stage of n basic blocks gives 6n+2 layers, of n bottleneck blocks 9n+2. Where `block` is left out and both
    fit, blocks are basic, except for the papers' 164 layers, which are bottleneck.

    Raises:
        InputError: no n gives this depth; the nearest valid depths are listed.
    """
    layers_per_block = {"basic": 6, "bottleneck": 9}
    if block is None:
        order = ["bottleneck", "basic"] if depth == 164 else ["basic", "bottleneck"]
    else:
        order = [choice("block", block, list(layers_per_block))]
    for kind in order:
        blocks, rest = divmod(depth - 2, layers_per_block[kind])
        if rest == 0 and blocks >= 1 and depth <= MAX_DEPTH:
            return kind, blocks
    valid = sorted({2 + layers_per_block[kind] * n for kind in order for n in range(1, (MAX_DEPTH - 2) // 6 + 1)})
    nearest = sorted(sorted((d for d in valid if d <= MAX_DEPTH), key=lambda d: abs(d - depth))[:4])
    rule = " or ".join(f"{layers_per_block[kind]}n+2 ({kind} blocks)" for kind in order)
    raise InputError(f"depth is {depth}, but must be {rule}, at most {MAX_DEPTH}: nearest are {nearest}")
