"""Sweeps: one run a strength, one run a threshold; the accuracy-cost curve on held-out images, and a point of it.

Each point is an ordinary run in a folder of its own, so that an interrupted sweep goes on where it was. The test images
are read for the chosen point alone.
"""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accelerate import Accelerator
from resless import report
from resless.config import RunConfig, as_dict, changed_fields, source_options
from resless.errors import InputError
from resless.files import read_json, write_text
from resless.run import accelerator, check_folder

from deephoyer.config import PruneConfig, TrainConfig
from deephoyer.plan import EmptyLayer
from deephoyer.prune import Pruned, prune
from deephoyer.train import rule_of, train

RECORD = "sweep-config.json"
FREE_IN_A_SWEEP = frozenset({"sweep", "max_accuracy_drop", "target_macs"})  # what a measured point does not depend on


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
    processes = accelerator(config.run.mixed_precision)
    root = _open(config, f"sweep-{config.model}-{config.regulariser}", processes)
    folders = []
    for strength in config.sweep:
        folder = root / f"strength-{strength:g}"
        if not (folder / "result.json").exists():
            train(replace(config, strength=strength, sweep=(), run=_run_in(config.run, folder)), read_test=False)
        folders.append(folder / "model")
        _record(config, root, processes)
    models = shlex.join(str(folder) for folder in folders)
    given = f"--model {models} {source_options(config.data)} --holdout {config.data.holdout:g}"
    cuts = f"{rule_of(config)} --sweep 0.25 0.5 0.75 1 --max-accuracy-drop 0.01"
    processes.print(f"next: deephoyer-prune {given} {cuts}", flush=True)
    return folders


def sweep_thresholds(config: PruneConfig) -> Pruned:
    """Cut every model folder at every sensitivity of `--sweep`, choose a point on held-out images, and prune there.

    Raises:
        InputError: no point meets `--max-accuracy-drop` or `--target-macs`; the measured curve is kept, and `--resume
            auto` goes on with other limits or further sensitivities.
    """
    processes = accelerator(config.run.mixed_precision)
    root = _open(config, f"sweep-{config.rule}", processes)
    points = []
    for model in config.model:
        for sensitivity in config.sweep:
            folder = root / _label(config, model, sensitivity)
            point = _measure(config, model, sensitivity, folder, processes)
            if point is not None:
                points.append(point)
                _record(config, root, processes)
    if processes.is_main_process and points:
        _write(points, root)
    best = choose(points, config.max_accuracy_drop, config.target_macs)
    processes.print(f"chosen: {best.model} at {best.sensitivity:g}", flush=True)
    # A folder for each choice: another limit may choose another point, and what is finished stays.
    folder = root / "chosen" / _label(config, best.model, best.sensitivity)
    return prune(_single(config, best.model, best.sensitivity, folder))


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


def _measure(config: PruneConfig, model: str, sensitivity: float, folder: Path, processes: Accelerator) -> Point | None:
    """The point's measurements, read from its run folder if it is done; None if the cut would empty a layer."""
    if not (folder / "result.json").exists():
        point = _single(config, model, sensitivity, folder)
        point = replace(point, optim=replace(point.optim, epochs=config.sweep_epochs))
        try:
            prune(point, read_test=False)
        except EmptyLayer as error:
            processes.print(f"{model} at {sensitivity:g}: {error}", flush=True)
            return None
    found = read_json(folder / "result.json", dict)
    return Point(
        model=model,
        sensitivity=sensitivity,
        top1_before=found["held_out_top1_before"],
        top1=found["held_out_top1_tuned"],
        macs=found["macs"],
        weights=found["weights"],
        structure=found["structure"],
    )


def _write(points: list[Point], root: Path) -> None:
    """`sweep.json`, the table and the picture."""
    write_text(root / "sweep.json", json.dumps([asdict(point) for point in points], indent=1) + "\n")
    rows = []
    for point in points:
        where, top1 = f"{point.model} @ {point.sensitivity:g}", f"{100 * point.top1:.2f}"
        rows.append([where, top1, f"{point.weights:,}", f"{point.macs:,}", point.structure])
    report.table("held-out images", ["model @ sensitivity", "top-1 %", "weights", "MACs", "structure"], rows)
    drawing, axes = report.figure()
    for model in dict.fromkeys(point.model for point in points):
        line = sorted((point.macs, 100 - 100 * point.top1) for point in points if point.model == model)
        axes.plot(*zip(*line, strict=True), marker="o", label=model)
    axes.set(xscale="log", yscale="log", xlabel="MACs an image", ylabel="error on held-out images, %")
    axes.legend(frameon=False, fontsize=7)
    report.save(drawing, root / "sweep.png")


def _label(config: PruneConfig, model: str, sensitivity: float) -> str:
    """What a point's folder is called."""
    return f"model-{config.model.index(model)}-sensitivity-{sensitivity:g}"


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


def _open(config: TrainConfig | PruneConfig, label: str, processes: Accelerator) -> Path:
    """The sweep's folder, if it may be used: a new one, one to be replaced, or one of the same sweep to go on with."""
    run, root = config.run, Path(config.run.run_dir or Path("runs") / label)
    record = root / RECORD
    if not record.exists():
        if not run.resume:  # else it was killed during its first run, which resumes by itself
            check_folder(root, replace(run, overwrite=False))
    elif run.resume:
        changes = changed_fields(read_json(record, dict), as_dict(config))
        for name in changes.keys() - FREE_IN_A_SWEEP:
            old, new = changes[name]
            raise InputError(f"{root} holds a sweep with {name} = {old!r}, now {new!r}: give the same, or --run-dir")
    elif not run.overwrite:
        raise InputError(f"{root} holds a sweep: go on with --resume auto, replace it with --overwrite, or --run-dir")
    processes.wait_for_everyone()  # all have looked before anything changes
    if run.overwrite and processes.is_main_process and root.exists():
        shutil.rmtree(root)
    processes.wait_for_everyone()
    return root


def _record(config: TrainConfig | PruneConfig, root: Path, processes: Accelerator) -> None:
    """Write down the sweep's configuration, once a run has proved that it works."""
    if processes.is_main_process:
        write_text(root / RECORD, json.dumps(as_dict(config), indent=1) + "\n")
