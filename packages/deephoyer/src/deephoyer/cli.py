"""The console scripts. A command line is parsed before anything heavy is imported."""

from __future__ import annotations

from resless.cli import main, parse

from deephoyer import config as configs
from deephoyer import recipes


def train() -> None:
    """Console script `deephoyer-train`."""

    def command() -> None:
        description = "Train a network with a sparsity regulariser."
        config = parse(configs.TrainConfig, recipes.TRAIN, prog="deephoyer-train", description=description)
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
