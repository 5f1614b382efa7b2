"""BlockDrop with a ResNet-32 on CIFAR-10: one curriculum, then joint fine-tuning at several penalties.

    python benchmarks/blockdrop_cifar.py --data-dir FOLDER_WITH_CIFAR10 --backbone resnet32-d509ac18.th

The recipes R32_C10_short and R32_C10_short_again, run as a user would run them, each stage in a process of its own;
finished runs below `--runs` are not repeated, so that several processes can do some `--penalties` each, and one more
collect them.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from _results import FOLDER, write
from _runs import Start, data, run

CURRICULUM = FINETUNE = "R32_C10_short"
AGAIN = "R32_C10_short_again"


@dataclass(frozen=True)
class Options(Start):
    """What to run, and where; the trained network is a ResNet-32."""

    penalties: tuple[float, ...] = (-1.0, -2.0)
    """Rewards of a wrong prediction while fine-tuning, one run each."""
    again: tuple[float, ...] = (-1.5, -4.0)
    """Rewards of a wrong prediction in a second fine-tuning of the first penalty's network, one run each."""
    pictures: str = "penalty-1"
    """Run whose policies are drawn."""
    runs: str = "runs/blockdrop-cifar"
    """Folder of the runs."""


def main(options: Options) -> None:
    """Run both stages, then write one result file."""
    curriculum = Path(options.runs) / "curriculum"
    backbone = ["--backbone", options.network("resnet32", "avgpool", curriculum.parent), *options.foreign]
    first = run("blockdrop.train", CURRICULUM, curriculum, [*data(options.data_dir), *backbone])
    runs = [curriculum.with_name(f"penalty{penalty:g}") for penalty in options.penalties]
    finetuned = [finetune(FINETUNE, curriculum, *stage, options) for stage in zip(runs, options.penalties, strict=True)]
    for penalty in options.again:
        folder = curriculum.with_name(f"{runs[0].name}-again{penalty:g}")
        twice = finetune(AGAIN, runs[0], folder, penalty, options)
        finetuned.append(twice | {"first_penalty": options.penalties[0]})
    write("blockdrop-cifar", {"curriculum": first, "finetuned": finetuned})
    pictures = ["--run-dir", str(Path(options.runs) / options.pictures), "--output", str(FOLDER / "blockdrop-policies")]
    subprocess.run([sys.executable, "-m", "blockdrop.plot", *pictures], check=True)


def finetune(recipe: str, start: Path, folder: Path, penalty: float, options: Options) -> dict[str, Any]:
    """Fine-tune the network of the run `start`."""
    source = ["--pretrained", str(start / "model"), "--penalty", str(penalty)]
    return run("blockdrop.finetune", recipe, folder, [*data(options.data_dir), *source])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
