"""The paper's models and the configurations of the four commands. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from resless.config import DataConfig, OptimConfig, Precision, RunConfig, SourceConfig, check_output, check_seed
from resless.errors import check

POLICY_NETWORKS = ("resnet8", "resnet10")


@dataclass(frozen=True)
class Model:
    """One of the paper's models: a residual network, its policy network, and what it expects of its images."""

    backbone: str
    num_blocks: int
    num_classes: int
    dataset: str
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the residual network."""
    policy: str = "resnet8"
    """Policy network, one of POLICY_NETWORKS."""
    policy_pool: int = 1
    """Side of the squares of pixels that are averaged before the policy network sees an image."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


_AVGPOOL = {"shortcut": "avgpool"}
MODELS: dict[str, Model] = {
    "R32_C10": Model(
        "resnet32",
        15,
        10,
        "cifar10",
        _AVGPOOL,
        mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
        std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
    ),
    "R110_C10": Model("resnet110", 54, 10, "cifar10", _AVGPOOL),
    "R32_C100": Model("resnet32", 15, 100, "cifar100", _AVGPOOL),
    "R110_C100": Model("resnet110", 54, 100, "cifar100", _AVGPOOL),
    "R101_ImgNet": Model(
        "torchvision/resnet101",
        33,
        1000,
        "imagenet",
        policy="resnet10",
        policy_pool=2,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
}


@dataclass(frozen=True)
class BackboneConfig:
    """Which network BlockDrop works on, and where its weights are."""

    model: str = "R32_C10"
    """One of the paper's models (R32_C10, R110_C10, R32_C100, R110_C100, R101_ImgNet), or any residual network of
    resless-train, such as resnet20."""
    backbone: str | None = None
    """Its trained weights: a model folder, a checkpoint of such a network, or the authors' file."""
    shortcut: Literal["conv", "subsample", "avgpool"] | None = None
    """Shortcut of the network in a checkpoint; None takes the model's. A model folder knows its own."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel that the backbone was trained with, on the scale 0..1; None takes the model folder's, or
    the model's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, likewise."""

    def __post_init__(self) -> None:
        check((self.mean is None) == (self.std is None), "--std", self.std, "given together with --mean")
        check(self.std is None or all(value > 0 for value in self.std), "--std", self.std, "above 0 each")


# The authors' names for two options, so that their commands work as they are.
@dataclass(frozen=True)
class Optim(OptimConfig):
    __doc__ = OptimConfig.__doc__

    epochs: Annotated[int, tyro.conf.arg(aliases=["--max-epochs"])] = 10
    """Passes over the training images."""


@dataclass(frozen=True)
class Run(RunConfig):
    __doc__ = RunConfig.__doc__

    run_dir: Annotated[str | None, tyro.conf.arg(aliases=["--cv-dir"])] = None
    """Folder of this run; None makes one under runs/, named after what is trained."""


@dataclass(frozen=True)
class TrainConfig(BackboneConfig):
    """Curriculum training of the policy network, the residual network frozen: what `blockdrop-train` does."""

    policy_pool: int | None = None
    """Side of the squares of pixels that are averaged before the policy network sees an image; None takes the model's
    (1 on CIFAR, 2 on ImageNet). Each doubling makes the policy network four times cheaper."""
    policy_weights: str | None = None
    """Checkpoint that the policy network's features start from; of a ResNet-18 for ImageNet's ResNet-10."""
    penalty: float = -1.0
    """Reward of a wrong prediction, negative: the paper's gamma."""
    alpha: float = 0.8
    """Largest probability with which a block is kept or dropped while training."""
    entropy_bonus: Annotated[float, tyro.conf.arg(aliases=["--beta"])] = 0.1
    """Weight of the entropy of the policies in the loss, against early decisions: the paper's beta."""
    curriculum_step: int = 1
    """Blocks that are opened to the policy each epoch, from the last one on."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: Optim = field(default_factory=lambda: Optim(optimizer="adam", lr=1e-3))
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_policy_gradient(self.penalty, self.alpha, self.entropy_bonus)
        check(self.curriculum_step > 0, "--curriculum-step", self.curriculum_step, "1 block or more")
        pool = self.policy_pool
        check(pool is None or 1 <= pool <= 64, "--policy-pool", pool, "from 1 to 64 pixels")


@dataclass(frozen=True)
class FinetuneConfig(BackboneConfig):
    """Joint fine-tuning of both networks: what `blockdrop-finetune` does."""

    pretrained: str | None = None
    """What to start from: a model folder of blockdrop-train, or an authors' checkpoint; with one that holds only the
    policy network, --backbone is needed too."""
    penalty: float = -10.0
    """Reward of a wrong prediction, negative: the further below zero, the more accurate and the less frugal."""
    alpha: float = 0.8
    """Largest probability with which a block is kept or dropped while training."""
    policy_reduction: Literal["sum", "mean"] = "sum"
    """How the policy's loss is reduced over a batch before the mean cross-entropy is added; the authors' is the sum."""
    entropy_bonus: Annotated[float, tyro.conf.arg(aliases=["--beta"])] = 0.0
    """Weight of the mean entropy of the policies in the loss; the authors have none here. Some keeps probabilities from
    running to 0 or 1, where nothing moves them any more."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: Optim = field(default_factory=lambda: Optim(optimizer="adam", lr=1e-4))
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_policy_gradient(self.penalty, self.alpha, self.entropy_bonus)


@dataclass(frozen=True)
class EvalConfig(BackboneConfig):
    """Accuracy, cost and policies of a trained network: what `blockdrop-eval` does."""

    model: str = tyro.MISSING
    """Model folder; or, with --load, the name of the model that a checkpoint is of."""
    load: str | None = None
    """Model folder, or authors' checkpoint."""
    split: Literal["test", "train"] = "test"
    """Images to evaluate on."""
    batch_size: int = 256
    """Images in one step, over all processes, and in each timed batch."""
    executor: Literal["auto", "masked", "gathered", "grouped"] = "auto"
    """How blocks are skipped: gathering the images that keep a block, or grouping images by policy; `auto` takes the
    faster; `masked` computes everything."""
    controls: bool = True
    """Compare with the most frequent policy for all images, random policies of the same keep rates, and all blocks."""
    repeats: int = 10
    """Interleaved timings against the dense network; 0 leaves them out."""
    seed: int = 0
    """Seed of the random policies."""
    specialise: str | None = None
    """Model folder to write: the plain network of one policy, see --policy."""
    policy: str | None = None
    """Policy to specialise to, as K digits 0 or 1, first block first; None takes the most frequent one."""
    overwrite: bool = False
    """Replace the folder that --specialise names, if it exists."""
    mixed_precision: Precision = "no"
    """Precision of the forward passes."""
    channels_last: bool = False
    """Layout of images and convolution weights."""
    recalibrate_bn: int = 0
    """Training images with which the statistics of the residual network's batch norms are computed anew before
    evaluation, of each block with those that keep it; 0 keeps them. The network of --specialise has them, too."""
    plots: str | None = None
    """Folder to write pictures of the policies to."""
    output: str | None = None
    """JSON file to write the result to."""
    data: SourceConfig = field(default_factory=SourceConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.batch_size > 0, "--batch-size", self.batch_size, "1 or more")
        check(self.repeats == 0 or self.repeats > 1, "--repeats", self.repeats, "0, or 2 or more")
        check(self.recalibrate_bn >= 0, "--recalibrate-bn", self.recalibrate_bn, "0 (off) or a number of images")
        check_seed(self.seed)
        digits = self.policy is None or (self.policy != "" and set(self.policy) <= {"0", "1"})
        check(digits, "--policy", self.policy, "a digit 0 or 1 for each block")
        plots = self.plots is None or not Path(self.plots).exists() or Path(self.plots).is_dir()
        check(plots, "--plots", self.plots, "a folder")
        check(self.policy is None or self.specialise is not None, "--policy", self.policy, "given with --specialise")
        check_output(self.output)


@dataclass(frozen=True)
class PlotConfig:
    """Pictures of the policies of a finished run: what `blockdrop-plot` does."""

    run_dir: Annotated[str, tyro.conf.arg(aliases=["--cv-dir"])]
    """Run folder of blockdrop-train or blockdrop-finetune."""
    output: str | None = None
    """Folder to write the pictures to; None writes them into the run folder."""
    data_dir: str | None = None
    """Folder that holds the run's data set, where it has moved."""


def _check_policy_gradient(penalty: float, alpha: float, entropy_bonus: float) -> None:
    check(-math.inf < penalty < 0, "--penalty", penalty, "below 0, and finite: what a wrong prediction costs")
    check(0.5 < alpha <= 1, "--alpha", alpha, "above 0.5 and at most 1")
    check(0 <= entropy_bonus < math.inf, "--entropy-bonus", entropy_bonus, "0 or more, and finite")
