from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from resless import cli, models
from resless.config import EvalConfig, OptimConfig, TrainConfig
from resless.errors import InputError
from resless.testing import environment, refusal, script
from torch import nn

RECIPES = {
    "small": TrainConfig(optim=OptimConfig(lr=0.25, batch_size=7)),
    "resnet20": TrainConfig(model="resnet20", optim=OptimConfig(epochs=164)),
}


def parse(*args: str) -> TrainConfig:
    return cli.parse(TrainConfig, RECIPES, prog="prog", description="What it does.", args=args)


def test_without_arguments_the_defaults_of_the_dataclass_hold():
    assert parse() == TrainConfig()


def test_a_recipe_gives_the_defaults_and_options_change_them():
    assert parse("--recipe", "small") == RECIPES["small"]
    changed = parse("--recipe=small", "--lr", "0.5")
    assert (changed.optim.lr, changed.optim.batch_size) == (0.5, 7)


def test_a_model_with_a_recipe_of_its_name_gets_it_and_a_named_recipe_goes_before():
    assert parse("--model", "resnet20").optim.epochs == 164
    both = parse("--recipe", "small", "--model", "resnet20")
    assert (both.model, both.optim.lr, both.optim.epochs) == ("resnet20", 0.25, OptimConfig().epochs)
    assert parse("--model", "resnet26") == TrainConfig(model="resnet26")


@pytest.mark.parametrize("option", ["--batch-size", "--batch_size"])
def test_options_are_spelt_with_hyphens_or_underscores(option):
    assert parse(option, "32").optim.batch_size == 32


def test_options_of_torchvisions_reference_recipes_are_spelt_as_there():
    """Its command for the second recipe of ResNet-50, as far as it is about images."""
    options = "--auto-augment ta_wide --random-erase 0.1 --train-crop-size 176 --val-resize-size 232 --ra-reps 4"
    options += " --val-crop-size 224 --interpolation bicubic --data-path photos --stream"
    data = parse(*options.split()).data
    assert (data.auto_augment, data.random_erase, data.repeats, data.interpolation) == ("ta_wide", 0.1, 4, "bicubic")
    assert (data.train_crop_size, data.val_resize_size, data.image_size, data.data_dir) == (176, 232, 224, "photos")
    assert parse("--repeats", "4", "--image-size", "9", "--data-dir", "photos").data.repeats == 4


def test_an_unknown_recipe_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="unknown recipe 'resnet200': did you mean resnet20"):
        parse("--recipe", "resnet200")


@pytest.mark.parametrize("args", [["--mixed-precision", "bf17"], ["--epochs", "many"], ["--no-such-option", "1"]])
def test_arguments_that_cannot_be_parsed_exit_with_2(args, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(*args)
    assert stopped.value.code == 2
    assert args[0].strip("-").replace("-", "") in "".join(capsys.readouterr()).replace("-", "").replace("_", "")


def test_a_command_without_recipes_does_not_take_one(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.parse(EvalConfig, {}, prog="prog", description="What.", args=["--model", "m", "--recipe", "small"])
    assert stopped.value.code == 2
    assert "--recipe" in "".join(capsys.readouterr())


def test_bad_input_is_one_sentence_and_names_the_process(monkeypatch, capsys):
    def refuse() -> None:
        raise InputError("no such thing")

    for rank, where in (("0", ""), ("1", "[process 1] ")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stopped:
            cli.main(refuse)
        assert stopped.value.code == 2
        assert capsys.readouterr().err == f"error: {where}no such thing\n"


@pytest.mark.parametrize(
    ("task", "what", "advice"),
    [
        (lambda: nn.BatchNorm2d(2)(torch.zeros(1, 2, 1, 1)), "a batch norm sees a single value", "--batch-size"),
        (lambda: nn.MaxPool2d(2)(torch.zeros(1, 2, 1, 1)), "the images are too small", "give a larger --image-size"),
        (lambda: nn.Conv2d(1, 1, 3)(torch.zeros(1, 1, 2, 2)), "the images are too small", "give a larger --image-size"),
        (lambda: torch.empty(2**55), "there is not enough memory", "give a smaller --batch-size"),
        (lambda: np.empty(2**55), "there is not enough memory", "give a smaller --batch-size"),
        (
            lambda: models.create("torchvision/vit_b_32", image_size=64).eval()(torch.zeros(1, 3, 32, 32)),
            "this network takes images of one size only (Wrong image height! Expected 64 but got 32!)",
            "leave --train-crop-size out",
        ),
    ],
)
def test_what_only_a_run_shows_is_a_sentence_too(task, what, advice, capsys):
    with pytest.raises(SystemExit) as exited:
        cli.main(task)
    assert exited.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"error: {what}")
    assert advice in sentence


def test_a_mistake_of_ours_is_no_bad_input():
    def mistaken() -> None:
        torch.zeros(2) + torch.zeros(3)

    with pytest.raises(RuntimeError, match="must match the size"):
        cli.main(mistaken)


def test_ctrl_c_exits_without_a_traceback(capsys):
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        cli.main(interrupt)
    assert stopped.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("command", "args", "shown"),
    [
        (
            "train",
            ["--recipe", "resnet110"],
            ["(--recipe NAME): smoke,", "81 122", "164", "--batch-size", "128"],
        ),
        ("evaluate", [], ["--weights", "--split", "500"]),
    ],
)
def test_help_shows_the_real_defaults_and_does_not_import_torch(command, args, shown):
    code = (
        "import sys; from resless import cli\n"
        f"sys.argv = ['prog', *{args!r}, '--help']\n"
        "try:\n"
        f"    cli.{command}()\n"
        "finally:\n"
        "    heavy = {'torch', 'torchvision', 'accelerate', 'datasets', 'matplotlib', 'numpy'} & sys.modules.keys()\n"
        "    print('imported:', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "imported: []" in done.stdout
    for text in shown:
        assert text in done.stdout


def test_the_console_script_refuses_bad_input_before_torch_is_imported(tmp_path):
    trap = tmp_path / "modules" / "torch"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("raise SystemExit('torch was imported')\n")
    for args, sentence in (
        (["--batch-size", "0"], "error: --batch-size is 0, but must be 1 or more\n"),
        (["--dataset", "mnits"], "error: unknown dataset 'mnits': did you mean mnist "),
    ):
        path = os.pathsep.join([str(trap.parent), os.environ.get("PYTHONPATH", "")])
        message = refusal(["env", f"PYTHONPATH={path}", script("resless-train"), *args], tmp_path)
        assert message.startswith(sentence)
        assert message.count("\n") == 1
