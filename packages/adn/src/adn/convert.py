"""How a plain network becomes one of adaptive depth: one rule a family says which blocks each stage can skip.

Kang and Lee, Adaptive Depth Networks with Skippable Sub-Paths (NeurIPS 2024, arXiv 2312.16392), section 3. No forward
pass is written here and none is changed: a configuration is the plain network's own class holding other children. Where
a stage skips, its last blocks are not among them, and the others are twins, which share all layers but own their norms.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from resless.errors import InputError
from resless.models.resnet import ResNet as CifarResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import MobileNetV2, ResNet, SwinTransformer, VisionTransformer

VIT_GROUP = 3
"""Encoder layers of a vision transformer, which has no stages, that count as one."""

_NORMS = (_BatchNorm, nn.LayerNorm)
_ONE_PATH = ("downsample", "shortcut")
"""Children of a block whose norms both paths share."""


@dataclass(frozen=True)
class Unit:
    """A part of a plain network that is different when its stage skips."""

    path: str
    """The module's name in the plain network."""
    stage: int
    """Whose flag it follows, counted from 0."""
    skippable: bool
    """It is left out when the stage skips; a part that is not takes its second norms then."""


# --- one rule a family -----------------------------------------------------------------------------------------------


def mandatory(blocks: int) -> int:
    """How many blocks of a stage always run: the first half, rounded up, but never all of them."""
    return max(1, min(blocks - 1, math.ceil(blocks / 2)))


def _stage(paths: Sequence[str], stage: int) -> list[Unit]:
    return [Unit(path, stage, index >= mandatory(len(paths))) for index, path in enumerate(paths)]


def _paths(net: nn.Module, parent: str) -> list[str]:
    return [f"{parent}.{name}" for name, _ in net.get_submodule(parent).named_children()]


def _resnet(net: nn.Module) -> list[Unit]:
    """The stages are layer1, layer2, ...; the stem has one set of norms."""
    names = [name for name, _ in net.named_children() if name.startswith("layer")]
    return [unit for stage, name in enumerate(names) for unit in _stage(_paths(net, name), stage)]


def mobilenet_runs(net: nn.Module) -> list[list[str]]:
    """The layers of a MobileNetV2 in runs of blocks; a new one begins with each that does not add to its input."""
    runs: list[list[str]] = []
    in_blocks = False
    for name, layer in net.get_submodule("features").named_children():
        # Where channels are few, the first block adds to its input too, but that is the stem's output.
        if not (in_blocks and getattr(layer, "use_res_connect", False)):
            runs.append([])
        runs[-1].append(f"features.{name}")
        in_blocks = hasattr(layer, "use_res_connect")
    return runs


def _mobilenet(net: nn.Module) -> list[Unit]:
    """Runs of two blocks or more are stages; what lies before the first follows it, what lies after one that one."""
    units, stage = [], -1
    for run in mobilenet_runs(net):
        stage += len(run) > 1
        units += _stage(run, max(stage, 0))
    return units


def _swin(net: nn.Module) -> list[Unit]:
    """features: patches, stage, merging, stage, merging, ...; a merging's norm follows the stage after it."""
    units = []
    for index in range(1, len(cast("nn.Sequential", net.features))):
        path = f"features.{index}"
        units += _stage(_paths(net, path), index // 2) if index % 2 else [Unit(path, index // 2, False)]
    return units


def _vit(net: nn.Module) -> list[Unit]:
    """Every three encoder layers are a stage."""
    layers = _paths(net, "encoder.layers")
    groups = [layers[start : start + VIT_GROUP] for start in range(0, len(layers), VIT_GROUP)]
    return [unit for stage, group in enumerate(groups) for unit in _stage(group, stage)]


_RULES: tuple[tuple[type[nn.Module], Callable[[nn.Module], list[Unit]]], ...] = (
    (CifarResNet, _resnet),
    (ResNet, _resnet),
    (MobileNetV2, _mobilenet),
    (SwinTransformer, _swin),
    (VisionTransformer, _vit),
)


def units_of(net: nn.Module) -> list[Unit]:
    """The parts of a plain network that skipping changes, in order of execution.

    Raises:
        InputError: a network of another family, or one with a stage of a single block.
    """
    rule = next((rule for family, rule in _RULES if isinstance(net, family)), None)
    if rule is None:
        known = ", ".join(sorted({family.__name__ for family, _ in _RULES}))
        raise InputError(f"a {type(net).__name__} has no rule for what can be skipped: the families are {known}")
    units = rule(net)
    for stage in range(units[-1].stage + 1):
        if not any(unit.skippable for unit in units if unit.stage == stage):
            name = type(net).__name__
            raise InputError(
                f"stage {stage} of the {name} has one block, but must have 2 or more for one to be skipped"
            )
    return units


# --- paths through one network ---------------------------------------------------------------------------------------


class Shared(nn.Module):
    """Calls a layer that is registered elsewhere, so that it appears once among the modules, parameters and tensors."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = [layer]  # in a list, as which it is not registered here

    def forward(self, *args: Any, **options: Any) -> Tensor:
        return self._layer[0](*args, **options)


def twin(module: nn.Module) -> nn.Module:
    """A module of the same class and with the same layers, but with norms of its own, which start as copies."""
    if isinstance(module, _NORMS):
        return copy.deepcopy(module)
    if not any(isinstance(part, _NORMS) for part in module.modules()):
        return Shared(module)
    children = module.named_children()
    return _with_children(module, {name: Shared(c) if name in _ONE_PATH else twin(c) for name, c in children})


def skip_norms(net: nn.Module, units: Iterable[Unit]) -> nn.Module:
    """The twins of all parts that are not skippable, at the same names below one module."""
    root = nn.Module()
    for unit in units:
        if not unit.skippable:
            *parents, name = unit.path.split(".")
            node = root
            for parent in parents:
                if not hasattr(node, parent):
                    node.add_module(parent, nn.Module())
                node = node.get_submodule(parent)
            node.add_module(name, twin(net.get_submodule(unit.path)))
    return root


def path(net: nn.Module, twins: nn.Module | None, units: Iterable[Unit], skip: Sequence[bool]) -> nn.Module:
    """The network of one configuration: of the class of `net`, sharing its layers; `net` itself if nothing skips.

    Without `twins` a stage that skips uses the norms of `net`.
    """
    changed = {unit.path: unit for unit in units if skip[unit.stage]}

    def rebuilt(module: nn.Module, prefix: str) -> nn.Module:
        children: dict[str, nn.Module] = {}
        for name, child in module.named_children():
            unit, below = changed.get(prefix + name), f"{prefix}{name}."
            if unit is not None and not unit.skippable:
                children[name] = child if twins is None else twins.get_submodule(unit.path)
            elif unit is None:
                holds_units = any(other.startswith(below) for other in changed)
                children[name] = rebuilt(child, below) if holds_units else child
        return _with_children(module, children)

    return rebuilt(net, "") if changed else net


def _with_children(module: nn.Module, children: Mapping[str, nn.Module]) -> nn.Module:
    """A shallow copy with other children; it has the same parameters of its own and the same hooks."""
    copied = copy.copy(module)
    copied._modules = dict(children)
    return copied


def shorten(net: nn.Module, units: Iterable[Unit], skip: Sequence[bool]) -> dict[str, str]:
    """Remove, in place, the blocks that a configuration skips; what follows them in a stage moves up in its numbering.

    Returns: the name that each part had before -> the name that it has now.
    """
    dropped = {unit.path for unit in units if unit.skippable and skip[unit.stage]}
    moved: dict[str, str] = {}
    for parent in {path.rpartition(".")[0] for path in dropped}:
        holder = net.get_submodule(parent)
        children = list(holder.named_children())
        left = [(name, child) for name, child in children if f"{parent}.{name}" not in dropped]
        names = [name for name, _ in children[: len(left)]]
        holder._modules = {name: child for name, (_, child) in zip(names, left, strict=True)}
        moved |= {f"{parent}.{old}": f"{parent}.{new}" for (old, _), new in zip(left, names, strict=True)}
    return moved
