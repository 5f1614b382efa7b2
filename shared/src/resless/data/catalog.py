"""The data sets that have a name: where they lie on the hub, their columns, sizes and statistics. Free of torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from resless.errors import InputError, unknown_name


@dataclass(frozen=True)
class Dataset:
    """What is known of a data set before any file is opened; None where only the files can tell.

    `mean` and `std` are those of the training images, per channel, on the [0, 1] scale.
    """

    name: str
    hub_id: str | None = None
    """Repository on the Hugging Face hub; None for package data and local folders."""
    config: str | None = None
    """The configuration of that repository."""
    image_column: str | None = None
    label_column: str | None = None
    num_classes: int | None = None
    channels: int | None = None
    size: int | None = None
    """Height and width of an image in pixels; for imagenet that of the crop a network sees."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None
    train_split: str = "train"
    test_split: str = "test"
    """The hub's name of the labelled split that accuracy is reported on."""

    @property
    def folder(self) -> Path | None:
        """The local folder that this data set is, or None if it was given by a name."""
        return Path(self.name).expanduser() if _is_path(self.name) else None


_DIGIT_NAMES = tuple("0123456789")
_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="digits",  # package data: works offline, the default of every smoke recipe
            num_classes=10,
            channels=1,
            size=8,
            mean=(0.3056,),
            std=(0.3760,),
            class_names=_DIGIT_NAMES,
        ),
        Dataset(
            name="mnist",
            hub_id="ylecun/mnist",
            config="mnist",
            image_column="image",
            label_column="label",
            num_classes=10,
            channels=1,
            size=28,
            mean=(0.1307,),
            std=(0.3081,),
            class_names=_DIGIT_NAMES,
        ),
        Dataset(
            name="cifar10",
            hub_id="uoft-cs/cifar10",
            config="plain_text",
            image_column="img",
            label_column="label",
            num_classes=10,
            channels=3,
            size=32,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            class_names=_CIFAR10_NAMES,
        ),
        Dataset(
            name="cifar100",
            hub_id="uoft-cs/cifar100",
            config="cifar100",
            image_column="img",
            label_column="fine_label",
            num_classes=100,
            channels=3,
            size=32,
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
        ),
        Dataset(
            name="svhn",  # a third split, "extra", holds 531,131 more training images: split="train+extra"
            hub_id="ufldl-stanford/svhn",
            config="cropped_digits",
            image_column="image",
            label_column="label",
            num_classes=10,
            channels=3,
            size=32,
            mean=(0.4377, 0.4438, 0.4728),
            std=(0.1980, 0.2010, 0.1970),
            class_names=_DIGIT_NAMES,
        ),
        Dataset(
            name="imagenet",
            hub_id="ILSVRC/imagenet-1k",
            image_column="image",
            label_column="label",
            num_classes=1000,
            channels=3,
            size=224,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            test_split="validation",  # the hub's "test" has no labels
        ),
    )
}


def get(name: str) -> Dataset:
    """The catalogue's entry for `name`; for a local folder or a hub id `owner/name`, an entry that knows only that.

    Raises InputError if `name` is none of the three.
    """
    if name in DATASETS:
        return DATASETS[name]
    if _is_path(name):
        return Dataset(name=name)
    if name.count("/") == 1 and all(name.split("/")):
        return Dataset(name=name, hub_id=name)
    if "/" in name or os.sep in name:
        raise InputError(f"no data set {name!r}: it is neither an existing folder nor a hub id of the form owner/name")
    others = ("folders that exist", "OWNER/NAME on the hub")
    raise unknown_name("dataset", name, DATASETS, shown=(*sorted(DATASETS), *others))


def _is_path(name: str) -> bool:
    if name in DATASETS:
        return False
    return os.path.isabs(name) or name.startswith((".", "~")) or Path(name).is_dir()
