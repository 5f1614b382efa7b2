"""Training with a sparsity regulariser (DeepHoyer, section 4): the loop behind `deephoyer-train`.

    loss = cross-entropy + strength · Σ R(w)

Runs on one process, or on several by `accelerate launch -m deephoyer.train --recipe lenet5-element`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from resless import costs, models, optim, weights
from resless.config import source_options, training_options, variation_options
from resless.data.pipeline import Pipeline, check_fit
from resless.errors import check
from resless.evaluate import evaluate
from resless.run import Run
from torch import nn

from deephoyer import channels, loading, method
from deephoyer.compact import LENETS
from deephoyer.config import STRUCTURAL, PruneConfig, TrainConfig
from deephoyer.recipes import PRUNE, TRAIN
from deephoyer.report import prunable


def train(config: TrainConfig, *, read_test: bool = True) -> Path:
    """Train `config.model` with the regulariser and write the run folder; returns its model folder."""
    models.check_name(config.model)
    with Run(config, "deephoyer-train", f"deephoyer-{config.model}-{config.regulariser}-{config.strength:g}") as run:
        source = None
        if config.pretrained is not None:
            source = loading.of(config.model, config.pretrained, config.foreign)
        preprocessing = config.foreign.statistics if source is None else source.preprocessing
        names = None if source is None else weights.class_names_of(source.folder)
        data = Pipeline(config.data, config.run.seed, run.shards, preprocessing, names)
        batches = data.training(config.optim.batch_size)
        held_out = data.held_out() if config.data.holdout else None
        test_images = data.evaluation(data.test) if read_test else None
        fresh = partial(models.create_for, config.model, data.train)
        model = fresh(shortcut=config.foreign.shortcut) if source is None else source.network(fresh)
        check_fit(model, data.train)
        macs = costs.macs(model, data.example)
        penalty_now = penalty_of(model, config, data.example, run.accelerator.device)
        optimizer = optim.build(model.parameters(), config.optim)
        model, optimizer = run.prepare(model, optimizer)

        for epoch in run.epochs(config.optim.epochs):
            optim.set_learning_rate(optimizer, optim.learning_rate(config.optim, epoch))
            model.train()
            for images, labels in run.steps(batches):
                logits = model(images)
                cross_entropy = F.cross_entropy(logits, labels)
                penalty = penalty_now()
                loss = cross_entropy + config.strength * penalty
                run.accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                run.track(loss=loss, penalty=penalty, accuracy=(logits.argmax(dim=1) == labels).float().mean())
            if held_out is not None:
                found = evaluate(model, held_out, run.accelerator)
                run.log(held_out_top1=found.top1, held_out_loss=found.loss)

        metrics = {}
        if test_images is not None:  # once, here, and nothing is chosen by it
            metrics = asdict(evaluate(model, test_images, run.accelerator))
            run.say(f"accuracy on {metrics['images']:,} test images {100 * metrics['top1']:.2f} %, nothing cut yet")
        folder = run.finish(model, data, metrics=metrics)
        if read_test:
            run.say(f"next: deephoyer-prune {next_arguments(config, folder, macs)}")
    return folder


def next_arguments(config: TrainConfig, folder: Path, macs: int) -> str:
    """What goes on from here: the recipe that starts from this folder, or half of the network of this run."""
    for name, recipe in PRUNE.items():
        if recipe.model == (str(folder),):
            return f"--recipe {name} {source_options(config.data)}"
    model, source = f"--model {shlex.quote(str(folder))}", source_options(config.data)
    if (same := recipe_of(config)) is not None:  # in a folder of its own
        changed = variation_options(config.data, TRAIN[same].data)
        return " ".join(filter(None, [f"--recipe {same} {model}", run_dir_beside(folder), changed, source]))
    target = f" --target-macs {macs // 2}" if config.regulariser in STRUCTURAL else ""
    as_trained = training_options(config, PruneConfig((str(folder),)))
    return f"{model} {as_trained} {source} {rule_of(config)}{target}"


def recipe_of(config: TrainConfig) -> str | None:
    """The recipe of a run that pruning has one for, too, whatever its images and its folder; None without one."""
    for name in TRAIN.keys() & PRUNE.keys():
        theirs = replace(TRAIN[name], data=config.data, run=config.run, pretrained=config.pretrained)
        if theirs == config and TRAIN[name].data.dataset == config.data.dataset:
            return name
    return None


def run_dir_beside(folder: Path) -> str:
    """Where the run goes that starts from the model folder of a run in a folder of its own."""
    return f"--run-dir {shlex.quote(f'{folder.parent}-pruned')}"


def rule_of(config: TrainConfig) -> str:
    """The arguments of `deephoyer-prune` for how to cut what the regulariser made small."""
    if config.regulariser not in STRUCTURAL:
        return "--rule elementwise"
    rule = "group" if config.model in ("lenet_300_100", "lenet5") else "tied"
    return f"--rule {rule} --threshold rms"


def penalty_of(
    model: nn.Module, config: TrainConfig, example: torch.Tensor, device: torch.device
) -> Callable[[], torch.Tensor]:
    """A function that gives the sum of the regulariser over the network's weights as they are, a scalar on `device`.

    Raises:
        InputError: `--tied` for a network whose channels `compact` cannot follow.
    """
    tensors = regularised_tensors(model, config.regulariser)
    if not tensors:
        return lambda: torch.zeros((), device=device)
    if not config.tied:
        return partial(method.penalty, tensors, config.regulariser)
    check(not isinstance(model, LENETS), "--tied", config.tied, "off (--no-tied) for a LeNet: its layers are not tied")
    coupling = channels.coupling(model, example)
    names = [name for name in prunable(model) if name in coupling.rows]  # of layers that run
    tensors = [prunable(model)[name] for name in names]
    return partial(method.tied_penalty, tensors, coupling.ties(names).to(device), config.regulariser)


def regularised_tensors(model: nn.Module, regulariser: str) -> list[torch.Tensor]:
    """What the regulariser is summed over: element-wise every parameter, biases included; structural the weights of
    convolutions and linear layers; nothing for `none`."""
    if regulariser == "none":
        return []
    return list(prunable(model).values() if regulariser in STRUCTURAL else model.parameters())


if __name__ == "__main__":
    from deephoyer.cli import train as script

    script()
