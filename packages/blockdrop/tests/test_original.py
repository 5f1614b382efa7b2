"""The authors' checkpoints: their names, and the numbers that their networks give."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from blockdrop.config import MODELS
from blockdrop.model import BlockDropNet, load_original
from blockdrop.original import agent_keys, is_original, resnet_keys
from resless.testing import shared_data
from torch import Tensor

NAMES = ["R32_C10", "R110_C10", "R32_C100"]


def golden(name: str) -> dict[str, Any]:
    return json.loads(shared_data("golden", "blockdrop.json").read_text())[name]


def fill_module() -> Any:
    spec = importlib.util.spec_from_file_location("golden_fill", shared_data("golden", "fill.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled(keys: list[tuple[str, list[int], str]]) -> dict[str, Tensor]:
    """A state dict of the authors' layout, of weights that their names determine."""
    fill = fill_module().fill
    return {name: fill(name, tuple(shape), getattr(torch, dtype.split(".")[1])) for name, shape, dtype in keys}


def checkpoint(name: str, folder: Path) -> Path:
    """An authors' checkpoint with such weights."""
    layout = golden(name)
    assert len(layout["resnet_keys"]) > 100
    parts = {part: filled(layout[f"{part}_keys"]) for part in ("resnet", "agent")}
    torch.save({**parts, "epoch": 3}, folder / "original.t7")
    return folder / "original.t7"


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_the_authors_files_has_its_place(name: str, tmp_path: Path) -> None:
    net = load_original(name, checkpoint(name, tmp_path))
    assert not net.training
    theirs = {key: filled([[key, shape, dtype]])[key] for key, shape, dtype in golden(name)["resnet_keys"][:8]}
    state = net.resnet.net.state_dict()
    assert len(state) == len(golden(name)["resnet_keys"])
    assert torch.equal(state["conv1.weight"], theirs["conv1.weight"])
    assert torch.equal(state["layer1.0.conv1.weight"], theirs["blocks.0.0.conv1.weight"])
    assert len(net.policy.state_dict()) == len(golden(name)["agent_keys"]) - 2, "all but the value head"
    assert net.num_blocks == sum(key.endswith("conv1.weight") for key in state) - 1
    assert net.spec.num_classes == MODELS[name].num_classes


@pytest.mark.parametrize("executor", ["masked", "gathered", "grouped", "auto"])
def test_the_authors_logits_and_probabilities_are_reproduced(executor: str, tmp_path: Path) -> None:
    net, numbers = load_original("R32_C10", checkpoint("R32_C10", tmp_path)), golden("R32_C10")
    images = fill_module().image_batch(8, 32, 11)
    policy = torch.tensor(numbers["policy"])
    assert policy.shape == (8, 15)
    assert 0 < policy.sum() < policy.numel()
    with torch.no_grad():
        found = {
            "probs": net.policy(images),
            "logits": net.resnet(images, policy, executor),
            "full": net.resnet(images, torch.ones_like(policy), executor),
        }
    for key, value in found.items():
        expected = torch.tensor(numbers[key])
        assert value.shape == expected.shape
        assert (value - expected).abs().max() < 1e-4, key
    assert torch.equal(net.decide(images), torch.tensor(numbers["probs"]) >= 0.5)


def test_names_of_cifar_networks() -> None:
    keys = ["conv1.weight", "blocks.0.0.bn1.bias", "blocks.2.17.conv2.weight", "fc.weight", "fc.bias"]
    assert is_original(keys)
    assert resnet_keys(keys) == {
        "blocks.0.0.bn1.bias": "layer1.0.bn1.bias",
        "blocks.2.17.conv2.weight": "layer3.17.conv2.weight",
        "fc.weight": "linear.weight",
        "fc.bias": "linear.bias",
    }


def test_numbers_that_no_network_has_are_no_names_of_blocks() -> None:
    keys = [f"blocks.{'9' * 5000}.0.conv1.weight", f"ds.{'9' * 5000}.0.weight"]
    assert resnet_keys(keys) == {}


def test_names_of_imagenet_networks() -> None:
    """Their classifier keeps its name; each stage's projection stands apart from its first block."""
    keys = ["bn1.weight", "blocks.3.2.conv3.weight", "ds.0.0.weight", "ds.3.1.running_mean", "fc.bias"]
    assert resnet_keys(keys) == {
        "blocks.3.2.conv3.weight": "layer4.2.conv3.weight",
        "ds.0.0.weight": "layer1.0.downsample.0.weight",
        "ds.3.1.running_mean": "layer4.0.downsample.1.running_mean",
    }


def test_names_of_policy_networks() -> None:
    keys = ["features.conv1.weight", "features.blocks.1.0.bn2.weight", "logit.bias", "vnet.weight", "vnet.bias"]
    assert agent_keys(keys) == {
        "features.blocks.1.0.bn2.weight": "features.layer2.0.bn2.weight",
        "vnet.weight": None,
        "vnet.bias": None,
    }


@pytest.mark.parametrize("name", ["resnet8", "torchvision/resnet18"])
def test_our_own_names_are_not_taken_for_theirs(name: str) -> None:
    with torch.device("meta"):
        keys = BlockDropNet(name).resnet.net.state_dict()
    assert not is_original(keys)


def test_the_imagenet_layout_has_a_place_for_every_tensor() -> None:
    """There is no file of it here: it is written by the rule, from our names, and comes back."""
    with torch.device("meta"):
        net = BlockDropNet("R101_ImgNet")
    for part, names in ((net.resnet.net, resnet_keys), (net.policy, agent_keys)):
        own = list(part.state_dict())
        theirs = {_original(name): name for name in own}
        assert len(theirs) == len(own) > 100 - 40 * (part is net.policy)
        assert {key: theirs[key] for key in names(theirs)} == names(theirs)
        unchanged = theirs.keys() - names(theirs).keys()
        assert all(theirs[key] == key for key in unchanged)


def _original(name: str) -> str:
    prefix, name = ("features.", name.removeprefix("features.")) if name.startswith("features.") else ("", name)
    if not name.startswith("layer"):
        return prefix + name
    stage, block, rest = name.removeprefix("layer").split(".", 2)
    if rest.startswith("downsample."):
        return f"{prefix}ds.{int(stage) - 1}.{rest.removeprefix('downsample.')}"
    return f"{prefix}blocks.{int(stage) - 1}.{block}.{rest}"
