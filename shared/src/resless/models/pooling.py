"""Average pooling of squares of pixels that do not overlap."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def average(x: Tensor, side: int) -> Tensor:
    """The mean of each square of `side` x `side` pixels, [N, C, H, W] -> [N, C, ceil(H/side), ceil(W/side)].

    At the lower and right border a square may be cut off: the mean is then over what is there.

    On a CPU, torch's own pooling takes 1.4 times (channels_last) to five times as long as sums of strided views: of
    ResNet-32, whose shortcuts pool twice, 2 % of inference. Gradients, half precision (in which sums would be rounded
    in between), other devices and graphs that are traced keep to torch's.
    """
    tensor = isinstance(x, Tensor) and not torch.compiler.is_compiling()
    if not (tensor and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()):
        return F.avg_pool2d(x, side, ceil_mode=True)
    if side == 1 or x.shape[-2] % side or x.shape[-1] % side:
        return F.avg_pool2d(x, side, ceil_mode=True)
    rows = x[:, :, ::side] + x[:, :, 1::side]
    for offset in range(2, side):
        rows += x[:, :, offset::side]
    means = rows[..., ::side] + rows[..., 1::side]
    for offset in range(2, side):
        means += rows[..., offset::side]
    return means.mul_(1 / side**2)
