"""All four methods beside the dense network that they start from: one table, one picture. The demo of the README.

    python benchmarks/compare.py                                             # embedded digits, some minutes
    python benchmarks/compare.py --dataset cifar10 --data-dir FOLDER --epochs 12 --pad 4 --flip \\
        --mixed-precision auto --channels-last

Each step is a command that a user could type, and is printed before it runs. Finished steps below `--runs` are not
repeated, and one that was interrupted goes on where it was. DeepHoyer and BlockDrop start from the dense network, ADN
and ε-ResNet from fresh weights, with networks of the same depth.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tyro
from resless import cli, weights
from resless.errors import check
from resless.files import write_text


@dataclass(frozen=True)
class Options:
    """What to compare, on what."""

    dataset: str = "digits"
    """Name of a data set, hub id, or local folder."""
    data_dir: str | None = None
    """Folder that holds the data set; None looks it up on the hub. `digits` comes with the package."""
    model: str = "resnet20"
    """Residual network for CIFAR-sized images, of depth 6n + 2."""
    share: float = 0.5
    """Part of the dense network's MACs that DeepHoyer keeps."""
    epochs: int | None = None
    """Epochs of every training; None takes those of the recipes for digits."""
    image_size: int | None = None
    """Side in pixels to which images are resized; None keeps their own size."""
    seed: int = 0
    """Seed of every training."""
    pad: int = 1
    """Pixels by which training images are moved at most."""
    flip: bool = False
    """Flip training images at random."""
    mixed_precision: str = "no"
    """no, bf16, or auto: bf16 where the processor has units for it."""
    channels_last: bool = False
    """Layout of images and weights."""
    runs: str = "runs/demo"
    """Folder of everything that is made."""
    repeats: int = 20
    """Turns that each network gets when they are timed."""

    def __post_init__(self) -> None:
        check(0 < self.share < 1, "--share", self.share, "above 0 and below 1")
        depth = self.model.removeprefix("resnet")
        fits = depth.isdigit() and int(depth) % 6 == 2 and int(depth) > 8
        check(fits, "--model", self.model, "resnet14, resnet20, resnet32 or another of depth 6n + 2")

    @property
    def blocks(self) -> int:
        """Blocks in each of the three stages."""
        return (int(self.model.removeprefix("resnet")) - 2) // 6

    @property
    def root(self) -> Path:
        """Folder of everything that is made."""
        return Path(self.runs)


@dataclass(frozen=True)
class Step:
    """One command, and the file that is there once it is done."""

    command: tuple[str, ...]
    done: Path


def main(options: Options) -> None:
    """Take all steps that are left, then measure."""
    claim(options)
    take(steps(options))
    measure(networks(options), options)


def take(wanted: Iterable[Step]) -> None:
    """Run the commands of all steps that are not done."""
    for step in wanted:
        if not step.done.exists():
            call(step.command)


def measure(folders: Mapping[str, Path], options: Options) -> None:
    """Compare model folders, and write `comparison.json` and `comparison.png` beside them."""
    written = ["--output", str(options.root / "comparison.json"), "--picture", str(options.root / "comparison.png")]
    precision = ["--mixed-precision", options.mixed_precision, *(["--channels-last"] if options.channels_last else [])]
    named = [f"{name}={folder}" for name, folder in folders.items()]
    call(("resless-compare", *named, *images(options), *precision, "--repeats", str(options.repeats), *written))


def claim(options: Options) -> None:
    """Note in the folder what it is for.

    Raises:
        InputError: it holds something else, whose networks would be taken for these.
    """
    settings = {name: value for name, value in vars(options).items() if name not in ("data_dir", "runs", "repeats")}
    note = options.root / "options.json"
    if note.exists():
        before = json.loads(note.read_text(encoding="utf-8"))
        changed = [name for name in settings if before.get(name) != settings[name]]
        there = ", ".join(f"--{name.replace('_', '-')} {before.get(name)}" for name in changed)
        check(not changed, "--runs", options.runs, f"another folder: this one holds a comparison with {there}")
    elif options.root.exists():
        check(not any(options.root.iterdir()), "--runs", options.runs, "a folder that is empty or not there")
    options.root.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(settings, indent=1) + "\n")


def networks(options: Options) -> dict[str, Path]:
    """What is compared: name -> model folder."""
    root = options.root
    return {
        f"dense {options.model}": root / "dense" / "model",
        "DeepHoyer, compacted": root / "small",
        "BlockDrop": root / "blockdrop" / "model",
        "ε-ResNet, compressed": root / "epsilon" / "compressed",
        "ADN, nothing skipped": root / "adn-super",
        "ADN, everything skipped": root / "adn-base",
    }


def steps(options: Options) -> Iterator[Step]:
    """Everything that makes the networks, in order."""
    yield run(options, "dense", "resless-train", "--recipe", "smoke_resnet", "--model", options.model)
    yield from deephoyer("dense/model", "small", options)
    yield from blockdrop("dense/model", "blockdrop", options)
    yield from epsilon(options)
    yield from adn(options)


def deephoyer(start: str, folder: str, options: Options) -> Iterator[Step]:
    """Make the network of a model folder smaller, by the share that is asked for."""
    root, macs = options.root, weights.read_config(options.root / start)["costs"]["macs_per_image"]
    recipe = ("--recipe", "smoke_resnet")
    given = ("--model", options.model, "--pretrained", str(root / start))
    yield run(options, f"{folder}-sparse", "deephoyer-train", *recipe, *given)
    cut = ("--model", str(root / f"{folder}-sparse" / "model"), "--target-macs", str(round(options.share * macs)))
    yield run(options, f"{folder}-pruned", "deephoyer-prune", *recipe, *cut)
    pruned = ("--model", str(root / f"{folder}-pruned" / "model"))
    yield make(options, folder, "deephoyer-compact", *pruned, "--output", str(root / folder), "--repeats", "0")


def blockdrop(start: str, folder: str, options: Options) -> Iterator[Step]:
    """Teach a policy which blocks of the network of a model folder each image needs."""
    recipe, backbone = ("--recipe", "smoke"), ("--model", options.model, "--backbone", str(options.root / start))
    yield run(options, f"{folder}-policy", "blockdrop-train", *recipe, *backbone)
    policy = ("--pretrained", str(options.root / f"{folder}-policy" / "model"))
    yield run(options, folder, "blockdrop-finetune", *recipe, *policy)


def epsilon(options: Options) -> Iterator[Step]:
    """Train a network that discards blocks, and leave them out."""
    yield run(options, "epsilon", "epsilon-resnet-train", "--recipe", "smoke", "--n", str(options.blocks))
    trained = ("--model", str(options.root / "epsilon"), "--repeats", "0")
    yield make(options, "epsilon/compressed", "epsilon-resnet-compress", *trained)


def adn(options: Options) -> Iterator[Step]:
    """Train a network of every depth, and write its deepest and its shallowest."""
    yield run(options, "adn", "adn-train", "--recipe", "smoke", "--model", options.model)
    for name, skipped in (("super", "False"), ("base", "True")):
        folder, skip = f"adn-{name}", ("--skip-cfg", skipped, skipped, skipped, "--repeats", "0")
        adaptive = ("--model", str(options.root / "adn" / "model"), "--output", str(options.root / folder))
        yield make(options, folder, "adn-extract", *adaptive, *skip)


def run(options: Options, folder: str, *command: str) -> Step:
    """A training."""
    place = ("--run-dir", str(options.root / folder), "--resume", "auto")
    return Step((*command, *place, *training(options)), options.root / folder / "result.json")


def make(options: Options, folder: str, *command: str) -> Step:
    """A command that writes a model folder."""
    return Step(command, options.root / folder / weights.CONFIG_NAME)


def images(options: Options) -> list[str]:
    """Arguments that name the images."""
    given = ["--dataset", options.dataset]
    given += ["--data-dir", options.data_dir] if options.data_dir else []
    return given + (["--image-size", str(options.image_size)] if options.image_size else [])


def training(options: Options) -> list[str]:
    """Arguments of every training."""
    given = [*images(options), "--pad", str(options.pad), "--flip" if options.flip else "--no-flip"]
    given += ["--seed", str(options.seed)]
    given += ["--epochs", str(options.epochs)] if options.epochs else []
    given += ["--mixed-precision", options.mixed_precision]
    return [*given, "--channels-last" if options.channels_last else "--no-channels-last"]


def call(command: tuple[str, ...]) -> None:
    """Print a command and run it; stop with its exit code where it fails."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    finished = subprocess.run([str(Path(sys.executable).with_name(command[0])), *command[1:]], check=False)
    if finished.returncode:
        raise SystemExit(finished.returncode)


if __name__ == "__main__":
    cli.main(lambda: main(tyro.cli(Options, description=__doc__)))
