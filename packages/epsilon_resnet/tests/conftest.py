"""What several test files start from: a network with two blocks that respond too little, trained on the digits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from epsilon_resnet import report as epsilon_report
from epsilon_resnet.config import Optim, Run, TrainConfig
from epsilon_resnet.train import train
from resless import models
from resless.config import DataConfig
from resless.testing import few_images, undrawn

TRAIN_IMAGES, TEST_IMAGES = 256, 120
QUIET = (1, 4)
"""Of the planted network's blocks 0 to 5, two a stage: the last one of the first stage, the first one of the third."""


@pytest.fixture
def no_pictures() -> Iterator[None]:
    """Short runs draw nothing."""
    with undrawn((epsilon_report, "draw")):
        yield


@pytest.fixture(name="few_images")
def _few_images() -> Iterator[None]:
    """Data sets have TRAIN_IMAGES images to train on, and TEST_IMAGES to test on."""
    with few_images(TRAIN_IMAGES, TEST_IMAGES):
        yield


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
