"""VGG for CIFAR: five groups of 3x3 convolutions with a max pooling after each, and one linear layer.

Paper: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition (arXiv 1409.1556),
table 1, configurations A, B, D and E; on CIFAR, the three linear layers are one.

Letters: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from torch import Tensor, nn

from resless.models.resnet import initialise_convolutions

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Number of convolutions in each group, by the depth, which counts the paper's three linear layers."""


class VGG(nn.Module):
    """Convolutions and pooling, mean over pixels, classifier: [N, C, H, W] -> [N, num_classes]; H, W of any size."""

    def __init__(self, depth: int, batch_norm: bool, num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, convolutions in zip(WIDTHS, CONVOLUTIONS[depth], strict=True):
            for _ in range(convolutions):
                layers.append(nn.Conv2d(in_channels, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width), nn.ReLU()] if batch_norm else [nn.ReLU()]
                in_channels = width
            # ceil_mode: images smaller than 32 x 32, of which a single pixel is left early, pass too.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_channels, num_classes)
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def vgg(depth: int, *, num_classes: int, in_channels: int) -> VGG:
    """VGG without batch norm.

    Args:
        depth: 11, 13, 16 or 19.
        num_classes: number of logits.
        in_channels: C of the images.
    """
    return VGG(depth, False, num_classes, in_channels)


def vgg_bn(depth: int, *, num_classes: int, in_channels: int) -> VGG:
    """VGG with a batch norm after each convolution; see `vgg`."""
    return VGG(depth, True, num_classes, in_channels)
