"""Batches of images in memory.

Order and augmentation are functions of (seed, epoch, step) alone: resuming anywhere, and sharing a batch among any
number of processes, is exact by construction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from resless.data.augment import (
    UNVARIED,
    Augmentation,
    crop_flip,
    erase,
    erased_rectangles,
    jitter,
    lighting_shift,
    normalise,
)
from resless.data.images import Images
from resless.data.policies import auto_augment as policy_of
from resless.data.policies import transform_each
from resless.data.shards import ALONE, Shards
from resless.errors import InputError, check

Mean: TypeAlias = Sequence[float] | Sequence[Sequence[Sequence[float]]] | Tensor
"""Of each channel, [C], or of each pixel, [C, H, W], on the [0, 1] scale."""

_ORDER = -1  # takes the step's place in the seed of an epoch's order
_LATER = 1  # follows the step in the seed of what came later, so that the draws of earlier versions stay as they were


class Batches:
    """Shuffled, augmented training batches.

    `batch_size` is that of all processes together; each global batch is drawn as a whole and each process gets its
    contiguous part of it. The incomplete last batch of an epoch is left out. `indices` (int64) restricts to a part of
    the data. `mean` is per channel or per pixel, `std` per channel, both on the [0, 1] scale. With `repeats` each image
    comes so many times, augmented anew, and fewer images do (see `repeat`).

    Raises InputError if the batch size is less than 1, larger than the number of images, or no multiple of the number
    of processes; for saturation or lighting of images without colours; for other values out of range.
    """

    def __init__(
        self,
        data: Images,
        batch_size: int,
        *,
        seed: int,
        mean: Mean,
        std: Sequence[float],
        augmentation: Augmentation = UNVARIED,
        repeats: int = 1,
        indices: Tensor | None = None,
        shards: Shards = ALONE,
    ) -> None:
        self._indices = torch.arange(len(data)) if indices is None else indices
        self.num_images = len(self._indices)
        self.batch_size = batch_size
        shards.check(batch_size, self.num_images)
        augmentation.check_channels(data.image_shape[0])
        check(repeats >= 1, "repeats", repeats, "1 or more")
        self.steps_per_epoch = self.num_images // batch_size
        self._source = _Source(data, mean, std, shards)
        self._augmentation, self._seed, self._repeats = augmentation, seed, repeats
        name = augmentation.auto_augment
        self._policy = None if name is None else policy_of(name, augmentation.interpolation)
        self._share = shards.share(batch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from `start_step` on: float32 [n, C, H, W] and int64 [n], on the device."""
        order = self._order(epoch)
        for step in range(start_step, self.steps_per_epoch):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size][self._share]
            images, labels = self._source.fetch(chosen, on_cpu=self._policy is not None)
            yield self._varied(images, epoch, step), labels

    def _order(self, epoch: int) -> Tensor:
        order = self._indices[torch.randperm(self.num_images, generator=generator(self._seed, epoch, _ORDER))]
        return repeat(order, self._repeats, self.batch_size)[0]

    def _varied(self, images: Tensor, epoch: int, step: int) -> Tensor:
        """uint8 [n, C, H, W] -> float32 [n, C, H, W], augmented and normalised."""
        # Drawn on the CPU, so that every device sees the same batches; for the global batch, so that every rank does.
        how = self._augmentation
        if how.pad or how.flip or how.varies_colours:
            images = self._moved_and_coloured(images, generator(self._seed, epoch, step))
        if self._policy is None and not how.random_erase:
            return self._source.normalise(images)
        random = generator(self._seed, epoch, step, _LATER)
        seeds = torch.randint(2**62, (self.batch_size,), generator=random)  # drawn whether wanted or not
        if self._policy is not None:
            images = self._source.move(transform_each(images, self._policy, seeds[self._share]))
        images = self._source.normalise(images)
        if not how.random_erase:
            return images
        height, width = images.shape[2:]
        drawn = erased_rectangles(self.batch_size, height, width, how.random_erase, random)
        return erase(images, *_to(drawn[:, self._share], images.device))

    def _moved_and_coloured(self, images: Tensor, random: torch.Generator) -> Tensor:
        """uint8 [n, C, H, W], cropped, mirrored, and of other colours."""
        how, count = self._augmentation, self.batch_size
        offsets = torch.randint(0, 2 * how.pad + 1, (2, count), generator=random)
        flips = torch.rand(count, generator=random) < (0.5 if how.flip else 0.0)
        if how.pad or how.flip:
            drawn = torch.cat([offsets, flips[None]])[:, self._share]
            top, left, flip = _to(drawn, images.device)
            images = crop_flip(images, top, left, flip.bool(), how.pad)
        if how.varies_colours:
            # All are drawn, whichever are wanted: none depends on which others are, nor do crops and flips.
            widths = {"brightness": how.brightness, "contrast": how.contrast, "saturation": how.saturation}
            spread = 2 * torch.rand(3, count, generator=random) - 1
            factors = 1 + torch.tensor(list(widths.values()))[:, None] * spread
            shift = lighting_shift(how.lighting * torch.randn(count, 3, generator=random))
            drawn = _to(torch.cat([factors, shift.T])[:, self._share], images.device)  # [6, n]
            wanted = {name: factor for (name, width), factor in zip(widths.items(), drawn[:3], strict=True) if width}
            images = jitter(images, **wanted, shift=drawn[3:].T if how.lighting else None)
        return images


class EvalBatches:
    """Every image exactly once over all processes, in order, unaugmented; arguments as of `Batches`.

    A process may get one batch fewer than another. Iterating yields float32 [n, C, H, W] and int64 [n], n >= 1.
    """

    def __init__(
        self,
        data: Images,
        batch_size: int,
        *,
        mean: Mean,
        std: Sequence[float],
        indices: Tensor | None = None,
        shards: Shards = ALONE,
    ) -> None:
        check(batch_size >= 1, "batch_size", batch_size, "at least 1")
        indices = torch.arange(len(data)) if indices is None else indices
        self.num_images = len(indices)
        self._chosen = shards.shares(indices, batch_size)
        self._source = _Source(data, mean, std, shards)

    @property
    def order(self) -> Tensor:
        """Which images of the data set this process gets, in the order in which it gets them, int64 [n]."""
        return torch.cat(self._chosen) if self._chosen else torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in self._chosen:
            images, labels = self._source.fetch(chosen)
            yield self._source.normalise(images), labels


class _Source:
    """Fetches images by index onto the device and normalises them there."""

    def __init__(self, data: Images, mean: Mean, std: Sequence[float], shards: Shards) -> None:
        self._data, self._format = data, shards.memory_format
        self._device = torch.device(shards.device)
        self._mean, self._std = statistics(data.image_shape, mean, std, self._device)

    def fetch(self, chosen: Tensor, on_cpu: bool = False) -> tuple[Tensor, Tensor]:
        """uint8 [n, C, H, W] and int64 [n] on the device, or images that still are to `move` there.

        index_select is ten times as fast as data[chosen].
        """
        images, labels = (tensor.index_select(0, chosen) for tensor in (self._data.images, self._data.labels))
        return images if on_cpu else self.move(images), self.move(labels)

    def move(self, tensor: Tensor) -> Tensor:
        return _to(tensor, self._device)

    def normalise(self, images: Tensor) -> Tensor:
        # Normalised before the layout changes: broadcasting over three innermost channels is six times slower.
        return normalise(images, self._mean, self._std).contiguous(memory_format=self._format)


def repeat(order: Tensor, repeats: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """An epoch of repeated augmentation: of its places, the index of an image and which of its repeats, both int64 [N].

    order: int64 [N], the images of an epoch without repeats. Its first ones come `repeats` times each (the last one
    fewer times where N is no multiple), side by side and so mostly in one batch, as torchvision's `RASampler` hands
    them out (Hoffer et al., 2020; Berman et al., 2019): batches of `batch_size` hold what all its processes together
    get in a step. Within a batch all first repeats come before all second ones, so that at least `repeats` processes,
    each with its contiguous share, never meet an image twice in a step; nor do RASampler's. With 1 it is `order`.
    """
    place = torch.arange(len(order))
    place = (place // batch_size * repeats + place % repeats).argsort(stable=True)
    return order[place // repeats], place % repeats


def statistics(shape: tuple[int, ...], mean: Mean, std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean [C, 1, 1] or [C, H, W] and standard deviation [C, 1, 1] on the device.

    `shape` is that of an image, (C, H, W), or (C,) where only a mean of each channel will do. Raises InputError where
    mean or standard deviation are of another shape.
    """
    channels, wanted = shape[0], f"one number for each of {shape[0]} channels, as these images have"
    means, deviations = _numbers("mean", mean, wanted), _numbers("std", std, wanted)
    if means.dim() > 1:
        of_pixels = f"{list(shape)}, that of the images" if len(shape) > 1 else f"{wanted} where images are streamed"
        check(means.shape == shape, "the shape of the mean", list(means.shape), of_pixels)
    else:
        check(means.shape == (channels,), "mean", _shown(mean), wanted)
        means = means.view(channels, 1, 1)
    check(deviations.shape == (channels,), "std", _shown(std), wanted)
    check(float(deviations.min()) > 0, "std", _shown(std), "greater than 0")
    return means.to(device), deviations.view(channels, 1, 1).to(device)


def _numbers(field: str, values: Any, wanted: str) -> Tensor:
    """Values as a tensor: those of a model folder may be anything that JSON can hold."""
    try:
        return torch.as_tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{field} is {_shown(values)!r}, but must be {wanted}") from None


def _shown(values: Any) -> Any:
    return tuple(values) if isinstance(values, list) else values


def generator(*keys: int) -> torch.Generator:
    """A CPU generator whose numbers depend on all the keys."""
    return torch.Generator().manual_seed(mix(*keys))


def mix(*keys: int) -> int:
    """One well mixed 63-bit seed from several integers."""
    words = [key % 2**64 for key in keys]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting: a pinned copy lets the transfer overlap with the step before."""
    if device.type == "cpu":
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
