"""ADN's networks: a residual network whose stages run in full or skip their last blocks, chosen at each call.

Kang and Lee, Adaptive Depth Networks with Skippable Sub-Paths (NeurIPS 2024, arXiv 2312.16392), section 3. Letters:
N images, C channels, H x W pixels, K skippable stages.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from resless import models, weights
from resless.errors import InputError, check
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer

from adn import backbones, convert
from adn.original import NET, SECOND, from_plain, original_keys

if TYPE_CHECKING:
    from resless.data import Images, Stream

Skip = tuple[bool, ...]
"""One flag a stage, in order: whether it skips its skippable blocks."""

SWIN_PATCH = 4


class AdaptiveNet(nn.Module):
    """A plain network and the second norms of its mandatory blocks: images [N, C, H, W] -> logits [N, num_classes].

    `net` is the plain network, untouched: with nothing skipped it runs as it is. `skip_norms` holds the second norms,
    under the names that the first have in `net`. Every configuration is a network of the same class, made of these
    layers once and for all: no state is switched, so that several configurations can be in use at a time.

    Args:
        net: a network of `backbones.plain`, or another of the same families.
        second_norms: whether there are second norms; without, both paths share the first (the paper's ablation).

    Raises:
        InputError: another network, or one with a stage of one block.
    """

    made_plain_by = "adn-extract"
    """The command that writes plain networks of it, which `resless.folding` takes."""

    def __init__(self, net: nn.Module, second_norms: bool = True) -> None:
        super().__init__()
        self.net = net
        self.units = convert.units_of(net)
        self.skip_norms = convert.skip_norms(net, self.units) if second_norms else None
        self.relink()

    @property
    def num_skippable_stages(self) -> int:
        """K."""
        return self.units[-1].stage + 1

    @property
    def super_skip(self) -> Skip:
        """The configuration that skips nothing."""
        return (False,) * self.num_skippable_stages

    @property
    def base_skip(self) -> Skip:
        """The configuration that skips in all stages."""
        return (True,) * self.num_skippable_stages

    def configurations(self) -> list[Skip]:
        """All 2^K of them, the super-net first and the base-net last."""
        return list(self._paths)

    def train(self, mode: bool = True) -> AdaptiveNet:
        """Training or eval mode, of all configurations: each is a module of its own, not registered here."""
        super().train(mode)
        for path in self._paths.values():
            path.train(mode)
        return self

    def relink(self) -> None:
        """Bring all configurations up to date after a layer of `net` was replaced by another (not: its tensors)."""
        # A plain dict: the layers are registered in `net` and `skip_norms` already.
        self._paths = {
            skip: convert.path(self.net, self.skip_norms, self.units, skip)
            for skip in itertools.product((False, True), repeat=self.num_skippable_stages)
        }

    def path(self, skip: Sequence[bool] | None = None) -> nn.Module:
        """The network of one configuration, of the class of `net`, sharing its layers.

        Raises:
            InputError: not K booleans.
        """
        return self._paths[self.super_skip if skip is None else self.check_skip(skip)]

    def forward(self, images: Tensor, skip: Sequence[bool] | None = None) -> Tensor:
        """Logits [N, num_classes] of images [N, C, H, W]; `skip` has K flags, None skips nothing.

        Raises:
            InputError: not K booleans, or images of a size that the network cannot take.
        """
        self.check_size(*images.shape[-2:])
        return self.path(skip)(images)

    def features(self, images: Tensor, skip: Sequence[bool] | None = None) -> tuple[list[Tensor], Tensor]:
        """Features [N, C', H', W'] after each stage but the last, and logits [N, num_classes], of a ResNet.

        Raises:
            InputError: not K booleans, or a network that is no ResNet.
        """
        net: Any = self.path(skip)
        if not hasattr(net, "stages"):
            raise InputError(
                "features of stages are distilled in ResNets with stem, stages and head, as adn.model.create makes "
                f"them, not in this {type(self.net).__name__}"
            )
        x, outputs = net.stem(images), []
        for stage in net.stages():
            x = stage(x)
            outputs.append(x)
        return outputs[:-1], net.head(x)

    def check_skip(self, skip: Sequence[bool]) -> Skip:
        """`skip` as a tuple. Raises InputError unless it is K booleans."""
        # A tuple of types, since torch 2.6 cannot compile `tuple | list`.
        valid = isinstance(skip, (tuple, list)) and len(skip) == self.num_skippable_stages
        if not valid or not all(isinstance(flag, bool) for flag in skip):
            raise InputError(
                f"skip is {skip!r}, but must be {self.num_skippable_stages} times True or False, one for each stage; "
                f"they skip {'; '.join(self._skippable())}"
            )
        return tuple(skip)

    def _skippable(self) -> list[str]:
        """What each stage skips, in words."""
        stages: list[list[str]] = [[] for _ in range(self.num_skippable_stages)]
        for unit in self.units:
            if unit.skippable:
                stages[unit.stage].append(unit.path)
        return [paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1]}" for paths in stages]

    def check_size(self, height: int, width: int) -> None:
        """Raise InputError for images of a size that the network cannot take, which torchvision would only assert."""
        if isinstance(self.net, VisionTransformer):
            size = self.net.image_size
            fits, allowed = (height, width) == (size, size), f"{size} x {size} for this vision transformer"
        elif isinstance(self.net, SwinTransformer):
            fits, allowed = min(height, width) >= SWIN_PATCH, f"at least {SWIN_PATCH} x {SWIN_PATCH}, one patch"
        else:
            return
        if not fits:
            raise InputError(f"the size of the images is {height} x {width}, but must be {allowed}")


def create(
    name: str, *, num_classes: int = 1000, in_channels: int = 3, second_norms: bool = True, **options: Any
) -> AdaptiveNet:
    """A freshly initialised network of adaptive depth, in training mode.

    Args:
        name: resnet50, resnet101, resnet50d, resnet101d, mobilenet_v2, swin_t, swin_v2_t, vit_b_16, vit_b_32, or a
            CIFAR ResNet of resless such as resnet20.
        num_classes: number of logits.
        in_channels: C of the images; 3 for all but CIFAR ResNets.
        second_norms: whether mandatory blocks have norms of their own where their stage skips.
        **options: `shortcut` and `block` of CIFAR ResNets, `image_size` (224) of vision transformers.

    Raises:
        InputError: unknown name or option, a value out of range, or a network with one block a stage.
    """
    net = backbones.plain(name, num_classes=num_classes, in_channels=in_channels, options=options)
    model = AdaptiveNet(net, second_norms)
    described = {
        "backbone": name,
        "backbone_options": {**backbones.option_defaults(name), **options},
        "second_norms": second_norms,
    }
    model.spec = models.Spec("adn", num_classes, in_channels, described)  # type: ignore[assignment]
    return model


def create_for(name: str, images: Images | Stream, *, shortcut: str | None, second_norms: bool) -> AdaptiveNet:
    """A network for these images: `create` with their classes, channels and, where it matters, size.

    Args:
        name: as of `create`.
        images: [C, H, W] each.
        shortcut: of a CIFAR ResNet; None leaves it to the network.
        second_norms: as of `create`.
    """
    in_channels, _, width = images.image_shape
    options: dict[str, Any] = {} if shortcut is None else {"shortcut": shortcut}
    if name.startswith("vit_"):
        options["image_size"] = width
    size = {"num_classes": images.num_classes, "in_channels": in_channels}
    return create(name, **size, second_norms=second_norms, **options)


def build(
    *,
    num_classes: int,
    in_channels: int,
    backbone: str,
    backbone_options: Mapping[str, Any],
    second_norms: bool = True,
) -> AdaptiveNet:
    """The network of a model folder: how `resless.models` builds one that is called `adn`."""
    check(isinstance(backbone_options, Mapping), "backbone_options", backbone_options, "options by name")
    check(isinstance(second_norms, bool), "second_norms", second_norms, "true or false")
    backbones.check_options(backbone, backbone_options)
    return create(
        backbone, num_classes=num_classes, in_channels=in_channels, second_norms=second_norms, **backbone_options
    )


def load_original(model: nn.Module, path: str | Path, *, ema: bool = False) -> None:
    """Load all tensors from a checkpoint or state dict of the authors, every key of both sides matched.

    Args:
        model: an AdaptiveNet, which is unchanged after any error.
        path: a torch file, a state dict or `{'model': ..., 'model_ema': ..., 'args': ...}`, or a safetensors file.
        ema: the moving average of the weights in place of the last ones.

    Raises:
        InputError: a missing or damaged file, weights of another network, no moving average.
    """
    net = _adaptive(model)
    with torch.serialization.safe_globals([argparse.Namespace]):  # `args`: plain values, which nothing here reads
        content = weights.read_checkpoint(path)
    if ema:
        if not isinstance(content, Mapping) or not isinstance(content.get("model_ema"), Mapping):
            raise InputError(f"{path} holds no moving average of the weights, model_ema")
        content = {key: tensor for key, tensor in content["model_ema"].items() if key != "n_averaged"}
    state = weights.unwrapped(content, path)
    theirs = original_keys(net.net, net.state_dict())
    weights.load_state(net, state, path, {key: own for own, key in theirs.items() if key in state})


def load_plain(model: nn.Module, path: str | Path) -> None:
    """Load a plain network's weights, such as torchvision's: the super-net is that network, the second norms as its.

    Weights of a network of adaptive depth are taken as they are, second norms included.

    Args:
        model: an AdaptiveNet, which is unchanged after any error.
        path: a torch or safetensors file, or a model folder.

    Raises:
        InputError: a missing or damaged file, weights of another network.
    """
    net = _adaptive(model)
    state = weights.unwrapped(weights.read_checkpoint(path), path)
    adaptive = all(key.startswith((NET, SECOND)) for key in state)
    weights.load_state(net, state if adaptive else from_plain(net.state_dict(), state), path)


def compiled(model: nn.Module, **options: Any) -> Callable[..., Tensor]:
    """`torch.compile(model, **options)` with room for every configuration: each is one graph, compiled when first used.

    torch stops compiling one function after eight graphs, by default, and this raises that limit for the process.
    """
    room = 2 * len(_adaptive(model).configurations())  # in training mode and in eval mode
    dynamo: Any = torch._dynamo.config
    # `recompile_limit` under the name that all allowed versions of torch know.
    dynamo.cache_size_limit = max(dynamo.cache_size_limit, room)
    return torch.compile(model, **options)


def _adaptive(model: nn.Module) -> AdaptiveNet:
    if not isinstance(model, AdaptiveNet):
        raise InputError(f"a {type(model).__name__} is no network of adaptive depth: make one by adn.model.create")
    return model
