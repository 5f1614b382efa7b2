"""The console scripts: the authors' numbers, refusals, and the whole pipeline as a user types it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deephoyer import cli, method, recipes
from deephoyer import config as configs
from deephoyer import prune as pruning
from deephoyer.config import PruneConfig, TrainConfig, regulariser_name
from deephoyer.train import next_arguments, penalty_of
from PIL import Image
from resless import costs, models, weights
from resless.cli import parse
from resless.config import DataConfig, OptimConfig
from resless.errors import InputError
from resless.testing import (
    assert_recalibrates,
    few_images,
    refused,
    run,
    script,
    succeeded,
    two_processes,
    undrawn,
)
from safetensors.torch import load_file


def parsed(*args: str) -> TrainConfig:
    return parse(TrainConfig, recipes.TRAIN, prog="deephoyer-train", description="", args=args)


def test_names_without_torch_are_those_of_the_method() -> None:
    assert tuple(method.ELEMENT_WISE) == configs.ELEMENT_WISE
    assert tuple(method.STRUCTURAL) == configs.STRUCTURAL


def test_authors_commands_work() -> None:
    config = parsed("--reg", "3", "--decay", "2e-4", "--batch_size", "100")
    assert (config.regulariser, config.strength, config.optim.batch_size) == ("hoyer_square", 2e-4, 100)


@pytest.mark.parametrize(
    ("number", "structural", "model", "name"),
    [
        ("0", False, "lenet5", "none"),
        ("1", False, "lenet5", "l1"),
        ("2", False, "lenet5", "hoyer"),
        ("3", False, "lenet5", "hoyer_square"),
        ("4", False, "lenet5", "transformed_l1"),
        ("1", True, "lenet5", "group_lasso"),
        ("2", True, "lenet5", "group_hoyer_square"),
        ("2", True, "resnet20", "group_hoyer"),
        ("3", True, "resnet20", "group_hoyer_square"),
    ],
)
def test_authors_numbers(number: str, structural: bool, model: str, name: str) -> None:
    assert regulariser_name(number, structural, model) == name


def test_unknown_regularisers_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean hoyer"):
        parsed("--reg", "hoyer_sqare")
    with pytest.raises(InputError, match="--reg is 7, but the numbers for this kind of pruning are 0 none, 1 l1"):
        parsed("--reg", "7")
    with pytest.raises(InputError, match=r"--strength is -1\.0, but must be 0 or more"):
        parsed("--decay", "-1")


@pytest.mark.parametrize("given", [("--reg", "none", "--strength", "5"), ("--reg=0", "--decay=5")])
def test_a_strength_of_no_regulariser_is_refused(given: tuple[str, ...], tmp_path: Path) -> None:
    sentence = "error: --strength is 5.0, but must be 0 or left out with --reg none, which has no regulariser"
    assert refused(cli.train, *given, cwd=tmp_path) == sentence
    with pytest.raises(InputError, match=r"--sweep is \(1.0, 2.0\), but must be left out with --reg none"):
        parsed("--reg", "none", "--sweep", "1", "2", "--holdout", "0.1")
    assert parsed("--recipe", "smoke", "--reg", "none").strength > 0, "a recipe's is switched off"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sensitivity": -0.1}, "--sensitivity is -0.1"),
        ({"sweep": (0.1,)}, "--max-accuracy-drop or --target-macs"),
        ({"sweep": (0.1,), "target_macs": 100}, "--holdout is 0.0"),
        ({"target_macs": 100, "target_weights": 100}, "--target-weights"),
        ({"model": ("a", "b")}, "one model folder"),
        ({"max_accuracy_drop": 2.0}, "a fraction from 0 to 1"),
        ({"compact": True}, "--compact is True, but must be left out, unless --rule is group or tied"),
    ],
)
def test_bad_pruning_configurations_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PruneConfig(**({"model": ("a",)} | fields))


def test_every_recipe_is_complete() -> None:
    assert set(recipes.TRAIN) == set(recipes.PRUNE)
    assert len(recipes.TRAIN) == 9
    for name, recipe in recipes.TRAIN.items():
        pruning = recipes.PRUNE[name]
        assert (recipe.regulariser in configs.STRUCTURAL) == recipe.structural == (pruning.rule != "elementwise")
        assert recipe.strength > 0
        assert pruning.model == (f"{recipe.run.run_dir}/model",), "the two commands find each other"


def test_recipes_of_convolution_networks_have_the_published_schedules() -> None:
    cifar = ("sgd", 0.1, 0.9, 1e-4, 128, 164, "step", (81, 122), 0.1)
    imagenet = ("sgd", 0.1, 0.9, 1e-4, 256, 90, "step", (30, 60), 0.1)
    tuned = (*imagenet[:1], 0.01, *imagenet[2:])
    for name, training, tuning, threshold in (("cifar10", cifar, cifar, 1e-2), ("imagenet", imagenet, tuned, 1e-4)):
        recipe, pruning = recipes.TRAIN[name], recipes.PRUNE[name]
        assert schedule(recipe.optim) == training
        assert schedule(pruning.optim) == tuning
        assert recipe.regulariser == "group_hoyer_square"
        assert (pruning.rule, pruning.threshold, pruning.sensitivity) == ("group", "fixed", threshold)


def schedule(optim: OptimConfig) -> tuple[object, ...]:
    """What a paper tells of its training."""
    rates = (optim.schedule, tuple(optim.milestones), optim.gamma)
    return (optim.optimizer, optim.lr, optim.momentum, optim.weight_decay, optim.batch_size, optim.epochs, *rates)


def test_pipeline_as_a_user_types_it(tmp_path: Path) -> None:
    run([script("deephoyer-train"), "--recipe", "smoke", "--run-dir", "trained"], tmp_path)
    said = run(
        [script("deephoyer-prune"), "--recipe", "smoke", "--model", "trained/model", "--run-dir", "pruned"], tmp_path
    )
    assert "before the cut" in said.stdout
    assert "after fine-tuning" in said.stdout
    run([script("deephoyer-compact"), "--model", "pruned/model", "--output", "small", "--repeats", "2"], tmp_path)
    said = run([script("deephoyer-eval"), "--model", "small", "--output", "eval.json"], tmp_path)
    assert "top-1 %" in said.stdout

    report = json.loads((tmp_path / "eval.json").read_text())
    pruned = json.loads((tmp_path / "pruned" / "result.json").read_text())
    assert report["top1"] == pruned["test_top1_tuned"] > 0.9
    assert report["macs"] == report["dense_macs"] == pruned["macs"] < pruned["dense_macs"]
    large, small = (weights.from_pretrained(tmp_path / folder) for folder in ("pruned/model", "small"))
    digits = torch.randn(5, 1, 8, 8)
    assert torch.allclose(large(digits), small(digits), atol=1e-4)

    # Refusals leave nothing behind: no folder is made or touched.
    sentence = refused(cli.prune, "--model", "trained/model", "--run-dir", "pruned", cwd=tmp_path)
    assert "run folder pruned exists: go on with --resume auto" in sentence
    sentence = refused(cli.compact, "--model", "nowhere", "--output", "x", cwd=tmp_path)
    assert "nowhere is not a folder" in sentence


def test_every_command_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "my runs").mkdir()
    given = (
        "--recipe",
        "smoke_resnet",
        "--tied",
        "--epochs",
        "1",
        "--run-dir",
        "my runs/sparse",
        "--checkpoint-epochs",
        "9",
    )
    with undrawn(), few_images(128, 40):
        said = succeeded(cli.train, *given, cwd=tmp_path)
        words = next_command(said)
        assert words[0] == "deephoyer-prune"
        assert "tied" in words
        said = succeeded(cli.prune, *words[1:], "--epochs", "1", cwd=tmp_path)
        of_small = succeeded(cli.prune, *words[1:], "--epochs", "1", "--compact", "--run-dir", "small", cwd=tmp_path)
        assert next_command(of_small)[0] == "deephoyer-eval"
        succeeded(cli.evaluate, *next_command(of_small)[1:], cwd=tmp_path)
    words = next_command(said)
    assert words[0] == "deephoyer-compact"
    said = succeeded(cli.compact, *words[1:], "--repeats", "0", cwd=tmp_path)
    small = weights.from_pretrained(tmp_path / words[words.index("--output") + 1])
    dense = weights.from_pretrained(tmp_path / "my runs" / "sparse" / "model")
    image = torch.zeros(1, 1, 8, 8)
    assert costs.macs(small, image) <= costs.macs(dense, image) / 2


def test_a_recipe_is_gone_on_with_by_its_name(tmp_path: Path) -> None:
    config = replace(recipes.TRAIN["resnet20_short"], data=DataConfig(dataset="cifar10", data_dir="my data"))
    hint = next_arguments(config, Path("runs/deephoyer-resnet20_short/model"), 1000)
    assert hint == "--recipe resnet20_short --dataset cifar10 --data-dir 'my data'"
    for reg, rule in (("hoyer_square", "elementwise"), ("group_lasso", "tied")):
        assert f"--rule {rule}" in next_arguments(replace(config, reg=reg, tied=False), Path("x"), 1000)
    assert "--rule group --threshold rms --target-macs 500" in next_arguments(
        replace(config, model="lenet5", tied=False), Path("x"), 1000
    )


@pytest.mark.parametrize("name", ["resnet20_short", "smoke_resnet", "lenet5-structural"])
@pytest.mark.parametrize("epochs", [None, 3], ids=["by the recipe", "by no recipe"])
def test_a_run_in_a_folder_of_its_own_is_gone_on_with_as_it_was_trained(name: str, epochs: int | None) -> None:
    first = recipes.TRAIN[name]
    data = replace(first.data, pad=2, flip=True, holdout=0.1, data_dir="my data")
    run = replace(first.run, run_dir="my run", channels_last=True, mixed_precision="bf16")
    optim = first.optim if epochs is None else replace(first.optim, epochs=epochs, batch_size=32)
    hint = shlex.split(next_arguments(replace(first, data=data, run=run, optim=optim), Path("my run/model"), 40_000))
    found = parse(PruneConfig, recipes.PRUNE, prog="deephoyer-prune", description="", args=hint)
    assert found.data == data
    assert found.model == ("my run/model",)
    second = recipes.PRUNE[name]
    if epochs is None:
        assert found == replace(second, model=found.model, data=data, run=replace(second.run, run_dir="my run-pruned"))
    else:
        assert (found.rule, found.target_macs, found.optim.batch_size) == (second.rule, 20_000, 32)
        assert (found.run.channels_last, found.run.mixed_precision) == (True, "bf16")


@pytest.mark.parametrize(("reg", "rule"), [("hoyer_square", "elementwise"), ("group_hoyer_square", "group")])
def test_a_sweep_of_strengths_says_how_to_choose_one(reg: str, rule: str, tmp_path: Path) -> None:
    given = ("--reg", reg, "--sweep", "0.001", "0.002", "--epochs", "1", "--run-dir", "my strengths")
    said = refused(cli.train, *given, cwd=tmp_path)
    assert "--holdout is 0.0, but must be above 0" in said
    given += ("--holdout", "0.1")
    with undrawn(), few_images(128, 40):
        words = next_command(succeeded(cli.train, *given, cwd=tmp_path))
        assert words[0] == "deephoyer-prune"
        assert words[words.index("--rule") + 1] == rule
        fewer = ("--sweep", "0.5", "--max-accuracy-drop", "1", "--epochs", "1")
        said = succeeded(cli.prune, *words[1:], *fewer, cwd=tmp_path)
    assert "chosen: my strengths/strength-0.00" in said


def test_torchvisions_network_on_a_folder_of_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Laid out as ImageNet is: train/CLASS/NAME.JPEG and val/CLASS/NAME.JPEG, of many sizes, streamed."""
    photographs(tmp_path / "photos")
    monkeypatch.setattr(pruning, "BISECTIONS", 12)  # near enough
    given = shlex.split("--dataset photos --image-size 32 --stream --workers 1")
    steps = shlex.split("--batch-size 12 --epochs 1 --lr 0.01 --checkpoint-epochs 9")
    sparse = shlex.split("--model torchvision/resnet18 --reg group_hoyer_square --tied --strength 1e-4")
    with undrawn():
        words = next_command(succeeded(cli.train, *sparse, *given, *steps, "--run-dir", "sparse", cwd=tmp_path))
        assert shlex.join(words).endswith(f"{shlex.join(given)} --rule tied --threshold rms --target-macs 18506496")
        succeeded(cli.prune, *words[1:], *steps, "--recalibrate-bn", "24", "--run-dir", "pruned", cwd=tmp_path)
    succeeded(cli.compact, *shlex.split("--model pruned/model --output small --repeats 0"), cwd=tmp_path)
    said = succeeded(cli.evaluate, "--model", "small", "--output", "eval.json", *given, cwd=tmp_path)

    report, pruned = (json.loads((tmp_path / name).read_text()) for name in ("eval.json", "pruned/result.json"))
    assert report["images"] == 9
    assert report["top1"] == pruned["test_top1_tuned"]
    assert re.search(rf"test .* 9 .* {100 * report['top1']:.2f} ", said)
    assert report["macs"] == pruned["macs"] <= 18_506_496 == pruned["dense_macs"] / 2
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("small", "pruned/model")]
    assert sizes[0] < 0.6 * sizes[1]


def photographs(folder: Path) -> None:
    """Three classes, of one colour each: 24 images to train on, 9 to test on."""
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 9)):
        for index in range(count):
            path = folder / split / ("n01440764", "n01443537", "n01484850")[index % 3] / f"{index}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 100, (40 + index, 50, 3), dtype=np.uint8)
            pixels[..., index % 3] += 150
            Image.fromarray(pixels).save(path)


def next_command(said: str) -> list[str]:
    (line,) = [line for line in said.splitlines() if line.startswith("next: ")]
    return shlex.split(line.removeprefix("next: "))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ("--model", "resnet8", "--reg", "hoyer_square"),
            "--tied is True, but must be off (--no-tied), or given with group_lasso",
        ),
        (
            ("--model", "lenet_300_100", "--reg", "group_lasso"),
            "--tied is True, but must be off (--no-tied) for a LeNet",
        ),
    ],
)
def test_what_has_no_ties_is_refused(given: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    assert sentence in refused(cli.train, *given, "--tied", "--strength", "1", cwd=tmp_path)


@pytest.mark.parametrize(
    ("entry", "given", "value"),
    [
        (cli.train, ("--model", "resnet8", "--pretrained", "folder", "--shortcut", "conv"), "--shortcut is 'conv'"),
        (cli.prune, ("--model", "folder", "--shortcut", "avgpool"), "--shortcut is 'avgpool'"),
        (cli.prune, ("--model", "folder", "--shortcut", "avgpool", "--dry-run"), "--shortcut is 'avgpool'"),
        (cli.evaluate, ("--model", "folder", "--shortcut", "conv"), "--shortcut is 'conv'"),
        (cli.compact, ("--model", "folder", "--output", "small", "--shortcut", "conv"), "--shortcut is 'conv'"),
        (cli.compact, ("--model", "folder", "--output", "small", "--num-classes", "10"), "--num-classes is 10"),
        (cli.compact, ("--model", "folder", "--output", "small", "--image-size", "8"), "--image-size is 8"),
    ],
)
def test_what_a_model_folder_says_of_its_network_is_not_said_otherwise(
    entry: Callable[[], None], given: tuple[str, ...], value: str, tmp_path: Path
) -> None:
    example = torch.ones(1, 1, 8, 8)
    weights.save_pretrained(models.create("resnet8", in_channels=1), tmp_path / "folder", example=example)
    allowed = "left out, since the model folder folder says what its network is"
    assert refused(entry, *given, cwd=tmp_path) == f"error: {value}, but must be {allowed}"


def test_batch_norms_are_recalibrated_before_the_evaluation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with few_images(256, 120):
        assert_recalibrates(cli.evaluate, models.create("resnet8", in_channels=1), tmp_path)


def test_what_cannot_be_recalibrated_is_refused(tmp_path: Path) -> None:
    weights.save_pretrained(models.create("lenet_300_100", in_channels=1, image_size=8), tmp_path / "lenet")
    for count, allowed in (("-1", "0 (off) or a number of images"), ("9", "0 for lenet, which has no batch norm")):
        sentence = refused(cli.evaluate, "--model", "lenet", "--recalibrate-bn", count, cwd=tmp_path)
        assert sentence == f"error: --recalibrate-bn is {count}, but must be {allowed}"


def test_two_processes_train_the_same_network(tmp_path: Path) -> None:
    settings = ["--recipe", "smoke", "--epochs", "1"]
    said = run(two_processes("deephoyer.train", *settings, "--run-dir", "two"), tmp_path)
    assert "2 process(es)" in said.stdout
    succeeded(cli.train, *settings, "--run-dir", "one", cwd=tmp_path)
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert len(one) == 6
    for key in one:
        assert torch.allclose(one[key], two[key], atol=1e-4), key


def test_a_recipe_that_ties_trains_without_a_regulariser_too() -> None:
    config = parsed("--recipe", "resnet20_short", "--reg", "none")
    assert (config.tied, config.regulariser) == (True, "none")
    assert penalty_of(models.create("resnet8"), config, torch.zeros(1, 3, 8, 8), torch.device("cpu"))() == 0
