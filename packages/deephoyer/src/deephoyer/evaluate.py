"""Accuracy and sparsity of a model folder: behind `deephoyer-eval`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from resless import weights
from resless.data.pipeline import Pipeline, Shards, check_fit
from resless.evaluate import evaluate
from resless.report import table
from resless.run import accelerator as new_accelerator

from deephoyer.config import EvalConfig
from deephoyer.report import SparsityReport, print_sparsity, sparsity


def main(config: EvalConfig) -> SparsityReport:
    """Print, and optionally write as JSON, accuracy and what is left of each layer."""
    accelerator = new_accelerator("no")
    preprocessing = weights.read_config(config.model)["preprocessing"]
    data = Pipeline(config.data, 0, Shards.of(accelerator, channels_last=False), preprocessing)
    images = data.train if config.split == "train" else data.test
    model = weights.from_pretrained(config.model)
    check_fit(model, images)
    left = sparsity(model, torch.zeros(1, *images.image_shape))
    result = evaluate(accelerator.prepare(model), data.evaluation(images), accelerator)
    if accelerator.is_main_process:
        row = [config.split, f"{result.images:,}", f"{100 * result.top1:.2f}", f"{result.loss:.4f}"]
        table(config.model, ["split", "images", "top-1 %", "loss"], [row])
        print_sparsity(left, "what is left")
        if config.output is not None:
            text = json.dumps(asdict(result) | left.as_dict(), indent=1) + "\n"
            Path(config.output).write_text(text, encoding="utf-8")
    return left


if __name__ == "__main__":
    from deephoyer.cli import evaluate as script

    script()
