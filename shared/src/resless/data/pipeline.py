"""The images of one configuration, split and prepared: what a loop trains and evaluates on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from resless.config import DataConfig
from resless.data import catalog
from resless.data.images import Images, channel_mean_std, load, stratified_split
from resless.data.loaders import Batches, EvalBatches
from resless.errors import InputError, check
from resless.models import spec_of

EVAL_BATCH_SIZE = 500


@dataclass(frozen=True)
class Shards:
    """Which share of every batch this process takes, and how it wants it."""

    device: torch.device | str = "cpu"
    rank: int = 0
    world_size: int = 1
    channels_last: bool = False

    @classmethod
    def of(cls, accelerator: Accelerator, channels_last: bool) -> Shards:
        """This process's share of an Accelerator's processes."""
        return cls(accelerator.device, accelerator.process_index, accelerator.num_processes, channels_last)


class Pipeline:
    """Training, held-out and test images of a configuration.

    Args:
        config: data set, held-out fraction, augmentation.
        seed: of the split, the order and the augmentation.
        shards: this process's share.

    Raises:
        InputError: the data set cannot be found or read; here, or where images are first asked for.
    """

    def __init__(self, config: DataConfig, seed: int, shards: Shards) -> None:
        self._config, self._seed, self._shards = config, seed, asdict(shards)

    @cached_property
    def train(self) -> Images:
        """The training images, held-out ones included; read when first asked for."""
        return self._load("train")

    @cached_property
    def test(self) -> Images:
        """The test images; read when first asked for."""
        return self._load("test")

    @cached_property
    def split(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices (kept, held out) of the training images, sorted; nothing is held out where that is not asked for."""
        kept, held_out = stratified_split(self.train.labels, self._config.holdout, self._seed)
        fits = len(held_out) > 0 or not self._config.holdout
        check(fits, "--holdout", self._config.holdout, f"large enough to hold out one of {len(kept)} images")
        return kept, held_out

    @cached_property
    def preprocessing(self) -> dict[str, Any]:
        """What a network trained here expects: side `image_size`, and `mean` and `std` of each channel on scale 0..1.

        The statistics of a named data set are its published ones, of another those of its training images.
        """
        known = catalog.get(self._config.dataset)
        mean, std = known.mean, known.std
        if mean is None or std is None:
            mean, std = channel_mean_std(self.train, self.split[0])
        return {"image_size": self.train.images.shape[-1], "mean": list(mean), "std": list(std)}

    @property
    def example(self) -> torch.Tensor:
        """A blank image [1, C, H, W] of this data set's size, to count costs with."""
        return torch.zeros(1, *self.train.images.shape[1:])

    def training(self, batch_size: int) -> Batches:
        """Shuffled, augmented batches of the training images that are not held out."""
        return Batches(
            self.train,
            batch_size,
            indices=self.split[0],
            pad=self._config.pad,
            flip=self._config.flip,
            seed=self._seed,
            mean=self.preprocessing["mean"],
            std=self.preprocessing["std"],
            **self._shards,
        )

    def held_out(self, batch_size: int = EVAL_BATCH_SIZE) -> EvalBatches:
        """The held-out images, in order."""
        return self.evaluation(self.train, batch_size, indices=self.split[1])

    def evaluation(
        self,
        images: Images,
        batch_size: int = EVAL_BATCH_SIZE,
        preprocessing: dict[str, Any] | None = None,
        indices: torch.Tensor | None = None,
    ) -> EvalBatches:
        """Images in order, not augmented; `preprocessing` defaults to this pipeline's."""
        wanted = preprocessing or self.preprocessing
        mean, std = wanted["mean"], wanted["std"]
        return EvalBatches(images, batch_size, indices=indices, mean=mean, std=std, **self._shards)

    def _load(self, split: str) -> Images:
        config = self._config
        return load(
            config.dataset,
            split,
            config.data_dir,
            image_column=config.image_column,
            label_column=config.label_column,
            image_size=config.image_size,
        )


def check_fit(model: nn.Module, images: Images) -> None:
    """Raise InputError unless a network takes images of this size, and knows as many classes."""
    spec = spec_of(model)
    _, channels, height, width = images.images.shape
    size = spec.options.get("image_size", height)
    found = f"{channels} x {height} x {width} in {images.num_classes} classes"
    wanted = f"{spec.in_channels} x {size} x {size} in {spec.num_classes} classes"
    if (channels, height, images.num_classes) != (spec.in_channels, size, spec.num_classes):
        raise InputError(f"the images are {found}, but {spec.name} was trained on {wanted}: give its --dataset")
