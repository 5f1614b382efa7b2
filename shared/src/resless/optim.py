"""Optimisers from a configuration, and the learning rate as a pure function of the epoch.

A function has no state: nothing to save, and nothing that steps once too often when several processes run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from resless.config import OptimConfig


def build(parameters: Iterable[torch.Tensor] | Iterable[dict], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser over `parameters` (tensors or parameter groups)."""
    lr, weight_decay = config.lr, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr, config.momentum, weight_decay=weight_decay, nesterov=config.nesterov, fused=True
        )
    adam = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return adam(parameters, lr, weight_decay=weight_decay, fused=True)


def learning_rate(config: OptimConfig, epoch: int) -> float:
    """Learning rate during `epoch` (0-based): after each milestone times gamma, or half a cosine from lr towards 0."""
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / max(1, config.epochs)))
    return config.lr * config.gamma ** sum(epoch >= milestone for milestone in config.milestones)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` in every parameter group from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr
