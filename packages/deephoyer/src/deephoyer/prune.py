"""Cut what is small, fine-tune what is left with the zeros fixed (DeepHoyer, section 4): behind `deephoyer-prune`.

The cut is a pure function of the model folder and the configuration: a resumed run makes it again, and only the
fine-tuning is saved.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from resless import optim, weights
from resless.data.pipeline import Pipeline, check_fit
from resless.errors import InputError
from resless.evaluate import Evaluation, evaluate
from resless.report import table
from resless.run import Run
from torch import Tensor, nn

from deephoyer import method
from deephoyer.config import PruneConfig
from deephoyer.report import SparsityReport, draw_histogram, print_sparsity, prunable, sparsity


class EmptyLayer(InputError):
    """A threshold would leave nothing of a layer."""


@dataclass(frozen=True)
class Pruned:
    """A pruned network: accuracy `before`, after the `cut` and after fine-tuning (`tuned`), and what is left of it.

    `held_out` is empty where nothing was held out, `test` where the test images were not to be read.
    """

    held_out: dict[str, Evaluation]
    test: dict[str, Evaluation]
    left: SparsityReport


def prune(config: PruneConfig, *, read_test: bool = True) -> Pruned:
    """Prune and fine-tune one model folder, and write the run folder.

    Raises:
        InputError: the model folder cannot be read.
        EmptyLayer: the threshold would empty a layer.
    """
    label = f"prune-{config.rule}-{config.threshold}-{config.sensitivity:g}"
    with Run(config, "deephoyer-prune", label) as run:
        data = Pipeline(config.data, config.run.seed, run.shards)
        batches = data.training(config.optim.batch_size)
        model = weights.from_pretrained(config.model[0])
        check_fit(model, data.train)
        before = copy.deepcopy(model)
        limits = thresholds(model, config)
        masks = cut(model, limits, config.rule)
        after_cut = copy.deepcopy(model)
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
                # After the step, not before: whatever the optimiser did (momentum, decay), what was cut stays zero.
                fix_zeros(masks)
                run.track(loss=loss, accuracy=(logits.argmax(dim=1) == labels).float().mean())
            if config.data.holdout:
                run.log(held_out_top1=evaluate(model, data.held_out(), run.accelerator).top1)

        stages = {"before": before, "cut": after_cut, "tuned": model}
        for stage in (before, after_cut):
            stage.to(run.accelerator.device)
        held_out, test = {}, {}
        if config.data.holdout:
            held_out = {name: evaluate(stage, data.held_out(), run.accelerator) for name, stage in stages.items()}
        if read_test:  # once, here, and nothing is chosen by it
            batches_of_test = data.evaluation(data.test)
            test = {name: evaluate(stage, batches_of_test, run.accelerator) for name, stage in stages.items()}
        plain = run.accelerator.unwrap_model(model)
        pruned = Pruned(held_out, test, sparsity(plain, data.example.to(run.accelerator.device)))
        run.finish(model, metrics=metrics(pruned), preprocessing=data.preprocessing, example=data.example)
        if run.accelerator.is_main_process:
            draw_histogram(before, config.rule, limits, run.folder / "histogram.png")
            _print(pruned)
    return pruned


def thresholds(model: nn.Module, config: PruneConfig) -> dict[str, float]:
    """The threshold of each tensor: `--sensitivity` itself, or so many times the tensor's standard deviation."""
    if config.threshold == "fixed":
        return dict.fromkeys(prunable(model), config.sensitivity)
    return {name: method.std_threshold(weight, config.sensitivity) for name, weight in prunable(model).items()}


@torch.no_grad()
def cut(model: nn.Module, limits: dict[str, float], rule: str) -> list[tuple[Tensor, Tensor]]:
    """Set to zero, in place, what is not above the thresholds; returns each tensor with its mask of what is kept.

    Raises:
        EmptyLayer: a layer would be left without any weight.
    """
    decide = method.group_mask if rule == "group" else method.element_mask
    masks = [(name, weight, decide(weight, limits[name])) for name, weight in prunable(model).items()]
    for name, weight, mask in masks:
        if not mask.any():
            largest = method.filter_norms(weight).max() if rule == "group" else weight.abs().max()
            raise EmptyLayer(
                f"the threshold {limits[name]:.3g} would empty layer {name}, where the largest "
                f"{'norm' if rule == 'group' else 'weight'} is {float(largest):.3g}: lower --sensitivity"
            )
    for _, weight, mask in masks:
        weight.mul_(mask)
    return [(weight, mask) for _, weight, mask in masks]


@torch.no_grad()
def fix_zeros(masks: list[tuple[Tensor, Tensor]]) -> None:
    """Put back the zeros that an optimiser step may have moved."""
    for weight, mask in masks:
        weight.mul_(mask)


def metrics(pruned: Pruned) -> dict[str, object]:
    """JSON values for `result.json` and the model card."""
    accuracy = {
        f"{split}_top1_{stage}": result.top1
        for split, results in (("held_out", pruned.held_out), ("test", pruned.test))
        for stage, result in results.items()
    }
    return accuracy | pruned.left.as_dict()


def _print(pruned: Pruned) -> None:
    names = {"before": "before the cut", "cut": "after the cut", "tuned": "after fine-tuning"}
    splits = {"held-out": pruned.held_out, "test": pruned.test}
    rows = [
        [names[stage], split, f"{result.images:,}", f"{100 * result.top1:.2f}"]
        for split, results in splits.items()
        for stage, result in results.items()
    ]
    table("accuracy", ["network", "split", "images", "top-1 %"], rows)
    print_sparsity(pruned.left, "what is left")


if __name__ == "__main__":
    from deephoyer.cli import prune as script

    script()
