"""Automatic augmentation, image by image: torchvision's policies under the names of its reference recipes.

torchvision, which takes half a second to import, is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from resless.errors import check

if TYPE_CHECKING:
    from torchvision.transforms import InterpolationMode

Transform: TypeAlias = Callable[[Tensor], Tensor]
"""uint8 [C, H, W] of any size -> uint8 [C, size, size]; draws from torch's default CPU generator only."""

_AUTO_AUGMENT = ("imagenet", "cifar10", "svhn")
NAMES = ("ra", "ta_wide", "augmix", *_AUTO_AUGMENT)


def auto_augment(name: str, interpolation: str = "bilinear") -> Transform:
    """The policy `name`, in torchvision's own settings: uint8 [C, H, W] -> uint8 [C, H, W], C = 1 or 3.

    `ra` is RandAugment (Cubuk et al., 2020: 2 changes of magnitude 9 of 30), `ta_wide` TrivialAugment (Müller and
    Hutter, 2021), `augmix` AugMix (Hendrycks et al., 2020: severity 3 of 10), `imagenet`, `cifar10` and `svhn` are what
    AutoAugment found on these data sets (Cubuk et al., 2019). `interpolation` is that of shears, rotations and
    translations, whose empty corners are black. No policy needs colours: the change of saturation that most of them
    know leaves a grey image as it is.

    Policies change PIL's images, as in torchvision's reference recipes: on tensors they know no bicubic interpolation.
    Only its AugMix is written for tensors, hence InputError for `augmix` with bicubic; and for other names.
    """
    from torchvision.transforms import v2

    check(name in NAMES, "auto_augment", name, f"one of {', '.join(NAMES)}")
    mode = interpolation_mode(interpolation)
    if name == "augmix":
        check(interpolation == "bilinear", "interpolation", interpolation, "bilinear with augmix")
        return v2.AugMix(interpolation=mode)
    if name in _AUTO_AUGMENT:
        policy = v2.AutoAugment(v2.AutoAugmentPolicy(name), interpolation=mode)
    else:
        policy = {"ra": v2.RandAugment, "ta_wide": v2.TrivialAugmentWide}[name](interpolation=mode)
    return v2.Compose([v2.ToPILImage(), policy, v2.PILToTensor()])


def interpolation_mode(name: str) -> InterpolationMode:
    """torchvision's constant for `bilinear` or `bicubic`."""
    from torchvision.transforms import InterpolationMode

    check(name in ("bilinear", "bicubic"), "interpolation", name, "bilinear or bicubic")
    return InterpolationMode(name)


def transform_each(images: Tensor, transform: Transform, seeds: Tensor) -> Tensor:
    """`transform` of every image alone, which draws from a generator seeded by its own one of `seeds`.

    images: uint8 [N, C, H, W] on the CPU; seeds: int64 [N], 0 or more. Returns uint8 [N, C, H, W]. torch's default
    generator is afterwards what it was before.
    """
    changed = torch.empty_like(images)
    with torch.random.fork_rng(devices=[]):
        for index, seed in enumerate(seeds.tolist()):
            torch.default_generator.manual_seed(seed)
            changed[index] = transform(images[index])
    return changed
