"""The console scripts: the authors' commands, help, refusals, and the whole pipeline as a user types it."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adn import cli, evaluate, train
from adn.config import EvalConfig, TrainConfig
from adn.model import AdaptiveNet, create
from adn.original import original_keys
from resless import models, weights
from resless.cli import evaluate as dense_eval
from resless.config import SourceConfig
from resless.errors import InputError
from resless.testing import environment, forked, metrics, refused, run, script, succeeded

SCRIPTS: dict[str, Callable[[], None]] = {"train": cli.train, "eval": cli.evaluate, "extract": cli.extract}


def either_spelling(command: str) -> list[str]:
    """A command with hyphens in its flags, and with underscores."""
    words = command.split()
    return [command, " ".join("--" + w[2:].replace("-", "_") if w.startswith("--") else w for w in words)]


# --- the authors' commands

RESNET50 = """--model resnet50 --batch-size 128
    --lr-scheduler multisteplr --lr-multi-steps 60 100 140 --epochs 150
    --norm-weight-decay 0 --bias-weight-decay 0
    --output-dir checkpoint --data-path ILSVRC2012"""
MOBILENET = """--model mobilenet_v2 --epochs 300 --lr 0.1 --wd 0.00001 --lr-scheduler multisteplr
    --lr-multi-steps 150 225 285 --batch-size 128 --norm-weight-decay 0 --bias-weight-decay 0
    --output-dir checkpoint --data-path ILSVRC2012"""
SWIN = """--model swin_t --epochs 300 --batch-size 256 --opt adamw --lr 0.001 --weight-decay 0.05
    --norm-weight-decay 0.0  --bias-weight-decay 0.0 --transformer-embedding-decay 0.0
    --lr-scheduler cosineannealinglr --lr-min 0.00001 --lr-warmup-method linear  --lr-warmup-epochs 20
    --lr-warmup-decay 0.01 --amp --label-smoothing 0.1 --mixup-alpha 0.8 --clip-grad-norm 5.0 --cutmix-alpha 1.0
    --random-erase 0.25 --interpolation bicubic --auto-augment ta_wide --model-ema --ra-sampler --ra-reps 4
    --val-resize-size 224 --output-dir checkpoint --data-path ILSVRC2012"""
VIT = """--model vit_b_16 --epochs 300 --batch-size 192 --opt adamw --lr 0.00056 --wd 0.2
    --lr-scheduler cosineannealinglr --lr-warmup-method linear --lr-warmup-epochs 30 --lr-warmup-decay 0.033 --amp
    --label-smoothing 0.11 --mixup-alpha 0.2 --auto-augment ra --clip-grad-norm 1 --ra-sampler --cutmix-alpha 1.0
    --model-ema --output-dir checkpoint --data-path ILSVRC2012"""


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], TrainConfig]:
    """The training that `adn-train` begins for a command."""
    given: list[TrainConfig] = []
    monkeypatch.setattr(train, "train", given.append)

    def begin(command: str) -> TrainConfig:
        monkeypatch.setattr(sys, "argv", ["adn-train", *command.split()])
        cli.train()
        return given.pop()

    return begin


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], EvalConfig]:
    """The evaluation that `adn-train --test-only`, or `adn-eval`, begins for a command."""
    given: list[EvalConfig] = []
    monkeypatch.setattr(evaluate, "main", given.append)

    def begin(command: str) -> EvalConfig:
        monkeypatch.setattr(sys, "argv", ["script", *command.split()])
        cli.train() if "--test-only" in command or "--test_only" in command else cli.evaluate()
        return given.pop()

    return begin


@pytest.mark.parametrize("command", either_spelling(RESNET50))
def test_the_authors_resnet(command: str, trainings: Callable[[str], TrainConfig]) -> None:
    config = trainings(command)
    optim, data = config.optim, config.data
    assert (config.model, optim.batch_size, optim.epochs, optim.milestones) == ("resnet50", 128, 150, (60, 100, 140))
    assert (optim.schedule, optim.norm_weight_decay, optim.bias_weight_decay) == ("multisteplr", 0, 0)
    assert (optim.optimizer, optim.lr, optim.weight_decay) == ("sgd", 0.1, 1e-4)
    assert config.run.run_dir == "checkpoint"
    assert (data.dataset, data.data_dir, data.stream) == ("imagenet", "ILSVRC2012", True)


@pytest.mark.parametrize("command", either_spelling(MOBILENET))
def test_the_authors_mobilenet(command: str, trainings: Callable[[str], TrainConfig]) -> None:
    config = trainings(command)
    optim = config.optim
    assert (config.model, optim.batch_size, optim.epochs, optim.lr) == ("mobilenet_v2", 128, 300, 0.1)
    assert (optim.weight_decay, optim.milestones, optim.schedule) == (1e-5, (150, 225, 285), "multisteplr")
    assert (config.run.run_dir, config.data.data_dir) == ("checkpoint", "ILSVRC2012")


@pytest.mark.parametrize("command", either_spelling(SWIN))
def test_the_authors_swin(command: str, trainings: Callable[[str], TrainConfig]) -> None:
    config = trainings(command)
    optim, data = config.optim, config.data
    assert (config.model, optim.epochs, optim.batch_size, optim.optimizer) == ("swin_t", 300, 256, "adamw")
    assert (optim.lr, optim.weight_decay, optim.lr_min) == (0.001, 0.05, 1e-5)
    assert (optim.norm_weight_decay, optim.bias_weight_decay, optim.transformer_embedding_decay) == (0, 0, 0)
    assert (optim.schedule, optim.lr_warmup_method) == ("cosineannealinglr", "linear")
    assert (optim.lr_warmup_epochs, optim.lr_warmup_decay) == (20, 0.01)
    assert (optim.label_smoothing, optim.clip_grad_norm, optim.model_ema) == (0.1, 5.0, True)
    assert (config.mixup_alpha, config.cutmix_alpha, config.run.mixed_precision) == (0.8, 1.0, "bf16")
    assert (data.random_erase, data.interpolation, data.auto_augment) == (0.25, "bicubic", "ta_wide")
    assert (data.repeats, data.val_resize_size) == (4, 224)


@pytest.mark.parametrize("command", either_spelling(VIT))
def test_the_authors_vision_transformer(command: str, trainings: Callable[[str], TrainConfig]) -> None:
    config = trainings(command)
    optim, data = config.optim, config.data
    assert (config.model, optim.epochs, optim.batch_size, optim.optimizer) == ("vit_b_16", 300, 192, "adamw")
    assert (optim.lr, optim.weight_decay, optim.schedule) == (0.00056, 0.2, "cosineannealinglr")
    assert (optim.lr_warmup_epochs, optim.lr_warmup_decay, optim.clip_grad_norm) == (30, 0.033, 1)
    assert (optim.label_smoothing, config.mixup_alpha, config.cutmix_alpha) == (0.11, 0.2, 1.0)
    assert (data.auto_augment, data.repeats, optim.model_ema) == ("ra", 3, True)


@pytest.mark.parametrize(
    ("command", "repeats"),
    [
        ("--ra-sampler", 3),
        ("--ra-reps 4", 4),
        ("--ra-sampler --ra-reps 5", 5),
        ("--ra-reps=2 --ra_sampler", 2),
        ("--model swin_t --ra-sampler", 3),
        ("--model swin_t", 4),
        ("", 1),
    ],
)
def test_repeated_augmentation_is_of_three_unless_another_number_is_given(
    command: str, repeats: int, trainings: Callable[[str], TrainConfig]
) -> None:
    assert trainings(command).data.repeats == repeats


def test_mixed_precision_has_the_authors_name_and_ours(trainings: Callable[[str], TrainConfig]) -> None:
    assert trainings("--amp").run.mixed_precision == "bf16"
    assert trainings("").run.mixed_precision == "no"
    assert trainings("--model resnet50 --mixed-precision no").run.mixed_precision == "no"


EVALUATIONS = [
    (
        """--model resnet50 --test-only --resume checkpoint/model_145.pth --batch-size 256
        --skip-cfg False False False False  --data-path ILSVRC2012""",
        ("resnet50", "checkpoint/model_145.pth", False, (False,) * 4),
    ),
    (
        """--model resnet50 --test-only --resume pretrained/checkpoint_resnet50-epoch146.pth --batch-size 256
        --skip-cfg True True True True  --data-path ILSVRC2012""",
        ("resnet50", "pretrained/checkpoint_resnet50-epoch146.pth", False, (True,) * 4),
    ),
    (
        """--model swin_t --test-only --resume pretrained/checkpoint_swin-t-epoch297.pth --batch-size 256
        --skip-cfg False False False False --model-ema --interpolation bicubic --data-path ILSVRC2012""",
        ("swin_t", "pretrained/checkpoint_swin-t-epoch297.pth", True, (False,) * 4),
    ),
    (
        """--model swin_t --test-only --resume pretrained/checkpoint_swin-t-epoch297.pth --batch-size 256
        --skip-cfg True True False False --model-ema --interpolation bicubic --data-path ILSVRC2012""",
        ("swin_t", "pretrained/checkpoint_swin-t-epoch297.pth", True, (True, True, False, False)),
    ),
    (
        """--model vit_b_16 --test-only --resume pretrained/checkpoint_vit-b16-epoch190.pth --batch-size 256
        --skip-cfg true false TRUE False --model-ema --data-path ILSVRC2012""",
        ("vit_b_16", "pretrained/checkpoint_vit-b16-epoch190.pth", True, (True, False, True, False)),
    ),
]


@pytest.mark.parametrize(
    ("command", "expected"),
    [(spelt, expected) for command, expected in EVALUATIONS for spelt in either_spelling(command)],
)
def test_the_authors_evaluations(
    command: str, expected: tuple[object, ...], evaluations: Callable[[str], EvalConfig]
) -> None:
    config = evaluations(command)
    assert (config.model, config.weights, config.ema, config.skip_cfg) == expected
    assert (config.shortcut, config.second_norms) == (None, True)
    assert config.batch_size == 256
    assert (config.data.dataset, config.data.stream) == ("imagenet", True)
    assert str(config.data.data_dir).endswith("ILSVRC2012")
    assert config.data.interpolation == ("bicubic" if config.model == "swin_t" else None)
    assert config.data.val_resize_size == (224 if config.model == "swin_t" else None)


def test_a_model_folder_can_be_tested_only(evaluations: Callable[[str], EvalConfig], tmp_path: Path) -> None:
    config = evaluations(f"--test-only --resume {tmp_path} --model-ema")
    assert (config.model, config.weights, config.ema, config.skip_cfg) == (str(tmp_path), None, False, None)
    assert type(config.data) is SourceConfig, "nothing is trained: images of another size are to be refused"


def test_options_of_the_network_are_those_of_the_file_that_is_tested(
    evaluations: Callable[[str], EvalConfig],
) -> None:
    config = evaluations("--model resnet14 --shortcut subsample --no-second-norms --test-only --resume authors.pth")
    assert (config.model, config.weights) == ("resnet14", "authors.pth")
    assert (config.shortcut, config.second_norms) == ("subsample", False)
    assert evaluations("--model resnet14 --weights authors.pth --shortcut subsample --no-second-norms") == replace(
        config, batch_size=EvalConfig.batch_size, data=SourceConfig()
    )


def test_flags_after_an_option_are_true_or_false(evaluations: Callable[[str], EvalConfig]) -> None:
    config = evaluations("--skip-cfg true False TRUE --model False --split test")
    assert (config.skip_cfg, config.model) == ((True, False, True), "False")
    assert evaluations("--skip_cfg=true False TRUE --model x").skip_cfg == (True, False, True)
    for word in ("maybe", "1", "T"):
        with pytest.raises(InputError, match=f"--skip-cfg is '{word}', but must be True or False for each stage"):
            cli.with_flags(["--skip_cfg", "True", word])


# --- help


def helped(name: str, *args: str) -> str:
    """What a command's help prints, its borders taken away; asserts that nothing heavy loads."""
    code = (
        "import sys\nfrom adn import cli\n"
        f"sys.argv = ['prog', *{args!r}, '--help']\n"
        "try:\n"
        f"    cli.{SCRIPTS[name].__name__}()\n"
        "finally:\n"
        "    heavy = {'torch', 'torchvision', 'accelerate', 'datasets', 'matplotlib', 'numpy'} & sys.modules.keys()\n"
        "    print('imported:', sorted(heavy))\n"
    )
    narrow = environment() | {"COLUMNS": "80"}  # on a wide terminal, columns stand side by side
    done = subprocess.run([sys.executable, "-c", code], env=narrow, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "imported: []" in done.stdout
    return " ".join(done.stdout.replace("│", " ").split())


@pytest.mark.parametrize(
    ("name", "args", "shown"),
    [
        (
            "train",
            ["--model", "swin_t"],
            [
                *("(default: swin_t)", "(default: 1024)", "(default: adamw)", "(default: 0.05)", "(default: 20)"),
                *("(default: 1e-05)", "(default: 0.8)", "(default: ta_wide)", "(default: bicubic)", "(default: 5.0)"),
                *("--ra-reps", "--lr-scheduler", "--wd", "--opt", "--output-dir", "--data-path", "imagenet"),
            ],
        ),
        ("train", ["--recipe", "resnet50"], ["(default: 150)", "60 100 140", "(default: 256)"]),
        ("train", [], ["(--recipe NAME): resnet50, resnet50_v2, resnet101,", "smoke", "--two-passes", "--skip-cfg"]),
        ("eval", [], ["--recalibrate-bn", "--weights", "--skip-cfg", "--plot", "(default: digits)"]),
        ("extract", [], ["--skip-cfg", "--onnx", "--output", "--overwrite", "--recalibrate-bn", "(default: digits)"]),
    ],
)
def test_help_shows_the_values_of_the_recipe_and_imports_nothing_heavy(
    name: str, args: list[str], shown: list[str]
) -> None:
    printed = helped(name, *args)
    for text in [f"usage: adn-{name} ", *shown]:
        assert text in printed


@pytest.mark.parametrize("name", list(SCRIPTS))
def test_every_script_is_installed(name: str, tmp_path: Path) -> None:
    assert f"usage: adn-{name} " in run([script(f"adn-{name}"), "--help"], tmp_path).stdout


@pytest.mark.parametrize(("name", "module"), [("train", "train"), ("eval", "evaluate"), ("extract", "export")])
def test_modules_give_the_help_of_the_scripts(name: str, module: str) -> None:
    """As `python -m adn.train --help`."""

    def as_module() -> None:
        sys.argv = ["script", "--help"]
        sys.modules.pop(f"adn.{module}", None)
        runpy.run_module(f"adn.{module}", run_name="__main__", alter_sys=True)

    (ended,) = forked(as_module)
    assert ended.code == 0, ended.printed
    assert ended.printed.startswith(f"usage: adn-{name} ")


# --- the pipeline


def test_pipeline_as_a_user_types_it(
    tmp_path: Path,
) -> None:
    said = run([script("adn-train"), "--recipe", "smoke", "--epochs", "3", "--run-dir", "runs/adn"], tmp_path)
    assert "Warning" not in said.stderr
    folder = tmp_path / "runs" / "adn"
    result = json.loads((folder / "result.json").read_text())
    assert [record["epoch"] for record in metrics(folder)] == [1, 2, 3]
    for name in ("curves", "configurations"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert result["top1"] == result["configurations"]["FFF"]["top1"] > 0.5
    net = weights.from_pretrained(folder / "model")
    assert isinstance(net, AdaptiveNet)
    assert weights.read_config(folder / "model")["model"]["options"]["backbone"] == "resnet20"

    model = ["--model", "runs/adn/model"]
    succeeded(cli.evaluate, *model, "--output", "all.json", "--plot", "all.png", "--repeats", "2", cwd=tmp_path)
    found = json.loads((tmp_path / "all.json").read_text())
    assert {name: row["top1"] for name, row in found.items()} == {
        name: row["top1"] for name, row in result["configurations"].items()
    }
    assert all(len(row["latency"]) == 2 for row in found.values())
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")

    extraction = [*model, "--skip-cfg", "true", "true", "True", "--repeats", "2"]
    said = run([script("adn-extract"), *extraction, "--output", "runs/base"], tmp_path)
    assert "speed-up, median (quartiles)" in said.stdout
    assert "Warning" not in said.stderr
    # Any command that reads model folders evaluates it, and the whole network.
    for name, path in (("TTT", "runs/base"), ("FFF", "runs/adn/model")):
        succeeded(dense_eval, "--model", path, "--output", "plain.json", cwd=tmp_path)
        plain = json.loads((tmp_path / "plain.json").read_text())
        assert plain["top1"] == found[name]["top1"]
        assert plain["macs"] == found[name]["macs"]

    # Refusals leave nothing behind: no folder is made or touched.
    sentence = refused(cli.train, "--recipe", "smoke", "--run-dir", "runs/adn", cwd=tmp_path)
    assert "run folder runs/adn exists: go on with --resume auto" in sentence
    assert "runs/base exists and is not empty" in refused(
        cli.extract, *extraction, "--output", "runs/base", cwd=tmp_path
    )
    assert "holds a ResNet, which has one depth" in refused(cli.evaluate, "--model", "runs/base", cwd=tmp_path)


# --- bad input


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of ResNet-14, and checkpoints of a plain and an adaptive network of other sizes."""
    folder = tmp_path_factory.mktemp("files")
    statistics = {"mean": [0.3056], "std": [0.376]}
    net = create("resnet14", num_classes=10, in_channels=1)
    weights.save_pretrained(net, folder / "model", preprocessing=statistics, example=torch.zeros(1, 1, 8, 8))
    torch.save(models.create("resnet14", in_channels=1, num_classes=7).state_dict(), folder / "seven.pth")
    other = create("resnet14", num_classes=7, in_channels=1)
    theirs = original_keys(other.net, other.state_dict())
    state = {theirs[key]: tensor for key, tensor in other.state_dict().items()}
    torch.save({"model": state}, folder / "authors.pth")
    return folder


@pytest.mark.parametrize(
    ("entry", "arguments", "message"),
    [
        (
            cli.evaluate,
            "--model FILES/model --skip-cfg True True",
            "skip is (True, True), but must be 3 times True or False, one for each stage; they skip layer1.1; "
            "layer2.1; layer3.1",
        ),
        (cli.extract, "--model FILES/model --output x --skip-cfg True", "skip is (True,), but must be 3 times True or"),
        (
            cli.train,
            "--model resnet14 --test-only --resume FILES/model --skip-cfg False False False False",
            "but must be 3 times True or False, one for each stage",
        ),
        (cli.evaluate, "--model FILES/model --skip-cfg True maybe True", "--skip-cfg is 'maybe', but must be True or"),
        (
            cli.extract,
            "--model FILES/model --output x --skip-cfg 1 0 1",
            "--skip-cfg is '1', but must be True or False",
        ),
        (
            cli.train,
            "--test-only --resume FILES/model --skip-cfg yes",
            "--skip-cfg is 'yes', but must be True or False",
        ),
        (
            cli.train,
            "--model resnet14 --shortcut avgpool --test-only --resume FILES/model",
            "--shortcut is 'avgpool', but must be conv, as in FILES/model, or left out",
        ),
        (
            cli.train,
            "--no-second-norms --test-only --resume FILES/model",
            "--second-norms is False, but must be left out: FILES/model has second norms",
        ),
        (
            cli.train,
            "--model resnet32 --test-only --resume FILES/model",
            "--model is 'resnet32', but must be resnet14, which FILES/model holds, or left out",
        ),
        (cli.train, "--model resnet14 --skip-cfg True True True", "but must be given with --test-only"),
        (cli.train, "--model swin", "unknown model 'swin': did you mean swin_t"),
        (cli.train, "--model resnet21", "depth is 21, but must be 6n+2"),
        (
            cli.evaluate,
            "--model vit_b_61 --weights FILES/authors.pth",
            "unknown model 'vit_b_61': did you mean vit_b_16",
        ),
        (cli.train, "--recipe swin", "unknown recipe 'swin': did you mean swin_t"),
        *(
            (cli.train, f"--model {model} --fpn", f"--fpn is True, but must be left out for {model}: only ResNets have")
            for model in ("mobilenet_v2", "swin_t", "vit_b_16")
        ),
        (
            cli.train,
            "--model vit_b_32 --dataset PICTURES --batch-size 8",
            "image_size is 40, but must be a multiple of 32, the side of",
        ),
        (cli.train, "--model swin_t --dataset digits --no-stream --val-resize-size None", "must be 3 for swin_t"),
        (
            cli.train,
            "--model resnet14 --pretrained FILES/seven.pth",
            "seven.pth does not match the network: it has net.linear.weight [7, 64] float32 where the network has [10",
        ),
        (cli.train, "--model resnet26 --pretrained FILES/seven.pth", "it lacks net.layer1.2.bn1.bias"),
        (
            cli.evaluate,
            "--model resnet14 --weights FILES/authors.pth",
            "where the network has [10, 64]",
        ),
        (cli.evaluate, "--model resnet20 --weights FILES/authors.pth", "it lacks net.layer1.2.bn1.bias"),
        (cli.evaluate, "--model resnet14 --weights FILES/authors.pth --ema", "holds no moving average of the weights"),
        (cli.evaluate, "--model nowhere", "nowhere is not a folder"),
        (cli.train, "--test-only", "--resume is missing: give the model folder, or the checkpoint"),
        (
            cli.extract,
            "--model FILES/model --skip-cfg True True True --output x --onnx no/x.onnx",
            "--onnx is 'no/x.onnx'",
        ),
    ],
)
def test_bad_input_is_one_sentence(
    entry: Callable[[], None],
    arguments: str,
    message: str,
    files: Path,
    picture_folder: Callable[..., str],
    tmp_path: Path,
) -> None:
    pictures = picture_folder(40) if "PICTURES" in arguments else ""
    arguments = arguments.replace("FILES", str(files)).replace("PICTURES", pictures)
    assert message.replace("FILES", str(files)) in refused(entry, *arguments.split(), cwd=tmp_path)


def test_scripts_refuse_bad_values_in_one_sentence(tmp_path: Path) -> None:
    done = run([script("adn-train"), "--model", "swin_t", "--fpn"], tmp_path, code=2)
    assert done.stderr == (
        "error: --fpn is True, but must be left out for swin_t: only ResNets have features to compare\n"
    )
    assert list(tmp_path.iterdir()) == []
