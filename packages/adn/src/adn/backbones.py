"""The plain networks that can be made adaptive, by name: torchvision's, their variant d, resless's CIFAR ResNets."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

from resless import models
from resless.errors import InputError, check, unknown_name
from resless.models import options as checks
from resless.models.resnet import initialise_convolutions
from torch import nn
from torchvision import models as torchvision_models

IMAGENET_RESNETS = {
    "resnet50": "torchvision/resnet50",
    "resnet101": "torchvision/resnet101",
    "resnet50d": "torchvision/resnet50",
    "resnet101d": "torchvision/resnet101",
}
"""What they are built from. `resnet50` and `resnet101` are not the CIFAR ResNets that these depths would give, too."""
VARIANT_D = ("resnet50d", "resnet101d")
OTHERS = ("mobilenet_v2", "swin_t", "swin_v2_t", "vit_b_16", "vit_b_32")
PATCHES = {"vit_b_16": 16, "vit_b_32": 32}
"""Side of the patches, in pixels, which the images must be whole numbers of."""
IMAGE_SIZE = 224


def names() -> list[str]:
    """The names to list, sorted; CIFAR ResNets of any other valid depth can be created too."""
    return sorted({*IMAGENET_RESNETS, *OTHERS, *(name for name in models.names() if name.startswith("resnet"))})


def plain(name: str, *, num_classes: int, in_channels: int, options: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised plain network.

    Args:
        name: one of `names()`, or a CIFAR ResNet of any other depth.
        num_classes: number of logits.
        in_channels: C of the images; 3 for all but CIFAR ResNets.
        options: `image_size` of the vision transformers; of CIFAR ResNets those of `resless.models.resnet`, but not
            `kept_blocks`.

    Raises:
        InputError: unknown name or option, or a value out of range.
    """
    check_options(name, options)
    checks.whole_number("num_classes", num_classes)
    if name not in (*IMAGENET_RESNETS, *OTHERS):
        return models.create(name, num_classes=num_classes, in_channels=in_channels, **options)
    check(in_channels == 3, "in_channels", in_channels, f"3 for {name}")
    if name in OTHERS:
        with warnings.catch_warnings():
            # On the meta device, on which a model folder is checked, torchvision's initial values are no-ops.
            warnings.simplefilter("ignore")
            return torchvision_models.get_model(name, weights=None, num_classes=num_classes, **options)
    net = models.create(IMAGENET_RESNETS[name], num_classes=num_classes)
    if name in VARIANT_D:
        make_variant_d(net)
    return net


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise InputError for a name or option that is unknown, or an image size that is no whole number of patches."""
    if not isinstance(name, str):
        raise InputError(f"the model is {name!r}, but must be one of {', '.join(names())}")
    known = set(option_defaults(name))
    for option in options:
        if option not in known:
            raise (
                unknown_name(f"option of {name}", str(option), known)
                if known
                else InputError(f"{name} has no option {option!r}, nor any other")
            )
    if "image_size" in options:
        size, patch = checks.whole_number("image_size", options["image_size"], 1, checks.MAX_IMAGE_SIZE), PATCHES[name]
        check(size % patch == 0, "image_size", size, f"a multiple of {patch}, the side of the patches of {name}")


def option_defaults(name: str) -> dict[str, Any]:
    """The options that a network takes, with their defaults. Raises InputError for an unknown name."""
    if name in PATCHES:
        return {"image_size": IMAGE_SIZE}
    if name in IMAGENET_RESNETS or name in OTHERS:
        return {}
    if not name.startswith("resnet"):
        raise unknown_name("model", name, names())
    try:
        defaults = models.option_defaults(name)
    except InputError as error:
        # A depth that does not exist says so; anything else is a name that is not known here.
        raise error if name[len("resnet") :].isdecimal() else unknown_name("model", name, names()) from error
    return {option: default for option, default in defaults.items() if option != "kept_blocks"}


def make_variant_d(net: nn.Module) -> None:
    """Variant d of an ImageNet ResNet, in place: three 3x3 convolutions for its 7x7, averages before 1x1 shortcuts.

    He et al., Bag of Tricks (arXiv 1812.01187), figure 2; modules are named as timm names them, whose weights load.
    """
    width = cast("nn.Conv2d", net.conv1).out_channels
    half = width // 2
    net.conv1 = nn.Sequential(
        *_conv_norm_relu(3, half, stride=2),
        *_conv_norm_relu(half, half),
        nn.Conv2d(half, width, 3, padding=1, bias=False),
    )
    blocks: list[Any] = list(net.modules())
    for block in blocks:
        shortcut: Any = getattr(block, "downsample", None)
        if shortcut is not None:
            conv, norm = shortcut
            stride = conv.stride[0]
            # ceil_mode: an odd side is halved to the same size as by the strided convolution beside this shortcut.
            pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
            conv.stride = (1, 1)
            block.downsample = nn.Sequential(pool, conv, norm)
    initialise_convolutions(net.conv1)


def _conv_norm_relu(in_channels: int, out_channels: int, stride: int = 1) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
