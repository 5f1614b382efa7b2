"""Whole batches at once, on the device they are on: crops with flips, varied colours, normalisation, erased parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from resless.errors import check

_GREY = (0.2989, 0.587, 0.114)  # of red, green and blue, as in torchvision

# Of the colours of ImageNet's pixels on the [0, 1] scale: of each component, what its noise is multiplied by, and its
# direction (a column of red, green, blue). The numbers of fb.resnet.torch, datasets/imagenet.lua.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))

# Of torchvision's RandomErasing: an erased part's share of the image and its height by its width.
_LEAST_AREA, _MOST_AREA = 0.02, 0.33
_LEAST_RATIO, _MOST_RATIO = 0.3, 3.3
_ATTEMPTS = 10


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied, in this order; what is 0, False or None is left out.

    Raises InputError for values out of range.
    """

    pad: int = 0
    """Shift each image by up to so many pixels in each direction, filling with black. Not where images are streamed:
    of these a random part is cut out."""
    flip: bool = False
    """Mirror half of the images; streamed ones always."""
    brightness: float = 0.0
    """Multiply each image's brightness by a factor from 1 - this to 1 + this."""
    contrast: float = 0.0
    """The same for its contrast."""
    saturation: float = 0.0
    """The same for its saturation; colour images only."""
    lighting: float = 0.0
    """Shift its colours by noise of this standard deviation (see `lighting_shift`); colour images only."""
    auto_augment: str | None = None
    """Vary each image alone by a policy (see `resless.data.policies.auto_augment`), on the CPU."""
    interpolation: str = "bilinear"
    """Of the policy, and where streamed images are resized."""
    random_erase: float = 0.0
    """Probability with which a rectangle is set to the mean (see `erased_rectangles`)."""

    def __post_init__(self) -> None:
        check(self.pad >= 0, "pad", self.pad, "at least 0 pixels")
        for name in ("brightness", "contrast", "saturation"):
            check(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        check(0 <= self.lighting < math.inf, "lighting", self.lighting, "0 or more, and finite")
        check(0 <= self.random_erase <= 1, "random_erase", self.random_erase, "a probability from 0 to 1")

    @property
    def varies_colours(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.lighting))

    def check_channels(self, channels: int) -> None:
        """Raises InputError for what needs colours where the images have none."""
        for option, value in {"--saturation": self.saturation, "--lighting": self.lighting}.items():
            wanted = f"left out: the images have {channels} channel, no colours"
            check(channels == 3 or not value, option, value, wanted)


UNVARIED = Augmentation()
"""Images as they are; streamed ones cut out and mirrored."""


def crop_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> Tensor:
    """Pads with `pad` black pixels on all four sides, cuts each image out of its own place, and mirrors some.

    images: uint8 [N, C, H, W]; top, left: int64 [N], 0 <= offset <= 2 * pad, where `pad` leaves the image in place;
    flip: bool [N], mirrored left to right after the crop. Returns uint8 [N, C, H, W]. Equal to torchvision's `pad`,
    `crop` and `hflip` applied to every image alone.
    """
    n, channels, height, width = images.shape
    tall, wide = height + 2 * pad, width + 2 * pad
    padded = F.pad(images, (pad, pad, pad, pad))
    pixels = torch.cat([padded, padded.flip(3)]).flatten()  # [2 * N * C * tall * wide], the mirrored images last

    image = torch.arange(n, device=images.device) + n * flip
    left = torch.where(flip, 2 * pad - left, left)  # the same columns, counted in the mirrored image
    channel_and_row = torch.arange(channels * tall, device=images.device).view(channels, tall)[:, :height]
    starts = (image * channels * tall + top)[:, None, None] + channel_and_row  # [N, C, H], in rows
    starts = starts * wide + left[:, None, None]  # in pixels

    # Copying whole rows is several times as fast as indexing pixels: every run of `width` pixels is a row of this view.
    runs = pixels.as_strided((pixels.numel() - width + 1, width), (1, 1))
    return runs.index_select(0, starts.flatten()).view(n, channels, height, width)


def jitter(
    images: Tensor,
    *,
    brightness: Tensor | None = None,
    contrast: Tensor | None = None,
    saturation: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Multiplies the brightness, then the contrast, then the saturation of each image, and shifts its channels.

    images: uint8 [N, C, H, W], C = 3 for saturation; the factors: float32 [N], 0 or more; shift: float32 [N, C], grey
    levels to add, as of `lighting_shift`; None leaves out. Returns uint8 [N, C, H, W]. Equal to torchvision's
    `adjust_brightness`, `adjust_contrast` and `adjust_saturation` applied in this order to every image alone in
    floating point (on uint8 they cut off the fractions each time), and rounded once, at the end.
    """
    pixels = images.to(torch.float32)
    if brightness is not None:
        pixels.mul_(brightness[:, None, None, None]).clamp_(max=255)
    if contrast is not None:
        # The mean of the grey image, [N, 1, 1, 1]; in float64, or its last digits would depend on the device.
        mean = _grey(pixels.mean(dim=(2, 3), dtype=torch.float64)).to(torch.float32)[:, None, None, None]
        pixels.sub_(mean).mul_(contrast[:, None, None, None]).add_(mean).clamp_(0, 255)
    if saturation is not None:
        grey = _grey(pixels)[:, None]  # [N, 1, H, W]
        pixels.sub_(grey).mul_(saturation[:, None, None, None]).add_(grey).clamp_(0, 255)
    if shift is not None:
        pixels.add_(shift[:, :, None, None])
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _grey(pixels: Tensor) -> Tensor:
    """[N, C, ...] -> [N, ...], the brightness of each pixel."""
    if pixels.shape[1] != 3:
        return pixels.mean(dim=1)
    red, green, blue = pixels.unbind(1)
    return red * _GREY[0] + green * _GREY[1] + blue * _GREY[2]


def lighting_shift(noise: Tensor) -> Tensor:
    """Grey levels to add to red, green and blue, [N, 3], for noise [N, 3] along the components of ImageNet's colours.

    AlexNet's lighting (Krizhevsky et al., 2012, section 4.1), whose noise is normal with a standard deviation of 0.1.
    """
    components = noise.new_tensor(_EIGENVECTORS) * noise.new_tensor(_EIGENVALUES)
    return 255 * noise @ components.T


def normalise(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(images / 255 - mean) / std as `dtype` [N, C, H, W].

    images: uint8 [N, C, H, W]; mean: [C, 1, 1], or [C, H, W] for a mean of each pixel; std: [C, 1, 1]. Mean and std are
    on the [0, 1] scale and on the device of the images.
    """
    return images.to(torch.float32).sub_(mean * 255).div_(std * 255).to(dtype)


def erase(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Sets a rectangle of each image to 0, which in normalised images is the mean.

    images: [N, C, H, W]; top, left, height, width: int64 [N], in pixels; a height of 0 leaves an image as it is.
    Returns [N, C, H, W]. Equal to torchvision's `erase` of every image alone.
    """
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
    in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])  # [N, H]
    in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])  # [N, W]
    # A clone keeps the layout, masked_fill would not.
    return images.clone().masked_fill_((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)


def erased_rectangles(count: int, height: int, width: int, probability: float, generator: torch.Generator) -> Tensor:
    """Rectangles for `erase`, one an image: their top, left, height and width, int64 [4, N].

    As torchvision's `RandomErasing` draws them (Zhong et al., 2020): with `probability`, else of height 0; from 2 to 33
    percent of the image, from 0.3 to 3.3 times as high as wide, and within it; of ten tries the first that is smaller
    than the image in both directions, none if all fail.
    """
    wanted = torch.rand(count, generator=generator) < probability
    uniform = torch.rand(4, _ATTEMPTS, count, dtype=torch.float64, generator=generator)
    area = height * width * (_LEAST_AREA + (_MOST_AREA - _LEAST_AREA) * uniform[0])
    ratio = torch.exp(math.log(_LEAST_RATIO) + math.log(_MOST_RATIO / _LEAST_RATIO) * uniform[1])
    tall, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (tall < height) & (wide < width)
    top, left = uniform[2] * (height - tall + 1), uniform[3] * (width - wide + 1)
    first = fits.int().argmax(dim=0)  # [N]; 0 where none fits
    drawn = torch.stack([top, left, tall, wide]).long()[:, first, torch.arange(count)]
    drawn[2:] *= wanted & fits.any(dim=0)
    return drawn
