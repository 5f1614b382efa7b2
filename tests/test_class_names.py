"""Every package takes images for what the network calls their classes, by whatever number a folder has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import adn.cli
import blockdrop.cli
import deephoyer.cli
import epsilon_resnet.cli
import pytest
import resless.cli
import torch
from adn.model import create as create_adaptive
from blockdrop.model import BlockDropNet
from epsilon_resnet.model import create as create_gated
from PIL import Image
from resless import models, weights
from resless.testing import succeeded
from torch import nn

CLASSES = ("cat", "cow", "dog", "owl")
SIZE = {"num_classes": len(CLASSES), "in_channels": 1}

EVALUATIONS: dict[str, tuple[Callable[[], nn.Module], Callable[[], None]]] = {
    "adn": (lambda: create_adaptive("resnet14", **SIZE), adn.cli.evaluate),
    "blockdrop": (lambda: BlockDropNet("resnet14", **SIZE), blockdrop.cli.evaluate),
    "deephoyer": (lambda: models.create("resnet14", **SIZE), deephoyer.cli.evaluate),
    "epsilon_resnet": (lambda: create_gated("preresnet14", epsilon=1.0, **SIZE), epsilon_resnet.cli.evaluate),
}


@torch.no_grad()
def says_owl(net: nn.Module) -> nn.Module:
    """The network with classifiers that take any image for the last class."""
    for module in net.modules():
        if isinstance(module, nn.Linear) and module.out_features == len(CLASSES):
            module.weight.fill_(1e-6)  # a layer of zeros is none to DeepHoyer
            module.bias.copy_(torch.arange(len(CLASSES)))
    return net.eval()


def pictures(folder: Path, counts: dict[str, int]) -> None:
    """An image tree: so many images of each class."""
    for name, images in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(images):
            Image.new("L", (8, 8), number).save(folder / name / f"{number}.png")


@pytest.mark.parametrize("package", EVALUATIONS)
def test_a_folder_without_some_of_the_classes_is_evaluated(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESLESS_CACHE", str(tmp_path / "cache"))
    create, evaluate = EVALUATIONS[package]
    statistics = {"image_size": 8, "mean": [0.5], "std": [0.5]}
    example = torch.zeros(1, 1, 8, 8)
    weights.save_pretrained(
        says_owl(create()), tmp_path / "model", preprocessing=statistics, class_names=CLASSES, example=example
    )
    pictures(tmp_path / "data" / "test", {"cow": 1, "owl": 3})  # by themselves, numbers 0 and 1
    arguments = ("--model", "model", "--dataset", "data", "--output", "result.json")
    succeeded(evaluate, *arguments, cwd=tmp_path)
    found = json.loads((tmp_path / "result.json").read_text())
    results = list(found.values()) if package == "adn" else [found]
    assert len(results) == (8 if package == "adn" else 1)
    for result in results:
        assert (result["images"], result["top1"]) == (4, 0.75)


PLAIN, BLOCKDROP, ADAPTIVE = (EVALUATIONS[package][0] for package in ("deephoyer", "blockdrop", "adn"))
AUTHORS = {"block": "basic", "stem": "conv_bn_relu", "shortcut": "avgpool_centred"}  # of ε-ResNet's networks
PREACTIVATED = partial(models.create, "preresnet14", **AUTHORS, **SIZE)
TRAININGS: dict[str, tuple[Callable[[], nn.Module], Callable[[], None], list[str], str]] = {
    "resless-train": (PLAIN, resless.cli.train, ["--model", "resnet14", "--pretrained"], "top1"),
    "deephoyer-train": (PLAIN, deephoyer.cli.train, ["--model", "resnet14", "--pretrained"], "top1"),
    "deephoyer-prune": (PLAIN, deephoyer.cli.prune, ["--sensitivity", "0", "--model"], "test_top1_tuned"),
    "blockdrop-train": (PLAIN, blockdrop.cli.train, ["--model", "resnet14", "--backbone"], "top1"),
    "blockdrop-finetune": (BLOCKDROP, blockdrop.cli.finetune, ["--model", "resnet14", "--pretrained"], "top1"),
    "adn-train": (ADAPTIVE, adn.cli.train, ["--model", "resnet14", "--pretrained"], "top1"),
    "epsilon-resnet-train": (PREACTIVATED, epsilon_resnet.cli.train, ["--n", "2", "--pretrained"], "top1"),
}
"""Of each command that goes on from a network: that network, script and options, and what the accuracy is called."""


@pytest.mark.parametrize("command", TRAININGS)
def test_training_goes_on_with_the_classes_of_the_network(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESLESS_CACHE", str(tmp_path / "cache"))
    create, train, options, accuracy = TRAININGS[command]
    statistics, example = {"image_size": 8, "mean": [0.5], "std": [0.5]}, torch.zeros(1, 1, 8, 8)
    reversed_names = CLASSES[::-1]  # so that what is called the last is the cat, the first folder
    weights.save_pretrained(
        says_owl(create()), tmp_path / "net", preprocessing=statistics, class_names=reversed_names, example=example
    )
    for split in ("train", "test"):
        pictures(tmp_path / "data" / split, {"cat": 5, "cow": 1, "dog": 1, "owl": 1})
    given = [*options, "net", "--dataset", "data", "--run-dir", "run", "--epochs", "0", "--batch-size", "4"]
    succeeded(train, *given, cwd=tmp_path)
    assert json.loads((tmp_path / "run" / "result.json").read_text())[accuracy] == 5 / 8
    assert weights.class_names_of(tmp_path / "run" / "model") == reversed_names
