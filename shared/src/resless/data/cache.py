"""Decoded images on disk: one folder an entry, written once, memory-mapped by every process that needs it.

An entry holds `images.npy` (uint8 [N, C, H, W]), `labels.npy` (int64 [N]) and `info.json` (class names, and the size
and CRC-32 of both files). It appears by an atomic rename under a file lock, and is checked at every load: a damaged
entry counts as absent and is built again.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from resless.errors import InputError

FORMAT = 2  # part of every key: a change of the layout or of the decoding makes new entries


@dataclass(frozen=True)
class Content:
    """What an entry is made from: labels are known at once, images come in order, in chunks of uint8 [n, C, H, W]."""

    shape: tuple[int, int, int, int]
    chunks: Iterable[np.ndarray]
    labels: np.ndarray
    class_names: tuple[str, ...]


def directory(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """`cache_dir` if given, else $RESLESS_CACHE, else ~/.cache/resless."""
    return Path(cache_dir or os.environ.get("RESLESS_CACHE") or "~/.cache/resless").expanduser()


def fetch(entry: Path, make: Callable[[], Content]) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images, labels and class names of `entry`, built by `make` if it is absent or damaged.

    Any number of processes may call this at once: one builds, the others wait for it. The images are mapped
    copy-on-write: all processes share the pages, and writing to the array never reaches the file.

    Raises InputError if the cache directory cannot be written.
    """
    found = _read(entry)
    if found is not None:
        return found
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(entry.with_name(entry.name + ".lock")):
            found = _read(entry)  # while this process waited, another may have built it
            if found is None:
                _build(entry, make())
                found = _read(entry)
    except OSError as error:
        raise InputError(
            f"cannot write the cache of decoded images {entry}: {error.strerror or error}; "
            "set RESLESS_CACHE to a folder that can be written"
        ) from error
    if found is None:
        raise InputError(f"the cache of decoded images {entry} is damaged again just after it was written")
    return found


def _read(entry: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]] | None:
    try:
        info = json.loads((entry / "info.json").read_text())
        images = np.load(entry / "images.npy", mmap_mode="c")
        labels = np.load(entry / "labels.npy")
        formed = (images.dtype, images.ndim, labels.dtype, labels.shape) == (np.uint8, 4, np.int64, images.shape[:1])
        intact = formed and _crc(images) == info["images_crc"] and _crc(labels) == info["labels_crc"]
        return (images, labels, tuple(info["class_names"])) if intact else None
    except MemoryError:  # of the machine, not of the entry
        raise
    except Exception:  # a damaged header makes numpy raise almost anything; whatever it is, the entry is built again
        return None


def _build(entry: Path, content: Content) -> None:
    partial = entry.with_name(entry.name + ".partial")  # under the lock, so what lies there was left by a killed run
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        images_crc = _write_images(partial / "images.npy", content)
        np.save(partial / "labels.npy", content.labels)
        info = {
            "class_names": content.class_names,
            "images_crc": images_crc,
            "labels_crc": _crc(content.labels),
        }
        (partial / "info.json").write_text(json.dumps(info))
        shutil.rmtree(entry, ignore_errors=True)
        partial.rename(entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_images(path: Path, content: Content) -> int:
    """Writes chunk by chunk, so that a set larger than memory can be decoded and a full disk is an OSError."""
    crc = 0
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": content.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in content.chunks:
            crc = zlib.crc32(np.ascontiguousarray(chunk).data, crc)
            chunk.tofile(file)
    return crc


def _crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)
