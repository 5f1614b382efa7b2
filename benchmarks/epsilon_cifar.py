"""ε-ResNet on CIFAR-10, 32 or 110 layers: plain, with a side head, with blocks that discard themselves, and shallower.

    python benchmarks/epsilon_cifar.py --data-dir FOLDER_WITH_CIFAR10
    python benchmarks/epsilon_cifar.py --data-dir FOLDER_WITH_CIFAR10 --n 18   # where a GPU is at hand

The recipe for a short schedule, run as a user would run it, each network in a process of its own; then each network
that lost blocks is compressed; those of the first seed are timed against the plain one, interleaved. Finished runs
below `--runs` are not repeated, so that several processes can do some `--names` or `--seeds` each, and one more collect
them all.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from _results import write
from _runs import data, of_seed, run
from _timing import against_the_first
from resless import costs, weights
from resless.errors import check
from resless.files import read_json

RECIPES = {5: "cifar10_short", 18: "cifar10_n18_short"}
EPSILONS = {5: (3.5, 4.5, 5.5, 6.5, 7.5), 18: (2.0, 2.5, 3.5)}
SHALLOWER = {5: (4, 3, 2), 18: (12, 9, 6)}
"""Blocks in each stage of plain networks that are trained as long."""
PLAIN = {"plain": ["--epsilon", "0", "--side-weight", "0"], "plain, side head": ["--epsilon", "0"]}


@dataclass(frozen=True)
class Options:
    """What to run, and where."""

    data_dir: str | None = None
    """Folder that holds CIFAR-10; None looks it up on the hub."""
    n: Literal[5, 18] = 5
    """Blocks in each of the three stages."""
    names: tuple[str, ...] | None = None
    """Networks to train, `plain`, `plain, side head`, `epsilon NUMBER` or `shallower BLOCKS` (in each stage), the plain
    one first; None takes all."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to train each network with."""
    called: str | None = None
    """Name of the results, as epsilon-cifar-seeds; None takes epsilon-cifar, with n where it is not 5."""
    runs: str | None = None
    """Folder of the runs; None takes runs/ and the name of the results."""
    collect: bool = True
    """Time the networks and write the result file once they are trained."""
    threads: int = 1
    """Threads of the timed networks."""
    repeats: int = 30
    """Turns that each timed network gets."""

    def __post_init__(self) -> None:
        for name in self.networks:
            known = name in PLAIN or re.fullmatch(r"epsilon \d+(\.\d+)?|shallower [1-9]\d*", name)
            check(bool(known), "--names", name, "plain, 'plain, side head', 'epsilon NUMBER' or 'shallower BLOCKS'")
        check(self.seeds[:1] == (0,) or not self.collect, "--seeds", self.seeds, "0 first, or add --no-collect")
        first = self.networks[0]
        check(not self.collect or first == "plain", "the first of --names", first, "plain, or add --no-collect")

    @property
    def results(self) -> str:
        """Name of the results."""
        return self.called or ("epsilon-cifar" if self.n == 5 else f"epsilon-cifar-n{self.n}")

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks."""
        discarding = (f"epsilon {epsilon:g}" for epsilon in EPSILONS[self.n])
        return self.names or (*PLAIN, *discarding, *(f"shallower {blocks}" for blocks in SHALLOWER[self.n]))


def main(options: Options) -> None:
    """Train, then compare, and write one result file."""
    results = {
        f"{name}{of_seed(seed, ', seed ')}": train(name, seed, options)
        for name in options.networks
        for seed in options.seeds
    }
    if options.collect:
        torch.set_num_threads(options.threads)
        write(options.results, {"networks": results, "latency": timed(options)})


def train(name: str, seed: int, options: Options) -> dict[str, Any]:
    """One run of the recipe, and its compression, unless they are there; what came out."""
    folder = folder_of(name, seed, options)
    images = data(options.data_dir)
    arguments = ["--seed", str(seed), *settings(name), *images]
    trained = run("epsilon_resnet.train", RECIPES[options.n], folder, arguments)
    if trained["result"]["discarded"] and not (folder / "compressed").exists():
        # What is discarded but has not decayed in so few epochs goes too: the accuracy is measured before and after.
        command = [sys.executable, "-m", "epsilon_resnet.compress", "--model", str(folder), "--force", "--repeats", "0"]
        subprocess.run([*command, "--dataset", "cifar10", *images], check=True)
    network = weights.from_pretrained(network_of(folder))
    return trained | {
        "blocks": read_json(folder / "blocks.json"),
        "parameters": costs.count_parameters(network),
        "macs": costs.macs(network, torch.zeros(1, 3, 32, 32)),
    }


def settings(name: str) -> list[str]:
    """The arguments by which a network differs from the others."""
    kind, _, number = name.partition(" ")
    if kind == "epsilon":
        return ["--epsilon", number]
    return ["--n", number, *PLAIN["plain"]] if kind == "shallower" else PLAIN[name]


def timed(options: Options) -> list[dict[str, Any]]:
    """Every compressed network of the first seed against the plain one."""
    folders = {name: folder_of(name, options.seeds[0], options) for name in options.networks}
    networks = {name: weights.from_pretrained(network_of(folder)) for name, folder in folders.items()}
    return against_the_first(networks, (3, 32, 32), batches=(1, 256), repeats=options.repeats)


def folder_of(name: str, seed: int, options: Options) -> Path:
    """The run folder of a network."""
    own = f"{name.replace(', ', '-').replace(' ', '-')}{of_seed(seed)}"
    return Path(options.runs or f"runs/{options.results}") / own


def network_of(folder: Path) -> Path:
    """The model folder that a run ends with: compressed, where something was discarded."""
    return folder / "compressed" if (folder / "compressed").exists() else folder / "model"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
