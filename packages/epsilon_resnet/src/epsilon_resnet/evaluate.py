"""Accuracy and cost of a network, as trained or compressed: what `epsilon-resnet-eval` does."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from resless import costs
from resless.calibrate import calibration_batches, check_recalibration, recalibrate
from resless.config import check_choices
from resless.data.pipeline import Pipeline, check_fit
from resless.data.shards import Shards
from resless.errors import InputError
from resless.evaluate import evaluate
from resless.files import write_text
from resless.models.blocks import ResidualBlock
from resless.models.preresnet import PreResNet
from resless.report import table
from resless.run import accelerator as new_accelerator
from torch import nn

from epsilon_resnet import loading
from epsilon_resnet.config import EvalConfig
from epsilon_resnet.model import EpsilonResNet


def main(config: EvalConfig) -> dict[str, Any]:
    """Print and optionally write error, blocks, parameters and MACs; returns them as JSON values."""
    check_choices(config)
    accelerator = new_accelerator(config.mixed_precision)
    model, known = loading.trained(config.model, config.step)
    shards = Shards.of(accelerator, config.channels_last)
    data = Pipeline(config.data, 0, shards, known["preprocessing"], known["class_names"])
    images = data.train if config.split == "train" else data.test
    check_fit(model, images)
    blocks, running = count_blocks(model, known["metrics"])
    check_recalibration(model, config.recalibrate_bn, config.model)
    found: dict[str, Any] = {
        "blocks": blocks,
        "running_blocks": running,
        "parameters": costs.count_parameters(model),
        "macs": costs.macs(model, torch.zeros(1, *images.image_shape)),
    }
    model = accelerator.prepare(model.to(memory_format=torch.channels_last) if config.channels_last else model)
    if config.recalibrate_bn:
        drawn = calibration_batches(data, config.recalibrate_bn, config.batch_size)
        recalibrate(accelerator.unwrap_model(model), drawn, accelerator)
    result = evaluate(model, data.evaluation(images, config.batch_size), accelerator)
    found = asdict(result) | {"error": 1 - result.top1} | found
    if accelerator.is_main_process:
        row = [
            f"{result.images:,}",
            f"{100 * found['error']:.2f}",
            f"{100 * (1 - result.top5):.2f}",
            f"{result.loss:.4f}",
        ]
        row += [f"{running} of {blocks}", f"{found['parameters']:,}", f"{found['macs']:,}"]
        columns = [f"{config.split} images", "error %", "top-5 error %", "loss", "blocks running", "parameters", "MACs"]
        table(config.model, columns, [row])
        if config.output is not None:
            write_text(Path(config.output), json.dumps(found, indent=1) + "\n")
            print(f"wrote {config.output}")
    return found


def count_blocks(model: nn.Module, metrics: dict[str, Any]) -> tuple[int, int]:
    """Blocks of the network before any was discarded, and those that run in it.

    Raises:
        InputError: a network that neither epsilon-resnet-train nor epsilon-resnet-compress wrote.
    """
    if isinstance(model, EpsilonResNet):
        return model.num_blocks, model.closed().count(False)
    if isinstance(model, PreResNet):
        running = sum(isinstance(block, ResidualBlock) for block in model.blocks())
        return running + len(metrics.get("dropped", ())), running
    raise InputError(f"a pre-activation ResNet is needed, but this is a {type(model).__name__}: use resless-eval")


if __name__ == "__main__":
    from epsilon_resnet.cli import evaluate as script

    script()
