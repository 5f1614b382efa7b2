"""torchvision's ImageNet networks for classification, as they are; its ResNets are in `torchvision_resnet`.

Built, named and initialised as torchvision does it, so that its weights load key by key.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models import get_model

from resless.errors import InputError, check
from resless.models import options

# Without their classifiers at inner layers, which would make a pass in training give more than logits.
_OPTIONS: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}
_MIN_SIZES = {"alexnet": 63, "inception_v3": 75}
"""Sides of the smallest images of which something is left after the last pooling, where they are large; of others
torch's own error tells."""


def network(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """torchvision's network of this name: [N, 3, H, W] -> logits [N, num_classes].

    Args:
        name: one of `options.TORCHVISION_NETWORKS`.
        num_classes: number of logits.
        in_channels: 3, as of torchvision's networks.

    Raises:
        InputError: another number of channels; in the forward pass, images that are too small.
    """
    check(in_channels == 3, "in_channels", in_channels, "3 for torchvision's networks")
    model = get_model(name, weights=None, num_classes=num_classes, **_OPTIONS.get(name, {}))
    if name in _MIN_SIZES:
        model.register_forward_pre_hook(partial(_refuse_smaller, name))
    return model


def vision_transformer(name: str, *, num_classes: int, in_channels: int, image_size: int = 224) -> nn.Module:
    """torchvision's vision transformer of this name: [N, 3, S, S] -> logits [N, num_classes].

    Args:
        name: vit_b_16, b for base and 16 for the side of a patch in pixels; also b_32, l_16, l_32, h_14.
        num_classes: number of logits.
        in_channels: 3, as of torchvision's networks.
        image_size: S of the images, a multiple of the side of a patch.

    Raises:
        InputError: another number of channels, an image size that patches do not fill.
    """
    check(in_channels == 3, "in_channels", in_channels, "3 for torchvision's networks")
    patch = int(name.rpartition("_")[2])
    options.whole_number("image_size", image_size, patch, options.MAX_IMAGE_SIZE)
    check(image_size % patch == 0, "image_size", image_size, f"a multiple of {patch}, the side of a patch")
    return get_model(name, weights=None, num_classes=num_classes, image_size=image_size)


def _refuse_smaller(name: str, model: nn.Module, args: tuple[Tensor]) -> None:
    """A forward pre-hook, of images that are too small for this network."""
    (height, width), smallest = args[0].shape[-2:], _MIN_SIZES[name]
    if min(height, width) < smallest:
        raise InputError(
            f"the images are {height} x {width}, but torchvision/{name} takes {smallest} x {smallest} or more"
        )
