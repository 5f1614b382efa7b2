"""Data files from strangers, of every layout: all images are read, or one sentence says why not.

A second for each case here; `./dev -s fuzz -- --minutes 60` goes on for an hour.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from fuzzing import Fuzz, broken, hostile, places
from PIL import Image
from pyarrow import parquet
from resless.data import load, open_samples
from resless.data.stream import Stream, StreamEvalBatches

pytestmark = pytest.mark.filterwarnings("ignore")  # of PIL, about each odd field

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, suffix: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, Image.registered_extensions()[suffix])
    return content.getvalue()


def in_memory(name: str, folder: Path, data_dir: Path | None = None) -> None:
    """Read as for training in memory, into a cache of its own."""
    cache = folder.with_name("cache")
    shutil.rmtree(cache, ignore_errors=True)
    data = load(name, "train", data_dir, cache_dir=cache)
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    assert len(data.images) == len(data.labels) > 0
    assert int(data.labels.max()) < data.num_classes == len(data.class_names)


def one_by_one(name: str) -> None:
    """Read as while streaming."""
    samples = open_samples(name)
    stream = Stream(samples, size=32)
    assert len(stream) == len(stream.labels)
    half = (0.5,) * samples.channels
    batches = StreamEvalBatches(samples, 4, mean=half, std=half, num_workers=0)
    assert sum(len(labels) for _, labels in batches) == len(samples)


# --- CIFAR's pickles -------------------------------------------------------------------------------------------------


CIFAR100: dict[str, dict[bytes, Any]] = {
    "train": {b"data": PIXELS.reshape(4, -1), b"fine_labels": [99, 3, 0, 1], b"coarse_labels": [9, 3, 0, 1]},
    "meta": {b"fine_label_names": [f"class{number}".encode() for number in range(100)]},
}
"""What its two files hold."""


def write_cifar(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in CIFAR100.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


ARRAYS: list[Callable[[Any], Any]] = [
    *(lambda a: np.asarray(a).ravel(), lambda a: np.asarray(a)[:1], lambda a: np.asarray(a)[None]),
    lambda a: np.zeros(np.shape(a)),
    *(lambda a: np.asarray(a, dtype=object), lambda a: [str(a)], lambda a: [a, 1], lambda a: np.asarray(a).view("V1")),
    *(lambda a: np.full(4, np.datetime64("NaT")), lambda a: np.array(3), lambda a: ["x", b"y"], lambda a: [2**80] * 4),
    *(lambda a: np.zeros((4, 0)), lambda a: np.zeros((0, 3072)), lambda a: [256] * 4, lambda a: [[1], [2, 3]]),
]


def changed_entries(content: dict[bytes, Any], chance: random.Random) -> dict[Any, Any]:
    """A copy with one or two things in it replaced, renamed or left out."""
    content = {key: list(value) if isinstance(value, list) else value for key, value in content.items()}
    for _ in range(chance.randint(1, 2)):
        container, key = chance.choice(list(places(content)) or [([0], 0)])
        action = chance.choice(["array", "value", "name", "drop"])
        if action == "array" and isinstance(container[key], list | np.ndarray):
            with suppress(IndexError, TypeError, ValueError):  # of some of what is left, NumPy makes no array
                container[key] = chance.choice(ARRAYS)(container[key])
        elif action == "name" and isinstance(container, dict):
            container[chance.choice([b"", "data", b"coarse_labels", 0])] = container.pop(key)
        elif action == "drop":
            del container[key]
        else:
            container[key] = hostile(chance)
    return content


def test_any_cifar_pickle_is_read_or_refused_in_a_sentence(fuzz: Fuzz, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_cifar(folder)

    def damage(chance: random.Random) -> str:
        write_cifar(folder)
        name = chance.choice(list(CIFAR100))
        content = changed_entries(CIFAR100[name], chance)
        (folder / name).write_bytes(pickle.dumps(content, protocol=chance.randint(0, 4)))
        return f"{name}: {content!r}"

    fuzz(damage, lambda: in_memory("cifar100", folder, folder), least_refused=0.1)


def test_any_bytes_of_cifar_are_read_or_refused_in_a_sentence(fuzz: Fuzz, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_cifar(folder)
    wholes = {file: file.read_bytes() for file in folder.iterdir()}

    def damage(chance: random.Random) -> None:
        for file, whole in wholes.items():
            file.write_bytes(broken(whole, chance))

    fuzz(damage, lambda: in_memory("cifar100", folder, folder), least_refused=0.1)


# --- MNIST's idx files -----------------------------------------------------------------------------------------------


SIZES = [0, 1, -1, 5, 28, -28, 10, 14, 56, 0x800, 0x803, 2**31 - 1]
IDX = {
    "images-idx3-ubyte": ([0x803, 5, 28, 28], RNG.integers(0, 256, 5 * 28 * 28, dtype=np.uint8).tobytes()),
    "labels-idx1-ubyte": ([0x801, 5], bytes([0, 9, 3, 4, 5])),
}
"""Numbers in front, and what follows them."""


@pytest.mark.parametrize("packed", [False, True])
def test_any_idx_file_is_read_or_refused_in_a_sentence(packed: bool, fuzz: Fuzz, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()

    def write(name: str, numbers: list[int], values: bytes, chance: random.Random | None = None) -> None:
        content = np.array(numbers, ">i4").tobytes() + values
        content = gzip.compress(content, compresslevel=1) if packed else content
        file = folder / f"train-{name}{'.gz' if packed else ''}"
        file.write_bytes(broken(content, chance) if chance is not None and chance.random() < 0.5 else content)

    def damage(chance: random.Random) -> str:
        for name, (numbers, values) in IDX.items():
            write(name, numbers, values)
        name, (numbers, values) = chance.choice(list(IDX.items()))
        numbers = list(numbers)
        numbers[chance.randrange(len(numbers))] = chance.choice([*SIZES, chance.randrange(-(2**31), 2**31)])
        write(name, numbers, values * chance.choice([0, 1, 1, 1, 2]), chance)
        return f"{name}: {numbers}"

    for name, (numbers, values) in IDX.items():
        write(name, numbers, values)
    fuzz(damage, lambda: in_memory("mnist", folder, folder), least_refused=0.25)


# --- parquet ---------------------------------------------------------------------------------------------------------

IMAGE = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
COLUMNS: list[Any] = [
    *(pyarrow.array([None] * 4, pyarrow.int64()), pyarrow.array([0, 1, 2, 10**12]), pyarrow.array([-1, 0, 1, 2])),
    *(pyarrow.array([0, 1, 2, 2**63], pyarrow.uint64()), pyarrow.array([0, None, 2, 3]), pyarrow.nulls(4)),
    *(pyarrow.array(["a", "b", "c", "d"]), pyarrow.array([0.5] * 4), pyarrow.array([[1], [2], [], None])),
    *(pyarrow.array([b"x"] * 4), pyarrow.array([b"x"] * 4, pyarrow.large_binary()), pyarrow.array([True] * 4)),
    *(pyarrow.array([0, 1, 1, 0]).dictionary_encode(), pyarrow.array([0, 1, 2, 3], pyarrow.int8())),
    *(
        pyarrow.array([{"bytes": None, "path": path} for path in ("/dev/zero", "..", "no\nfile", "\0")], IMAGE),
        pyarrow.array([{"bytes": 1, "path": 2}] * 4),
        pyarrow.array([{"bytes": [b"x"], "path": "x"}] * 4),
        pyarrow.array([None] * 4, IMAGE),
    ),
]
FEATURES: list[Any] = [
    *("", "no json", "[]", "null", "{}", "\udcff", "[" * 10**5, '{"info": []}', '{"info": {"features": 1}}'),
    *('{"info": {"features": {"label": "x"}}}', '{"info": {"features": {"label": {"names": 3}}}}'),
    *(
        '{"info": {"features": {"label": {"names": "abcd"}}}}',
        '{"info": {"features": {"label": {"names": [1, [], {}]}}}}',
    ),
]


def table() -> pyarrow.Table:
    """Four images in the hub's layout, with the names of their classes."""
    rows = [{"bytes": encoded(pixels, ".png"), "path": None} for pixels in PIXELS]
    names = json.dumps({"info": {"features": {"label": {"names": list("abcd")}}}})
    whole = pyarrow.table({"image": pyarrow.array(rows, IMAGE), "label": pyarrow.array([0, 1, 2, 3])})
    return whole.replace_schema_metadata({"huggingface": names})


def changed(whole: pyarrow.Table, chance: random.Random) -> pyarrow.Table:
    """With one or two columns replaced, renamed, added or left out, or other metadata."""
    for _ in range(chance.randint(1, 2)):
        at = chance.randrange(max(1, whole.num_columns))
        action = chance.choice(["column", "add", "name", "drop", "metadata", "rows"])
        if action == "column" and whole.num_columns:
            whole = whole.set_column(at, whole.schema.names[at], chance.choice(COLUMNS)[: len(whole)])
        elif action == "add":
            name = chance.choice(["image", "label", "bytes", "", "a\nb"])
            whole = whole.append_column(name, chance.choice(COLUMNS)[: len(whole)])
        elif action == "name":
            whole = whole.rename_columns(chance.choices(["image", "label", "", "a\nb"], k=whole.num_columns))
        elif action == "drop" and whole.num_columns:
            whole = whole.remove_column(at)
        elif action == "metadata":
            whole = whole.replace_schema_metadata(
                {"huggingface": chance.choice(FEATURES).encode(errors="surrogateescape")}
            )
        else:
            whole = whole.slice(0, chance.randrange(4))
    return whole


@pytest.mark.parametrize("reading", ["in memory", "one by one"])
def test_any_table_is_read_or_refused_in_a_sentence(reading: str, fuzz: Fuzz, tmp_path: Path) -> None:
    folder, whole = tmp_path / "data", table()
    folder.mkdir()

    def damage(chance: random.Random) -> str:
        parquet.write_table(whole, folder / "train-0.parquet")
        given = changed(whole, chance)
        parquet.write_table(given, folder / f"train-{chance.randint(0, 1)}.parquet")
        return str(given.schema)

    parquet.write_table(whole, folder / "train-0.parquet")
    attempt = (lambda: in_memory(str(folder), folder)) if reading == "in memory" else (lambda: one_by_one(str(folder)))
    fuzz(damage, attempt, least_refused=0.25)


def test_any_bytes_of_parquet_are_read_or_refused_in_a_sentence(fuzz: Fuzz, tmp_path: Path) -> None:
    file = tmp_path / "data" / "train-0.parquet"
    file.parent.mkdir()
    parquet.write_table(table(), file)
    whole = file.read_bytes()

    def damage(chance: random.Random) -> None:
        file.write_bytes(broken(whole, chance))

    fuzz(damage, lambda: in_memory(str(file.parent), file.parent), least_refused=0.1)


# --- images in folders, and what is decoded of them ------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".jpg", ".png", ".ppm", ".tif", ".webp"])
def test_any_bytes_of_an_image_are_decoded_or_refused_in_a_sentence(suffix: str, fuzz: Fuzz, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "train" / "one\nclass"
    folder.mkdir(parents=True)
    files = {folder / f"{name}{suffix}": encoded(pixels, suffix) for name, pixels in zip("ab", PIXELS, strict=False)}

    def damage(chance: random.Random) -> None:
        for file, whole in files.items():
            file.write_bytes(broken(whole, chance))

    for file, whole in files.items():
        file.write_bytes(whole)
    # A damaged size can be that of a large photograph, which PIL takes with up to 179 million pixels.
    fuzz(damage, lambda: one_by_one(str(tmp_path / "data")), least_refused=0.1, most_mib=2048)


def test_any_tree_is_read_or_refused_in_a_sentence(fuzz: Fuzz, tmp_path: Path) -> None:
    """Files that are none, links to nowhere or in a circle, empty folders."""
    root = tmp_path / "data"
    classes = [root / "train" / name for name in ("a", "b")]
    for folder in classes:
        folder.mkdir(parents=True)
        (folder / "whole.png").write_bytes(encoded(PIXELS[0], ".png"))
    count = itertools.count()

    def damage(chance: random.Random) -> str:
        for folder in classes:
            for path in folder.glob("odd*"):
                if path.is_dir() and not path.is_symlink():
                    path.rmdir()
                else:
                    path.unlink()
        path = (
            chance.choice(classes) / f"odd{chance.choice(['', chr(10), chr(0xE9)])}{next(count)}.{chance.choice(KINDS)}"
        )
        action = chance.choice(ODD)
        action(path)
        return f"{path}"

    fuzz(damage, lambda: in_memory(str(root), root), least_refused=0.1)


KINDS = ["png", "jpg", "gif", "txt", "parquet"]
ODD: list[Callable[[Path], object]] = [
    *(lambda p: p.mkdir(), lambda p: p.touch(), lambda p: p.write_bytes(b"\x89PNG"), lambda p: os.mkfifo(p)),
    *(lambda p: p.symlink_to("nowhere"), lambda p: p.symlink_to(p.parent), lambda p: p.symlink_to("/dev/zero")),
    *(lambda p: p.symlink_to(p), lambda p: p.write_bytes(encoded(PIXELS[0][:5], ".png"))),
    lambda p: p.write_bytes(encoded(PIXELS[0, :, :, 0], ".png")),
]


def test_any_damage_of_the_cache_is_mended(fuzz: Fuzz, tmp_path: Path) -> None:
    """It is read or built anew: what is decoded is always what the files hold."""
    folder, cache = tmp_path / "data", tmp_path / "cache"
    folder.mkdir()
    parquet.write_table(table(), folder / "train-0.parquet")
    expected = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)

    def attempt() -> None:
        data = load(str(folder), cache_dir=cache)
        assert data.images.dtype == torch.uint8
        assert torch.equal(data.images, expected)
        assert data.labels.tolist() == [0, 1, 2, 3]

    def damage(chance: random.Random) -> str:
        (entry,) = (path for path in cache.iterdir() if path.is_dir())
        file = chance.choice(sorted(entry.iterdir()))
        file.write_bytes(broken(file.read_bytes(), chance))
        return file.name

    fuzz(damage, attempt, least_refused=0)
