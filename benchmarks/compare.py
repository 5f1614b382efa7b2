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
from collections.abc import Iterator
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
    pad: int = 1
    """Pixels by which training images are moved at most."""
    flip: bool = False
    """Flip training images at random."""
    mixed_precision: str = "no"
    """no, or bf16."""
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
    for step in steps(options):
        if not step.done.exists():
            call(step.command)
    data = ["--dataset", options.dataset, *(["--data-dir", options.data_dir] if options.data_dir else [])]
    written = ["--output", str(options.root / "comparison.json"), "--picture", str(options.root / "comparison.png")]
    precision = ["--mixed-precision", options.mixed_precision, *(["--channels-last"] if options.channels_last else [])]
    named = [f"{name}={folder}" for name, folder in networks(options).items()]
    call(("resless-compare", *named, *data, *precision, "--repeats", str(options.repeats), *written))


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
    root, trained = options.root, training(options)

    def run(folder: str, *command: str) -> Step:
        return Step(
            (*command, "--run-dir", str(root / folder), "--resume", "auto", *trained), root / folder / "result.json"
        )

    def make(folder: str, *command: str) -> Step:
        return Step(command, root / folder / weights.CONFIG_NAME)

    dense, model = str(root / "dense" / "model"), options.model
    yield run("dense", "resless-train", "--recipe", "smoke_resnet", "--model", model)

    yield run("sparse", "deephoyer-train", "--recipe", "smoke_resnet", "--model", model, "--pretrained", dense)
    pruned = ("--recipe", "smoke_resnet", "--model", str(root / "sparse" / "model"))
    yield run("pruned", "deephoyer-prune", *pruned, "--target-macs", str(target_macs(options)))
    small = ("--model", str(root / "pruned" / "model"), "--output", str(root / "small"), "--repeats", "0")
    yield make("small", "deephoyer-compact", *small)

    yield run("policy", "blockdrop-train", "--recipe", "smoke", "--model", model, "--backbone", dense)
    yield run("blockdrop", "blockdrop-finetune", "--recipe", "smoke", "--pretrained", str(root / "policy" / "model"))

    yield run("epsilon", "epsilon-resnet-train", "--recipe", "smoke", "--n", str(options.blocks))
    yield make("epsilon/compressed", "epsilon-resnet-compress", "--model", str(root / "epsilon"), "--repeats", "0")

    yield run("adn", "adn-train", "--recipe", "smoke", "--model", model)
    for name, skipped in (("super", "False"), ("base", "True")):
        skip = ("--skip-cfg", skipped, skipped, skipped, "--output", str(root / f"adn-{name}"), "--repeats", "0")
        yield make(f"adn-{name}", "adn-extract", "--model", str(root / "adn" / "model"), *skip)


def training(options: Options) -> list[str]:
    """Arguments of every training."""
    given = ["--dataset", options.dataset, "--pad", str(options.pad), "--flip" if options.flip else "--no-flip"]
    given += ["--data-dir", options.data_dir] if options.data_dir else []
    given += ["--epochs", str(options.epochs)] if options.epochs else []
    given += ["--mixed-precision", options.mixed_precision]
    return [*given, "--channels-last" if options.channels_last else "--no-channels-last"]


def target_macs(options: Options) -> int:
    """Multiply-adds that DeepHoyer may keep."""
    dense = weights.read_config(options.root / "dense" / "model")
    return round(options.share * dense["costs"]["macs_per_image"])


def call(command: tuple[str, ...]) -> None:
    """Print a command and run it; stop with its exit code where it fails."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    finished = subprocess.run([str(Path(sys.executable).with_name(command[0])), *command[1:]], check=False)
    if finished.returncode:
        raise SystemExit(finished.returncode)


if __name__ == "__main__":
    cli.main(lambda: main(tyro.cli(Options, description=__doc__)))
