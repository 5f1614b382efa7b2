from __future__ import annotations

import pytest
from resless import cli
from resless.config import TrainConfig
from resless.errors import InputError
from resless.recipes import TRAIN
from resless.spellings import in_our_words
from resless.testing import refused


def parsed(command: str) -> TrainConfig:
    words = in_our_words(command.split(), TRAIN)
    return cli.parse(TrainConfig, TRAIN, prog="prog", description="What it does.", args=words)


@pytest.mark.parametrize(
    ("command", "recipe"),
    [
        ("-a alexnet --epochs 164 --schedule 81 122 --gamma 0.1", "alexnet"),
        ("-a vgg19_bn --epochs 164 --schedule 81 122 --gamma 0.1", "vgg19_bn"),
        ("-a resnet --depth 110 --epochs 164 --schedule 81 122 --gamma 0.1 --wd 1e-4", "resnet110"),
        ("-a preresnet --depth=110 --epochs 164 --schedule 81 122 --gamma 0.1 --wd 1e-4", "preresnet110"),
        (
            "-a wrn --depth 28 --widen-factor 10 --drop 0.3 --epochs 200 --schedule 60 120 160 --wd 5e-4 --gamma 0.2",
            "wrn28_10",
        ),
        (
            "-a resnext --depth 29 --cardinality 8 --widen-factor 4 --schedule 150 225 --wd 5e-4 --gamma 0.1",
            "resnext29_8x64",
        ),
        ("--arch resnext --cardinality 16", "resnext29_16x64"),
        (
            "-a densenet --depth 100 --growthRate 12 --train-batch 64 --epochs 300 --schedule 150 225 --wd 1e-4",
            "densenet_bc_100_12",
        ),
        ("-a densenet --depth 190 --growthRate 40 --train_batch 64", "densenet_bc_190_40"),
    ],
)
def test_the_published_commands_are_the_recipes(command: str, recipe: str) -> None:
    assert parsed(command) == TRAIN[recipe]
    assert parsed(f"--recipe {recipe}") == TRAIN[recipe]
    assert parsed(f"--model {recipe}") == TRAIN[recipe]


def test_what_surrounds_the_training_is_translated() -> None:
    config = parsed(
        "-a resnet --depth 20 -d cifar100 --checkpoint out --train-batch 64 --manualSeed 3 -j 2 --gpu-id 0,1"
    )
    assert (config.model, config.data.dataset, config.data.workers) == ("resnet20", "cifar100", 2)
    assert (config.run.run_dir, config.run.seed, config.optim.batch_size) == ("out", 3, 64)
    assert (config.optim.epochs, config.data.pad, config.data.flip) == (164, 4, True)


@pytest.mark.parametrize(
    ("command", "model", "options"),
    [
        ("-a resnet --depth 218", "resnet218", {}),
        ("-a resnet --depth 29", "resnet29", {}),
        ("-a resnet --depth 56 --block-name Bottleneck", "resnet56", {"block": "bottleneck"}),
        ("-a vgg16_bn", "vgg16_bn", {}),
        ("-a wrn --depth 16 --widen_factor 8", "wrn16_8", {"dropout": 0.3}),
        ("-a wrn --depth 16 --widen_factor 8 --dropout 0", "wrn16_8", {"dropout": 0}),
        ("-a resnext --widen-factor 2", "resnext29_8x64", {"expansion": 2}),
        ("-a densenet --depth 40 --growth-rate 24 --drop 0.2", "densenet_bc_40_24", {"dropout": 0.2}),
        ("-a densenet --depth 40 --compressionRate 2", "densenet_bc_40_12", {"compression": 0.5}),
        ("--model densenet --depth 40 --compression_rate 4", "densenet_bc_40_12", {"compression": 0.25}),
        ("-a densenet_40_12", "densenet_40_12", {}),
    ],
)
def test_networks_and_their_options_are_translated(command: str, model: str, options: dict[str, object]) -> None:
    config = parsed(command)
    assert (config.model, config.network.given()) == (model, options)
    assert (config.data.dataset, config.optim.milestones[0] > 50) == ("cifar10", True), "the recipe of the family"


def test_a_recipe_that_is_named_has_precedence() -> None:
    config = parsed("-a resnet --depth 8 --recipe smoke_resnet")
    assert (config.model, config.data.dataset, config.optim.optimizer) == ("resnet8", "digits", "adam")


def test_milestones_make_the_schedule_one_of_steps() -> None:
    optim = parsed("--recipe smoke_resnet --schedule 3 5").optim
    assert (optim.schedule, optim.milestones) == ("step", (3, 5))
    assert parsed("--recipe smoke --schedule cosine").optim.schedule == "cosine"


def test_words_of_ours_are_left_alone() -> None:
    for words in (
        ["--recipe", "smoke", "--overwrite", "--trackers", "tensorboard", "wandb", "--lr", "-1"],
        ["--help"],
        ["stray", "--no-flip"],
        [],
    ):
        assert in_our_words(words, TRAIN) == words
    assert in_our_words(["--batch_size=7"], TRAIN) == ["--batch-size", "7"]


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("-a vgg19_bn --cardinality 8", "--cardinality does not fit vgg19_bn: networks that take it are resnext"),
        ("--model vgg19_bn --cardinality 8", "--cardinality does not fit vgg19_bn: networks that take it are resnext"),
        ("-a resnet --widen-factor 8", "--widen-factor does not fit resnet: networks that take it are wrn, resnext"),
        ("-a resnext29_8x64 --depth 29", "--depth does not fit resnext29_8x64: networks that take it are resnet, "),
        ("-a resnet --depth many", "--depth is 'many', but must be a whole number above 0"),
        ("-a densenet --depth 40 --growthRate 0", "--growth-rate is '0', but must be a whole number above 0"),
        ("-a densenet --compressionRate 0.5", "--compressionRate is '0.5', but must be a number of at least 1"),
        ("--depth 20", "--depth is given without a network: name one by -a, such as -a resnet"),
        ("-a wrn --drop 1", "--dropout is 1.0, but must be at least 0 and below 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_torch_is_needed(command: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        parsed(command)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("-a resnet --depth 111", "depth is 111, but must be 6n+2 (basic blocks) or 9n+2"),
        (
            "-a wrn --depth 29 --widen-factor 10",
            "depth is 29, but must be 6n+4, at most 10000: nearest are [22, 28, 34",
        ),
        ("-a densenet --depth 101", "depth is 101, but must be 6n+4, at most 10000: nearest are [94, 100, 106, 112]"),
        ("-a vgg19_bn --cardinality 8", "--cardinality does not fit vgg19_bn: networks that take it are resnext"),
        (
            "-a vgg19_bn --drop 0.5",
            "--dropout does not fit vgg19_bn: networks that take it are wrnDEPTH_WIDENING, densenet_DEPTH_GROWTH, ",
        ),
        ("-a resnt", "unknown model 'resnt': did you mean resnet"),
    ],
)
def test_the_command_refuses_in_one_sentence(command: str, sentence: str, tmp_path) -> None:
    assert refused(cli.train, *command.split(), cwd=tmp_path).startswith(f"error: {sentence}")
