"""One split of a data set, undecoded: `samples.image(i)`, whatever kind of file it lies in. Free of torch."""

from __future__ import annotations

import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from resless.data.catalog import Dataset
from resless.errors import InputError
from resless.files import check_is_file

if TYPE_CHECKING:
    import datasets
    import pyarrow

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = {b"RI": "WEBP", b"\x89P": "PNG", b"\xff\xd8": "JPEG"}  # by the first two bytes
_LOOKED_AT = 64  # images that tell whether a data set has colours
_MAX_CLASSES = 65_536  # of a network: a damaged label is not to make names for billions


class Samples(ABC):
    """The images and labels of one split.

    `labels` is int64 [N], checked to lie in 0..len(class_names)-1. `files` are what the content depends on, below
    `root` (none for package data); `columns` are the names of the image and label columns, if there are any.
    """

    files: tuple[Path, ...] = ()
    root: Path = Path()
    columns: tuple[str, ...] = ()

    def __init__(self, dataset: Dataset, labels: np.ndarray, found_names: Sequence[str] | None) -> None:
        """Class names are `found_names`, else the catalogue's, else numbers; every label is checked against them."""
        self.dataset = dataset
        self.labels = labels.astype(np.int64)
        names = tuple(found_names or dataset.class_names or ())
        num_classes = dataset.num_classes or len(names) or min(int(self.labels.max(initial=0)) + 1, _MAX_CLASSES)
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= num_classes))
        if len(outside):
            raise InputError(
                f"{self.where(outside[0])} has the label {self.labels[outside[0]]}, "
                f"but labels of {dataset.name} must be 0 to {num_classes - 1}"
            )
        self.class_names = names if len(names) == num_classes else tuple(str(label) for label in range(num_classes))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB): the catalogue's; else 3 if any of 64 images, spread over all, is stored in colour."""
        if self.dataset.channels is not None:
            return self.dataset.channels
        looked_at = np.linspace(0, len(self) - 1, min(len(self), _LOOKED_AT)).astype(int).tolist()
        return 1 if all(map(self._is_grey, looked_at)) else 3

    def _is_grey(self, index: int) -> bool:
        with self._decoding(index):
            mode = self._open(index).mode
            return mode in ("1", "L", "LA") or mode.startswith("I")

    @property
    def names_other_files(self) -> bool:
        """Whether images may lie in files that are not among `files`: these alone do not tell when one changes."""
        return False

    def image(self, index: int, size: int | None = None) -> np.ndarray:
        """Image `index` as uint8 [C, H, W], resized (bilinear, antialiased) to `size` x `size` pixels if given.

        Raises InputError naming file and row if it cannot be decoded.
        """
        mode = "L" if self.channels == 1 else "RGB"
        with self._decoding(index):
            picture = self._open(index)
            _check_pixels(*picture.size)
            picture = _in_8_bits(picture).convert(mode)
        if size is not None:
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        return np.array(picture).reshape(picture.height, picture.width, self.channels).transpose(2, 0, 1)

    @contextmanager
    def _decoding(self, index: int) -> Iterator[None]:
        """InputError, naming image `index`, for whatever is raised: at a damaged image PIL can raise anything."""
        try:
            yield
        except MemoryError:  # of the machine, not of the image
            raise
        except Exception as error:
            raise InputError(f"{self.where(index)} cannot be decoded: {str(error) or type(error).__name__}") from error

    @abstractmethod
    def where(self, index: int) -> str:
        """File and row of image `index`, for messages."""

    @abstractmethod
    def _open(self, index: int) -> Image.Image:
        """Image `index`; decoding may wait until its pixels are used."""


class ArraySamples(Samples):
    """Images that were never compressed: uint8 [N, C, H, W] with labels [N]; `rows` came from each of `files`."""

    def __init__(
        self,
        dataset: Dataset,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str] | None = None,
        files: Sequence[Path] = (),
        rows: Sequence[int] = (),
    ) -> None:
        self._images = images
        self._rows = FileRows(files, rows)
        super().__init__(dataset, labels, class_names)

    def where(self, index: int) -> str:
        return self._rows.where(index)

    def _open(self, index: int) -> Image.Image:
        image = self._images[index]
        _check_pixels(image.shape[2], image.shape[1])  # PIL would take memory for each row of no pixels
        return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def _check_pixels(width: int, height: int) -> None:
    if 0 in (width, height):
        raise ValueError(f"it has {width} x {height} pixels, but must have at least one")


class TreeSamples(Samples):
    """Image files in folders `split/class/`, at any depth; classes are numbered in the order of their sorted names."""

    def __init__(self, dataset: Dataset, root: Path, splits: Sequence[Path]) -> None:
        train = root / "train"
        class_names = _class_folders(train if train.is_dir() else splits[0])
        if dataset.num_classes not in (None, len(class_names)):
            # A part of the classes would be numbered differently than the whole: pretrained networks would be wrong.
            raise InputError(
                f"{dataset.name} has {dataset.num_classes} classes, but {root} has {len(class_names)} class folders: "
                f"give the folder itself, --dataset {root}, to number its own classes"
            )
        numbers = {name: number for number, name in enumerate(class_names)}
        files: list[Path] = []
        labels: list[int] = []
        for split in splits:
            for name in _class_folders(split):
                if name not in numbers:
                    raise InputError(f"class folder {split / name} has no counterpart in {train}")
                found = _image_files(split / name)
                files += found
                labels += [numbers[name]] * len(found)
        if not files:
            raise InputError(f"no images ({', '.join(EXTENSIONS)}) in class folders under {splits[0]}")
        self.root = root
        self.files = tuple(files)
        super().__init__(dataset, np.array(labels), class_names)

    def where(self, index: int) -> str:
        return f"image {self.files[index]}"

    def _open(self, index: int) -> Image.Image:
        return _open_image(_content(self.files[index]))


class TableSamples(Samples):
    """Rows of a table in the hub's layout: a column of compressed images and a column of integer labels."""

    def __init__(self, dataset: Dataset, table: Table, image_column: str | None, label_column: str | None) -> None:
        self._table = table
        self.files = table.files
        self.root = Path(os.path.commonpath([file.parent for file in table.files]))
        image_column = _choose_column(table, "image", image_column or dataset.image_column)
        label_column = _choose_column(table, "label", label_column or dataset.label_column)
        self.columns = (image_column, label_column)
        labels = table.column(label_column)
        if not len(labels):
            raise InputError(f"no images in the files under {self.root}: not one of their tables has a row")
        if labels.null_count:
            row = labels.is_null().to_pylist().index(True)
            raise InputError(f"{self.where(row)} has no label in column {label_column!r}")
        super().__init__(dataset, labels.to_numpy(), _class_names(table, label_column))

    def where(self, index: int) -> str:
        return self._table.rows.where(index)

    @cached_property
    def _encoded(self) -> tuple[pyarrow.ChunkedArray, pyarrow.ChunkedArray | None]:
        """Compressed images, and the paths that stand in for them where a row holds none; read when first needed."""
        import pyarrow
        from pyarrow import compute

        column = self._table.column(self.columns[0])
        if pyarrow.types.is_struct(column.type):
            return compute.struct_field(column, "bytes"), compute.struct_field(column, "path")
        return column, None

    @property
    def names_other_files(self) -> bool:
        import pyarrow

        if not pyarrow.types.is_struct(self._table.schema.field(self.columns[0]).type):
            return False
        # Beside its bytes an image may have the name of the file that they once were.
        paths = self._table.part(self.columns[0], "path")
        return any(isinstance(path, str) and os.path.exists(path) for path in paths)

    def _open(self, index: int) -> Image.Image:
        contents, paths = self._encoded
        content = contents[index].as_py()
        if content is None and paths is not None and paths[index].is_valid:
            content = _content(Path(paths[index].as_py()))
        if content is None:
            raise ValueError("the row holds no image")
        return _open_image(content)

    def __getstate__(self) -> dict[str, Any]:
        """Without the images: a worker process reads or maps the files itself."""
        return {key: value for key, value in self.__dict__.items() if key != "_encoded"}


class Table(ABC):
    """A table of which columns are read one by one: labels are needed always, images only if they are not cached."""

    schema: pyarrow.Schema
    files: tuple[Path, ...]
    rows: FileRows

    @abstractmethod
    def column(self, name: str) -> pyarrow.ChunkedArray:
        """All rows of one column."""

    @abstractmethod
    def part(self, name: str, part: str) -> list[Any]:
        """All rows of one part of a column of structs; parts are small, but for the images."""


class ParquetTable(Table):
    """Parquet files laid end to end, read into memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        from pyarrow import parquet

        opened = [_reading(file, parquet.ParquetFile) for file in files]
        self.schema = _reading(files[0], lambda _: opened[0].schema_arrow)
        self.files = tuple(files)
        self.rows = FileRows(files, [one.metadata.num_rows for one in opened])

    def part(self, name: str, part: str) -> list[Any]:
        from pyarrow import compute, parquet

        def read(file: Path) -> list[Any]:
            opened = parquet.ParquetFile(file, page_checksum_verification=True)
            return compute.struct_field(opened.read(columns=[f"{name}.{part}"])[name], part).to_pylist()

        return [value for file in self.files for value in _reading(file, read)]

    def column(self, name: str) -> pyarrow.ChunkedArray:
        import pyarrow
        from pyarrow import parquet

        def read(file: Path) -> pyarrow.ChunkedArray:
            return parquet.read_table(file, columns=[name], page_checksum_verification=True)[name]

        columns = [_reading(file, read) for file in self.files]
        for file, column in zip(self.files, columns, strict=True):
            if column.type != self.schema.field(name).type:
                raise InputError(f"column {name!r} of {file} holds {column.type}, not {self.schema.field(name).type}")
        return pyarrow.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)


class MappedTable(Table):
    """A data set of the `datasets` library, mapped from its Arrow files."""

    def __init__(self, dataset: datasets.Dataset, rows: FileRows) -> None:
        self._dataset = dataset  # pickled by the names of its files
        self.schema = dataset.data.schema
        self.files = tuple(Path(file["filename"]) for file in dataset.cache_files)
        self.rows = rows

    def column(self, name: str) -> pyarrow.ChunkedArray:
        return self._dataset.data.table[name]

    def part(self, name: str, part: str) -> list[Any]:
        from pyarrow import compute

        return compute.struct_field(self.column(name), part).to_pylist()


class FileRows:
    """Which file, and which row of it, an index into several files laid end to end means."""

    def __init__(self, files: Sequence[Path | str], rows: Sequence[int]) -> None:
        self._files = tuple(files)
        self._ends = np.cumsum(rows)

    def where(self, index: int) -> str:
        if not self._files:
            return f"row {index}"
        number = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        return f"row {index - before} of {self._files[number]}"

    def __str__(self) -> str:
        return str(self._files[0])


def _content(file: Path) -> bytes:
    check_is_file(file)
    return file.read_bytes()


def _open_image(content: bytes) -> Image.Image:
    # PIL tries format after format: twice as fast for small images where the first bytes already tell.
    known = _FORMATS.get(content[:2])
    try:
        return Image.open(io.BytesIO(content), formats=(known,) if known else None)
    except UnidentifiedImageError as error:
        raise ValueError("it is not an image of a known format") from error


def _in_8_bits(picture: Image.Image) -> Image.Image:
    """Of a grey picture of 16 bits the upper 8, which PIL would clip to white."""
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers: save it in 8 or 16 bits")
    if not picture.mode.startswith("I"):
        return picture
    pixels = np.asarray(picture)
    if pixels.min() < 0 or pixels.max() > 65_535:
        raise ValueError("its pixels are whole numbers of more than 16 bits: save it in 8 or 16 bits")
    return Image.fromarray((pixels >> 8).astype(np.uint8))


def _reading(file: Path, read: Callable[[Path], Any]) -> Any:
    import pyarrow

    try:
        return read(file)
    except MemoryError as error:  # pyarrow's is one too
        raise InputError(
            f"{file} asks for more memory than there is: it is too large for this machine (--stream reads images one "
            "by one), or it is damaged"
        ) from error
    except (pyarrow.ArrowException, OSError, ValueError, LookupError) as error:
        raise InputError(f"{file} cannot be read as parquet: {' '.join(str(error).split())[:200]}") from error


def _choose_column(table: Table, kind: str, wanted: str | None) -> str:
    """The name of the image or label column: the wanted one, else the only one of a fitting type."""
    from pyarrow import types

    def fits(field: pyarrow.Field) -> bool:
        found = field.type
        if kind == "label":
            return types.is_integer(found)
        if types.is_struct(found):
            return {found.field(i).name for i in range(found.num_fields)} == {"bytes", "path"}
        return types.is_binary(found) or types.is_large_binary(found)

    names = table.schema.names
    if wanted is None:
        fitting = [field.name for field in table.schema if fits(field)]
        if len(fitting) != 1:
            raise InputError(
                f"{table.rows} has {len(fitting)} columns that may hold {kind}s: give --{kind}-column, "
                f"one of {', '.join(names)}"
            )
        (wanted,) = fitting
    if wanted not in names:
        raise InputError(
            f"no {kind} column {wanted!r} in {table.rows}: give --{kind}-column, one of {', '.join(names)}"
        )
    if names.count(wanted) > 1:
        raise InputError(f"{table.rows} has several columns {wanted!r}: give --{kind}-column another name")
    if not fits(table.schema.field(wanted)):
        raise InputError(f"column {wanted!r} of {table.rows} holds {table.schema.field(wanted).type}, not {kind}s")
    return wanted


def _class_names(table: Table, label_column: str) -> list[str] | None:
    """The class names that `datasets` stores in the metadata of the files it writes; None where there are none."""
    try:
        stored = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        names = stored.get("info", {}).get("features", {}).get(label_column, {}).get("names", [])
        valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
    except (ValueError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise InputError(f"{table.rows} does not say the class names of {label_column!r} in its metadata as a list")
    return names or None


def _class_folders(split: Path) -> list[str]:
    return sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:  # links can lead in a circle
            folders.clear()
            continue
        seen.add(place)
        folders.sort()  # of a folder and a link to it, the same one is taken on every machine
        found += [Path(parent, name) for name in names if name.lower().endswith(EXTENSIONS) and name[0] != "."]
    return sorted(found)
