"""What a run knows of its blocks, step by step and epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from epsilon_resnet.method import mostly


class BlockRecord:
    """Gates and responses of K blocks over a run; its checkpoints carry it.

    Args:
        num_blocks: K.
        device: where the steps' values are.
    """

    def __init__(self, num_blocks: int, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._closed = torch.zeros(num_blocks, device=device)
        self._largest = torch.zeros(num_blocks, device=device)
        self._steps_of_epoch = 0
        self.steps = 0
        """Steps of all epochs so far."""
        self.history: list[dict[str, list[float]]] = []
        """By epoch, a value each block: `discarded`, the fraction of steps in which it was; `largest`, the mean over
        the steps of max|F|; `size`, of its weights at the end, see `method.relative_size`."""
        self.retired: dict[int, int] = {}
        """Epoch (counted from 0) at whose end a block was computed for the last time."""

    def add(self, gates: Tensor, largest: Tensor) -> None:
        """A step's gates and largest responses, [K] each, without waiting for them."""
        self._closed += 1 - gates
        self._largest += largest
        self._steps_of_epoch += 1
        self.steps += 1

    def end_epoch(self, sizes: Sequence[float]) -> list[int]:
        """Record the epoch, with the sizes [K] of the blocks' weights; returns the blocks discarded in it."""
        steps = max(1, self._steps_of_epoch)
        fractions = (self._closed / steps).tolist()
        self.history.append({"discarded": fractions, "largest": (self._largest / steps).tolist(), "size": list(sizes)})
        self._closed.zero_()
        self._largest.zero_()
        self._steps_of_epoch = 0
        return [index for index, fraction in enumerate(fractions) if mostly(fraction)]

    def gone(self, weight_bound: float, epochs: int = 1) -> list[int]:
        """The blocks that were discarded in all steps of the last `epochs` epochs, their weights under the bound."""
        if len(self.history) < epochs:
            return []
        last = self.history[-epochs:]
        sizes = last[-1]["size"]
        return [
            index
            for index, size in enumerate(sizes)
            if size < weight_bound and all(epoch["discarded"][index] == 1 for epoch in last)
        ]

    def retire(self, blocks: Sequence[int]) -> None:
        """Note that blocks are not computed from the next epoch on."""
        self.retired |= dict.fromkeys(blocks, len(self.history) - 1)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "closed": self._closed,
            "largest": self._largest,
            "steps_of_epoch": self._steps_of_epoch,
            "steps": self.steps,
            "history": self.history,
            "retired": self.retired,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._closed = state["closed"].to(self._device)
        self._largest = state["largest"].to(self._device)
        self._steps_of_epoch, self.steps = state["steps_of_epoch"], state["steps"]
        self.history, self.retired = state["history"], state["retired"]


def blocks_named(blocks: Sequence[int]) -> str:
    """Indices of blocks in few words: of more than four, the first three and how many more."""
    shown = blocks if len(blocks) <= 4 else blocks[:3]
    more = f" and {len(blocks) - len(shown)} more" if len(shown) < len(blocks) else ""
    return f"block{'s' if len(blocks) > 1 else ''} {', '.join(map(str, shown))}{more}"
