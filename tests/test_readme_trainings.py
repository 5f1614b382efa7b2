"""Every command of the packages in the README files' shell blocks runs, one after the other, on a few random images.

What is changed in a line makes it take seconds: an epoch of a few steps, and what is needed for the next command to
find in such a short run what it would after hours (`shortened`). The first blocks, which are for trying, run as they
are in test_readme_runs.py.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import adn.model
import datasets
import numpy as np
import pytest
import torch
from adn.original import original_keys
from epsilon_resnet.config import TrainConfig as GatedConfig
from PIL import Image
from readmes import READMES, blocks, cifar10, lines, photos, run_line, timed_briefly
from resless import models, weights
from resless.data import catalog, sources
from resless.testing import few_images
from torch import nn

BATCH = 8
TRAIN_IMAGES = 2 * BATCH
TRAINING = ("-train", "-prune", "-finetune")
IN_RUNS = "flowers-fast"
"""A block with this runs in test_readme_runs.py."""
ELSEWHERE = ("./dev", "pip", "torchrun")
"""Started by nox, of which this test is a part, and, on two machines, in test_machines.py."""

IMAGES: dict[str, tuple[str, str, int, int]] = {
    "mnist": ("image", "label", 28, 10),
    "cifar10": ("img", "label", 32, 10),
    "cifar100": ("img", "fine_label", 32, 100),
    "imagenet": ("image", "label", 80, 1000),
    "someone/flowers": ("photo", "species", 32, 10),
}
"""Data sets as on the hub: columns of images and labels, size, classes."""
GIVEN: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "README.md": {"small": ("resnet20", {})},
    "shared/README.md": {"resnet20-12fca82f.th": ("resnet20", {"shortcut": "subsample"})},
    "packages/blockdrop/README.md": {
        "runs/resnet110/model": ("resnet110", {"shortcut": "avgpool"}),
        "resnet32.th": ("resnet32", {"shortcut": "subsample"}),
    },
    "packages/deephoyer/README.md": {"resnet50.pth": ("torchvision/resnet50", {"num_classes": 1000})},
}
"""What the commands start from and no earlier one makes: model folders and checkpoint files."""


def images_of(name: str, split: str) -> datasets.Dataset:
    """Random images with the columns and classes of a data set on the hub."""
    image, label, size, classes = IMAGES[name]
    random, count = np.random.default_rng(0), TRAIN_IMAGES if split == "train" else BATCH
    shape = (size, size) if name == "mnist" else (size, size, 3)
    pixels = [Image.fromarray(random.integers(0, 256, shape, np.uint8)) for _ in range(count)]
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(classes)})
    content = {image: pixels, label: [classes * number // count for number in range(count)]}
    return datasets.Dataset.from_dict(content, features)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with the images that the commands name; the hub has the same."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RESLESS_CACHE", str(tmp_path / "cache"))
    names, load = {catalog.get(name).hub_id: name for name in IMAGES}, datasets.load_dataset

    def loaded(source: str, *given: Any, split: str, **named: Any) -> datasets.Dataset:
        if source in names:
            folder = tmp_path / "hub" / names[source]
            named |= {"data_files": {split: [str(path) for path in folder.glob(f"{split}-*")]}}
            source, given = "parquet", ()
        return load(source, *given, split=split, cache_dir=str(tmp_path / "cache"), **named)

    monkeypatch.setattr(sources, "_check_hub", lambda hub_id: None)
    monkeypatch.setattr(datasets, "load_dataset", loaded)
    for name in IMAGES:
        for split in ("train", "validation" if name == "imagenet" else "test"):
            images_of(name, split).to_parquet(tmp_path / "hub" / name / f"{split}-00000-of-00001.parquet")
    (tmp_path / "data").mkdir()
    for name in ("mnist", "imagenet"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "hub" / name)
    cifar10(tmp_path / "data" / "cifar10")
    for name in ("flowers", "photos"):
        photos(tmp_path / "data" / name, train=BATCH, test=1)
    return tmp_path


def prepare(readme: str, folder: Path) -> None:
    """Write the networks that a README's commands start from, untrained."""
    for name, (network, options) in GIVEN.get(readme, {}).items():
        net = models.create(network, **options)
        if "." in name:
            torch.save(net.state_dict(), folder / name)
        else:
            weights.save_pretrained(net, folder / name, example=torch.zeros(1, 3, 32, 32))
    if "epsilon-resnet-train" in "".join(blocks(readme, "sh")):
        for n, classes in ((5, 3), (5, 10), (18, 10)):
            quiet_blocks(n, classes, folder / f"quiet-{n}-{classes}.pth")
    if readme == "packages/adn/README.md":
        authors_checkpoint(folder / "checkpoint.pth")


@torch.no_grad()
def quiet_blocks(n: int, num_classes: int, path: Path) -> None:
    """A pre-activation ResNet of which the last block of each stage responds so little that ε-ResNet discards it."""
    config = GatedConfig(n=n)
    net = models.create(config.backbone, num_classes=num_classes, **config.backbone_options)
    for stage in net.layers:
        for parameter in stage[-1].parameters():
            parameter.mul_(0.01)
    torch.save(net.state_dict(), path)


def authors_checkpoint(path: Path) -> None:
    """A ResNet-50 of adaptive depth as its authors' code saves it."""
    net: nn.Module = adn.model.create("resnet50")
    theirs = original_keys(net.net, net.state_dict())
    torch.save({"model": {theirs[key]: tensor for key, tensor in net.state_dict().items()}}, path)


def shortened(words: list[str]) -> list[str]:
    """The command for few images and one epoch."""
    script, of_imagenet = words[0], any("imagenet" in word for word in words)
    more: list[str] = []
    if "--step" in words:  # of the last checkpoint, until which they do not decay
        words[words.index("--step") + 1] = str(TRAIN_IMAGES)
        more += ["--force", "--dataset", "cifar10", "--data-dir", "~/data"]
    if script.endswith(TRAINING):
        more += ["--epochs", "1", "--batch-size", str(BATCH)]
    if script == "deephoyer-prune" and any("mnist" in word for word in words):  # nothing is near zero yet
        more += ["--target-macs", "2000000"]
    if script == "adn-train":
        more += ["--lr-warmup-epochs", "0"]
    if script == "epsilon-resnet-train" and not of_imagenet:  # blocks have to be closed in most of the last 14 steps
        quiet = f"quiet-{18 if '18' in words else 5}-{3 if '~/data/flowers' in words else 10}.pth"
        more += ["--batch-size", "1", "--lr", "1e-4", "--epsilon", "2", "--pretrained", quiet]
    if "--workers" in words or of_imagenet:
        more += ["--workers", "0"]
    if of_imagenet and "swin_t" not in words:  # which has its size
        more += ["--image-size", "64"]
    return [*words, *more]


@pytest.mark.parametrize("readme", READMES)
def test_every_command_runs(readme: str, home: Path) -> None:
    """Later lines and blocks go on with what earlier ones wrote; of one folder that two write, the last counts."""
    commands = [
        words
        for block in blocks(readme, "sh")[1:]
        if IN_RUNS not in block
        for words in lines(block)
        if words[0] not in ELSEWHERE
    ]
    assert len(commands) > 5
    prepare(readme, home)
    with few_images(TRAIN_IMAGES, BATCH), timed_briefly():
        for words in commands:
            print(shlex.join(words), flush=True)
            run_line(shortened(words), home)
