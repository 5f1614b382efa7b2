"""Model folders and checkpoints from strangers: whatever is in them, they load, or one sentence says why not.

Seconds here; `RESLESS_FUZZ_SECONDS=3600 pytest tests/test_hostile_folders.py` goes on for an hour.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adn.extract import extract
from adn.model import create as adaptive
from blockdrop.model import BlockDropNet
from deephoyer.compact import compact
from epsilon_resnet.model import create as gated
from resless import models, weights
from resless.errors import InputError
from resless.folding import fold
from torch import nn

SECONDS = float(os.environ.get("RESLESS_FUZZ_SECONDS", "3"))
MIB = 1024  # of ru_maxrss
HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 10**12, 10**30, 0.5, -0.5, 1e308, float("nan"), float("inf")),
    *(
        "",
        "..",
        "../../../etc/passwd",
        "/etc/passwd",
        "resnet20",
        "shrunk",
        "folded",
        "blockdrop",
        "adn",
        "a" * 5000,
        "\0",
        "None",
    ),
    *([], {}, [[]], [-1], [0, 0], [5, 3], list(range(2000)), {"": 1}, {"name": "resnet20"}, [None], ["a"]),
]


def dense() -> nn.Module:
    return models.create("resnet8", in_channels=1)


@torch.no_grad()
def shrunk() -> nn.Module:
    net = models.create("resnet8", in_channels=1, shortcut="subsample").eval()
    for block in net.blocks():
        block.conv1.weight[:, 1::2] = 0
        block.conv1.weight[3:9] = block.bn1.weight[3:9] = block.bn1.bias[3:9] = 0
    return compact(net, torch.rand(2, 1, 8, 8))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dense": dense,
    "shrunk": shrunk,
    "folded": lambda: fold(shrunk(), torch.rand(2, 1, 8, 8)),
    "folded policy": lambda: fold(BlockDropNet("resnet8", in_channels=1, num_classes=10), torch.rand(2, 1, 8, 8)),
    "lenet": lambda: models.create("lenet_300_100", in_channels=1, image_size=8),
    "blockdrop": lambda: BlockDropNet("resnet8", in_channels=1, num_classes=10),
    "epsilon": lambda: gated("preresnet8", num_classes=10, in_channels=1, epsilon=2.5),
    "adaptive": lambda: adaptive("resnet14", num_classes=10, in_channels=1),
    "extracted": lambda: extract(adaptive("resnet14", num_classes=10, in_channels=1), (True, False, True)),
}


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from places(item)


def hostile(chance: random.Random) -> Any:
    """A value that does not belong where it is put."""
    return copy.deepcopy(chance.choice(HOSTILE))


def said(attempt: Callable[[], object]) -> str | None:
    """The sentence with which something was refused; None if it was not."""
    try:
        attempt()
    except InputError as error:
        return str(error)
    return None


def changed(config: Any, chance: random.Random) -> Any:
    """A copy with one to three things replaced, left out or added."""
    config = json.loads(json.dumps(config))
    for _ in range(chance.randint(1, 3)):
        container, key = chance.choice(list(places(config)))
        action = chance.random()
        if action < 0.7:
            container[key] = hostile(chance)
        elif action < 0.85:
            del container[key]
        elif isinstance(container, dict):
            container[chance.choice(["extra", "", "name", "options", "../x"])] = hostile(chance)
        else:
            container.insert(key, hostile(chance))
    return config


@pytest.mark.parametrize("name", NETWORKS)
def test_any_config_is_loaded_or_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    folder, chance = tmp_path / "model", random.Random(name)
    weights.save_pretrained(NETWORKS[name](), folder, preprocessing={"mean": [0.3], "std": [0.4]})
    weights.from_pretrained(folder)
    config, before = (
        json.loads((folder / "config.json").read_text()),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )
    refused, tried, end = 0, 0, time.monotonic() + SECONDS
    while tried < 40 or time.monotonic() < end:
        content = json.dumps(changed(config, chance))
        (folder / "config.json").write_text(content)
        try:
            sentence = said(lambda: weights.from_pretrained(folder))
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} for {content}") from error
        assert sentence is None or "\n" not in sentence, content
        refused += sentence is not None
        tried += 1
    assert refused > tried / 4
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 * MIB, f"{grown / MIB:.0f} MiB for a network of a few hundred kB"


@pytest.mark.parametrize("levels", [30, 300])
def test_networks_made_of_networks_without_end_are_refused(levels: int, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    weights.save_pretrained(dense(), folder)
    config = json.loads((folder / "config.json").read_text())
    name, options = config["model"]["name"], config["model"]["options"]
    for _ in range(levels):
        name, options = "blockdrop", {"backbone": name, "backbone_options": options}
        name, options = "shrunk", {"base": name, "base_options": options, "layers": {}}
    config["model"] |= {"name": name, "options": options}
    (folder / "config.json").write_text(json.dumps(config))
    sentence = said(lambda: weights.from_pretrained(folder))
    assert sentence is not None
    assert len(sentence) < 1000
    if levels == 300:
        assert "made of networks made of networks, without end" in sentence


@pytest.mark.parametrize("kind", ["model.safetensors", "weights.pth"])
def test_any_bytes_are_loaded_or_refused_in_a_sentence(kind: str, tmp_path: Path) -> None:
    chance, net = random.Random(kind), dense()
    weights.save_pretrained(net, tmp_path / "model")
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    path = tmp_path / "model" / kind if kind.endswith("safetensors") else tmp_path / kind
    whole, target = path.read_bytes(), tmp_path / f"broken{path.suffix}"
    refused, tried, end = 0, 0, time.monotonic() + SECONDS
    while tried < 40 or time.monotonic() < end:
        content = bytearray(whole)
        if chance.random() < 0.3:
            del content[chance.randrange(len(content)) :]
        for _ in range(chance.randint(0, 4)):
            if content:
                # Half of them where the structure is: at the start, or, of an archive, at the end.
                near = chance.choice([0, max(0, len(content) - 2000)]) + chance.randrange(min(2000, len(content)))
                at = near if chance.random() < 0.5 and near < len(content) else chance.randrange(len(content))
                content[at] = chance.randrange(256)
        target.write_bytes(content)
        try:
            sentence = said(lambda: weights.load(dense(), target))
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} for {target}") from error
        assert sentence is None or "\n" not in sentence
        refused += sentence is not None
        tried += 1
    assert refused > tried / 10
