"""DenseNets for CIFAR: each layer reads the outputs of all before it in its block, and adds `growth` channels.

Paper: Huang et al., Densely Connected Convolutional Networks (arXiv 1608.06993), section 3. DenseNet-BC has a 1x1
convolution in each layer (B) and fewer channels after each transition (C).

Letters: N images, C channels, H x W pixels; k the growth rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resless.models import options
from resless.models.blocks import Branching, BranchingNetwork
from resless.models.resnet import initialise_convolutions

BOTTLENECK = 4  # channels between the two convolutions of a layer of DenseNet-BC, in k
PLAIN_STEM = 16  # channels of the first convolution; those of DenseNet-BC are 2k


class Layer(Branching, nn.Module):
    """One 3x3 convolution: [N, C, H, W] -> [N, C + k, H, W], what it read first."""

    def __init__(self, in_channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        new = self.dropout(self.conv1(F.relu(self.bn1(x))))
        return torch.cat((x, new), dim=1)


class BottleneckLayer(Branching, nn.Module):
    """A 1x1 convolution to 4k channels and a 3x3 convolution: [N, C, H, W] -> [N, C + k, H, W], what it read first."""

    def __init__(self, in_channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, BOTTLENECK * growth, 1, bias=False)
        self.dropout1 = nn.Dropout(dropout) if dropout else nn.Identity()
        self.bn2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = nn.Conv2d(BOTTLENECK * growth, growth, 3, padding=1, bias=False)
        self.dropout2 = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        new = self.dropout1(self.conv1(F.relu(self.bn1(x))))
        new = self.dropout2(self.conv2(F.relu(self.bn2(new))))
        return torch.cat((x, new), dim=1)


class Transition(nn.Module):
    """A 1x1 convolution and 2x2 average pooling: [N, C, H, W] -> [N, C', H/2, W/2]."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.conv1(F.relu(self.bn1(x))))
        return F.avg_pool2d(x, 2, ceil_mode=True)  # a single row of pixels passes too


class DenseNet(BranchingNetwork, nn.Module):
    """One convolution, three dense blocks, transitions between them, head: [N, C, H, W] -> [N, num_classes].

    Without some of its layers, the others have the names that they had, and transitions give as many channels.
    """

    kept_option = "kept_layers"

    def __init__(
        self,
        layer: type[Layer] | type[BottleneckLayer],
        layers_per_block: int,
        stem_width: int,
        growth: int,
        compression: float,
        dropout: float,
        num_classes: int,
        in_channels: int,
        kept_layers: Sequence[int] | None,
    ) -> None:
        super().__init__()
        kept = options.kept_branches("kept_layers", kept_layers, 3 * layers_per_block)
        self.conv1 = nn.Conv2d(in_channels, stem_width, 3, padding=1, bias=False)
        whole = width = stem_width  # channels with all layers, and with those that are kept
        parts = list[nn.Module]()
        for position in range(3):
            if position > 0:
                whole = _compressed(whole, compression)
                parts.append(Transition(width, whole, dropout))
                width = whole
            block = nn.Sequential()
            for index in range(layers_per_block):
                if kept is None or position * layers_per_block + index in kept:
                    block.add_module(str(index), layer(width, growth, dropout))
                    width += growth
            parts.append(block)
            whole += layers_per_block * growth
        self.dense1, self.transition1, self.dense2, self.transition2, self.dense3 = parts
        self.bn = nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, num_classes)
        initialise_convolutions(self)

    def stages(self) -> tuple[nn.Sequential, ...]:
        return self.dense1, self.dense2, self.dense3  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition1(self.dense1(self.conv1(x)))
        x = self.transition2(self.dense2(x))
        x = F.relu(self.bn(self.dense3(x)))
        return self.linear(x.mean(dim=(2, 3)))


def _compressed(channels: int, compression: float) -> int:
    """floor(compression x channels), at least 1; a third of 93 is 31, whatever a float makes of it."""
    return max(1, math.floor(round(compression * channels, 6)))


def densenet(
    depth: int,
    growth: int,
    *,
    num_classes: int,
    in_channels: int,
    compression: float = 1.0,
    dropout: float = 0.0,
    kept_layers: Sequence[int] | None = None,
) -> DenseNet:
    """The plain DenseNet: densenet_40_12 has depth 40 and growth rate 12.

    Args:
        depth: 3n+4.
        growth: k, the channels that each layer adds.
        num_classes: number of logits.
        in_channels: C of the images.
        compression: fraction of the channels that a transition gives on (theta in the paper).
        dropout: probability with which an output of a convolution, but the first, is zero in training.
        kept_layers: which layers of the three blocks are there, counted from 0 in order of execution; None keeps all.

    Raises:
        InputError: a depth that no number of layers gives, another number or indices out of range.
    """
    layers_per_block = options.densenet(depth, growth)
    options.share("compression", compression)
    options.probability("dropout", dropout)
    shared = (growth, compression, dropout, num_classes, in_channels, kept_layers)
    return DenseNet(Layer, layers_per_block, PLAIN_STEM, *shared)


def densenet_bc(
    depth: int,
    growth: int,
    *,
    num_classes: int,
    in_channels: int,
    compression: float = 0.5,
    dropout: float = 0.0,
    kept_layers: Sequence[int] | None = None,
) -> DenseNet:
    """DenseNet-BC, of depth 6n+4: densenet_bc_100_12 has depth 100 and growth rate 12; otherwise as `densenet`."""
    layers_per_block = options.densenet_bc(depth, growth)
    options.share("compression", compression)
    options.probability("dropout", dropout)
    shared = (growth, compression, dropout, num_classes, in_channels, kept_layers)
    return DenseNet(BottleneckLayer, layers_per_block, 2 * growth, *shared)
