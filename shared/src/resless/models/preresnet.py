"""Pre-activation ResNets for CIFAR and for ImageNet: batch norm and ReLU come before each convolution.

Paper: He et al., Identity Mappings in Deep Residual Networks (arXiv 1603.05027), section 3. What a block passes on is
not touched by a ReLU, so that a block without its residual branch is its shortcut and nothing else.

Letters: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from resless.models import options, pooling
from resless.models.blocks import ResidualBlock, ResidualNetwork
from resless.models.resnet import STAGE_WIDTHS, AvgPoolShortcut, SubsampleShortcut, initialise_convolutions

IMAGENET_WIDTHS = (64, 128, 256, 512)
STEMS = ("conv", "conv_bn_relu")


class CentredAvgPoolShortcut(AvgPoolShortcut):
    """Average over `stride` x `stride` pixels, zero channels half on each side."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.before = (out_channels - in_channels) // 2
        self.after -= self.before

    def forward(self, x: Tensor) -> Tensor:
        x = pooling.average(x, self.stride)
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


def conv_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    """A strided 1x1 convolution, without batch norm."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


SHORTCUTS = {
    "conv": conv_shortcut,
    "subsample": SubsampleShortcut,
    "avgpool": AvgPoolShortcut,
    "avgpool_centred": CentredAvgPoolShortcut,
}


class Block(ResidualBlock, nn.Module, ABC):
    """shortcut(x) + residual(x), [N, C, H, W] -> [N, C', H/stride, W/stride]; both parts can be called alone.

    The network's first block, where the stem ends in batch norm and ReLU, has none of its own in front (`activate`).
    """

    expansion: int
    """Output channels per inner channel."""

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str, activate: bool) -> None:
        super().__init__()
        out_channels = self.expansion * width
        unchanged = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if unchanged else SHORTCUTS[shortcut](in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(in_channels) if activate else None

    @abstractmethod
    def residual(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut, [N, C', H/stride, W/stride]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)

    def _activated(self, x: Tensor) -> Tensor:
        return x if self.bn1 is None else F.relu(self.bn1(x))


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str, activate: bool) -> None:
        super().__init__(in_channels, width, stride, shortcut, activate)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def residual(self, x: Tensor) -> Tensor:
        x = self.conv1(self._activated(x))
        return self.conv2(F.relu(self.bn2(x)))


class BottleneckBlock(Block):
    """1x1, 3x3 (strided at a stage change) and 1x1 convolution."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str, activate: bool) -> None:
        super().__init__(in_channels, width, stride, shortcut, activate)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, self.expansion * width, 1, bias=False)

    def residual(self, x: Tensor) -> Tensor:
        x = self.conv1(self._activated(x))
        x = self.conv2(F.relu(self.bn2(x)))
        return self.conv3(F.relu(self.bn3(x)))


BLOCKS: dict[str, type[Block]] = {"basic": BasicBlock, "bottleneck": BottleneckBlock}


class PreResNet(ResidualNetwork, nn.Module):
    """Stem, stages of blocks, head. Works on images of any size, for the head pools over all pixels.

    Args:
        stem: the layers before the first block, [N, C, H, W] -> [N, widths[0], H', W'].
        activated: whether the stem ends in batch norm and ReLU, so that the first block needs none in front.
        block: kind of all blocks.
        widths, depths: inner channels and number of blocks of each stage; all stages but the first halve H and W.
        shortcut: one of SHORTCUTS.
        num_classes: number of logits.
    """

    def __init__(
        self,
        stem: nn.Sequential,
        activated: bool,
        block: type[Block],
        widths: Sequence[int],
        depths: Sequence[int],
        shortcut: str,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.stem = stem
        channels, stages = widths[0], []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                activate = not activated or stage > 0 or position > 0
                blocks.append(block(channels, width, stride, shortcut, activate))
                channels = block.expansion * width
            stages.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)
        initialise_convolutions(self)

    def stages(self) -> Sequence[nn.Sequential]:
        return list(self.layers)  # type: ignore[arg-type]

    def head(self, x: Tensor) -> Tensor:
        """Features [N, C, H, W] -> logits [N, num_classes]."""
        return self.linear(F.relu(self.bn(x)).mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)))


def _stem(in_channels: int, activated: bool) -> nn.Sequential:
    width = STAGE_WIDTHS[0]
    layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1, bias=False)]
    if activated:
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


def _imagenet_stem(in_channels: int) -> nn.Sequential:
    width = IMAGENET_WIDTHS[0]
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def preresnet(
    depth: int,
    *,
    num_classes: int,
    in_channels: int,
    shortcut: str = "conv",
    stem: str = "conv",
    block: str | None = None,
    kept_blocks: Sequence[int] | None = None,
) -> PreResNet:
    """The pre-activation CIFAR ResNet of `depth` layers.

    Args:
        depth: 6n+2 (basic blocks) or 9n+2 (bottleneck blocks), see `options.cifar_depth`.
        num_classes: number of logits.
        in_channels: C of the images.
        shortcut: how a block passes on its input where size or channels change: `conv` (1x1 convolution), `subsample`
            (every second pixel, zero channels on both sides), `avgpool` (2x2 average, zero channels appended) or
            `avgpool_centred` (2x2 average, zero channels on both sides).
        stem: `conv`, one 3x3 convolution; or `conv_bn_relu`, batch norm and ReLU after it, which the first block then
            has not.
        block: `basic` or `bottleneck`; left out, the depth decides.
        kept_blocks: which blocks keep their residual branch, counted from 0 in order of execution; None keeps all.

    Raises:
        InputError: a depth that no number of blocks gives, an unknown shortcut, stem or block, indices out of range.
    """
    options.choice("shortcut", shortcut, tuple(SHORTCUTS))
    activated = options.choice("stem", stem, STEMS) == "conv_bn_relu"
    kind, blocks_per_stage = options.cifar_depth(depth, block)
    model = PreResNet(
        _stem(in_channels, activated),
        activated,
        BLOCKS[kind],
        STAGE_WIDTHS,
        [blocks_per_stage] * len(STAGE_WIDTHS),
        shortcut,
        num_classes,
    )
    model.drop_blocks(kept_blocks)
    return model


def imagenet_preresnet(
    depth: int, *, num_classes: int, in_channels: int, kept_blocks: Sequence[int] | None = None
) -> PreResNet:
    """The pre-activation ImageNet ResNet of `depth` layers, with 1x1 convolutions where size or channels change.

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_classes: number of logits.
        in_channels: C of the images.
        kept_blocks: which blocks keep their residual branch, counted from 0 in order of execution; None keeps all.

    Raises:
        InputError: indices out of range.
    """
    kind, depths = options.IMAGENET_STAGES[depth]
    stem = _imagenet_stem(in_channels)
    model = PreResNet(stem, True, BLOCKS[kind], IMAGENET_WIDTHS, depths, "conv", num_classes)
    model.drop_blocks(kept_blocks)
    return model
