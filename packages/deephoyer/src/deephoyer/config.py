"""Configurations of the four commands. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro
from resless.config import DataConfig, OptimConfig, Precision, RunConfig, SourceConfig, check_output, check_side
from resless.errors import InputError, check, unknown_name

ELEMENT_WISE = ("l1", "hoyer", "hoyer_square", "transformed_l1")
STRUCTURAL = ("group_lasso", "group_hoyer", "group_hoyer_square")

# What the numbers of the authors' `--reg` stand for, by the kind of network and pruning that the script is for.
AUTHORS_NUMBERS: dict[str, tuple[str, ...]] = {
    "element": ("none", *ELEMENT_WISE),
    "structural-mnist": ("none", "group_lasso", "group_hoyer_square"),
    "structural-cifar": ("none", *STRUCTURAL),
}


def regulariser_name(given: str, structural: bool, model: str) -> str:
    """The regulariser that `--reg` means: a name, or one of the authors' numbers.

    Raises:
        InputError: no such name or number.
    """
    if not given.isdecimal():
        known = ("none", *ELEMENT_WISE, *STRUCTURAL)
        if given not in known:
            raise unknown_name("regulariser", given, known)
        return given
    script = "element" if not structural else "structural-mnist" if model.startswith("lenet") else "structural-cifar"
    numbers = AUTHORS_NUMBERS[script]
    if int(given) >= len(numbers):
        meanings = ", ".join(f"{number} {name}" for number, name in enumerate(numbers))
        raise InputError(f"--reg is {given}, but the numbers for this kind of pruning are {meanings}")
    return numbers[int(given)]


@dataclass(frozen=True)
class ForeignConfig:
    """What a checkpoint file does not say of its network; a model folder does."""

    shortcut: Literal["conv", "subsample", "avgpool", "avgpool_centred"] | None = None
    """How a CIFAR ResNet changes stage, as for resless-train; None means conv."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel that the network was trained with, on the scale 0..1; None takes the model folder's, else
    the data set's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, likewise."""

    def __post_init__(self) -> None:
        check((self.mean is None) == (self.std is None), "--std", self.std, "given together with --mean")
        check(self.std is None or all(value > 0 for value in self.std), "--std", self.std, "above 0 each")

    @property
    def statistics(self) -> dict[str, list[float]]:
        """Mean and standard deviation, where they are given."""
        return {"mean": list(self.mean), "std": list(self.std)} if self.mean and self.std else {}


@dataclass(frozen=True)
class TrainConfig:
    """Training with a sparsity regulariser: what `deephoyer-train` does."""

    model: str = "lenet_300_100"
    """Network, as for resless-train; of --pretrained, which a model folder may have made smaller."""
    pretrained: str | None = None
    """Model folder or checkpoint file of the dense network to start from; None starts from fresh weights."""
    structural: bool = False
    """Read the numbers of --reg as those for structural pruning; names need no such help."""
    reg: Annotated[str, tyro.conf.arg(aliases=["--regulariser"])] = "hoyer_square"
    """none, l1, hoyer, hoyer_square, transformed_l1 (element by element); group_lasso, group_hoyer, group_hoyer_square
    (filters and channels); or the authors' number."""
    strength: Annotated[float, tyro.conf.arg(aliases=["--decay"])] = 0.0
    """Factor of the regulariser in the loss."""
    tied: bool = False
    """Regularise a channel with all that writes and reads it, as `deephoyer-prune --rule tied` cuts it, instead of the
    filters and input channels of each layer by themselves; of convolution networks."""
    sweep: tuple[float, ...] = ()
    """Strengths to train with, one run each, for `deephoyer-prune --sweep` to choose from on held-out images."""
    foreign: ForeignConfig = field(default_factory=ForeignConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(optimizer="adam", lr=1e-3, batch_size=100))
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        check(0 <= self.strength < math.inf, "--strength", self.strength, "0 or more, and finite")
        check(all(0 <= value < math.inf for value in self.sweep), "--sweep", self.sweep, "0 or more each, and finite")
        swept = not self.sweep or self.regulariser != "none"
        check(swept, "--sweep", self.sweep, "left out with --reg none, which has no strength")
        judged = not self.sweep or self.data.holdout > 0
        check(judged, "--holdout", self.data.holdout, "above 0, so that a sweep can be judged by images not trained on")
        applies = self.regulariser in ("none", *STRUCTURAL) or not self.tied
        check(applies, "--tied", self.tied, f"off (--no-tied), or given with {', '.join(STRUCTURAL)}")

    @property
    def regulariser(self) -> str:
        """Name of the regulariser."""
        return regulariser_name(self.reg, self.structural, self.model)


@dataclass(frozen=True)
class PruneConfig:
    """Cut, then fine-tune with the zeros fixed: what `deephoyer-prune` does."""

    model: tuple[str, ...]
    """Model folder to prune; with --sweep there may be several, one a strength. With --pretrained, the name of the
    network."""
    pretrained: str | None = None
    """Checkpoint file (or model folder) of the network that --model names."""
    rule: Literal["elementwise", "group", "tied"] = "elementwise"
    """Cut single weights by magnitude; filters and input channels of each layer by their norm; or channels, with all
    that writes and reads them, by the mean square of those norms, each divided by its threshold: then every layer of a
    stage has the same ones, and the smaller network copies nothing."""
    threshold: Literal["std", "fixed", "macs", "rms"] = "std"
    """What --sensitivity is: a factor of each tensor's standard deviation; the threshold itself; the threshold of
    the layer whose weights are used most often an image, the others' being lower in proportion to their use; or, for
    groups, a factor of the root mean square of each tensor's group norms: below 1 some are above it."""
    sensitivity: float = 0.5
    """Weights (or groups) up to this size are cut."""
    memory_cost: float = 0.0
    """With --threshold rms, how many multiply-adds take as long as it takes to move one number of a layer's inputs or
    outputs; about 128 on processors. Above 0, narrow layers with large images lose more and others less, so that as
    many multiply-adds take less time."""
    target_macs: int | None = None
    """Cut just so much that at most so many MACs an image are left, instead of by --sensitivity; with --sweep, take
    the most accurate of the points that need at most so many."""
    target_weights: int | None = None
    """Cut just so much that at most so many weights are left, instead of by --sensitivity."""
    sweep: tuple[float, ...] = ()
    """Sensitivities to compare on held-out images, of which one is then used; --target-macs or --max-accuracy-drop
    says which."""
    max_accuracy_drop: float | None = None
    """Of the sweep's points, take the cheapest whose held-out accuracy is at most so much lower (a fraction) than that
    of the best of the networks before the cut."""
    sweep_epochs: int = 0
    """Epochs of fine-tuning that each point of the sweep gets before it is judged."""
    round_to: int = 1
    """Widths are multiples of this, 8 and 16 suit processors: with --rule tied, so many channels at a time are kept or
    cut, by their mean; with --rule group, the largest of what it cuts are kept."""
    compact: bool = False
    """With --rule group or tied, make the network smaller before it is fine-tuned: the same training steps in less
    time. The model folder is that of the smaller network."""
    recalibrate_bn: int = 0
    """Training images with which the statistics of batch norms are computed anew after the cut, before anything is
    evaluated or trained; 0 leaves them as they are."""
    dry_run: bool = False
    """Print what each sensitivity (those of --sweep, or some) would leave, and the accuracy on held-out images without
    fine-tuning, and which meet a target; train and write nothing."""
    foreign: ForeignConfig = field(default_factory=ForeignConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(optimizer="adam", lr=1e-4, batch_size=100))
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        check(self.sensitivity >= 0, "--sensitivity", self.sensitivity, "0 or more")
        check(all(value >= 0 for value in self.sweep), "--sweep", self.sweep, "0 or more each")
        check(self.sweep_epochs >= 0, "--sweep-epochs", self.sweep_epochs, "0 or more")
        check(bool(self.model), "--model", self.model, "at least one model folder")
        drop, macs, count = self.max_accuracy_drop, self.target_macs, self.target_weights
        check(drop is None or 0 <= drop <= 1, "--max-accuracy-drop", drop, "a fraction from 0 to 1")
        check(macs is None or macs > 0, "--target-macs", macs, "above 0")
        check(count is None or count > 0, "--target-weights", count, "above 0")
        by_group = self.rule != "elementwise"
        ruled = by_group or self.threshold != "rms"
        check(ruled, "--threshold", self.threshold, "std, fixed or macs, unless --rule is group or tied")
        check(0 <= self.memory_cost < math.inf, "--memory-cost", self.memory_cost, "0 or more, and finite")
        weighed = self.threshold == "rms" or not self.memory_cost
        check(weighed, "--memory-cost", self.memory_cost, "left out, unless --threshold is rms")
        check(self.round_to >= 1, "--round-to", self.round_to, "1 or more")
        rounded = by_group or self.round_to == 1
        check(rounded, "--round-to", self.round_to, "left out, unless --rule is group or tied")
        check(by_group or not self.compact, "--compact", self.compact, "left out, unless --rule is group or tied")
        check(self.recalibrate_bn >= 0, "--recalibrate-bn", self.recalibrate_bn, "0 (off) or a number of images")
        check(macs is None or count is None, "--target-weights", count, "left out where --target-macs is given")
        if self.dry_run:
            check(len(self.model) == 1, "--model", self.model, "one network for a --dry-run")
        elif self.sweep:
            limits = "given with either --max-accuracy-drop or --target-macs"
            check((drop is None) != (macs is None) and count is None, "--sweep", self.sweep, limits)
            check(self.data.holdout > 0, "--holdout", self.data.holdout, "above 0, so that a sweep can be judged")
        else:
            check(len(self.model) == 1, "--model", self.model, "one model folder, unless there is a --sweep")
            check(drop is None, "--max-accuracy-drop", drop, "given with a --sweep")


@dataclass(frozen=True)
class CompactConfig:
    """Make a pruned network physically smaller: what `deephoyer-compact` does."""

    model: str
    """Model folder of a pruned network; with --pretrained, its name."""
    output: str
    """Model folder to write."""
    pretrained: str | None = None
    """Checkpoint file (or model folder) of the network that --model names."""
    num_classes: int | None = None
    """Number of logits of the network in a checkpoint file; None means 10."""
    image_size: int | None = None
    """Side in pixels of the images of a network whose model folder does not tell it, or that has none."""
    round_to: int = 1
    """Keep so many zeros that the widths of layers are multiples of this: 8 and 16 suit processors."""
    export: Literal["onnx"] | None = None
    """Write OUTPUT.onnx too, beside the model folder, and check it with onnxruntime."""
    overwrite: bool = False
    """Replace the output folder if it exists."""
    batch_size: int = 256
    """Larger of the two batch sizes at which both networks are timed."""
    repeats: int = 30
    """Interleaved timings of each network; 0 leaves the timing out."""
    foreign: ForeignConfig = field(default_factory=ForeignConfig)

    def __post_init__(self) -> None:
        check(self.num_classes is None or self.num_classes > 0, "--num-classes", self.num_classes, "1 or more")
        check_side("--image-size", self.image_size)
        check(self.round_to >= 1, "--round-to", self.round_to, "1 or more")
        check(self.batch_size > 0, "--batch-size", self.batch_size, "1 or more")
        check(self.repeats == 0 or self.repeats > 1, "--repeats", self.repeats, "0, or 2 or more")


@dataclass(frozen=True)
class EvalConfig:
    """Accuracy and sparsity of a model folder: what `deephoyer-eval` does."""

    model: str
    """Model folder; with --pretrained, the name of the network."""
    pretrained: str | None = None
    """Checkpoint file (or model folder) of the network that --model names."""
    split: Literal["test", "train"] = "test"
    """Images to evaluate on."""
    batch_size: int = 500
    """Images in one step, over all processes."""
    mixed_precision: Precision = "no"
    """Precision of the forward passes."""
    channels_last: bool = False
    """Layout of images and convolution weights."""
    recalibrate_bn: int = 0
    """Training images with which the statistics of batch norms are computed anew before evaluation; 0 keeps them."""
    output: str | None = None
    """JSON file to write the report to."""
    foreign: ForeignConfig = field(default_factory=ForeignConfig)
    data: SourceConfig = field(default_factory=SourceConfig)

    def __post_init__(self) -> None:
        check(self.batch_size > 0, "--batch-size", self.batch_size, "1 or more")
        check(self.recalibrate_bn >= 0, "--recalibrate-bn", self.recalibrate_bn, "0 (off) or a number of images")
        check_output(self.output)
