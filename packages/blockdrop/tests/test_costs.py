"""Costs against the published ones, against formulas, and against the networks of single policies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blockdrop import costs
from blockdrop.costs import PAPER_UNITS
from blockdrop.model import BlockDropNet
from resless import costs as shared_costs


def cifar_macs(blocks_per_stage: int, num_classes: int) -> tuple[int, list[int]]:
    """MACs of a CIFAR ResNet without projections, by hand: of stem and classifier, and of each block."""
    always = 32 * 32 * 3 * 16 * 9 + 64 * num_classes
    blocks, inputs = [], 16
    for width, side in ((16, 32), (32, 16), (64, 8)):
        for _ in range(blocks_per_stage):
            blocks.append(side * side * 9 * (inputs * width + width * width))
            inputs = width
    return always, blocks


@pytest.mark.parametrize(
    ("name", "dense", "policy"),
    [("R32_C10", 137_725_184, 24_479_744), ("R110_C10", 505_775_360, 24_484_736)],
)
def test_cifar_networks_cost_what_was_published(name: str, dense: int, policy: int) -> None:
    net = BlockDropNet(name)
    found = costs.count(net, torch.zeros(1, 3, 32, 32))
    always, blocks = cifar_macs(net.num_blocks // 3, 10)
    assert (found.always, list(found.blocks)) == (always, blocks)
    value_head = 64  # published with the policy network, and left out here, where nothing uses it
    assert PAPER_UNITS * found.dense == dense
    assert PAPER_UNITS * (found.policy + value_head) == policy
    stem_and_features, features = cifar_macs(1, 0)
    assert found.policy == stem_and_features + sum(features) + 64 * net.num_blocks


def test_the_imagenet_network_costs_what_was_published() -> None:
    with torch.device("meta"):
        net = BlockDropNet("R101_ImgNet")
    found = costs.count(net, torch.zeros(1, 3, 224, 224))
    assert PAPER_UNITS * found.dense == 15_602_810_880
    assert PAPER_UNITS * found.policy == 471_917_568
    assert len(found.blocks) == net.num_blocks == 33
    # A stage's first block takes its first convolution at the side, or the channels, of the stage before.
    bottleneck = [56 * 56 * (64 * inputs + 64 * 64 * 9 + 64 * 256) for inputs in (64, 256, 256)]
    assert list(found.blocks[:3]) == bottleneck


@pytest.mark.parametrize(
    ("name", "parameters", "policy"), [("R32_C10", 464_154, 75_680), ("R110_C10", 1_727_962, 78_215)]
)
def test_networks_have_the_published_parameters(name: str, parameters: int, policy: int) -> None:
    net = BlockDropNet(name)
    assert shared_costs.count_parameters(net.resnet) == parameters
    assert shared_costs.count_parameters(net.policy) == policy - (64 + 1)  # without the value head


@pytest.mark.parametrize(
    "options",
    [{"shortcut": "conv"}, {"shortcut": "avgpool"}, {"shortcut": "conv", "kept_blocks": (0, 3, 4)}],
    ids=str,
)
def test_a_policys_cost_is_that_of_its_plain_network(options: dict[str, object]) -> None:
    net = BlockDropNet("resnet14", **options)
    image = torch.zeros(1, 3, 16, 16)
    found = costs.count(net, image)
    random = np.random.default_rng(0)
    kept = random.random((6, net.num_blocks)) < 0.5
    kept[0], kept[1] = True, False
    per_image = found.per_image(kept)
    assert per_image.dtype == np.int64
    assert found.policy == shared_costs.macs(net.policy, image) > 0
    for row, macs in zip(kept, per_image, strict=True):
        assert macs == found.policy + shared_costs.macs(net.specialised(row), image)
    assert per_image[0] == found.policy + found.dense == found.policy + shared_costs.macs(net.resnet.net, image)


def test_counting_changes_neither_modes_nor_statistics() -> None:
    net = BlockDropNet("resnet8").train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    costs.count(net, torch.zeros(1, 3, 8, 8))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
