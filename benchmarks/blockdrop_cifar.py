"""BlockDrop with a ResNet-32 or 110 on CIFAR-10: one curriculum, then joint fine-tuning at several penalties.

    python benchmarks/blockdrop_cifar.py --data-dir FOLDER_WITH_CIFAR10 --backbone resnet32-d509ac18.th
    python benchmarks/blockdrop_cifar.py --data-dir FOLDER_WITH_CIFAR10 --model R110_C10   # where a GPU is at hand

The model's recipes that end in _short and _short_again, run as a user would run them, each stage in a process of its
own; finished runs below `--runs` are not repeated, so that several processes can do some `--penalties` or `--seeds`
each, and one more collect them.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from _results import FOLDER, write
from _runs import Start, data, length, of_seed, run
from resless.errors import check

DENSE = {"R32_C10": "resnet32", "R110_C10": "resnet110_short"}
"""Recipes of the trained networks, where none is given."""


@dataclass(frozen=True)
class Options(Start):
    """What to run, and where; the trained network is that of the model."""

    model: Literal["R32_C10", "R110_C10"] = "R32_C10"
    """Residual network."""
    epochs: tuple[int, int, int] | None = None
    """Epochs of the curriculum, of fine-tuning and of the second fine-tuning; None leaves the recipes'."""
    penalties: tuple[float, ...] = (-1.0, -2.0)
    """Rewards of a wrong prediction while fine-tuning, one run each."""
    again: tuple[float, ...] = (-1.5, -4.0)
    """Rewards of a wrong prediction in a second fine-tuning of the first penalty's network, one run each."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to go through all stages with."""
    called: str | None = None
    """Name of the results, as blockdrop-cifar-seeds; None takes blockdrop-cifar and, but for R32_C10, the model."""
    pictures: str | None = "penalty-1"
    """Run whose policies are drawn; None draws none."""
    runs: str | None = None
    """Folder of the runs; None takes runs/ and the name of the results."""
    collect: bool = True
    """Write the result file, once all is trained."""

    def __post_init__(self) -> None:
        check(self.seeds[:1] == (0,) or not self.collect, "--seeds", self.seeds, "0 first, or add --no-collect")

    @property
    def results(self) -> str:
        """Name of the results."""
        return self.called or ("blockdrop-cifar" if self.model == "R32_C10" else "blockdrop-cifar-r110")

    @property
    def root(self) -> Path:
        """Folder of the runs."""
        return Path(self.runs or f"runs/{self.results}")

    def length(self, stage: int) -> list[str]:
        """The arguments that say for how long a stage trains."""
        return length(None if self.epochs is None else self.epochs[stage])


def main(options: Options) -> None:
    """Run all stages, then write one result file."""
    curricula, finetuned = [], []
    for seed in options.seeds:
        curriculum, found = trained(seed, options)
        curricula.append(curriculum)
        finetuned += found
    if not options.collect:
        return
    dense = options.trained_here(DENSE[options.model], "avgpool", options.root)
    stages = {"curriculum": curricula[0], "curricula_of_other_seeds": curricula[1:], "finetuned": finetuned}
    write(options.results, {"dense": dense, **stages})
    if options.pictures is None:
        return
    folder = FOLDER / options.results.replace("cifar", "policies")
    pictures = ["--run-dir", str(options.root / options.pictures), "--output", str(folder), *data(options.data_dir)]
    subprocess.run([sys.executable, "-m", "blockdrop.plot", *pictures], check=True)


def trained(seed: int, options: Options) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The curriculum with a seed, and what was fine-tuned from it: once for each penalty, then twice."""
    end = of_seed(seed)
    curriculum = options.root / f"curriculum{end}"
    backbone = ["--backbone", options.network(DENSE[options.model], "avgpool", options.root), *options.foreign]
    arguments = ["--seed", str(seed), *data(options.data_dir), *backbone, *options.length(0)]
    first = run("blockdrop.train", f"{options.model}_short", curriculum, arguments)
    runs = [curriculum.with_name(f"penalty{penalty:g}{end}") for penalty in options.penalties]
    stages = zip(runs, options.penalties, strict=True)
    finetuned = [finetune(1, curriculum, *stage, seed, options) for stage in stages]
    for penalty in options.again:
        folder = curriculum.with_name(f"penalty{options.penalties[0]:g}-again{penalty:g}{end}")
        twice = finetune(2, runs[0], folder, penalty, seed, options)
        finetuned.append(twice | {"first_penalty": options.penalties[0]})
    return first, finetuned


def finetune(stage: int, start: Path, folder: Path, penalty: float, seed: int, options: Options) -> dict[str, Any]:
    """Fine-tune the network of the run `start`, for the first or the second time."""
    recipe = f"{options.model}_short{'_again' if stage == 2 else ''}"
    source = ["--pretrained", str(start / "model"), "--penalty", str(penalty), *options.length(stage)]
    return run("blockdrop.finetune", recipe, folder, ["--seed", str(seed), *data(options.data_dir), *source])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
