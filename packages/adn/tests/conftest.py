"""Small networks of every family, with weights and running statistics that nothing could equal by chance; short runs.

Runs train ResNet-14, of two blocks a stage, on TRAIN_IMAGES digits.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adn import evaluate
from adn.config import Optim, Run, TrainConfig
from adn.model import AdaptiveNet, create
from adn.train import train
from PIL import Image
from resless import report
from resless import run as run_module
from resless.config import DataConfig
from resless.data import Images, load, pipeline
from resless.models.torchvision_resnet import of_layers
from resless.testing import Ended, assert_same_run, done, forked, metrics
from torch import Tensor, nn
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


@contextmanager
def undrawn() -> Iterator[None]:
    """Runs draw nothing: pictures take most of the time of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((evaluate, "draw"), (report, "curves")):
            patch.setattr(module, name, lambda *_: None)
        yield


@pytest.fixture
def no_pictures() -> Iterator[None]:
    """See `undrawn`."""
    with undrawn():
        yield


@contextmanager
def few() -> Iterator[None]:
    """Data sets have TRAIN_IMAGES images to train on, and TEST_IMAGES to test on."""
    load = pipeline.load

    def first(name: str, split: str = "train", *args: Any, **options: Any) -> Images:
        images, count = load(name, split, *args, **options), TRAIN_IMAGES if split == "train" else TEST_IMAGES
        return replace(images, images=images.images[:count], labels=images.labels[:count])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "load", first)
        yield


@pytest.fixture
def few_images() -> Iterator[None]:
    """See `few`."""
    with few():
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
    with undrawn(), few():
        train(short_training(folder, optim=optim, data=DataConfig()))
    return folder


@pytest.fixture
def killed_and_resumed(tmp_path: Path) -> Callable[..., None]:
    """Asserts that a run of two epochs, killed at its seventh step and resumed, ends as if it had not been.

    Its arguments: what makes the configuration, of a run folder and of fields of `Run`; the number of processes.
    """

    def check(configured: Callable[..., TrainConfig], processes: int) -> None:
        whole, broken = tmp_path / "whole", tmp_path / "broken"
        done(forked(lambda: train(configured(whole)), processes))
        config = configured(broken, {"checkpoint_steps": 1})

        def killed() -> None:
            power_cut_at(7)
            train(config)

        assert [ended.code for ended in forked(killed, processes)] == [-signal.SIGKILL] * processes
        again = replace(config, run=replace(config.run, resume="auto"))
        printed = done(forked(lambda: train(again), processes))
        assert f"resumed from {broken}/checkpoints/epoch_0001_step_000002" in printed
        assert_same_run(whole, broken)
        assert (whole / "result.json").read_text() == (broken / "result.json").read_text()
        assert len(metrics(whole)) == 2

    return check


def power_cut_at(number: int) -> None:
    """In a fork: kill all processes at the end of the n-th step from now."""
    track, steps = run_module.Run.track, [0]

    def tracked(self: run_module.Run, **values: Tensor) -> None:
        track(self, **values)
        steps[0] += 1
        if steps[0] == number:
            os.killpg(0, signal.SIGKILL)

    run_module.Run.track = tracked


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


# --- commands


def enter(entry: Callable[[], None], *args: str, cwd: Path, processes: int = 1) -> list[Ended]:
    """A console script's entry point in forks: as the script, without its seconds of imports."""

    def task() -> None:
        os.chdir(cwd)
        sys.argv = ["script", *args]
        entry()

    return forked(task, processes)


@pytest.fixture
def succeeded() -> Callable[..., str]:
    """Runs a command, asserts that it succeeds, and returns what it printed."""
    return lambda entry, *args, cwd, processes=1: done(enter(entry, *args, cwd=cwd, processes=processes))


@pytest.fixture
def refused() -> Callable[..., str]:
    """The one sentence with which a command refuses bad input: exit code 2, no traceback, nothing written."""

    def check(entry: Callable[[], None], *args: str, cwd: Path, processes: int = 1) -> str:
        before = {path: path.stat().st_mtime_ns for path in cwd.rglob("*")}
        ended = enter(entry, *args, cwd=cwd, processes=processes)
        assert [process.code for process in ended] == [2] * processes, ended[0].printed
        assert {path: path.stat().st_mtime_ns for path in cwd.rglob("*")} == before, "bad input left files behind"
        lines = ended[0].printed.splitlines()
        assert len(lines) == 1, ended[0].printed
        assert lines[0].startswith("error: ")
        return lines[0]

    return check
