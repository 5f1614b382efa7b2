"""BlockDrop with a ResNet-32 on CIFAR-10: one curriculum, then joint fine-tuning at several penalties.

    python benchmarks/blockdrop_cifar.py --data-dir FOLDER_WITH_CIFAR10 --backbone resnet32-d509ac18.th

The recipes R32_C10_short and R32_C10_short_again, run as a user would run them, each stage in a process of its own;
finished runs below `--runs` are not repeated, so that several processes can do some `--penalties` each, and one more
collect them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from _results import FOLDER, write
from resless.environment import environment

CURRICULUM = FINETUNE = "R32_C10_short"
AGAIN = "R32_C10_short_again"


@dataclass(frozen=True)
class Options:
    """What to run, and where."""

    backbone: str | None = None
    """Trained ResNet-32, a checkpoint file; None trains one first, which takes hours."""
    data_dir: str | None = None
    """Folder that holds CIFAR-10; None looks it up on the hub."""
    shortcut: str = "subsample"
    """Shortcut of the network in the checkpoint file."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel that it was trained with."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation, likewise."""
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
    first = run("blockdrop.train", CURRICULUM, curriculum, options, backbone(options))
    runs = [curriculum.with_name(f"penalty{penalty:g}") for penalty in options.penalties]
    finetuned = [finetune(FINETUNE, curriculum, *stage, options) for stage in zip(runs, options.penalties, strict=True)]
    for penalty in options.again:
        folder = curriculum.with_name(f"{runs[0].name}-again{penalty:g}")
        twice = finetune(AGAIN, runs[0], folder, penalty, options)
        finetuned.append(twice | {"first_penalty": options.penalties[0]})
    write("blockdrop-cifar", {"curriculum": first, "finetuned": finetuned})
    pictures = ["--run-dir", str(Path(options.runs) / options.pictures), "--output", str(FOLDER / "blockdrop-policies")]
    subprocess.run([sys.executable, "-m", "blockdrop.plot", *pictures], check=True)


def backbone(options: Options) -> list[str]:
    """The arguments that name the trained network, which is trained here where there is none."""
    if options.backbone is None:
        dense = Path(options.runs) / "dense"
        run("resless.train", "resnet32", dense, options, ["--shortcut", "avgpool"])
        return ["--backbone", str(dense / "model")]
    statistics = ["--mean", *map(str, options.mean), "--std", *map(str, options.std)]
    return ["--backbone", options.backbone, "--shortcut", options.shortcut, *statistics]


def finetune(recipe: str, start: Path, folder: Path, penalty: float, options: Options) -> dict[str, Any]:
    """Fine-tune the network of the run `start`."""
    source = ["--pretrained", str(start / "model"), "--penalty", str(penalty)]
    return run("blockdrop.finetune", recipe, folder, options, source)


def run(module: str, recipe: str, folder: Path, options: Options, arguments: list[str]) -> dict[str, Any]:
    """One command of a recipe, unless it is finished; what came out, with its settings and environment.

    The run's own records know no commit where the package is not installed from the repository: it is written beside
    the run folder at every start.
    """
    repository = folder.with_name(f"{folder.name}.environment.json")
    starts = read(repository) if repository.exists() else []
    if not (folder / "result.json").exists():
        repository.parent.mkdir(parents=True, exist_ok=True)
        starts.append(environment(FOLDER))
        repository.write_text(json.dumps(starts, indent=1) + "\n", encoding="utf-8")
        data = [] if options.data_dir is None else ["--data-dir", options.data_dir]
        common = ["--recipe", recipe, "--run-dir", str(folder), "--resume", "auto"]
        subprocess.run([sys.executable, "-m", module, *common, *data, *arguments], check=True)
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "recipe": recipe,
        "result": read(folder / "result.json"),
        "epochs": epochs,
        "seconds": round(sum(epoch["seconds"] for epoch in epochs), 1),
        "settings": read(folder / "config.json"),
        "environment": read(folder / "env.json")["starts"],
        "repository": starts,
    }


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
