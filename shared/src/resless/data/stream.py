"""Batches for data of ImageNet's size: worker processes decode and transform, the device normalises.

Each image's transform draws from a generator seeded by (seed, epoch, index), and which repeat of the image it is, and
the order by (seed, epoch): batches do not depend on the number of workers, and resuming in the middle of an epoch is
exact. torchvision, which takes half a second to import, is imported where it is used.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from resless.data.augment import UNVARIED, Augmentation, jitter, lighting_shift, normalise
from resless.data.loaders import generator, mix, repeat, statistics
from resless.data.policies import Transform, interpolation_mode
from resless.data.policies import auto_augment as policy_of
from resless.data.samples import Samples
from resless.data.shards import ALONE, Shards
from resless.errors import InputError, check

_ORDER = -1
_PREFETCH_FACTOR = 4
_MAX_RESIZED_PIXELS = 2**24  # of an image: a strip, as a damaged size can make it, is not to take gigabytes


def train_transform(
    size: int = 224, augmentation: Augmentation = UNVARIED, mean: Sequence[float] | None = None
) -> Transform:
    """A random part of the image resized to `size`, its colours varied, mirrored, varied by a policy, partly erased.

    Brightness, contrast and saturation vary in random order. An erased rectangle takes the colour `mean`, of each
    channel on the [0, 1] scale. The order is that of torchvision's reference recipes.
    """
    from torchvision.transforms import v2

    how, mode = augmentation, interpolation_mode(augmentation.interpolation)
    check(mean is not None or not how.random_erase, "mean", mean, "given together with random_erase")
    steps: list[Transform] = [v2.RandomResizedCrop(size, interpolation=mode, antialias=True)]
    if how.brightness or how.contrast or how.saturation:
        steps.append(v2.ColorJitter(how.brightness, how.contrast, how.saturation))
    if how.lighting:
        steps.append(Lighting(how.lighting))
    steps.append(v2.RandomHorizontalFlip())
    if how.auto_augment is not None:
        steps.append(policy_of(how.auto_augment, how.interpolation))
    if mean is not None and how.random_erase:
        # Deviation: the reference erases after normalising, to exactly 0; here it is the nearest grey level.
        levels = [min(max(round(255 * value), 0), 255) for value in mean]
        steps.append(v2.RandomErasing(how.random_erase, value=levels))
    return v2.Compose(steps)


@dataclass(frozen=True)
class Lighting:
    """AlexNet's colour noise: all pixels of an image shifted along the principal components of ImageNet's colours."""

    std: float

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 [3, H, W] -> uint8 [3, H, W]"""
        return jitter(image[None], shift=lighting_shift(self.std * torch.randn(1, 3)))[0]


def eval_transform(size: int = 224, resize: int = 256, interpolation: str = "bilinear") -> Transform:
    """The shorter side resized to `resize`, then the central `size` x `size` pixels."""
    from torchvision.transforms import v2

    mode = interpolation_mode(interpolation)
    shorter = partial(v2.functional.resize, size=[resize], interpolation=mode, antialias=True)
    return v2.Compose([ShorterSide(resize, shorter), v2.CenterCrop(size)])


@dataclass(frozen=True)
class ShorterSide:
    """An image resized, by `resize`, until its shorter side has `size` pixels.

    Raises InputError where that would make more than 2^24 pixels, of an image much longer than wide.
    """

    size: int
    resize: Transform

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 [C, H, W] -> uint8 [C, size, >= size] or [C, >= size, size]"""
        height, width = image.shape[1:]
        pixels = self.size**2 * max(height, width) // min(height, width)
        if pixels > _MAX_RESIZED_PIXELS:
            raise InputError(
                f"of {width} x {height} pixels it would get {pixels:,} with a shorter side of {self.size}, but at most "
                f"{_MAX_RESIZED_PIXELS:,} are allowed: crop it or leave it out"
            )
        return self.resize(image)


@dataclass(frozen=True, eq=False)
class Stream:
    """A data set on disk, decoded while it is used; the properties of `Images`, without the images.

    `size` is the side in pixels at which a network is evaluated on them; training may cut out others.
    """

    samples: Samples
    size: int

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def labels(self) -> Tensor:
        """int64 [N]"""
        return torch.from_numpy(self.samples.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One for each class."""
        return self.samples.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return self.samples.channels, self.size, self.size

    def renumbered(self, numbers: np.ndarray, class_names: Sequence[str]) -> Stream:
        """The same images, class c now called `numbers[c]` (int64), of the classes `class_names`."""
        samples = copy(self.samples)
        samples.labels, samples.class_names = numbers[samples.labels], tuple(class_names)
        return Stream(samples, self.size)


class StreamBatches:
    """Shuffled training batches, decoded by worker processes; the interface of `Batches`.

    `batch_size` is that of all processes together, `num_workers` that of this process (0: decode in this process).
    The incomplete last batch of an epoch is left out. With `repeats` each image comes so many times, transformed anew,
    and fewer images do (see `resless.data.loaders.repeat`). Workers stay alive from epoch to epoch.

    Raises InputError if the batch size is less than 1, larger than the number of images, or no multiple of world_size;
    while iterating, for an image that cannot be decoded or resized, naming its file.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        *,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        num_workers: int,
        transform: Transform | None = None,
        repeats: int = 1,
        indices: Tensor | None = None,
        shards: Shards = ALONE,
    ) -> None:
        self._indices = torch.arange(len(samples)) if indices is None else indices
        self.num_images = len(self._indices)
        self.batch_size = batch_size
        shards.check(batch_size, self.num_images)
        check(repeats >= 1, "repeats", repeats, "1 or more")
        self.steps_per_epoch = self.num_images // batch_size
        self._seed, self._repeats = seed, repeats
        self._share = shards.share(batch_size)
        decoder = _Decoder(samples, transform or train_transform(), seed)
        self._stream = _Stream(decoder, num_workers, mean, std, shards)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from `start_step` on: float32 [n, C, H, W] and int64 [n], on the device."""
        order = self._indices[torch.randperm(self.num_images, generator=generator(self._seed, epoch, _ORDER))]
        indices, copies = repeat(order, self._repeats, self.batch_size)
        items = torch.stack([torch.full_like(indices, epoch), indices, copies], dim=1)  # [N, 3]
        batches = items.split(self.batch_size)[start_step : self.steps_per_epoch]
        return self._stream.run([batch[self._share].tolist() for batch in batches])


class StreamEvalBatches:
    """Every image exactly once over all processes, in order; the interface of `EvalBatches`, decoded by workers."""

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        num_workers: int,
        transform: Transform | None = None,
        indices: Tensor | None = None,
        shards: Shards = ALONE,
    ) -> None:
        check(batch_size >= 1, "batch_size", batch_size, "at least 1")
        indices = torch.arange(len(samples)) if indices is None else indices
        self.num_images = len(indices)
        parts = shards.shares(indices, batch_size)
        self._plan: list[list[_Item]] = [[(0, index, 0) for index in part.tolist()] for part in parts]
        decoder = _Decoder(samples, transform or eval_transform(), seed=0)
        self._stream = _Stream(decoder, num_workers, mean, std, shards)

    @property
    def order(self) -> Tensor:
        """Which images of the data set this process gets, in the order in which it gets them, int64 [n]."""
        return torch.tensor([index for part in self._plan for _, index, _ in part], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._stream.run(self._plan)


_Item: TypeAlias = Sequence[int]  # epoch, index of an image, and which of its repeats in the epoch


class _Decoder(torch.utils.data.Dataset):
    """Runs in the workers: the images and labels of one batch, or the error that the main process is to raise."""

    def __init__(self, samples: Samples, transform: Transform, seed: int) -> None:
        self._samples, self._transform, self._seed = samples, transform, seed
        self.channels = samples.channels

    def __getitems__(self, items: Sequence[_Item]) -> tuple[Tensor, Tensor] | InputError:
        try:
            images = torch.stack([self._image(*item) for item in items])
        except InputError as error:
            return error  # raised here, it would arrive wrapped in a traceback of the worker
        return images, torch.from_numpy(self._samples.labels[[index for _, index, _ in items]])

    def _image(self, epoch: int, index: int, copy: int) -> Tensor:
        image = torch.from_numpy(self._samples.image(index))
        keys = (epoch, index, copy) if copy else (epoch, index)  # the first is the image that comes without repeats
        with torch.random.fork_rng(devices=[]):  # without workers this is the training process: leave its state alone
            torch.default_generator.manual_seed(mix(self._seed, *keys))
            try:
                return self._transform(image)
            except InputError as error:
                raise InputError(f"{self._samples.where(index)} cannot be resized: {error}") from error


class _Stream:
    """A DataLoader that can be given another plan for every run; its batches are on the device and normalised."""

    def __init__(
        self, decoder: _Decoder, num_workers: int, mean: Sequence[float], std: Sequence[float], shards: Shards
    ) -> None:
        check(num_workers >= 0, "num_workers", num_workers, "at least 0")
        self._device, self._format = torch.device(shards.device), shards.memory_format
        self._mean, self._std = statistics((decoder.channels,), mean, std, self._device)
        self._plan = _Plan()
        self._loader: DataLoader[Any] = DataLoader(
            decoder,
            batch_sampler=self._plan,
            num_workers=num_workers,
            collate_fn=_unchanged,
            worker_init_fn=_leave_signals_to_the_main_process,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # else the loader draws from the global one at the start of every epoch
            persistent_workers=num_workers > 0,
            prefetch_factor=_PREFETCH_FACTOR if num_workers > 0 else None,
        )

    def run(self, batches: list[list[_Item]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The given batches; starting another run ends this one."""
        self._plan.batches = batches
        for batch in self._decoded():
            if isinstance(batch, InputError):
                raise batch
            images, labels = (tensor.to(self._device, non_blocking=True) for tensor in batch)
            yield normalise(images, self._mean, self._std).contiguous(memory_format=self._format), labels

    def _decoded(self) -> Iterator[Any]:
        try:
            yield from self._loader
        except (ConnectionError, EOFError) as error:  # the worker died in the middle of a batch, before torch noticed
            raise RuntimeError(f"DataLoader worker is gone: {error}") from error


class _Plan:
    """A batch sampler whose batches can be exchanged: the loader reads it anew for each run, its workers stay alive."""

    batches: list[list[_Item]]

    def __iter__(self) -> Iterator[list[_Item]]:
        return iter(self.batches)


def _unchanged(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_main_process(_: int) -> None:
    """Ctrl-C, and SIGTERM as torchrun and schedulers send it, reach all processes of the group: the main one is to stop
    after its step, with a checkpoint, for which it needs the batches that are on their way. It ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
