"""The pieces that every configuration is made of: data, optimiser, run. Free of torch, so that `--help` is instant.

A configuration is a frozen dataclass; the string under a field is its help text. Values are checked when it is built.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import tyro

from resless.data import catalog
from resless.errors import check
from resless.models.options import MAX_IMAGE_SIZE

AutoAugment: TypeAlias = Literal["ra", "ta_wide", "augmix", "imagenet", "cifar10", "svhn"]
Precision: TypeAlias = Literal["no", "bf16", "fp16", "auto"]


@dataclass(frozen=True)
class SourceConfig:
    """Where the images come from."""

    dataset: str = "digits"
    """Name (digits, mnist, cifar10, cifar100, svhn, imagenet), hub id (owner/name), or local folder."""
    data_dir: Annotated[str | None, tyro.conf.arg(aliases=["--data-path"])] = None
    """Folder that holds the data set; None looks it up on the hub. `digits` comes with the package."""
    image_column: str | None = None
    """Column that holds the images; None takes the data set's usual one."""
    label_column: str | None = None
    """Column that holds the labels; None takes the data set's usual one."""
    image_size: Annotated[int | None, tyro.conf.arg(aliases=["--val-crop-size"])] = None
    """Side in pixels to which images are resized when they are decoded; None keeps their own size. Streamed images are
    cut out at this size, 224 for None where the data set has none."""
    stream: bool = False
    """Decode images while they are used, in worker processes, instead of once into memory: for data of ImageNet's size.
    Training images are then cut out at random and flipped, whatever --pad and --flip say, and their colours varied as
    those of images in memory are; others are resized and cut out of the middle."""
    workers: int = 4
    """Worker processes that decode streamed images, for each process of the run."""
    val_resize_size: int | None = None
    """Pixels to which the shorter side of an evaluated image is resized before its middle is cut out, with --stream;
    None: as for the network that is given, else 256/224 of the side that is cut out."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How streamed images are resized, and how --auto-augment turns and shears; other images are resized bilinearly.
    None: as for the network that is given, else bilinear."""

    def __post_init__(self) -> None:
        catalog.get(self.dataset)  # refuses unknown names
        check(self.workers >= 0, "--workers", self.workers, "0 or more")
        check_side("--image-size", self.image_size)
        check_side("--val-resize-size", self.val_resize_size, needs_stream=not self.stream)
        check(
            self.interpolation in (None, "bilinear", "bicubic"),
            "--interpolation",
            self.interpolation,
            "bilinear or bicubic",
        )


@dataclass(frozen=True)
class DataConfig(SourceConfig):
    """Where the images come from, which are held out, and how training images are varied."""

    train_split: str = "train"
    """Split to train on; several are joined by +, as in train+extra for SVHN."""
    holdout: float = 0.0
    """Fraction of the training images, seeded and stratified, that is held out for selection."""
    pad: int = 0
    """Pixels of zero padding around an image before a random crop of its own size; 0 switches the crop off."""
    flip: bool = False
    """Flip images left to right at random."""
    brightness: float = 0.0
    """Multiply each training image by a random factor from 1 - this to 1 + this; 0 switches it off."""
    contrast: float = 0.0
    """Likewise the differences between an image's pixels and their mean grey level."""
    saturation: float = 0.0
    """Likewise the differences between a pixel's colours and its grey level; needs colour images."""
    lighting: float = 0.0
    """Standard deviation of AlexNet's colour noise, which shifts all pixels of a training image along the principal
    components of ImageNet's colours: 0.1 in AlexNet; 0 switches it off. Needs colour images."""
    auto_augment: AutoAugment | None = None
    """Policy that varies each training image by itself, after crop and flip: `ra`, RandAugment; `ta_wide`,
    TrivialAugment; `augmix`, AugMix; or AutoAugment's for `imagenet`, `cifar10` or `svhn`. Works on the CPU."""
    random_erase: float = 0.0
    """Probability that a rectangle of a training image is set to the mean colour; 0 switches it off."""
    train_crop_size: int | None = None
    """Side in pixels of streamed training images, where it is not to be that at which the network is evaluated."""
    repeats: Annotated[int, tyro.conf.arg(aliases=["--ra-reps"])] = 1
    """Repeated augmentation: how many times an image comes in an epoch, varied anew and spread over the processes. An
    epoch keeps its number of images, hence takes so many times fewer different ones."""
    normalize: Literal["channel", "pixel"] = "channel"
    """What is subtracted from an image, and what it is divided by: `channel`, mean and standard deviation of each
    channel over the training images; `pixel`, the mean of each pixel over them, and 128 of 255 grey levels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.holdout < 1, "--holdout", self.holdout, "a fraction of at least 0 and below 1")
        check(0 <= self.pad <= MAX_IMAGE_SIZE, "--pad", self.pad, f"0 to {MAX_IMAGE_SIZE} pixels")
        for name in ("brightness", "contrast", "saturation"):
            check(0 <= getattr(self, name) < 1, f"--{name}", getattr(self, name), "at least 0 and below 1")
        check(0 <= self.lighting < math.inf, "--lighting", self.lighting, "0 or more, and finite")
        known = get_args(AutoAugment)
        check(self.auto_augment in (None, *known), "--auto-augment", self.auto_augment, f"one of {', '.join(known)}")
        mixed = self.auto_augment == "augmix" and self.interpolation == "bicubic"
        check(not mixed, "--interpolation", self.interpolation, "bilinear with --auto-augment augmix")
        check(0 <= self.random_erase <= 1, "--random-erase", self.random_erase, "a probability from 0 to 1")
        check_side("--train-crop-size", self.train_crop_size, needs_stream=not self.stream)
        check(self.repeats >= 1, "--repeats", self.repeats, "1 or more")
        check(self.normalize in ("channel", "pixel"), "--normalize", self.normalize, "channel or pixel")
        check(not self.stream or self.normalize == "channel", "--normalize", self.normalize, "channel with --stream")

    @classmethod
    def of(cls, source: SourceConfig) -> DataConfig:
        """The same images, none held out, not varied."""
        return cls(**vars(source))


def check_choices(config: Any) -> None:
    """Raise InputError where a field of a configuration, or of those in it, holds a word that its type does not have.

    Command lines are refused such words when they are read; this is for configurations that are built in Python.
    """
    types = get_type_hints(type(config))
    for name in (each.name for each in dataclasses.fields(config)):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            check_choices(value)
            continue
        kinds = [kind for kind in (types[name], *get_args(types[name])) if get_origin(kind) is Literal]
        words = [word for kind in kinds for word in get_args(kind)]
        if words and value is not None:
            check(value in words, f"--{name.replace('_', '-')}", value, f"one of {', '.join(words)}")


def check_side(option: str, pixels: int | None, needs_stream: bool = False) -> None:
    """Refuse what is no side of images, None aside; and where it `needs_stream`, any."""
    check(pixels is None or 0 < pixels <= MAX_IMAGE_SIZE, option, pixels, f"1 to {MAX_IMAGE_SIZE} pixels")
    check(pixels is None or not needs_stream, option, pixels, "left out without --stream")


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule. Batch sizes are global: over all processes together."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """Update rule."""
    lr: Annotated[float, tyro.conf.arg(aliases=["--learning-rate"])] = 0.1
    """Learning rate at the start."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's momentum, of SGD."""
    weight_decay: Annotated[float, tyro.conf.arg(aliases=["--wd"])] = 0.0
    """Weight decay."""
    batch_size: int = 128
    """Images in one step, over all processes."""
    epochs: int = 10
    """Passes over the training images."""
    schedule: Literal["step", "cosine"] = "step"
    """How the learning rate falls: by `gamma` at each milestone, or along half a cosine to zero."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate is multiplied by `gamma`."""
    gamma: float = 0.1
    """Factor at each milestone."""

    def __post_init__(self) -> None:
        check(0 < self.lr < math.inf, "--lr", self.lr, "above 0, and finite")
        check(0 <= self.momentum < 1, "--momentum", self.momentum, "at least 0 and below 1")
        usable = self.optimizer == "sgd" and self.momentum > 0
        check(
            usable or not self.nesterov,
            "--nesterov",
            self.nesterov,
            "left out, unless the optimizer is sgd with momentum",
        )
        check(0 <= self.weight_decay < math.inf, "--weight-decay", self.weight_decay, "0 or more, and finite")
        check(self.batch_size > 0, "--batch-size", self.batch_size, "1 or more")
        check(self.epochs >= 0, "--epochs", self.epochs, "0 or more")
        check(0 < self.gamma <= 1, "--gamma", self.gamma, "above 0 and at most 1")
        increasing = all(a < b for a, b in itertools.pairwise(self.milestones))
        check(increasing and all(m > 0 for m in self.milestones), "--milestones", self.milestones, "increasing epochs")


@dataclass(frozen=True)
class RunConfig:
    """What surrounds a loop: where it writes, how it is seeded, saved and resumed."""

    run_dir: str | None = None
    """Folder of this run; None makes one under runs/, named after what is trained."""
    seed: int = 0
    """Seed of weights, data order, augmentation and splits."""
    resume: str | None = None
    """`auto` goes on from the newest good checkpoint of the run folder; a checkpoint folder goes on from there."""
    overwrite: bool = False
    """Delete the run folder if it exists, and start anew."""
    mixed_precision: Precision = "no"
    """Precision of forward passes (autocast); auto is bf16 where the processor or GPU has units for it, which
    halves the time of a step, else no."""
    channels_last: bool = False
    """Keep images and convolution weights in channels_last layout: faster convolutions on CPU and GPU."""
    checkpoint_epochs: int = 1
    """Epochs between two checkpoints."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints inside an epoch; None saves at the end of epochs only."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers that Accelerate should also write to, such as tensorboard or wandb, where installed."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check(self.checkpoint_epochs > 0, "--checkpoint-epochs", self.checkpoint_epochs, "1 or more")
        steps = self.checkpoint_steps
        check(steps is None or steps > 0, "--checkpoint-steps", steps, "1 or more")
        check(self.keep_checkpoints > 0, "--keep-checkpoints", self.keep_checkpoints, "1 or more")
        check(not (self.resume and self.overwrite), "--overwrite", True, "left out together with --resume")


# Changing one of these between a run and its resumption does not change the result.
FREE_ON_RESUME = frozenset(
    {
        *("data_dir", "workers", "run_dir", "resume", "overwrite", "trackers"),
        *("checkpoint_epochs", "checkpoint_steps", "keep_checkpoints"),
    }
)


@dataclass(frozen=True)
class NetworkOptions:
    """What a network is beyond its name. None leaves it to the network; an option that it has not is refused."""

    shortcut: Literal["conv", "subsample", "avgpool", "avgpool_centred"] | None = None
    """How a CIFAR ResNet changes stage: 1x1 convolution, every second pixel, or 2x2 average, with zero channels after
    the others or, of a preresnet, on both sides (avgpool_centred); None means conv."""
    block: Literal["basic", "bottleneck"] | None = None
    """Kind of block of a CIFAR ResNet; None: what its depth allows, basic first, bottleneck for 164 layers."""
    dropout: Annotated[float | None, tyro.conf.arg(aliases=["--drop"])] = None
    """Probability of dropout in the blocks of a Wide ResNet or DenseNet; None means 0."""
    compression: float | None = None
    """Fraction of its channels that a DenseNet's transition gives on; None means 0.5 for densenet_bc, else 1."""
    expansion: int | None = None
    """Channels that the first stage of a ResNeXt gives out, in 64; None means 4."""

    def __post_init__(self) -> None:
        dropout, compression, expansion = self.dropout, self.compression, self.expansion
        check(dropout is None or 0 <= dropout < 1, "--dropout", dropout, "at least 0 and below 1")
        check(compression is None or 0 < compression <= 1, "--compression", compression, "above 0 and at most 1")
        check(expansion is None or expansion > 0, "--expansion", expansion, "1 or more")

    def given(self) -> dict[str, Any]:
        """Those that are not left to the network, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def check_left_out(self, option: str, folder: str) -> None:
        """Raise InputError where any is given beside `option`, a model folder, which says what its network is."""
        given = ", ".join(f"--{name}" for name in self.given())
        check(not given, option, folder, f"given without {given}: its folder says what it is")


@dataclass(frozen=True)
class TrainConfig:
    """Dense training of one network: what `resless-train` does."""

    model: str = "lenet_300_100"
    """Network: lenet_300_100, lenet5, alexnet, vgg19_bn; resnet110, preresnet110 (depth), wrn28_10 (depth, widening),
    resnext29_8x64 (depth, cardinality and width), densenet_bc_100_12, densenet_40_12 (depth and growth rate), each with
    any other numbers that fit; imagenet/preresnet18 to 152; or torchvision/NAME, as torchvision/resnet50."""
    network: NetworkOptions = field(default_factory=NetworkOptions)
    pretrained: str | None = None
    """Model folder, or foreign checkpoint, whose weights the training starts from."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation of one model folder or foreign checkpoint: what `resless-eval` does."""

    model: str
    """Model folder, or the name of a network for `--weights`."""
    weights: str | None = None
    """Foreign checkpoint to load into the network that `--model` names."""
    network: NetworkOptions = field(default_factory=NetworkOptions)
    split: Literal["test", "train"] = "test"
    """Images to evaluate on."""
    batch_size: int = 500
    """Images in one step, over all processes."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, on the scale 0..1; None takes the model folder's, else the data set's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, likewise."""
    mixed_precision: Precision = "no"
    """Precision of the forward passes."""
    channels_last: bool = False
    """Layout of images and convolution weights."""
    recalibrate_bn: int = 0
    """Training images with which the statistics of batch norms are computed anew before evaluation; 0 keeps them."""
    output: str | None = None
    """JSON file to write the result to."""
    confusion_matrix: str | None = None
    """Picture (.png) to draw: how often images of each class are taken for each; its counts go into --output too."""
    data: SourceConfig = field(default_factory=SourceConfig)

    def __post_init__(self) -> None:
        check(self.batch_size > 0, "--batch-size", self.batch_size, "1 or more")
        check(self.recalibrate_bn >= 0, "--recalibrate-bn", self.recalibrate_bn, "0 (off) or a number of images")
        check((self.mean is None) == (self.std is None), "--std", self.std, "given together with --mean")
        check_output(self.output)
        check_output(self.confusion_matrix, "--confusion-matrix")
        picture = self.confusion_matrix is None or Path(self.confusion_matrix).suffix == ".png"
        check(picture, "--confusion-matrix", self.confusion_matrix, "a .png file")


@dataclass(frozen=True)
class CompareConfig:
    """Several model folders side by side: what `resless-compare` does."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """NAME=FOLDER of each network, or FOLDER, whose last part is its name. The others are compared with the first."""
    batch_sizes: tuple[int, ...] = (1, 256)
    """Images in the batches that are timed."""
    repeats: int = 30
    """Turns that each network gets."""
    mixed_precision: Precision = "no"
    """Precision of the forward passes."""
    channels_last: bool = False
    """Layout of images and convolution weights."""
    output: str | None = None
    """JSON file to write the numbers to."""
    picture: str | None = None
    """Picture (.png) to draw: accuracy against multiply-adds and against latency."""
    data: SourceConfig = field(default_factory=SourceConfig)

    def __post_init__(self) -> None:
        check(len(self.models) > 0, "the list of networks", self.models, "at least one NAME=FOLDER")
        unique = len(self.folders) == len(self.models)
        check(unique, "the list of networks", self.models, "of different names: give them as NAME=FOLDER")
        sizes = len(self.batch_sizes) > 0 and all(size > 0 for size in self.batch_sizes)
        check(sizes, "--batch-sizes", self.batch_sizes, "1 or more each")
        allowed = "2 or more: speed-ups have a spread (for the accuracy alone there is resless-eval)"
        check(self.repeats >= 2, "--repeats", self.repeats, allowed)
        check_output(self.output)
        check_output(self.picture, "--picture")
        check(self.picture is None or Path(self.picture).suffix == ".png", "--picture", self.picture, "a .png file")

    @property
    def folders(self) -> dict[str, str]:
        """Name -> model folder."""
        return dict(self._named(model) for model in self.models)

    @staticmethod
    def _named(model: str) -> tuple[str, str]:
        name, separator, folder = model.partition("=")
        if not separator or Path(model).is_dir():  # a folder's name may have the sign too
            name, folder = Path(model).resolve().name, model
        check(bool(name) and bool(folder), "the list of networks", model, "NAME=FOLDER or FOLDER")
        return name, folder


@dataclass(frozen=True)
class FoldConfig:
    """Batch norms folded into the layers before them: what `resless-fold` does."""

    model: str
    """Model folder of a dense, pruned or compacted network, of what epsilon-resnet-compress and adn-extract write, or
    of BlockDrop's."""
    output: str
    """Model folder to write."""
    export: Literal["onnx"] | None = None
    """Write OUTPUT.onnx too, beside the model folder, and check it with onnxruntime."""
    overwrite: bool = False
    """Replace the output folder if it exists."""
    batch_size: int = 256
    """Larger of the two batch sizes at which both networks are timed."""
    repeats: int = 30
    """Interleaved timings of each network; 0 leaves the timing out."""
    channels_last: bool = False
    """Layout of images and convolution weights while they are timed."""

    def __post_init__(self) -> None:
        check(self.batch_size > 0, "--batch-size", self.batch_size, "1 or more")
        check(self.repeats == 0 or self.repeats > 1, "--repeats", self.repeats, "0, or 2 or more")


def check_seed(seed: int) -> None:
    """Refuse what is no seed of all the generators that are used."""
    check(0 <= seed < 2**31, "--seed", seed, "from 0 to 2147483647")


def check_output(path: str | None, option: str = "--output") -> None:
    """Refuse what is no regular file, or has no folder, before the work whose result it is to hold."""
    if path is not None:
        file = Path(path)
        writable = file.is_file() or (file.absolute().parent.is_dir() and not file.exists())
        check(writable, option, path, "a file in a folder that exists")


def source_of(data: SourceConfig) -> SourceConfig:
    """Only where the images come from, of a configuration that also says how to train on them."""
    return SourceConfig(**_source_fields(data))


def source_options(data: SourceConfig) -> str:
    """The options of a command line that name the same images, quoted for a shell."""
    return shlex.join(["--dataset", data.dataset, *_options(source_of(data), SourceConfig(data.dataset))])


def _source_fields(data: SourceConfig) -> dict[str, Any]:
    return {entry.name: getattr(data, entry.name) for entry in dataclasses.fields(SourceConfig)}


Config = TypeVar("Config")


def options(wanted: Config, usual: Config) -> str:
    """The options of a command line that turn the configuration `usual` into `wanted`, quoted for a shell."""
    return shlex.join(_options(wanted, usual))


def _options(wanted: Any, usual: Any) -> list[str]:
    words = list[str]()
    for entry in dataclasses.fields(wanted):
        value, other, option = getattr(wanted, entry.name), getattr(usual, entry.name), option_name(entry.name)
        if dataclasses.is_dataclass(value):
            words += _options(value, other)
        elif value != other and isinstance(value, bool):
            words += [option if value else option.replace("--", "--no-", 1)]
        elif value != other:
            words += [option, *map(str, value if isinstance(value, tuple) else [value])]
    return words


def variation_options(data: DataConfig, usual: DataConfig) -> str:
    """The options that turn how `usual` splits and varies images into how `data` does, whichever images these are, and
    whatever they are normalised with, which a model folder says."""
    return options(data, replace(usual, **_source_fields(data), normalize=data.normalize))


def training_options(config: Any, usual: Any) -> str:
    """The options by which a training that `usual` configures varies images, batches them and computes as that of
    `config` does; of another method, maybe, but both with `data`, `optim` and `run`."""
    run = config.run  # its seed draws the images that are held out
    computing = replace(usual.run, seed=run.seed, mixed_precision=run.mixed_precision, channels_last=run.channels_last)
    words = (variation_options(config.data, usual.data), options(computing, usual.run))
    return " ".join([*filter(None, words), f"--batch-size {config.optim.batch_size}"])


def as_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested dictionaries of JSON values."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in _items(config)}


def _items(config: Any) -> list[tuple[str, Any]]:
    values = ((entry.name, getattr(config, entry.name)) for entry in dataclasses.fields(config))
    return [(name, as_dict(value) if dataclasses.is_dataclass(value) else value) for name, value in values]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        flat.update(nested)
    return flat


def option_name(field: str) -> str:
    """The option of a command line that sets a field, by its name or, as of `flatten`, its dotted key."""
    return f"--{field.rpartition('.')[2].replace('_', '-')}"


def changed_fields(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields that differ between two configurations (as by `as_dict`), those free on resume left out: (old, new)."""
    old, new = flatten(old), flatten(new)
    names = [name for name in {**old, **new} if name.rsplit(".", 1)[-1] not in FREE_ON_RESUME]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}
