"""Which share of every batch a process takes: of any number of processes, all images of a batch, each once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resless.errors import check

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Shards:
    """Which share of every batch this process takes, and how it wants it."""

    device: torch.device | str = "cpu"
    rank: int = 0
    world_size: int = 1
    channels_last: bool = False

    @classmethod
    def of(cls, accelerator: Accelerator, channels_last: bool) -> Shards:
        """This process's share of an Accelerator's processes."""
        return cls(accelerator.device, accelerator.process_index, accelerator.num_processes, channels_last)

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout of the images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def share(self, count: int) -> slice:
        """This process's contiguous part of `count` images; the parts of all processes cover every image once."""
        return slice(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def shares(self, indices: Tensor, batch_size: int) -> list[Tensor]:
        """This process's share of every batch of `batch_size` indices, but for those of which it gets nothing."""
        parts = (part[self.share(len(part))] for part in indices.split(batch_size))
        return [part for part in parts if len(part)]

    def check(self, batch_size: int, num_images: int) -> None:
        """Raises InputError unless the processes can share batches of `batch_size` out of `num_images`, evenly."""
        wanted = f"from 1 to the number of images, {num_images}; set --batch-size"
        check(1 <= batch_size <= num_images, "batch_size", batch_size, wanted)
        even = batch_size % self.world_size == 0
        check(even, "batch_size", batch_size, f"a multiple of the {self.world_size} processes")


ALONE = Shards()
"""One process, on the CPU."""
