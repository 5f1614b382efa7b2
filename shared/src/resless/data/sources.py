"""Finds the files of a data set: on the hub, or in a local folder of any of the usual layouts."""

from __future__ import annotations

import importlib.resources
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resless.data import catalog
from resless.data.binary import open_cifar, open_mnist
from resless.data.catalog import Dataset
from resless.data.samples import ArraySamples, FileRows, MappedTable, ParquetTable, Samples, TableSamples, TreeSamples
from resless.errors import InputError, check_left_out, unknown_name

_TEST_NAMES = ("test", "validation", "val", "valid")
_PART = re.compile(r"-\d+-of-(?P<count>\d+)$")
_HUB_TIMEOUT_S = 10
_ADVICE = "give the folder of a local copy with --data-dir, or use --dataset digits, which needs no files"


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

    Args:
        name: a name of the catalogue, a hub id `owner/name`, or a local folder.
        split: "train", "test" (the labelled split that accuracy is reported on, also where its files are called
            validation or val), any other split of the data set, or several joined by "+" ("train+extra").
        data_dir: where that data set lies locally, or a folder that holds it under its name; without it, a data set
            given by name is downloaded from the hub. A folder may hold parquet files named as on the hub
            (`train-*.parquet`, at any depth), an image tree (`train/<class>/*`, `test/...` or `val/...`), torchvision's
            `cifar-10-batches-py` or `cifar-100-python`, or MNIST's idx files.
        image_column, label_column: names of these columns, where the catalogue's are not right.
        stream: map parquet rows from disk instead of reading them into memory, for data of ImageNet's size (the
            `datasets` library keeps an uncompressed copy in its own cache).

    Raises:
        InputError: the data are missing, a column is wrong or a label out of range, naming file and row; a folder or
            columns are given for data that have none.
    """
    dataset = catalog.get(name)
    columns = {"image_column": image_column, "label_column": label_column}
    if name == "digits":
        check_left_out("for digits come with the package: give another --dataset", data_dir=data_dir, **columns)
        return _open_digits(dataset, split)
    folder = _local_folder(dataset, data_dir)
    if folder is None:
        return _open_hub(dataset, split, image_column, label_column)
    splits = split.split("+")
    files = _parquet_files(dataset, folder, splits)
    if files:
        table = _map_parquet(files) if stream else ParquetTable(files)
        return TableSamples(dataset, table, image_column, label_column)
    found = open_cifar(dataset, folder, splits) or open_mnist(dataset, folder, splits)
    samples = found or _open_tree(dataset, folder, splits)
    check_left_out(f"for the files in {folder} are no tables", **columns)
    return samples


def _open_digits(dataset: Dataset, split: str) -> Samples:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, their grey levels 0..16 stored as round(v * 255 / 16).

    Which 360 of them are the test images, drawn in equal proportion from every class, is stored with them.
    """
    if split not in ("train", "test"):
        raise unknown_name("split of digits", split, ("train", "test"))
    with (importlib.resources.files("resless.data") / "digits.npz").open("rb") as file, np.load(file) as stored:
        chosen = stored["test"] == (split == "test")
        return ArraySamples(dataset, stored["images"][chosen][:, None], stored["labels"][chosen])


def _local_folder(dataset: Dataset, data_dir: str | os.PathLike[str] | None) -> Path | None:
    """The folder to search; None if the data set is to come from the hub."""
    if dataset.folder is None and data_dir is None:
        return None
    if dataset.folder is not None and data_dir is not None:
        raise InputError(f"the data set {dataset.name} is a folder already: leave --data-dir {data_dir} out")
    folder = dataset.folder or Path(data_dir or "").expanduser()
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} to look for the data set in: {_ADVICE}")
    named = folder / dataset.name
    return named if dataset.folder is None and named.is_dir() else folder


def _split_names(dataset: Dataset, split: str) -> tuple[str, ...]:
    """The names that the files of a split may have, the most likely first."""
    if split != "test":
        return (dataset.train_split if split == "train" else split,)
    return tuple(dict.fromkeys((dataset.test_split, *_TEST_NAMES[_TEST_NAMES.index(dataset.test_split) :])))


def _parquet_files(dataset: Dataset, folder: Path, splits: Sequence[str]) -> list[Path]:
    """The parquet files of all splits in order; empty unless every split has some."""
    if dataset.config and (folder / dataset.config).is_dir():
        folder = folder / dataset.config
    everything = sorted(folder.rglob("*.parquet"))
    files: list[Path] = []
    for split in splits:
        candidates = ([file for file in everything if _is_of(file, name)] for name in _split_names(dataset, split))
        found = next(filter(None, candidates), [])
        folders = sorted({str(file.parent) for file in found})
        if len(folders) > 1:
            raise InputError(f"there are several data sets under {folder}: give the folder of one, {folders[0]} say")
        if not found:
            return []
        _check_complete(found)
        files += found
    return files


def _check_complete(files: Sequence[Path]) -> None:
    """Raise InputError if parts are missing: `train-00001-of-00005.parquet` says how many there are."""
    parts = [_PART.search(file.stem) for file in files]
    counts = {int(part["count"]) for part in parts if part}
    if all(parts) and len(counts) == 1 and len(files) < max(counts):
        there, split = files[0].parent, _PART.sub("", files[0].stem)
        raise InputError(
            f"{there} holds {len(files)} of the {max(counts)} parts of {split}: copy the others there too or, "
            f"to use these alone, rename them to {split}-0.parquet and so on"
        )


def _is_of(file: Path, split: str) -> bool:
    """`train-00000-of-00005.parquet`, `train.parquet`, or any name in a folder `train`."""
    return file.name.startswith((f"{split}-", f"{split}.")) or file.parent.name == split


def _map_parquet(files: Sequence[Path]) -> MappedTable:
    import datasets
    from datasets.exceptions import DatasetsError

    names, rows = [str(file) for file in files], ParquetTable(files).rows
    try:
        mapped = datasets.load_dataset("parquet", data_files={"train": names}, split="train", keep_in_memory=False)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise InputError(f"cannot map the parquet files in {files[0].parent}: {_one_line(error)}") from error
    return MappedTable(mapped, rows)


def _open_tree(dataset: Dataset, folder: Path, splits: Sequence[str]) -> Samples:
    """The image tree in `folder`; the last layout to be tried, so its absence is the error."""
    trees = []
    for split in splits:
        tree = next((folder / n for n in _split_names(dataset, split) if (folder / n).is_dir()), None)
        if tree is None:
            raise InputError(
                f"no {split} images of {dataset.name} in {folder}: looked for parquet files {split}-*.parquet, "
                f"an image tree {split}/<class>/, and torchvision's CIFAR and MNIST files; {_ADVICE}"
            )
        trees.append(tree)
    return TreeSamples(dataset, folder, trees)


def _open_hub(dataset: Dataset, split: str, image_column: str | None, label_column: str | None) -> Samples:
    import datasets
    from datasets.exceptions import DatasetsError

    hub_id = str(dataset.hub_id)
    _check_hub(hub_id)
    parts = [_split_names(dataset, part) for part in split.split("+")]
    candidates = ["+".join(names) for names in itertools.product(*parts)]
    for hub_split in candidates:
        try:
            found = datasets.load_dataset(hub_id, dataset.config, split=hub_split, keep_in_memory=False)
            break
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            if "Unknown split" in str(error) and hub_split != candidates[-1]:
                continue
            raise InputError(
                f"cannot load the split {candidates[0]!r} of {hub_id} from the hub: {_one_line(error)}; {_ADVICE}"
            ) from error
    rows = FileRows([f"{hub_id} ({hub_split})"], [len(found)])
    return TableSamples(dataset, MappedTable(found, rows), image_column, label_column)


def _check_hub(hub_id: str) -> None:
    """Asks the hub once, because `datasets` would retry for half a minute where there is no network."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # that of the client it is built on

    if constants.HF_HUB_OFFLINE:  # `datasets` then uses what it downloaded earlier, and fails at once if there is none
        return
    try:
        HfApi().dataset_info(hub_id, timeout=_HUB_TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError) as error:
        raise InputError(f"the hub does not give {hub_id}: {_one_line(error)}; {_ADVICE}") from error
    except (HTTPError, OSError) as error:
        raise InputError(
            f"cannot reach the hub for the data set {hub_id} ({_one_line(error)}): set HF_HUB_OFFLINE=1 to use an "
            f"earlier download, {_ADVICE}"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
