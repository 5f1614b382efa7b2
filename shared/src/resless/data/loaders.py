"""Batches of images in memory.

Order and augmentation are functions of (seed, epoch, step) alone: resuming anywhere, and sharing a batch among any
number of processes, is exact by construction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from resless.data.augment import crop_flip, erase, erased_rectangles, jitter, lighting_shift, normalise
from resless.data.images import Images
from resless.data.policies import auto_augment as policy_of
from resless.data.policies import transform_each
from resless.errors import InputError, check

Mean: TypeAlias = Sequence[float] | Sequence[Sequence[Sequence[float]]] | Tensor
"""Of each channel, [C], or of each pixel, [C, H, W], on the [0, 1] scale."""

_ORDER = -1  # takes the step's place in the seed of an epoch's order
_LATER = 1  # follows the step in the seed of what came later, so that the draws of earlier versions stay as they were


class Batches:
    """Shuffled, augmented training batches.

    `batch_size` is that of all processes together; each global batch is drawn as a whole and process `rank` gets its
    contiguous part of it. `indices` (int64) restricts to a part of the data. `mean` is per channel or per pixel, `std`
    per channel, both on the [0, 1] scale. `pad` shifts each image by up to so many pixels in each direction, filling
    with black; `flip` mirrors half of the images. Then each image's `brightness`, `contrast` and `saturation` are
    multiplied, in this order, by factors from 1 - their value to 1 + their value, and its colours shifted by noise of
    the standard deviation `lighting` (see `lighting_shift`); 0 leaves each out. Then `auto_augment` names a policy for
    each image alone (see `resless.data.policies.auto_augment`, for `interpolation` too); it runs on the CPU, and
    then so does all that comes before it. At the end a rectangle is erased, that is, set to the mean, with the
    probability `random_erase` (see `erased_rectangles`). Without `shuffle` the images come in the order of `indices`;
    with `repeats` each comes so many times, and fewer of them (see `repeat`); with `drop_last` an incomplete last batch
    is left out.

    Raises InputError if the batch size is less than 1, larger than the number of images, or no multiple of world_size;
    for saturation or lighting of images without colours; for other values out of range.
    """

    def __init__(
        self,
        data: Images,
        batch_size: int,
        *,
        indices: Tensor | None = None,
        mean: Mean,
        std: Sequence[float],
        pad: int = 0,
        flip: bool = False,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        lighting: float = 0.0,
        auto_augment: str | None = None,
        interpolation: str = "bilinear",
        random_erase: float = 0.0,
        repeats: int = 1,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
        channels_last: bool = False,
    ) -> None:
        self._indices = torch.arange(len(data)) if indices is None else indices
        self.num_images = len(self._indices)
        self.batch_size = batch_size
        check_batch_size(batch_size, self.num_images, world_size)
        check(pad >= 0, "pad", pad, "at least 0 pixels")
        for name, value in {"brightness": brightness, "contrast": contrast, "saturation": saturation}.items():
            check(0 <= value < 1, name, value, "at least 0 and below 1")
        check(0 <= lighting < math.inf, "lighting", lighting, "0 or more, and finite")
        check_colours(data.image_shape[0], saturation, lighting)
        check(0 <= random_erase <= 1, "random_erase", random_erase, "a probability from 0 to 1")
        check(repeats >= 1, "repeats", repeats, "1 or more")
        remainder = self.num_images % batch_size
        if not drop_last and 0 < remainder < world_size:
            raise InputError(f"the last batch of {remainder} images cannot be shared by {world_size} processes")
        self.steps_per_epoch = self.num_images // batch_size + (not drop_last and remainder > 0)
        self._source = _Source(data, mean, std, device, channels_last)
        self._pad, self._flip, self._seed, self._shuffle = pad, flip, seed, shuffle
        # By the argument of `jitter` which it is the range of.
        self._colours = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "shift": lighting}
        self._policy = None if auto_augment is None else policy_of(auto_augment, interpolation)
        self._random_erase, self._repeats = random_erase, repeats
        self._rank, self._world_size = rank, world_size

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from `start_step` on: float32 [n, C, H, W] and int64 [n], on the device."""
        order = self._order(epoch)
        for step in range(start_step, self.steps_per_epoch):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            share = share_of(len(chosen), self._rank, self._world_size)
            images, labels = self._source.fetch(chosen[share], on_cpu=self._policy is not None)
            if self._pad or self._flip or any(self._colours.values()):
                images = self._augment(images, epoch, step, len(chosen), share)
            if self._policy is None and not self._random_erase:
                yield self._source.normalise(images), labels
                continue
            random = generator(self._seed, epoch, step, _LATER)
            seeds = torch.randint(2**62, (len(chosen),), generator=random)  # drawn whether wanted or not, as above
            if self._policy is not None:
                images = self._source.move(transform_each(images, self._policy, seeds[share]))
            images = self._source.normalise(images)
            if self._random_erase:
                height, width = images.shape[2:]
                drawn = erased_rectangles(len(chosen), height, width, self._random_erase, random)
                images = erase(images, *_to(drawn[:, share], images.device))
            yield images, labels

    def _order(self, epoch: int) -> Tensor:
        order = self._indices
        if self._shuffle:
            order = order[torch.randperm(self.num_images, generator=generator(self._seed, epoch, _ORDER))]
        return repeat(order, self._repeats, self.batch_size)[0]

    def _augment(self, images: Tensor, epoch: int, step: int, count: int, share: slice) -> Tensor:
        # Drawn on the CPU, so that every device sees the same batches; for the global batch, so that every rank does.
        random = generator(self._seed, epoch, step)
        offsets = torch.randint(0, 2 * self._pad + 1, (2, count), generator=random)
        flips = torch.rand(count, generator=random) < (0.5 if self._flip else 0.0)
        if self._pad or self._flip:
            drawn = torch.cat([offsets, flips[None]])[:, share]
            top, left, flip = _to(drawn, images.device)
            images = crop_flip(images, top, left, flip.bool(), self._pad)
        if any(self._colours.values()):
            # All are drawn, whichever are wanted: none depends on which others are, nor do crops and flips.
            *widths, std = self._colours.values()
            factors = 1 + torch.tensor(widths)[:, None] * (2 * torch.rand(3, count, generator=random) - 1)
            shift = lighting_shift(std * torch.randn(count, 3, generator=random))
            drawn = _to(torch.cat([factors, shift.T])[:, share], images.device)  # [6, n]
            changes = dict(zip(self._colours, (*drawn[:3], drawn[3:].T), strict=True))
            images = jitter(images, **{name: changes[name] for name, wanted in self._colours.items() if wanted})
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
        indices: Tensor | None = None,
        mean: Mean,
        std: Sequence[float],
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = False,
    ) -> None:
        check(batch_size >= 1, "batch_size", batch_size, "at least 1")
        indices = torch.arange(len(data)) if indices is None else indices
        self.num_images = len(indices)
        self._chosen = shares(indices, batch_size, rank, world_size)
        self._source = _Source(data, mean, std, device, channels_last)

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

    def __init__(
        self,
        data: Images,
        mean: Mean,
        std: Sequence[float],
        device: torch.device | str,
        channels_last: bool,
    ) -> None:
        self._data = data
        self._device = torch.device(device)
        self._mean, self._std = statistics(data.image_shape, mean, std, self._device)
        self._format = torch.channels_last if channels_last else torch.contiguous_format

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


def check_batch_size(batch_size: int, num_images: int, world_size: int) -> None:
    """Raises InputError unless world_size processes can share batches of `batch_size` out of `num_images`."""
    check(
        1 <= batch_size <= num_images,
        "batch_size",
        batch_size,
        f"from 1 to the number of images, {num_images}; set --batch-size",
    )
    check(batch_size % world_size == 0, "batch_size", batch_size, f"a multiple of the {world_size} processes")


def check_colours(channels: int, saturation: float, lighting: float) -> None:
    """Raises InputError for an augmentation that needs colours where the images have none."""
    for option, value in {"--saturation": saturation, "--lighting": lighting}.items():
        check(channels == 3 or not value, option, value, f"left out: the images have {channels} channel, no colours")


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


def share_of(count: int, rank: int, world_size: int) -> slice:
    """The contiguous part of `count` images that belongs to `rank`; the parts of all ranks cover every image once."""
    return slice(count * rank // world_size, count * (rank + 1) // world_size)


def shares(indices: Tensor, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
    """This rank's non-empty share of every batch of `batch_size` indices."""
    parts = (part[share_of(len(part), rank, world_size)] for part in indices.split(batch_size))
    return [part for part in parts if len(part)]


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting: a pinned copy lets the transfer overlap with the step before."""
    if device.type == "cpu":
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
