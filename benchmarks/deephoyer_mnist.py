"""DeepHoyer on MNIST: the four rows of the paper's Tables 1 to 4, three seeds each, with what was really measured.

    python benchmarks/deephoyer_mnist.py --data-dir FOLDER_WITH_MNIST

Each row is a recipe of `deephoyer-train` and `deephoyer-prune`, run as a user would run it; finished runs below
`--runs` are not repeated, so that several processes can do some `--rows` each, and one more collect them. It times
every compacted network against the dense one, interleaved.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from _results import peak_rss_mib, write
from deephoyer import recipes
from deephoyer.compact import compact
from deephoyer.prune import prune
from deephoyer.train import train
from resless import latency, models, weights
from resless.config import as_dict, changed_fields, flatten
from resless.environment import environment

ROWS = ("lenet-300-100-element", "lenet5-element", "lenet-300-100-structural", "lenet5-structural")


@dataclass(frozen=True)
class Options:
    """Which rows to measure, and where."""

    data_dir: str | None = None
    """Folder that holds MNIST; None looks it up on the hub."""
    rows: tuple[str, ...] = ROWS
    """Recipes to run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each row."""
    runs: str = "runs/deephoyer-mnist"
    """Folder of the runs."""


def main(options: Options) -> None:
    """Run every row and seed, then write one result file."""
    results = [measure(row, seed, options) for row in options.rows for seed in options.seeds]
    for result in results:
        result["latency"] = time_compacted(run_folder(result["recipe"], result["seed"], options) / "prune" / "model")
    write("deephoyer-mnist", {"results": results})


def measure(row: str, seed: int, options: Options) -> dict[str, Any]:
    """Train, prune and fine-tune one network; what came out."""
    root = run_folder(row, seed, options)
    record, folder = root / "record.json", root / "train" / "model"
    train_config = in_folder(recipes.TRAIN[row], root / "train", seed, options)
    prune_config = in_folder(replace(recipes.PRUNE[row], model=(str(folder),)), root / "prune", seed, options)
    settings = {"train": as_dict(train_config), "prune": as_dict(prune_config)}
    if record.exists():
        return same_settings(json.loads(record.read_text()), settings)
    started = time.perf_counter()
    if not (root / "train" / "result.json").exists():
        train(train_config)
    pruned = prune(prune_config)
    result = {
        "recipe": row,
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
        "test_top1": {stage: found.top1 for stage, found in pruned.test.items()},
        **pruned.left.as_dict(),
        "sensitivity": pruned.sensitivity,
        "settings": settings,
        "environment": environment(Path(__file__).parent, "cpu"),
        "peak_rss_mib": peak_rss_mib(),
    }
    record.write_text(json.dumps(result, indent=1))
    return result


def same_settings(result: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """An earlier result, if it was measured with the recipe of today; options that came later are left aside."""
    known = flatten(result["settings"]).keys()
    changes = {name: pair for name, pair in changed_fields(result["settings"], settings).items() if name in known}
    if changes:
        raise SystemExit(f"{result['recipe']}, seed {result['seed']}, was measured with other settings: {changes}")
    return result


def run_folder(row: str, seed: int, options: Options) -> Path:
    """Where the runs of one row and seed are."""
    return Path(options.runs) / row / f"seed-{seed}"


def in_folder(config: Any, folder: Path, seed: int, options: Options) -> Any:
    """The configuration with this run's folder, seed and data; an interrupted run is taken up again."""
    run = replace(config.run, run_dir=str(folder), seed=seed, resume="auto")
    return replace(config, run=run, data=replace(config.data, data_dir=options.data_dir))


def time_compacted(folder: Path) -> list[dict[str, Any]]:
    """Latency of the dense and the compacted network at batch 1 and 256, and the ratio of their MACs."""
    model = weights.from_pretrained(folder)
    small = compact(model, torch.zeros(1, 1, 28, 28))
    dense = models.create(model.spec.name, in_channels=1).eval()
    timings = []
    for batch in (1, 256):
        images = torch.rand(batch, 1, 28, 28)
        found = latency.compare({"dense": dense, "compacted": small}, images)
        faster = latency.speedup(found["dense"], found["compacted"])
        timings.append(
            {
                "batch_size": batch,
                "dense_ms": found["dense"].median_ms,
                "compacted_ms": found["compacted"].median_ms,
                "speedup": faster.median,
                "speedup_q25": faster.q25,
                "speedup_q75": faster.q75,
                "threads": torch.get_num_threads(),
            }
        )
    return timings


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
