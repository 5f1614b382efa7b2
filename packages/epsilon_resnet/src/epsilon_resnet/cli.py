"""The console scripts. A command line is parsed before anything heavy is imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from resless.cli import main, parse
from resless.errors import check

from epsilon_resnet import config as configs
from epsilon_resnet import recipes

DATASETS = ("cifar10", "cifar100", "svhn")
# The authors have a script for each data set, whose values are those of its recipes.
RECIPES: dict[str | None, str | None] = {
    **{name: f"{name}_n18" for name in DATASETS},
    "imagenet": "imagenet_101_e2.0",
    None: None,
}


def train() -> None:
    """Console script `epsilon-resnet-train`."""

    def command() -> None:
        description = "Train a residual network whose blocks discard themselves."
        args = authors_arguments(sys.argv[1:])
        prog = "epsilon-resnet-train"
        config = parse(configs.TrainConfig, recipes.TRAIN, prog=prog, description=description, args=args)
        from epsilon_resnet.train import train

        train(config)

    main(command)


def compress() -> None:
    """Console script `epsilon-resnet-compress`."""

    def command() -> None:
        description = "Write the plain network of the blocks that are left."
        config = parse(configs.CompressConfig, {}, prog="epsilon-resnet-compress", description=description)
        from epsilon_resnet.compress import main as compress

        compress(config)

    main(command)


def evaluate() -> None:
    """Console script `epsilon-resnet-eval`."""

    def command() -> None:
        description = "Accuracy and cost of a network, as trained or compressed."
        args = authors_arguments(sys.argv[1:], recipe=False)
        prog = "epsilon-resnet-eval"
        config = parse(configs.EvalConfig, {}, prog=prog, description=description, args=args)
        from epsilon_resnet.evaluate import main as evaluate

        evaluate(config)

    main(command)


def authors_arguments(args: Sequence[str], *, recipe: bool = True) -> list[str]:
    """The authors' arguments in this package's words.

    `--cifar10`, `--cifar100` and `--svhn` mean a data set, and with `recipe` the recipe for it, with any -n; -n alone
    is for CIFAR-10, -d for ImageNet, as in their scripts. `--data` is the folder of the data; `--gpu` goes, for which
    devices a run takes is Accelerate's to say. A recipe or data set that is named has precedence.
    """
    theirs, rest = _parsed(args, "--data", "--gpu", flags=DATASETS)
    several = [f"--{flag}" for flag in DATASETS if f"--{flag}" in args]
    check(len(several) < 2, "the data set", " ".join(several), "one of them")
    own, others = _parsed(rest, "-n --n", "-d --depth", "--recipe", "--dataset")
    words = [*_words("--data-dir", theirs.data), *rest]
    if not recipe or own.recipe is not None or own.dataset is not None:
        return [*_words("--dataset", theirs.flag), *words]
    chosen = RECIPES[theirs.flag or ("imagenet" if own.d is not None else "cifar10" if own.n is not None else None)]
    sizes = [*_words("-n", own.n), *_words("-d", own.d)]
    return [*_words("--recipe", chosen), *sizes, *_words("--data-dir", theirs.data), *others]


def _parsed(args: Sequence[str], *options: str, flags: Sequence[str] = ()) -> tuple[argparse.Namespace, list[str]]:
    """The values of these options, each in all its spellings; of several flags the last one; and what is left."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for spellings in options:
        names = spellings.split()
        parser.add_argument(*names, nargs="?", const="", dest=names[0].strip("-"))
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_const", const=flag, dest="flag")
    return parser.parse_known_args(list(args))


def _words(option: str, value: str | None) -> list[str]:
    """The option with its value; without it where none was given, for the parser to complain."""
    return [] if value is None else [option, value] if value else [option]
