"""The images of one configuration, split and prepared: what a loop trains and evaluates on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from resless.config import DataConfig, SourceConfig
from resless.data import catalog
from resless.data.augment import Augmentation
from resless.data.classes import numbers_of
from resless.data.images import Images, channel_mean_std, load, pixel_mean, stratified_split
from resless.data.loaders import Batches, EvalBatches
from resless.data.shards import Shards
from resless.data.sources import open_samples
from resless.data.stream import Stream, StreamBatches, StreamEvalBatches, eval_transform, train_transform
from resless.errors import InputError, check
from resless.models import options as checks
from resless.models import spec_of

EVAL_BATCH_SIZE = 500  # of images in memory; of streamed ones, workers hold several batches ready
EVAL_STREAM_BATCH_SIZE = 100
PIXEL_STD = 128 / 255  # that of images of which the mean of each pixel is subtracted
IMAGENET_MEAN, IMAGENET_STD, IMAGENET_SIZE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224


class Pipeline:
    """Training, held-out and test images of a configuration.

    Args:
        config: data set, held-out fraction, augmentation, normalisation.
        seed: of the split, the order and the augmentation.
        shards: this process's share.
        preprocessing: what a trained network expects, as its model folder has it: `mean` and `std` to normalise with,
            and the `image_size` that it was trained at, [height, width] where these differ. Where the configuration
            says no size, images of a folder or hub id, and streamed ones, get that side; those of a named data set,
            whose size is known, must have it where nothing is trained on them. Streamed images are resized with its
            `interpolation` to its `val_resize_size`, where the configuration has none.
        class_names: what the logits of a trained network stand for: labels are numbered in this order, whatever the
            data set's own is. None takes that; so does a training on images of other classes.

    Raises:
        InputError: `--normalize pixel` for a network that has its own statistics; the data set cannot be found or read,
            here, or where images are first asked for, or then has images of another size or number of channels, or of
            classes that the network does not know.
    """

    def __init__(
        self,
        config: SourceConfig,
        seed: int,
        shards: Shards,
        preprocessing: dict[str, Any] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self._config, self._seed, self._shards = DataConfig.of(config), seed, shards
        self._given, self._known_names = preprocessing or {}, class_names
        self._trained_at = _checked_size(self._given.get("image_size"))
        self._trains = isinstance(config, DataConfig)  # such a command may go on at another size
        sized = catalog.get(config.dataset).size is not None and not config.stream
        if self._trained_at is not None and config.image_size is None and not sized:
            height, width = self._trained_at
            self._config = replace(self._config, image_size=height if height == width else None)
        self._interpolation = config.interpolation or _checked_interpolation(self._given.get("interpolation"))
        self._normalised = self._given.keys() >= {"mean", "std"}
        free = not self._normalised or self._config.normalize == "channel"
        check(free, "--normalize", self._config.normalize, "left out: the network comes with its own mean and std")

    @cached_property
    def train(self) -> Images | Stream:
        """The training images, held-out ones included; read when first asked for."""
        images, known = self._load(self._config.train_split), self._known_names
        others = self._trains and not set(images.class_names) <= set(known or ())
        return images if known is None or others else self._numbered(images, known)

    @cached_property
    def test(self) -> Images | Stream:
        """The test images; read when first asked for."""
        images, known = self._load("test"), self._known_names
        if "train" in self.__dict__:  # a command that only evaluates does not read the training images
            channels, classes = self.train.image_shape[0], self.train.num_classes
            fits = images.image_shape[0] == channels and images.num_classes <= classes
            found = f"{images.image_shape[0]} channels in {images.num_classes} classes"
            check(fits, "the test images", found, f"as the training images, {channels} channels in {classes} classes")
            known = self.train.class_names
        return images if known is None else self._numbered(images, known)

    def _numbered(self, images: Images | Stream, known: Sequence[str]) -> Images | Stream:
        """The images, their classes numbered as in `known`."""
        name = self._config.dataset
        fixed = catalog.get(name).num_classes is not None
        numbers = numbers_of(images.class_names, known, f"the images of {name}", fixed)
        return images if numbers is None else images.renumbered(numbers, known)

    @cached_property
    def split(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices (kept, held out) of the training images, sorted; nothing is held out where that is not asked for."""
        kept, held_out = stratified_split(self.train.labels, self._config.holdout, self._seed)
        fits = len(held_out) > 0 or not self._config.holdout
        check(fits, "--holdout", self._config.holdout, f"large enough to hold out one of {len(kept)} images")
        return kept, held_out

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """What images are normalised with, on the scale 0..1: `mean` of each channel or pixel, `std` of each channel.

        Those of the given preprocessing; else, as `normalize` asks for, of each pixel the mean of the training images
        and PIXEL_STD, or of each channel a named data set's published numbers, another's own over its training images,
        or ImageNet's where they are streamed.
        """
        if self._normalised:
            given = {name: self._given[name] for name in ("mean", "std")}  # checked where images are normalised
            return {name: list(values) if isinstance(values, tuple) else values for name, values in given.items()}
        if self._config.normalize == "pixel":
            assert isinstance(self.train, Images)
            mean_image = pixel_mean(self.train, self.split[0]).double()
            # Rounded, for it is written into a JSON file; trained with as it is written.
            return {"mean": mean_image.round(decimals=6).tolist(), "std": [PIXEL_STD] * len(mean_image)}
        known = catalog.get(self._config.dataset)
        mean, std = known.mean, known.std
        if mean is None or std is None:
            if isinstance(self.train, Images):
                mean, std = channel_mean_std(self.train, self.split[0])
            else:
                mean, std = _grey_or_colour(self.train, IMAGENET_MEAN), _grey_or_colour(self.train, IMAGENET_STD)
        return {"mean": list(mean), "std": list(std)}

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What a network trained here expects, for its model folder: `image_size`, and the `statistics`.

        The size is the side in pixels, [height, width] where these differ. Of streamed images also `val_resize_size`,
        the pixels to which their shorter side is resized before they are cut out, and with which `interpolation`.
        """
        _, height, width = self.train.image_shape
        size: dict[str, Any] = {"image_size": width if height == width else [height, width]}
        if isinstance(self.train, Stream):
            size |= {"val_resize_size": self._resize(self.train.size), "interpolation": self._interpolation}
        return size | self.statistics

    @property
    def example(self) -> torch.Tensor:
        """A blank image [1, C, H, W] of the size at which a network is evaluated, to count costs with."""
        return torch.zeros(1, *self.train.image_shape)

    def training(self, batch_size: int) -> Batches | StreamBatches:
        """Shuffled, augmented batches of the training images that are not held out."""
        images, config = self.train, self._config
        self._check_channels(images)
        shared: dict[str, Any] = {"seed": self._seed, "indices": self.split[0], "repeats": config.repeats}
        shared |= {"shards": self._shards, **self.statistics}
        if isinstance(images, Images):
            return Batches(images, batch_size, augmentation=self._augmentation, **shared)
        self._augmentation.check_channels(images.image_shape[0])
        size = config.train_crop_size or images.size
        transform = train_transform(size, self._augmentation, self.statistics["mean"])
        return StreamBatches(images.samples, batch_size, transform=transform, num_workers=config.workers, **shared)

    @property
    def _augmentation(self) -> Augmentation:
        named = {field.name: getattr(self._config, field.name) for field in fields(Augmentation)}
        return Augmentation(**named | {"interpolation": self._interpolation})

    def held_out(self, batch_size: int | None = None) -> EvalBatches | StreamEvalBatches:
        """The held-out images, in order."""
        return self.evaluation(self.train, batch_size, indices=self.split[1])

    def evaluation(
        self,
        images: Images | Stream,
        batch_size: int | None = None,
        indices: torch.Tensor | None = None,
    ) -> EvalBatches | StreamEvalBatches:
        """Images in order, not augmented.

        Raises:
            InputError: in a command that trains nothing, images of another size than the network was trained at.
        """
        self._check_channels(images)
        if not self._trains:
            self._check_size(images)
        shared: dict[str, Any] = {"indices": indices, "shards": self._shards, **self.statistics}
        if isinstance(images, Images):
            return EvalBatches(images, batch_size or EVAL_BATCH_SIZE, **shared)
        config, side = self._config, images.size
        resize = self._resize(side)
        check(resize >= side, "--val-resize-size", resize, f"at least {side}, the side of the images that are cut out")
        transform, workers = eval_transform(side, resize, self._interpolation), config.workers
        size = batch_size or EVAL_STREAM_BATCH_SIZE
        return StreamEvalBatches(images.samples, size, transform=transform, num_workers=workers, **shared)

    def _load(self, split: str) -> Images | Stream:
        config = self._config
        columns = {"image_column": config.image_column, "label_column": config.label_column}
        if not config.stream:
            return load(config.dataset, split, config.data_dir, image_size=config.image_size, **columns)
        samples = open_samples(config.dataset, split, config.data_dir, stream=True, **columns)
        return Stream(samples, config.image_size or catalog.get(config.dataset).size or IMAGENET_SIZE)

    def _resize(self, side: int) -> int:
        """To how many pixels the shorter side of a streamed image is resized, of which `side` are cut out."""
        recorded = self._given.get("val_resize_size")
        if self._config.val_resize_size is not None:
            return self._config.val_resize_size
        if recorded is not None and self._trained_at == [side, side]:
            return checks.whole_number("val_resize_size", recorded, 1, checks.MAX_IMAGE_SIZE)
        return round(side * 256 / 224)

    def _check_channels(self, images: Images | Stream) -> None:
        """Refuse images of more or fewer channels than the mean that they are to be normalised with."""
        mean, channels = self._given.get("mean"), images.image_shape[0]
        if self._normalised and isinstance(mean, list | tuple) and len(mean) != channels:
            raise InputError(
                f"the images of {self._config.dataset} have {_counted(channels)}, but the mean that the network comes "
                f"with, or that was given, is of {_counted(len(mean))}: give the --dataset that it was trained on"
            )

    def _check_size(self, images: Images | Stream) -> None:
        """Refuse images of another size than the network was trained at, unless this one was asked for."""
        if self._trained_at is not None and self._config.image_size is None:
            sides = list(images.image_shape[1:])
            found, trained_at = (" x ".join(map(str, size)) for size in (sides, self._trained_at))
            wanted = f"{trained_at}, as the network was trained at: give its --dataset, or an --image-size to resize to"
            check(sides == self._trained_at, f"the size of the images of {self._config.dataset}", found, wanted)


def _checked_size(size: Any) -> list[int] | None:
    """[height, width] from the `image_size` of a model folder, these or a side in pixels; None where it has none."""
    if size is None:
        return None
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else [size, size]
    return [checks.whole_number("image_size", side, 1, checks.MAX_IMAGE_SIZE) for side in sides]


def _checked_interpolation(recorded: Any) -> str:
    """The `interpolation` of a model folder; bilinear where it has none."""
    known = ("bilinear", "bicubic")
    return "bilinear" if recorded is None else checks.choice("interpolation", recorded, known)


def _counted(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


def _grey_or_colour(images: Stream, values: tuple[float, ...]) -> tuple[float, ...]:
    """ImageNet's statistics, for one channel their mean."""
    return values if images.image_shape[0] == len(values) else (sum(values) / len(values),)


def check_fit(model: nn.Module, images: Images | Stream) -> None:
    """Raise InputError unless a network takes images of this size, and knows as many classes."""
    spec = spec_of(model)
    channels, height, width = images.image_shape
    size = spec.options.get("image_size")
    found = f"{channels} x {height} x {width} in {images.num_classes} classes"
    # A network that pools at its end takes images of any size.
    sides = "any size" if size is None else f"{size} x {size}"
    wanted = f"{spec.in_channels} x {sides} in {spec.num_classes} classes"
    fits = size is None or height == width == size
    resized = "" if fits else f", or --image-size {size} to resize to"
    if not fits or (channels, images.num_classes) != (spec.in_channels, spec.num_classes):
        raise InputError(
            f"the images are {found}, but {spec.name} was trained on {wanted}: give its --dataset{resized}"
        )
