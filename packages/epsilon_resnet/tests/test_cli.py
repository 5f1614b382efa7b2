"""The console scripts: the authors' commands, refusals, and the whole pipeline as a user types it."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from epsilon_resnet import cli, compress, evaluate, train
from epsilon_resnet.config import CompressConfig, EvalConfig, TrainConfig
from epsilon_resnet.model import create
from resless import models, weights
from resless.cli import evaluate as dense_eval
from resless.testing import assert_recalibrates, entered, environment, forked, metrics, refused, run, script, succeeded
from torch import nn

SCRIPTS: dict[str, Callable[[], None]] = {"train": cli.train, "compress": cli.compress, "eval": cli.evaluate}


def written(name: str, folder: Path, **options: Any) -> Path:
    """A model folder for the digits, as other commands write them."""
    torch.manual_seed(0)
    net = models.create(name, in_channels=1, **options)
    statistics = {"mean": [0.3056], "std": [0.376]}
    weights.save_pretrained(net, folder, preprocessing=statistics)
    return folder


# --- help


@pytest.mark.parametrize(
    ("name", "args", "shown"),
    [
        (
            "train",
            ["-n", "18", "--cifar10"],
            ["(default: 2.5)", "(default: 1000)", "81 122 299", "41 61 150", "cifar10", "-e", "--restart-milestones"],
        ),
        ("train", ["--svhn"], ["(default: 1.5)", "(default: 200)", "train+extra", "(default: 18)"]),
        ("train", ["-d", "101"], ["(default: 2.0)", "(default: 110)", "imagenet", "--retire-after"]),
        ("train", [], ["(--recipe NAME): cifar10_n18, cifar10_n33,", "smoke", "--epsilon-start"]),
        ("compress", [], ["--dir", "--step", "--force", "--allow-none", "(default: 0.05)"]),
        ("eval", [], ["--cfg", "--dir", "(default: digits)", "(default: 500)"]),
    ],
)
def test_help_shows_the_values_of_the_recipe_and_imports_nothing_heavy(
    name: str, args: list[str], shown: list[str]
) -> None:
    code = (
        "import sys\nfrom epsilon_resnet import cli\n"
        f"sys.argv = ['prog', *{args!r}, '--help']\n"
        "try:\n"
        f"    cli.{SCRIPTS[name].__name__}()\n"
        "finally:\n"
        "    heavy = {'torch', 'torchvision', 'accelerate', 'datasets', 'matplotlib', 'numpy'} & sys.modules.keys()\n"
        "    print('imported:', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "imported: []" in done.stdout
    printed = " ".join(done.stdout.replace("│", " ").split())
    for text in [f"usage: epsilon-resnet-{name} ", *shown]:
        assert text in printed


@pytest.mark.parametrize("name", list(SCRIPTS))
def test_every_script_is_installed(name: str, tmp_path: Path) -> None:
    assert f"usage: epsilon-resnet-{name} " in run([script(f"epsilon-resnet-{name}"), "--help"], tmp_path).stdout


@pytest.mark.parametrize("name", list(SCRIPTS))
def test_modules_give_the_help_of_the_scripts(name: str, tmp_path: Path) -> None:
    """As `python -m epsilon_resnet.train --help`."""
    module = f"epsilon_resnet.{'evaluate' if name == 'eval' else name}"

    def as_module() -> None:
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    found, expected = (entered(command, "--help", cwd=tmp_path)[0] for command in (as_module, SCRIPTS[name]))
    assert found.code == expected.code == 0, found.printed
    assert found.printed == expected.printed
    assert found.printed.startswith(f"usage: epsilon-resnet-{name} ")


# --- the authors' commands


@pytest.mark.parametrize(
    ("command", "network"),
    [
        ("-n 18 -e 2.5 -o cifar10-e_2.5-n_18", ("cifar10", "preresnet110", 2.5, "cifar10-e_2.5-n_18")),
        ("-n 125 -e 2.5 --cifar100", ("cifar100", "preresnet752", 2.5, None)),
        ("-n 33 -e 1.5 --svhn -o x", ("svhn", "preresnet200", 1.5, "x")),
        ("-d 101 -e 2.0 --data ilsvrc12", ("imagenet", "imagenet/preresnet101", 2.0, None)),
        ("-d 152 -e 1.8 --data ilsvrc12", ("imagenet", "imagenet/preresnet152", 1.8, None)),
    ],
)
def test_the_authors_trainings_begin(
    command: str, network: tuple[str, str, float, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[TrainConfig] = []
    monkeypatch.setattr(train, "train", given.append)
    monkeypatch.setattr(sys, "argv", ["epsilon-resnet-train", *command.split()])
    cli.train()
    (config,) = given
    assert (config.data.dataset, config.backbone, config.epsilon, config.run.run_dir) == network
    assert config.data.data_dir == ("ilsvrc12" if config.depth else None)


def test_the_authors_compression_and_evaluation_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    compressions: list[CompressConfig] = []
    evaluations: list[EvalConfig] = []
    monkeypatch.setattr(compress, "main", compressions.append)
    monkeypatch.setattr(evaluate, "main", evaluations.append)
    monkeypatch.setattr(sys, "argv", ["x", "--dir", "models/cifar10-e_2.5-n_125", "--step", "303420"])
    cli.compress()
    assert compressions == [CompressConfig("models/cifar10-e_2.5-n_125", step=303420)]
    monkeypatch.setattr(sys, "argv", ["x", "--cfg", "models/cifar10-n_125/config.json", "--cifar10"])
    cli.evaluate()
    (config,) = evaluations
    assert (config.model, config.data.dataset) == ("models/cifar10-n_125/config.json", "cifar10")


# --- the pipeline


def test_pipeline_as_a_user_types_it(planted: str, tmp_path: Path) -> None:
    options = ["--dataset", "digits", "-n", "2", "-e", "1", "--pretrained", planted, "--retire-after", "1"]
    options += ["--batch-size", "64", "--lr", "0.05", "--epochs", "7", "--normalize", "pixel", "-o", "trained"]
    said = run([script("epsilon-resnet-train"), *options], tmp_path)
    assert "next: epsilon-resnet-compress --model trained\n" in said.stdout
    assert "Warning" not in said.stderr
    said = run([script("epsilon-resnet-compress"), "--dir", "trained", "--repeats", "2"], tmp_path)
    assert "wrote trained/compressed" in said.stdout
    assert "Warning" not in said.stderr

    # Both say the same of the test images, of whichever path they are told; so does any command that reads folders.
    result = json.loads((tmp_path / "trained" / "result.json").read_text())
    assert [block["block"] for block in result["discarded"]] == [1, 4]
    found = {}
    for name in ("trained", "trained/model", "trained/compressed", "trained/compressed/config.json"):
        printed = succeeded(cli.evaluate, "--cfg", name, "--output", "eval.json", cwd=tmp_path)
        assert f"{100 * (1 - result['top1']):.2f} " in printed
        assert "4 of 6" in printed
        assert "wrote eval.json" in printed
        found[name] = json.loads((tmp_path / "eval.json").read_text())
    assert found["trained"] == found["trained/model"]
    assert found["trained/compressed"] == found["trained/compressed/config.json"]
    for name, folder in (("trained", "trained/model"), ("trained/compressed", "trained/compressed")):
        one = found[name]
        assert (one["images"], one["blocks"], one["running_blocks"]) == (360, 6, 4)
        assert one["top1"] == 1 - one["error"] == result["top1"] > 0.8
        assert one["top5"] == result["top5"]
        assert one["loss"] == pytest.approx(result["loss"], rel=1e-4)
        succeeded(dense_eval, "--model", folder, "--output", "plain.json", cwd=tmp_path)
        plain = json.loads((tmp_path / "plain.json").read_text())
        assert plain == {key: one[key] for key in plain}
        assert len(plain) == 6
    assert found["trained"]["macs"] == found["trained/compressed"]["macs"], "what is closed is not computed"
    assert found["trained"]["parameters"] > found["trained/compressed"]["parameters"]
    trained_split = succeeded(cli.evaluate, "--model", "trained", "--split", "train", cwd=tmp_path)
    assert "1,437" in trained_split

    # What was written can be opened again.
    assert [record["epoch"] for record in metrics(tmp_path / "trained")] == list(range(1, 8))
    for name in ("blocks", "learning_rate", "errors", "responses", "curves"):
        assert (tmp_path / "trained" / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    assert json.loads((tmp_path / "trained" / "blocks.json").read_text())["retired"] == {"1": 0, "4": 0}

    refuse_after_the_pipeline(tmp_path, planted)


def refuse_after_the_pipeline(folder: Path, planted: str) -> None:
    """Refusals leave nothing behind: no folder is made or touched."""
    arguments = ["--dataset", "digits", "-n", "2", "-e", "1", "-o", "trained"]
    sentence = refused(cli.train, *arguments, cwd=folder)
    assert "run folder trained exists: go on with --resume auto" in sentence
    sentence = refused(cli.train, *arguments, "-n", "3", "--resume", "auto", cwd=folder)
    assert "was trained with --n = 2 (now 3)" in sentence
    assert sentence.endswith(": give the same, or start anew")
    sentence = refused(cli.compress, "--dir", "trained", cwd=folder)
    assert "trained/compressed exists and is not empty: choose another folder" in sentence
    sentence = refused(cli.compress, "--dir", "trained", "--step", "5", "--output", "new", cwd=folder)
    assert sentence == "error: --step is 5, but trained has checkpoints of step 132 and 154"
    sentence = refused(cli.compress, "--model", "trained/compressed", "--output", "new", cwd=folder)
    assert sentence == "error: a network of epsilon-resnet-train is needed, but this is a PreResNet"
    few = ["--dataset", "digits", "-n", "3", "-e", "1", "-o", "new", "--pretrained"]
    assert f"{planted} does not match the network: it lacks layers.0.2" in refused(cli.train, *few, planted, cwd=folder)
    assert "trained/model does not match the network" in refused(
        cli.train, *few, str(folder / "trained" / "model"), cwd=folder
    )


def test_an_unfinished_run_is_evaluated_at_a_step(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    for entry in (cli.evaluate, cli.compress):
        assert refused(entry, "--model", "run", cwd=tmp_path) == (
            "error: run is the folder of a run that has not ended: go on with it (--resume auto), or give the --step "
            "of a checkpoint: there is step 140 and 160"
        )
    succeeded(cli.evaluate, "--model", "run", "--step", "160", "--output", "eval.json", cwd=tmp_path)
    found = json.loads((tmp_path / "eval.json").read_text())
    result = json.loads((trained / "result.json").read_text())
    assert (found["top1"], found["blocks"], found["running_blocks"]) == (result["top1"], 6, 4)
    succeeded(cli.compress, "--model", "run", "--step", "140", "--repeats", "0", cwd=tmp_path)
    assert weights.read_config(tmp_path / "run" / "compressed")["model"]["options"]["kept_blocks"] == [0, 2, 3, 5]
    for damaged, told in (
        ("{", "is not valid JSON: "),
        ("[]", "is damaged: it holds a list, but must hold a dict"),
        ('{"model": 5}', "is damaged: "),
        ('{"model": {}}', "is damaged: "),
    ):
        (tmp_path / "run" / "network.json").write_text(damaged)
        sentence = refused(cli.evaluate, "--model", "run", "--step", "160", cwd=tmp_path)
        assert sentence.startswith(f"error: run/network.json {told}")


def test_modules_run_as_scripts_on_two_processes(trained: Path, tmp_path: Path) -> None:
    """As under `accelerate launch -m epsilon_resnet.evaluate`."""

    def task() -> None:
        sys.argv = ["evaluate", "--model", str(trained), "--batch-size", "100", "--output", str(tmp_path / "two.json")]
        del sys.modules["epsilon_resnet.evaluate"]
        runpy.run_module("epsilon_resnet.evaluate", run_name="__main__")

    first, second = forked(task, 2)
    assert first.code == second.code == 0, first.printed + second.printed
    assert "4 of 6" in first.printed
    assert second.printed == ""
    two = json.loads((tmp_path / "two.json").read_text())
    result = json.loads((trained / "result.json").read_text())
    assert (two["images"], two["top1"], two["top5"]) == (360, result["top1"], result["top5"])


# --- statistics computed anew


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.usefixtures("few_images")
def test_batch_norms_are_recalibrated_before_the_evaluation(gated: bool, tmp_path: Path) -> None:
    """Of a network as it was trained, with a discarded block, and of a plain one."""
    torch.manual_seed(0)
    net: nn.Module = models.create("preresnet14", in_channels=1)
    if gated:
        net = create("preresnet14", num_classes=10, in_channels=1, epsilon=2.5)
        net.discarded[2] = 1.0  # type: ignore[operator, index]
    assert_recalibrates(cli.evaluate, net, tmp_path)


def test_no_negative_number_of_images_is_recalibrated_with(tmp_path: Path) -> None:
    sentence = refused(cli.evaluate, "--model", "x", "--recalibrate-bn", "-1", cwd=tmp_path)
    assert sentence == "error: --recalibrate-bn is -1, but must be 0 (off) or a number of images"


# --- a network without discarded blocks


def test_nothing_to_drop_is_a_refusal_unless_it_is_allowed(tmp_path: Path) -> None:
    options = {"backbone": "preresnet8", "epsilon": 2.5}
    written("epsilon_resnet", tmp_path / "model", **options)
    sentence = refused(cli.compress, "--model", "model", "--output", "small", cwd=tmp_path)
    assert sentence == (
        "error: no block of model is discarded: there is nothing to drop, and nothing was written; train longer, or "
        "with a larger --epsilon (--allow-none: exit code 0)"
    )
    printed = succeeded(cli.compress, "--model", "model", "--output", "small", "--allow-none", cwd=tmp_path)
    assert printed == "no block of model is discarded: there is nothing to drop, and nothing was written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-n 18 -e -1", "--epsilon is -1.0, but must be 0 (no block is discarded) or more, and finite"),
        ("-n 18 -e nan", "--epsilon is nan, but must be 0 (no block is discarded) or more, and finite"),
        ("-n 0", "-n is 0, but must be from 1 to 1666 blocks a stage"),
        ("-d 20", "-d is 20, but must be one of 18, 34, 50, 101, 152 (for CIFAR, give -n)"),
        ("", "give either -n, the blocks per stage of a CIFAR network, or -d, the depth of an ImageNet one"),
        ("-n 18 -d 101", "give either -n, the blocks per stage of a CIFAR network, or -d, the depth of an ImageNet"),
        ("--cifar10 -d 101", "give either -n, the blocks per stage of a CIFAR network, or -d"),
        ("--recipe cifar10_n1", "unknown recipe 'cifar10_n1': did you mean cifar10_n1"),
        ("-n 2 --dataset nowhere/at/all", "no data set 'nowhere/at/all'"),
        ("--recipe smoke --restart-milestones 3", "--restart-milestones is (3,), but must be as many as --milestones"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(arguments: str, message: str, tmp_path: Path) -> None:
    assert refused(cli.train, *arguments.split(), cwd=tmp_path).startswith(f"error: {message}")


def test_scripts_refuse_bad_values_before_torch_is_imported(tmp_path: Path) -> None:
    trap = tmp_path / "modules" / "torch"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("raise SystemExit('torch was imported')\n")
    for name, args, sentence in (
        ("train", ["-n", "18", "-e", "-1"], "--epsilon is -1.0, but must be 0 (no block is discarded) or more, and f"),
        ("compress", ["--dir", "x", "--step", "-1"], "--step is -1, but must be 0 or more"),
        ("eval", ["--cfg", "x", "--batch-size", "0"], "--batch-size is 0, but must be 1 or more"),
    ):
        command = [script(f"epsilon-resnet-{name}"), *args]
        trapped = environment() | {"PYTHONPATH": str(trap.parent)}
        done = subprocess.run(command, cwd=tmp_path, env=trapped, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"error: {sentence}")
        assert len(done.stderr.splitlines()) == 1


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    nothing = "nowhere is not a folder: a model folder with config.json and model.safetensors is needed"
    assert refused(cli.compress, "--dir", "nowhere", cwd=tmp_path) == f"error: {nothing}"
    assert refused(cli.evaluate, "--cfg", "nowhere/config.json", cwd=tmp_path) == f"error: {nothing}"
    training = ("--dataset", "digits", "-n", "2", "--pretrained", "nowhere")
    assert refused(cli.train, *training, cwd=tmp_path) == "error: there is no file nowhere"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("resnet20", "ResNet"), ("lenet_300_100", "LeNet300100")],
)
def test_networks_of_other_papers_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    """As those of resless-train, deephoyer-prune, or blockdrop-eval --specialise."""
    options: dict[str, Any] = {"image_size": 8} if name.startswith("lenet") else {}
    written(name, tmp_path / "model", **options)
    sentence = refused(cli.compress, "--model", "model", cwd=tmp_path)
    assert sentence == f"error: a network of epsilon-resnet-train is needed, but this is a {kind}"
    sentence = refused(cli.evaluate, "--cfg", "model/config.json", cwd=tmp_path)
    assert sentence == f"error: a pre-activation ResNet is needed, but this is a {kind}: use resless-eval"


def test_networks_of_blockdrop_are_refused(tmp_path: Path) -> None:
    """Whether its package is installed, as here, or not: then they cannot even be built."""
    written("resnet20", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["model"] |= {"name": "of_another_package", "options": {}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    for entry in (cli.compress, cli.evaluate):
        sentence = refused(entry, "--model", "model", cwd=tmp_path)
        assert "unknown model 'of_another_package'" in sentence
        assert "if it comes with another package, install that" in sentence

    blockdrop = pytest.importorskip("blockdrop.model")
    made: nn.Module = blockdrop.BlockDropNet("resnet20", in_channels=1)
    weights.save_pretrained(made, tmp_path / "policy", preprocessing={"mean": [0.3056], "std": [0.376]})
    sentence = refused(cli.compress, "--model", "policy", cwd=tmp_path)
    assert sentence == "error: a network of epsilon-resnet-train is needed, but this is a BlockDropNet"
    sentence = refused(cli.evaluate, "--model", "policy", cwd=tmp_path)
    assert sentence == "error: a pre-activation ResNet is needed, but this is a BlockDropNet: use resless-eval"


def test_a_network_is_not_evaluated_on_other_images(trained: Path, tmp_path: Path) -> None:
    """A folder of images in two classes, where the network knows ten."""
    from PIL import Image

    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            Image.new("L", (8, 8), 90).save(tmp_path / "pets" / split / name / "1.png")
    sentence = refused(cli.evaluate, "--model", str(trained), "--dataset", str(tmp_path / "pets"), cwd=tmp_path)
    assert "pets show cat, dog, not only the 10 classes that the network is for, 0, 1, 2, 3, 4, ...: give" in sentence
