"""What several test files start from: a network with two blocks that respond too little, trained on the digits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from epsilon_resnet import report as epsilon_report
from epsilon_resnet.config import Optim, Run, TrainConfig
from epsilon_resnet.train import train
from resless import models, report
from resless.config import DataConfig
from resless.data import Images, pipeline

TRAIN_IMAGES, TEST_IMAGES = 256, 120
QUIET = (1, 4)
"""Of the planted network's blocks 0 to 5, two a stage: the last one of the first stage, the first one of the third."""


@contextmanager
def undrawn() -> Iterator[None]:
    """Runs draw nothing: pictures take most of the time of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((epsilon_report, "draw"), (report, "curves")):
            patch.setattr(module, name, lambda *_: None)
        yield


@pytest.fixture
def no_pictures() -> Iterator[None]:
    """See `undrawn`."""
    with undrawn():
        yield


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets have TRAIN_IMAGES images to train on, and TEST_IMAGES to test on."""
    load = pipeline.load

    def first(name: str, split: str = "train", *args: Any, **options: Any) -> Images:
        images, count = load(name, split, *args, **options), TRAIN_IMAGES if split == "train" else TEST_IMAGES
        return replace(images, images=images.images[:count], labels=images.labels[:count])

    monkeypatch.setattr(pipeline, "load", first)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of the plain network of 2 blocks a stage, in which the convolutions of QUIET are small.

    Their largest responses are 0.1 at most, those of the others 3 or more: an ε of 1 discards the former for good, and
    no others in a short run, whatever the machine. Their weights count as decayed from the start.
    """
    config = TrainConfig(n=2)
    torch.manual_seed(1)
    net = models.create(config.backbone, in_channels=1, **config.backbone_options)
    state = net.state_dict()
    for index in QUIET:
        for conv in ("conv1", "conv2"):
            state[f"layers.{index // 2}.{index % 2}.{conv}.weight"].mul_(0.01)
    path = tmp_path_factory.mktemp("planted") / "planted.pth"
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope="session")
def trained(planted: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of epsilon-resnet-train, with pictures: the planted blocks are discarded in its first epoch and
    retired after two. Of its eight epochs of 20 steps, the last two have checkpoints: steps 140 and 160."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = TrainConfig(
        n=2,
        epsilon=1.0,
        retire_after=2,
        pretrained=planted,
        data=DataConfig(pad=1, holdout=0.1),
        optim=Optim(lr=0.05, weight_decay=1e-4, batch_size=64, epochs=8, milestones=(3,), restart_milestones=(5,)),
        run=Run(run_dir=str(folder)),
    )
    train(config)
    return folder
