"""Whole batches at once, on the device they are on: shifted crops with flips, and normalisation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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


def normalise(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(images / 255 - mean) / std as `dtype` [N, C, H, W].

    images: uint8 [N, C, H, W]; mean: [C, 1, 1], or [C, H, W] for a mean of each pixel; std: [C, 1, 1]. Mean and std are
    on the [0, 1] scale and on the device of the images.
    """
    return images.to(torch.float32).sub_(mean * 255).div_(std * 255).to(dtype)
