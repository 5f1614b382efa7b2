"""AlexNet for CIFAR: five convolutions of the ImageNet network, made for small images, and one linear layer.

Paper: Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks (NIPS 2012); strides, padding
and the single classifier are those of the usual CIFAR baseline.

Letters: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from torch import Tensor, nn

from resless.models.resnet import initialise_convolutions


class AlexNet(nn.Module):
    """Convolutions with ReLU and 2x2 max pooling, mean over pixels, classifier: [N, C, H, W] -> [N, num_classes]."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(in_channels, 64, 11, stride=4, padding=5),
            _pool(),
            *_convolution(64, 192, 5, padding=2),
            _pool(),
            *_convolution(192, 384, 3, padding=1),
            *_convolution(384, 256, 3, padding=1),
            *_convolution(256, 256, 3, padding=1),
            _pool(),
        )
        self.classifier = nn.Linear(256, num_classes)
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def _convolution(
    in_channels: int, out_channels: int, kernel_size: int, *, padding: int, stride: int = 1
) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding), nn.ReLU()]


def _pool() -> nn.MaxPool2d:
    # ceil_mode: images smaller than 32 x 32, of which a single pixel is left early, pass too.
    return nn.MaxPool2d(2, ceil_mode=True)


def alexnet(*, num_classes: int, in_channels: int) -> AlexNet:
    """AlexNet for images of about 32 x 32 pixels, which leave one pixel of features; those of more are averaged.

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
    """
    return AlexNet(num_classes, in_channels)
