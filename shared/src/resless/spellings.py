"""The options of the usual CIFAR training script, in the words of `resless-train`. Free of torch.

| theirs | ours |
|---|---|
| `-a resnet --depth 110`, likewise preresnet | `--recipe resnet110 --model resnet110` |
| `-a wrn --depth 28 --widen-factor 10 --drop 0.3` | `--recipe wrn28_10 --model wrn28_10 --drop 0.3` |
| `-a resnext --depth 29 --cardinality 8 --widen-factor 4` | `--recipe resnext29_8x64 --model resnext29_8x64` |
| `-a densenet --depth 100 --growthRate 12 --compressionRate 2` | `densenet_bc_100_12`, `--compression 0.5` |
| `--schedule 81 122` | `--schedule step --milestones 81 122` |
| `--checkpoint DIR`, `--train-batch 64`, `-d cifar100` | `--run-dir DIR`, `--batch-size 64`, `--dataset cifar100` |

Their widening factor of a ResNeXt is not its width: groups have 64 channels, whatever the factor, which multiplies the
channels that each stage gives out. The factor of the published networks, 4, is that of ours; another becomes
`--expansion`. Sizes that are left out are theirs: depth 29, cardinality 8, factor 4, growth rate 12.

A network named by `-a` gets the recipe of its name or, without one, of its family, unless `--recipe` names another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from resless.errors import InputError, check

_SAME = {
    "-a": "--arch",
    "-c": "--run-dir",
    "--checkpoint": "--run-dir",
    "-d": "--dataset",
    "-j": "--workers",
    "--train-batch": "--batch-size",
    "--manualSeed": "--seed",
    "--growthRate": "--growth-rate",
    "--compressionRate": "--compression-rate",
}
# Which devices a run takes is Accelerate's to say, and in how many steps images are evaluated changes no number.
_WITHOUT_COUNTERPART = ("--gpu-id", "--test-batch")
_BLOCKS = {"basicblock": "basic", "bottleneck": "bottleneck"}

_SIZES = {"--depth": "29", "--cardinality": "8", "--widen-factor": "4", "--growth-rate": "12"}
_ARCHITECTURES = {
    "resnet": ("resnet{}", ("--depth",)),
    "preresnet": ("preresnet{}", ("--depth",)),
    "wrn": ("wrn{}_{}", ("--depth", "--widen-factor")),
    "resnext": ("resnext{}_{}x64", ("--depth", "--cardinality", "--widen-factor")),
    "densenet": ("densenet_bc_{}_{}", ("--depth", "--growth-rate")),
}
"""By their names of architectures: the names of networks, and the sizes that they take, in order."""
_RECIPES = {
    "alexnet": "alexnet",
    "vgg": "vgg19_bn",
    "resnet": "resnet110",
    "preresnet": "preresnet110",
    "wrn": "wrn28_10",
    "resnext": "resnext29_8x64",
    "densenet": "densenet_bc_100_12",
}
"""The recipe for the networks whose names start so."""


def in_our_words(args: Sequence[str], recipes: Iterable[str]) -> list[str]:
    """The arguments with what is theirs translated, see above; `recipes` are the names of those that there are.

    Raises:
        InputError: a size that is no number, or that the network does not take.
    """
    words, sizes, named = list[str](), dict[str, str](), dict[str, str]()
    for option, values in _options(args):
        if option in _SIZES:
            sizes[option] = " ".join(values)
        elif option in ("--arch", "--model", "--recipe") and len(values) == 1:
            named[option] = values[0]
        elif option not in _WITHOUT_COUNTERPART:
            words += _translated(option, values)
    network = named.pop("--arch", None) or (named.pop("--model", None) if sizes else None)
    if network is not None:
        named["--model"], more = _network(network, sizes)
        words += more
        recipe = _recipe(named["--model"], recipes)
        named = ({"--recipe": recipe} if recipe else {}) | named
    elif sizes:
        raise InputError(f"{next(iter(sizes))} is given without a network: name one by -a, such as -a resnet")
    return [*(word for pair in named.items() for word in pair), *words]


def _options(args: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option, with hyphens and by our name where it has one, and its values; an empty one for what precedes."""
    option, values = "", list[str]()
    for word in args:
        if word.startswith("-") and not re.match(r"-\.?\d", word):
            if option or values:
                yield option, values
            name, given, value = word.partition("=")
            name = name.replace("_", "-")
            option, values = _SAME.get(name, name), [value] if given else []
        else:
            values.append(word)
    if option or values:
        yield option, values


def _translated(option: str, values: list[str]) -> list[str]:
    """One option and its values in our words."""
    if option == "--schedule" and values and all(value.isdecimal() for value in values):
        return ["--schedule", "step", "--milestones", *values]
    if option == "--compression-rate":
        return ["--compression", *(str(1 / _rate(value)) for value in values)]
    if option == "--block-name":
        return ["--block", *(_BLOCKS.get(value.lower(), value) for value in values)]
    return [*([option] if option else []), *values]


def _rate(value: str) -> float:
    valid = re.fullmatch(r"\d+(\.\d+)?", value) is not None and float(value) >= 1
    check(valid, "--compressionRate", value, "a number of at least 1, by which transitions divide their channels")
    return float(value)


def _network(name: str, sizes: dict[str, str]) -> tuple[str, list[str]]:
    """Our name of a network of theirs, and options that it needs."""
    form, taken = _ARCHITECTURES.get(name, (name, ()))
    for option, value in sizes.items():
        if option not in taken:
            fitting = [other for other, (_, theirs) in _ARCHITECTURES.items() if option in theirs]
            raise InputError(f"{option} does not fit {name}: networks that take it are {', '.join(fitting)}")
        check(value.isdecimal() and int(value) > 0, option, value, "a whole number above 0")
    numbers = [int(sizes.get(option, _SIZES[option])) for option in taken]
    widened = name == "resnext" and numbers[-1] != int(_SIZES["--widen-factor"])
    return form.format(*numbers), ["--expansion", str(numbers[-1])] if widened else []


def _recipe(network: str, recipes: Iterable[str]) -> str | None:
    """The recipe of this name, or of the family."""
    if network in recipes:
        return network
    return next((recipe for start, recipe in _RECIPES.items() if network.startswith(start)), None)
