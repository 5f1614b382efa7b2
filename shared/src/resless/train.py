"""Dense training of one network: the loop behind `resless-train`, and the baseline of every method.

Runs on one process, or on several by `accelerate launch -m resless.train --recipe resnet20`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from shlex import quote

import torch.nn.functional as F
from torch import nn

from resless import models, optim, weights
from resless.calibrate import batch_norms
from resless.config import TrainConfig, source_options
from resless.data import Images, Stream
from resless.data.pipeline import Pipeline, check_fit
from resless.evaluate import Evaluation, evaluate
from resless.report import table
from resless.run import Run


def train(config: TrainConfig) -> Evaluation:
    """Train `config.model`, write the run folder, and return its accuracy on the test images."""
    models.check_options(config.model, config.network.given())
    with Run(config, "resless-train", f"train-{config.model}-{config.data.dataset}") as run:
        data = Pipeline(config.data, config.run.seed, run.shards, **weights.expected_of(config.pretrained))
        batches = data.training(config.optim.batch_size)
        held_out = data.held_out() if config.data.holdout else None
        test_images = data.evaluation(data.test)
        model = _network(config, data.train)
        optimizer = optim.build(model.parameters(), config.optim)
        model, optimizer = run.prepare(model, optimizer)

        for epoch in run.epochs(config.optim.epochs):
            optim.set_learning_rate(optimizer, optim.learning_rate(config.optim, epoch))
            model.train()
            for images, labels in run.steps(batches):
                logits = model(images)
                loss = F.cross_entropy(logits, labels)
                run.accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                run.track(loss=loss, accuracy=(logits.argmax(dim=1) == labels).float().mean())
            if held_out is not None:
                found = evaluate(model, held_out, run.accelerator)
                run.log(held_out_top1=found.top1, held_out_loss=found.loss)

        # The test images are read once, here: nothing was chosen on them.
        test = evaluate(model, test_images, run.accelerator)
        folder = run.finish(model, data, metrics=asdict(test))
        if run.accelerator.is_main_process:
            table("test images", ["images", "top-1 %", "top-5 %", "loss"], [_row(test)])
        run.say(f"next: resless-eval --model {quote(str(folder))} {source_options(config.data)}")
        if batch_norms(run.accelerator.unwrap_model(model)):
            fast = quote(str(run.folder / "fast"))
            run.say(f"or, for inference: resless-fold --model {quote(str(folder))} --output {fast} --channels-last")
    return test


def _network(config: TrainConfig, images: Images | Stream) -> nn.Module:
    """A fresh network, one with the weights of a checkpoint file, or that of a model folder, smaller or not."""
    if config.pretrained is None or not Path(config.pretrained).is_dir():
        model = models.create_for(config.model, images, **config.network.given())
        if config.pretrained is not None:
            weights.load(model, config.pretrained)
        return model
    weights.check_holds(config.model, config.pretrained)
    config.network.check_left_out("--pretrained", config.pretrained)
    model = weights.from_pretrained(config.pretrained)
    check_fit(model, images)
    return model


def _row(test: Evaluation) -> list[str]:
    return [f"{test.images:,}", f"{100 * test.top1:.2f}", f"{100 * test.top5:.2f}", f"{test.loss:.4f}"]


if __name__ == "__main__":
    from resless.cli import train as main

    main()
