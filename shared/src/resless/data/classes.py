"""Classes by their names: the numbers that a network gives them, whatever a data set numbers them as. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from resless.errors import InputError

_SHOWN = 5


def numbers_of(names: Sequence[str], known: Sequence[str], images: str, fixed: bool) -> np.ndarray | None:
    """For each class of some images its number in a network, int64; None where the images keep numbers and names.

    Sorted folders of images number their classes anew where one is missing, tables in the order that they state. What
    counts is the name, where both have names; else the number.

    Args:
        names: the classes of the images, in the order of their labels; "0", "1", ... where they have no names.
        known: those of the network, in the order of its logits, likewise.
        images: what messages call the images.
        fixed: whether a class has the same number in every copy of the data set, by whatever name: ImageNet's classes
            are called by words on the hub and by codes in folders.

    Raises:
        InputError: classes that the network does not know, or that cannot be told apart by their names.
    """
    if list(names) == list(known):
        return None
    # First by name: sorted folders that are called by numbers, 0, 1, 10, 11, 2, have others than they are called.
    if set(names) <= set(known) and len(set(known)) == len(known) and len(set(names)) == len(names):
        return np.array([known.index(name) for name in names])
    if _are_numbers(names) and len(names) <= len(known) and not any(name.isdigit() for name in known):
        return np.arange(len(names))
    if len(names) == len(known) and (_are_numbers(known) or (fixed and _at_the_same_places(names, known))):
        return None
    foreign = [name for name in names if name not in known]
    if not foreign:
        raise InputError(f"{images} or the network have two classes of one name, which cannot be told apart")
    raise InputError(
        f"{images} show {_listed(foreign)}, not only the {len(known)} classes that the network is for, "
        f"{_listed(known)}: give images of these"
    )


def _at_the_same_places(names: Sequence[str], known: Sequence[str]) -> bool:
    """Whether names that both have are those of the same numbers; copies of a data set spell some differently."""
    return all(name == other or name not in known for name, other in zip(names, known, strict=True))


def _are_numbers(names: Sequence[str]) -> bool:
    return list(names) == [str(number) for number in range(len(names))]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
