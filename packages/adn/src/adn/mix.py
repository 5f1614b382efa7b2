"""Mixup and CutMix: images and labels of a batch mixed in pairs, by torchvision's transforms."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

from adn.config import TrainConfig

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mixing(config: TrainConfig, num_classes: int) -> Mixing | None:
    """What mixes images [N, C, H, W] and classes [N] into images and probabilities [N, num_classes]; None leaves them.

    Where both are asked for, each batch draws one of the two. They draw from torch's generators, which a run saves.
    """
    choices: list[Mixing] = []
    if config.mixup_alpha:
        choices.append(v2.MixUp(alpha=config.mixup_alpha, num_classes=num_classes))
    if config.cutmix_alpha:
        choices.append(v2.CutMix(alpha=config.cutmix_alpha, num_classes=num_classes))
    return v2.RandomChoice(choices) if choices else None
