"""The executors: the same numbers, only what is kept is computed, and the plain network when everything is kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from blockdrop import execute
from blockdrop.execute import EXECUTORS, IMAGES_PER_POLICY
from blockdrop.model import SkippingResNet
from resless import models
from resless.errors import InputError
from resless.models.torchvision_resnet import of_layers
from torch import Tensor, nn
from torch.nn import functional as F

SKIPPING = [name for name in EXECUTORS if name != "masked"]
NETWORKS: dict[str, dict[str, Any]] = {
    "conv": {"name": "resnet14", "shortcut": "conv"},
    "subsample": {"name": "resnet14", "shortcut": "subsample"},
    "avgpool": {"name": "resnet14", "shortcut": "avgpool"},
    "bottleneck": {"name": "resnet20", "block": "bottleneck"},
    "removed": {"name": "resnet20", "shortcut": "conv", "kept_blocks": (1, 2, 4, 8)},
    "removed, avgpool": {"name": "resnet20", "shortcut": "avgpool", "kept_blocks": (0, 2, 3, 7)},
    "torchvision": {"name": "torchvision/resnet18"},
    "torchvision, removed": {"name": "torchvision/resnet18", "kept_blocks": (1, 3, 6)},
}


def stirred(net: nn.Module) -> nn.Module:
    """With running statistics and scales as after training, so that no branch is trivial; in eval mode."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=random)
                module.running_var.uniform_(0.5, 1.5, generator=random)
                module.weight.uniform_(0.3, 0.8, generator=random)
                module.bias.normal_(0, 0.1, generator=random)
    return net.eval()


@cache
def _network(key: str) -> SkippingResNet:
    torch.manual_seed(0)
    return SkippingResNet(stirred(models.create(**NETWORKS[key])))


def network(key: str) -> SkippingResNet:
    """A network of a test's own, in eval mode."""
    return copy.deepcopy(_network(key))


def images(count: int, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def drawn(count: int, blocks: int, rate: float = 0.5, seed: int = 0) -> Tensor:
    return torch.rand(count, blocks, generator=torch.Generator().manual_seed(seed)) < rate


def by_hand(net: SkippingResNet, image: Tensor, policy: Tensor) -> Tensor:
    """One image through its own path, block by block."""
    x, decisions = net.net.stem(image), iter(policy.tolist())
    for block in net.net.blocks():
        shortcut = block.shortcut(x)
        kept = hasattr(block, "residual") and next(decisions)
        x = torch.relu(shortcut + block.residual(x)) if kept else shortcut
    assert next(decisions, None) is None
    return net.net.head(x)


@contextmanager
def counted(net: SkippingResNet) -> Iterator[list[list[Tensor]]]:
    """What entered the first convolution of each block that can be decided on: a list of batches for each block."""
    blocks = [block for block in net.net.blocks() if hasattr(block, "residual")]
    seen: list[list[Tensor]] = [[] for _ in blocks]
    handles = [
        block.conv1.register_forward_pre_hook(lambda _, args, batches=batches: batches.append(args[0].detach().clone()))
        for block, batches in zip(blocks, seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# --- the same numbers


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("key", NETWORKS)
def test_every_executor_gives_each_image_its_own_path(key: str, executor: str) -> None:
    net = network(key)
    blocks = net.num_blocks
    x = images(5, 17)  # odd sides
    policies = {
        "random": drawn(5, blocks),
        "few distinct": drawn(2, blocks, seed=3)[[0, 1, 1, 0, 1]],
        "all kept": torch.ones(5, blocks, dtype=torch.bool),
        "none kept": torch.zeros(5, blocks, dtype=torch.bool),
        "one kept each": F.one_hot(torch.arange(5) % blocks, blocks),
        "one image keeps": torch.eye(5, 1) @ torch.ones(1, blocks),
    }
    with torch.no_grad():
        for name, policy in policies.items():
            found = net(x, policy, executor)
            expected = torch.cat([by_hand(net, image[None], row) for image, row in zip(x, policy, strict=True)])
            assert expected.abs().max() > 0.01
            assert (found - expected).abs().max() < 1e-5, name
            assert (net(x[:1], policy[:1], executor) - expected[:1]).abs().max() < 1e-5, f"{name}, a batch of one"


@pytest.mark.parametrize("executor", SKIPPING)
def test_executors_agree_over_many_random_policies(executor: str) -> None:
    net, random = network("avgpool"), torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for seed in range(40):
            count = int(torch.randint(1, 12, (), generator=random))
            policy = drawn(count, net.num_blocks, rate=float(torch.rand((), generator=random)), seed=seed)
            x = images(count, 8)
            assert (net(x, policy, executor) - net(x, policy, "masked")).abs().max() < 1e-5


def test_the_real_imagenet_network_agrees_too() -> None:
    torch.manual_seed(0)
    net = SkippingResNet(stirred(models.create("torchvision/resnet50", num_classes=10)))
    assert net.num_blocks == 16
    policy = drawn(3, 16)
    with torch.no_grad():
        expected = net(images(3, 48), policy, "masked")
        for executor in SKIPPING:
            found = net(images(3, 48), policy, executor)
            assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("key", ["conv", "subsample", "avgpool", "bottleneck", "torchvision"])
def test_with_all_blocks_kept_it_is_the_plain_network_exactly(key: str, executor: str) -> None:
    net, x = network(key), images(4)
    everything = torch.ones(4, net.num_blocks)
    with torch.no_grad():
        assert torch.equal(net(x, everything, executor), net.net(x))
    for module in (net, net.net):
        module.train()
    if executor in ("auto", "gathered"):
        assert torch.equal(net(x, everything, executor), net.net(x)), "in training mode"


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64, torch.uint8, torch.int64])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_policies_of_any_type_are_understood_and_left_as_they_are(executor: str, dtype: torch.dtype) -> None:
    net, x = network("avgpool"), images(5)
    policy = drawn(5, net.num_blocks).to(dtype)
    before, pixels = policy.clone(), x.clone()
    with torch.no_grad():
        found = net(x, policy, executor)
        assert torch.equal(found, net(x, before.bool(), executor))
    assert torch.equal(policy, before)
    assert torch.equal(x, pixels)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_layout_of_images_changes_nothing(executor: str) -> None:
    net, x = network("conv"), images(5)
    policy = drawn(5, net.num_blocks)
    with torch.no_grad():
        expected = net(x, policy, "masked")
        net.to(memory_format=torch.channels_last)
        found = net(x.contiguous(memory_format=torch.channels_last), policy, executor)
    assert (found - expected).abs().max() < 1e-5


# --- only what is kept is computed


@pytest.mark.parametrize("executor", SKIPPING)
@pytest.mark.parametrize("key", ["avgpool", "bottleneck", "removed", "torchvision"])
def test_a_block_sees_exactly_the_images_that_keep_it(key: str, executor: str) -> None:
    net = network(key)
    x = images(9)
    policy = drawn(3, net.num_blocks, seed=2)[[0, 1, 2, 2, 1, 0, 2, 0, 0]]
    policy[:, 1] = False
    with torch.no_grad(), counted(net) as masked:
        net(x, policy, "masked")
    with torch.no_grad(), counted(net) as seen:
        net(x, policy, executor)
    assert len(seen) == net.num_blocks
    assert seen[1] == [], "nothing runs for a block that nobody keeps"
    for batches, (whole,), kept in zip(seen, masked, policy.unbind(1), strict=True):
        assert sum(map(len, batches)) == int(kept.sum())
        # In any order; the images of another batch size differ by rounding.
        found = sorted(row.sum().item() for batch in batches for row in batch)
        expected = sorted(row.sum().item() for row in whole[kept])
        assert found == pytest.approx(expected, abs=1e-2, rel=1e-4)


def test_grouped_runs_each_policy_once() -> None:
    net = network("avgpool")
    policy = drawn(3, net.num_blocks, seed=2)[[0, 1, 2, 2, 1, 0, 2, 0, 0]]
    with torch.no_grad(), counted(net) as seen:
        net(images(9), policy, "grouped")
    sizes = {0: 4, 1: 2, 2: 3}
    distinct = drawn(3, net.num_blocks, seed=2)
    assert len(distinct.unique(dim=0)) == 3
    for block, batches in enumerate(seen):
        assert sorted(map(len, batches)) == sorted(sizes[row] for row in range(3) if distinct[row, block])


@pytest.mark.parametrize(
    ("policies", "largest"),
    [(1, 2 * IMAGES_PER_POLICY), (2, IMAGES_PER_POLICY), (3, None)],
    ids=["one policy", "two policies", "three policies"],
)
def test_auto_groups_where_policies_have_many_images(policies: int, largest: int | None) -> None:
    """Two policies have IMAGES_PER_POLICY images each; three have fewer, and are gathered: one batch a block."""
    net = network("avgpool")
    count = 2 * IMAGES_PER_POLICY
    policy = torch.ones(policies, net.num_blocks, dtype=torch.bool)
    policy[torch.arange(policies), torch.arange(policies)] = False
    which = torch.arange(count) % policies
    with torch.no_grad(), counted(net) as seen:
        net(images(count, 8), policy[which], "auto")
    last = [len(batch) for batch in seen[-1]]  # all policies keep the last block
    assert last == ([count] if largest is None else [largest] * policies)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_no_images_give_no_logits(executor: str) -> None:
    net = network("avgpool")
    with torch.no_grad():
        assert net(images(0), torch.zeros(0, net.num_blocks), executor).shape == (0, 10)


# --- gradients and training mode


@pytest.mark.parametrize("executor", SKIPPING)
@pytest.mark.parametrize("key", ["conv", "avgpool", "bottleneck", "removed", "torchvision"])
def test_gradients_are_those_of_the_masked_network(key: str, executor: str) -> None:
    net = network(key)
    policy = drawn(6, net.num_blocks, seed=4)
    policy[:, 0] = False

    def gradients(executor: str) -> dict[str, Tensor | None]:
        net.zero_grad()
        x = images(6).requires_grad_()
        F.cross_entropy(net(x, policy, executor), torch.arange(6)).backward()
        return {"images": x.grad} | {name: parameter.grad for name, parameter in net.net.named_parameters()}

    expected, found = gradients("masked"), gradients(executor)
    assert expected.keys() == found.keys()
    missing = 0
    for name, gradient in expected.items():
        assert gradient is not None
        other = found[name]
        if other is None:
            missing += 1
            assert gradient.abs().max() == 0, f"{name} got no gradient, but takes part"
        else:
            assert (other - gradient).abs().max() < 1e-5 * max(1.0, float(gradient.abs().max())), name
    assert missing >= 6, "the block that nobody keeps got a gradient"


@pytest.mark.parametrize("executor", ["auto", "gathered"])
@pytest.mark.parametrize("key", ["conv", "torchvision"])
def test_in_training_mode_batch_norm_sees_only_the_images_that_keep_the_block(key: str, executor: str) -> None:
    net = network(key).train()
    policy = drawn(6, net.num_blocks, seed=4)
    policy[:, 1], policy[:, 2], policy[:2, 3:] = False, True, True
    before = {name: tensor.clone() for name, tensor in net.net.state_dict().items()}
    blocks = list(net.net.blocks())
    with counted(net) as seen:
        net(images(6, 48), policy, executor)
    for index, (block, batches) in enumerate(zip(blocks, seen, strict=True)):
        prefix = next(name for name, module in net.net.named_modules() if module is block)
        old_mean, old_var = (before[f"{prefix}.bn1.running_{kind}"] for kind in ("mean", "var"))
        assert (batches == []) == (not policy[:, index].any())
        if batches == []:
            assert torch.equal(block.bn1.running_mean, old_mean)
            assert block.bn1.num_batches_tracked == before[f"{prefix}.bn1.num_batches_tracked"]
            continue
        (kept,) = batches
        assert len(kept) == int(policy[:, index].sum())
        inputs = block.conv1(kept).detach()
        torch.testing.assert_close(block.bn1.running_mean, 0.9 * old_mean + 0.1 * inputs.mean((0, 2, 3)))
        torch.testing.assert_close(block.bn1.running_var, 0.9 * old_var + 0.1 * inputs.var((0, 2, 3)))


# --- bad input


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (torch.ones(4, 5), r"^the policy is \[4, 5\], but must be \[4, 6\]: an image a row, a block a column$"),
        (torch.ones(3, 6), r"^the policy is \[3, 6\], but must be \[4, 6\]"),
        (torch.ones(6), r"^the policy is \[6\], but must be \[4, 6\]"),
        (torch.ones(4, 6, 1), r"^the policy is \[4, 6, 1\], but must be \[4, 6\]"),
        (torch.full((4, 6), 0.5), r"^the policy holds 0\.5, but its values must be 0 \(dropped\) or 1 \(kept\)$"),
        (torch.full((4, 6), 2), "^the policy holds 2, but"),
        (torch.full((4, 6), -1), "^the policy holds -1, but"),
        (torch.full((4, 6), float("nan")), "^the policy holds nan, but"),
    ],
)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_policies_of_another_shape_or_with_other_values_are_refused(
    executor: str, policy: Tensor, message: str
) -> None:
    net = network("avgpool")
    with pytest.raises(InputError, match=message):
        net(images(4), policy, executor)


def test_policies_for_the_blocks_that_were_removed_are_refused() -> None:
    net = network("removed")
    assert (net.num_blocks, len(net.blocks)) == (4, 6)  # two stages lost their first block: its projection stays
    for blocks in (3, 5, 6, 9):
        with pytest.raises(InputError, match=rf"the policy is \[2, {blocks}\]"):
            net(images(2), torch.ones(2, blocks))


def test_unknown_executor_is_refused() -> None:
    net = network("avgpool")
    with pytest.raises(InputError, match="executor is 'fast', but must be one of auto, masked, gathered, grouped"):
        net(images(1), torch.ones(1, 6), "fast")


def test_blocks_can_be_run_without_a_network() -> None:
    torch.manual_seed(0)
    net = stirred(of_layers("bottleneck", (1, 1, 1, 1), num_classes=10, in_channels=3))
    x = net.stem(images(3, 32))
    with torch.no_grad():
        found = execute.run(list(net.blocks()), x.clone(), torch.ones(3, 4))
        expected = net.layer4(net.layer3(net.layer2(net.layer1(x))))
    assert torch.equal(found, expected)
