"""ε-ResNet with n = 5 (32 layers) on CIFAR-10: plain, with a side head, and with blocks that discard themselves.

    python benchmarks/epsilon_cifar.py --data-dir FOLDER_WITH_CIFAR10

The recipe `cifar10_short`, run as a user would run it, each network in a process of its own; then each network that
lost blocks is compressed, and timed against the plain one, interleaved. Finished runs below `--runs` are not repeated,
so that several processes can do some `--names` each, and one more collect them all.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from _results import write
from _runs import data, read_json, run
from _timing import against_the_first
from resless import costs, weights

RECIPE = "cifar10_short"
EPSILONS = (4.5, 5.5, 6.5)
RUNS = {
    "plain": ["--epsilon", "0", "--side-weight", "0"],
    "plain, side head": ["--epsilon", "0"],
    **{f"epsilon {epsilon:g}": ["--epsilon", str(epsilon)] for epsilon in EPSILONS},
}


@dataclass(frozen=True)
class Options:
    """What to run, and where."""

    data_dir: str | None = None
    """Folder that holds CIFAR-10; None looks it up on the hub."""
    names: tuple[str, ...] = tuple(RUNS)
    """Networks to train."""
    runs: str = "runs/epsilon-cifar"
    """Folder of the runs."""
    collect: bool = True
    """Time the networks and write the result file once they are trained."""
    threads: int = 1
    """Threads of the timed networks."""
    repeats: int = 30
    """Turns that each timed network gets."""


def main(options: Options) -> None:
    """Train, then compare, and write one result file."""
    results = {name: train(name, options) for name in options.names}
    if options.collect:
        torch.set_num_threads(options.threads)
        write("epsilon-cifar", {"networks": results, "latency": timed(options)})


def train(name: str, options: Options) -> dict[str, Any]:
    """One run of the recipe, and its compression, unless they are there; what came out."""
    folder = folder_of(name, options)
    images = data(options.data_dir)
    trained = run("epsilon_resnet.train", RECIPE, folder, [*RUNS[name], *images])
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


def timed(options: Options) -> list[dict[str, Any]]:
    """Every compressed network against the plain one."""
    networks = {name: weights.from_pretrained(network_of(folder_of(name, options))) for name in options.names}
    return against_the_first(networks, (3, 32, 32), batches=(1, 256), repeats=options.repeats)


def folder_of(name: str, options: Options) -> Path:
    """The run folder of a network."""
    return Path(options.runs) / name.replace(", ", "-").replace(" ", "-")


def network_of(folder: Path) -> Path:
    """The model folder that a run ends with: compressed, where something was discarded."""
    return folder / "compressed" if (folder / "compressed").exists() else folder / "model"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
