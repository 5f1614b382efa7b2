"""Training and eval mode, put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_eval_mode(*models: nn.Module) -> Iterator[None]:
    """Networks are in eval mode meanwhile; afterwards each module is in its own mode again, whatever happens."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model in models:  # for what follows a network without being one of its modules
            model.train(modes[model])
        for module, training in modes.items():
            module.training = training
