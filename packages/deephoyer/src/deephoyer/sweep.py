"""Sweeps: one run a strength, one run a threshold; the accuracy-cost curve on held-out images, and a point of it.

Each point is an ordinary run in a folder of its own, so that an interrupted sweep goes on where it was. The test images
are read for the chosen point alone.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from resless import report
from resless.checkpoint import write_text
from resless.config import RunConfig, as_dict, changed_fields
from resless.errors import InputError
from resless.run import check_folder

from deephoyer.compact import EmptyLayer
from deephoyer.config import PruneConfig, TrainConfig
from deephoyer.prune import Pruned, prune
from deephoyer.train import train

RECORD = "sweep-config.json"


@dataclass(frozen=True)
class Point:
    """One pruned network of a sweep; accuracies are fractions of the held-out images, MACs those of one image."""

    model: str
    sensitivity: float
    top1_before: float
    top1: float
    macs: int
    weights: int
    structure: str


def sweep_strengths(config: TrainConfig) -> list[Path]:
    """Train once for each strength of `--sweep`; returns the model folders, for `deephoyer-prune --sweep`."""
    root = _open(config, f"sweep-{config.model}-{config.regulariser}")
    folders = []
    for strength in config.sweep:
        folder = root / f"strength-{strength:g}"
        if not (folder / "result.json").exists():
            train(replace(config, strength=strength, sweep=(), run=_run_in(config.run, folder)), read_test=False)
        folders.append(folder / "model")
        _record(config, root)
    print(f"next: deephoyer-prune --model {' '.join(map(str, folders))} --sweep ...", flush=True)
    return folders


def sweep_thresholds(config: PruneConfig) -> Pruned:
    """Cut every model folder at every sensitivity of `--sweep`, choose a point on held-out images, and prune there."""
    root = _open(config, f"sweep-{config.rule}")
    points = []
    for number, model in enumerate(config.model):
        for sensitivity in config.sweep:
            point = _measure(config, model, sensitivity, root / f"model-{number}-sensitivity-{sensitivity:g}")
            if point is not None:
                points.append(point)
                _record(config, root)
    best = choose(points, config.max_accuracy_drop, config.target_macs)
    _write(points, best, root)
    final = _single(config, best.model, best.sensitivity, root / "chosen")
    return prune(final)


def choose(points: list[Point], max_accuracy_drop: float | None, target_macs: int | None) -> Point:
    """The cheapest point within the accuracy drop, or the most accurate one within the MACs.

    Raises:
        InputError: no point is within the limit; the nearest is named.
    """
    if not points:
        raise InputError("every point of the sweep would empty a layer: give lower values to --sweep")
    if target_macs is not None:
        within = [point for point in points if point.macs <= target_macs]
        if not within:
            least = min(point.macs for point in points)
            raise InputError(f"no point has at most {target_macs:,} MACs, the least is {least:,}: sweep higher values")
        return max(within, key=lambda point: (point.top1, -point.macs))
    reference = max(point.top1_before for point in points)
    floor = reference - (max_accuracy_drop or 0.0)
    within = [point for point in points if point.top1 >= floor]
    if not within:
        drop = reference - max(point.top1 for point in points)
        raise InputError(f"no point loses at most {max_accuracy_drop}, the least is {drop:.4f}: sweep lower values")
    return min(within, key=lambda point: (point.macs, point.weights))


def _measure(config: PruneConfig, model: str, sensitivity: float, folder: Path) -> Point | None:
    """The point's measurements, read from its run folder if it is done; None if the cut would empty a layer."""
    if not (folder / "result.json").exists():
        point = _single(config, model, sensitivity, folder)
        point = replace(point, optim=replace(point.optim, epochs=config.sweep_epochs))
        try:
            prune(point, read_test=False)
        except EmptyLayer as error:
            print(f"{model} at {sensitivity:g}: {error}", flush=True)
            return None
    found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return Point(
        model=model,
        sensitivity=sensitivity,
        top1_before=found["held_out_top1_before"],
        top1=found["held_out_top1_tuned"],
        macs=found["macs"],
        weights=found["weights"],
        structure=found["structure"],
    )


def _write(points: list[Point], best: Point, root: Path) -> None:
    """`sweep.json`, the table and the picture; the chosen point is marked."""
    record = {"points": [asdict(point) for point in points], "chosen": asdict(best)}
    write_text(root / "sweep.json", json.dumps(record, indent=1) + "\n")
    rows = [
        [
            f"{point.model} @ {point.sensitivity:g}" + (" <- chosen" if point == best else ""),
            f"{100 * point.top1:.2f}",
            f"{point.weights:,}",
            f"{point.macs:,}",
            point.structure,
        ]
        for point in points
    ]
    report.table("held-out images", ["model @ sensitivity", "top-1 %", "weights", "MACs", "structure"], rows)
    drawing, axes = report.figure()
    for model in dict.fromkeys(point.model for point in points):
        line = [(point.macs, 100 * point.top1) for point in points if point.model == model]
        axes.plot(*zip(*line, strict=True), marker="o", label=model)
    axes.plot(best.macs, 100 * best.top1, marker="*", markersize=16, linestyle="", color="black", label="chosen")
    axes.set(xscale="log", xlabel="MACs an image", ylabel="top-1 % on held-out images")
    axes.legend(frameon=False, fontsize=7)
    report.save(drawing, root / "sweep.png")


def _single(config: PruneConfig, model: str, sensitivity: float, folder: Path) -> PruneConfig:
    """The configuration of one point."""
    return replace(
        config,
        model=(model,),
        sensitivity=sensitivity,
        sweep=(),
        max_accuracy_drop=None,
        target_macs=None,
        target_weights=None,
        run=_run_in(config.run, folder),
    )


def _run_in(run: RunConfig, folder: Path) -> RunConfig:
    return replace(run, run_dir=str(folder), resume="auto", overwrite=False)


def _open(config: TrainConfig | PruneConfig, label: str) -> Path:
    """The sweep's folder, if it may be used: a new one, one to be replaced, or one of the same sweep to go on with."""
    run, root = config.run, Path(config.run.run_dir or Path("runs") / label)
    record = root / RECORD
    if not record.exists():
        if not run.resume:  # else it was killed during its first run, which resumes by itself
            check_folder(root, run)
    elif run.overwrite:
        shutil.rmtree(root)
    elif not run.resume:
        raise InputError(f"{root} holds a sweep: go on with --resume auto, replace it with --overwrite, or --run-dir")
    else:
        for name, (old, new) in changed_fields(json.loads(record.read_text(encoding="utf-8")), as_dict(config)).items():
            raise InputError(f"{root} holds a sweep with {name} = {old!r}, now {new!r}: give the same, or --run-dir")
    return root


def _record(config: TrainConfig | PruneConfig, root: Path) -> None:
    """Write down the sweep's configuration, once a run has proved that it works."""
    write_text(root / RECORD, json.dumps(as_dict(config), indent=1) + "\n")
