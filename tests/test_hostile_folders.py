"""Model folders from strangers: whatever is in them, they load, or one sentence says why not.

A second for each case here; `./dev -s fuzz -- --minutes 60` goes on for an hour.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adn.extract import extract
from adn.model import create as adaptive
from blockdrop.model import BlockDropNet
from deephoyer.compact import compact
from epsilon_resnet.model import create as gated
from fuzzing import Fuzz, hostile, places
from resless import models, weights
from resless.errors import InputError
from resless.folding import fold
from torch import nn


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
def test_any_config_is_loaded_or_refused_in_a_sentence(name: str, fuzz: Fuzz, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    weights.save_pretrained(NETWORKS[name](), folder, preprocessing={"mean": [0.3], "std": [0.4]})
    config = json.loads((folder / "config.json").read_text())

    def damage(chance: random.Random) -> str:
        content = json.dumps(changed(config, chance))
        (folder / "config.json").write_text(content)
        return content

    fuzz(damage, lambda: weights.from_pretrained(folder), least_refused=0.25)


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
    with pytest.raises(InputError, match="made of networks, without end" if levels == 300 else None) as refused:
        weights.from_pretrained(folder)
    assert len(str(refused.value)) < 1000
