"""The console scripts. A command line is parsed before anything heavy is imported."""

from __future__ import annotations

from resless.cli import main, parse

from blockdrop import config as configs
from blockdrop import recipes


def train() -> None:
    """Console script `blockdrop-train`."""

    def command() -> None:
        description = "Train a policy network that picks the residual blocks of each image, by curriculum."
        config = parse(configs.TrainConfig, recipes.TRAIN, prog="blockdrop-train", description=description)
        from blockdrop.train import train

        train(config)

    main(command)


def finetune() -> None:
    """Console script `blockdrop-finetune`."""

    def command() -> None:
        description = "Fine-tune a residual network and its policy network together."
        config = parse(configs.FinetuneConfig, recipes.FINETUNE, prog="blockdrop-finetune", description=description)
        from blockdrop.finetune import finetune

        finetune(config)

    main(command)


def evaluate() -> None:
    """Console script `blockdrop-eval`."""

    def command() -> None:
        description = "Accuracy, cost, speed and policies of a trained network, and its controls at equal cost."
        config = parse(configs.EvalConfig, recipes.EVAL, prog="blockdrop-eval", description=description)
        from blockdrop.evaluate import main as evaluate

        evaluate(config)

    main(command)


def plot() -> None:
    """Console script `blockdrop-plot`."""

    def command() -> None:
        description = "Pictures of the policies of a finished run."
        config = parse(configs.PlotConfig, {}, prog="blockdrop-plot", description=description)
        from blockdrop.plot import main as plot

        plot(config)

    main(command)
