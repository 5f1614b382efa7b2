"""What the machinery costs, as ratios: input pipeline, MNIST epochs, regularisers, `--help`, memory.

    python benchmarks/speed.py --data-dir FOLDER_WITH_MNIST_AND_CIFAR10

Each measurement is a process of its own, so that its peak memory is its own; within it, the things compared take
turns, and the ratio is formed turn by turn.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from _results import peak_rss_mib, write
from _timing import call, ms, ratio, summary, take_turns
from deephoyer.config import TrainConfig
from deephoyer.train import penalty_of
from PIL import Image
from resless import models
from resless.data.augment import Augmentation
from resless.data.images import Images, load
from resless.data.loaders import Batches
from resless.precision import computes_in_bf16
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

CIFAR_STATISTICS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
BF16 = computes_in_bf16()
"""Precision of training steps, as `--mixed-precision auto` chooses it: emulated, bf16 would take ten times as long."""
MNIST_STATISTICS = {"mean": (0.1307,), "std": (0.3081,)}
DISTRIBUTIONS = ("resless", "deephoyer", "blockdrop", "epsilon-resnet", "adn")


@dataclass(frozen=True)
class Options:
    """Where the images are."""

    data_dir: str | None = None
    """Folder that holds the folders `mnist` and `cifar10`; None looks the data sets up on the hub."""
    turns: int = 7
    """Turns that each of the things compared gets."""
    only: tuple[str, ...] = ()
    """Measurements to make; none named means all."""


def main(options: Options) -> None:
    """Make every measurement, then write one result file."""
    wanted = {name: measure for name, measure in MEASUREMENTS.items() if not options.only or name in options.only}
    write("speed", {"turns": options.turns, "results": {name: apart(f, options) for name, f in wanted.items()}})


def apart(measure: Callable[[Options], dict[str, Any]], options: Options) -> dict[str, Any]:
    """Run a measurement in a fresh process; its result, with the peak resident memory of that process in MiB."""
    # Not multiprocessing.Pool, whose processes may not have children: DataLoaders start workers.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        result = pool.submit(_with_peak, measure.__name__, options).result()
    print(measure.__name__, result, flush=True)
    return result


def _with_peak(name: str, options: Options) -> dict[str, Any]:
    return globals()[name](options) | {"peak_rss_mib": peak_rss_mib()}


# -- measurements


def input_pipeline(options: Options) -> dict[str, Any]:
    """CIFAR crop, flip, normalise, batch 128: whole batches on the device against PIL images in two workers."""
    data = load("cifar10", "train", options.data_dir)
    ours = endless(Batches(data, 128, augmentation=Augmentation(pad=4, flip=True), seed=0, **CIFAR_STATISTICS))
    steps = (transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip())
    theirs = endless_loader(PilImages(data, [*steps, *to_tensor(CIFAR_STATISTICS)]), 128)
    model = models.create("resnet20").to(memory_format=torch.channels_last)
    train_step = step_of(model, torch.rand(128, 3, 32, 32).to(memory_format=torch.channels_last), bf16=BF16)
    found = take_turns(
        {
            "ours": lambda: take(ours, 100),
            "torchvision": lambda: take(theirs, 100),
            "step": lambda: call(train_step, 5),
        },
        options.turns,
    )
    batch_ms = {"ours": ms(found["ours"], 100), "torchvision": ms(found["torchvision"], 100)}
    step_ms = ms(found["step"], 5)
    return {
        "batch_ms": batch_ms,
        "speedup": ratio(found["torchvision"], found["ours"]),
        "resnet20_step_ms": step_ms,
        "share_of_step": batch_ms["ours"] / step_ms,
    }


def mnist_epoch(options: Options) -> dict[str, Any]:
    """An epoch of LeNet-300-100 at batch 100: our loader against torchvision's transforms in two workers."""
    data = load("mnist", "train", options.data_dir)
    ours = Batches(data, 100, seed=0, **MNIST_STATISTICS)
    theirs = loader(PilImages(data, to_tensor(MNIST_STATISTICS)), 100)
    epochs = {"ours": epoch_of(lambda: ours.epoch(0)), "torchvision": epoch_of(lambda: iter(theirs))}
    found = take_turns(epochs, max(3, options.turns // 2))
    return {
        "epoch_s": {name: statistics.median(times) for name, times in found.items()},
        "speedup": ratio(found["torchvision"], found["ours"]),
    }


def regulariser(options: Options) -> dict[str, Any]:
    """A training step with the regulariser over one without; the same weights, images and optimiser."""
    cases = {
        "lenet_300_100": (TrainConfig("lenet_300_100", reg="hoyer_square"), (100, 1, 28, 28), False),
        "lenet5": (TrainConfig("lenet5", reg="hoyer_square"), (100, 1, 28, 28), BF16),
        "resnet20": (TrainConfig("resnet20", reg="group_hoyer_square"), (128, 3, 32, 32), BF16),
        "resnet110": (TrainConfig("resnet110", reg="group_hoyer_square"), (128, 3, 32, 32), BF16),
        "resnet110, tied": (TrainConfig("resnet110", reg="group_hoyer_square", tied=True), (128, 3, 32, 32), BF16),
    }
    result = {}
    for name, (config, shape, bf16) in cases.items():
        images = torch.rand(shape)
        model = models.create(config.model, in_channels=shape[1])
        if config.model != "lenet_300_100":
            images, model = (thing.to(memory_format=torch.channels_last) for thing in (images, model))
        calls = {"resnet20": 5, "resnet110": 1}.get(config.model, 20)
        penalty = penalty_of(model, config, images[:1], images.device)
        plain, with_penalty = step_of(model, images, bf16), step_of(model, images, bf16, penalty)
        runs = {"plain": partial(call, plain, calls), "with": partial(call, with_penalty, calls)}
        found = take_turns(runs, 2 * options.turns)
        over = ratio(found["with"], found["plain"])
        kind = f"{config.regulariser}{' --tied' if config.tied else ''}"
        what = {"model": config.model, "regulariser": kind, "bf16": bf16}
        result[name] = {**what, "step_ms": ms(found["plain"], calls), "overhead": over}
    return result


def help_text(options: Options) -> dict[str, Any]:
    """Seconds until `--help` of every installed console script is there, as a whole process."""
    seconds = {}
    kept = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}  # of the bytecode, which the turn that does not count leaves
    for name in scripts():
        command = [str(Path(sys.executable).parent / name), "--help"]
        ask = partial(subprocess.run, command, check=True, capture_output=True, env=kept)
        seconds[name] = summary(take_turns({"help": ask}, options.turns)["help"])
    return {"seconds": seconds}


def scripts() -> list[str]:
    """The console scripts of the five distributions."""
    entries = [entry for name in DISTRIBUTIONS for entry in distribution(name).entry_points]
    return [entry.name for entry in entries if entry.group == "console_scripts"]


def train_lenet_mnist(options: Options) -> dict[str, Any]:
    """One epoch of `resless-train --recipe lenet5`: batch 100, channels_last, bf16 where that is computed."""
    return trained("lenet5", options)


def train_resnet20_cifar10(options: Options) -> dict[str, Any]:
    """One epoch of `resless-train --recipe resnet20`: CIFAR-10, batch 128, else the same."""
    return trained("resnet20", options)


MEASUREMENTS = {
    f.__name__: f
    for f in (input_pipeline, mnist_epoch, regulariser, help_text, train_lenet_mnist, train_resnet20_cifar10)
}


# -- the other side: torchvision's transforms on PIL images, as reference scripts have it


class PilImages(Dataset):
    """Decoded images, as torchvision's data sets hold them: an array, one PIL image made of each item."""

    def __init__(self, data: Images, steps: list[Callable[[Any], Any]]) -> None:
        pixels = data.images.permute(0, 2, 3, 1).contiguous().numpy()
        self._pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        self._labels, self._transform = data.labels.tolist(), transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]


def to_tensor(statistics_: dict[str, tuple[float, ...]]) -> list[Callable[[Any], Any]]:
    """The end of every torchvision pipeline."""
    return [transforms.ToTensor(), transforms.Normalize(statistics_["mean"], statistics_["std"])]


def loader(data: Dataset, batch_size: int) -> DataLoader:
    """Two workers, as many as the machine has cores."""
    return DataLoader(data, batch_size, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)


# -- loops


def endless(batches: Batches) -> Iterator[Any]:
    """Batches without end."""
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def endless_loader(data: Dataset, batch_size: int) -> Iterator[Any]:
    """The same from a DataLoader."""
    batches = loader(data, batch_size)
    while True:
        yield from batches


def take(batches: Iterator[Any], count: int) -> None:
    """Use up so many batches."""
    for _ in range(count):
        next(batches)


def step_of(
    model: nn.Module, images: torch.Tensor, bf16: bool, penalty: Callable[[], torch.Tensor] | None = None
) -> Callable[[], None]:
    """One training step on fixed images, with a regulariser if there is one."""
    labels = torch.randint(0, 10, (len(images),))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images).float(), labels)
        if penalty is not None:
            loss = loss + 1e-5 * penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def epoch_of(batches: Callable[[], Iterator[Any]]) -> Callable[[], None]:
    """One epoch of LeNet-300-100 with Adam over the batches."""
    model = models.create("lenet_300_100", in_channels=1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def run() -> None:
        for images, labels in batches():
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def trained(recipe: str, options: Options) -> dict[str, Any]:
    """Train for one epoch as a user does; the peak memory is that of the command."""
    with TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).parent / "resless-train"), "--recipe", recipe, "--epochs", "1"]
        command += ["--run-dir", f"{folder}/run", *(["--data-dir", options.data_dir] if options.data_dir else [])]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        epoch = json.loads((Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    return {"command": " ".join(["resless-train", *command[1:5]]), "epoch_s": epoch["seconds"]}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
