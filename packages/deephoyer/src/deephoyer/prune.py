"""Cut what is small, fine-tune what is left with the zeros fixed (DeepHoyer, section 4): behind `deephoyer-prune`.

The cut is a pure function of the model folder and the configuration: a resumed run makes it again, and only the
fine-tuning is saved.
"""

from __future__ import annotations

import copy
import shlex
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from resless import costs, models, optim, weights
from resless.calibrate import calibration_batches, check_recalibration, recalibrate
from resless.config import source_options
from resless.data.pipeline import Pipeline, check_fit
from resless.errors import check
from resless.evaluate import Evaluation, evaluate
from resless.models.folded import check_unfolded
from resless.report import table
from resless.run import Run
from torch import Tensor, nn

from deephoyer import channels, loading, method
from deephoyer.compact import LENETS, compact, mac_counter, normalised
from deephoyer.config import PruneConfig
from deephoyer.graph import CannotFollow
from deephoyer.plan import EmptyLayer
from deephoyer.report import SparsityReport, draw_histogram, print_sparsity, prunable, sparsity

BISECTIONS = 30


@dataclass(frozen=True)
class Structure:
    """What of a network goes together when it is cut by groups."""

    followers: dict[str, list[str]]
    """Name of a weight -> names of the vectors that go with its filters."""
    coupling: channels.Coupling | None
    """Its channels, for the rule `tied`."""


@dataclass(frozen=True)
class Budget:
    """What may be left of a network: `--target-macs` or `--target-weights`."""

    option: str
    most: int
    left: Callable[[nn.Module], int]
    """What is left of a copy of the network, with zeros. It raises EmptyLayer as `compact` does."""

    def met(self, network: nn.Module) -> bool:
        return self.left(network) <= self.most


@dataclass(frozen=True)
class Pruned:
    """A pruned network: accuracy `before`, after the `cut` and after fine-tuning (`tuned`), and what is left of it.

    `held_out` is empty where nothing was held out, `test` where the test images were not to be read. `sensitivity` is
    the one that was used, `thresholds` what it came to for each tensor.
    """

    held_out: dict[str, Evaluation]
    test: dict[str, Evaluation]
    left: SparsityReport
    sensitivity: float
    thresholds: dict[str, float]


def prune(config: PruneConfig, *, read_test: bool = True) -> Pruned:
    """Prune and fine-tune one model folder, and write the run folder.

    Raises:
        InputError: the model folder cannot be read.
        EmptyLayer: the threshold would empty a layer.
    """
    label = f"prune-{Path(config.model[0]).parent.name or config.model[0]}-{config.rule}"
    with Run(config, "deephoyer-prune", label) as run:
        source = loading.of(config.model[0], config.pretrained, config.foreign)
        names = weights.class_names_of(source.folder)
        data = Pipeline(config.data, config.run.seed, run.shards, source.preprocessing, names)
        batches = data.training(config.optim.batch_size)
        held_out_images = data.held_out() if config.data.holdout else None
        model = source.network(partial(models.create_for, config.model[0], data.train))
        check_unfolded(model, "pruned")
        check_recalibration(model, config.recalibrate_bn, source.name)
        check_fit(model, data.train)
        before = copy.deepcopy(model)
        sensitivity, limits, masks = cut_as_asked(model, config, data.example)
        test_images = data.evaluation(data.test) if read_test else None
        if config.recalibrate_bn:
            drawn = calibration_batches(data, config.recalibrate_bn, config.optim.batch_size)
            recalibrate(model.to(run.accelerator.device), drawn, run.accelerator)
        after_cut = copy.deepcopy(model).cpu()
        small = smaller(after_cut, config, data.example)
        if config.compact:
            model, masks = small, zeros(small, data.example)
        optimizer = optim.build(model.parameters(), config.optim)
        model, optimizer = run.prepare(model, optimizer)
        masks = [(weight, mask.to(weight.device)) for weight, mask in masks if not mask.all()]

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
            if held_out_images is not None:
                found = evaluate(model, held_out_images, run.accelerator)
                run.log(held_out_top1=found.top1, held_out_loss=found.loss)

        stages = {"before": before, "cut": after_cut, "tuned": model}
        for stage in (before, after_cut):
            stage.to(run.accelerator.device)
        held_out, test = {}, {}
        if held_out_images is not None:
            held_out = {name: evaluate(stage, held_out_images, run.accelerator) for name, stage in stages.items()}
        if test_images is not None:  # once, here, and nothing is chosen by it
            test = {name: evaluate(stage, test_images, run.accelerator) for name, stage in stages.items()}
        # In float32 on the CPU: under autocast, or with a GPU's TF32, the compacted network could not equal this one.
        zeroed = after_cut if config.compact else run.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        plain = copy.deepcopy(zeroed).cpu()
        pruned = Pruned(held_out, test, sparsity(plain, data.example, config.round_to), sensitivity, limits)
        folder = run.finish(model, data, metrics=metrics(pruned))
        if run.accelerator.is_main_process:
            if config.rule != "tied":  # where no single norm decides
                draw_histogram(before, config.rule, limits, run.folder / "histogram.png")
            _print(pruned)
        if read_test:
            ends = config.compact or bool(pruned.left.not_compacted)
            run.say(f"next: {evaluation(config, folder) if ends else compaction(config, folder)}")
    return pruned


def smaller(model: nn.Module, config: PruneConfig, example: Tensor) -> nn.Module:
    """The compacted network, before any training: where nothing leads to the logits, that is refused now.

    A network that cannot be compacted stays as it is, pruned, unless `--compact` asks for more.

    Raises:
        EmptyLayer: nothing leads to the logits.
        CannotFollow: the network cannot be compacted, and `--compact` is given.
    """
    try:
        return compact(model, example, config.round_to)
    except CannotFollow:
        if config.compact:
            raise
        return model


def evaluation(config: PruneConfig, folder: Path) -> str:
    """The command that evaluates a model folder."""
    return f"deephoyer-eval --model {shlex.quote(str(folder))} {source_options(config.data)}"


def compaction(config: PruneConfig, folder: Path) -> str:
    """The command that makes the network of a model folder smaller."""
    words = ["deephoyer-compact", "--model", str(folder), "--output", str(folder.with_name("small"))]
    words += ["--round-to", str(config.round_to)] if config.round_to > 1 else []
    return shlex.join(words)


def cut_as_asked(
    model: nn.Module, config: PruneConfig, example: Tensor
) -> tuple[float, dict[str, float], list[tuple[Tensor, Tensor]]]:
    """Cut a network in place; the sensitivity, the thresholds that it came to, and the masks, as of `cut`.

    A target is met by the least sensitivity that does, and what room that leaves below it is filled by the rule `tied`.
    It depends on the weights alone: no image is looked at.

    Args:
        model: the network.
        config: rule, threshold, target.
        example: one image [1, C, H, W].

    Raises:
        InputError: a network that the rule does not apply to, or that has less than the target.
        EmptyLayer: see `cut`; with a target, one that no cut meets.
    """
    known, target = structure(model, example, config.rule), budget(model, config, example)
    sensitivity, units = config.sensitivity, unit_thresholds(model, config, example)
    if target is not None:
        sensitivity = least_sensitivity(target, trial_cuts(model, config, units, known))
    limits, fits = scaled(units, sensitivity), None if target is None else target.met
    return sensitivity, limits, cut(model, limits, config.rule, known, config.round_to, fits)


def unit_thresholds(model: nn.Module, config: PruneConfig, example: Tensor) -> dict[str, float]:
    """The threshold of each tensor by `--threshold`, at a sensitivity of one; `example` is one image [1, C, H, W]."""
    tensors = prunable(model)
    if config.threshold == "fixed":
        return dict.fromkeys(tensors, 1.0)
    if config.threshold == "std":
        return {name: method.std_threshold(weight, 1.0) for name, weight in tensors.items()}
    if config.threshold == "rms":
        limits = {name: method.rms_threshold(weight, 1.0) for name, weight in tensors.items()}
        return by_time(limits, model, example, config.memory_cost) if config.memory_cost else limits
    macs = costs.layer_macs(model, example)
    uses = {name: macs[name.removesuffix(".weight")] / weight.numel() for name, weight in tensors.items()}
    return {name: use / max(uses.values()) for name, use in uses.items()}


def by_time(limits: Mapping[str, float], model: nn.Module, example: Tensor, memory_cost: float) -> dict[str, float]:
    """Thresholds lowered so that squares of norms are weighed by the time a multiply-add takes in their layers, with
    what the layer moves; that of the layer where it takes longest stays."""
    # Deviation: relative to their layers', the norms of a channel say what it is worth for the multiply-adds that it
    # takes, but a multiply-add takes longer in a narrow layer with large images, which is bound by memory.
    times = {
        f"{cost.name}.weight": 1 + memory_cost * cost.values / cost.macs if cost.macs else 1.0
        for cost in costs.layer_costs(model, example)
    }
    longest = max(times[name] for name in limits)
    return {name: limit * (times[name] / longest) ** 0.5 for name, limit in limits.items()}


def scaled(units: Mapping[str, float], sensitivity: float) -> dict[str, float]:
    """Thresholds at a sensitivity, to which all are proportional."""
    return {name: sensitivity * unit for name, unit in units.items()}


def least_sensitivity(target: Budget, cut_at: Callable[[float], nn.Module]) -> float:
    """The least sensitivity at which the trial cut meets the target.

    Raises:
        EmptyLayer: before that, a layer is empty; the least target that could be met is named.
    """

    def left(sensitivity: float) -> int:
        """0 where a layer is empty."""
        try:
            return target.left(cut_at(sensitivity))
        except EmptyLayer:
            return 0

    _, found = _between(lambda sensitivity: left(sensitivity) <= target.most)
    try:
        target.left(cut_at(found))
    except EmptyLayer as error:
        deepest, _ = _between(lambda sensitivity: left(sensitivity) == 0)
        least = f"{left(deepest):,} or more, for with less {error}"
        raise EmptyLayer(f"{target.option} is {target.most:,}, but must be {least}") from error
    return found


def _between(holds: Callable[[float], bool]) -> tuple[float, float]:
    """Two sensitivities, next to each other, from the second of which on it `holds`."""
    low, high = 0.0, least_power_of_two(holds)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low, high


def budget(model: nn.Module, config: PruneConfig, example: Tensor) -> Budget | None:
    """The target; None without one.

    Raises:
        InputError: the network has less as it is, zeros included.
    """
    # Deviation: the authors choose thresholds by hand; a cost is what users have in mind.
    if config.target_macs is not None:
        whole, target = costs.macs(model, example), config.target_macs
        check(target <= whole, "--target-macs", target, f"at most {whole:,}, the MACs of the network as it is")
        return Budget("--target-macs", target, mac_counter(model, example, config.round_to))
    if config.target_weights is not None:
        whole, target = sum(weight.numel() for weight in prunable(model).values()), config.target_weights
        check(target <= whole, "--target-weights", target, f"at most {whole:,}, the weights of the network as it is")
        return Budget("--target-weights", target, weight_counter(model, example))
    return None


def weight_counter(model: nn.Module, example: Tensor) -> Callable[[nn.Module], int]:
    """A function that tells how many weights, of networks of the structure of `model`, are not zero.

    It raises EmptyLayer as `compact` does; not for networks that `compact` cannot follow.
    """
    try:
        macs_left = mac_counter(model, example)
    except CannotFollow:
        macs_left = None

    def left(network: nn.Module) -> int:
        if macs_left is not None:
            macs_left(network)
        return sum(int(weight.count_nonzero()) for weight in prunable(network).values())

    return left


def trial_cuts(
    model: nn.Module, config: PruneConfig, units: Mapping[str, float], known: Structure
) -> Callable[[float], nn.Module]:
    """A function that gives a copy of the network, cut at a sensitivity. It raises EmptyLayer as `cut` does."""

    def cut_at(sensitivity: float) -> nn.Module:
        trial = copy.deepcopy(model)
        cut(trial, scaled(units, sensitivity), config.rule, known, config.round_to)
        return trial

    return cut_at


def least_power_of_two(holds: Callable[[float], bool]) -> float:
    """The least power of two from 2^-20 to 2^42 for which `holds`, and which, once it holds, holds for all larger; the
    next one, untried, if it holds for none."""
    exponents = range(-20, 43)
    return 2.0 ** (exponents[0] + bisect_left(exponents, True, key=lambda exponent: holds(2.0**exponent)))


def structure(model: nn.Module, example: Tensor, rule: str) -> Structure:
    """What `cut` has to know of a network for a rule.

    Of a network that `compact` cannot follow, nothing is known to go with its filters.

    Raises:
        InputError: for `tied`, a network that `compact` cannot follow, or a LeNet.
    """
    applies = rule != "tied" or not isinstance(model, LENETS)
    check(applies, "--rule", rule, "group or elementwise for a LeNet, whose layers are not tied")
    coupling = channels.coupling(model, example) if rule == "tied" else None
    try:
        return Structure(followers(model, example), coupling)
    except CannotFollow:
        return Structure({}, coupling)


def followers(model: nn.Module, example: Tensor) -> dict[str, list[str]]:
    """By the name of a convolution's weight, those of what makes a filter of zeros put out something else than zero:
    its bias, scale and shift of the batch norm that follows it. Empty for LeNets, where constants are folded.

    Raises:
        InputError: a network that `compact` cannot follow.
    """
    if isinstance(model, LENETS):
        return {}
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    for name, (convolution, norm) in normalised(model, example).items():
        tensors = [convolution.bias, *([] if norm is None else [norm.weight, norm.bias])]
        found[f"{name}.weight"] = [names[tensor] for tensor in tensors if tensor is not None]
    return found


@torch.no_grad()
def cut(
    model: nn.Module,
    limits: Mapping[str, float],
    rule: str,
    known: Structure | None = None,
    round_to: int = 1,
    fits: Callable[[nn.Module], bool] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Set to zero, in place, what is not above the thresholds; returns each tensor with its mask of what is kept.

    Args:
        model: the network.
        limits: threshold of each of its `prunable` tensors.
        rule: `tied`, `group` or `elementwise`.
        known: its `structure`; without it, only weights are cut, and not by `tied`.
        round_to: see `method.group_mask`.
        fits: whether a copy of the network that is cut meets its target; the rule `tied` then leaves what there is room
            for, see `Coupling.masks`.

    Raises:
        EmptyLayer: a layer of a network without branches would be left without any weight; `compact` tells that of
            others.
    """
    # Deviation: biases are regularised, as the authors', but only cut with a filter whose constant could not be folded.
    tensors, by_group = prunable(model), rule != "elementwise"
    following = known.followers if by_group and known is not None else {}
    masks_fit = None if fits is None else partial(_fits_with, model, following, fits)
    kept = _masks(tensors, limits, rule, known, round_to, masks_fit)
    for name, mask in kept.items():
        weight = tensors[name]
        if not mask.any() and isinstance(model, LENETS):
            largest = method.filter_norms(weight).max() if by_group else weight.abs().max()
            raise EmptyLayer(
                f"the threshold {limits[name]:.3g} would empty layer {name}, where the largest "
                f"{'norm' if by_group else 'weight'} is {float(largest):.3g}: cut less, or regularise less"
            )
    masks = _with_followers(model, kept, following)
    fix_zeros(masks)
    return masks


def _fits_with(
    model: nn.Module,
    following: Mapping[str, list[str]],
    fits: Callable[[nn.Module], bool],
    kept: Mapping[str, Tensor],
) -> bool:
    """Whether a copy of the network fits if only this of each tensor is kept."""
    trial = copy.deepcopy(model)
    fix_zeros(_with_followers(trial, kept, following))
    return fits(trial)


def _masks(
    tensors: Mapping[str, Tensor],
    limits: Mapping[str, float],
    rule: str,
    known: Structure | None,
    round_to: int,
    fits: Callable[[dict[str, Tensor]], bool] | None,
) -> dict[str, Tensor]:
    """True, in the shape of each tensor, for what is kept."""
    if rule == "elementwise":
        return {name: method.element_mask(weight, limits[name]) for name, weight in tensors.items()}
    if rule == "group":
        return {name: method.group_mask(weight, limits[name], round_to) for name, weight in tensors.items()}
    assert known is not None
    assert known.coupling is not None
    return known.coupling.masks(tensors, limits, round_to, fits)


def zeros(small: nn.Module, example: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each tensor of a compacted network with its mask of what is not zero: the zeros that `compact` had to keep.

    Args:
        small: the network; it is not changed.
        example: an image [1, C, H, W].
    """
    kept = {name: weight != 0 for name, weight in prunable(small).items()}
    return _with_followers(small, kept, followers(small, example))


def _with_followers(
    model: nn.Module, kept: Mapping[str, Tensor], following: Mapping[str, list[str]]
) -> list[tuple[Tensor, Tensor]]:
    """Each weight with its mask, and the vectors that go with its filters with the filters' mask."""
    parameters = dict(model.named_parameters())
    masks: list[tuple[Tensor, Tensor]] = []
    for name, mask in kept.items():
        filters = mask.flatten(1).any(dim=1)
        masks += [(parameters[name], mask), *((parameters[vector], filters) for vector in following.get(name, ()))]
    return masks


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
    return {**accuracy, "sensitivity": pruned.sensitivity, "thresholds": pruned.thresholds, **pruned.left.as_dict()}


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
