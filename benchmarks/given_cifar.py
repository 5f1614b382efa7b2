"""Trained CIFAR ResNets of several depths: what is lost, and saved, by taking a shallower one instead.

    python benchmarks/given_cifar.py --data-dir FOLDER_WITH_CIFAR10 \\
        --checkpoints resnet20-12fca82f.th resnet32-d509ac18.th resnet56-4bfd9763.th

The baseline of every method that starts from one of them: a network of fewer layers, trained as long, by the same
people, in the same way. Each is evaluated on the test images, and timed against each deeper one, interleaved.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from _results import write
from _runs import Start, data
from _timing import against_the_first
from resless import costs, models, weights
from resless.errors import check
from resless.files import read_json
from torch import nn

IMAGE = (3, 32, 32)


@dataclass(frozen=True)
class Options(Start):
    """Which networks, and how they were trained."""

    checkpoints: tuple[str, ...] = ()
    """Checkpoint files, whose names begin with the network's, as in resnet20.th or resnet20-12fca82f.th."""
    threads: int = 1
    """Threads of the timed networks."""
    repeats: int = 15
    """Turns that each timed network gets."""

    def __post_init__(self) -> None:
        check(len(self.checkpoints) > 1, "--checkpoints", list(self.checkpoints), "two or more files")
        check(self.backbone is None, "--backbone", self.backbone, "left out: give --checkpoints")

    @property
    def files(self) -> dict[str, str]:
        """Name of each network -> its checkpoint."""
        return {Path(file).stem.partition("-")[0]: file for file in self.checkpoints}


def main(options: Options) -> None:
    """Evaluate, then time, and write one result file."""
    torch.set_num_threads(options.threads)
    networks = {name: loaded(name, file, options) for name, file in options.files.items()}
    found = {name: evaluated(name, options) | size(network) for name, network in networks.items()}
    deepest_first = sorted(networks, key=lambda name: -found[name]["macs"])
    latency = {deep: timed(networks, deepest_first[number:], options) for number, deep in enumerate(deepest_first[:-1])}
    write("given-cifar", {"networks": found, "latency": latency})


def loaded(name: str, file: str, options: Options) -> nn.Module:
    """A network with the weights of its checkpoint."""
    network = models.create(name, shortcut=options.shortcut)
    weights.load(network, file)
    return network.eval()


def evaluated(name: str, options: Options) -> dict[str, Any]:
    """Accuracy on the test images, as the command says."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        given = ["--model", name, "--weights", options.files[name], "--shortcut", options.shortcut]
        given += ["--mean", *map(str, options.mean), "--std", *map(str, options.std), "--output", str(output)]
        images = ["--dataset", "cifar10", *data(options.data_dir)]
        subprocess.run([sys.executable, "-m", "resless.evaluate", *given, *images], check=True)
        return {"checkpoint": Path(options.files[name]).name, "result": read_json(output)}


def size(network: nn.Module) -> dict[str, int]:
    """Parameters and MACs."""
    return {"parameters": costs.count_parameters(network), "macs": costs.macs(network, torch.zeros(1, *IMAGE))}


def timed(networks: dict[str, nn.Module], names: list[str], options: Options) -> list[dict[str, Any]]:
    """The first of these networks, and the others against it."""
    compared = {name: networks[name] for name in names}
    return against_the_first(compared, IMAGE, batches=(1, 256), repeats=options.repeats)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
