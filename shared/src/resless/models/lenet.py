"""LeNet-300-100 and LeNet-5, dense or compacted.

Sizes are those of the Caffe examples that the pruning literature compares on (LeCun et al. 1998 describe smaller ones).
A compacted LeNet is the same network with smaller widths that reads only some inputs: `inputs` and `features`.

Letters: N images, C channels, S x S pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resless.errors import InputError
from resless.models import options

KERNEL_SIZE = 5
MIN_LENET5_SIZE = 16


class LeNet300100(nn.Module):
    """Three linear layers: [N, C, S, S] -> logits [N, num_classes]."""

    inputs: Tensor | None

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        widths: Sequence[int],
        num_classes: int,
        inputs: Sequence[int] | None,
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        num_inputs = len(inputs) if inputs is not None else image_shape[0] * image_shape[1] * image_shape[2]
        self.fc1 = nn.Linear(num_inputs, widths[0])
        self.fc2 = nn.Linear(widths[0], widths[1])
        self.fc3 = nn.Linear(widths[1], num_classes)
        self.register_buffer("inputs", _index(inputs), persistent=False)
        self.register_forward_pre_hook(_check_images)

    def forward(self, x: Tensor) -> Tensor:
        x = _kept(x.flatten(1), self.inputs)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class LeNet5(nn.Module):
    """Two convolutions with ReLU and 2x2 max pooling, two linear layers: [N, C, S, S] -> logits [N, num_classes]."""

    features: Tensor | None

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        widths: Sequence[int],
        num_classes: int,
        features: Sequence[int] | None,
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        num_features = len(features) if features is not None else widths[1] * lenet5_pooled_size(image_shape[1]) ** 2
        self.conv1 = nn.Conv2d(image_shape[0], widths[0], KERNEL_SIZE)
        self.conv2 = nn.Conv2d(widths[0], widths[1], KERNEL_SIZE)
        self.fc1 = nn.Linear(num_features, widths[2])
        self.fc2 = nn.Linear(widths[2], num_classes)
        self.register_buffer("features", _index(features), persistent=False)
        self.register_forward_pre_hook(_check_images)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = _kept(x.flatten(1), self.features)
        x = F.relu(self.fc1(x))
        return self.fc2(x)


def lenet_300_100(
    *,
    num_classes: int,
    in_channels: int,
    image_size: int = 28,
    widths: Sequence[int] = (300, 100),
    inputs: Sequence[int] | None = None,
) -> LeNet300100:
    """LeNet-300-100 for images [N, in_channels, image_size, image_size].

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        image_size: S of the images.
        widths: units of the two hidden layers.
        inputs: increasing indices of the flattened image values that are read; left out, all are.

    Raises:
        InputError: a value out of range.
    """
    options.whole_number("image_size", image_size, high=options.MAX_IMAGE_SIZE)
    widths = options.widths("widths", widths, 2)
    inputs = options.kept_indices("inputs", inputs, in_channels * image_size**2)
    return LeNet300100((in_channels, image_size, image_size), widths, num_classes, inputs)


def lenet5(
    *,
    num_classes: int,
    in_channels: int,
    image_size: int = 28,
    widths: Sequence[int] = (20, 50, 500),
    features: Sequence[int] | None = None,
) -> LeNet5:
    """LeNet-5 for images [N, in_channels, image_size, image_size].

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        image_size: S of the images, 16 or more.
        widths: filters of the two convolutions and units of the hidden linear layer.
        features: increasing indices of the flattened features (channel, row, column) that the first linear layer
            reads; left out, it reads all.

    Raises:
        InputError: a value out of range.
    """
    options.whole_number("image_size", image_size, MIN_LENET5_SIZE, options.MAX_IMAGE_SIZE)
    widths = options.widths("widths", widths, 3)
    features = options.kept_indices("features", features, widths[1] * lenet5_pooled_size(image_size) ** 2)
    return LeNet5((in_channels, image_size, image_size), widths, num_classes, features)


def lenet5_pooled_size(image_size: int) -> int:
    """Side of LeNet-5's feature maps after both convolutions and poolings, for images of `image_size` pixels."""
    for _ in range(2):
        image_size = (image_size - KERNEL_SIZE + 1) // 2
    return image_size


def _index(indices: Sequence[int] | None) -> Tensor | None:
    return None if indices is None else torch.tensor(indices, dtype=torch.int64)


def _kept(x: Tensor, indices: Tensor | None) -> Tensor:
    """The columns `indices` of x [N, F]; all where there are none."""
    return x if indices is None else x.index_select(1, indices)


def _check_images(model: LeNet300100 | LeNet5, args: tuple[Tensor]) -> None:
    # Indices into a flattened image of another size would silently read other pixels. Before the forward pass and not
    # in it, which torch.fx can then trace.
    shape = tuple(args[0].shape[1:])
    if shape != model.image_shape:
        raise InputError(f"the images are {shape}, but this network takes (C, H, W) = {model.image_shape}")
