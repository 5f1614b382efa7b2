from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
from resless import evaluate
from resless.config import (
    FREE_ON_RESUME,
    DataConfig,
    EvalConfig,
    NetworkOptions,
    OptimConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
    as_dict,
    changed_fields,
    check_choices,
    flatten,
    source_options,
)
from resless.errors import InputError
from resless.recipes import TRAIN
from resless.train import train

BAD_VALUES = [
    (DataConfig, "holdout", -0.1),
    (DataConfig, "holdout", 1.0),
    (DataConfig, "holdout", float("nan")),
    (DataConfig, "pad", -1),
    *((DataConfig, name, bad) for name in ("brightness", "contrast", "saturation") for bad in (-0.1, 1.0, math.nan)),
    *((DataConfig, "lighting", bad) for bad in (-0.1, math.inf, math.nan)),
    (DataConfig, "normalize", "image"),
    (DataConfig, "image_size", 0),
    (DataConfig, "auto_augment", "rand"),
    *((DataConfig, "random_erase", bad) for bad in (-0.1, 1.1, math.nan)),
    (DataConfig, "repeats", 0),
    *((DataConfig, name, bad) for name in ("train_crop_size", "val_resize_size") for bad in (0, 176)),
    (SourceConfig, "val_resize_size", 232),
    (SourceConfig, "interpolation", "nearest"),
    *((NetworkOptions, "dropout", bad) for bad in (-0.1, 1.0, math.nan)),
    *((NetworkOptions, "compression", bad) for bad in (0.0, 1.5, math.nan)),
    (NetworkOptions, "expansion", 0),
    (OptimConfig, "lr", 0.0),
    (OptimConfig, "lr", float("nan")),
    (OptimConfig, "momentum", 1.0),
    (OptimConfig, "weight_decay", -1e-4),
    (OptimConfig, "batch_size", 0),
    (OptimConfig, "epochs", -1),
    (OptimConfig, "gamma", 0.0),
    (OptimConfig, "milestones", (30, 20)),
    (OptimConfig, "milestones", (0, 20)),
    (RunConfig, "seed", -1),
    (RunConfig, "seed", 2**31),
    (RunConfig, "checkpoint_epochs", 0),
    (RunConfig, "checkpoint_steps", 0),
    (RunConfig, "keep_checkpoints", 0),
]


@pytest.mark.parametrize(("kind", "name", "value"), BAD_VALUES)
def test_a_value_out_of_range_is_refused_by_option_and_value(kind, name, value):
    with pytest.raises(InputError) as refused:
        kind(**{name: value})
    assert str(refused.value).startswith(f"--{name.replace('_', '-')} is {value!r}, but must be ")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            TrainConfig(optim=OptimConfig(optimizer="sgdd")),
            "--optimizer is 'sgdd', but must be one of sgd, adam",
        ),
        (
            TrainConfig(run=RunConfig(mixed_precision="int8")),
            "--mixed-precision is 'int8', but must be one of no",
        ),
        (EvalConfig("net", split="val"), "--split is 'val', but must be one of test, train"),
    ],
)
def test_a_word_that_no_command_line_takes_is_refused_from_python_too(config, message):
    with pytest.raises(InputError, match=f"^{message}"):
        (train if isinstance(config, TrainConfig) else evaluate.main)(config)


@pytest.mark.parametrize("name", TRAIN)
def test_recipes_hold_words_that_are_known(name):
    check_choices(TRAIN[name])
    with pytest.raises(InputError, match="--schedule is 'linear'"):
        check_choices(replace(TRAIN[name], optim=replace(TRAIN[name].optim, schedule="linear")))


def test_an_unknown_data_set_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="unknown dataset 'mnits': did you mean mnist"):
        DataConfig(dataset="mnits")


def test_a_hub_id_is_a_data_set():
    assert DataConfig(dataset="owner/name").dataset == "owner/name"


def test_a_mean_of_each_pixel_is_for_images_in_memory():
    assert DataConfig(normalize="pixel").normalize == "pixel"
    with pytest.raises(InputError, match="--normalize is 'pixel', but must be channel with --stream"):
        DataConfig(normalize="pixel", stream=True)


def test_colours_are_left_alone_unless_asked_for():
    names = ("brightness", "contrast", "saturation", "lighting")
    assert [getattr(DataConfig(), name) for name in names] == [0.0] * 4
    assert DataConfig(brightness=0.99, contrast=0.2, saturation=0.4, lighting=2.0).lighting == 2.0


def test_torchvisions_reference_recipes_are_off_unless_asked_for():
    off = DataConfig()
    assert (off.auto_augment, off.random_erase, off.repeats, off.interpolation) == (None, 0.0, 1, None)
    assert (off.train_crop_size, off.val_resize_size) == (None, None)
    streamed = DataConfig(stream=True, train_crop_size=176, val_resize_size=232, auto_augment="ta_wide", repeats=4)
    assert (streamed.train_crop_size, streamed.val_resize_size, streamed.repeats) == (176, 232, 4)
    with pytest.raises(
        InputError, match="--interpolation is 'bicubic', but must be bilinear with --auto-augment augmi"
    ):
        DataConfig(auto_augment="augmix", interpolation="bicubic")
    with pytest.raises(InputError, match="--train-crop-size is 176, but must be left out without --stream"):
        DataConfig(train_crop_size=176)


def test_overwriting_and_resuming_exclude_each_other():
    with pytest.raises(InputError, match=r"--overwrite .* left out together with --resume"):
        RunConfig(resume="auto", overwrite=True)


def test_evaluation_takes_mean_and_std_only_together_and_an_output_that_can_be_written(tmp_path):
    with pytest.raises(InputError, match="--std is None, but must be given together with --mean"):
        EvalConfig(model="m", mean=(0.5,))
    with pytest.raises(InputError, match="--output"):
        EvalConfig(model="m", output=str(tmp_path / "missing" / "result.json"))
    assert EvalConfig(model="m", output=str(tmp_path / "result.json")).batch_size == 500


def test_as_dict_holds_json_values_only():
    tree = as_dict(TrainConfig(optim=OptimConfig(milestones=(81, 122))))
    assert tree["model"] == "lenet_300_100"
    assert tree["optim"]["milestones"] == [81, 122]
    assert tree["data"] == as_dict(DataConfig())


def test_flatten_joins_names_with_dots():
    assert flatten({"a": 1, "b": {"c": 2, "d": {"e": [3]}}}) == {"a": 1, "b.c": 2, "b.d.e": [3]}


def test_changed_fields_names_what_differs_and_leaves_out_what_is_free_on_resume():
    old = TrainConfig(run=RunConfig(run_dir="here"))
    free = replace(old, run=RunConfig(run_dir="there", resume="auto", checkpoint_steps=3, keep_checkpoints=9))
    assert changed_fields(as_dict(old), as_dict(free)) == {}
    other = replace(old, optim=OptimConfig(lr=0.2), run=RunConfig(seed=1))
    assert changed_fields(as_dict(old), as_dict(other)) == {"optim.lr": (0.1, 0.2), "run.seed": (0, 1)}


def test_changed_fields_sees_a_field_that_only_one_side_has():
    assert changed_fields({"a": 1}, {"a": 1, "b": 2}) == {"b": (None, 2)}


def test_every_name_that_is_free_on_resume_is_a_field():
    names = {entry.name for kind in (DataConfig, OptimConfig, RunConfig) for entry in fields(kind)}
    assert names >= FREE_ON_RESUME


@pytest.mark.parametrize(
    ("name", "batch_size", "epochs", "milestones", "gamma", "weight_decay"),
    [
        ("alexnet", 128, 164, (81, 122), 0.1, 5e-4),
        ("vgg19_bn", 128, 164, (81, 122), 0.1, 5e-4),
        ("resnet110", 128, 164, (81, 122), 0.1, 1e-4),
        ("resnet164", 128, 164, (81, 122), 0.1, 1e-4),
        ("preresnet110", 128, 164, (81, 122), 0.1, 1e-4),
        ("preresnet164", 128, 164, (81, 122), 0.1, 1e-4),
        ("wrn28_10", 128, 200, (60, 120, 160), 0.2, 5e-4),
        ("resnext29_8x64", 128, 300, (150, 225), 0.1, 5e-4),
        ("resnext29_16x64", 128, 300, (150, 225), 0.1, 5e-4),
        ("densenet_bc_100_12", 64, 300, (150, 225), 0.1, 1e-4),
        ("densenet_bc_190_40", 64, 300, (150, 225), 0.1, 1e-4),
    ],
)
def test_recipes_are_the_published_settings(name, batch_size, epochs, milestones, gamma, weight_decay):
    recipe = TRAIN[name]
    assert (recipe.model, recipe.data.dataset, recipe.data.pad, recipe.data.flip) == (name, "cifar10", 4, True)
    assert recipe.network.given() == ({"dropout": 0.3} if name == "wrn28_10" else {})
    optim = recipe.optim
    assert (optim.optimizer, optim.lr, optim.momentum, optim.nesterov) == ("sgd", 0.1, 0.9, False)
    assert (optim.batch_size, optim.epochs, optim.schedule, optim.milestones) == (
        batch_size,
        epochs,
        "step",
        milestones,
    )
    assert (optim.gamma, optim.weight_decay) == (gamma, weight_decay)


def test_recipes_hold_nothing_out():
    assert TRAIN["smoke"].data.dataset == "digits"
    assert all(recipe.data.holdout == 0 for recipe in TRAIN.values())


def test_the_options_that_name_images_say_what_is_not_usual():
    assert source_options(DataConfig()) == "--dataset digits"
    data = DataConfig(dataset="cifar10", data_dir="my data", image_size=64, stream=True, workers=2, pad=4, holdout=0.1)
    wanted = "--dataset cifar10 --data-dir 'my data' --image-size 64 --stream --workers 2"
    assert source_options(data) == wanted
    assert source_options(SourceConfig(label_column="a b")) == "--dataset digits --label-column 'a b'"
