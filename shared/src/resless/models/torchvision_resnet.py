"""torchvision's ImageNet ResNets, their blocks' shortcut and residual apart.

Paper: He et al., Deep Residual Learning for Image Recognition (arXiv 1512.03385), section 4.1. Built and named as
torchvision builds and names them, so that its weights load key by key.

Letters: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet

from resless.errors import check
from resless.models import options
from resless.models.blocks import ResidualBlock, ResidualNetwork

_IDENTITY = nn.Identity()


class DownsampleOnly(nn.Module):
    """What is left of a stage's first block without its residual branch: its projection, and no ReLU."""

    def __init__(self, downsample: nn.Module) -> None:
        super().__init__()
        self.downsample = downsample

    @property
    def shortcut(self) -> nn.Module:
        return self.downsample

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(x)


class _Block(ResidualBlock):
    """torchvision's blocks call their shortcut `downsample`, and have none where it changes nothing."""

    downsample: nn.Module | None

    @property
    def shortcut(self) -> nn.Module:  # type: ignore[override]
        return _IDENTITY if self.downsample is None else self.downsample

    def without_branch(self) -> DownsampleOnly | None:
        return None if self.downsample is None else DownsampleOnly(self.downsample)


class BasicBlock(_Block, torchvision_resnet.BasicBlock):
    """relu(shortcut(x) + residual(x)), [N, C, H, W] -> [N, C', H/stride, W/stride]; both parts can be called alone."""

    def residual(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut, [N, C', H/stride, W/stride]."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


class Bottleneck(_Block, torchvision_resnet.Bottleneck):
    """relu(shortcut(x) + residual(x)), [N, C, H, W] -> [N, C', H/stride, W/stride]; both parts can be called alone."""

    def residual(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut, [N, C', H/stride, W/stride]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


_BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(ResidualNetwork, torchvision_resnet.ResNet):
    """torchvision's ResNet with the parts that methods on blocks ask for: stem, blocks, head."""

    def stem(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> features [N, 64, H/4, W/4]."""
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def stages(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4

    def head(self, x: Tensor) -> Tensor:
        """Features [N, C, H, W] -> logits [N, num_classes]."""
        return self.fc(self.avgpool(x).flatten(1))


def resnet(depth: int, *, num_classes: int, in_channels: int, kept_blocks: Sequence[int] | None = None) -> ResNet:
    """The ImageNet ResNet of `depth` layers.

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_classes: number of logits.
        in_channels: 3, as of torchvision's networks.
        kept_blocks: which blocks keep their residual branch, counted from 0 in order of execution; None keeps all.

    Raises:
        InputError: another number of channels, indices out of range.
    """
    kind, layers = options.IMAGENET_STAGES[depth]
    return of_layers(kind, layers, num_classes=num_classes, in_channels=in_channels, kept_blocks=kept_blocks)


def of_layers(
    kind: str,
    layers: Sequence[int],
    *,
    num_classes: int,
    in_channels: int,
    kept_blocks: Sequence[int] | None = None,
) -> ResNet:
    """An ImageNet ResNet of `layers` blocks in its four stages, of `kind` basic or bottleneck; see `resnet`."""
    check(in_channels == 3, "in_channels", in_channels, "3 for torchvision's networks")
    model = ResNet(_BLOCKS[kind], list(layers), num_classes=num_classes)
    model.drop_blocks(kept_blocks)
    return model
