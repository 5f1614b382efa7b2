"""The console scripts. A command line is parsed before anything heavy is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from resless.cli import main, parse
from resless.config import source_of
from resless.errors import check

from adn import config as configs
from adn import recipes


def train() -> None:
    """Console script `adn-train`."""

    def command() -> None:
        description = "Train one network for every depth."
        args = authors_arguments(with_flags(sys.argv[1:]))
        config = parse(configs.TrainConfig, recipes.TRAIN, prog="adn-train", description=description, args=args)
        if config.test_only:
            from adn.evaluate import main as evaluate

            evaluate(as_evaluation(config))
        else:
            from adn.train import train

            train(config)

    main(command)


def evaluate() -> None:
    """Console script `adn-eval`."""

    def command() -> None:
        description = "Accuracy, cost and latency of one configuration of a network, or of all."
        args = with_flags(sys.argv[1:])
        config = parse(configs.EvalConfig, {}, prog="adn-eval", description=description, args=args)
        from adn.evaluate import main as evaluate

        evaluate(config)

    main(command)


def extract() -> None:
    """Console script `adn-extract`."""

    def command() -> None:
        description = "Write the plain network of one configuration."
        args = with_flags(sys.argv[1:])
        config = parse(configs.ExtractConfig, {}, prog="adn-extract", description=description, args=args)
        from adn.export import main as extract

        extract(config)

    main(command)


def authors_arguments(args: Sequence[str]) -> list[str]:
    """The authors' `--amp` and `--ra-sampler`, torchvision's, in this package's words; other options have aliases."""
    words, options = list[str](), [option_of(word) for word in args]
    for word, option in zip(args, options, strict=True):
        if option == "--amp":
            words += ["--mixed-precision", "bf16"]
        elif option != "--ra-sampler":
            words.append(word)
    if "--ra-sampler" in options and not {"--ra-reps", "--repeats"} & set(options):
        words += ["--repeats", "3"]
    return words


def with_flags(args: Sequence[str]) -> list[str]:
    """The words after `--skip-cfg`, in any case, as tyro reads them. Raises InputError for others than true, false."""
    words, option = list[str](), ""
    apart = (word.split("=", 1) if option_of(word) == "--skip-cfg" else [word] for word in args)
    for word in chain.from_iterable(apart):
        if word.startswith("-"):
            option = option_of(word)
        elif option == "--skip-cfg":
            check(word.lower() in ("true", "false"), "--skip-cfg", word, "True or False for each stage")
            word = word.capitalize()
        words.append(word)
    return words


def option_of(word: str) -> str:
    """The option that a word of a command line is, in the spelling of the help."""
    return word.partition("=")[0].replace("_", "-") if word.startswith("--") else ""


def as_evaluation(config: configs.TrainConfig) -> configs.EvalConfig:
    """What `--test-only --resume FILE` asks for."""
    source = str(config.run.resume)
    folder = Path(source).is_dir()
    if folder and config.model != configs.TrainConfig.model:  # the default is no wish
        check_model(config.model, source)
    return configs.EvalConfig(
        model=source if folder else config.model,
        weights=None if folder else source,
        ema=config.optim.model_ema and not folder,
        shortcut=config.shortcut,
        second_norms=config.second_norms,
        skip_cfg=config.skip_cfg,
        batch_size=config.optim.batch_size,
        mixed_precision=config.run.mixed_precision,
        channels_last=config.run.channels_last,
        data=source_of(config.data),
    )


def check_model(name: str, folder: str) -> None:
    """Raise InputError if a folder holds another network of adaptive depth than `--model` names."""
    from resless import weights

    found = weights.read_config(folder)["model"]["options"].get("backbone", name)
    check(found == name, "--model", name, f"{found}, which {folder} holds, or left out")
