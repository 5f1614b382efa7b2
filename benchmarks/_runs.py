"""Commands of recipes, each in a process of its own and not repeated once it is finished; and what they start from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _results import HERE
from resless.environment import environment
from resless.files import read_json, write_text


def run(module: str, recipe: str, folder: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """One command of a recipe, unless it is finished; what came out, with its settings and environment.

    The run's own records know no commit where the package is not installed from the repository: it is written beside
    the run folder at every start.
    """
    repository = folder.with_name(f"{folder.name}.environment.json")
    starts = read_json(repository) if repository.exists() else []
    starts = starts if isinstance(starts, list) else [starts]  # of an earlier version, which kept the last start only
    if not finished(folder):
        repository.parent.mkdir(parents=True, exist_ok=True)
        starts.append(environment(HERE))
        write_text(repository, json.dumps(starts, indent=1) + "\n")
        common = ["--recipe", recipe, "--run-dir", str(folder), "--resume", "auto"]
        subprocess.run([sys.executable, "-m", module, *common, *arguments], check=True)
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "recipe": recipe,
        "result": read_json(folder / "result.json"),
        "epochs": epochs,
        "seconds": round(sum(epoch["seconds"] for epoch in epochs), 1),
        "settings": read_json(folder / "config.json"),
        "environment": read_json(folder / "env.json")["starts"],
        "repository": starts,
    }


def of_seed(seed: int, before: str = "-seed") -> str:
    """The end of the names of a seed's runs: nothing for seed 0."""
    return f"{before}{seed}" if seed else ""


def finished(folder: Path) -> bool:
    """Whether the run of a folder is."""
    return (folder / "result.json").exists()


def data(folder: str | None) -> list[str]:
    """The arguments that say where the images are."""
    return [] if folder is None else ["--data-dir", folder]


def length(epochs: int | None) -> list[str]:
    """The arguments that say for how many epochs to train; a recipe's milestones stay where they are."""
    return [] if epochs is None else ["--epochs", str(epochs)]


@dataclass(frozen=True)
class Start:
    """Options of benchmarks whose runs start from a trained network."""

    backbone: str | None = None
    """Trained network, a checkpoint file; None trains one first, which takes hours without a GPU."""
    data_dir: str | None = None
    """Folder that holds CIFAR-10; None looks it up on the hub."""
    shortcut: str = "subsample"
    """Shortcut of the network in the checkpoint file."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel that it was trained with."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation, likewise."""

    def network(self, recipe: str, shortcut: str, runs: Path) -> str:
        """Where the trained network is: the checkpoint file, or the model folder of one that is trained here."""
        if self.backbone is not None:
            return self.backbone
        self.trained_here(recipe, shortcut, runs)
        return str(runs / "dense" / "model")

    def trained_here(self, recipe: str, shortcut: str, runs: Path) -> dict[str, Any] | None:
        """What came out of the training of the network, where none is given."""
        if self.backbone is not None:
            return None
        return run("resless.train", recipe, runs / "dense", ["--shortcut", shortcut, *data(self.data_dir)])

    @property
    def statistics(self) -> list[str]:
        """The arguments that say how the checkpoint's images were normalised; a model folder knows that itself."""
        return [] if self.backbone is None else ["--mean", *map(str, self.mean), "--std", *map(str, self.std)]

    @property
    def foreign(self) -> list[str]:
        """The arguments that say all that a checkpoint file does not."""
        return [] if self.backbone is None else ["--shortcut", self.shortcut, *self.statistics]
