"""From a command line to a frozen configuration, and from bad input to one sentence. Free of torch until parsed.

`--recipe NAME` chooses the instance whose values are the defaults, so that `--help` shows the real ones. Where no
recipe is named, `--model NAME` chooses the recipe of that name, if there is one.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import tyro

from resless.errors import InputError, unknown_name

Config = TypeVar("Config")


def parse(
    config_type: type[Config],
    recipes: Mapping[str, Config],
    *,
    prog: str,
    description: str,
    args: Sequence[str] | None = None,
) -> Config:
    """The configuration that the arguments ask for.

    Args:
        config_type: a frozen dataclass; its nested dataclasses give options without a prefix.
        recipes: named instances; may be empty.
        prog: name of the console script.
        description: first lines of the help.
        args: arguments; None takes those of the process.

    Raises:
        InputError: the recipe does not exist, or a value is refused.
        SystemExit: with code 2 for arguments that cannot be parsed, with 0 after `--help`.
    """
    args = list(sys.argv[1:] if args is None else args)
    default, rest = _choose_recipe(recipes, args)
    if recipes:
        description += f" Recipes (--recipe NAME): {', '.join(recipes)}."
    return tyro.cli(
        config_type,
        args=rest,
        default=default,
        prog=prog,
        description=description,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _choose_recipe(recipes: Mapping[str, Config], args: list[str]) -> tuple[Any, list[str]]:
    """The recipe's instance (tyro's marker for "none" if there is none), and the arguments without `--recipe`."""
    if not recipes:
        return tyro.MISSING_NONPROP, args
    selector = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    selector.add_argument("--recipe")
    selector.add_argument("--model", nargs="?")
    chosen, _ = selector.parse_known_args(args)
    rest = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    rest.add_argument("--recipe")
    _, others = rest.parse_known_args(args)
    name = chosen.recipe
    if name is None:
        # Only a recipe for just this network: a model folder may be called like a recipe.
        default = recipes.get(chosen.model)
        return (default if getattr(default, "model", None) == chosen.model else tyro.MISSING_NONPROP), others
    if name not in recipes:
        raise unknown_name("recipe", name, recipes)
    return recipes[name], others


_LESS_MEMORY = ("there is not enough memory", "give a smaller --batch-size, or smaller images")
_LARGER_IMAGES = ("the images are too small for this network", "give a larger --image-size")
_BY_WORDS = {
    "DataLoader worker": (
        "a process that decodes images has died",
        "if memory ran out, give fewer --workers or a smaller batch; a training goes on with --resume auto",
    ),
    "Expected more than 1 value per channel when training": (
        "a batch norm sees a single value, which has no variance",
        "give another --batch-size, that leaves more than one image over, or larger images",
    ),
    "Output size is too small": _LARGER_IMAGES,
    "Kernel size can't be greater than actual input size": _LARGER_IMAGES,
    "Wrong image height": ("this network takes images of one size only", "leave --train-crop-size out"),
    "can't allocate memory": _LESS_MEMORY,
    "out of memory": _LESS_MEMORY,
}
"""By words of a message of torch or torchvision: what is wrong, and what to do."""


def main(command: Callable[[], None]) -> None:
    """Run a console script: bad input becomes one sentence on standard error and exit code 2; Ctrl-C becomes 130."""
    try:
        command()
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        sentence = in_a_sentence(error)
        if sentence is None:
            raise
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f"[process {rank}] "
        print(f"error: {where}{sentence}", file=sys.stderr)
        raise SystemExit(2) from None


def in_a_sentence(error: Exception) -> str | None:
    """What is wrong, where the command line or the machine is to blame; None where it is a mistake of ours.

    Which sizes of images a network's layers take, and how much memory there is, no check knows before: what torch says
    of them is known by its words.
    """
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):  # a disk that is full or not to be written, a file that went away
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    said = " ".join(str(error).split())
    known = _LESS_MEMORY if isinstance(error, MemoryError) else None
    known = next((found for words, found in _BY_WORDS.items() if words in said), known)
    return None if known is None else f"{known[0]} ({said}): {known[1]}"


def train() -> None:
    """Console script `resless-train`."""

    def command() -> None:
        from resless.config import TrainConfig
        from resless.recipes import TRAIN
        from resless.spellings import in_our_words

        description = "Train a dense network, the baseline of all methods. A network can also be given as "
        description += "`-a resnet --depth 110`, as by the usual CIFAR scripts, and so can their other options."
        args = in_our_words(sys.argv[1:], TRAIN)
        config = parse(TrainConfig, TRAIN, prog="resless-train", description=description, args=args)
        from resless.train import train

        train(config)

    main(command)


def evaluate() -> None:
    """Console script `resless-eval`."""

    def command() -> None:
        from resless.config import EvalConfig

        config = parse(EvalConfig, {}, prog="resless-eval", description="Accuracy and cost of a trained network.")
        from resless.evaluate import main as evaluate

        evaluate(config)

    main(command)


def fold() -> None:
    """Console script `resless-fold`."""

    def command() -> None:
        from resless.config import FoldConfig

        description = "Fold the batch norms of a trained network into the layers before them: the same outputs, sooner."
        config = parse(FoldConfig, {}, prog="resless-fold", description=description)
        from resless.folding import main as fold

        fold(config)

    main(command)


def compare() -> None:
    """Console script `resless-compare`."""

    def command() -> None:
        from resless.config import CompareConfig

        description = "Accuracy, cost, size and latency of several networks, whatever method made them."
        config = parse(CompareConfig, {}, prog="resless-compare", description=description)
        from resless.compare import main as compare

        compare(config)

    main(command)
