"""Which number a network gives a class that a data set numbers otherwise."""

from __future__ import annotations

import re

import pytest
from resless.data.classes import numbers_of
from resless.errors import InputError

PETS = ["cat", "cow", "dog", "owl"]


def digits(count: int) -> list[str]:
    return [str(number) for number in range(count)]


@pytest.mark.parametrize(
    ("names", "known", "fixed", "numbers"),
    [
        (PETS, PETS, False, None),
        (PETS, tuple(PETS), True, None),
        (["dog", "cat", "owl", "cow"], PETS, False, [2, 0, 3, 1]),
        (["cat", "owl"], PETS, False, [0, 3]),
        (["dog"], PETS, True, [2]),
        # Numbers are what they say, of whichever classes the network has names.
        (digits(3), PETS, False, [0, 1, 2]),
        (digits(4), PETS, False, [0, 1, 2, 3]),
        (digits(8), digits(10), False, list(range(8))),
        # Folders "0", "1" and "3" are sorted as the classes 0, 1 and 2.
        (["0", "1", "3"], digits(4), False, [0, 1, 3]),
        (["0", "1", "2"], sorted(digits(12)), False, [0, 1, 4]),
        (digits(12), sorted(digits(12)), False, [sorted(digits(12)).index(name) for name in digits(12)]),
        # The network has no names to compare.
        (PETS, digits(4), False, None),
        # ImageNet, by words and by codes.
        (["tench", "goldfish"], ["n01440764", "n01443537"], True, None),
        # CIFAR-100, of which the hub spells one class in its own way.
        (["cow", "cra", "dog"], ["cow", "crab", "dog"], True, None),
    ],
)
def test_classes_are_numbered_by_their_names(
    names: list[str], known: list[str], fixed: bool, numbers: list[int] | None
) -> None:
    found = numbers_of(names, known, "the images", fixed)
    assert (found if found is None else found.tolist()) == numbers
    assert found is None or found.dtype == "int64"


@pytest.mark.parametrize(
    ("names", "known", "fixed", "shown"),
    [
        (["cat", "hen"], PETS, False, "show hen, not only the 4 classes that the network is for, cat, cow, dog, owl: "),
        (["ant", "bee", "fly", "gnat"], PETS, False, "show ant, bee, fly, gnat, not only the 4 classes"),
        (["bee", "cat", "fly", "gnat"], PETS, True, "show bee, fly, gnat, not only"),  # cats have another number
        (["cow", "cra", "dog"], ["cow", "crab", "dog"], False, "show cra, not only"),
        (["0", "1", "2"], ["0", "1", "3"], False, "show 2, not only the 3 classes that the network is for, 0, 1, 3"),
        (["ant", "bee"], PETS, True, "show ant, bee, not only"),
        (PETS[:3], digits(4), False, "show cat, cow, dog, not only the 4 classes that the network is for, 0, 1, 2, 3"),
        (digits(5), PETS, False, "show 0, 1, 2, 3, 4, not only"),
        (
            digits(12),
            digits(10),
            False,
            "show 10, 11, not only the 10 classes that the network is for, 0, 1, 2, 3, 4, ...",
        ),
        (["crane", "cat"], ["crane", "crane", "cat"], False, "the images or the network have two classes of one"),
    ],
)
def test_other_classes_are_refused_by_their_names(names: list[str], known: list[str], fixed: bool, shown: str) -> None:
    with pytest.raises(InputError, match=re.escape(shown)):
        numbers_of(names, known, "the images", fixed)
