"""Whether two networks give the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resless.errors import InputError
from resless.modes import in_eval_mode


def error(expected: Tensor, found: Tensor) -> float:
    """The largest difference, as a part of the largest logit (of 1, where all are smaller)."""
    return float((expected - found).abs().max() / expected.abs().max().clamp_min(1))


@torch.no_grad()
def check_equal(model: nn.Module, other: nn.Module, example: Tensor, tolerance: float, what: str) -> None:
    """Compare two networks in eval mode, on `example` and noise; their modes are put back.

    Args:
        model: the network.
        other: what was made of it; `what` says how, for the message.
        example: images [N, C, H, W] of the right size.
        tolerance: largest allowed `error`.

    Raises:
        InputError: the network itself gives logits that are not finite.
        RuntimeError: the logits differ.
    """
    noise = torch.randn(8, *example.shape[1:], generator=torch.Generator().manual_seed(0)).to(example)
    images = torch.cat([example, noise])  # the example may be blank, where wrongly wired inputs would not show
    with in_eval_mode(model, other):
        expected, found = model(images), other(images)
    if not expected.isfinite().all():
        raise InputError("the network's outputs are not finite: its weights are damaged, or its training diverged")
    difference = error(expected, found)
    if not difference <= tolerance:
        raise RuntimeError(f"the {what} network differs by {difference:.2e} of the largest logit: this is a defect")
