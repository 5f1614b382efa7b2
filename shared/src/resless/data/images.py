"""Images in memory: `load` decodes a data set once into a cache that all processes share, and returns it as tensors."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resless.data import cache
from resless.data.samples import Samples
from resless.data.sources import open_samples
from resless.errors import InputError, check
from resless.files import check_is_file, sha256

_CHUNK = 128  # images that are decoded at a time
_FEW = 1024  # images that are decoded before other processes would be ready


@dataclass(frozen=True, eq=False)
class Images:
    """A data set in memory. The images may be mapped from the cache: treat them as read only."""

    images: Tensor
    """uint8 [N, C, H, W]"""
    labels: Tensor
    """int64 [N], each 0 <= label < num_classes"""
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def renumbered(self, numbers: np.ndarray, class_names: Sequence[str]) -> Images:
        """The same images, class c now called `numbers[c]` (int64), of the classes `class_names`."""
        return Images(self.images, torch.from_numpy(numbers)[self.labels], tuple(class_names))


def load(
    name: str,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    image_size: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Images:
    """The images of one split as uint8, decoded in parallel at the first call and memory-mapped from the cache later.

    Arguments up to `label_column` are those of `resless.data.open_samples`. `image_size` resizes every image to that
    height and width in pixels (bilinear, antialiased); without it all images must have the same size. `cache_dir` is
    the folder of the cache (default $RESLESS_CACHE, else ~/.cache/resless); its entries are keyed by the content of the
    source files, so a changed file is decoded anew. Rows of parquet files that name images in other files are decoded
    at each call, for those may change.

    Raises InputError if the data are missing, or for a damaged image, a wrong column, a label out of range or images of
    several sizes, naming file and row.
    """
    check(image_size is None or image_size > 0, "image_size", image_size, "at least 1 pixel")
    samples = open_samples(name, split, data_dir, image_column=image_column, label_column=label_column)
    check(len(samples) > 0, f"the number of images in split {split!r} of {name}", 0, "at least 1")
    if not samples.files or samples.names_other_files:  # package data; what no key could be made of
        content = _decode(samples, image_size)
        return _as_images(np.concatenate(list(content.chunks)), content.labels, content.class_names)
    entry = cache.directory(cache_dir) / f"{Path(name).resolve().name}-{split}-{_key(samples, image_size)}"
    return _as_images(*cache.fetch(entry, lambda: _decode(samples, image_size)))


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (kept, held_out), int64, both sorted: `fraction` of the images, in every class alike, is held out.

    labels: int64 [N]. round(fraction * N) images are held out; each class gives its proportional share, rounded by the
    largest remainder. fraction 0 holds out none. Raises InputError unless 0 <= fraction < 1.
    """
    check(0 <= fraction < 1, "the held-out fraction", fraction, "at least 0 and less than 1")
    counts = labels.bincount()
    quotas = fraction * counts.double()
    sizes = quotas.floor().long()
    missing = round(fraction * len(labels)) - int(sizes.sum())
    sizes[(quotas - sizes).argsort(descending=True, stable=True)[:missing]] += 1

    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]  # class after class, at random within each
    rank_in_class = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    is_held_out = rank_in_class < sizes[labels[order]]
    return order[~is_held_out].sort().values, order[is_held_out].sort().values


def pixel_mean(data: Images, indices: Tensor | None = None) -> Tensor:
    """The mean image, float32 [C, H, W] on the [0, 1] scale, of all images or of those at `indices` (int64 [n])."""
    total = torch.zeros(data.images.shape[1:], dtype=torch.float64)
    for chunk in _chunks(data, indices):
        total += chunk.sum(0, dtype=torch.float64)
    return (total / (255 * _count(data, indices))).float()


def channel_mean_std(data: Images, indices: Tensor | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on the [0, 1] scale, of all images or of those at `indices`."""
    # Exact and cheap: a histogram of the 256 values a channel can take.
    channels = data.images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for chunk in _chunks(data, indices):
        for channel in range(channels):
            counts[channel] += chunk[:, channel].flatten().bincount(minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    weights = counts / counts.sum(1, keepdim=True)
    mean = (weights * values).sum(1)
    std = (weights * (values - mean[:, None]).square()).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def _count(data: Images, indices: Tensor | None) -> int:
    return len(data) if indices is None else len(indices)


def _chunks(data: Images, indices: Tensor | None) -> Iterator[Tensor]:
    """The images in pieces of uint8 [n, C, H, W], so that statistics never copy the whole set."""
    for start in range(0, _count(data, indices), 4096):
        if indices is None:
            yield data.images[start : start + 4096]
        else:
            yield data.images.index_select(0, indices[start : start + 4096])


def _as_images(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Images:
    return Images(torch.from_numpy(images), torch.from_numpy(labels), class_names)


def _key(samples: Samples, image_size: int | None) -> str:
    """A digest of everything that decides the content of a cache entry."""
    with ThreadPoolExecutor(_num_cpus()) as pool:
        digests = list(pool.map(_digest, samples.files))
    names = [os.path.relpath(file, samples.root) for file in samples.files]
    parts = (cache.FORMAT, image_size, samples.dataset.channels, samples.class_names, samples.columns, names, digests)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def _digest(file: Path) -> str:
    check_is_file(file)
    try:
        return sha256(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class _ChunkDecoder:
    """Decodes images `start`, `start + 1`, ... of a split to uint8 [n, C, H, W], all of one shape."""

    samples: Samples
    image_size: int | None
    shape: tuple[int, ...]

    def __call__(self, start: int) -> np.ndarray:
        stop = min(start + _CHUNK, len(self.samples))
        return np.stack([self._decode(index) for index in range(start, stop)])

    def _decode(self, index: int) -> np.ndarray:
        image = self.samples.image(index, self.image_size)
        if image.shape != self.shape:
            raise InputError(
                f"{self.samples.where(index)} has {image.shape[1]} x {image.shape[2]} pixels, but the first image "
                f"{self.shape[1]} x {self.shape[2]}: give --image-size to resize all to one size"
            )
        return image


def _decode(samples: Samples, image_size: int | None) -> cache.Content:
    shape = samples.image(0, image_size).shape
    decode_chunk = _ChunkDecoder(samples, image_size, shape)
    starts = range(0, len(samples), _CHUNK)
    few = len(samples) < _FEW or _num_cpus() == 1
    chunks = map(decode_chunk, starts) if few else _map_in_processes(decode_chunk, starts)
    return cache.Content((len(samples), *shape), chunks, samples.labels, samples.class_names)


def _map_in_processes(decode_chunk: _ChunkDecoder, starts: range) -> Iterator[np.ndarray]:
    """Processes, because PIL's WebP decoder holds the interpreter lock; forked where that is safe, to start at once."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    try:
        with ProcessPoolExecutor(_num_cpus(), context, initializer=_start_worker, initargs=(decode_chunk,)) as pool:
            try:
                yield from pool.map(_decode_in_worker, starts)
            finally:
                pool.shutdown(cancel_futures=True)  # after a broken image, do not decode the rest
    except (BrokenProcessPool, OSError) as error:  # killed, or not even started
        raise InputError(
            f"a process that decodes images ended ({error}): there may be too little memory for {_num_cpus()} of them; "
            "free some, or decode while training, with --stream"
        ) from error


_worker_decoder: _ChunkDecoder  # set in worker processes only


def _start_worker(decode_chunk: _ChunkDecoder) -> None:
    global _worker_decoder
    _worker_decoder = decode_chunk


def _decode_in_worker(start: int) -> np.ndarray:
    return _worker_decoder(start)


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
