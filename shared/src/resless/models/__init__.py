"""The registry of networks: `create(name, ...)` builds one, and `model.spec` tells how to build it again.

Importing this package does not import torch, so that a command line can check a name first.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from resless.errors import InputError, check, unknown_name
from resless.models import options as checks

if TYPE_CHECKING:
    from torch import nn

    from resless.data import Images, Stream


@dataclass(frozen=True)
class Spec:
    """What `create` needs to build a network again; goes into a model folder's config.json as it is."""

    name: str
    num_classes: int = 10
    in_channels: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    """Every option of the network, defaults included; sequences are tuples."""


@dataclass(frozen=True)
class _Family:
    """Networks that one function builds. Numbers in the name are the pattern's groups and the function's arguments."""

    pattern: str
    builder: str
    """`module:function`, in this package."""
    names: tuple[str, ...]
    """The names to list; the pattern may match more."""
    check: Callable[..., object] | None = None
    """Torch-free check of the numbers in the name."""


_FAMILIES = (
    _Family("lenet_300_100", "lenet:lenet_300_100", ("lenet_300_100",)),
    _Family("lenet5", "lenet:lenet5", ("lenet5",)),
    _Family(
        "resnet(?P<depth>[1-9][0-9]{0,4})",
        "resnet:resnet",
        tuple(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110, 164, 1001, 1202)),
        checks.cifar_depth,
    ),
    _Family(
        "torchvision/resnet(?P<depth>18|34|50|101|152)",
        "torchvision_resnet:resnet",
        tuple(f"torchvision/resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    ),
    _Family(
        "preresnet(?P<depth>[1-9][0-9]{0,4})",
        "preresnet:preresnet",
        tuple(f"preresnet{depth}" for depth in (8, 20, 32, 56, 110, 164, 1001)),
        checks.cifar_depth,
    ),
    _Family(
        "imagenet/preresnet(?P<depth>18|34|50|101|152)",
        "preresnet:imagenet_preresnet",
        tuple(f"imagenet/preresnet{depth}" for depth in (18, 34, 50, 101, 152)),
    ),
)

ENTRY_POINTS = "resless.models"
"""Group of entry points by which other distributions add networks: name -> a builder as of a family here."""


def names() -> list[str]:
    """The names of the dense networks, sorted; ResNets of any other valid depth can be created too."""
    return sorted(name for family in _FAMILIES for name in family.names)


def check_name(name: str) -> None:
    """Raise InputError unless `create(name)` knows this network and its depth. Does not import torch."""
    _parse(name)


def is_known(name: str) -> bool:
    """Whether this is the name of a network, from here or from another distribution; its depth may be impossible."""
    return _is_own(name) or bool(entry_points(group=ENTRY_POINTS, name=name))


def create(name: str, *, num_classes: int = 10, in_channels: int = 3, **options: Any) -> nn.Module:
    """A freshly initialised network, in training mode: images [N, C, H, W] -> logits [N, num_classes].

    Args:
        name: one of `names()`, or a ResNet of any other depth 6n+2 or 9n+2, such as resnet26.
        num_classes: number of logits.
        in_channels: C of the images.
        **options: what the network's builder takes, see `resnet.resnet`, `preresnet.preresnet`,
            `lenet.lenet_300_100`, `lenet.lenet5`.

    Raises:
        InputError: unknown name or option, or a value out of range.
    """
    return build(Spec(name, num_classes, in_channels, options))


def create_for(name: str, images: Images | Stream, **options: Any) -> nn.Module:
    """A network for these images: `create` with their classes, channels and, where it matters, size.

    Options that are None are left to the network's default. Raises InputError as `create` does.
    """
    in_channels, height, width = images.image_shape
    given = {option: value for option, value in options.items() if value is not None}
    if "image_size" in option_defaults(name):
        check(height == width, "the size of the images", f"{height} x {width}", f"square for {name}")
        given.setdefault("image_size", height)
    return create(name, num_classes=images.num_classes, in_channels=in_channels, **given)


def build(spec: Spec) -> nn.Module:
    """The network that a spec describes; see `create`."""
    builder, numbers = _builder(spec.name)
    required = {
        "num_classes": checks.whole_number("num_classes", spec.num_classes),
        "in_channels": checks.whole_number("in_channels", spec.in_channels),
    }
    defaults = option_defaults(spec.name)
    for option in spec.options:
        if option not in defaults:
            raise unknown_name(f"option of {spec.name}", option, defaults)
    for option, default in defaults.items():
        if default is inspect.Parameter.empty and option not in spec.options:
            raise InputError(f"{spec.name} cannot be built without the option {option}")
    model = builder(**numbers, **required, **spec.options)
    model.spec = replace(spec, options={key: _frozen(value) for key, value in (defaults | spec.options).items()})  # type: ignore[assignment]
    return model


def spec_of(model: nn.Module) -> Spec:
    """The spec that `create` or `build` gave a network. Raises InputError for a network that came from elsewhere."""
    spec = getattr(model, "spec", None)
    if not isinstance(spec, Spec):
        raise InputError(f"a {type(model).__name__} has no spec to rebuild it from: it was not made by models.create")
    return spec


def option_defaults(name: str) -> dict[str, Any]:
    """The options that a network takes, with their defaults; `inspect.Parameter.empty` for those that must be given.

    Raises InputError for an unknown name.
    """
    builder, numbers = _builder(name)
    own = numbers.keys() | {"num_classes", "in_channels"}
    parameters = inspect.signature(builder).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in own}


def _builder(name: str) -> tuple[Callable[..., nn.Module], dict[str, int]]:
    """The function that builds a network, and the numbers in the name, which it takes as arguments."""
    if not _is_own(name):
        for added in entry_points(group=ENTRY_POINTS, name=name):
            return added.load(), {}
    family, numbers = _parse(name)
    module, function = family.builder.split(":")
    return getattr(import_module(f"resless.models.{module}"), function), numbers


def _is_own(name: str) -> bool:
    return any(re.fullmatch(family.pattern, name) for family in _FAMILIES)


def _parse(name: str) -> tuple[_Family, dict[str, int]]:
    """The family of a name and the numbers in it."""
    for family in _FAMILIES:
        if match := re.fullmatch(family.pattern, name):
            numbers = {key: int(digits) for key, digits in match.groupdict().items()}
            if family.check is not None:
                family.check(**numbers)
            return family, numbers
    raise unknown_name("model", name, names())


def _frozen(value: Any) -> Any:
    """Lists as tuples, so that a spec read from JSON equals the one that was written."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
