"""Names of tensors in the authors' checkpoints, and what they are called here. Free of torch.

Theirs are flat: `blocks.S.B.conv1.weight` is block B of stage S, `ds.S.…` the projection of stage S, `fc` the
classifier; a policy network has `features.…` of that form, `logit`, and a value head `vnet`, of which no decision
depends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def is_original(keys: Iterable[str]) -> bool:
    """Whether the names are the authors'."""
    return any(re.match(r"blocks\.\d+\.\d+\.", key) for key in keys)


def resnet_keys(keys: Iterable[str]) -> dict[str, str | None]:
    """Name in the authors' file -> name in the residual network, for names that differ."""
    keys = list(keys)
    # Of ImageNet's networks both classifiers are called fc; torchvision's blocks have projections, CIFAR's have none.
    is_imagenet = any(key.startswith("ds.") for key in keys)
    named = {key: _renamed(key, is_imagenet) for key in keys}
    return {key: name for key, name in named.items() if name != key}


def agent_keys(keys: Iterable[str]) -> dict[str, str | None]:
    """Name in the authors' file -> name in the policy network, or None for the value head."""
    keys = list(keys)
    features = [key.removeprefix("features.") for key in keys if key.startswith("features.")]
    names: dict[str, str | None] = {
        f"features.{key}": f"features.{name}" for key, name in resnet_keys(features).items()
    }
    return names | {key: None for key in keys if key.startswith("vnet.")}


def _renamed(key: str, is_imagenet: bool) -> str:
    # Four digits at most: Python refuses to make a number of thousands.
    if match := re.fullmatch(r"blocks\.(\d{1,4})\.(\d+)\.(.+)", key):
        return f"layer{int(match[1]) + 1}.{match[2]}.{match[3]}"
    if match := re.fullmatch(r"ds\.(\d{1,4})\.(.+)", key):
        return f"layer{int(match[1]) + 1}.0.downsample.{match[2]}"
    if not is_imagenet and key.startswith("fc."):
        return key.replace("fc.", "linear.", 1)
    return key
