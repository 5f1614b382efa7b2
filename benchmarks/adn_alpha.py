"""Which α suits ADN on CIFAR-10: both ends of an adaptive ResNet-20 on held-out images, beside both trained alone.

    python benchmarks/adn_alpha.py --data-dir FOLDER_WITH_CIFAR10

The recipe `resnet20_short` on nine tenths of the training images, run as a user would run it, each network in a process
of its own. Every run reads the test images at its end, as all do; what is compared here is the accuracy on the held-out
tenth. Finished runs below `--runs` are not repeated, so that several processes can do some `--names` each, and one more
collect them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from _results import write
from _runs import data, length, run
from resless.errors import check

RECIPE = "resnet20_short"
HELD_OUT = 0.1
ALONE = {"super-net alone": ["--alone", "super"], "base-net alone": ["--alone", "base"]}


@dataclass(frozen=True)
class Options:
    """What to run, and where."""

    data_dir: str | None = None
    """Folder that holds CIFAR-10; None looks it up on the hub."""
    names: tuple[str, ...] = ("alpha 0.5", "alpha 0.85", *ALONE)
    """Networks to train: `alpha NUMBER`, `super-net alone`, `base-net alone`."""
    seed: int = 0
    """Of all runs; it draws the images that are held out."""
    epochs: int | None = None
    """Epochs of each; None leaves the recipe's."""
    runs: str = "runs/adn-alpha"
    """Folder of the runs."""
    collect: bool = True
    """Write the result file once everything is trained."""

    def __post_init__(self) -> None:
        for name in self.names:
            known = name in ALONE or re.fullmatch(r"alpha \d+(\.\d+)?", name)
            check(bool(known), "--names", name, f"'alpha NUMBER', {' or '.join(map(repr, ALONE))}")


def main(options: Options) -> None:
    """Train, then write one result file."""
    runs = [{"network": name, "seed": options.seed} | train(name, options) for name in options.names]
    if options.collect:
        write("adn-alpha", {"runs": runs})


def train(name: str, options: Options) -> dict[str, Any]:
    """One run of the recipe, unless it is there; what came out."""
    own = ALONE[name] if name in ALONE else ["--alpha", name.partition(" ")[2]]
    arguments = ["--seed", str(options.seed), "--holdout", str(HELD_OUT), *own, *length(options.epochs)]
    return run("adn.train", RECIPE, Path(options.runs) / name.replace(" ", "-"), [*arguments, *data(options.data_dir)])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
