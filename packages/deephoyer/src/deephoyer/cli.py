"""The console scripts. A command line is parsed before anything heavy is imported."""

from __future__ import annotations

import sys

from resless.cli import main, parse
from resless.errors import check

from deephoyer import config as configs
from deephoyer import recipes


def train() -> None:
    """Console script `deephoyer-train`."""

    def command() -> None:
        description = "Train a network with a sparsity regulariser."
        config = parse(configs.TrainConfig, recipes.TRAIN, prog="deephoyer-train", description=description)
        _check_strength(config, sys.argv[1:])
        if config.sweep:
            from deephoyer.sweep import sweep_strengths

            sweep_strengths(config)
        else:
            from deephoyer.train import train

            train(config)

    main(command)


def prune() -> None:
    """Console script `deephoyer-prune`."""

    def command() -> None:
        description = "Cut the small weights or groups of a trained network, and fine-tune the rest."
        config = parse(configs.PruneConfig, recipes.PRUNE, prog="deephoyer-prune", description=description)
        if config.dry_run:
            from deephoyer.curve import dry_run

            dry_run(config)
        elif config.sweep:
            from deephoyer.sweep import sweep_thresholds

            sweep_thresholds(config)
        else:
            from deephoyer.prune import prune

            prune(config)

    main(command)


def compact() -> None:
    """Console script `deephoyer-compact`."""

    def command() -> None:
        description = "Write the smaller dense network that a pruned one amounts to."
        config = parse(configs.CompactConfig, {}, prog="deephoyer-compact", description=description)
        from deephoyer.compact import main as compact

        compact(config)

    main(command)


def evaluate() -> None:
    """Console script `deephoyer-eval`."""

    def command() -> None:
        description = "Accuracy and sparsity of a model folder."
        config = parse(configs.EvalConfig, {}, prog="deephoyer-eval", description=description)
        from deephoyer.evaluate import main as evaluate

        evaluate(config)

    main(command)


def _check_strength(config: configs.TrainConfig, args: list[str]) -> None:
    """Refuse a strength of no regulariser; that of a recipe is switched off by `--reg none` alone."""
    typed = {word.partition("=")[0] for word in args} & {"--strength", "--decay"}
    used = config.regulariser != "none" or not typed or config.strength == 0
    check(used, "--strength", config.strength, "0 or left out with --reg none, which has no regulariser")
