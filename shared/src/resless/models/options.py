"""Checks of the options that describe a network: types and ranges, before anything is allocated. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resless.errors import InputError, check, unknown_name

MAX_SIZE = 65_536
MAX_IMAGE_SIZE = 4_096
MAX_DEPTH = 10_000
MAX_WIDENING = 1_024
"""Of the first stage's 64 channels at most to MAX_SIZE."""

IMAGENET_STAGES = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
"""Kind of block, and number of blocks in each stage, of the ImageNet ResNets by their depth."""

TORCHVISION_NETWORKS = (
    *("alexnet", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"),
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
    *("squeezenet1_0", "squeezenet1_1", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5"),
    *("shufflenet_v2_x2_0", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
    *(f"efficientnet_b{size}" for size in range(8)),
    *(f"efficientnet_v2_{size}" for size in "sml"),
    *(f"convnext_{size}" for size in ("tiny", "small", "base", "large")),
    *(f"swin{version}_{size}" for version in ("", "_v2") for size in "tsb"),
)
"""Of torchvision's networks for classification those that take images of more than one size, ResNets left out. RegNets
cannot be built without memory for their weights, as is done to check a model folder first."""
TORCHVISION_TRANSFORMERS = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14")


def whole_number(field: str, value: Any, low: int = 1, high: int = MAX_SIZE) -> int:
    """`value`, if it is an int in low..high; InputError otherwise."""
    valid = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    check(valid, field, value, f"a whole number in {low}..{high}")
    return value


def probability(field: str, value: Any) -> float:
    """`value`, if it is a number of at least 0 and below 1; InputError otherwise."""
    valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    check(valid, field, value, "a number of at least 0 and below 1")
    return value


def share(field: str, value: Any) -> float:
    """`value`, if it is a number above 0 and at most 1; InputError otherwise."""
    valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
    check(valid, field, value, "a number above 0 and at most 1")
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


def kept_branches(field: str, value: Any, total: int) -> tuple[int, ...] | None:
    """As `kept_indices`, but the list may be empty: a network without any branch is one, too."""
    return () if value in ((), []) else kept_indices(field, value, total)


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
    rule = " or ".join(f"{layers_per_block[kind]}n+2 ({kind} blocks)" for kind in order)
    raise _no_such_depth(depth, rule, [d for d in valid if d <= MAX_DEPTH])


def wide_resnet(depth: int, widening: int) -> int:
    """Number of blocks in each of a Wide ResNet's three stages; depth is 6n+4. InputError out of range."""
    whole_number("the widening factor", widening, 1, MAX_WIDENING)
    return _blocks_per_stage(depth, 6, 4)


def resnext(depth: int, cardinality: int, width: int) -> int:
    """Number of blocks in each of a CIFAR ResNeXt's three stages; depth is 9n+2. InputError out of range."""
    # The third stage's convolutions have four times as many channels.
    whole_number("cardinality x width", cardinality * width, 1, MAX_SIZE // 4)
    return _blocks_per_stage(depth, 9, 2)


def densenet(depth: int, growth: int) -> int:
    """Number of layers in each of a DenseNet's three blocks; depth is 3n+4. InputError out of range."""
    whole_number("depth x growth rate", depth * growth, 1, MAX_SIZE)
    return _blocks_per_stage(depth, 3, 4)


def densenet_bc(depth: int, growth: int) -> int:
    """Number of layers of two convolutions in each of a DenseNet-BC's three blocks; depth is 6n+4; as `densenet`."""
    whole_number("depth x growth rate", depth * growth, 1, MAX_SIZE)
    return _blocks_per_stage(depth, 6, 4)


def _blocks_per_stage(depth: int, layers: int, others: int) -> int:
    """n of the depth `layers` n + `others`. Raises InputError, which lists the nearest valid depths."""
    valid = range(layers + others, MAX_DEPTH + 1, layers)
    if depth not in valid:
        raise _no_such_depth(depth, f"{layers}n+{others}", valid)
    return (depth - others) // layers


def _no_such_depth(depth: int, rule: str, valid: Sequence[int]) -> InputError:
    nearest = sorted(sorted(valid, key=lambda other: abs(other - depth))[:4])
    return InputError(f"depth is {depth}, but must be {rule}, at most {MAX_DEPTH}: nearest are {nearest}")
