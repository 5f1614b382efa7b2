"""What the README files say, and what their commands need to run here: images, networks, and less time."""

from __future__ import annotations

import os
import pickle
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from importlib import import_module
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from resless import latency
from resless.testing import succeeded

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "shared/README.md"]
READMES += [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("packages/*/README.md"))]
HEAVY = (
    *("resless.compare", "resless.folding", "deephoyer.compact", "deephoyer.prune", "blockdrop.finetune"),
    *("blockdrop.evaluate", "blockdrop.plot", "epsilon_resnet.compress", "epsilon_resnet.train"),
    *("adn.export", "adn.train"),
)


def blocks(readme: str, language: str) -> list[str]:
    """The blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), flags=re.DOTALL)


def lines(block: str) -> list[list[str]]:
    """The commands of a shell block in words, continued lines joined, comments left out."""
    split = (shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines())
    return [words for words in split if words]


def run_line(words: list[str], folder: Path) -> str:
    """Run a command of a console script as a shell would, in a fork, which need not import torch; what it printed."""
    for module in HEAVY:
        import_module(module)
    (entry,) = entry_points(group="console_scripts", name=words[0])
    expanded = (sorted(glob(word, root_dir=folder)) if "*" in word else [word] for word in words[1:])
    return succeeded(entry.load(), *map(os.path.expanduser, chain.from_iterable(expanded)), cwd=folder)


@contextmanager
def timed_briefly() -> Iterator[None]:
    """Networks are timed in two turns of one call, on 16 images at most: as asked, it would take most of the time."""
    compare = latency.compare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "compare", lambda models, inputs, **_: compare(models, inputs[:16], repeats=2, warmup=1))
        patch.setattr(latency, "_calls_per_measurement", lambda *_: 1)
        yield


def cifar10(folder: Path) -> None:
    """A few random images as CIFAR-10, in the layout of its authors."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        pixels, labels = random.integers(0, 256, (16, 3 * 32 * 32), np.uint8), random.integers(0, 10, 16).tolist()
        (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [str(digit).encode() for digit in range(10)]}))


def photos(folder: Path, train: int = 48, test: int = 8) -> None:
    """An image tree of three kinds of noise, in several sizes; so many images of each."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for kind in range(3):
            place = folder / split / f"kind{kind}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(80 * kind, 80 * kind + 90, (32 + number % 3, 40, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
