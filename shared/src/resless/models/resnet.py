"""CIFAR ResNets: three stages of basic or bottleneck blocks after one 3x3 convolution.

Paper: He et al., Deep Residual Learning for Image Recognition (arXiv 1512.03385), section 4.2.
Modules are named as in the widely used CIFAR implementations (conv1, bn1, layer1.0.conv1, ..., linear), so that
their checkpoints load key by key.

Letters: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from resless.models import options, pooling
from resless.models.blocks import ResidualBlock, ResidualNetwork

STAGE_WIDTHS = (16, 32, 64)


class SubsampleShortcut(nn.Module):
    """Every `stride`-th pixel, zero channels half on each side (option A of the paper)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class AvgPoolShortcut(nn.Module):
    """Average over `stride` x `stride` pixels, zero channels appended."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.after = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        # An odd side is halved to the same size as by the strided convolution beside this shortcut.
        x = pooling.average(x, self.stride)
        return F.pad(x, (0, 0, 0, 0, 0, self.after))


def conv_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A strided 1x1 convolution and its batch norm (option B of the paper)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


SHORTCUTS = {"conv": conv_shortcut, "subsample": SubsampleShortcut, "avgpool": AvgPoolShortcut}


class Block(ResidualBlock, nn.Module, ABC):
    """relu(shortcut(x) + residual(x)), [N, C, H, W] -> [N, C', H/stride, W/stride]; both parts can be called alone."""

    expansion: int
    """Output channels per inner channel."""

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        out_channels = self.expansion * width
        unchanged = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if unchanged else SHORTCUTS[shortcut](in_channels, out_channels, stride)

    @abstractmethod
    def residual(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut, [N, C', H/stride, W/stride]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.residual(x))


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__(in_channels, width, stride, shortcut)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


class BottleneckBlock(Block):
    """1x1, 3x3 (strided at a stage change) and 1x1 convolution."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__(in_channels, width, stride, shortcut)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, self.expansion * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.expansion * width)

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


BLOCKS: dict[str, type[Block]] = {"basic": BasicBlock, "bottleneck": BottleneckBlock}


class ResNet(ResidualNetwork, nn.Module):
    """Stem, three stages of blocks, head. Works on images of any size, for the head pools over all pixels."""

    def __init__(
        self, block: type[Block], blocks_per_stage: int, shortcut: str, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STAGE_WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STAGE_WIDTHS[0])
        stages, channels = [], STAGE_WIDTHS[0]
        for stage, width in enumerate(STAGE_WIDTHS):
            blocks = []
            for position in range(blocks_per_stage):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(block(channels, width, stride, shortcut))
                channels = block.expansion * width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(channels, num_classes)
        initialise_convolutions(self)

    def stem(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> features [N, 16, H, W]."""
        return F.relu(self.bn1(self.conv1(x)))

    def stages(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3

    def head(self, x: Tensor) -> Tensor:
        """Features [N, C, H, W] -> logits [N, num_classes]."""
        return self.linear(x.mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.head(x)


def initialise_convolutions(model: nn.Module) -> None:
    """He normal initialisation over the fan-out, in place, of all convolutions (arXiv 1502.01852, section 2.2).

    Their biases, where they have any, start from zero.
    """
    for module in model.modules():
        # A network on the meta device has no values; drawing them all the same would import sympy, for seconds.
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def resnet(
    depth: int,
    *,
    num_classes: int,
    in_channels: int,
    shortcut: str = "conv",
    block: str | None = None,
    kept_blocks: Sequence[int] | None = None,
) -> ResNet:
    """The CIFAR ResNet of `depth` layers.

    Args:
        depth: 6n+2 (basic blocks) or 9n+2 (bottleneck blocks), see `options.cifar_depth`.
        num_classes: number of logits.
        in_channels: C of the images.
        shortcut: how a block passes on its input where size or channels change: `conv` (1x1 convolution and batch
            norm), `subsample` (every second pixel, zero channels on both sides) or `avgpool` (2x2 average, zero
            channels appended).
        block: `basic` or `bottleneck`; left out, the depth decides.
        kept_blocks: which blocks keep their residual branch, counted from 0 in order of execution; None keeps all.

    Raises:
        InputError: a depth that no number of blocks gives, an unknown shortcut or block, indices out of range.
    """
    options.choice("shortcut", shortcut, tuple(SHORTCUTS))
    kind, blocks_per_stage = options.cifar_depth(depth, block)
    model = ResNet(BLOCKS[kind], blocks_per_stage, shortcut, num_classes, in_channels)
    model.drop_blocks(kept_blocks)
    return model
