"""The paper's formulas, number by number: the gate in both forms, the loss, sizes of weights, the adaptive schedule."""

from __future__ import annotations

import copy
import math
from typing import cast

import pytest
import torch
from epsilon_resnet import method
from epsilon_resnet.method import AdaptiveSchedule, Milestones
from resless import models
from resless.models.preresnet import Block, PreResNet
from resless.testing import assert_every_parameter_gets_gradient
from torch import Tensor, nn

SHAPE = (3, 4, 5, 6)
# The paper's schedule for CIFAR, as the recipes have it: epochs that are done.
RATES = (0.1, 0.01, 0.001, 0.0002)
CIFAR = Milestones(RATES, (81, 122, 299))
RESTARTED = Milestones(RATES, (41, 61, 150))


def blocks_of(name: str) -> list[Block]:
    """The blocks of a freshly initialised network."""
    torch.manual_seed(0)
    model = models.create(name)
    assert isinstance(model, PreResNet)
    return cast("list[Block]", list(model.blocks()))


def response(largest: float, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Values of both signs, of which the largest in size is negative or positive as the seed is even or odd."""
    values = torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    values = (values - 0.5) * largest  # within half of it
    values[1, 2, 3, 4] = largest if seed % 2 else -largest
    return values


def relus_by_hand(size: float, epsilon: float, sharpness: float) -> float:
    """S of a response whose largest value is `size`, number by number."""
    beyond = max(size - epsilon, 0.0)
    return max(1 - sharpness * max(1 - sharpness * beyond, 0.0), 0.0)


# --- the gate


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("epsilon", [1e-3, 1.5, 2.5])
@pytest.mark.parametrize("size", [0.0, 0.5, 0.99, 1.01, 2.0, 1e6])
def test_four_relus_equal_the_comparison_in_value_and_gradient(size: float, epsilon: float, seed: int) -> None:
    x, shortcut, weights = response(size * epsilon, seed=seed), response(1.0, seed=2), response(1.0, seed=3)
    results = []
    for gate in (method.strict_identity, method.strict_identity_by_relus):
        own = x.clone().requires_grad_()
        opened = gate(own, epsilon)
        output = opened.to(own.dtype) * own + shortcut
        (gradient,) = torch.autograd.grad((weights * output).sum(), own)
        results.append((opened.item(), output.detach(), gradient))
    (first, *tensors), (second, *others) = results
    assert first == second == float(size >= 1)
    for tensor, other in zip(tensors, others, strict=True):
        assert torch.equal(tensor, other)
    output, gradient = tensors
    assert torch.equal(output, shortcut + x if size >= 1 else shortcut)
    assert torch.equal(gradient, weights if size >= 1 else torch.zeros(SHAPE, dtype=x.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_two_forms_differ_only_within_a_millionth_above_epsilon(dtype: torch.dtype) -> None:
    epsilon, band = 2.5, 1 / method.SHARPNESS
    assert band == pytest.approx(1e-6)

    def gates(size: float) -> tuple[float, float]:
        x = response(size, dtype=dtype)
        return method.strict_identity(x, epsilon).item(), method.strict_identity_by_relus(x, epsilon).item()

    assert gates(epsilon - 5e-7) == (0, 0)
    assert gates(epsilon) == (1, 0), "the comparison takes ε itself for open, the ReLUs do not"
    assert gates(epsilon + band / 2) == (1, 0)
    assert gates(epsilon + 2 * band) == (1, 1)


@pytest.mark.parametrize("tenths", range(-2, 13))
def test_inside_the_band_the_relus_stay_closed_and_open_over_its_very_end(tenths: int) -> None:
    """With a blunter L, powers of two throughout: from 1/L - 1/L² to 1/L, S rises from 0 to 1 with slope L²."""
    sharpness, epsilon = 8.0, 2.5
    start, end = epsilon + 1 / sharpness - 1 / sharpness**2, epsilon + 1 / sharpness
    size = start + (end - start) * tenths / 8
    x = response(size).requires_grad_()
    found = method.strict_identity_by_relus(x, epsilon, sharpness)
    assert found.item() == relus_by_hand(size, epsilon, sharpness) == min(max(tenths / 8, 0.0), 1.0)
    assert method.strict_identity(x, epsilon) == 1
    (gradient,) = torch.autograd.grad(found, x)
    expected = torch.zeros(SHAPE, dtype=x.dtype)
    # On the ramp alone the gate itself has a gradient, of the largest value only; its sign is that value's.
    expected[1, 2, 3, 4] = -(sharpness**2) if 0 < tenths < 8 else 0
    assert torch.equal(gradient, expected)


def test_the_gate_has_no_gradient_of_its_own() -> None:
    x = response(3.0).requires_grad_()
    assert not method.strict_identity(x, 2.5).requires_grad
    assert not method.largest_response(x).requires_grad


@pytest.mark.parametrize("x", [torch.zeros(SHAPE), -torch.zeros(SHAPE), response(1e-30), response(5.0)])
def test_with_epsilon_0_the_gate_is_always_open(x: Tensor) -> None:
    assert method.strict_identity(x, 0.0) == 1
    assert method.strict_identity(x, 0) == 1


@pytest.mark.parametrize("sign", [-1, 1])
def test_one_value_of_either_sign_anywhere_opens_the_gate(sign: int) -> None:
    indices = [(0, 0, 0, 0), (2, 0, 0, 0), (0, 3, 0, 0), (0, 0, 4, 0), (0, 0, 0, 5), (2, 3, 4, 5)]
    for index in indices:
        x = response(1.0, seed=4)
        assert method.strict_identity(x, 2.5) == 0
        x[index] = sign * 2.75
        assert method.strict_identity(x, 2.5) == method.strict_identity_by_relus(x, 2.5) == 1
        largest = method.largest_response(x)
        assert (largest.item(), largest.dtype, largest.shape) == (2.75, torch.float32, ())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_responses_of_any_precision_and_layout_give_float32(dtype: torch.dtype) -> None:
    x = response(3.0, seed=0).to(dtype)  # 3 is a number of all of them
    for laid_out in (x, x.to(memory_format=torch.channels_last), x[:, :, :, ::2], x[1, 2, 3]):
        assert method.largest_response(laid_out) == 3
        gate = method.strict_identity(laid_out, 2.5)
        assert (gate.item(), gate.dtype) == (1, torch.float32)
    assert method.strict_identity(x, 3.0) == 1
    assert method.strict_identity(x, 3.1) == 0


def test_what_is_not_finite() -> None:
    """Infinity opens the gate. What is no number closes it, but stays: the output is none either, hence the loss."""
    x = response(1.0)
    x[0, 0, 0, 0] = math.inf
    assert method.strict_identity(x, 2.5) == method.strict_identity_by_relus(x, 2.5) == 1
    for value in (1.0, 5.0):
        x = response(value)
        x[0, 0, 0, 0] = math.nan
        assert method.largest_response(x).isnan()
        gate = method.strict_identity(x, 2.5)
        assert gate == 0
        assert method.strict_identity_by_relus(x, 2.5).isnan()
        assert (gate * x)[0, 0, 0, 0].isnan(), "a diverged block must not hide behind its gate"


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, False), (0.4999, False), (0.5, True), (1.0, True)])
def test_half_of_the_steps_are_most_of_them(fraction: float, expected: bool) -> None:
    assert method.mostly(fraction) is expected


def test_an_average_counts_as_1_from_135_steps_after_the_last_response_on() -> None:
    steps = math.log(1 - method.DISCARDED) / math.log(method.AVERAGE_DECAY)
    assert math.ceil(steps) == 135
    average = torch.zeros(())
    for step in range(1, 136):
        average.lerp_(torch.ones(()), 1 - method.AVERAGE_DECAY)
        assert (average.item() >= method.DISCARDED) == (step == 135)


# --- the loss


def test_the_loss_is_cross_entropy_and_a_tenth_of_that_of_the_side_head() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, side = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 4, 2, 2, 1, 3])

    def by_hand(given: Tensor) -> float:
        rows = zip(given.tolist(), labels.tolist(), strict=True)
        return sum(math.log(sum(map(math.exp, row))) - row[label] for row, label in rows) / len(labels)

    assert method.SIDE_WEIGHT == 0.1
    assert method.loss(logits, side, labels).item() == pytest.approx(by_hand(logits) + 0.1 * by_hand(side), rel=1e-12)
    assert method.loss(logits, side, labels, 0.7).item() == pytest.approx(by_hand(logits) + 0.7 * by_hand(side))
    assert method.loss(logits, None, labels, 0.7).item() == pytest.approx(by_hand(logits), rel=1e-12)


def test_the_losses_gradient_is_softmax_less_truth_for_both_heads() -> None:
    heads = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    labels = torch.tensor([2, 0, 1, 1])
    (found,) = torch.autograd.grad(method.loss(heads[0], heads[1], labels, 0.3), heads)
    expected = (heads.detach().softmax(-1) - torch.eye(3, dtype=torch.float64)[labels]) / 4
    torch.testing.assert_close(found, expected * torch.tensor([1.0, 0.3], dtype=torch.float64).view(2, 1, 1))


# --- sizes of weights


@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (64, 32, 3, 3), (256, 64, 1, 1), (64, 3, 7, 7)])
def test_relative_size_is_1_at_he_initialisation(shape: tuple[int, int, int, int]) -> None:
    outputs, inputs, height, width = shape
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, (height, width), bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    found = method.relative_size(conv.weight)
    values = conv.weight.flatten().tolist()
    by_hand = math.sqrt(math.fsum(value**2 for value in values) / len(values) * outputs * height * width / 2)
    assert found == pytest.approx(by_hand, rel=1e-5)
    # Four standard deviations: that of a root mean square of m normal values is 1 / sqrt(2 m).
    assert found == pytest.approx(1, abs=4 / math.sqrt(2 * len(values)))


def test_relative_size_scales_with_the_weights() -> None:
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    size = method.relative_size(weight)
    assert isinstance(size, float)
    for factor in (0.05, -0.5, 3.0):
        assert method.relative_size(factor * weight) == pytest.approx(abs(factor) * size, rel=1e-5)
    assert method.relative_size(torch.zeros(8, 4, 3, 3)) == 0
    constant = torch.full((8, 4, 3, 3), 0.25)
    assert method.relative_size(constant) == pytest.approx(0.25 * math.sqrt(8 * 9 / 2))


@pytest.mark.parametrize("name", ["preresnet8", "preresnet11"])
def test_the_size_of_a_block_is_that_of_its_largest_convolution_shortcuts_aside(name: str) -> None:
    blocks = blocks_of(name)  # 1x1 convolutions as shortcuts
    count = 2 if name == "preresnet8" else 3
    for index, block in enumerate(blocks):
        with torch.no_grad():
            for number in range(1, count + 1):
                conv = getattr(block, f"conv{number}")
                conv.weight.fill_(0.01 * math.sqrt(2 / (conv.out_channels * math.prod(conv.kernel_size))))
            getattr(block, f"conv{index % count + 1}").weight.mul_(index + 2)
            if index > 0:
                block.shortcut.get_parameter("weight").fill_(7.0)
    assert method.relative_sizes(blocks) == pytest.approx([0.02, 0.03, 0.04], rel=1e-5)


def test_a_networks_blocks_begin_at_1() -> None:
    sizes = method.relative_sizes(blocks_of("preresnet20"))
    assert len(sizes) == 9
    # The larger of two; the smallest convolution has 16 * 16 * 9 values.
    assert all(abs(size - 1) < 4 / math.sqrt(2 * 16 * 16 * 9) for size in sizes)


# --- the adaptive schedule


def rate(schedule: AdaptiveSchedule, epoch: int) -> float:
    """In an epoch counted from 1, as the paper counts."""
    return schedule.learning_rate(epoch - 1)


def table(schedule: AdaptiveSchedule, first: int, last: int) -> dict[int, float]:
    """Where the rate changes from `first` to `last`, counted from 1, and to what."""
    rates = {epoch: rate(schedule, epoch) for epoch in range(first, last + 1)}
    return {epoch: value for epoch, value in rates.items() if epoch == first or value != rates[epoch - 1]}


def test_milestones_count_epochs_that_are_done() -> None:
    found = Milestones((3.0, 2.0, 1.0), (2, 5))
    assert [found.at(epoch) for epoch in range(7)] == [3, 3, 2, 2, 2, 1, 1]
    assert [Milestones((3.0,), ()).at(epoch) for epoch in (0, 100)] == [3, 3]


def test_the_papers_schedule_without_a_loss() -> None:
    schedule = AdaptiveSchedule(CIFAR, RESTARTED)
    for epoch in range(1000):
        assert schedule.update(epoch, []) == []
    assert table(schedule, 1, 1000) == {1: 0.1, 82: 0.01, 123: 0.001, 300: 0.0002}


@pytest.mark.parametrize("lost", [1, 2, 81, 82, 130, 400])
def test_after_a_loss_the_papers_schedule_starts_anew(lost: int) -> None:
    schedule = AdaptiveSchedule(CIFAR, RESTARTED)
    for epoch in range(1, lost):
        schedule.update(epoch - 1, [])
    before = rate(schedule, lost)
    assert before == CIFAR.at(lost - 1)
    assert schedule.update(lost - 1, [3]) == [3]
    after = lost + 1
    assert table(schedule, after, lost + 1000) == {after: 0.1, lost + 41: 0.01, lost + 61: 0.001, lost + 150: 0.0002}
    assert schedule.restarts == [{"epoch": lost - 1, "blocks": [3]}]


def test_each_loss_starts_anew_and_names_the_blocks_that_are_new() -> None:
    schedule = AdaptiveSchedule(CIFAR, RESTARTED)
    lost = {90: [5], 120: [2, 5, 7], 121: [2, 5, 7], 140: [1, 2, 5, 7]}
    discarded: list[int] = []
    found = {}
    for epoch in range(1, 200):
        discarded = lost.get(epoch, discarded)
        found[epoch] = schedule.update(epoch - 1, discarded)
    assert {epoch: blocks for epoch, blocks in found.items() if blocks} == {90: [5], 120: [2, 7], 140: [1]}
    assert [restart["epoch"] + 1 for restart in schedule.restarts] == [90, 120, 140]
    assert table(schedule, 141, 500) == {141: 0.1, 181: 0.01, 201: 0.001, 290: 0.0002}


def test_losses_faster_than_the_milestones_keep_the_rate_up() -> None:
    schedule = AdaptiveSchedule(CIFAR, RESTARTED)
    for epoch in range(1, 400):
        assert epoch < 6 or rate(schedule, epoch) == 0.1
        schedule.update(epoch - 1, list(range(1 + epoch // 40)))
    assert len(schedule.restarts) == 10


def test_only_a_larger_count_is_a_loss() -> None:
    """A block that comes back is none, nor is one that takes another's place; one that goes again is."""
    schedule = AdaptiveSchedule(CIFAR, RESTARTED)
    steps = [([1, 2], [1, 2]), ([2], []), ([3], []), ([3, 2], [2]), ([], []), ([2], [2]), ([4, 0], [0, 4])]
    for epoch, (discarded, expected) in enumerate(steps):
        assert schedule.update(epoch, discarded) == expected, epoch
        assert schedule.discarded == sorted(discarded)
    assert [restart["epoch"] for restart in schedule.restarts] == [0, 3, 5, 6]


def test_without_a_schedule_to_start_anew_none_does() -> None:
    schedule = AdaptiveSchedule(CIFAR)
    for epoch in range(20):
        assert schedule.update(epoch, list(range(epoch))) == []
    assert schedule.restarts == []
    assert schedule.discarded == list(range(19))
    assert table(schedule, 1, 400) == {1: 0.1, 82: 0.01, 123: 0.001, 300: 0.0002}


def test_the_schedule_goes_on_from_its_state() -> None:
    whole, broken = AdaptiveSchedule(CIFAR, RESTARTED), AdaptiveSchedule(CIFAR, RESTARTED)
    story = [[], [4], [4], [4, 6], [6], [6, 7], [1, 6, 7]]
    for epoch, discarded in enumerate(story[:4]):
        assert whole.update(epoch, discarded) == broken.update(epoch, discarded)
    state = copy.deepcopy(broken.state_dict())
    resumed = AdaptiveSchedule(CIFAR, RESTARTED)
    resumed.load_state_dict(copy.deepcopy(state))
    assert resumed == whole
    for epoch, discarded in enumerate(story[4:], 4):
        assert resumed.learning_rate(epoch) == whole.learning_rate(epoch)
        assert resumed.update(epoch, discarded) == whole.update(epoch, discarded)
    assert resumed == whole
    assert resumed.state_dict() == whole.state_dict() != state
    assert len(whole.restarts) == 4
    assert broken.state_dict() == state


def test_schedules_do_not_share_what_happened_to_them() -> None:
    first, second = AdaptiveSchedule(CIFAR, RESTARTED), AdaptiveSchedule(CIFAR, RESTARTED)
    first.update(0, [1])
    assert (second.restarts, second.discarded) == ([], [])


# --- a block that is closed


def test_weight_decay_alone_acts_on_a_closed_block_and_makes_it_go() -> None:
    """While S = 0 a step of SGD is w <- w (1 - lr · wd): exactly a geometric series, without momentum."""
    block = blocks_of("preresnet8")[0]
    x = torch.randn(4, 16, 8, 8)
    weights = [block.get_parameter(f"conv{number}.weight") for number in (1, 2)]
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.SGD(weights, lr=0.1, weight_decay=0.5)
    for _ in range(100):
        found = block.residual(x)
        gate = method.strict_identity(found, 1e6)
        assert gate == 0
        (block.shortcut(x) + gate * found).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for weight, first in zip(weights, before, strict=True):
        torch.testing.assert_close(weight.detach(), first * 0.95**100, rtol=1e-4, atol=0)
    assert method.relative_sizes([block])[0] < 0.01


def test_an_open_block_gets_the_gradient_of_the_plain_one() -> None:
    block = blocks_of("preresnet8")[0]
    x = torch.randn(4, 16, 8, 8)
    found = block.residual(x)
    gate = method.strict_identity(found, 0.5)
    assert gate == 1
    assert_every_parameter_gets_gradient(block, (block.shortcut(x) + gate * found).square().sum())
