"""The console scripts. A command line is parsed before anything heavy is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from resless.cli import main, parse

from epsilon_resnet import config as configs
from epsilon_resnet import recipes

# What the authors' scripts are for, and the recipe of that script.
DATASETS = {"--cifar10": "cifar10_n18", "--cifar100": "cifar100_n18", "--svhn": "svhn_n18"}


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
    is for CIFAR-10, -d for ImageNet, as in their scripts; `--data` is the folder of the data.
    """
    flags = [flag for flag in DATASETS if flag in args]
    rest = ["--data-dir" if argument == "--data" else argument for argument in args if argument not in DATASETS]
    if flags and not recipe:
        return ["--dataset", flags[-1].removeprefix("--"), *rest]
    if any(argument.startswith(("--recipe", "--dataset")) for argument in rest):
        return rest
    if flags:
        return ["--recipe", DATASETS[flags[-1]], *rest]
    if "-n" in rest:
        return ["--recipe", DATASETS["--cifar10"], *rest]
    if "-d" in rest:
        return ["--recipe", "imagenet_101_e2.0", *rest]
    return rest
