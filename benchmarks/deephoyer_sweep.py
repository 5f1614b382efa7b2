"""The accuracy-cost curve of Group-HS on LeNet-300-100: strengths times thresholds, judged on held-out images.

    python benchmarks/deephoyer_sweep.py --data-dir FOLDER_WITH_MNIST

It is what `deephoyer-train --sweep` and `deephoyer-prune --sweep` do, with the settings of the recipe
`lenet-300-100-structural`, 10,000 images held out and 5 epochs of fine-tuning a point. One seed; the test images are
read for the chosen point alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from _results import write
from deephoyer import recipes
from deephoyer.prune import metrics
from deephoyer.sweep import sweep_strengths, sweep_thresholds
from resless.config import as_dict
from resless.files import read_json

RECIPE = "lenet-300-100-structural"
HELD_OUT = 1 / 6  # 10,000 of the 60,000 training images


@dataclass(frozen=True)
class Options:
    """What to sweep, and where."""

    data_dir: str | None = None
    """Folder that holds MNIST; None looks it up on the hub."""
    strengths: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    """Strengths to train with."""
    sensitivities: tuple[float, ...] = (0.03, 0.05, 0.08, 0.12, 0.2)
    """Group norms to cut at."""
    sweep_epochs: int = 5
    """Epochs of fine-tuning before a point is judged."""
    target_macs: int = 16_500
    """The point that is chosen has at most so many MACs an image."""
    runs: str = "runs/deephoyer-sweep"
    """Folder of the runs."""


def main(options: Options) -> None:
    """Sweep, and write one result file."""
    root = Path(options.runs)
    training, pruning = recipes.TRAIN[RECIPE], recipes.PRUNE[RECIPE]
    data = replace(training.data, data_dir=options.data_dir, holdout=HELD_OUT)
    run = replace(training.run, resume="auto")
    training = replace(training, sweep=options.strengths, data=data, run=replace(run, run_dir=str(root / "strengths")))
    folders = sweep_strengths(training)
    pruning = replace(
        pruning,
        model=tuple(map(str, folders)),
        sweep=options.sensitivities,
        sweep_epochs=options.sweep_epochs,
        target_macs=options.target_macs,
        data=data,
        run=replace(run, run_dir=str(root / "points")),
    )
    chosen = metrics(sweep_thresholds(pruning))
    points = read_json(root / "points" / "sweep.json", list)
    for point in points:  # the folder is of this machine; what counts is the strength
        point["strength"] = float(Path(point.pop("model")).parent.name.removeprefix("strength-"))
    settings = {"train": as_dict(training), "prune": as_dict(pruning)}
    write("deephoyer-sweep", {"points": points, "chosen": chosen, "settings": settings})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
