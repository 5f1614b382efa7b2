"""The uncompressed layouts that torchvision downloads: CIFAR's pickled batches and MNIST's idx files. Free of torch."""

from __future__ import annotations

import gzip
import math
import mmap
import pickle
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from resless.data.catalog import Dataset
from resless.data.samples import ArraySamples
from resless.errors import InputError


@dataclass(frozen=True)
class _CifarLayout:
    folder: str
    files: dict[str, tuple[str, ...]]
    labels: bytes
    meta: str
    class_names: bytes


_CIFAR = {
    "cifar10": _CifarLayout(
        folder="cifar-10-batches-py",
        files={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        labels=b"labels",
        meta="batches.meta",
        class_names=b"label_names",
    ),
    "cifar100": _CifarLayout(
        folder="cifar-100-python",
        files={"train": ("train",), "test": ("test",)},
        labels=b"fine_labels",
        meta="meta",
        class_names=b"fine_label_names",
    ),
}
_MNIST = {"train": "train", "test": "t10k"}
_MAX_IDX_BYTES = 2**28  # five times MNIST's: what a damaged file states, or unpacks to, is not allocated


def open_cifar(dataset: Dataset, folder: Path, splits: Sequence[str]) -> ArraySamples | None:
    """CIFAR's batches in `folder` or in torchvision's folder below it; None if they are not there."""
    layout = _CIFAR.get(dataset.name)
    if layout is None or not all(split in layout.files for split in splits):
        return None
    folder = next((f for f in (folder, folder / layout.folder) if (f / layout.meta).is_file()), folder)
    files = [folder / name for split in splits for name in layout.files[split]]
    if not any(file.is_file() for file in files):
        return None
    (names,) = _read_pickle(folder / layout.meta, {layout.class_names: lambda found: [name.decode() for name in found]})
    batches = [_read_cifar(file, layout.labels) for file in files]
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    samples = ArraySamples(dataset, images, labels, names, files, [len(labels) for _, labels in batches])
    samples.root, samples.files = folder, tuple(files)
    return samples


def open_mnist(dataset: Dataset, folder: Path, splits: Sequence[str]) -> ArraySamples | None:
    """MNIST's idx files, packed or not, in `folder` or in torchvision's folder below it; None if they are not there."""
    if dataset.name != "mnist" or not all(split in _MNIST for split in splits):
        return None
    image_files = [_find_idx(folder, f"{_MNIST[split]}-images-idx3-ubyte") for split in splits]
    label_files = [_find_idx(folder, f"{_MNIST[split]}-labels-idx1-ubyte") for split in splits]
    files = [file for file in (*image_files, *label_files) if file is not None]
    if len(files) < 2 * len(splits):
        return None
    images = [_read_idx(file, 3) for file in files[: len(splits)]]
    labels = [_read_idx(file, 1) for file in files[len(splits) :]]
    for file, some_images, some_labels in zip(image_files, images, labels, strict=True):
        if len(some_images) != len(some_labels):
            raise InputError(f"{file} holds {len(some_images)} images, but there are {len(some_labels)} labels for it")
    samples = ArraySamples(
        dataset,
        np.concatenate(images)[:, None],
        np.concatenate(labels),
        files=files[len(splits) :],
        rows=[len(some) for some in labels],
    )
    samples.root, samples.files = folder, tuple(files)
    return samples


def _read_cifar(file: Path, label_key: bytes) -> tuple[np.ndarray, np.ndarray]:
    images, labels = _read_pickle(file, {b"data": _array_of(np.uint8), label_key: _array_of(np.int64)})
    if labels.ndim != 1 or images.shape != (len(labels), 3 * 32 * 32):
        raise InputError(
            f"{file} holds labels of shape {labels.shape} and images of shape {images.shape}, not [N] and [N, 3072]"
        )
    return images.reshape(-1, 3, 32, 32), labels


def _array_of(dtype: type[np.integer]) -> Callable[[Any], np.ndarray]:
    """Makes an array, of what it can hold as it is."""
    return lambda found: np.asarray(found).astype(dtype, casting="safe", copy=False)


def _read_pickle(file: Path, entries: Mapping[bytes, Callable[[Any], Any]]) -> list[Any]:
    """Some entries of a pickled dictionary, each converted by its function."""
    try:
        # Mapped, because reading allocates as many bytes as a damaged file says that follow.
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            content = _NumpyUnpickler(mapped, encoding="bytes").load()
        return [convert(content[key]) for key, convert in entries.items()]
    except MemoryError:  # of the machine, not of the file
        raise
    except Exception as error:  # a damaged pickle can raise anything
        names = " and ".join(key.decode() for key in entries)
        raise InputError(f"{file} cannot be read as a CIFAR file with {names}: {error}") from error


class _NumpyUnpickler(pickle._Unpickler):
    """Builds plain containers and numpy arrays only: a pickle that came from elsewhere must not run code.

    It is the one in Python: that in C allocates as many places for objects as a damaged file says that there are.
    Arrays begin empty, as in every pickle of one, and bytearrays are refused: else a damaged size would be allocated.
    """

    def refuse_bytearray(self: object) -> None:
        raise pickle.UnpicklingError("it holds a bytearray")

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: refuse_bytearray}

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda *_: np.empty(0)
        if module == "numpy" and name == "ndarray":
            return None  # an argument of _reconstruct, and not to be called with a shape
        if module == "numpy" and name == "dtype":
            return np.dtype
        if module == "_codecs" and name == "encode":
            return str.encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _find_idx(folder: Path, name: str) -> Path | None:
    places = (folder, folder / "raw", folder / "MNIST" / "raw")
    return next((p / n for p in places for n in (name, name + ".gz") if (p / n).is_file()), None)


def _read_idx(file: Path, dimensions: int) -> np.ndarray:
    """Magic number 0x0800 + dimensions and the sizes as big-endian 32-bit integers, then one byte a value."""
    start = 4 * (1 + dimensions)
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            header = np.frombuffer(opened.read(start).ljust(start, b"\0"), dtype=">i4")
            shape = header[1:].tolist()
            size = math.prod(shape) if min(shape) >= 0 else -1
            is_idx = header[0] == 0x0800 + dimensions and 0 <= size <= _MAX_IDX_BYTES
            content = opened.read(size + 1) if is_idx else b""
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not is_idx or len(content) != size:
        raise InputError(f"{file} is damaged: it is not an idx file of {dimensions} dimensions and the size it states")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
