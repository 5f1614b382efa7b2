"""Methods on top of each other, by model folders alone, each against the same methods by themselves.

    python benchmarks/composition.py

BlockDrop on a network that DeepHoyer made smaller, and DeepHoyer on the shallowest configuration of an adaptive one,
with the commands of `compare.py` and by default on the embedded digits at the size of CIFAR's images, so that the
networks cost what they cost there. Finished steps below `--runs` are not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import compare
import tyro
from _results import write
from compare import Step, adn, blockdrop, claim, deephoyer, measure, run, take
from resless import cli
from resless.files import read_json


@dataclass(frozen=True)
class Comparison(compare.Options):
    """The demo's options, of one seed."""

    seed: tyro.conf.Suppress[int] = 0
    """Filled in from `Options.seeds`."""


@dataclass(frozen=True)
class Options:
    """What is combined, on what."""

    comparison: Comparison = field(
        default_factory=lambda: Comparison(image_size=32, pad=2, channels_last=True, runs="runs/composition")
    )
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of all trainings; each has a folder of its own."""
    collect: bool = True
    """Time the networks and write the result file once all are trained."""


def main(options: Options) -> None:
    """Train what is not there, then measure, and write one result file."""
    runs = [of_seed(seed, options.comparison) for seed in options.seeds]
    for one in runs:
        claim(one)
        take(steps(one), one.root)
    if options.collect:
        found = [{"seed": one.seed, **measured(one)} for one in runs]
        kept_out = ("seed", "runs", "data_dir")
        settings = {name: value for name, value in vars(options.comparison).items() if name not in kept_out}
        write("composition", {"settings": settings, "runs": found})


def of_seed(seed: int, comparison: Comparison) -> Comparison:
    """The options of one seed."""
    return replace(comparison, seed=seed, runs=str(Path(comparison.runs) / f"seed{seed}"))


def steps(options: Comparison) -> Iterator[Step]:
    """Everything that makes the networks, in order."""
    yield run(options, "dense", "resless-train", "--recipe", "smoke_resnet", "--model", options.model)
    yield from deephoyer("dense/model", "small", options)
    yield from blockdrop("dense/model", "blockdrop", options)
    yield from blockdrop("small", "small-blockdrop", options)
    yield from adn(options)
    yield from deephoyer("adn-base", "base-small", options)


def networks(options: Comparison) -> dict[str, Path]:
    """What is compared: name -> model folder."""
    root = options.root
    return {
        f"dense {options.model}": root / "dense" / "model",
        "DeepHoyer": root / "small",
        "BlockDrop": root / "blockdrop" / "model",
        "BlockDrop on DeepHoyer": root / "small-blockdrop" / "model",
        "ADN, everything skipped": root / "adn-base",
        "DeepHoyer on ADN, everything skipped": root / "base-small",
    }


def measured(options: Comparison) -> dict[str, Any]:
    """What `resless-compare` found, and where and from which commit the networks were trained."""
    take([measure(networks, options)], options.root)
    found, training = read_json(options.root / "comparison.json"), read_json(options.root / "dense" / "env.json")
    return {"networks": found["networks"], "environment": found["environment"], "training": training["starts"]}


if __name__ == "__main__":
    cli.main(lambda: main(tyro.cli(Options, description=__doc__)))
