"""Accuracy, cost and policies of a network, its controls at equal cost, and `blockdrop-eval`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from resless import weights
from resless.calibrate import calibration_batches, check_recalibration, recalibrate
from resless.config import check_choices
from resless.data.loaders import EvalBatches
from resless.data.pipeline import Pipeline, check_fit
from resless.data.shards import Shards
from resless.data.stream import StreamEvalBatches
from resless.errors import InputError
from resless.evaluate import Shares, average_buffers
from resless.files import write_text
from resless.modes import in_eval_mode
from resless.report import table
from resless.run import Run
from resless.run import accelerator as new_accelerator
from torch import Tensor

from blockdrop import costs, loading, speed
from blockdrop.analyse import CONTROLS, Decisions, collapse, digits, keep_rates, policies
from blockdrop.config import MODELS, EvalConfig
from blockdrop.costs import PAPER_UNITS, BlockCosts
from blockdrop.model import BlockDropNet, SkippingResNet
from blockdrop.plot import draw, draw_rewards
from blockdrop.specialise import check_specialise, specialise

Choose = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] -> policies, bool [N, K]."""


@torch.inference_mode()
def decisions(
    net: BlockDropNet,
    batches: EvalBatches | StreamEvalBatches,
    accelerator: Accelerator,
    *,
    choose: Choose | None = None,
    resnet: SkippingResNet | None = None,
    executor: str = "auto",
) -> Decisions:
    """What a network decides for every image, each exactly once over all processes, in eval mode.

    Args:
        net: on the accelerator's device; its mode is put back afterwards.
        batches: this process's share of the images.
        accelerator: gathers the rows of all processes; all of them get all rows.
        choose: what takes the policy network's place.
        resnet: what takes the residual network's place.
        executor: see `execute.run`.

    Raises:
        InputError: outputs are not finite.
        RuntimeError: the processes together did not see each image once.
    """
    resnet, choose = resnet or net.resnet, choose or net.decide
    average_buffers(net, accelerator)
    rows, overflows = [], torch.zeros((), device=accelerator.device)
    with in_eval_mode(net):
        for images, labels in batches:
            with accelerator.autocast():
                policy = choose(images)
                logits = resnet(images, policy, executor)
            right = logits.argmax(dim=1) == labels
            overflows += ~logits.isfinite().all()
            rows.append((policy.cpu().numpy(), right.cpu().numpy(), labels.cpu().numpy()))
    if accelerator.reduce(overflows, reduction="sum") > 0:  # on all processes, or some would wait for the others
        raise InputError("the network's outputs overflow: evaluate it with --mixed-precision no or bf16")
    own = [(*(np.concatenate(column) for column in zip(*rows, strict=True)), batches.order.numpy())] if rows else []
    kept, correct, classes, seen = (np.concatenate(column) for column in zip(*gather_object(own), strict=True))
    if len(np.unique(seen)) != batches.num_images or len(seen) != batches.num_images:
        raise RuntimeError(f"evaluated {len(seen)} images, but the data set has {batches.num_images}")
    by_image = np.argsort(seen)
    return Decisions(kept[by_image], correct[by_image], classes[by_image], seen[by_image])


def recalibrate_kept(net: BlockDropNet, batches: Shares, accelerator: Accelerator) -> None:
    """`recalibrate` the residual network, in place, each block with the images that keep it.

    The policy network decides, and stays as it is. A block that no image keeps does, too.

    Args:
        net: on the accelerator's device; its mode is put back afterwards.
        batches, accelerator: as of `recalibrate`, which says what is raised, too.
    """

    def forward(images: Tensor) -> Tensor:
        # Masked, a block's batch norms would see all images; grouped, those of one policy at a time.
        return net.resnet(images, net.decide(images), "gathered")

    with in_eval_mode(net):
        recalibrate(net.resnet, batches, accelerator, forward)


def summary(found: Decisions, cost: BlockCosts) -> dict[str, Any]:
    """JSON values: accuracy, blocks, costs (the policy network's included) and policies."""
    macs, used, distinct = cost.per_image(found.kept), found.blocks_used, policies(found.kept)
    return {
        "images": len(found.correct),
        "top1": found.top1,
        "num_blocks": found.kept.shape[1],
        "blocks_used": float(used.mean()),
        "blocks_used_sd": float(used.std()),
        "macs": float(macs.mean()),
        "macs_sd": float(macs.std()),
        "dense_macs": cost.dense,
        "policy_macs": cost.policy,
        "cost_fraction": float(macs.mean() / cost.dense),
        "unique_policies": len(distinct.counts),
        "policy_entropy_bits": distinct.entropy_bits,
        "most_frequent_policy": distinct.name(0),
        "most_frequent_policy_share": float(distinct.counts[0] / len(found.correct)),
        "keep_rates": keep_rates(found.kept).tolist(),
        "collapse": collapse(found.kept),
    }


def controls(
    net: BlockDropNet,
    batches: EvalBatches | StreamEvalBatches,
    accelerator: Accelerator,
    found: Decisions,
    cost: BlockCosts,
    *,
    seed: int,
    dense: SkippingResNet | None = None,
) -> dict[str, dict[str, Any]]:
    """What accuracy the same cost gives without looking at the image: JSON values by control.

    `most_frequent` runs the most frequent policy for all images, `random` policies with the same keep rate of each
    block, `all_blocks` everything; `dense`, where given, is the residual network as fine-tuning found it. None of them
    needs a policy network.
    """
    frequent = torch.from_numpy(policies(found.kept).kept[0]).to(accelerator.device)
    rates = torch.from_numpy(keep_rates(found.kept))
    generator = torch.Generator().manual_seed(seed)
    # Drawn for all images, so that each has its policy whichever process it is on.
    random = torch.bernoulli(rates.expand(int(found.images.max()) + 1, -1), generator=generator).bool()

    def same(images: Tensor) -> Tensor:
        return frequent.expand(len(images), -1)

    chosen: dict[str, tuple[Choose, SkippingResNet]] = {
        "most_frequent": (same, net.resnet),
        "random": (in_order(random[batches.order]), net.resnet),
        "all_blocks": (all_blocks(net), net.resnet),
    }
    if dense is not None:
        chosen["dense"] = (all_blocks(net), dense.to(accelerator.device).eval())
    result: dict[str, dict[str, Any]] = {}
    for name, (choose, resnet) in chosen.items():
        control = decisions(net, batches, accelerator, choose=choose, resnet=resnet)
        macs = cost.per_image(control.kept) - cost.policy
        result[name] = {
            "top1": control.top1,
            "blocks_used": float(control.blocks_used.mean()),
            "macs": float(macs.mean()),
            "cost_fraction": float(macs.mean() / cost.dense),
        }
    result["most_frequent"]["policy"] = digits(frequent.cpu().numpy())
    return result


def all_blocks(net: BlockDropNet) -> Choose:
    """Policies that keep everything."""
    return lambda images: torch.ones(len(images), net.num_blocks, dtype=torch.bool, device=images.device)


def in_order(kept: Tensor) -> Choose:
    """Policies that are known beforehand, bool [n, K], a batch taking the next rows."""
    taken = 0

    def choose(images: Tensor) -> Tensor:
        nonlocal taken
        taken += len(images)
        return kept[taken - len(images) : taken].to(images.device)

    return choose


def paper_lines(result: dict[str, Any]) -> str:
    """The four lines that the authors' evaluation prints, with their unit of cost."""
    flops, sd = PAPER_UNITS * result["macs"], PAPER_UNITS * result["macs_sd"]
    return (
        f"    Accuracy: {result['top1']:.3f}\n"
        f"    Block Usage: {result['blocks_used']:.3f} ± {result['blocks_used_sd']:.3f}\n"
        f"    FLOPs/img: {flops:.2E} ± {sd:.2E}\n"
        f"    Unique Policies: {result['unique_policies']}"
    )


def measured(
    net: BlockDropNet,
    batches: EvalBatches | StreamEvalBatches,
    accelerator: Accelerator,
    cost: BlockCosts,
    *,
    seed: int,
    dense: SkippingResNet | None = None,
    compare: bool = True,
    executor: str = "auto",
) -> tuple[Decisions, dict[str, Any]]:
    """What a network decides, and its `summary` with `stages` and, empty unless `compare`, its `controls`."""
    found = decisions(net, batches, accelerator, executor=executor)
    others = controls(net, batches, accelerator, found, cost, seed=seed, dense=dense) if compare else {}
    return found, summary(found, cost) | {"stages": net.resnet.stages, "controls": others}


def print_summary(result: dict[str, Any], split: str = "test") -> None:
    """The paper's lines, the same in MACs, and the controls, for the images of a split; `result` is as `measured`."""
    print(paper_lines(result))
    print(
        f"    (FLOPs are the paper's, 2 x MACs. MACs/img: {result['macs']:,.0f}, of which policy network "
        f"{result['policy_macs']:,}; the dense network takes {result['dense_macs']:,})"
    )
    lines = {"policy network": result, **{CONTROLS[name]: control for name, control in result["controls"].items()}}
    rows = [
        [
            name,
            f"{100 * line['top1']:.2f}",
            f"{line['blocks_used']:.2f} of {result['num_blocks']}",
            f"{line['macs']:,.0f}",
            f"{100 * line['cost_fraction']:.1f} %",
        ]
        for name, line in lines.items()
    ]
    table(f"{split} images", ["blocks chosen by", "top-1 %", "blocks", "MACs", "of dense"], rows)
    if result["collapse"]:
        print(f"warning: the policies have collapsed: {result['collapse']}")
    if result["cost_fraction"] > 1:
        print(
            "warning: with its policy network an image costs more than in the dense network: "
            "a larger --policy-pool makes the policy network cheaper"
        )


def report(
    run: Run,
    net: BlockDropNet,
    data: Pipeline,
    test_images: EvalBatches | StreamEvalBatches,
    *,
    dense: SkippingResNet | None = None,
) -> Path:
    """Read the test images, once, and write what a run ends with; returns its model folder.

    `dense` is the residual network as fine-tuning found it, where there was any.
    """
    cost = costs.count(net, data.example)
    found, result = measured(net, test_images, run.accelerator, cost, seed=run.settings.seed, dense=dense)
    if run.accelerator.is_main_process:
        with run.writing("the decisions"):
            found.save(run.folder / "policies.npz")
        print_summary(result)
    folder = run.finish(
        net,
        data,
        metrics=result,
        description=(
            "A policy network picks the residual blocks that run for each image (BlockDrop). The MACs below are those "
            f"of a blank image: the test images took {result['macs']:,.0f} on average, where the dense network takes "
            f"{result['dense_macs']:,}."
        ),
    )
    if run.accelerator.is_main_process:
        with run.writing("pictures"):
            draw(found, data.test, run.folder, result)
            draw_rewards(run.history, run.folder / "rewards.png")
    return folder


def main(config: EvalConfig) -> dict[str, Any]:
    """What `blockdrop-eval` does: print, draw and write what a network's policies give; returns the JSON values."""
    check_choices(config)
    accelerator = new_accelerator(config.mixed_precision)
    if config.load is None and config.model in MODELS and not Path(config.model).exists():
        raise InputError(f"--load is missing: give a model folder of a {config.model}, or an authors' checkpoint")
    if config.load is not None and Path(config.model).is_dir() and Path(config.model) != Path(config.load):
        raise InputError(f"--model is the folder {config.model}, but --load is {config.load}: give one of them")
    source = config.load or config.model
    net, preprocessing = loading.trained(config, source)
    check_specialise(config, net)
    check_recalibration(net.resnet, config.recalibrate_bn, source)
    shards = Shards.of(accelerator, config.channels_last)
    # Authors' files have no names, but the folder of the residual network that one of them goes with may have.
    names = weights.class_names_of(source) or weights.class_names_of(config.backbone)
    data = Pipeline(config.data, config.seed, shards, preprocessing, names)
    images = data.train if config.split == "train" else data.test
    check_fit(net, images)
    net = net.to(accelerator.device)
    if config.channels_last:
        net = net.to(memory_format=torch.channels_last)
    batches, example = data.evaluation(images, config.batch_size), torch.zeros(1, *images.image_shape)
    cost = costs.count(net, example)
    if config.recalibrate_bn:
        drawn = calibration_batches(data, config.recalibrate_bn, config.batch_size)
        recalibrate_kept(net, drawn, accelerator)
    found, result = measured(
        net, batches, accelerator, cost, seed=config.seed, compare=config.controls, executor=config.executor
    )
    if accelerator.is_main_process:
        print_summary(result, config.split)
        if config.repeats:
            some = speed.some(batches)
            with accelerator.autocast():
                result["speed"] = speed.measure(net, some, config.batch_size, cost, config.repeats, config.executor)
            speed.show(result["speed"])
        if config.output is not None:
            write_text(Path(config.output), json.dumps(result, indent=1) + "\n")
            print(f"wrote {config.output}")
        if config.plots is not None:
            draw(found, images, Path(config.plots), result)
            print(f"wrote pictures to {config.plots}")
        # A model folder's accuracies are those of test images.
        measured_on = result["controls"] if config.split == "test" else {}
        frequent, metrics = result["most_frequent_policy"], measured_on.get("most_frequent", {})
        specialise(net, config, frequent, metrics, preprocessing, example, images.class_names)
    return result


if __name__ == "__main__":
    from blockdrop.cli import evaluate as script

    script()
