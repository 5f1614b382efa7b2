"""The configurations of the three commands. Free of torch."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro
from resless.config import DataConfig, OptimConfig, Precision, RunConfig, SourceConfig, check_output
from resless.errors import InputError, check

IMAGENET_DEPTHS = (18, 34, 50, 101, 152)
MAX_N = 1666  # 6n+2 layers, of which resless takes 10,000


def check_epsilon(epsilon: Any) -> None:
    """Raise InputError unless ε is a finite number of at least 0. Not only of command lines, of model folders too."""
    number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
    check(
        number and 0 <= epsilon <= sys.float_info.max,
        "--epsilon",
        epsilon,
        "0 (no block is discarded) or more, and finite",
    )


@dataclass(frozen=True)
class Optim(OptimConfig):
    """Optimiser and adaptive schedule. Batch sizes are global: over all processes together."""

    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate falls, until a block is lost."""
    restart_milestones: tuple[int, ...] = ()
    """The same once a block was lost: epochs counted from the one in which the last block was lost. None given: the
    learning rate never starts anew."""
    factors: tuple[float, ...] = ()
    """What the learning rate is multiplied with after each milestone, all counted from its start; None given: powers of
    `gamma`, which is left out beside them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.restart_milestones
        increasing = all(a < b for a, b in itertools.pairwise(steps)) and all(step > 0 for step in steps)
        check(increasing, "--restart-milestones", steps, "increasing epochs")
        fits = not steps or len(steps) == len(self.milestones)
        check(fits, "--restart-milestones", steps, f"as many as --milestones, {len(self.milestones)}, or none")
        fits = not self.factors or len(self.factors) == len(self.milestones)
        check(fits, "--factors", self.factors, f"as many as --milestones, {len(self.milestones)}, or none")
        check(all(0 < factor <= 1 for factor in self.factors), "--factors", self.factors, "above 0 and at most 1 each")
        unused = self.factors and self.gamma != OptimConfig.gamma
        check(not unused, "--gamma", self.gamma, f"left out beside --factors {_listed(self.factors)}, which replace it")
        adaptive = self.schedule == "step" or not steps
        check(adaptive, "--restart-milestones", steps, "left out with --schedule cosine, which cannot start anew")

    @property
    def rates(self) -> list[float]:
        """The learning rate before the first milestone, and after each."""
        factors = self.factors or [self.gamma ** (i + 1) for i in range(len(self.milestones))]
        return [self.lr, *(self.lr * factor for factor in factors)]


def _listed(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


@dataclass(frozen=True)
class Run(RunConfig):
    __doc__ = RunConfig.__doc__

    run_dir: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder of this run; None makes one under runs/, named after what is trained."""


@dataclass(frozen=True)
class TrainConfig:
    """Training of a network whose blocks discard themselves: what `epsilon-resnet-train` does."""

    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Blocks in each of the three stages of a CIFAR network, which then has 6n+2 layers."""
    depth: Annotated[int | None, tyro.conf.arg(aliases=["-d"])] = None
    """Layers of an ImageNet network: 18, 34, 50, 101 or 152."""
    epsilon: Annotated[float, tyro.conf.arg(aliases=["-e"])] = 2.5
    """A block is discarded where none of its responses to a batch reaches this value; 0 discards none."""
    epsilon_start: int = 0
    """Epochs to be done before blocks can be discarded; the authors' last version waits for 150."""
    epsilon_stop: int | None = None
    """Epochs after which no more block is discarded: those that are stay so for good, the others run, so that a short
    run can settle; the paper's runs go on until no block is lost for long. None: never."""
    side_weight: float = 0.1
    """Weight in the loss of the side head at half depth; 0 leaves the side head out."""
    retire_after: int = 5
    """Epochs in all of whose steps a block must have been discarded before training stops computing it; 0 never
    stops. At --epsilon-stop it stops computing all that were discarded in half of an epoch's steps."""
    weight_bound: float = 0.05
    """A discarded block is gone when its convolutions' weights have decayed to so small a part of their size at
    initialisation (root mean square)."""
    pretrained: str | None = None
    """Model folder, or checkpoint, of the plain pre-activation ResNet to start from; None starts from fresh weights.
    Images are normalised as a model folder says: with a recipe that says otherwise, give --normalize channel."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        if (self.n is None) == (self.depth is None):
            raise InputError(
                "give either -n, the blocks per stage of a CIFAR network, or -d, the depth of an ImageNet one"
            )
        check(self.n is None or 1 <= self.n <= MAX_N, "-n", self.n, f"from 1 to {MAX_N} blocks a stage")
        allowed = "one of " + ", ".join(map(str, IMAGENET_DEPTHS))
        check(self.depth is None or self.depth in IMAGENET_DEPTHS, "-d", self.depth, f"{allowed} (for CIFAR, give -n)")
        check_epsilon(self.epsilon)
        start, epochs = self.epsilon_start, self.optim.epochs
        check(start >= 0, "--epsilon-start", start, "0 epochs or more")
        acts = start == 0 or start < epochs
        check(acts, "--epsilon-start", start, f"less than --epochs, {epochs}, or no block could be discarded")
        stop = self.epsilon_stop
        allowed = f"more than --epsilon-start, {start}"
        check(stop is None or stop > start, "--epsilon-stop", stop, allowed)
        check(0 <= self.side_weight < math.inf, "--side-weight", self.side_weight, "0 or more, and finite")
        check(self.retire_after >= 0, "--retire-after", self.retire_after, "0 (never) or more epochs")
        check(0 < self.weight_bound < 1, "--weight-bound", self.weight_bound, "above 0 and below 1")

    def epsilon_in(self, epoch: int) -> float:
        """ε during an epoch, counted from 0: it acts from `epsilon_start` to `epsilon_stop`."""
        acts = epoch >= self.epsilon_start and (self.epsilon_stop is None or epoch < self.epsilon_stop)
        return self.epsilon if acts else 0.0

    @property
    def backbone(self) -> str:
        """The network's name in resless."""
        return f"preresnet{6 * self.n + 2}" if self.n is not None else f"imagenet/preresnet{self.depth}"

    @property
    def backbone_options(self) -> dict[str, Any]:
        """Its options: the authors' CIFAR networks begin and change stages in their own way."""
        return {"block": "basic", "stem": "conv_bn_relu", "shortcut": "avgpool_centred"} if self.n is not None else {}


@dataclass(frozen=True)
class CompressConfig:
    """The plain network of the blocks that are left: what `epsilon-resnet-compress` does."""

    model: Annotated[str, tyro.conf.arg(aliases=["--dir"])]
    """Run folder or model folder of epsilon-resnet-train."""
    step: int | None = None
    """Step of the run whose checkpoint to take; None takes the network at its end."""
    output: str | None = None
    """Model folder to write; None writes `compressed` into the run folder, or beside the model folder."""
    overwrite: bool = False
    """Replace the output folder if it exists."""
    weight_bound: float = 0.05
    """A discarded block is dropped when its weights have decayed to so small a part of their size at initialisation."""
    force: bool = False
    """Drop blocks, too, that are discarded but have not decayed; prints the accuracy before and after."""
    allow_none: bool = False
    """Exit with code 0 where no block was discarded; nothing is written either way."""
    batch_size: int = 256
    """Larger of the two batch sizes at which both networks are timed, and that of the evaluation."""
    repeats: int = 10
    """Interleaved timings of each network; 0 leaves the timing out."""
    data: SourceConfig = field(default_factory=SourceConfig)

    def __post_init__(self) -> None:
        check(self.batch_size > 0, "--batch-size", self.batch_size, "1 or more")
        check(self.repeats == 0 or self.repeats > 1, "--repeats", self.repeats, "0, or 2 or more")
        check(0 < self.weight_bound < 1, "--weight-bound", self.weight_bound, "above 0 and below 1")
        check(self.step is None or self.step >= 0, "--step", self.step, "0 or more")


@dataclass(frozen=True)
class EvalConfig:
    """Accuracy and cost of a network, as trained or compressed: what `epsilon-resnet-eval` does."""

    model: Annotated[str, tyro.conf.arg(aliases=["--cfg", "--dir"])]
    """Model folder, or run folder, of epsilon-resnet-train or epsilon-resnet-compress; or a model folder's
    config.json."""
    step: int | None = None
    """Step of a run whose checkpoint to take; None takes the network at its end."""
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
    """JSON file to write the result to."""
    data: SourceConfig = field(default_factory=SourceConfig)

    def __post_init__(self) -> None:
        check(self.batch_size > 0, "--batch-size", self.batch_size, "1 or more")
        check(self.recalibrate_bn >= 0, "--recalibrate-bn", self.recalibrate_bn, "0 (off) or a number of images")
        check_output(self.output)
