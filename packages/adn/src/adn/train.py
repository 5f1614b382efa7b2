"""Training of one network for every depth (ADN, section 3): the loop behind `adn-train`.

    loss = α · cross-entropy of the super-net + (1 - α) · T² · KL of the base-net from the super-net

Runs on one process, or on several by `accelerate launch -m adn.train --model resnet50 --data-path FOLDER`.
"""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from resless import optim, weights
from resless.config import source_options
from resless.data.pipeline import Pipeline
from resless.errors import check
from resless.evaluate import evaluate_each
from resless.run import Run
from torch import Tensor, nn

from adn import method
from adn.config import Optim, TrainConfig
from adn.evaluate import letters, report
from adn.extract import extract
from adn.mix import mixing
from adn.model import AdaptiveNet, create_for, load_plain
from adn.schedule import MovingAverage, learning_rate, parameter_groups

IMAGENET_IMAGES = 1_281_167
MAX_START_IN_AVERAGE = 0.01


class Outputs(NamedTuple):
    """What a step's forward passes give; of a path that did not run nothing."""

    super_logits: Any
    base_logits: Any
    super_features: tuple[Tensor, ...] = ()
    base_features: tuple[Tensor, ...] = ()


class TwoPaths(nn.Module):
    """Both paths as one module: wrapped once, its gradients are reduced once a step."""

    def __init__(self, net: AdaptiveNet, features: bool) -> None:
        super().__init__()
        self.net, self._features = net, features

    def forward(self, images: Tensor, only: str | None = None) -> Outputs:
        """Super-net and base-net of images [N, C, H, W], or `only` one of them, `super` or `base`."""
        super_features, super_logits = self._path(images, self.net.super_skip) if only != "base" else ((), None)
        base_features, base_logits = self._path(images, self.net.base_skip) if only != "super" else ((), None)
        return Outputs(super_logits, base_logits, super_features, base_features)

    def _path(self, images: Tensor, skip: tuple[bool, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        if not self._features:
            return (), self.net(images, skip)
        features, logits = self.net.features(images, skip)
        return tuple(features), logits


def train(config: TrainConfig) -> Path:
    """Train a network and write the run folder; returns its model folder.

    Raises:
        InputError: an unknown network, or one that does not fit the data, the options, or `config.pretrained`.
    """
    label = f"adn-{config.model}-{config.data.dataset}" + (f"-{config.alone}-alone" if config.alone else "")
    with Run(config, "adn-train", label) as run:
        data = Pipeline(config.data, config.run.seed, run.shards, **weights.expected_of(config.pretrained))
        batches = data.training(config.optim.batch_size)
        held_out = data.held_out() if config.data.holdout else None
        test_images = data.evaluation(data.test)
        net = network(config, data)
        check_processes(config, run.accelerator.num_processes)
        mix = mixing(config, data.train.num_classes)
        optimizer = optim.build(parameter_groups(net, config.optim), config.optim)
        average = MovingAverage(net, config.optim, run.accelerator.device) if config.optim.model_ema else None
        if average is not None:
            check_average(average, batches.steps_per_epoch, config.optim, run)
        state = {} if average is None else {"average": average}
        paths = TwoPaths(net, config.fpn) if isinstance(net, AdaptiveNet) else net
        model, optimizer = run.prepare(paths, optimizer, state)
        trained: Any = net if average is None else average.module
        ends = forwards(trained, all_of_them=False)

        for epoch in run.epochs(config.optim.epochs):
            optim.set_learning_rate(optimizer, learning_rate(config.optim, epoch))
            model.train()
            for images, labels in run.steps(batches):
                images, targets = mix(images, labels) if mix is not None else (images, labels)
                metrics = backward(model, images, targets, config, run)
                if config.optim.clip_grad_norm is not None:
                    run.accelerator.clip_grad_norm_(model.parameters(), config.optim.clip_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                if average is not None:
                    average.after_step(net, epoch, run.step)
                run.track(**metrics)
            if held_out is not None:
                for name, found in evaluate_each(trained, ends, held_out, run.accelerator).items():
                    run.log(**{f"held_out_{name}_top1": found.top1, f"held_out_{name}_loss": found.loss})

        # The test images are read once, here: nothing was chosen on them.
        test = evaluate_each(trained, forwards(trained, config.test_all), test_images, run.accelerator)
        folder = report(run, trained, data, test)
        if isinstance(trained, AdaptiveNet):
            say_next(run, config, trained, folder)
    return folder


def network(config: TrainConfig, data: Pipeline) -> nn.Module:
    """The network of adaptive depth for these images; with --alone, the plain one of its largest or smallest depth."""
    net = create_for(config.model, data.train, shortcut=config.shortcut, second_norms=config.second_norms)
    net.check_size(*data.train.image_shape[-2:])
    if config.data.train_crop_size is not None:
        net.check_size(config.data.train_crop_size, config.data.train_crop_size)
    if config.pretrained is not None:
        load_plain(net, config.pretrained)
    if config.alone is None:
        return net
    return extract(net, net.super_skip if config.alone == "super" else net.base_skip).train()


def forwards(net: Any, all_of_them: bool) -> dict[str, Any]:
    """Ways to run a network, by name: F and T for each stage, T where it skips; just one of a plain network."""
    if not isinstance(net, AdaptiveNet):
        return {"alone": net}
    chosen = net.configurations() if all_of_them else [net.super_skip, net.base_skip]
    return {letters(skip): partial(net, skip=skip) for skip in chosen}


def backward(model: nn.Module, images: Tensor, targets: Tensor, config: TrainConfig, run: Run) -> dict[str, Tensor]:
    """Forward and backward pass of a step; what is recorded of it."""
    if config.alone is not None:
        logits = model(images)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=config.optim.label_smoothing)
        run.accelerator.backward(loss)
        return {"loss": loss, "accuracy": accuracy(logits, targets)}
    if config.two_passes:  # the activations of one path in memory at a time
        outputs = model(images, only="super")
        smoothing = config.optim.label_smoothing
        own = config.alpha * F.cross_entropy(outputs.super_logits.float(), targets, label_smoothing=smoothing)
        run.accelerator.backward(own)
        outputs = detached(outputs)._replace(**_base_part(model(images, only="base")))
    else:
        outputs = model(images)
    losses = loss_of(outputs, targets, config)
    run.accelerator.backward(losses.total)
    return {
        "loss": losses.total,
        "cross_entropy": losses.cross_entropy,
        "base_loss": losses.distillation + losses.feature_distillation,
        "accuracy": accuracy(outputs.super_logits, targets),
        "base_accuracy": accuracy(outputs.base_logits, targets),
    }


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Fraction of the images whose class is the network's first choice; of mixed ones, that of the larger share."""
    classes = targets if targets.dim() == 1 else targets.argmax(dim=1)
    return (logits.argmax(dim=1) == classes).float().mean()


def loss_of(outputs: Outputs, targets: Tensor, config: TrainConfig) -> method.TwoPathLoss:
    """The loss of a step; with --no-distill the base-net learns the labels, as the super-net does."""
    shared = {"alpha": config.alpha, "label_smoothing": config.optim.label_smoothing}
    if not config.distill:
        return method.two_label_loss(outputs.super_logits, outputs.base_logits, targets, **shared)
    return method.two_path_loss(
        outputs.super_logits,
        outputs.base_logits,
        targets,
        **shared,
        temperature=config.temperature,
        top_classes=config.top_classes,
        super_features=outputs.super_features,
        base_features=outputs.base_features,
    )


def detached(outputs: Outputs) -> Outputs:
    """The super-net's part, through which no gradient passes any more."""
    return Outputs(outputs.super_logits.detach(), None, tuple(part.detach() for part in outputs.super_features))


def _base_part(outputs: Outputs) -> dict[str, Any]:
    return {"base_logits": outputs.base_logits, "base_features": outputs.base_features}


def say_next(run: Run, config: TrainConfig, net: AdaptiveNet, folder: Path) -> None:
    """Say what measures every depth, and what makes the smallest a network of its own."""
    model, base = (shlex.quote(str(path)) for path in (folder, run.folder / "base"))
    flags = " ".join(map(str, net.base_skip))
    run.say(f"next: adn-eval --model {model} --repeats 10 {source_options(config.data)}")
    run.say(f"or: adn-extract --model {model} --skip-cfg {flags} --output {base}")


def check_average(average: MovingAverage, steps_per_epoch: int, config: Optim, run: Run) -> None:
    """Say so where the average, which is what is written in the end, hardly learns: its reach is made for ImageNet."""
    left = average.share_of_start(steps_per_epoch, config.epochs)
    if left > MAX_START_IN_AVERAGE:
        # As far back in a run on these images as the default in one on ImageNet's.
        images = steps_per_epoch * config.batch_size
        decay = max(0.0, 1 - (1 - Optim.model_ema_decay) * IMAGENET_IMAGES / images)
        steps = " --model-ema-steps 1" if steps_per_epoch < config.model_ema_steps else ""
        run.say(
            f"warning: {100 * left:.0f} % of the moving average of the weights will be what it starts from, for "
            f"--model-ema-decay {config.model_ema_decay:g} is made for a million images: take one for these, "
            f"--model-ema-decay {decay:.3g}{steps}, or leave --model-ema out"
        )


def check_processes(config: TrainConfig, processes: int) -> None:
    """Raise InputError for what works on one process only."""
    # Each backward pass would reduce the gradients of its own path and leave the other's as they are on each process.
    usable = not config.two_passes or processes == 1
    check(usable, "--two-passes", config.two_passes, f"left out on {processes} processes")


if __name__ == "__main__":
    from adn.cli import train as script

    script()
