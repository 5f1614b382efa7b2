"""One configuration of an adaptive network as a plain network, without what it does not use."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from resless import models
from resless.errors import InputError, check
from resless.models import Spec
from torch import Tensor, nn

from adn import backbones, convert
from adn.convert import Unit
from adn.model import AdaptiveNet
from adn.original import SECOND


def extract(model: nn.Module, skip: Sequence[bool]) -> nn.Module:
    """The plain network of one configuration, a copy in eval mode, with equal outputs.

    It is of torchvision's class (of resless's for CIFAR ResNets) with shorter stages, so that its state dict fits that
    class. It can be saved as a model folder, if `model` can. Those of ResNets load wherever resless is; it knows no
    others yet, nor variant d, and those load where adn is installed.

    Args:
        model: an AdaptiveNet.
        skip: K flags.

    Raises:
        InputError: another network, or not K booleans.
    """
    if not isinstance(model, AdaptiveNet):
        raise InputError(f"a {type(model).__name__} is no network of adaptive depth: there is nothing to extract")
    skip = model.check_skip(skip)
    net = copy.deepcopy(model.net)
    moved = convert.shorten(net, model.units, skip)
    net.load_state_dict(net.state_dict() | _second_norms(model, skip, moved))
    net.spec = _spec(model, skip)  # type: ignore[assignment]
    return net.eval()


def build(
    *,
    num_classes: int,
    in_channels: int,
    backbone: str,
    backbone_options: Mapping[str, Any],
    skip: Sequence[bool],
) -> nn.Module:
    """The network of a model folder: how `resless.models` builds one that is called `adn_extracted`."""
    check(isinstance(backbone_options, Mapping), "backbone_options", backbone_options, "options by name")
    net = backbones.plain(backbone, num_classes=num_classes, in_channels=in_channels, options=backbone_options)
    units = convert.units_of(net)
    stages = units[-1].stage + 1
    valid = isinstance(skip, list | tuple) and len(skip) == stages and all(isinstance(flag, bool) for flag in skip)
    check(valid, "skip", skip, f"{stages} times true or false, one for each stage of {backbone}")
    convert.shorten(net, units, skip)
    return net


def _second_norms(model: AdaptiveNet, skip: Sequence[bool], moved: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of the norms that the stages which skip use, under their names in the extracted network."""
    own, state = model.state_dict(), dict[str, Tensor]()
    for unit in model.units:
        if skip[unit.stage] and not unit.skippable:
            before = f"{SECOND}{unit.path}."
            now = f"{moved.get(unit.path, unit.path)}."
            state |= {now + key.removeprefix(before): own[key] for key in own if key.startswith(before)}
    return state


def _spec(model: AdaptiveNet, skip: Sequence[bool]) -> Spec | None:
    """How to build the extracted network again; None where the adaptive one was not made by name."""
    spec = getattr(model, "spec", None)
    if not isinstance(spec, Spec):
        return None
    backbone, options = spec.options["backbone"], spec.options["backbone_options"]
    if backbone in (*backbones.VARIANT_D, *backbones.OTHERS):
        return Spec(
            "adn_extracted",
            spec.num_classes,
            spec.in_channels,
            {"backbone": backbone, "backbone_options": options, "skip": tuple(skip)},
        )
    name = backbones.IMAGENET_RESNETS.get(backbone, backbone)
    kept = _kept_blocks(model.units, skip) if any(skip) else None
    # With the defaults of all options, as a spec has them.
    options = {**models.option_defaults(name), **options, "kept_blocks": kept}
    return Spec(name, spec.num_classes, spec.in_channels, options)


def _kept_blocks(units: Sequence[Unit], skip: Sequence[bool]) -> tuple[int, ...]:
    """Blocks that stay, counted over all stages: the units of a ResNet are its blocks."""
    return tuple(index for index, unit in enumerate(units) if not (unit.skippable and skip[unit.stage]))


if __name__ == "__main__":
    from adn.cli import extract as script

    script()
