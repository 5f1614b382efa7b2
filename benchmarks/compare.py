"""All four methods beside the dense network that they start from: one table, one picture. The demo of the README.

    python benchmarks/compare.py                                             # embedded digits, some minutes
    python benchmarks/compare.py --dataset cifar10 --data-dir FOLDER --epochs 12 --pad 4 --flip \\
        --mixed-precision auto --channels-last
    python benchmarks/compare.py ... --pretrained resnet20-12fca82f.th --shortcut subsample \\
        --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225      # a network that is trained already

Each step is a command that a user could type, and is printed before it runs. Finished steps below `--runs` are not
repeated, and one that was interrupted goes on where it was; `seconds.json` there says how long each took. DeepHoyer and
BlockDrop start from the dense network, ADN and ε-ResNet from fresh weights, with networks of the same depth.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from resless import cli, weights
from resless.config import DataConfig, RunConfig
from resless.errors import InputError, check
from resless.files import read_json, write_text

FREE = ("data_dir", "runs", "repeats", "record")
"""Options that may change when a comparison goes on: no network depends on them."""


@dataclass(frozen=True)
class Options:
    """What to compare, on what."""

    dataset: str = "digits"
    """Name of a data set, hub id, or local folder."""
    data_dir: str | None = None
    """Folder that holds the data set; None looks it up on the hub. `digits` comes with the package."""
    image_column: str | None = None
    """Column of the images in tables whose column is not called as usual."""
    label_column: str | None = None
    """Column of the labels, likewise."""
    model: str = "resnet20"
    """Residual network for CIFAR-sized images, of depth 6n + 2."""
    pretrained: str | None = None
    """Model folder, or foreign checkpoint, of the dense network; None trains one."""
    shortcut: Literal["conv", "subsample", "avgpool"] | None = None
    """Shortcut of a checkpoint's network; None means conv."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel that a checkpoint was trained with; None takes the model folder's, else the data set's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, likewise."""
    share: float = 0.5
    """Part of the dense network's MACs that DeepHoyer keeps."""
    epochs: int | None = None
    """Epochs of every training; None takes those of the recipes for digits."""
    batch_size: int | None = None
    """Images in a step of every training; None takes those of the recipes for digits."""
    image_size: int | None = None
    """Side in pixels to which images are resized; None keeps their own size."""
    seed: int = 0
    """Seed of every training."""
    pad: int = 1
    """Pixels by which training images are moved at most."""
    flip: bool = False
    """Flip training images at random."""
    mixed_precision: Literal["no", "bf16", "auto"] = "no"
    """no, bf16, or auto: bf16 where the processor has units for it."""
    channels_last: bool = False
    """Layout of images and weights."""
    runs: str = "runs/demo"
    """Folder of everything that is made."""
    repeats: int = 20
    """Turns that each network gets when they are timed."""
    record: bool = False
    """Write what came out as a result file too, from which the README's table is made."""

    def __post_init__(self) -> None:
        # Here already: what only a later command refuses would have taken the folder, and minutes.
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        DataConfig(dataset=self.dataset, data_dir=self.data_dir, image_size=self.image_size, pad=self.pad, **columns)
        RunConfig(seed=self.seed)
        epochs = self.epochs
        check(epochs is None or epochs > 0, "--epochs", epochs, "1 or more, or left out for those of the recipes")
        size = self.batch_size
        check(size is None or size > 1, "--batch-size", size, "2 or more, or left out for those of the recipes")
        check(self.repeats >= 2, "--repeats", self.repeats, "2 or more")
        check(0 < self.share < 1, "--share", self.share, "above 0 and below 1")
        for name in ("shortcut", "mean", "std"):
            value = getattr(self, name)
            check(value is None or self.pretrained is not None, f"--{name}", value, "left out: it is of --pretrained")
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

    name: str
    given: tuple[str, ...]
    """The command, but for what is not known yet."""
    done: Path
    later: Callable[[], tuple[str, ...]] = tuple
    """Its last arguments, which depend on what earlier steps made."""
    again: bool = False
    """Take the step even if it is done."""

    @property
    def command(self) -> tuple[str, ...]:
        """What to run; only once the earlier steps are done."""
        return (*self.given, *self.later())


def main(options: Options) -> None:
    """Take all steps that are left, then measure."""
    if options.dataset == "digits":
        # Steps of 8 x 8 pixels gain nothing from a second thread, and take three times as long where it has to wait.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    claim(options)
    take([*steps(options), measure(networks, options)], options.root)
    seconds = read_json(options.root / "seconds.json", dict)
    print(f"all steps together took {seconds['total']:,.0f} s")
    if options.record:
        from _results import write  # beside this file; the demo needs nothing but it

        found = read_json(options.root / "comparison.json", dict)
        timed_in = found["environment"]  # of the process that measured, whose threads may be others than here
        write(
            "demo", {"settings": vars(options), "seconds": seconds, "timed_in": timed_in, "networks": found["networks"]}
        )


def take(wanted: Iterable[Step], root: Path) -> None:
    """Run the commands of all steps that are not done, and note in `root` how long they take."""
    wanted = list(wanted)
    for number, step in enumerate(wanted, 1):
        title = f"step {number} of {len(wanted)}, {step.name}"
        if step.done.exists() and not step.again:
            print(f"{title}: done before", flush=True)
            continue
        print(f"\n{title}\n$ {shlex.join(step.command)}", flush=True)
        with timed(step, root / "seconds.json"):
            call(step.command)


@contextmanager
def timed(step: Step, note: Path) -> Iterator[None]:
    """Add the seconds that a step takes to those of its interrupted starts; only those of a kill stay unknown."""
    steps = noted_seconds(note)
    before = 0.0 if step.done.exists() else steps.get(step.name, 0.0)
    start = time.perf_counter()
    try:
        yield
    finally:
        steps[step.name] = round(before + time.perf_counter() - start, 1)
        seconds = {"total": round(sum(steps.values()), 1), "steps": steps}
        write_text(note, json.dumps(seconds, indent=1) + "\n")


def noted_seconds(note: Path) -> dict[str, float]:
    """How long each step took, as `seconds.json` says; nothing where it is missing or damaged: no result needs it."""
    try:
        return {name: float(seconds) for name, seconds in read_json(note, dict)["steps"].items()}
    except (InputError, LookupError, TypeError, ValueError, AttributeError):
        return {}


def measure(folders: Callable[[Any], Mapping[str, Path]], options: Options) -> Step:
    """Compare model folders, and write `comparison.json` and `comparison.png` beside them; anew at every start."""
    output = options.root / "comparison.json"
    written = ("--output", str(output), "--picture", str(output.with_suffix(".png")))
    precision = ("--mixed-precision", options.mixed_precision, *(["--channels-last"] if options.channels_last else []))
    command = ("resless-compare", *images(options), *precision, "--repeats", str(options.repeats), *written)

    def named() -> tuple[str, ...]:
        return tuple(f"{name}={folder}" for name, folder in folders(options).items())

    return Step("comparison", command, output, named, again=True)


def claim(options: Options) -> None:
    """Note in the folder what it is for.

    Raises:
        InputError: it holds something else, whose networks would be taken for these.
    """
    settings = {name: value for name, value in vars(options).items() if name not in FREE}
    settings = json.loads(json.dumps(settings))  # as the note gives them back, which knows no tuples
    note = options.root / "options.json"
    there = {path.name for path in options.root.iterdir()} if options.root.exists() else set()
    if there - {note.name, "seconds.json"}:  # else no step got as far as a file, and no option is bound yet
        check(note.exists(), "--runs", options.runs, "a folder that is empty or not there")
        before = noted_options(note)
        changed = [name for name in settings if before.get(name) != settings[name]]
        held = ", ".join(f"--{name.replace('_', '-')} {before.get(name)}" for name in changed)
        check(not changed, "--runs", options.runs, f"another folder: this one holds a comparison with {held}")
    options.root.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(settings, indent=1) + "\n")


def noted_options(note: Path) -> dict[str, Any]:
    """What `options.json` says. Raises InputError where it is damaged."""
    try:
        return read_json(note, dict)
    except InputError as error:
        raise InputError(f"{error}: give another folder as --runs") from error


def networks(options: Options) -> dict[str, Path]:
    """What is compared: name -> model folder."""
    root = options.root
    compressed = {"ε-ResNet, compressed": root / "epsilon" / "compressed"}
    untouched = {"ε-ResNet, nothing discarded": root / "epsilon" / "model"}
    return {
        f"dense {options.model}": root / "dense" / "model",
        "DeepHoyer, compacted": root / "small",
        "BlockDrop": root / "blockdrop" / "model",
        **(compressed if (root / "epsilon" / "compressed").exists() else untouched),
        "ADN, nothing skipped": root / "adn-super",
        "ADN, everything skipped": root / "adn-base",
    }


def steps(options: Options) -> Iterator[Step]:
    """Everything that makes the networks, in order."""
    yield dense(options)
    yield from deephoyer("dense/model", "small", options)
    yield from blockdrop("dense/model", "blockdrop", options)
    yield from epsilon(options)
    yield from adn(options)


def dense(options: Options) -> Step:
    """The network that the others are compared with: trained, or made a model folder of where one is given."""
    network = ("--recipe", "smoke_resnet", "--model", options.model)
    if options.pretrained is None:
        return run(options, "dense", "resless-train", *network)
    given = ["--pretrained", options.pretrained, "--reg", "none"]
    for name in ("shortcut", "mean", "std"):
        value = getattr(options, name)
        given += [] if value is None else [f"--{name}", *([value] if isinstance(value, str) else map(str, value))]
    return run(options, "dense", "deephoyer-train", *network, *given, epochs=0)


def deephoyer(start: str, folder: str, options: Options) -> Iterator[Step]:
    """Make the network of a model folder smaller, by the share that is asked for."""
    root, recipe = options.root, ("--recipe", "smoke_resnet")

    def target() -> tuple[str, ...]:
        macs = weights.read_config(root / start)["costs"]["macs_per_image"]
        return ("--target-macs", str(round(options.share * macs)))

    given = ("--model", options.model, "--pretrained", str(root / start))
    yield run(options, f"{folder}-sparse", "deephoyer-train", *recipe, *given)
    sparse = ("--model", str(root / f"{folder}-sparse" / "model"))
    yield run(options, f"{folder}-pruned", "deephoyer-prune", *recipe, *sparse, later=target)
    pruned = ("--model", str(root / f"{folder}-pruned" / "model"))
    yield make(options, folder, "deephoyer-compact", *pruned, "--output", str(root / folder), "--repeats", "0")


def blockdrop(start: str, folder: str, options: Options) -> Iterator[Step]:
    """Teach a policy which blocks of the network of a model folder each image needs."""
    recipe = ("--recipe", "smoke", "--model", options.model)
    yield run(options, f"{folder}-policy", "blockdrop-train", *recipe, "--backbone", str(options.root / start))
    policy = ("--pretrained", str(options.root / f"{folder}-policy" / "model"))
    yield run(options, folder, "blockdrop-finetune", *recipe, *policy)


def epsilon(options: Options) -> Iterator[Step]:
    """Train a network that discards blocks, and leave them out; after few epochs there may be none, or not for good."""
    yield run(options, "epsilon", "epsilon-resnet-train", "--recipe", "smoke", "--n", str(options.blocks))
    trained = ("--model", str(options.root / "epsilon"), "--allow-none", "--force", *images(options), "--repeats", "0")
    yield make(options, "epsilon/compressed", "epsilon-resnet-compress", *trained)


def adn(options: Options) -> Iterator[Step]:
    """Train a network of every depth, and write its deepest and its shallowest."""
    yield run(options, "adn", "adn-train", "--recipe", "smoke", "--model", options.model)
    for name, skipped in (("super", "False"), ("base", "True")):
        folder, skip = f"adn-{name}", ("--skip-cfg", skipped, skipped, skipped, "--repeats", "0")
        adaptive = ("--model", str(options.root / "adn" / "model"), "--output", str(options.root / folder))
        yield make(options, folder, "adn-extract", *adaptive, *skip)


def run(
    options: Options,
    folder: str,
    *command: str,
    later: Callable[[], tuple[str, ...]] = tuple,
    epochs: int | None = None,
) -> Step:
    """A training, of so many epochs; None takes those of the options."""
    place = ("--run-dir", str(options.root / folder), "--resume", "auto")
    shared = training(options, options.epochs if epochs is None else epochs)
    return Step(folder, (*command, *place, *shared), options.root / folder / "result.json", later)


def make(options: Options, folder: str, *command: str) -> Step:
    """A command that writes a model folder."""
    return Step(folder, command, options.root / folder / weights.CONFIG_NAME)


def images(options: Options) -> list[str]:
    """Arguments that name the images."""
    given = ["--dataset", options.dataset]
    for name in ("data_dir", "image_column", "label_column", "image_size"):
        value = getattr(options, name)
        given += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return given


def training(options: Options, epochs: int | None) -> list[str]:
    """Arguments of every training."""
    given = [*images(options), "--pad", str(options.pad), "--flip" if options.flip else "--no-flip"]
    given += ["--seed", str(options.seed)]
    given += [] if epochs is None else ["--epochs", str(epochs)]
    given += [] if options.batch_size is None else ["--batch-size", str(options.batch_size)]
    given += ["--mixed-precision", options.mixed_precision]
    return [*given, "--channels-last" if options.channels_last else "--no-channels-last"]


def call(command: tuple[str, ...]) -> None:
    """Run a command; stop with its exit code where it fails."""
    with subprocess.Popen([str(Path(sys.executable).with_name(command[0])), *command[1:]]) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # which the command got too: it saves before it ends
            process.wait()
            raise
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    cli.main(lambda: main(tyro.cli(Options, description=__doc__)))
