"""The console scripts: the authors' commands, recipes, refusals, and the whole pipeline as a user types it."""

from __future__ import annotations

import json
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blockdrop import cli, costs, recipes
from blockdrop.analyse import Decisions
from blockdrop.config import MODELS, EvalConfig, FinetuneConfig, Optim, PlotConfig, TrainConfig
from blockdrop.model import BlockDropNet
from blockdrop.train import next_arguments
from resless import weights
from resless.cli import evaluate as dense_eval
from resless.cli import parse
from resless.errors import InputError
from resless.testing import entered, forked, metrics, refusal, refused, run, script, succeeded

PICTURES = {"keep_rates", "blocks_used", "policies", "easy_hard", "cost_accuracy", "rewards"}


def parsed_train(command: str) -> TrainConfig:
    return parse(TrainConfig, recipes.TRAIN, prog="blockdrop-train", description="", args=shlex.split(command))


def parsed_finetune(command: str) -> FinetuneConfig:
    return parse(FinetuneConfig, recipes.FINETUNE, prog="blockdrop-finetune", description="", args=shlex.split(command))


def parsed_eval(command: str) -> EvalConfig:
    return parse(EvalConfig, recipes.EVAL, prog="blockdrop-eval", description="", args=shlex.split(command))


def either_spelling(command: str) -> list[str]:
    """A command with underscores in its flags, and with hyphens."""
    words = command.split()
    return [command, " ".join(word.replace("_", "-") if word.startswith("--") else word for word in words)]


# --- the authors' commands


@pytest.mark.parametrize(
    "command",
    either_spelling("--model R110_C10 --cv_dir cv/R110_C10_cl/ --lr 1e-3 --batch_size 2048 --max_epochs 5000"),
)
def test_the_authors_cifar_curriculum(command: str) -> None:
    config = parsed_train(command)
    assert (config.model, config.run.run_dir) == ("R110_C10", "cv/R110_C10_cl/")
    assert (config.optim.lr, config.optim.batch_size, config.optim.epochs) == (1e-3, 2048, 5000)
    assert (config.data.dataset, config.data.pad, config.data.flip) == ("cifar10", 4, True)


@pytest.mark.parametrize(
    "command",
    either_spelling(
        "--model R101_ImgNet --cv_dir cv/R101_ImgNet_cl/ --lr 1e-3 --batch_size 2048 --max_epochs 45 "
        "--data_dir data/imagenet/"
    ),
)
def test_the_authors_imagenet_curriculum(command: str) -> None:
    config = parsed_train(command)
    assert (config.model, config.data.dataset, config.data.data_dir) == ("R101_ImgNet", "imagenet", "data/imagenet/")
    assert config.data.stream
    assert (config.optim.lr, config.optim.batch_size, config.optim.epochs) == (1e-3, 2048, 45)


CURRICULUM_FILE = "cv/cl_training/R110_C10/ckpt_E_5300_A_0.754_R_2.22E-01_S_20.10_#_7787.t7"
FINETUNED_FILE = "cv/finetuned/R110_C10_gamma_10/ckpt_E_2000_A_0.936_R_1.95E-01_S_16.93_#_469.t7"


@pytest.mark.parametrize(
    "command",
    either_spelling(
        f"--model R110_C10 --lr 1e-4 --penalty -10 --pretrained '{CURRICULUM_FILE}' --batch_size 256  "
        "--max_epochs 2000 --cv_dir cv/R110_C10_ft_-10/"
    ),
)
def test_the_authors_cifar_finetuning(command: str) -> None:
    config = parsed_finetune(command)
    assert (config.model, config.penalty, config.pretrained) == ("R110_C10", -10.0, CURRICULUM_FILE)
    assert (config.optim.lr, config.optim.batch_size, config.optim.epochs) == (1e-4, 256, 2000)
    assert config.run.run_dir == "cv/R110_C10_ft_-10/"
    assert config.policy_reduction == "sum"


@pytest.mark.parametrize(
    "command",
    either_spelling(
        "--model R101_ImgNet --lr 1e-4  --penalty -5 --pretrained 'cv/ckpt_#_484.t7' --data_dir data/imagenet/ "
        "--batch_size 320 --max_epochs 10 --cv_dir cv/R101_ImgNet_ft_-5/"
    ),
)
def test_the_authors_imagenet_finetuning(command: str) -> None:
    config = parsed_finetune(command)
    assert (config.model, config.penalty, config.pretrained) == ("R101_ImgNet", -5.0, "cv/ckpt_#_484.t7")
    assert (config.data.dataset, config.data.data_dir) == ("imagenet", "data/imagenet/")
    assert (config.optim.batch_size, config.optim.epochs, config.run.run_dir) == (320, 10, "cv/R101_ImgNet_ft_-5/")


def test_the_authors_evaluations() -> None:
    config = parsed_eval(f"--model R110_C10 --load '{FINETUNED_FILE}'")
    assert (config.model, config.load, config.data.dataset) == ("R110_C10", FINETUNED_FILE, "cifar10")
    for flag in ("--data_dir", "--data-dir"):
        config = parsed_eval(f"--model R101_ImgNet --load x.t7 {flag} data/imagenet/ --batch_size 64")
        assert (config.data.dataset, config.data.data_dir, config.data.stream) == ("imagenet", "data/imagenet/", True)
        assert config.batch_size == 64


def test_authors_names_of_other_options() -> None:
    config = parsed_train("--model resnet20 --beta 0.2 --alpha 0.9 --penalty -2.5 --learning_rate 0.01")
    assert (config.entropy_bonus, config.alpha, config.penalty, config.optim.lr) == (0.2, 0.9, -2.5, 0.01)
    plot = parse(PlotConfig, {}, prog="blockdrop-plot", description="", args=["--cv_dir", "cv/x"])
    assert plot.run_dir == "cv/x"


# --- recipes


def test_every_model_has_a_recipe_for_each_stage() -> None:
    assert list(MODELS) == ["R32_C10", "R110_C10", "R32_C100", "R110_C100", "R101_ImgNet"]
    again = {"R32_C10_short_again", "R110_C10_short_again"}
    assert set(recipes.FINETUNE) == {*recipes.TRAIN, *again} >= {*MODELS, "smoke"}
    assert set(recipes.EVAL) >= set(MODELS)
    for name in recipes.TRAIN:
        first, second = recipes.TRAIN[name], recipes.FINETUNE[name]
        assert second.pretrained == f"{first.run.run_dir}/model", "the two stages find each other"
        assert first.run.run_dir != second.run.run_dir
        assert first.model == second.model
        assert name not in MODELS or first.model == name


@pytest.mark.parametrize("name", ["R32_C10", "R110_C10", "R32_C100", "R110_C100", "R101_ImgNet"])
@pytest.mark.parametrize("option", ["--recipe", "--model"])
def test_recipes_are_the_papers(name: str, option: str) -> None:
    imagenet = name == "R101_ImgNet"
    first, second = parsed_train(f"{option} {name}"), parsed_finetune(f"{option} {name}")
    assert first.optim.optimizer == second.optim.optimizer == "adam"
    assert first.alpha == second.alpha == 0.8
    assert (first.penalty, first.entropy_bonus, first.curriculum_step) == (-1, 0.1, 1)
    assert (first.optim.lr, first.optim.batch_size, first.optim.epochs) == (1e-3, 2048, 45 if imagenet else 5000)
    assert first.optim.milestones == ()
    assert second.policy_reduction == "sum"
    rows = (second.penalty, second.optim.lr, second.optim.batch_size, second.optim.epochs, second.optim.milestones)
    assert rows == ((-5, 1e-4, 320, 10, ()) if imagenet else (-10, 1e-4, 256, 2000, (1600,)))
    assert second.optim.schedule == "step"
    assert second.optim.gamma == 0.1
    dataset = "imagenet" if imagenet else "cifar100" if name.endswith("C100") else "cifar10"
    for config in (first, second):
        assert (config.model, config.data.dataset, config.data.stream) == (name, dataset, imagenet)
        assert config.backbone is None
        assert imagenet or (config.data.pad, config.data.flip, config.data.holdout) == (4, True, 0)
    assert first.optim.epochs * first.curriculum_step >= {"R32": 15, "R110": 54, "R101": 33}[name.split("_")[0]]


def test_models_expect_what_the_paper_gave_them() -> None:
    subtracted = [name for name, model in MODELS.items() if any(model.mean)]
    assert subtracted == ["R32_C10", "R101_ImgNet"]
    assert MODELS["R32_C10"].mean == (125.3 / 255, 123.0 / 255, 113.9 / 255)
    assert MODELS["R32_C10"].std == (63.0 / 255, 62.1 / 255, 66.7 / 255)
    assert MODELS["R110_C10"].std == (1, 1, 1)


@pytest.mark.parametrize(
    ("command", "values"),
    [
        (cli.train, ["(default: 2048)", "(default: 5000)", "(default: -1.0)", "--cv-dir", "--max-epochs", "--beta"]),
        (cli.finetune, ["(default: 256)", "(default: 2000)", "(default: -10.0)", "(default: 1600)", "--cv-dir"]),
        (cli.evaluate, ["(default: cifar10)", "--specialise", "--load"]),
        (cli.plot, ["--run-dir", "--cv-dir"]),
    ],
)
def test_help_shows_the_values_of_the_recipe(
    command: Callable[[], None], values: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [] if command is cli.plot else ["--model", "R110_C10"]
    monkeypatch.setattr(sys, "argv", ["blockdrop", *model, "--help"])
    with pytest.raises(SystemExit, match="0"):
        command()
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for value in values:
        assert value in printed
    if model:
        assert "Recipes (--recipe NAME): R32_C10, R110_C10, R32_C100, R110_C100, R101_ImgNet" in printed


# --- what a run says comes next


@pytest.mark.parametrize("name", recipes.TRAIN)
def test_the_next_command_goes_on_with_the_same_recipe(name: str) -> None:
    first, second = recipes.TRAIN[name], recipes.FINETUNE[name]
    data = {"data_dir": "my data", "image_column": "picture"}
    found = parsed_finetune(next_arguments(replace(first, data=replace(first.data, **data)), Path("my run/model")))
    assert found == replace(second, pretrained="my run/model", data=replace(second.data, **data))


@pytest.mark.parametrize(
    ("epochs", "second"), [(30, 10), (1, 1)], ids=["a third of the epochs, which take thrice as long", "one epoch"]
)
def test_the_next_command_of_a_run_by_no_recipe_takes_about_as_long(epochs: int, second: int) -> None:
    optim = Optim("sgd", lr=0.03, epochs=epochs)
    config = replace(recipes.TRAIN["R32_C10"], penalty=-2.5, optim=optim)
    found = parsed_finetune(next_arguments(config, Path("my run/model")))
    assert (found.model, found.pretrained, found.penalty) == ("R32_C10", "my run/model", -2.5)
    assert (found.optim.optimizer, found.optim.lr, found.optim.epochs) == ("sgd", 0.03, second)


@pytest.mark.parametrize("name", ["R32_C10_short", "smoke", "R110_C10"])
@pytest.mark.parametrize("optim", [{}, {"epochs": 6, "batch_size": 32}], ids=["by the recipe", "by no recipe"])
def test_the_next_command_varies_images_as_this_one_did(name: str, optim: dict[str, int]) -> None:
    first = recipes.TRAIN[name]
    data = replace(first.data, pad=2, flip=not first.data.flip, holdout=0.1, train_split="train+extra")
    pixel = replace(data, normalize="pixel") if not data.stream else data
    run = replace(first.run, run_dir="elsewhere", mixed_precision="bf16", channels_last=True, seed=3)
    config = replace(first, data=pixel, optim=replace(first.optim, **optim), run=run)
    found = parsed_finetune(next_arguments(config, Path("elsewhere/model")))
    assert found.data == data
    assert found.pretrained == "elsewhere/model"
    if optim:
        assert found.optim.batch_size == 32
        assert (found.run.mixed_precision, found.run.channels_last, found.run.seed) == ("bf16", True, 3)
    else:
        assert found.optim == recipes.FINETUNE[name].optim


# --- the pipeline


@pytest.mark.parametrize("name", ["train", "finetune", "eval", "plot"])
def test_every_script_is_installed(name: str, tmp_path: Path) -> None:
    assert f"usage: blockdrop-{name}" in run([script(f"blockdrop-{name}"), "--help"], tmp_path).stdout


@pytest.mark.usefixtures("no_pictures")  # where a fork would draw; the scripts do draw
def test_pipeline_as_a_user_types_it(dense: Path, tmp_path: Path) -> None:
    """The recipes find each other's folders; networks of a few epochs."""
    shutil.copytree(dense, tmp_path / "runs" / "smoke_resnet")
    few = ["--recipe", "smoke", "--epochs", "3", "--curriculum-step", "3"]
    printed = succeeded(cli.train, *few, cwd=tmp_path)
    next_one = "--model resnet20 --pretrained runs/blockdrop-smoke/model --epochs 1 --optimizer adam --lr 0.003"
    as_before = "--penalty -1.0 --pad 1 --batch-size 64 --dataset digits"
    assert f"next: blockdrop-finetune {next_one} {as_before}\n" in printed
    said = run([script("blockdrop-finetune"), "--recipe", "smoke", "--max_epochs", "2"], tmp_path)
    assert "all blocks, before this fine-tuning" in said.stdout
    assert "next: blockdrop-eval --model runs/blockdrop-smoke-finetuned/model --dataset digits\n" in said.stdout
    assert "Warning" not in said.stderr
    folder = tmp_path / "runs" / "blockdrop-smoke-finetuned"
    evaluation = ["--model", "runs/blockdrop-smoke-finetuned/model", "--output", "eval.json", "--repeats", "2"]
    policy = "011101110"
    special = ["--specialise", "one", "--policy", policy]
    said = run([script("blockdrop-eval"), *evaluation, *special], tmp_path)

    # What was written can be opened again, and says the same.
    result = json.loads((folder / "result.json").read_text())
    found = Decisions.load(folder / "policies.npz")
    report = json.loads((tmp_path / "eval.json").read_text())
    assert report["top1"] == result["top1"] == found.top1 > 0.5
    assert report["blocks_used"] == result["blocks_used"] == found.blocks_used.mean()
    assert report["speed"]["images"] == 360
    assert np.array_equal(found.images, np.arange(360))
    assert [record["epoch"] for record in metrics(folder)] == [1, 2]
    assert [record["open_blocks"] for record in metrics(tmp_path / "runs" / "blockdrop-smoke")] == [3, 6, 9]

    # The paper's four lines, in the paper's unit.
    net = weights.from_pretrained(folder / "model")
    assert isinstance(net, BlockDropNet)
    cost = costs.count(net, torch.zeros(1, 1, 8, 8))
    flops = 2 * (cost.policy + cost.always + found.kept.astype(int) @ np.array(cost.blocks))
    assert (
        f"    Accuracy: {found.top1:.3f}\n"
        f"    Block Usage: {found.blocks_used.mean():.3f} ± {found.blocks_used.std():.3f}\n"
        f"    FLOPs/img: {flops.mean():.2E} ± {flops.std():.2E}\n"
        f"    Unique Policies: {len(np.unique(found.kept, axis=0))}\n"
    ) in said.stdout
    assert f"wrote one: 6 of 9 blocks, policy {policy}" in said.stdout

    # Any command that reads model folders evaluates both networks.
    top1 = {}
    for name in ("runs/blockdrop-smoke-finetuned/model", "one"):
        succeeded(dense_eval, "--model", name, "--output", "plain.json", cwd=tmp_path)
        top1[name] = json.loads((tmp_path / "plain.json").read_text())
    plain = top1.pop("one")
    (skipping,) = top1.values()
    assert skipping["top1"] == report["top1"]
    kept = [digit == "1" for digit in policy]
    assert plain["macs"] == cost.always + sum(np.array(cost.blocks)[kept]) < cost.dense
    assert plain["parameters"] < skipping["parameters"]

    # Pictures, once more and elsewhere.
    printed = succeeded(cli.plot, "--run-dir", str(folder), "--output", "pictures", cwd=tmp_path)
    assert "wrote pictures" in printed
    for place in (folder, tmp_path / "pictures"):
        for name in PICTURES:
            assert (place / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
        policies = json.loads((place / "policies.json").read_text())["policies"]
        assert sum(policy["images"] for policy in policies) == 360

    refuse_after_the_pipeline(tmp_path)


def refuse_after_the_pipeline(folder: Path) -> None:
    """Refusals leave nothing behind: no folder is made or touched."""
    sentence = refused(cli.evaluate, "--model", "one", cwd=folder)
    assert "one holds a plain resnet20: give it to blockdrop-train as --backbone first" in sentence
    trained = ["--model", "runs/blockdrop-smoke/model", "--repeats", "0"]
    assert "one exists and is not empty: choose another" in refused(
        cli.evaluate, *trained, "--specialise", "one", cwd=folder
    )
    sentence = refused(cli.finetune, "--recipe", "smoke", cwd=folder)
    assert "run folder runs/blockdrop-smoke-finetuned exists: go on with --resume auto" in sentence
    assert "give the model folder in it" in refused(cli.evaluate, "--model", "runs/blockdrop-smoke", cwd=folder)


def test_modules_run_as_scripts_on_two_processes(undecided: str, tmp_path: Path) -> None:
    """As under `accelerate launch -m blockdrop.evaluate`."""
    arguments = ["--model", undecided, "--repeats", "0", "--batch-size", "100", "--output", str(tmp_path / "two.json")]

    def task() -> None:
        sys.argv = ["evaluate", *arguments]
        del sys.modules["blockdrop.evaluate"]
        runpy.run_module("blockdrop.evaluate", run_name="__main__")

    first, second = forked(task, 2)
    assert first.code == second.code == 0, first.printed + second.printed
    assert first.printed.count("Accuracy:") == 1
    assert second.printed == ""
    assert json.loads((tmp_path / "two.json").read_text())["images"] == 360


@pytest.mark.parametrize(
    ("name", "entry"),
    [("train", cli.train), ("finetune", cli.finetune), ("evaluate", cli.evaluate), ("plot", cli.plot)],
)
def test_modules_give_the_help_of_the_scripts(name: str, entry: Callable[[], None], tmp_path: Path) -> None:
    """As `python -m blockdrop.train --help`."""

    def module() -> None:
        sys.modules.pop(f"blockdrop.{name}", None)
        runpy.run_module(f"blockdrop.{name}", run_name="__main__", alter_sys=True)

    found, expected = (entered(command, "--help", cwd=tmp_path)[0] for command in (module, entry))
    assert found.code == expected.code == 0
    assert found.printed == expected.printed
    assert found.printed.startswith(f"usage: blockdrop-{'eval' if name == 'evaluate' else name} ")


# --- bad input


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (parsed_train, "--model resnet20 --penalty 0", r"--penalty is 0\.0, but must be below 0"),
        (parsed_train, "--model resnet20 --penalty 1", r"--penalty is 1\.0, but must be below 0"),
        (parsed_finetune, "--model resnet20 --penalty 10", r"--penalty is 10\.0, but must be below 0"),
        (parsed_finetune, "--model resnet20 --penalty nan", "--penalty is nan"),
        (parsed_train, "--model resnet20 --alpha 0.5", r"--alpha is 0\.5, but must be above 0\.5 and at most 1"),
        (parsed_finetune, "--model resnet20 --alpha 1.1", r"--alpha is 1\.1, but must be above 0\.5 and at most 1"),
        (parsed_train, "--model resnet20 --curriculum-step 0", "--curriculum-step is 0, but must be 1 block or more"),
        (parsed_train, "--model resnet20 --entropy-bonus -1", r"--entropy-bonus is -1\.0"),
        (parsed_train, "--model resnet20 --policy-pool 0", "--policy-pool is 0, but must be from 1 to 64"),
        (parsed_train, "--model resnet20 --mean 0.5", "--std is None, but must be given together with --mean"),
        (parsed_train, "--recipe R32_C1", "unknown recipe 'R32_C1': did you mean R32_C10"),
        (parsed_eval, "--model x --policy 101", "--policy is '101', but must be given with --specialise"),
        (
            parsed_eval,
            "--model x --specialise y --policy 10x",
            "--policy is '10x', but must be a digit 0 or 1 for each",
        ),
        (parsed_eval, "--model x --specialise y --policy ''", "--policy is '', but must be a digit 0 or 1 for each"),
        (parsed_eval, "--model x --repeats 1", "--repeats is 1, but must be 0, or 2 or more"),
        (parsed_eval, "--model x --batch-size 0", "--batch-size is 0"),
        (parsed_eval, "--model x --recalibrate-bn -1", r"--recalibrate-bn is -1, but must be 0 \(off\) or a number of"),
        (parsed_eval, "--model x --output nowhere/x.json", "--output is 'nowhere/x.json'"),
        (parsed_eval, "--model x --plots taken", "--plots is 'taken', but must be a folder"),
    ],
)
def test_bad_values_are_refused_while_parsing(
    command: Callable[[str], Any], arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    with pytest.raises(InputError, match=message):
        command(arguments)


def test_pictures_may_go_to_a_folder_that_is_there_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    for name in ("there", "new/folder"):
        assert parsed_eval(f"--model x --plots {name}").plots == name


def test_scripts_refuse_bad_values_in_one_sentence(tmp_path: Path) -> None:
    sentence = refusal([script("blockdrop-train"), "--model", "R110_C10", "--penalty", "1"], tmp_path)
    assert sentence == "error: --penalty is 1.0, but must be below 0, and finite: what a wrong prediction costs\n"


@pytest.mark.parametrize(
    ("entry", "arguments", "message"),
    [
        (cli.train, "--model R110_C10", "--backbone is missing: BlockDrop starts from a trained resnet110"),
        (cli.train, "--model R101_ImgNet", "take torchvision's file of resnet101 weights"),
        (cli.train, "--recipe smoke", "runs/smoke_resnet/model"),
        (cli.train, "--model resnet32 --backbone BACKBONE", "--model is resnet32, but BACKBONE holds a resnet20"),
        (cli.train, "--model resnet20 --shortcut avgpool --backbone BACKBONE", "must be conv, as in BACKBONE"),
        (
            cli.train,
            "--model resnet32 --backbone BACKBONE/model.safetensors",
            "BACKBONE/model.safetensors does not match the network: it lacks layer1.3.bn1.bias",
        ),
        (
            cli.train,
            "--model resnet20 --shortcut avgpool --backbone BACKBONE/model.safetensors",
            "it has layer2.0.shortcut.0.weight",
        ),
        (cli.train, "--model R32_C10 --backbone BACKBONE --dataset digits", "3 channels for R32_C10"),
        (cli.finetune, "--model resnet20 --pretrained BACKBONE", "BACKBONE holds a plain resnet20"),
        (cli.finetune, "--model resnet20", "--pretrained is missing"),
        (
            cli.train,
            "--model resnet20 --backbone nowhere",
            "--backbone is nowhere, but nothing is there: BlockDrop starts from a trained resnet20",
        ),
        (
            cli.finetune,
            "--model resnet20 --pretrained nowhere",
            "there is no nowhere: give the model folder of a finished run of blockdrop-train or blockdrop-finetune, or",
        ),
        (cli.evaluate, "--model nowhere", "there is no nowhere: give the model folder of a finished run"),
        (cli.evaluate, "--model R110_C10", "--load is missing: give a model folder of a R110_C10"),
        (cli.evaluate, "--model R110_C10 --load nowhere", "there is no nowhere: give the model folder"),
        (cli.evaluate, "--model BACKBONE", "BACKBONE holds a plain resnet20"),
        (cli.plot, "--run-dir nowhere", "nowhere is no finished run"),
        (cli.plot, "--run-dir .", "is no finished run of blockdrop-train or blockdrop-finetune"),
        (cli.plot, "--run-dir BACKBONE", "BACKBONE is no finished run of blockdrop-train or blockdrop-finetune"),
    ],
)
def test_bad_input_is_one_sentence(
    entry: Callable[[], None], arguments: str, message: str, backbone: str, tmp_path: Path
) -> None:
    sentence = refused(entry, *arguments.replace("BACKBONE", backbone).split(), cwd=tmp_path)
    assert message in sentence.replace(backbone, "BACKBONE")


def test_a_network_is_not_evaluated_on_other_images(undecided: str, tmp_path: Path) -> None:
    """A folder of images in two classes, where the network knows ten."""
    from PIL import Image

    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            Image.new("L", (8, 8), 90).save(tmp_path / "pets" / split / name / "1.png")
    sentence = refused(cli.evaluate, "--model", undecided, "--dataset", str(tmp_path / "pets"), cwd=tmp_path)
    assert "pets show cat, dog, not only the 10 classes that the network is for, 0, 1, 2, 3, 4, ...: give" in sentence
