"""Whether two networks give the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def error(expected: Tensor, found: Tensor) -> float:
    """The largest difference, as a part of the largest logit (of 1, where all are smaller)."""
    return float((expected - found).abs().max() / expected.abs().max().clamp_min(1))


@torch.no_grad()
def check_equal(model: nn.Module, other: nn.Module, example: Tensor, tolerance: float, what: str) -> None:
    """Raise RuntimeError unless two networks give equal logits in eval mode, for `example` [N, C, H, W] and noise.

    Args:
        model: the network; it is left in its mode.
        other: what was made of it, in eval mode; `what` says how, for the message.
        example: images of the right size.
        tolerance: largest allowed `error`.
    """
    was_training = model.training
    noise = torch.randn(8, *example.shape[1:], generator=torch.Generator().manual_seed(0)).to(example)
    images = torch.cat([example, noise])  # the example may be blank, where wrongly wired inputs would not show
    found = error(model.eval()(images), other(images))
    model.train(was_training)
    if not found <= tolerance:
        raise RuntimeError(f"the {what} network differs by {found:.2e} of the largest logit: this is a defect")
