"""Residual networks that can lose the residual branches of some of their blocks.

A block adds what its residual branch makes of its input to what its shortcut passes on. Without the branch it is its
shortcut alone, and nothing at all where that changes nothing.

Letters: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from resless.models import options


class ShortcutOnly(nn.Module):
    """What is left of a stage's first block without its residual branch: its shortcut, and no ReLU."""

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x)


class ResidualBlock:
    """What makes a module [N, C, H, W] -> [N, C', H/stride, W/stride] one of a shortcut and a residual branch that is
    added to it."""

    shortcut: nn.Module

    def without_residual(self) -> nn.Module | None:
        """What is left of the block without its residual branch, of the same names; None where that is its input."""
        return None if isinstance(self.shortcut, nn.Identity) else ShortcutOnly(self.shortcut)


class ResidualNetwork(ABC):
    """What makes a module one of stages of residual blocks."""

    @abstractmethod
    def stages(self) -> Sequence[nn.Sequential]:
        """The residual blocks of each stage, and what is left of dropped ones, in order of execution."""

    def blocks(self) -> Iterator[nn.Module]:
        """Those of all stages."""
        for stage in self.stages():
            yield from stage

    def drop_blocks(self, kept: Sequence[int] | None) -> None:
        """Remove, in place, the residual branches of all blocks but `kept`; those have the names that they had.

        Args:
            kept: increasing indices, counted over all blocks of all stages; may be empty. None keeps all.

        Raises:
            InputError: no list; an index that is no whole number, out of range, or not greater than the one before it.
        """
        places = [(stage, name, block) for stage in self.stages() for name, block in stage.named_children()]
        # Unlike other lists of indices, this one may be empty.
        chosen = () if kept in ((), []) else options.kept_indices("kept_blocks", kept, len(places))
        for index, (stage, name, block) in enumerate(places):
            if chosen is None or index in chosen or not isinstance(block, ResidualBlock):
                continue
            left = block.without_residual()
            if left is None:
                delattr(stage, name)
            else:
                setattr(stage, name, left)
