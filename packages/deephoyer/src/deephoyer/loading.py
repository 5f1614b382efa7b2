"""Where networks come from: model folders, of any package, and checkpoints of plain networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resless import models, weights
from resless.errors import check_left_out
from torch import nn

from deephoyer.config import ForeignConfig


@dataclass(frozen=True)
class Source:
    """A trained network, before it is built."""

    name: str
    """Its folder or file, for messages."""
    folder: str | None
    """Its model folder."""
    checkpoint: str | None
    """Its checkpoint file, where it has no folder."""
    shortcut: str | None
    """Of the network in a checkpoint file."""
    preprocessing: dict[str, Any]
    """What it expects of its images: `mean` and `std`, of a folder `image_size` too; empty where nobody said so."""
    metrics: dict[str, Any]
    """What its folder says was measured."""
    image_shape: tuple[int, ...] | None
    """(C, H, W) of its images, where its folder says so."""
    class_names: list[str] | None = None
    """What its logits stand for, likewise."""

    def network(self, create: Callable[..., nn.Module]) -> nn.Module:
        """The network in eval mode; `create(shortcut=...)` makes the one whose weights a checkpoint file holds."""
        if self.folder is not None:
            return weights.from_pretrained(self.folder)
        model = create(**({} if self.shortcut is None else {"shortcut": self.shortcut}))
        assert self.checkpoint is not None
        weights.load(model, self.checkpoint)
        return model.eval()


def of(model: str, pretrained: str | None, foreign: ForeignConfig) -> Source:
    """The network that a command line names.

    Args:
        model: a model folder; or, with `pretrained`, the name of the network.
        pretrained: a model folder or checkpoint file of it.
        foreign: what a checkpoint file does not say.

    Raises:
        InputError: nothing is there; a folder that holds another network than `model` names, or beside which an option
            says what the network is.
    """
    folder = pretrained or model
    if pretrained is not None and not Path(pretrained).is_dir():
        models.check_name(model)
        return Source(pretrained, None, pretrained, foreign.shortcut, foreign.statistics, {}, None)
    described = weights.read_config(folder)
    if pretrained is not None:
        weights.check_holds(model, folder)
    check_left_to_folder(folder, shortcut=foreign.shortcut)
    shape = described["costs"].get("image_shape")
    preprocessing = described["preprocessing"] | foreign.statistics
    return Source(
        folder,
        folder,
        checkpoint=None,
        shortcut=None,
        preprocessing=preprocessing,
        metrics=described["metrics"],
        image_shape=shape and tuple(shape),
        class_names=described.get("class_names"),
    )


def check_left_to_folder(folder: str, **options: object) -> None:
    """Refuse options that say what a network is, which a model folder knows; None stands for one that is not given.

    Args:
        folder: the model folder.
        options: their values, by their names with underscores.

    Raises:
        InputError: one of them is given; it is named.
    """
    check_left_out(f"since the model folder {folder} says what its network is", **options)
