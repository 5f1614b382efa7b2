"""What each sensitivity would leave of a network, before anything is trained: `deephoyer-prune --dry-run`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from resless import costs, models
from resless.calibrate import calibration_batches, recalibrate
from resless.data.pipeline import Pipeline, Shards, check_fit
from resless.evaluate import evaluate
from resless.report import table
from resless.run import accelerator as new_accelerator
from torch import nn

from deephoyer import loading
from deephoyer.compact import compact
from deephoyer.config import PruneConfig
from deephoyer.plan import EmptyLayer
from deephoyer.prune import least_power_of_two, trial_cut

STEPS = 12
"""Sensitivities that are tried where none are given."""


@dataclass(frozen=True)
class Point:
    """What is left at one sensitivity, without fine-tuning; accuracy as a fraction, None without held-out images."""

    sensitivity: float
    macs: int
    parameters: int
    top1: float | None


def dry_run(config: PruneConfig) -> list[Point]:
    """Print the curve, up to the first sensitivity at which nothing would be left of a layer. Writes nothing."""
    accelerator = new_accelerator(config.run.mixed_precision)
    source = loading.of(config.model[0], config.pretrained, config.foreign)
    shards = Shards.of(accelerator, config.run.channels_last)
    data = Pipeline(config.data, config.run.seed, shards, source.preprocessing)
    model = source.network(partial(models.create_for, config.model[0], data.train))
    check_fit(model, data.train)
    held_out = data.held_out() if config.data.holdout else None

    def trial_at(sensitivity: float) -> nn.Module:
        return trial_cut(model, replace(config, sensitivity=sensitivity), data.example)

    def cuts(sensitivity: float) -> bool:
        pairs = zip(trial_at(sensitivity).parameters(), model.parameters(), strict=True)
        return any(not torch.equal(after, before) for after, before in pairs)

    points, end = [], ""
    for sensitivity in config.sweep or _steps(least_power_of_two(cuts)):
        try:
            trial = trial_at(sensitivity)
            small = compact(trial, data.example, config.round_to)
        except EmptyLayer as error:
            end = f"at {sensitivity:.3g}: {error}"
            break
        top1 = None
        if held_out is not None:
            trial = trial.to(accelerator.device)
            if config.recalibrate_bn:
                recalibrate(
                    trial, calibration_batches(data, config.recalibrate_bn, config.optim.batch_size), accelerator
                )
            top1 = evaluate(trial, held_out, accelerator).top1
        points.append(Point(sensitivity, costs.macs(small, data.example), costs.count_parameters(small), top1))
    if accelerator.is_main_process:
        _print(points, costs.macs(model, data.example), f"{source.name}, nothing trained")
        print(end, flush=True)
    return points


def _steps(first: float) -> list[float]:
    """From half the first power of two that cuts anything on, each 1.4 times the one before it."""
    return [first * 2 ** (step / 2 - 1) for step in range(STEPS)]


def _print(points: list[Point], dense: int, title: str) -> None:
    rows = [
        [
            f"{point.sensitivity:.3g}",
            f"{point.macs:,}",
            f"{100 * point.macs / dense:.1f}",
            f"{point.parameters:,}",
            "needs --holdout" if point.top1 is None else f"{100 * point.top1:.2f}",
        ]
        for point in points
    ]
    table(title, ["sensitivity", "MACs", "% of them", "parameters", "held-out top-1 %"], rows)
