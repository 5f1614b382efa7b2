"""Wide ResNets for CIFAR: pre-activation blocks of two 3x3 convolutions, `widening` times as wide as a ResNet's.

Paper: Zagoruyko and Komodakis, Wide Residual Networks (arXiv 1605.07146), table 1 and section 2.4 (dropout). Unlike in
`preresnet`, where a block changes size or channels, its shortcut too reads the activated input.

Letters: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from resless.models import options
from resless.models.blocks import ResidualBlock, ResidualNetwork
from resless.models.resnet import STAGE_WIDTHS, initialise_convolutions


class ProjectionOnly(nn.Module):
    """What is left of a stage's first block without its residual branch: its projection of the activated input."""

    def __init__(self, bn1: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.bn1 = bn1
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(F.relu(self.bn1(x)))


class Block(ResidualBlock, nn.Module):
    """Two 3x3 convolutions, dropout between them: [N, C, H, W] -> [N, C', H/stride, W/stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        unchanged = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if unchanged else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        residual = F.relu(self.bn2(self.conv1(activated)))
        residual = self.conv2(self.dropout(residual))
        return residual + self.shortcut(x if isinstance(self.shortcut, nn.Identity) else activated)

    def without_branch(self) -> ProjectionOnly | None:
        return None if isinstance(self.shortcut, nn.Identity) else ProjectionOnly(self.bn1, self.shortcut)


class WideResNet(ResidualNetwork, nn.Module):
    """One convolution, three stages, head: [N, C, H, W] -> [N, num_classes]; H and W of any size."""

    def __init__(
        self, blocks_per_stage: int, widening: int, dropout: float, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        channels, stages = STAGE_WIDTHS[0], []
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        for stage, width in enumerate(STAGE_WIDTHS):
            blocks = []
            for position in range(blocks_per_stage):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(Block(channels, width * widening, stride, dropout))
                channels = width * widening
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)
        initialise_convolutions(self)

    def stages(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(F.relu(self.bn(x)).mean(dim=(2, 3)))


def wide_resnet(
    depth: int,
    widening: int,
    *,
    num_classes: int,
    in_channels: int,
    dropout: float = 0.0,
    kept_blocks: Sequence[int] | None = None,
) -> WideResNet:
    """The Wide ResNet of `depth` layers: wrn28_10 has depth 28 and widening 10.

    Args:
        depth: 6n+4.
        widening: channels of the stages, in 16, 32 and 64.
        num_classes: number of logits.
        in_channels: C of the images.
        dropout: probability with which an input of a block's second convolution is zero in training.
        kept_blocks: which blocks keep their residual branch, counted from 0 in order of execution; None keeps all.

    Raises:
        InputError: a depth that no number of blocks gives, widening, dropout or indices out of range.
    """
    blocks_per_stage = options.wide_resnet(depth, widening)
    options.probability("dropout", dropout)
    model = WideResNet(blocks_per_stage, widening, dropout, num_classes, in_channels)
    model.drop_blocks(kept_blocks)
    return model
