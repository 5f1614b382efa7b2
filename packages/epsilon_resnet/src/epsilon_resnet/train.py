"""Training of a network whose blocks discard themselves (ε-ResNet, section 3): the loop behind `epsilon-resnet-train`.

    loss = cross-entropy + 0.1 · cross-entropy of the side head;   weight decay on convolutions and linear layers only

Runs on one process, or on several by `accelerate launch -m epsilon_resnet.train -n 18 -e 2.5 --cifar10`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from resless import optim, weights
from resless.data.pipeline import Pipeline
from resless.errors import InputError
from resless.evaluate import evaluate
from resless.run import Run
from torch import nn

from epsilon_resnet import method, model
from epsilon_resnet.blocks import BlockRecord, blocks_named
from epsilon_resnet.config import Optim, TrainConfig
from epsilon_resnet.report import Story, finish, say_next


def train(config: TrainConfig) -> Path:
    """Train a network and write the run folder; returns its model folder.

    Raises:
        InputError: a network that does not fit the data or `config.pretrained`; ε so large that no block is left.
    """
    label = f"epsilon-{config.backbone}-{config.data.dataset}-{config.epsilon:g}"
    # A retired block gets no gradient.
    some_retire = config.retire_after > 0 or config.epsilon_stop is not None
    with Run(config, "epsilon-resnet-train", label, unused_parameters=some_retire) as run:
        data = Pipeline(config.data, config.run.seed, run.shards, **weights.expected_of(config.pretrained))
        batches = data.training(config.optim.batch_size)
        held_out = data.held_out() if config.data.holdout else None
        test_images = data.evaluation(data.test)
        net = gated_network(config, data)
        optimizer = optim.build(parameter_groups(net, config.optim.weight_decay), config.optim)
        schedule = adaptive_schedule(config.optim)
        record = BlockRecord(net.num_blocks, run.accelerator.device)
        gated, optimizer = run.prepare(net, optimizer, {"schedule": schedule, "blocks": record})
        story = Story(run, config, net, data)

        for epoch in run.epochs(config.optim.epochs):
            optim.set_learning_rate(optimizer, schedule.learning_rate(epoch))
            net.epsilon = config.epsilon_in(epoch)
            gated.train()
            for images, labels in run.steps(batches):
                found = gated(images)
                loss = method.loss(found.logits, found.side_logits, labels, config.side_weight)
                run.accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                record.add(found.gates, found.largest)
                run.track(loss=loss, **accuracies(found, labels))

            discarded = record.end_epoch(method.relative_sizes(net.resnet.blocks()))
            new = sorted(set(discarded) - set(schedule.discarded))
            anew = ", the learning rate starts anew" if schedule.update(epoch, discarded) else ""
            if new:
                run.say(f"epoch {epoch + 1}: {blocks_named(new)} discarded{anew}")
            if gone := leaving(config, record, discarded, epoch):
                net.retire(gone)
                record.retire(gone)
                run.say(f"epoch {epoch + 1}: {blocks_named(gone)} gone for good, not computed any more")
            run.log(discarded_blocks=len(discarded), retired_blocks=len(record.retired))
            story.write(record, schedule)
            check_some_left(discarded, net.num_blocks, epoch, config)
            if held_out is not None:
                validation = evaluate(gated, held_out, run.accelerator)
                run.log(held_out_top1=validation.top1, held_out_loss=validation.loss)

        # The test images are read once, here: nothing was chosen on them.
        test = evaluate(gated, test_images, run.accelerator)
        told = story.write(record, schedule)
        folder = finish(run, net, data, told, test)
        say_next(run, config, net, told["epochs"])
    return folder


def gated_network(config: TrainConfig, data: Pipeline) -> model.EpsilonResNet:
    """The network for these images, with the weights of `config.pretrained` where one is given."""
    net = model.create(
        config.backbone,
        num_classes=data.train.num_classes,
        in_channels=data.train.image_shape[0],
        epsilon=config.epsilon,
        side=config.side_weight > 0,
        **config.backbone_options,
    )
    if config.pretrained is not None:
        state = weights.unwrapped(weights.read_checkpoint(config.pretrained), config.pretrained)
        try:
            weights.load_state(net.resnet, state, config.pretrained)
        except InputError as error:
            raise InputError(f"--pretrained must be a plain {config.backbone} of this package: {error}") from error
    return net


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of convolutions and linear layers, which decay; biases and batch norms, which do not (section 4)."""
    parameters = list(net.parameters())
    return [
        {"params": [parameter for parameter in parameters if parameter.dim() > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
    ]


def adaptive_schedule(config: Optim) -> method.AdaptiveSchedule:
    """The learning rate of a configuration."""
    if config.schedule == "cosine":
        rates = [optim.learning_rate(config, epoch) for epoch in range(config.epochs)] or [config.lr]
        return method.AdaptiveSchedule(method.Milestones(rates, range(1, config.epochs)))
    base = method.Milestones(config.rates, config.milestones)
    if not config.restart_milestones:
        return method.AdaptiveSchedule(base)
    return method.AdaptiveSchedule(base, method.Milestones(config.rates, config.restart_milestones))


def accuracies(found: model.Responses, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Training accuracy of the network, and of its side head where it has one."""
    heads = {"accuracy": found.logits, "side_accuracy": found.side_logits}
    right = {name: logits.argmax(dim=1) == labels for name, logits in heads.items() if logits is not None}
    return {name: hits.float().mean() for name, hits in right.items()}


def leaving(config: TrainConfig, record: BlockRecord, discarded: Sequence[int], epoch: int) -> list[int]:
    """The blocks that training stops computing now: those that have decayed; at `--epsilon-stop` all discarded ones."""
    gone = record.gone(config.weight_bound, config.retire_after) if config.retire_after else []
    if epoch + 1 == config.epsilon_stop:
        gone = sorted({*gone, *discarded})
    return [index for index in gone if index not in record.retired]


def check_some_left(discarded: Sequence[int], num_blocks: int, epoch: int, config: TrainConfig) -> None:
    """Stop a run of which nothing is left to train.

    Raises:
        InputError: all blocks are discarded.
    """
    if len(discarded) == num_blocks:
        raise InputError(
            f"all {num_blocks} blocks are discarded in epoch {epoch + 1} with --epsilon {config.epsilon:g}: start anew "
            "with a smaller one (the run folder's blocks.json has the largest responses) or a later --epsilon-start"
        )


if __name__ == "__main__":
    from epsilon_resnet.cli import train as script

    script()
