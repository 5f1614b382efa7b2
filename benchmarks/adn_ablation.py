"""What ADN's two parts are worth, a ResNet-20 on CIFAR-10: without distillation, without second norms.

    python benchmarks/adn_ablation.py --data-dir FOLDER_WITH_CIFAR10 --epochs 5

The recipe `resnet20_short`, run as a user would run it, each network in a process of its own. Finished runs below
`--runs` are not repeated, so that several processes can do some `--names` or `--seeds` each, and one more collect them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from _results import write
from _runs import data, finished, run

RECIPE = "resnet20_short"
RUNS = {"adaptive": [], "no distillation": ["--no-distill"], "no second norms": ["--no-second-norms"]}


@dataclass(frozen=True)
class Options:
    """What to run, and where."""

    data_dir: str | None = None
    """Folder that holds CIFAR-10; None looks it up on the hub."""
    names: tuple[str, ...] = tuple(RUNS)
    """Networks to train."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to train each with."""
    epochs: int | None = None
    """Epochs of each; None leaves the recipe's."""
    runs: str = "runs/adn-ablation"
    """Folder of the runs."""
    train: bool = True
    """Train what is not finished; without it, only what is finished is collected."""
    collect: bool = True
    """Write the result file once everything is trained."""


def main(options: Options) -> None:
    """Train, then write one result file."""
    epochs = [] if options.epochs is None else ["--epochs", str(options.epochs)]
    runs = []
    for seed in options.seeds:
        for name in options.names:
            folder = Path(options.runs) / f"{name.replace(' ', '-')}-seed{seed}"
            if options.train or finished(folder):
                arguments = ["--seed", str(seed), *RUNS[name], *epochs, *data(options.data_dir)]
                runs.append({"network": name, "seed": seed} | run("adn.train", RECIPE, folder, arguments))
    if options.collect:
        write("adn-ablation", {"runs": runs})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
