"""Every package counts images as what the network calls their classes, by whatever number a folder has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import adn.cli
import blockdrop.cli
import deephoyer.cli
import epsilon_resnet.cli
import pytest
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
    for name, images in {"cow": 1, "owl": 3}.items():  # by themselves, numbers 0 and 1
        folder = tmp_path / "data" / "test" / name
        folder.mkdir(parents=True)
        for number in range(images):
            Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    arguments = ("--model", "model", "--dataset", "data", "--output", "result.json")
    succeeded(evaluate, *arguments, cwd=tmp_path)
    found = json.loads((tmp_path / "result.json").read_text())
    results = list(found.values()) if package == "adn" else [found]
    assert len(results) == (8 if package == "adn" else 1)
    for result in results:
        assert (result["images"], result["top1"]) == (4, 0.75)
