"""ADN with a CIFAR ResNet on CIFAR-10 against the same two networks trained alone.

    python benchmarks/adn_cifar.py --data-dir FOLDER_WITH_CIFAR10
    python benchmarks/adn_cifar.py --data-dir FOLDER_WITH_CIFAR10 --recipe resnet56_short   # where a GPU is at hand

The recipe, run as a user would run it, each network in a process of its own; then all configurations of the adaptive
network are extracted and timed, interleaved. Finished runs below `--runs` are not repeated, so that several processes
can do some `--names` or `--seeds` each, and one more collect them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from _results import write
from _runs import data, finished, length, run
from _timing import against_the_first
from adn.evaluate import letters
from adn.extract import extract
from adn.model import AdaptiveNet
from resless import weights

RUNS = {
    "adaptive": [],
    "super-net alone": ["--alone", "super"],
    "base-net alone": ["--alone", "base"],
}


@dataclass(frozen=True)
class Options:
    """What to run, and where."""

    data_dir: str | None = None
    """Folder that holds CIFAR-10; None looks it up on the hub."""
    recipe: Literal["resnet20_short", "resnet56_short"] = "resnet20_short"
    """Recipe of all networks."""
    epochs: int | None = None
    """Epochs of every network; None leaves the recipe's."""
    names: tuple[str, ...] = tuple(RUNS)
    """Networks to train."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds to train each with."""
    runs: str | None = None
    """Folder of the runs; None takes runs/ and the name of the results."""
    train: bool = True
    """Train what is not finished; without it, only what is finished is collected."""
    collect: bool = True
    """Time the configurations and write the result file once everything is trained."""
    threads: int = 2
    """Threads of the timed networks."""
    repeats: int = 30
    """Turns that each timed network gets."""

    @property
    def results(self) -> str:
        """Name of the results."""
        return "adn-cifar" if self.recipe == "resnet20_short" else f"adn-cifar-{self.recipe.removesuffix('_short')}"


def main(options: Options) -> None:
    """Train, then time, and write one result file."""
    wanted = [(name, seed) for seed in options.seeds for name in options.names]
    if not options.train:
        wanted = [(name, seed) for name, seed in wanted if finished(folder_of(name, seed, options))]
    results = [train(name, seed, options) for name, seed in wanted]
    if options.collect:
        torch.set_num_threads(options.threads)
        latency = timed(folder_of("adaptive", options.seeds[0], options), options)
        write(options.results, {"runs": results, "latency": latency})


def train(name: str, seed: int, options: Options) -> dict[str, Any]:
    """One run of the recipe, unless it is there; what came out."""
    arguments = ["--seed", str(seed), *RUNS[name], *data(options.data_dir)]
    arguments += length(options.epochs)
    return {"network": name, "seed": seed} | run("adn.train", options.recipe, folder_of(name, seed, options), arguments)


def timed(folder: Path, options: Options) -> list[dict[str, Any]]:
    """Every configuration, extracted, against the one with nothing skipped."""
    net = weights.from_pretrained(folder / "model")
    assert isinstance(net, AdaptiveNet)
    networks = {letters(skip): extract(net, skip) for skip in net.configurations()}
    return against_the_first(networks, (3, 32, 32), batches=(1, 256), repeats=options.repeats)


def folder_of(name: str, seed: int, options: Options) -> Path:
    """The run folder of a network."""
    return Path(options.runs or f"runs/{options.results}") / f"{name.replace(' ', '-')}-seed{seed}"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
