"""Names of tensors elsewhere: in the authors' state dicts, and in plain ones such as torchvision's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn
from torchvision.models import MobileNetV2, SwinTransformer

from adn.convert import mobilenet_runs

NET, SECOND = "net.", "skip_norms."
"""Before the plain network's name of a tensor: in the network, and in the second set of norms."""


def original_keys(net: nn.Module, own: Iterable[str]) -> dict[str, str]:
    """Of each of our names, that of the authors, who write a norm's second set as `bn1_skip` beside `bn1`.

    Args:
        net: the plain network.
        own: names in the state dict of the adaptive one.
    """
    names = _original_names(net)
    keys = {}
    for key in own:
        second = key.startswith(SECOND)
        name = names(key.removeprefix(SECOND if second else NET))
        keys[key] = re.sub(r"\.(\w+)$", r"_skip.\1", name) if second else name
    return keys


def from_plain(own: Iterable[str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A plain network's state dict under our names; its norms serve as both sets. Names that we lack stay unknown."""
    second = {key: state[plain] for key in own if (plain := key.removeprefix(SECOND)) != key and plain in state}
    return {NET + key: tensor for key, tensor in state.items()} | second


def _original_names(net: nn.Module) -> Callable[[str], str]:
    """torchvision's name of a tensor -> the authors' name."""
    if isinstance(net, SwinTransformer):
        return _swin_name
    if isinstance(net, MobileNetV2):
        parts = _mobilenet_parts(net)
        return lambda name: _renamed(name, parts)
    return lambda name: name


def _swin_name(name: str) -> str:
    """The patches are not among the authors' `features`."""
    if name.startswith("features.0."):
        return name.replace("features.0.", "pre.", 1)
    return re.sub(r"^features\.(\d+)", lambda match: f"features.{int(match[1]) - 1}", name)


def _mobilenet_parts(net: nn.Module) -> dict[str, str]:
    """torchvision's name of each convolution and norm -> the authors': stages are nested, and pairs have names."""
    parts: dict[str, str] = {}
    for index, run in enumerate(mobilenet_runs(net)):
        for position, path in enumerate(run):
            layer = net.get_submodule(path)
            theirs = f"features.{index}.{position}" if len(run) > 1 else f"features.{index}"
            if not hasattr(layer, "conv"):
                pairs = {f"{path}.{{}}": theirs}
                last = None
            else:
                last = len(list(layer.conv.children())) - 2  # type: ignore[union-attr]
                pairs = {f"{path}.conv.{pair}.{{}}": f"{theirs}.conv.{pair}" for pair in range(last)}
            for ours, pair_name in pairs.items():
                parts |= {ours.format(0): f"{pair_name}.conv_layer", ours.format(1): f"{pair_name}.norm"}
            if last is not None:  # the linear bottleneck is no pair in torchvision
                parts[f"{path}.conv.{last}"] = f"{theirs}.conv.{last}.conv_layer"
                parts[f"{path}.conv.{last + 1}"] = f"{theirs}.conv.{last}.norm"
    return parts


def _renamed(name: str, parts: Mapping[str, str]) -> str:
    module, _, tensor = name.rpartition(".")
    return f"{parts.get(module, module)}.{tensor}"
