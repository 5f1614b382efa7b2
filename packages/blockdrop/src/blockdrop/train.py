"""Curriculum training of the policy network (BlockDrop, section 3.3): the loop behind `blockdrop-train`.

    loss = -(R(u) - R(ũ)) · log P(u) - β · H(P),   means over the batch; the residual network is frozen

At epoch t the last t · `--curriculum-step` blocks are decided, those before them are kept. Runs on one process, or on
several by `accelerate launch -m blockdrop.train --model R110_C10 --backbone FOLDER`.
"""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

from resless import optim, weights
from resless.config import source_options, training_options, variation_options
from resless.data.pipeline import Pipeline
from resless.run import Run
from torch import Tensor

from blockdrop import loading, method
from blockdrop.config import FinetuneConfig, TrainConfig
from blockdrop.evaluate import all_blocks, decisions, report
from blockdrop.model import BlockDropNet
from blockdrop.recipes import FINETUNE, TRAIN
from blockdrop.rollouts import CurriculumRollouts

BACKBONE_IMAGES = 2000
LEAST_BACKBONE_TOP1 = 0.5
FINETUNING_EPOCH = 3
"""Epochs of the curriculum, in which no gradient passes through the residual network, that one of fine-tuning takes."""


def train(config: TrainConfig) -> Path:
    """Train a policy network for `config.backbone` and write the run folder; returns its model folder.

    Raises:
        InputError: no backbone, or one that does not fit the model or the data.
    """
    loading.check_model(config.model)
    loading.check_backbone(config)  # before a data set is fetched for nothing
    with Run(config, "blockdrop-train", f"blockdrop-{config.model}") as run:
        preprocessing = loading.preprocessing(config)
        names = weights.class_names_of(config.backbone)
        data = Pipeline(config.data, config.run.seed, run.shards, preprocessing, names)
        net = loading.with_backbone(config, data.train, policy_pool=config.policy_pool)
        loading.check_policy_batch(net, data.example, config.optim.batch_size, run.accelerator.num_processes)
        batches = data.training(config.optim.batch_size)
        held_out = data.held_out() if config.data.holdout else None
        test_images = data.evaluation(data.test)
        if config.policy_weights is not None:
            loading.load_policy_features(net.policy, config.policy_weights)
        say_backbone(run, net, data)
        optimizer = optim.build(net.policy.parameters(), config.optim)
        model, optimizer = run.prepare(CurriculumRollouts(net, config.alpha), optimizer)

        for epoch in run.epochs(config.optim.epochs):
            optim.set_learning_rate(optimizer, optim.learning_rate(config.optim, epoch))
            num_open = min(net.num_blocks, (epoch + 1) * config.curriculum_step)
            decided = method.open_blocks(num_open, net.num_blocks, device=run.accelerator.device)
            model.train()
            for images, labels in run.steps(batches):
                rollouts = model(images, num_open)
                reward, baseline = rollouts.rewards(labels, config.penalty)
                log_likelihood = method.log_likelihood(rollouts.probabilities, rollouts.sampled, decided)
                entropy = method.entropy(rollouts.probabilities, decided).mean()
                loss = method.self_critical_loss(reward - baseline, log_likelihood).mean()
                loss = loss - config.entropy_bonus * entropy
                run.accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                run.track(loss=loss, entropy=entropy, **rollouts.metrics(labels, (reward, baseline)))
            run.log(open_blocks=num_open)
            if held_out is not None:
                # As trained so far: what an untrained output says of a closed block is noise.
                choose = partial(_open_blocks_decided, net, decided)
                run.log(**decisions(net, held_out, run.accelerator, choose=choose).record("held_out", config.penalty))

        if num_undecided := max(0, net.num_blocks - config.optim.epochs * config.curriculum_step):
            run.say(
                f"warning: {num_undecided} of {net.num_blocks} blocks were never decided on: "
                "more --epochs or a larger --curriculum-step would open them"
            )
        folder = report(run, net, data, test_images)
        run.say(f"next: blockdrop-finetune {next_arguments(config, folder)}")
    return folder


def next_arguments(config: TrainConfig, folder: Path) -> str:
    """What goes on from here: this run's recipe; of a run by no recipe, a fine-tuning that takes about as long."""
    settings, wanted = config.optim, (config.model, config.optim)
    same = [name for name, recipe in TRAIN.items() if (recipe.model, recipe.optim) == wanted and name in FINETUNE]
    words = ["--recipe", same[0]] if same else ["--model", config.model]
    words += ["--pretrained", str(folder)]
    if same:
        changed = variation_options(config.data, TRAIN[same[0]].data)
        return " ".join(filter(None, [shlex.join(words), changed, source_options(config.data)]))
    # The name of a model alone may choose the paper's thousands of epochs.
    words += ["--epochs", str(max(1, round(settings.epochs / FINETUNING_EPOCH)))]
    words += ["--optimizer", settings.optimizer, "--lr", str(settings.lr), "--penalty", str(config.penalty)]
    as_trained = training_options(config, FINETUNE.get(config.model, FinetuneConfig()))
    return f"{shlex.join(words)} {as_trained} {source_options(config.data)}"


def say_backbone(run: Run, net: BlockDropNet, data: Pipeline) -> None:
    """Say how good the backbone is, before hours are spent on a wrong one: a checkpoint file does not tell how a
    network passes on its input where sizes change, nor what it expects of its images."""
    indices = data.split[0]
    some = data.evaluation(data.train, indices=indices[:: max(1, len(indices) // BACKBONE_IMAGES)])
    found = decisions(net.to(run.accelerator.device), some, run.accelerator, choose=all_blocks(net))
    run.say(f"the backbone is right on {100 * found.top1:.1f} % of {len(found.correct):,} training images")
    if found.top1 < LEAST_BACKBONE_TOP1:
        run.say("warning: that is little for a trained network: check --shortcut, --mean and --std")


def _open_blocks_decided(net: BlockDropNet, decided: Tensor, images: Tensor) -> Tensor:
    """The policies of images, the blocks that are not open yet kept: bool [N, K]."""
    return net.decide(images) | ~decided


if __name__ == "__main__":
    from blockdrop.cli import train as script

    script()
