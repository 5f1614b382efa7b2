"""Where the undecoded images of a data set are: hub, parquet files, image trees, torchvision's CIFAR and MNIST files.

`open_samples` finds them and checks columns and labels; every kind of source then gives image i by `samples.image(i)`.
"""

from __future__ import annotations

import gzip
import importlib.resources
import json
import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from resless.data import catalog
from resless.data.catalog import Dataset
from resless.errors import InputError, unknown_name

if TYPE_CHECKING:
    import datasets
    import pyarrow

_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_OTHER_NAMES = {"test": ("validation", "val", "valid"), "validation": ("val", "valid")}
_HUB_TIMEOUT_S = 10


class Samples(ABC):
    """The images of one split, undecoded, and their labels.

    `labels` is int64 [N], checked to lie in 0..len(class_names)-1; `channels` is 1 or 3; `files` are what the content
    depends on, below `root` (none for package data); `columns` are the names of image and label column, if there are any.
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    channels: int
    root: Path = Path()
    files: tuple[Path, ...] = ()
    columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        """Image `index` as uint8 [C, H, W]; InputError naming file and row if it cannot be decoded."""
        try:
            return decode(self.encoded(index), self.channels)
        except (OSError, ValueError, SyntaxError) as error:  # what PIL raises for broken images
            raise InputError(f"{self.where(index)} cannot be decoded: {error}") from error

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The compressed file of image `index`."""

    @abstractmethod
    def where(self, index: int) -> str:
        """File and row of image `index`, for messages."""

    def _set_classes(self, dataset: Dataset, found_names: Sequence[str] | None) -> None:
        """Takes class names from the files, else from the catalogue, else numbers; checks every label against them."""
        names = tuple(found_names or dataset.class_names or ())
        num_classes = dataset.num_classes or len(names) or int(self.labels.max(initial=0)) + 1
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= num_classes))
        if len(outside):
            raise InputError(
                f"{self.where(outside[0])} has the label {self.labels[outside[0]]}, "
                f"but labels of {dataset.name} must be 0 to {num_classes - 1}"
            )
        self.class_names = names if len(names) == num_classes else tuple(str(label) for label in range(num_classes))


def decode(encoded: bytes, channels: int) -> Tensor:
    """A compressed image as uint8 [channels, H, W], channels 1 (grey) or 3 (RGB)."""
    from torchvision.io import ImageReadMode, decode_image  # here, because importing torchvision takes a second

    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    try:
        # Several times as fast as PIL for WebP and JPEG, and it releases the interpreter lock.
        return decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode)
    except (RuntimeError, ValueError):
        return _decode_with_pil(encoded, channels)  # other formats; for a broken image, the better message


def _decode_with_pil(encoded: bytes, channels: int) -> Tensor:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1).contiguous()


class ArraySamples(Samples):
    """Images that were never compressed."""

    def __init__(
        self,
        dataset: Dataset,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str] | None = None,
        files: Sequence[Path] = (),
        rows: Sequence[int] = (),
    ) -> None:
        """images: uint8 [N, C, H, W]; labels: integers [N]; rows: how many of the images came from each file."""
        self.images = images
        self.labels = labels.astype(np.int64)
        self.channels = images.shape[1]
        self.files = tuple(files)
        self.root = files[0].parent if files else Path()
        self._rows = _FileRows(files, rows)
        self._set_classes(dataset, class_names)

    def image(self, index: int) -> Tensor:
        return torch.from_numpy(self.images[index])

    def encoded(self, index: int) -> bytes:
        return self.images[index].tobytes()

    def where(self, index: int) -> str:
        return self._rows.where(index)


class TreeSamples(Samples):
    """An image tree: `split/class/**/image`; a class is numbered by its place among the sorted class folders."""

    def __init__(self, dataset: Dataset, root: Path, splits: Sequence[Path]) -> None:
        train = root / "train"
        class_names = _class_folders(train if train.is_dir() else splits[0])
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
            raise InputError(f"no images ({', '.join(_EXTENSIONS)}) in class folders under {splits[0]}")
        self.root = root
        self.files = tuple(files)
        self.labels = np.array(labels, dtype=np.int64)
        self._set_classes(dataset, class_names)
        self.channels = dataset.channels or _channels_of(self)

    def encoded(self, index: int) -> bytes:
        return self.files[index].read_bytes()

    def where(self, index: int) -> str:
        return f"image {self.files[index]}"


class TableSamples(Samples):
    """Rows of a table in the hub's layout: a column of compressed images and a column of integer labels."""

    def __init__(
        self,
        dataset: Dataset,
        table: pyarrow.Table,
        image_column: str | None,
        label_column: str | None,
        files: Sequence[Path],
        rows: _FileRows,
        keeper: datasets.Dataset | None = None,
    ) -> None:
        """keeper: the memory-mapped data set the table belongs to, sent to worker processes in the table's place."""
        self._rows = rows
        self._keeper = keeper
        self.files = tuple(files)
        self.root = files[0].parent
        self.columns = (
            _choose_column(table, "image", image_column or dataset.image_column, rows.name),
            _choose_column(table, "label", label_column or dataset.label_column, rows.name),
        )
        self._set_table(table)
        self.labels = self._read_labels(table)
        self._set_classes(dataset, _class_names(table, self.columns[1]))
        self.channels = dataset.channels or _channels_of(self)

    def _set_table(self, table: pyarrow.Table) -> None:
        import pyarrow
        from pyarrow import compute

        column = table[self.columns[0]]
        is_struct = pyarrow.types.is_struct(column.type)
        self._bytes = compute.struct_field(column, "bytes") if is_struct else column
        self._paths = compute.struct_field(column, "path") if is_struct else None

    def _read_labels(self, table: pyarrow.Table) -> np.ndarray:
        column = table[self.columns[1]]
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise InputError(f"{self.where(row)} has no label in column {self.columns[1]!r}")
        return column.to_numpy().astype(np.int64)

    def encoded(self, index: int) -> bytes:
        value = self._bytes[index].as_py()
        if value is None and self._paths is not None and self._paths[index].is_valid:
            return Path(self._paths[index].as_py()).read_bytes()
        if value is None:
            raise ValueError("the row holds no image")
        return value

    def where(self, index: int) -> str:
        return self._rows.where(index)

    def __getstate__(self) -> dict[str, Any]:
        if self._keeper is None:
            return self.__dict__
        return {key: value for key, value in self.__dict__.items() if key not in ("_bytes", "_paths")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._keeper is not None:
            self._set_table(self._keeper.data.table)


class _FileRows:
    """Which file and row an index of several files laid end to end belongs to."""

    def __init__(self, files: Sequence[Path | str], rows: Sequence[int]) -> None:
        self.files = tuple(files)
        self.ends = np.cumsum(rows)

    @property
    def name(self) -> str:
        return str(self.files[0])

    def where(self, index: int) -> str:
        if not self.files:
            return f"row {index}"
        number = int(np.searchsorted(self.ends, index, side="right"))
        before = int(self.ends[number - 1]) if number else 0
        return f"row {index - before} of {self.files[number]}"


def open_samples(
    name: str,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    stream: bool = False,
) -> Samples:
    """The undecoded images of one split, with checked labels.

    name: a name of the catalogue, a hub id `owner/name`, or a local folder. split: "train", "test" (the labelled split
    that accuracy is reported on, also where its files are called validation or val), any other split of the data set,
    or several joined by "+" ("train+extra"). data_dir: where that data set lies locally, or a folder that holds it under
    its name. A folder may hold parquet files named as on the hub (`train-*.parquet`, at any depth), an image tree
    (`train/<class>/*`, `test/...` or `val/...`), torchvision's `cifar-10-batches-py` or `cifar-100-python`, or MNIST's
    idx files. Without a folder, the data set is downloaded from the hub through `datasets`. image_column, label_column:
    the names of these columns, where the catalogue's are not right. stream: map parquet rows from disk instead of reading
    them into memory, for data of ImageNet's size (`datasets` keeps a copy in its own cache).

    Raises InputError if the data are missing, or for a wrong column or a label out of range, naming file and row.
    """
    dataset = catalog.get(name)
    if name == "digits":
        return _open_digits(dataset, split)
    folder = _local_folder(dataset, data_dir)
    if folder is None:
        return _open_hub(dataset, split, image_column, label_column)
    splits = [_split_names(dataset, part) for part in split.split("+")]
    opened = _open_cifar(dataset, folder, splits) or _open_idx(dataset, folder, splits)
    if opened is None:
        files = _parquet_files(dataset, folder, splits)
        if files:
            return _open_parquet(dataset, files, image_column, label_column, stream)
        trees = [_first(folder / name for name in names) for names in splits]
        if all(trees):
            opened = TreeSamples(dataset, folder, [tree for tree in trees if tree])
    if opened is None:
        raise InputError(
            f"no {split!r} split of {name} in {folder}: looked for parquet files {splits[0][0]}-*.parquet, an image tree "
            f"{splits[0][0]}/<class>/, torchvision's CIFAR batches and MNIST's idx files; "
            "give the right folder with --data-dir, or use --dataset digits, which needs no files"
        )
    return opened


def _local_folder(dataset: Dataset, data_dir: str | os.PathLike[str] | None) -> Path | None:
    if dataset.folder is not None and data_dir is not None:
        raise InputError(f"the data set {dataset.name} is a folder already: leave --data-dir {data_dir} out")
    if data_dir is None and dataset.folder is None:
        return None
    folder = dataset.folder or Path(str(data_dir)).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"no folder {folder} with the data set {dataset.name}: give the right folder with --data-dir, "
            "or use --dataset digits, which needs no files"
        )
    named = folder / dataset.name
    return named if dataset.folder is None and named.is_dir() else folder


def _split_names(dataset: Dataset, split: str) -> tuple[str, ...]:
    """The names under which the files of a split may lie, the catalogue's own first."""
    own = {"train": dataset.train_split, "test": dataset.test_split}.get(split, split)
    return tuple(dict.fromkeys((own, *_OTHER_NAMES.get(own, ()))))


def _first(paths: Any) -> Path | None:
    return next((path for path in paths if path.is_dir()), None)


# Package data ---------------------------------------------------------------------------------------------------------


def _open_digits(dataset: Dataset, split: str) -> Samples:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, their 17 grey levels 0..16 stored as round(v * 255 / 16).

    Which 360 of them, drawn in equal proportion from every class, are the test images is stored with them.
    """
    if split not in ("train", "test"):
        raise unknown_name("split of digits", split, ("train", "test"))
    with (importlib.resources.files("resless.data") / "digits.npz").open("rb") as file, np.load(file) as stored:
        chosen = stored["test"] == (split == "test")
        return ArraySamples(dataset, stored["images"][chosen][:, None], stored["labels"][chosen])


# torchvision's CIFAR and MNIST files ----------------------------------------------------------------------------------

_CIFAR = {  # folder, files of each split, labels, file of class names, its key
    "cifar10": (
        "cifar-10-batches-py",
        {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
        b"labels",
        "batches.meta",
        b"label_names",
    ),
    "cifar100": (
        "cifar-100-python",
        {"train": ["train"], "test": ["test"]},
        b"fine_labels",
        "meta",
        b"fine_label_names",
    ),
}


def _open_cifar(dataset: Dataset, folder: Path, splits: Sequence[tuple[str, ...]]) -> Samples | None:
    if dataset.name not in _CIFAR:
        return None
    folder_name, names, label_key, meta_name, meta_key = _CIFAR[dataset.name]
    folder = folder / folder_name if (folder / folder_name).is_dir() else folder
    meta = folder / meta_name
    if not meta.is_file():
        return None
    files = [folder / name for split in splits for name in names.get(split[0], [])]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise InputError(
            f"the split {splits[0][0]!r} of {dataset.name} in {folder} lacks {', '.join(missing) or 'files'}"
        )
    batches = [_read_cifar_batch(file, label_key) for file in files]
    return ArraySamples(
        dataset,
        np.concatenate([images for images, _ in batches]),
        np.concatenate([labels for _, labels in batches]),
        [name.decode() for name in _read_pickle(meta)[meta_key]],
        files,
        [len(labels) for _, labels in batches],
    )


def _read_cifar_batch(file: Path, label_key: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = _read_pickle(file)
    try:
        images = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch[label_key], dtype=np.int64)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{file} is not a CIFAR batch with data and {label_key.decode()}: {error}") from error
    if len(images) != len(labels):
        raise InputError(f"{file} holds {len(images)} images but {len(labels)} labels")
    return images, labels


class _NumpyUnpickler(pickle.Unpickler):
    """Builds plain containers and numpy arrays only: a pickle from elsewhere must not run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return np.empty(0).__reduce__()[0]  # numpy's own function, whatever it calls its module today
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode(encoding)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_pickle(file: Path) -> dict[bytes, Any]:
    try:
        with file.open("rb") as opened:
            found = _NumpyUnpickler(opened, encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, OSError) as error:
        raise InputError(f"{file} cannot be read as a CIFAR batch: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} cannot be read as a CIFAR batch: it holds a {type(found).__name__}")
    return found


def _open_idx(dataset: Dataset, folder: Path, splits: Sequence[tuple[str, ...]]) -> Samples | None:
    if dataset.name != "mnist":
        return None
    prefixes = [{"train": "train", "test": "t10k"}.get(split[0], split[0]) for split in splits]
    pairs = [
        (_find_idx(folder, f"{p}-images-idx3-ubyte"), _find_idx(folder, f"{p}-labels-idx1-ubyte")) for p in prefixes
    ]
    if not all(images and labels for images, labels in pairs):
        return None
    images = [_read_idx(images, 3) for images, _ in pairs if images]
    labels = [_read_idx(labels, 1) for _, labels in pairs if labels]
    for (image_file, label_file), some_images, some_labels in zip(pairs, images, labels, strict=True):
        if len(some_images) != len(some_labels):
            raise InputError(f"{image_file} holds {len(some_images)} images but {label_file} {len(some_labels)} labels")
    files = [file for pair in pairs for file in pair if file]
    label_files = [file for _, file in pairs if file]
    samples = ArraySamples(
        dataset, np.concatenate(images)[:, None], np.concatenate(labels), None, label_files, [len(x) for x in labels]
    )
    samples.files = tuple(files)
    return samples


def _find_idx(folder: Path, name: str) -> Path | None:
    places = (folder / "MNIST" / "raw", folder / "raw", folder)
    return next((p / n for p in places for n in (name, name + ".gz") if (p / n).is_file()), None)


def _read_idx(file: Path, dimensions: int) -> np.ndarray:
    """MNIST's format: magic 0x0800 + dimensions, the sizes, all big-endian, then the bytes."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    header = np.frombuffer(content[: 4 * (1 + dimensions)], dtype=">i4") if len(content) >= 4 * (1 + dimensions) else []
    if len(header) == 0 or header[0] != 0x0800 + dimensions:
        raise InputError(f"{file} is not an idx file of {dimensions} dimensions")
    shape = header[1:].tolist()
    values = np.frombuffer(content, dtype=np.uint8, offset=4 * (1 + dimensions))
    if values.size != np.prod(shape):
        raise InputError(f"{file} is damaged: its header says {np.prod(shape)} values, but it holds {values.size}")
    return values.reshape(shape).copy()


# Image trees ----------------------------------------------------------------------------------------------------------


def _class_folders(split: Path) -> list[str]:
    return sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        Path(parent) / name
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(_EXTENSIONS) and not name.startswith(".")
    )


def _channels_of(samples: Samples) -> int:
    """1 if the first image is grey, else 3."""
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(samples.encoded(0))) as image:
            return 1 if image.mode in ("1", "L", "LA", "I;16") else 3
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{samples.where(0)} cannot be decoded: {error}") from error


# Tables: parquet files and the hub ------------------------------------------------------------------------------------


def _parquet_files(dataset: Dataset, folder: Path, splits: Sequence[tuple[str, ...]]) -> list[Path]:
    """The parquet files of all the splits, in order; empty unless every split has some."""
    if dataset.config and (folder / dataset.config).is_dir():
        folder = folder / dataset.config
    everything = sorted(folder.rglob("*.parquet"))
    files: list[Path] = []
    for names in splits:
        found = next((found for name in names if (found := [f for f in everything if _is_of_split(f, name)])), [])
        folders = sorted({str(file.parent) for file in found})
        if len(folders) > 1:
            raise InputError(
                f"several data sets under {folder}: give the folder of one of them, {' or '.join(folders)}"
            )
        if not found:
            return []
        files += found
    return files


def _is_of_split(file: Path, split: str) -> bool:
    """`train-00000-of-00005.parquet`, `train.parquet`, or any name in a folder `train`."""
    return file.stem == split or file.name.startswith(f"{split}-") or file.parent.name == split


def _open_parquet(
    dataset: Dataset, files: list[Path], image_column: str | None, label_column: str | None, stream: bool
) -> Samples:
    import pyarrow
    from pyarrow import parquet

    keeper = None
    try:
        rows = _FileRows(files, [parquet.read_metadata(file).num_rows for file in files])
        if stream:
            keeper = _map_parquet(files)
            table = keeper.data.table
        else:
            table = pyarrow.concat_tables([parquet.read_table(file) for file in files])
    except (pyarrow.ArrowInvalid, OSError) as error:
        broken = _first_unreadable(files)
        raise InputError(f"{broken or files[0]} cannot be read as parquet: {_one_line(error)}") from error
    return TableSamples(dataset, table, image_column, label_column, files, rows, keeper)


def _map_parquet(files: Sequence[Path]) -> datasets.Dataset:
    import datasets

    names = [str(file) for file in files]
    return datasets.load_dataset("parquet", data_files={"train": names}, split="train")


def _first_unreadable(files: Sequence[Path]) -> Path | None:
    import pyarrow
    from pyarrow import parquet

    for file in files:
        try:
            parquet.read_table(file)
        except (pyarrow.ArrowInvalid, OSError):
            return file
    return None


def _open_hub(dataset: Dataset, split: str, image_column: str | None, label_column: str | None) -> Samples:
    import datasets

    _check_hub(dataset)
    hub_split = "+".join({"train": dataset.train_split, "test": dataset.test_split}.get(s, s) for s in split.split("+"))
    try:
        found = datasets.load_dataset(dataset.hub_id, dataset.config, split=hub_split)
    except (OSError, ValueError, RuntimeError) as error:  # datasets' own errors derive from these
        raise InputError(
            f"cannot load the split {hub_split!r} of {dataset.hub_id} from the hub: {_one_line(error)}; "
            "give a local copy with --data-dir, or use --dataset digits, which needs no network"
        ) from error
    files = [Path(file["filename"]) for file in found.cache_files]
    rows = _FileRows([f"{dataset.hub_id} ({hub_split})"], [len(found)])
    return TableSamples(dataset, found.data.table, image_column, label_column, files, rows, found)


def _check_hub(dataset: Dataset) -> None:
    """Asks the hub once, because `datasets` retries for half a minute where there is no network."""
    import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:  # then `datasets` uses what it downloaded earlier, and fails at once otherwise
        return
    advice = "give a local copy with --data-dir, or use --dataset digits, which needs no network"
    try:
        HfApi().dataset_info(dataset.hub_id, timeout=_HUB_TIMEOUT_S)
    except HfHubHTTPError as error:
        raise InputError(f"the hub refuses {dataset.hub_id}: {_one_line(error)}; {advice}") from error
    except (httpx.HTTPError, OSError) as error:
        raise InputError(
            f"cannot reach the Hugging Face hub for {dataset.hub_id} ({_one_line(error)}): {advice}; "
            "HF_HUB_OFFLINE=1 uses an earlier download"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _choose_column(table: pyarrow.Table, kind: str, wanted: str | None, file: str) -> str:
    """The name of the image or label column: the wanted one, or the only one of a fitting type."""
    import pyarrow

    def fits(column: str) -> bool:
        found = table.schema.field(column).type
        if kind == "label":
            return pyarrow.types.is_integer(found)
        if pyarrow.types.is_struct(found):
            return {"bytes", "path"} == {found.field(i).name for i in range(found.num_fields)}
        return pyarrow.types.is_binary(found) or pyarrow.types.is_large_binary(found)

    names = ", ".join(table.column_names)
    if wanted is not None and wanted not in table.column_names:
        raise InputError(f"no {kind} column {wanted!r} in {file}: its columns are {names}; give --{kind}-column")
    if wanted is not None and not fits(wanted):
        content = "integers" if kind == "label" else "images"
        raise InputError(f"column {wanted!r} of {file} holds {table.schema.field(wanted).type}, not {content}")
    fitting = [wanted] if wanted is not None else [column for column in table.column_names if fits(column)]
    if len(fitting) != 1:
        raise InputError(f"which column of {file} holds the {kind}s is not clear: give --{kind}-column, one of {names}")
    return fitting[0]


def _class_names(table: pyarrow.Table, label_column: str) -> list[str] | None:
    """The class names that `datasets` stores in the metadata of the files it writes."""
    stored = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    return stored.get("info", {}).get("features", {}).get(label_column, {}).get("names")
