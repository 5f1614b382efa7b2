"""A step's forward passes: what runs, what learns, and what stays as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from blockdrop import method
from blockdrop.model import BlockDropNet
from blockdrop.rollouts import CurriculumRollouts, JointRollouts, Rollouts
from resless.testing import assert_every_parameter_gets_gradient
from torch import Tensor, nn
from torch.nn import functional as F

ALPHA = 0.8


def network(name: str = "resnet14", **options: Any) -> BlockDropNet:
    torch.manual_seed(0)
    net = BlockDropNet(name, **options)
    with torch.no_grad():
        net(images(16))  # running statistics of the images themselves
        net.policy.logit.weight *= 10  # policies that differ from image to image
    return net


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def labels(count: int) -> Tensor:
    return torch.arange(count) % 10


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_unchanged(module: nn.Module, before: dict[str, Tensor]) -> None:
    assert len(before) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def policy_loss(rollouts: Rollouts, decided: Tensor) -> Tensor:
    """REINFORCE with advantages that differ from image to image, whatever the rewards are."""
    advantage = torch.linspace(-1, 2, len(rollouts.sampled))
    log_likelihood = method.log_likelihood(rollouts.probabilities, rollouts.sampled, decided)
    return method.self_critical_loss(advantage, log_likelihood).mean()


# --- curriculum


@pytest.mark.parametrize("options", [{}, {"shortcut": "avgpool"}, {"kept_blocks": (1, 3, 5)}], ids=str)
def test_rollouts_are_those_of_full_runs(options: dict[str, Any]) -> None:
    """What both policies share runs once, and changes nothing."""
    net = network(**options)
    model = CurriculumRollouts(net, ALPHA).train()
    x = images(6)
    for num_open in range(1, net.num_blocks + 1):
        found = model(x, num_open)
        with torch.no_grad():
            for logits, policy in (
                (found.sampled_logits, found.sampled),
                (found.baseline_logits, found.baseline),
            ):
                assert not logits.requires_grad
                assert (logits - net.resnet(x, policy, "gathered")).abs().max() < 1e-5


def test_the_shared_blocks_run_once_for_each_image() -> None:
    net = network()
    model = CurriculumRollouts(net, ALPHA).train()
    seen: list[int] = [0] * net.num_blocks
    for index, block in enumerate(net.resnet.net.blocks()):
        block.conv1.register_forward_pre_hook(
            lambda _, args, index=index: seen.__setitem__(index, seen[index] + len(args[0]))
        )
    found = model(images(6), 2)
    open_counts = (found.sampled.long() + found.baseline.long()).sum(0).tolist()
    assert seen == [6, 6, 6, 6, *open_counts[4:]]


def test_closed_blocks_are_always_kept_and_open_ones_follow_the_probabilities() -> None:
    net = network()
    model = CurriculumRollouts(net, ALPHA).train()
    x, dropped = images(64), torch.zeros(2, net.num_blocks, dtype=torch.int64)
    for num_open in (1, 3, 6):
        found = model(x, num_open)
        closed = net.num_blocks - num_open
        p = probabilities_of(net, x)
        expected = ALPHA * p + (1 - ALPHA) * (1 - p)
        torch.testing.assert_close(found.probabilities, expected)
        assert found.probabilities.min() >= 1 - ALPHA
        assert found.probabilities.max() <= ALPHA
        for row, policy in enumerate((found.sampled, found.baseline)):
            assert policy.dtype == torch.bool
            assert policy[:, :closed].all()
            dropped[row] += (~policy).sum(0)
        assert torch.equal(found.baseline[:, closed:], found.probabilities[:, closed:] >= 0.5)
        assert not torch.equal(found.sampled, found.baseline)
    assert dropped[0].min() > 0, "a sampled block was never dropped"


def probabilities_of(net: BlockDropNet, x: Tensor) -> Tensor:
    """Of the policy network in training mode, whose statistics are those of the batch."""
    policy = copy.deepcopy(net.policy).train()
    with torch.no_grad():
        return policy(x)


def test_the_residual_network_stays_as_it_is_and_the_policy_network_learns() -> None:
    net = network()
    model = CurriculumRollouts(net, ALPHA)
    before, policy_before = state(net.resnet), state(net.policy)
    model.train()
    found = model(images(16), net.num_blocks)
    decided = method.open_blocks(net.num_blocks, net.num_blocks)
    loss = policy_loss(found, decided) - 0.1 * method.entropy(found.probabilities, decided).mean()
    assert_every_parameter_gets_gradient(model, loss)
    assert_unchanged(net.resnet, before)
    assert all(parameter.grad is None for parameter in net.resnet.parameters())
    assert not torch.equal(net.policy.features.bn1.running_mean, policy_before["features.bn1.running_mean"])
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"net.policy.{name}" for name, _ in net.policy.named_parameters()}


def test_closed_blocks_teach_nothing() -> None:
    net = network()
    model = CurriculumRollouts(net, ALPHA).train()
    decided = method.open_blocks(2, net.num_blocks)
    found = model(images(8), 2)
    (policy_loss(found, decided) - 0.1 * method.entropy(found.probabilities, decided).mean()).backward()
    gradient = net.policy.logit.weight.grad
    assert gradient is not None
    assert gradient[:4].abs().max() == 0
    assert gradient[4:].abs().amax(1).min() > 0


def test_the_residual_network_is_in_eval_mode_from_the_start_and_whatever_is_asked() -> None:
    model = CurriculumRollouts(network(), ALPHA)
    for given in (model, model.train(), model.train(True)):
        assert not any(module.training for module in given.net.resnet.modules())
        assert given.net.policy.training
    assert not model.eval().net.policy.training


# --- joint


def sampling(policies: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have these policies drawn."""
    monkeypatch.setattr(method, "sample", lambda probabilities: policies.clone())


def test_every_parameter_learns_where_every_block_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    model = JointRollouts(net, ALPHA).train()
    sampling(torch.ones(12, net.num_blocks, dtype=torch.bool), monkeypatch)
    found = model(images(12))
    assert found.sampled_logits.requires_grad
    assert not found.baseline_logits.requires_grad
    decided = torch.ones(net.num_blocks, dtype=torch.bool)
    loss = policy_loss(found, decided) + F.cross_entropy(found.sampled_logits, labels(12))
    assert_every_parameter_gets_gradient(model, loss)


@pytest.mark.parametrize("shortcut", ["conv", "avgpool"])
@pytest.mark.parametrize("greedy", [True, False], ids=["baseline keeps all", "baseline keeps none"])
def test_every_parameter_learns_under_autocast(shortcut: str, greedy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline's pass, which has no gradients, leaves no cast weights behind for the sampled one."""
    net = network(shortcut=shortcut)
    model = JointRollouts(net, ALPHA).train()
    sampling(torch.ones(12, net.num_blocks, dtype=torch.bool), monkeypatch)
    monkeypatch.setattr(method, "greedy", lambda probabilities: torch.full_like(probabilities, greedy).bool())
    with torch.autocast("cpu", torch.bfloat16):
        found = model(images(12))
        assert found.sampled_logits.dtype == torch.bfloat16
        assert bool(found.baseline.all()) == greedy
        decided = torch.ones(net.num_blocks, dtype=torch.bool)
        loss = policy_loss(found, decided) + F.cross_entropy(found.sampled_logits, labels(12))
    assert_every_parameter_gets_gradient(model, loss)


def test_only_blocks_that_no_image_keeps_get_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast, too, and whatever the baseline keeps: shortcuts of dropped blocks learn."""
    net = network(shortcut="conv")
    model = JointRollouts(net, ALPHA).train()
    sampled = torch.tensor([[1, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 1]], dtype=torch.bool).repeat(6, 1)
    sampling(sampled, monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        F.cross_entropy(model(images(12)).sampled_logits, labels(12)).backward()
    without = {name for name, parameter in net.resnet.net.named_parameters() if parameter.grad is None}
    dropped = {f"layer{index // 2 + 1}.{index % 2}." for index in (1, 4)}
    assert {name[: len("layer1.0.")] for name in without} == dropped
    assert not any("shortcut" in name for name in without)
    assert len(without) == 2 * 6, "two convolutions, two batch norms each"


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_the_baseline_moves_no_statistics(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the sampled pass alone: of the images that keep a block."""
    net = network()
    model, alone = JointRollouts(net, ALPHA).train(), copy.deepcopy(net.resnet).train()
    sampled = torch.rand(12, net.num_blocks, generator=torch.Generator().manual_seed(0)) < rate
    sampling(sampled, monkeypatch)
    before = state(net.resnet)
    found = model(images(12))
    expected = alone(images(12), sampled)
    assert torch.equal(found.sampled, sampled)
    assert torch.equal(found.sampled_logits, expected)
    assert_unchanged(net.resnet, state(alone))
    moved = [name for name, tensor in net.resnet.state_dict().items() if not torch.equal(tensor, before[name])]
    blocks_moved = {name.split(".bn")[0] for name in moved if "layer" in name and "shortcut" not in name}
    assert len(blocks_moved) == int(sampled.any(0).sum())


def test_the_baseline_is_the_network_in_eval_mode_under_the_greedy_policy() -> None:
    net = network()
    model, x = JointRollouts(net, ALPHA).train(), images(12)
    before = copy.deepcopy(net.resnet).eval()
    probabilities = probabilities_of(net, x)
    found = model(x)
    assert torch.equal(found.baseline, probabilities >= 0.5)
    torch.testing.assert_close(found.probabilities, method.bounded(probabilities, ALPHA))
    with torch.no_grad():
        assert torch.equal(found.baseline_logits, before(x, found.baseline))
    assert all(module.training for module in net.modules())


# --- what a step records


def test_rewards_and_metrics_are_those_of_the_paper() -> None:
    right, wrong = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    found = Rollouts(
        probabilities=torch.zeros(3, 4),
        sampled=torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.bool),
        baseline=torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool),
        sampled_logits=torch.stack([right, wrong, right]),
        baseline_logits=torch.stack([right, right, wrong]),
    )
    targets = torch.ones(3, dtype=torch.int64)
    sampled, baseline = rewards = found.rewards(targets, penalty=-3.0)
    assert sampled.tolist() == pytest.approx([1 - 0.5**2, -3, 1 - 0.25**2])
    assert baseline.tolist() == pytest.approx([1 - 0.25**2, 1, -3])
    metrics = {name: value.item() for name, value in found.metrics(targets, rewards).items()}
    assert metrics == pytest.approx(
        {
            "accuracy": 2 / 3,
            "sampled_accuracy": 2 / 3,
            "reward": (1 - 0.0625 + 1 - 3) / 3,
            "sampled_reward": (0.75 - 3 + 0.9375) / 3,
            "blocks_used": 4 / 3,
            "sampled_blocks_used": 7 / 3,
        }
    )
