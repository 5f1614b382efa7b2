"""Networks that several test files start from, trained once, on the embedded digits; and what makes runs short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blockdrop import evaluate
from blockdrop.config import Optim, Run, TrainConfig
from blockdrop.model import BlockDropNet
from blockdrop.train import train
from PIL import Image
from resless import weights
from resless.data import load
from resless.data.pipeline import Pipeline
from resless.data.shards import Shards
from resless.recipes import TRAIN
from resless.testing import few_images, undrawn
from resless.train import train as train_dense

TRAIN_IMAGES, TEST_IMAGES = 256, 120


NO_PICTURES = ((evaluate, "draw"), (evaluate, "draw_rewards"))


@pytest.fixture
def no_pictures() -> Iterator[None]:
    """Short runs draw nothing."""
    with undrawn(*NO_PICTURES):
        yield


@pytest.fixture(name="few_images")
def _few_images() -> Iterator[None]:
    """Data sets have TRAIN_IMAGES images to train on, and TEST_IMAGES to test on."""
    with few_images(TRAIN_IMAGES, TEST_IMAGES):
        yield


@pytest.fixture
def digit_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Makes a data set in a folder, which has no size of its own: the first `count` digits of some splits."""

    monkeypatch.setenv("RESLESS_CACHE", str(tmp_path_factory.mktemp("cache")))

    def make(*splits: str, side: int = 8, count: int = 40) -> str:
        folder = tmp_path_factory.mktemp("digits")
        for split in splits:
            images = load("digits", split)
            for index in range(count):
                path = folder / split / str(int(images.labels[index])) / f"{index:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images.images[index, 0].numpy()).resize((side, side)).save(path)
        return str(folder)

    return make


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of `resless-train --recipe smoke_resnet`, with fewer epochs: ResNet-20, 9 blocks."""
    recipe, folder = TRAIN["smoke_resnet"], tmp_path_factory.mktemp("dense") / "run"
    settings = {"optim": replace(recipe.optim, epochs=4), "run": replace(recipe.run, run_dir=str(folder))}
    with undrawn(*NO_PICTURES):
        train_dense(replace(recipe, **settings))
    return folder


@pytest.fixture(scope="session")
def backbone(dense: Path) -> str:
    """Its model folder."""
    return str(dense / "model")


@pytest.fixture(scope="session")
def curriculum(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of blockdrop-train."""
    folder = tmp_path_factory.mktemp("curriculum") / "run"
    optim = Optim("adam", lr=3e-3, batch_size=64, epochs=3)
    run = Run(run_dir=str(folder))
    with undrawn(*NO_PICTURES):
        train(TrainConfig(model="resnet20", backbone=backbone, curriculum_step=4, optim=optim, run=run))
    return folder


@pytest.fixture(scope="session")
def undecided(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder whose policy network is random: of the test images, half keep each block, in many policies."""
    plain, preprocessing = weights.from_pretrained(backbone), weights.read_config(backbone)["preprocessing"]
    torch.manual_seed(0)
    net = BlockDropNet("resnet20", in_channels=1)
    net.resnet.net.load_state_dict(plain.state_dict())
    data = Pipeline(TrainConfig().data, 0, Shards(), preprocessing)
    images = torch.cat([batch for batch, _ in data.evaluation(data.test)])
    # The middle of the logits of the images becomes 0; far apart, so that none is near enough to be rounded across.
    with torch.no_grad():
        net.policy.logit.weight.mul_(100)
        net.policy.logit.bias.zero_()
        logits = net.eval().policy.logit(net.policy.features(images))
        net.policy.logit.bias.copy_(-logits.median(dim=0).values - 1e-3)
    folder = tmp_path_factory.mktemp("undecided") / "model"
    weights.save_pretrained(net, folder, preprocessing=preprocessing)
    return str(folder)
