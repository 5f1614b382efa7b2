"""Images: the catalogue of data sets, decoding into a shared cache, augmentation and loaders.

Names are resolved on first use, so that `resless.data.catalog` can be imported without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resless.data.augment import (
        Augmentation,
        crop_flip,
        erase,
        erased_rectangles,
        jitter,
        lighting_shift,
        normalise,
    )
    from resless.data.catalog import DATASETS, Dataset, get
    from resless.data.images import Images, channel_mean_std, load, pixel_mean, stratified_split
    from resless.data.loaders import Batches, EvalBatches
    from resless.data.policies import auto_augment
    from resless.data.samples import Samples
    from resless.data.shards import Shards
    from resless.data.sources import open_samples
    from resless.data.stream import Stream, StreamBatches, StreamEvalBatches

_MODULES = {
    "resless.data.augment": (
        "Augmentation",
        "crop_flip",
        "erase",
        "erased_rectangles",
        "jitter",
        "lighting_shift",
        "normalise",
    ),
    "resless.data.catalog": ("DATASETS", "Dataset", "get"),
    "resless.data.images": ("Images", "channel_mean_std", "load", "pixel_mean", "stratified_split"),
    "resless.data.loaders": ("Batches", "EvalBatches"),
    "resless.data.policies": ("auto_augment",),
    "resless.data.samples": ("Samples",),
    "resless.data.shards": ("Shards",),
    "resless.data.sources": ("open_samples",),
    "resless.data.stream": ("Stream", "StreamBatches", "StreamEvalBatches"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "DATASETS",
    "Augmentation",
    "Batches",
    "Dataset",
    "EvalBatches",
    "Images",
    "Samples",
    "Shards",
    "Stream",
    "StreamBatches",
    "StreamEvalBatches",
    "auto_augment",
    "channel_mean_std",
    "crop_flip",
    "erase",
    "erased_rectangles",
    "get",
    "jitter",
    "lighting_shift",
    "load",
    "normalise",
    "open_samples",
    "pixel_mean",
    "stratified_split",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
