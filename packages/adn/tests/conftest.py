"""Small networks of every family, with weights and running statistics that nothing could equal by chance; short runs.

Runs train ResNet-14, of two blocks a stage, on TRAIN_IMAGES digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adn import evaluate
from adn.config import Optim, Run, TrainConfig
from adn.model import AdaptiveNet, create
from adn.train import train
from PIL import Image
from resless.config import DataConfig
from resless.data import load
from resless.models.torchvision_resnet import of_layers
from resless.testing import few_images, undrawn
from torch import nn
from torchvision.models import MobileNetV2, SwinTransformer, VisionTransformer
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

CLASSES = 10
TRAIN_IMAGES, TEST_IMAGES = 256, 120


def swin(depths: tuple[int, ...] = (2, 2, 6, 2), **options: object) -> SwinTransformer:
    return SwinTransformer([4, 4], 16, list(depths), [1, 2, 4, 8], [4, 4], num_classes=CLASSES, **options)


def vit(layers: int = 6) -> VisionTransformer:
    return VisionTransformer(32, 8, layers, 2, 32, 64, num_classes=CLASSES)


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: of_layers("bottleneck", (3, 2, 4, 2), num_classes=CLASSES, in_channels=3),
    "mobilenet": lambda: MobileNetV2(CLASSES, width_mult=0.25),
    "swin": swin,
    "swin_v2": lambda: swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
    "vit": vit,
}
"""Other sizes than the published ones: what holds for them is no matter of a table."""


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """In place: torchvision starts some heads at zero and all norms alike, which would hide what is mixed up."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point() or name.endswith("relative_coords_table"):
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(noise.abs() * 0.2 + 0.9)
            elif name.endswith("logit_scale"):
                tensor.copy_(noise * 0.1 + math.log(10))
            elif tensor.dim() > 1:
                tensor.copy_(noise * math.sqrt(1.5 / (tensor.numel() // tensor.shape[0])))
            else:
                tensor.copy_(noise * 0.1 + float(name.endswith("weight")))
    return model


@pytest.fixture
def randomised() -> Callable[..., nn.Module]:
    """See `randomise`."""
    return randomise


@pytest.fixture
def plain() -> dict[str, Callable[[], nn.Module]]:
    """Makes the small plain networks, by family."""
    return PLAIN


@pytest.fixture
def make() -> Callable[[str], AdaptiveNet]:
    """Makes a small network of a family, in eval mode."""

    def made(family: str) -> AdaptiveNet:
        torch.manual_seed(0)
        net = create("resnet14", num_classes=CLASSES) if family == "cifar" else AdaptiveNet(PLAIN[family]())
        randomise(net)
        return net.eval()

    return made


# --- short runs


NO_PICTURES = ((evaluate, "draw"),)


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


def short_training(folder: Path, /, run: dict[str, Any] | None = None, **fields: Any) -> TrainConfig:
    """The configuration of a run of two epochs of four steps."""
    optim = Optim("adam", lr=3e-3, batch_size=64, epochs=2)
    defaults = {"model": "resnet14", "data": DataConfig(pad=1), "optim": optim}
    return TrainConfig(**(defaults | {"run": Run(run_dir=str(folder), **(run or {}))} | fields))


@pytest.fixture
def training() -> Callable[..., TrainConfig]:
    """See `short_training`."""
    return short_training


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of adn-train, whose network is right on most digits at any depth."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    optim = Optim("adam", lr=1e-2, batch_size=32, epochs=6, schedule="cosine")
    with undrawn(*NO_PICTURES), few_images(TRAIN_IMAGES, TEST_IMAGES):
        train(short_training(folder, optim=optim, data=DataConfig()))
    return folder


@pytest.fixture
def picture_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Makes a data set in a folder, of a side in pixels: some 40 digits in colour to train and to test on."""
    monkeypatch.setenv("RESLESS_CACHE", str(tmp_path_factory.mktemp("cache")))

    def make(side: int) -> str:
        folder = tmp_path_factory.mktemp("pictures")
        for split in ("train", "test"):
            images = load("digits", split)
            for index in images.labels.argsort()[:: len(images.labels) // 40].tolist():
                path = folder / split / str(int(images.labels[index])) / f"{index:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(images.images[index, 0].numpy()).convert("RGB")
                picture.resize((side, side)).save(path)
        return str(folder)

    return make
