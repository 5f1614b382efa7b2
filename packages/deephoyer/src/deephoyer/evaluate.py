"""Accuracy and sparsity of a model folder: behind `deephoyer-eval`."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from resless import models, weights
from resless.calibrate import calibration_batches, check_recalibration, recalibrate
from resless.config import check_choices
from resless.data.pipeline import Pipeline, check_fit
from resless.data.shards import Shards
from resless.evaluate import evaluate
from resless.files import write_text
from resless.report import table
from resless.run import accelerator as new_accelerator

from deephoyer import loading
from deephoyer.config import EvalConfig
from deephoyer.report import SparsityReport, print_sparsity, sparsity


def main(config: EvalConfig) -> SparsityReport:
    """Print, and optionally write as JSON, accuracy and what is left of each layer."""
    check_choices(config)
    accelerator = new_accelerator(config.mixed_precision)
    source = loading.of(config.model, config.pretrained, config.foreign)
    shards = Shards.of(accelerator, config.channels_last)
    data = Pipeline(config.data, 0, shards, source.preprocessing, weights.class_names_of(source.folder))
    images = data.train if config.split == "train" else data.test
    model = source.network(partial(models.create_for, config.model, images))
    check_fit(model, images)
    check_recalibration(model, config.recalibrate_bn, config.model)
    left = sparsity(model, torch.zeros(1, *images.image_shape))
    model = accelerator.prepare(model.to(memory_format=torch.channels_last) if config.channels_last else model)
    if config.recalibrate_bn:
        drawn = calibration_batches(data, config.recalibrate_bn, config.batch_size)
        recalibrate(accelerator.unwrap_model(model), drawn, accelerator)
    result = evaluate(model, data.evaluation(images, config.batch_size), accelerator)
    if accelerator.is_main_process:
        row = [config.split, f"{result.images:,}", f"{100 * result.top1:.2f}", f"{result.loss:.4f}"]
        table(source.name, ["split", "images", "top-1 %", "loss"], [row])
        print_sparsity(left, "what is left")
        if config.output is not None:
            write_text(Path(config.output), json.dumps(asdict(result) | left.as_dict(), indent=1) + "\n")
            print(f"wrote {config.output}")
    return left


if __name__ == "__main__":
    from deephoyer.cli import evaluate as script

    script()
