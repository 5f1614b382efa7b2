"""Joint fine-tuning of residual and policy network (BlockDrop, section 3.3): the loop behind `blockdrop-finetune`.

    loss = -Σ_images (R(u) - R(ũ)) · log P(u) + cross-entropy of the logits under the sampled policies u - β · H(P)

Runs on one process, or on several by `accelerate launch -m blockdrop.finetune --model R110_C10 --pretrained FOLDER`.
"""

from __future__ import annotations

import copy
import shlex
from pathlib import Path

import torch
import torch.nn.functional as F
from resless import models, optim, weights
from resless.config import source_options
from resless.data.pipeline import Pipeline, check_fit
from resless.errors import check
from resless.run import Run

from blockdrop import loading, method
from blockdrop.config import FinetuneConfig
from blockdrop.evaluate import decisions, report
from blockdrop.model import BlockDropNet
from blockdrop.rollouts import JointRollouts


def finetune(config: FinetuneConfig) -> Path:
    """Fine-tune the networks of `config.pretrained` and write the run folder; returns its model folder.

    Raises:
        InputError: nothing to start from, or a network that does not fit the model or the data.
    """
    loading.check_model(config.model)
    label = f"blockdrop-{config.model}-finetuned{config.penalty:g}"
    # A block that no image of a process keeps gets no gradient there.
    with Run(config, "blockdrop-finetune", label, unused_parameters=True) as run:
        net, preprocessing = loading.trained(config, config.pretrained)
        names = weights.class_names_of(config.pretrained) or weights.class_names_of(config.backbone)
        data = Pipeline(config.data, config.run.seed, run.shards, preprocessing, names)
        check_fit(net, data.train)
        check_batch_norm(net, data)
        loading.check_policy_batch(net, data.example, config.optim.batch_size, run.accelerator.num_processes)
        batches = data.training(config.optim.batch_size)
        held_out = data.held_out() if config.data.holdout else None
        test_images = data.evaluation(data.test)
        dense = copy.deepcopy(net.resnet)
        optimizer = optim.build(net.parameters(), config.optim)
        model, optimizer = run.prepare(JointRollouts(net, config.alpha), optimizer)
        decided = torch.ones(net.num_blocks, dtype=torch.bool, device=run.accelerator.device)
        # Gradients are averaged over processes: a sum over the global batch is so many times the mean of their sums.
        scale = float(run.accelerator.num_processes)
        if config.policy_reduction == "mean":
            scale /= config.optim.batch_size

        for epoch in run.epochs(config.optim.epochs):
            optim.set_learning_rate(optimizer, optim.learning_rate(config.optim, epoch))
            model.train()
            for images, labels in run.steps(batches):
                rollouts = model(images)
                reward, baseline = rollouts.rewards(labels, config.penalty)
                log_likelihood = method.log_likelihood(rollouts.probabilities, rollouts.sampled, decided)
                policy_loss = scale * method.self_critical_loss(reward - baseline, log_likelihood).sum()
                entropy = method.entropy(rollouts.probabilities, decided).mean()
                cross_entropy = F.cross_entropy(rollouts.sampled_logits, labels)
                loss = policy_loss + cross_entropy - config.entropy_bonus * entropy
                run.accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                metrics = rollouts.metrics(labels, (reward, baseline))
                run.track(loss=loss, cross_entropy=cross_entropy, policy_loss=policy_loss, entropy=entropy, **metrics)
            if held_out is not None:
                run.log(**decisions(net, held_out, run.accelerator).record("held_out", config.penalty))

        folder = report(run, net, data, test_images, dense=dense)
        run.say(f"next: blockdrop-eval --model {shlex.quote(str(folder))} {source_options(config.data)}")
    return folder


def check_batch_norm(net: BlockDropNet, data: Pipeline) -> None:
    """Raise InputError where a block could see a single value a channel, of which batch norm has no variance."""
    with torch.no_grad():
        features = net.resnet.features(data.example, torch.zeros(1, net.num_blocks))
    side, name = data.example.shape[-1], models.origin(net.spec).options["backbone"]
    wanted = f"larger for {name}: its last blocks see one pixel an image, and a block may be kept by one image alone"
    check(features[0, 0].numel() > 1, "the image size", side, wanted)


if __name__ == "__main__":
    from blockdrop.cli import finetune as script

    script()
