"""ResNeXt for CIFAR: bottleneck blocks whose 3x3 convolution has `cardinality` groups.

Paper: Xie et al., Aggregated Residual Transformations for Deep Neural Networks (arXiv 1611.05431), section 5.2.

Letters: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from resless.models import options
from resless.models.blocks import ResidualBlock, ResidualNetwork
from resless.models.resnet import conv_shortcut, initialise_convolutions

STEM_WIDTH = 64


class Block(ResidualBlock, nn.Module):
    """relu(shortcut(x) + residual(x)), [N, C, H, W] -> [N, C', H/stride, W/stride]; both parts can be called alone."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, groups: int, stride: int) -> None:
        super().__init__()
        unchanged = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if unchanged else conv_shortcut(in_channels, out_channels, stride)
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def residual(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut, [N, C', H/stride, W/stride]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.residual(x))


class ResNeXt(ResidualNetwork, nn.Module):
    """Stem, three stages, head: [N, C, H, W] -> [N, num_classes]; H and W of any size."""

    def __init__(
        self, blocks_per_stage: int, cardinality: int, width: int, expansion: int, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM_WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        channels, stages = STEM_WIDTH, []
        for stage in range(3):
            inner, out_channels = cardinality * width * 2**stage, STEM_WIDTH * expansion * 2**stage
            blocks = []
            for position in range(blocks_per_stage):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(Block(channels, inner, out_channels, cardinality, stride))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(channels, num_classes)
        initialise_convolutions(self)

    def stages(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def resnext(
    depth: int,
    cardinality: int,
    width: int,
    *,
    num_classes: int,
    in_channels: int,
    expansion: int = 4,
    kept_blocks: Sequence[int] | None = None,
) -> ResNeXt:
    """The ResNeXt of `depth` layers: resnext29_8x64 has depth 29, cardinality 8 and width 64.

    Args:
        depth: 9n+2.
        cardinality: groups of the 3x3 convolutions.
        width: channels of a group in the first stage; each later stage doubles it.
        num_classes: number of logits.
        in_channels: C of the images.
        expansion: channels that the first stage gives out, in 64; each later stage doubles them.
        kept_blocks: which blocks keep their residual branch, counted from 0 in order of execution; None keeps all.

    Raises:
        InputError: a depth that no number of blocks gives, another number or indices out of range.
    """
    blocks_per_stage = options.resnext(depth, cardinality, width)
    options.whole_number("expansion", expansion, 1, options.MAX_SIZE // (4 * STEM_WIDTH))
    model = ResNeXt(blocks_per_stage, cardinality, width, expansion, num_classes, in_channels)
    model.drop_blocks(kept_blocks)
    return model
