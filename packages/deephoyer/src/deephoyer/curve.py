"""What each sensitivity would leave of a network, before anything is trained: `deephoyer-prune --dry-run`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from resless import costs, models, weights
from resless.calibrate import calibration_batches, check_recalibration, recalibrate
from resless.data.pipeline import Pipeline, check_fit
from resless.data.shards import Shards
from resless.evaluate import evaluate
from resless.models.folded import check_unfolded
from resless.report import table
from resless.run import accelerator as new_accelerator
from torch import nn

from deephoyer import loading
from deephoyer.compact import compact, mac_counter
from deephoyer.config import PruneConfig
from deephoyer.plan import EmptyLayer
from deephoyer.prune import budget, cut_as_asked, least_power_of_two, structure, trial_cuts, unit_thresholds

FINENESS = 2 ** (1 / 8)
"""Ratio of the sensitivities that are looked at where none are given,"""
STEP = 0.05
"""and the part of the dense network's MACs by which those that are shown differ, or more."""


@dataclass(frozen=True)
class Point:
    """What is left at one sensitivity, without fine-tuning; accuracy as a fraction, None without held-out images.

    `target` says whether the target is met, and of the cut that is made for it so; empty where it is not met.
    """

    sensitivity: float
    macs: int
    parameters: int
    top1: float | None
    target: str


def dry_run(config: PruneConfig) -> list[Point]:
    """Print the curve, up to the first sensitivity at which nothing would be left of a layer, with the point that meets
    the target in its place. Writes nothing.

    Raises:
        InputError: a target that the network cannot meet, or has less than; see `prune.cut_as_asked`.
    """
    accelerator = new_accelerator(config.run.mixed_precision)
    source = loading.of(config.model[0], config.pretrained, config.foreign)
    shards = Shards.of(accelerator, config.run.channels_last)
    names = weights.class_names_of(source.folder)
    data = Pipeline(config.data, config.run.seed, shards, source.preprocessing, names)
    model = source.network(partial(models.create_for, config.model[0], data.train))
    check_unfolded(model, "pruned")
    check_recalibration(model, config.recalibrate_bn, source.name)
    check_fit(model, data.train)
    held_out = data.held_out() if config.data.holdout else None
    units, known = unit_thresholds(model, config, data.example), structure(model, data.example, config.rule)
    cut_at = trial_cuts(model, config, units, known)
    count, target = mac_counter(model, data.example, config.round_to), budget(model, config, data.example)

    def macs_at(sensitivity: float) -> int:
        return count(cut_at(sensitivity))

    def measured(sensitivity: float, trial: nn.Module, met: str = "met") -> Point:
        small = compact(trial, data.example, config.round_to)
        met = met if target is not None and target.met(trial) else ""
        top1 = None
        if held_out is not None:
            trial = trial.to(accelerator.device)
            if config.recalibrate_bn:
                recalibrate(
                    trial, calibration_batches(data, config.recalibrate_bn, config.optim.batch_size), accelerator
                )
            top1 = evaluate(trial, held_out, accelerator).top1
        return Point(sensitivity, costs.macs(small, data.example), costs.count_parameters(small), top1, met)

    points, end = [], ""
    if target is not None and not config.sweep:
        asked = copy.deepcopy(model)
        sensitivity, *_ = cut_as_asked(asked, config, data.example)
        points.append(measured(sensitivity, asked, "met: the cut for it"))
    for sensitivity in sorted(config.sweep) or _worth_showing(macs_at):
        try:
            points.append(measured(sensitivity, cut_at(sensitivity)))
        except EmptyLayer as error:
            end = f"at {sensitivity:.3g}: {error}"
            break
    points.sort(key=lambda point: point.sensitivity)
    if accelerator.is_main_process:
        limit = [] if target is None else [f"{target.option} {target.most:,}"]
        _print(points, costs.macs(model, data.example), f"{source.name}, nothing trained", limit)
        print(end, flush=True)
    return points


def _worth_showing(macs_at: Callable[[float], int]) -> list[float]:
    """Sensitivities between which the MACs fall by a step or more; the last one leaves nothing of a layer."""
    dense = macs_at(0.0)
    shown, least, sensitivity = [0.0], float(dense), least_power_of_two(lambda value: _left(macs_at, value) < dense) / 2
    while (macs := _left(macs_at, sensitivity)) > 0:
        if macs <= least - STEP * dense:
            shown.append(sensitivity)
            least = macs
        sensitivity *= FINENESS
    return [*shown, sensitivity]


def _left(macs_at: Callable[[float], int], sensitivity: float) -> int:
    """MACs, 0 where nothing is left of a layer."""
    try:
        return macs_at(sensitivity)
    except EmptyLayer:
        return 0


def _print(points: list[Point], dense: int, title: str, limit: list[str]) -> None:
    """The table; `limit` heads the column of the target, if there is one."""
    rows = [
        [
            f"{point.sensitivity:.3g}",
            f"{point.macs:,}",
            f"{100 * point.macs / dense:.1f}",
            f"{point.parameters:,}",
            "needs --holdout" if point.top1 is None else f"{100 * point.top1:.2f}",
            *([point.target] if limit else []),
        ]
        for point in points
    ]
    table(title, ["sensitivity", "MACs", "% of them", "parameters", "held-out top-1 %", *limit], rows)
