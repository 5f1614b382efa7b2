"""Learning rate, weight decay by kind of parameter, moving average: as torchvision's reference training has them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from adn.config import COSINE, Optim

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
EMBEDDINGS = ("class_token", "pos_embedding", "relative_position_bias_table")


def learning_rate(config: Optim, epoch: int) -> float:
    """The rate in an epoch, counted from 0: a warm-up, then milestones or half a cosine, counted from its end."""
    warmup = config.lr_warmup_epochs
    if epoch < warmup:
        risen = epoch / warmup if config.lr_warmup_method == "linear" else 0.0
        return config.lr * (config.lr_warmup_decay + (1 - config.lr_warmup_decay) * risen)
    if config.schedule in COSINE:
        done = (epoch - warmup) / max(1, config.epochs - warmup)
        return config.lr_min + (config.lr - config.lr_min) * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * config.gamma ** sum(epoch - warmup >= milestone for milestone in config.milestones)


def parameter_groups(net: nn.Module, config: Optim) -> list[dict[str, Any]]:
    """All parameters, those of norms, biases and embeddings with weight decays of their own where these are given.

    A norm's bias is a bias.
    """
    by_decay: dict[float, list[nn.Parameter]] = {}
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            by_decay.setdefault(_weight_decay(module, name, config), []).append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in by_decay.items()]


def _weight_decay(module: nn.Module, name: str, config: Optim) -> float:
    own = None
    # Deviation: the reference takes only what is called `bias`, and `position_embedding`, which no network has; here
    # attention's `in_proj_bias` is a bias, and `pos_embedding` an embedding.
    if name.endswith("bias"):
        own = config.bias_weight_decay
    elif name in EMBEDDINGS:
        own = config.transformer_embedding_decay
    if own is None and isinstance(module, NORMS):
        own = config.norm_weight_decay
    return config.weight_decay if own is None else own


class MovingAverage(AveragedModel):
    """A moving average of a network's weights and buffers; a run's checkpoints carry it.

    Args:
        net: the network that is trained.
        config: `model_ema_decay` is the old average's share for batches of one image and one epoch.
        device: where the average is kept.
    """

    def __init__(self, net: nn.Module, config: Optim, device: torch.device) -> None:
        # As the reference: the average reaches equally far back in a run, whatever its batches and epochs.
        share = (1 - config.model_ema_decay) * config.batch_size * config.model_ema_steps / max(1, config.epochs)
        self._decay = 1 - min(1.0, share)
        super().__init__(net, device, multi_avg_fn=get_ema_multi_avg_fn(self._decay), use_buffers=True)
        self._every, self._warmup_epochs = config.model_ema_steps, config.lr_warmup_epochs

    def after_step(self, net: nn.Module, epoch: int, step: int) -> None:
        """Update the average, if it is its turn; during the warm-up it is the network as it is."""
        if step % self._every:
            return
        self.update_parameters(net)
        if epoch < self._warmup_epochs:
            self.n_averaged.zero_()  # the next update copies

    def share_of_start(self, steps_per_epoch: int, epochs: int) -> float:
        """Which part of the average is still, after all epochs, the network as it was at the end of the warm-up."""
        updates_per_epoch = math.ceil(steps_per_epoch / self._every)  # the first step of each epoch has one
        return self._decay ** (updates_per_epoch * (epochs - self._warmup_epochs))
