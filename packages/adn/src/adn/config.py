"""The configurations of the three commands. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from resless.config import DataConfig, OptimConfig, Precision, RunConfig, SourceConfig, check_output
from resless.errors import InputError, check

COSINE = ("cosine", "cosineannealinglr")


# torchvision's reference training, which the authors use, has other names for some options: here they are aliases.
@dataclass(frozen=True)
class Optim(OptimConfig):
    __doc__ = OptimConfig.__doc__

    optimizer: Annotated[Literal["sgd", "adam", "adamw"], tyro.conf.arg(aliases=["--opt"])] = "sgd"
    """Update rule."""
    schedule: Annotated[
        Literal["step", "cosine", "multisteplr", "cosineannealinglr"], tyro.conf.arg(aliases=["--lr-scheduler"])
    ] = "step"  # type: ignore[assignment]
    """How the learning rate falls: by `gamma` at each milestone (multisteplr), or along half a cosine to `lr-min`
    (cosineannealinglr)."""
    milestones: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--lr-multi-steps"])] = ()
    """Epochs after which the learning rate is multiplied by `gamma`, counted from the end of the warm-up."""
    gamma: Annotated[float, tyro.conf.arg(aliases=["--lr-gamma"])] = 0.1
    """Factor at each milestone."""
    lr_min: float = 0.0
    """Where the cosine ends."""
    lr_warmup_epochs: int = 0
    """Epochs in which the learning rate rises to its start."""
    lr_warmup_method: Literal["linear", "constant"] = "linear"
    """Whether it rises epoch by epoch, or stays low until then."""
    lr_warmup_decay: float = 0.01
    """Part of the learning rate that the first epoch begins with."""
    norm_weight_decay: float | None = None
    """Weight decay of norm layers; None takes `weight_decay`."""
    bias_weight_decay: float | None = None
    """Weight decay of biases; None takes `weight_decay`."""
    transformer_embedding_decay: float | None = None
    """Weight decay of class tokens, position embeddings and tables of relative positions; None takes `weight_decay`."""
    label_smoothing: float = 0.0
    """Share of the labels that is spread evenly over all classes."""
    clip_grad_norm: float | None = None
    """Largest norm of a step's gradient; None does not clip."""
    model_ema: bool = False
    """Keep a moving average of the weights, which is what is evaluated and written in the end."""
    model_ema_steps: int = 32
    """Steps between two updates of the average."""
    model_ema_decay: float = 0.99998
    """Share of the old average in an update, for batches of one image and one epoch: scaled to the batch and epochs.
    The default is made for the 1.3 million images of ImageNet; fewer images need a lower one, which the run tells."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.lr_min <= self.lr, "--lr-min", self.lr_min, f"from 0 to the learning rate, {self.lr:g}")
        falls = self.lr_min == 0 or self.schedule in COSINE
        check(falls, "--lr-min", self.lr_min, "left out with milestones, or given with --schedule cosine")
        fits = 0 <= self.lr_warmup_epochs <= max(self.epochs, 0)
        check(fits, "--lr-warmup-epochs", self.lr_warmup_epochs, f"from 0 to the number of epochs, {self.epochs}")
        check(0 < self.lr_warmup_decay <= 1, "--lr-warmup-decay", self.lr_warmup_decay, "above 0 and at most 1")
        for name in ("norm_weight_decay", "bias_weight_decay", "transformer_embedding_decay"):
            value = getattr(self, name)
            valid = value is None or 0 <= value < math.inf
            check(valid, f"--{name.replace('_', '-')}", value, "0 or more, and finite")
        check(0 <= self.label_smoothing < 1, "--label-smoothing", self.label_smoothing, "at least 0 and below 1")
        clip = self.clip_grad_norm
        check(clip is None or 0 < clip < math.inf, "--clip-grad-norm", clip, "above 0, and finite")
        check(self.model_ema_steps > 0, "--model-ema-steps", self.model_ema_steps, "1 or more")
        check(0 <= self.model_ema_decay < 1, "--model-ema-decay", self.model_ema_decay, "at least 0 and below 1")


@dataclass(frozen=True)
class Run(RunConfig):
    __doc__ = RunConfig.__doc__

    run_dir: Annotated[str | None, tyro.conf.arg(aliases=["--output-dir"])] = None
    """Folder of this run; None makes one under runs/, named after what is trained."""
    resume: str | None = None
    """`auto` goes on from the newest good checkpoint of the run folder; a checkpoint folder goes on from there. With
    --test-only: the model folder, or the authors' checkpoint, to evaluate."""


@dataclass(frozen=True)
class TrainConfig:
    """Training of one network for every depth: what `adn-train` does."""

    model: str = "resnet20"
    """Network: resnet50, resnet101, resnet50d, resnet101d, mobilenet_v2, swin_t, swin_v2_t, vit_b_16, vit_b_32, or a
    CIFAR ResNet (resnet20, resnet32, ...)."""
    shortcut: Literal["conv", "subsample", "avgpool"] | None = None
    """Shortcut of a CIFAR ResNet; None means conv."""
    alpha: float = 0.5
    """Share of the labels in the loss; the rest is what the base-net learns from the super-net."""
    temperature: float = 1.0
    """What logits are divided by before they are compared."""
    top_classes: int = 500
    """How many of the super-net's most likely classes are compared."""
    fpn: bool = False
    """Compare the features of all stages but the last, too; of ResNets only."""
    distill: bool = True
    """Whether the base-net learns from the super-net; with --no-distill, from the labels."""
    second_norms: bool = True
    """Whether mandatory blocks have norms of their own for the base-net; --no-second-norms shares them."""
    alone: Literal["super", "base"] | None = None
    """Train a plain network of one depth instead, for comparison: nothing skipped, or all that can be."""
    mixup_alpha: float = 0.0
    """Mix pairs of images and their labels, in shares drawn from Beta(alpha, alpha); 0 switches it off."""
    cutmix_alpha: float = 0.0
    """Paste a part of one image into another, its size drawn likewise; with --mixup-alpha too, one of the two is drawn
    for each batch."""
    two_passes: bool = False
    """Go backward after each of the two forward passes: less memory, the same step; on one process only."""
    pretrained: str | None = None
    """Model folder or checkpoint to start from, of the plain network, whose norms serve as both sets, or of one of
    adaptive depth; None starts from fresh weights. Images are normalised as a model folder says."""
    test_only: bool = False
    """Evaluate what --resume names, and train nothing."""
    skip_cfg: tuple[bool, ...] | None = None
    """With --test-only: for each stage, whether it skips; None evaluates every configuration."""
    test_all: bool = True
    """Evaluate all configurations in the end, not only the two that are trained."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        check(0 <= self.alpha <= 1, "--alpha", self.alpha, "from 0 to 1")
        check(0 < self.temperature < math.inf, "--temperature", self.temperature, "above 0, and finite")
        check(self.top_classes > 0, "--top-classes", self.top_classes, "1 or more")
        for name in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"--{name.replace('_', '-')}", value, "0 or more, and finite")
        check(not self.fpn or self.distill, "--fpn", self.fpn, "left out with --no-distill")
        usable = not self.fpn or self.model.startswith("resnet")
        check(usable, "--fpn", self.fpn, f"left out for {self.model}: only ResNets have features to compare")
        both = self.fpn or self.two_passes
        check(self.alone is None or not both, "--alone", self.alone, "left out with --fpn and --two-passes")
        check(self.skip_cfg is None or self.test_only, "--skip-cfg", self.skip_cfg, "given with --test-only")
        for name in ("alone", "pretrained"):
            value = getattr(self, name)
            check(value is None or not self.test_only, f"--{name}", value, "left out with --test-only")
        if self.test_only and self.run.resume in (None, "auto"):
            raise InputError(
                "--resume is missing: give the model folder, or the checkpoint, that --test-only is to test"
            )


@dataclass(frozen=True)
class EvalConfig:
    """Accuracy, cost and latency of one configuration or of all: what `adn-eval` does."""

    model: str
    """Model folder; or the name of a network, for --weights."""
    weights: str | None = None
    """The authors' checkpoint of the network that --model names."""
    ema: bool = False
    """Take the moving average in that checkpoint."""
    shortcut: Literal["conv", "subsample", "avgpool"] | None = None
    """Shortcut of a CIFAR ResNet in that checkpoint; None means conv. A model folder says it itself."""
    second_norms: bool = True
    """Whether that checkpoint has norms of their own for the base-net; a model folder says it itself."""
    skip_cfg: tuple[bool, ...] | None = None
    """For each stage, whether it skips; None evaluates every configuration."""
    split: Literal["test", "train"] = "test"
    """Images to evaluate on."""
    recalibrate_bn: int = 0
    """Training images with which batch norms' statistics are computed anew for each configuration; 0 keeps them."""
    batch_size: int = 256
    """Images in one step, over all processes."""
    latency_batches: tuple[int, ...] = (1, 16)
    """Batch sizes at which configurations are timed."""
    repeats: int = 0
    """Interleaved timings of each configuration, extracted; 0 leaves them out."""
    mixed_precision: Precision = "no"
    """Precision of the forward passes."""
    channels_last: bool = False
    """Layout of images and convolution weights."""
    output: str | None = None
    """JSON file to write the result to."""
    plot: str | None = None
    """Picture (.png) to draw: accuracy against MACs, and against latency where it is measured."""
    data: SourceConfig = field(default_factory=SourceConfig)

    def __post_init__(self) -> None:
        check(self.batch_size > 0, "--batch-size", self.batch_size, "1 or more")
        check(self.recalibrate_bn >= 0, "--recalibrate-bn", self.recalibrate_bn, "0 (off) or a number of images")
        check(self.repeats == 0 or self.repeats > 1, "--repeats", self.repeats, "0, or 2 or more")
        check(
            all(size > 0 for size in self.latency_batches), "--latency-batches", self.latency_batches, "1 or more each"
        )
        check(not self.ema or self.weights is not None, "--ema", self.ema, "given with --weights")
        check_output(self.output)
        picture = self.plot is None or (Path(self.plot).suffix == ".png" and not Path(self.plot).is_dir())
        check(picture, "--plot", self.plot, "a .png file")


@dataclass(frozen=True)
class ExtractConfig:
    """The plain network of one configuration: what `adn-extract` does."""

    model: str
    """Model folder of adn-train."""
    skip_cfg: tuple[bool, ...]
    """For each stage, whether it skips."""
    output: str
    """Model folder to write."""
    recalibrate_bn: int = 0
    """Training images with which batch norms' statistics are computed anew before anything is written, as adn-eval does
    by itself; 0 keeps them, and needs no images."""
    onnx: str | None = None
    """ONNX file to write, too."""
    overwrite: bool = False
    """Replace the output folder if it exists."""
    batch_size: int = 16
    """Larger of the two batch sizes at which both networks are timed."""
    repeats: int = 10
    """Interleaved timings of each network; 0 leaves the timing out."""
    data: SourceConfig = field(default_factory=SourceConfig)

    def __post_init__(self) -> None:
        check(self.batch_size > 0, "--batch-size", self.batch_size, "1 or more")
        check(self.recalibrate_bn >= 0, "--recalibrate-bn", self.recalibrate_bn, "0 (off) or a number of images")
        check(self.repeats == 0 or self.repeats > 1, "--repeats", self.repeats, "0, or 2 or more")
        file = Path(self.onnx or "file").absolute()
        check(file.parent.is_dir() and not file.is_dir(), "--onnx", self.onnx, "a file in a folder that exists")
        free = self.onnx is None or self.overwrite or not file.exists()
        check(free, "--onnx", self.onnx, "a file that is not there yet, or --overwrite given")
