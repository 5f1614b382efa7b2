"""What ADN's depths save on ImageNet's networks, what its training step costs, and how fast JPEG files are decoded.

    python benchmarks/adn_speed.py --images FOLDER_OF_JPEG_FILES

Every configuration of a network is extracted and timed against the one with nothing skipped, in turns, on random
images of 224 x 224 pixels. A training step of both paths in one pass and in two (`--two-passes`) is timed in processes
of their own, so that the peak memory is its own; so is the step of the super-net and then of the base-net alone.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from _results import write
from _timing import PRECISIONS, against_the_first, call, ms, ratio, take_turns
from adn.evaluate import letters
from adn.extract import extract
from adn.method import two_path_loss
from adn.model import create
from resless.data.catalog import get
from resless.data.samples import TreeSamples
from resless.data.stream import StreamBatches
from resless.errors import check
from resless.memory import keep_freed_memory
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Options:
    """What is measured."""

    images: str | None = None
    """Folder of JPEG files, in any depth; None leaves the decoding out."""
    networks: tuple[str, ...] = ("resnet50", "mobilenet_v2", "swin_t", "vit_b_16")
    """Networks whose configurations are timed."""
    batches: tuple[int, ...] = (1, 16)
    """Batch sizes."""
    precisions: tuple[str, ...] = PRECISIONS
    """fp32, and bf16 autocast with channels_last."""
    steps: tuple[str, ...] = ("resnet20", "resnet50")
    """Networks whose training step is timed, in bf16: a CIFAR network at batch 128, others at batch 16."""
    threads: int = 2
    """Threads that a network may use, and worker processes that decode."""
    repeats: int = 7
    """Turns that each of the things compared gets."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where configurations are timed; training steps are timed on the CPU alone (leave --steps empty)."""

    def __post_init__(self) -> None:
        fits = self.device == "cpu" or not (self.steps or self.images)
        check(fits, "--device", self.device, "cpu, or with empty --steps and without --images")


def main(options: Options) -> None:
    """Measure everything, and write one result file."""
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    settings = {name: value for name, value in vars(options).items() if name != "images"}
    found: dict[str, Any] = {"latency": [], "steps": [], "decoding": None}
    for name in options.networks:
        found["latency"] += configurations(name, options)
    for name in options.steps:
        found["steps"].append(training_step(name, options))
    if options.images is not None:
        found["decoding"] = decoding(Path(options.images), options)
    write("adn-speed", {"settings": settings, **found}, options.device)


# -- configurations


def configurations(name: str, options: Options) -> list[dict[str, Any]]:
    """Every configuration of a network against the one with nothing skipped."""
    net = create(name).eval()
    found = against_the_first(
        {letters(skip): extract(net, skip) for skip in net.configurations()},
        (3, 224, 224),
        batches=options.batches,
        precisions=options.precisions,
        repeats=options.repeats,
        warmup=2,
        device=options.device,
    )
    return [{**timing, "network": name, "configuration": timing["network"]} for timing in found]


# -- training steps


def training_step(name: str, options: Options) -> dict[str, Any]:
    """A step of both paths at once, of one after the other, and of two networks alone: time and peak memory.

    Peaks are measured with one way in a process, times with all of them taking turns in one.
    """
    spawn = multiprocessing.get_context("spawn")
    result: dict[str, Any] = {"network": name, "ways": {}}
    for way in WAYS:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            result["ways"][way] = {"peak_rss_mib": pool.submit(_peak_of, name, way, options.threads).result()}
    steps, batch = {way: step_of(name, way) for way in WAYS}, images_of(name)
    found = take_turns({way: partial(call, step, 2) for way, step in steps.items()}, options.repeats)
    for way, seconds in found.items():
        result["ways"][way] |= {"step_ms": ms(seconds, 2), "over_together": ratio(seconds, found["together"])}
    result |= {"batch_size": len(batch), "precision": "bf16"}
    print(result, flush=True)
    return result


WAYS = ("together", "two passes", "two networks")
"""Both paths in one backward pass; a backward pass after each; super-net and base-net as networks of their own."""


def step_of(name: str, way: str) -> Callable[[], None]:
    """One training step on fixed images, in bf16 and channels_last."""
    net = create(name, num_classes=10 if is_cifar(name) else 1000).to(memory_format=torch.channels_last).train()
    net.relink()
    images, labels = images_of(name), torch.arange(len(images_of(name))) % 10
    alone = [extract(net, skip).train() for skip in (net.super_skip, net.base_skip)] if way == "two networks" else []
    trained = [parameter for network in alone or [net] for parameter in network.parameters()]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9, fused=True)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)

    def together() -> None:
        with autocast():
            logits = net(images, net.super_skip), net(images, net.base_skip)
        two_path_loss(*(part.float() for part in logits), labels).total.backward()

    def two_passes() -> None:
        with autocast():
            of_super = net(images, net.super_skip)
        (0.5 * F.cross_entropy(of_super.float(), labels)).backward()
        with autocast():
            of_base = net(images, net.base_skip)
        two_path_loss(of_super.detach().float(), of_base.float(), labels).total.backward()

    def two_networks() -> None:
        for network in alone:
            with autocast():
                logits = network(images)
            F.cross_entropy(logits.float(), labels).backward()

    backward = {"together": together, "two passes": two_passes, "two networks": two_networks}[way]

    def step() -> None:
        backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def images_of(name: str) -> torch.Tensor:
    """A batch for a network's training step."""
    shape = (128, 3, 32, 32) if is_cifar(name) else (16, 3, 224, 224)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)


def is_cifar(name: str) -> bool:
    """Whether a network is one of resless's for 32 x 32 pixels."""
    return name.startswith("resnet") and name not in ("resnet50", "resnet101")


def _peak_of(name: str, way: str, threads: int) -> int:
    keep_freed_memory()
    torch.set_num_threads(threads)
    call(step_of(name, way), 3)
    # Not getrusage: a process begins with the peak of the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return round(int(status["VmHWM"].split()[0]) / 1024)


# -- decoding


def decoding(folder: Path, options: Options) -> dict[str, Any]:
    """JPEG files, a random area resized to 224 x 224, mirrored, normalised: ours against torchvision's reference."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    batch_size, rounds = 25, 4
    with TemporaryDirectory() as root:
        for number, path in enumerate(files):
            place = Path(root) / "train" / f"class{number % 10}"
            place.mkdir(parents=True, exist_ok=True)
            (place / path.name).symlink_to(path.resolve())
        samples = TreeSamples(get(root), Path(root), [Path(root) / "train"])
        ours = StreamBatches(samples, batch_size, num_workers=options.threads, seed=0, **STATISTICS)
        theirs = DataLoader(
            ImageFolder(str(Path(root) / "train"), reference_transform()),
            batch_size,
            shuffle=True,
            num_workers=options.threads,
            persistent_workers=True,
            pin_memory=False,
        )
        epochs = {
            "ours": lambda: [used(ours.epoch(number)) for number in range(rounds)],
            "torchvision": lambda: [used(iter(theirs)) for _ in range(rounds)],
        }
        seconds = take_turns(epochs, options.repeats)
    images = rounds * (len(files) // batch_size) * batch_size
    result = {
        "images": len(files),
        "workers": options.threads,
        "images_per_second": {name: 1000 * images / ms(taken, 1) for name, taken in seconds.items()},
        "speedup": ratio(seconds["torchvision"], seconds["ours"]),
    }
    print(result, flush=True)
    return result


def reference_transform() -> v2.Compose:
    """Torchvision's reference training preset, its PIL backend."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(224, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(**STATISTICS),
        ]
    )


def used(batches: Iterator[Any]) -> None:
    """Take all batches."""
    for _ in batches:
        pass


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
