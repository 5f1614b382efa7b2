"""The registry of networks: `create(name, ...)` builds one, and `model.spec` tells how to build it again.

Importing this package does not import torch, so that a command line can check a name first.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
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
    """Networks that one function builds. What the name holds are the pattern's groups and the function's arguments."""

    pattern: str
    builder: str
    """`module:function`, in this package."""
    names: tuple[str, ...]
    """The names to list; the pattern may match more."""
    form: str
    """How the names look, for messages that cannot list them all."""
    check: Callable[..., object] | None = None
    """Torch-free check of what the name holds."""
    takes: tuple[str, ...] = ()
    """Those of the function's options that a command line may give, by their names there."""


_NUMBER = "[1-9][0-9]{0,4}"

_FAMILIES = (
    _Family("lenet_300_100", "lenet:lenet_300_100", ("lenet_300_100",), "lenet_300_100"),
    _Family("lenet5", "lenet:lenet5", ("lenet5",), "lenet5"),
    _Family("alexnet", "alexnet:alexnet", ("alexnet",), "alexnet"),
    _Family(
        "vgg(?P<depth>11|13|16|19)",
        "vgg:vgg",
        tuple(f"vgg{depth}" for depth in (11, 13, 16, 19)),
        "vggDEPTH",
    ),
    _Family(
        "vgg(?P<depth>11|13|16|19)_bn",
        "vgg:vgg_bn",
        tuple(f"vgg{depth}_bn" for depth in (11, 13, 16, 19)),
        "vggDEPTH_bn",
    ),
    _Family(
        f"resnet(?P<depth>{_NUMBER})",
        "resnet:resnet",
        tuple(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110, 164, 1001, 1202)),
        "resnetDEPTH",
        checks.cifar_depth,
        takes=("shortcut", "block"),
    ),
    _Family(
        f"preresnet(?P<depth>{_NUMBER})",
        "preresnet:preresnet",
        tuple(f"preresnet{depth}" for depth in (8, 20, 32, 56, 110, 164, 1001)),
        "preresnetDEPTH",
        checks.cifar_depth,
        takes=("shortcut", "block"),
    ),
    _Family(
        f"wrn(?P<depth>{_NUMBER})_(?P<widening>{_NUMBER})",
        "wide_resnet:wide_resnet",
        ("wrn16_4", "wrn16_8", "wrn22_8", "wrn28_10", "wrn40_2", "wrn40_4"),
        "wrnDEPTH_WIDENING",
        checks.wide_resnet,
        takes=("dropout",),
    ),
    _Family(
        f"resnext(?P<depth>{_NUMBER})_(?P<cardinality>{_NUMBER})x(?P<width>{_NUMBER})",
        "resnext:resnext",
        ("resnext29_8x16", "resnext29_8x64", "resnext29_16x64"),
        "resnextDEPTH_CARDINALITYxWIDTH",
        checks.resnext,
        takes=("expansion",),
    ),
    _Family(
        f"densenet_(?P<depth>{_NUMBER})_(?P<growth>{_NUMBER})",
        "densenet:densenet",
        ("densenet_40_12", "densenet_100_12", "densenet_100_24"),
        "densenet_DEPTH_GROWTH",
        checks.densenet,
        takes=("compression", "dropout"),
    ),
    _Family(
        f"densenet_bc_(?P<depth>{_NUMBER})_(?P<growth>{_NUMBER})",
        "densenet:densenet_bc",
        ("densenet_bc_40_12", "densenet_bc_100_12", "densenet_bc_250_24", "densenet_bc_190_40"),
        "densenet_bc_DEPTH_GROWTH",
        checks.densenet_bc,
        takes=("compression", "dropout"),
    ),
    _Family(
        "imagenet/preresnet(?P<depth>18|34|50|101|152)",
        "preresnet:imagenet_preresnet",
        tuple(f"imagenet/preresnet{depth}" for depth in (18, 34, 50, 101, 152)),
        "imagenet/preresnetDEPTH",
    ),
    _Family(
        "torchvision/resnet(?P<depth>18|34|50|101|152)",
        "torchvision_resnet:resnet",
        tuple(f"torchvision/resnet{depth}" for depth in (18, 34, 50, 101, 152)),
        "torchvision/resnetDEPTH",
    ),
    _Family(
        f"torchvision/(?P<name>{'|'.join(checks.TORCHVISION_NETWORKS)})",
        "torchvision_networks:network",
        tuple(f"torchvision/{name}" for name in checks.TORCHVISION_NETWORKS),
        "torchvision/NAME",
    ),
    _Family(
        f"torchvision/(?P<name>{'|'.join(checks.TORCHVISION_TRANSFORMERS)})",
        "torchvision_networks:vision_transformer",
        tuple(f"torchvision/{name}" for name in checks.TORCHVISION_TRANSFORMERS),
        "torchvision/vit_NAME",
    ),
    _Family("shrunk", "shrunk:shrunk", (), "shrunk"),
    _Family("folded", "folded:folded", (), "folded"),
)

ENTRY_POINTS = "resless.models"
"""Group of entry points by which other distributions add networks: name -> a builder as of a family here."""


def names() -> list[str]:
    """The names of the dense networks, sorted; families with numbers in their names take any other valid ones too."""
    return sorted(name for family in _FAMILIES for name in family.names)


def check_name(name: str) -> None:
    """Raise InputError unless `create(name)` knows this network and its depth. Does not import torch."""
    if _added(name) is None:
        _parse(name)


def check_options(name: str, options: Iterable[str]) -> None:
    """Raise InputError unless a network of this name takes these options of the command line. Does not import torch.

    What a network of another distribution takes is known where it is built.
    """
    if _added(name) is not None:
        return
    taken = _parse(name)[0].takes
    for option in options:
        if option not in taken:
            forms = [family.form for family in _FAMILIES if option in family.takes]
            raise InputError(f"--{option} does not fit {name}: networks that take it are {', '.join(forms)}")


def is_known(name: str) -> bool:
    """Whether this is the name of a network, from here or from another distribution; its depth may be impossible."""
    return _is_own(name) or _added(name) is not None


def create(name: str, *, num_classes: int = 10, in_channels: int = 3, **options: Any) -> nn.Module:
    """A freshly initialised network, in training mode: images [N, C, H, W] -> logits [N, num_classes].

    Args:
        name: one of `names()`, or one with other valid numbers, such as resnet26, wrn22_3 or resnext38_4x32.
        num_classes: number of logits.
        in_channels: C of the images.
        **options: what the network's builder takes, see `option_defaults` and the builders' own words, such as
            `resnet.resnet`, `wide_resnet.wide_resnet`, `densenet.densenet`, `lenet.lenet5`.

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
    check(isinstance(spec.name, str), "the name of a network", spec.name, "text")
    builder, from_name = _builder(spec.name)
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
    model = builder(**from_name, **required, **spec.options)
    model.spec = replace(spec, options={key: _frozen(value) for key, value in (defaults | spec.options).items()})  # type: ignore[assignment]
    return model


def spec_of(model: nn.Module) -> Spec:
    """The spec that `create` or `build` gave a network. Raises InputError for a network that came from elsewhere."""
    spec = getattr(model, "spec", None)
    if not isinstance(spec, Spec):
        raise InputError(f"a {type(model).__name__} has no spec to rebuild it from: it was not made by models.create")
    return spec


def lineage(spec: Spec) -> list[Spec]:
    """The spec; of a smaller or folded network then that of the one that it was made of, and so on."""
    specs = [spec]
    while isinstance(spec.options, dict) and "base" in spec.options:
        spec = replace(spec, name=spec.options["base"], options=spec.options.get("base_options", {}))
        specs.append(spec)
    return specs


def origin(spec: Spec) -> Spec:
    """The network that a smaller or folded one was made of at first; of others the spec itself."""
    return lineage(spec)[-1]


def option_defaults(name: str) -> dict[str, Any]:
    """The options that a network takes, with their defaults; `inspect.Parameter.empty` for those that must be given.

    Raises InputError for an unknown name.
    """
    builder, from_name = _builder(name)
    own = from_name.keys() | {"num_classes", "in_channels"}
    parameters = inspect.signature(builder).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in own}


def _builder(name: str) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """The function that builds a network, and those of its arguments that the name holds."""
    import torch  # here, since names and options are checked without

    # A network may be built on the meta device; what is imported for it may make tensors of its own, and read them.
    with torch.device("cpu"):
        added = _added(name)
        if added is not None:
            try:
                return added.load(), {}
            except (ImportError, AttributeError) as error:
                raise InputError(f"{name} is the entry point {added.value}, which cannot be loaded: {error}") from error
        family, from_name = _parse(name)
        module, function = family.builder.split(":")
        return getattr(import_module(f"resless.models.{module}"), function), from_name


def _is_own(name: str) -> bool:
    return any(re.fullmatch(family.pattern, name) for family in _FAMILIES)


def _added(name: str) -> EntryPoint | None:
    """Where another distribution builds this network; None for those from here, which cannot be replaced."""
    return None if _is_own(name) else next(iter(entry_points(group=ENTRY_POINTS, name=name)), None)


def _parse(name: str) -> tuple[_Family, dict[str, Any]]:
    """The family of a name and what the name holds, digits as numbers."""
    for family in _FAMILIES:
        if match := re.fullmatch(family.pattern, name):
            groups = match.groupdict()
            from_name = {key: int(text) if text.isdecimal() else text for key, text in groups.items()}
            if family.check is not None:
                family.check(**from_name)
            return family, from_name
    raise unknown_name("model", name, names(), shown=[family.form for family in _FAMILIES])


def _frozen(value: Any) -> Any:
    """Lists as tuples, so that a spec read from JSON equals the one that was written."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
