"""Networks that can lose branches: residual networks those of some of their blocks, DenseNets those of some layers.

A residual block adds what its branch makes of its input to what its shortcut passes on. Without the branch it is its
shortcut alone, and nothing at all where that changes nothing. A layer of a DenseNet puts the channels that its branch
makes beside its input. Without the branch it is nothing, and the layers behind it read fewer channels.

Letters: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

from torch import Tensor, nn

from resless.models import options


class ShortcutOnly(nn.Module):
    """What is left of a stage's first block without its residual branch: its shortcut, and no ReLU."""

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x)


class Branching:
    """What makes a module one that adds what a branch makes of its input to that: by a sum, or as more channels."""

    def without_branch(self) -> nn.Module | None:
        """What is left of the module without its branch, of the same names; None where that is its input."""
        return None


class ResidualBlock(Branching):
    """What makes a module [N, C, H, W] -> [N, C', H/stride, W/stride] one of a shortcut and a residual branch that is
    added to it."""

    shortcut: nn.Module

    def without_branch(self) -> nn.Module | None:
        return None if isinstance(self.shortcut, nn.Identity) else ShortcutOnly(self.shortcut)


class BranchingNetwork(ABC):
    """What makes a module one of stages, of which every module may have a branch."""

    kept_option: ClassVar[str]
    """The option of its builder that lists the modules that keep their branch, counted over all stages."""

    @abstractmethod
    def stages(self) -> Sequence[nn.Sequential]:
        """The modules of each stage, and what is left of those without a branch, in order of execution."""


class ResidualNetwork(BranchingNetwork):
    """What makes a module one of stages of residual blocks."""

    kept_option = "kept_blocks"

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
        places = [(stage, name) for stage in self.stages() for name, _ in stage.named_children()]
        chosen = options.kept_branches("kept_blocks", kept, len(places))
        for index, (stage, name) in enumerate(places):
            if chosen is not None and index not in chosen:
                drop_branch(stage, name)


def branching(net: nn.Module) -> list[str]:
    """Paths of a network's modules that have a branch, in order of execution."""
    return [path for path, module in net.named_modules() if isinstance(module, Branching)]


def drop_branch(holder: nn.Module, name: str) -> None:
    """Remove, in place, the branch of the module of this name in another; one without a branch stays as it is.

    Where it made channels, the layers behind are not yet changed: they have to read fewer.
    """
    module = getattr(holder, name)
    if not isinstance(module, Branching):
        return
    left = module.without_branch()
    if left is None:
        delattr(holder, name)
    else:
        setattr(holder, name, left)
