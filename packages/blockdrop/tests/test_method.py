"""The paper's formulas, number by number, and the gradient of REINFORCE against the exact one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from blockdrop import method
from torch import Tensor
from torch.distributions import Bernoulli

ALL = torch.ones(5, dtype=torch.bool)


def probabilities(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def policies(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


# --- reward


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64, torch.uint8])
def test_reward_is_one_minus_the_squared_share_of_blocks_or_the_penalty(dtype: torch.dtype) -> None:
    policy, correct = policies(40, 5), policies(40)
    assert 0 < correct.sum() < 40
    found = method.reward(correct, policy.to(dtype), penalty=-5.0)
    assert found.dtype == torch.float32
    expected = [1 - (sum(row) / 5) ** 2 if right else -5.0 for row, right in zip(policy.tolist(), correct, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_reward_at_its_limits() -> None:
    none, everything = torch.zeros(1, 54, dtype=torch.bool), torch.ones(1, 54, dtype=torch.bool)
    right, wrong = torch.tensor([True]), torch.tensor([False])
    assert method.reward(right, none, -1.0).item() == 1
    assert method.reward(right, everything, -1.0).item() == 0
    assert method.reward(wrong, none, -1.0).item() == method.reward(wrong, everything, -1.0).item() == -1


# --- policies


@pytest.mark.parametrize("alpha", [0.6, 0.8, 1.0])
def test_bounded_probabilities_lie_between_one_minus_alpha_and_alpha(alpha: float) -> None:
    p = torch.cat([probabilities(1000, 1), torch.tensor([[0.0], [1.0], [0.5]])])
    found = method.bounded(p, alpha)
    expected = [[alpha * value + (1 - alpha) * (1 - value)] for (value,) in p.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert found.min().item() == pytest.approx(1 - alpha, abs=1e-12)
    assert found.max().item() == pytest.approx(alpha, abs=1e-12)
    assert found[-1].item() == 0.5
    assert torch.equal(method.greedy(found), method.greedy(p)), "bounding changes no greedy policy"


def test_greedy_keeps_from_one_half_on() -> None:
    assert method.greedy(torch.tensor([[0.0, 0.4999, 0.5, 1.0]])).tolist() == [[False, False, True, True]]


def test_samples_have_the_probabilities_and_are_independent() -> None:
    torch.manual_seed(0)
    p = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0])
    count = 100_000
    drawn = method.sample(p.expand(count, -1))
    assert drawn.dtype == torch.bool
    # Five standard deviations of a mean of so many draws, of which the largest is that of p = 1/2.
    tolerance = 5 * 0.5 / math.sqrt(count)
    rates = drawn.double().mean(0)
    assert (rates - p).abs().max() < tolerance
    assert rates[0] == 0
    assert rates[-1] == 1
    both = (drawn[:, 1] & drawn[:, 2]).double().mean()
    assert both.item() == pytest.approx(0.2 * 0.5, abs=tolerance)


def test_a_policy_can_be_drawn_from_what_is_not_a_number() -> None:
    """Without an error: a diverged training is told of by its loss."""
    drawn = method.sample(torch.tensor([[math.nan, 1.0, 0.0]]))
    assert drawn.dtype == torch.bool
    assert drawn.tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, "00000"), (1, "00001"), (2, "00011"), (5, "11111"), (9, "11111")],
)
def test_the_curriculum_opens_blocks_from_the_last_one_on(step: int, expected: str) -> None:
    found = method.open_blocks(step, 5)
    assert found.dtype == torch.bool
    assert "".join(str(int(value)) for value in found) == expected


# --- likelihood and entropy


def test_log_likelihood_is_that_of_independent_bernoulli_draws() -> None:
    p, policy = probabilities(30, 5), policies(30, 5)
    expected = Bernoulli(p).log_prob(policy.double())
    torch.testing.assert_close(method.log_likelihood(p, policy, ALL), expected.sum(1))
    decided = method.open_blocks(2, 5)
    torch.testing.assert_close(method.log_likelihood(p, policy, decided), expected[:, 3:].sum(1))
    assert torch.equal(method.log_likelihood(p, policy.float(), ALL), method.log_likelihood(p, policy, ALL))


def test_the_likelihoods_of_all_policies_sum_to_one() -> None:
    every = torch.tensor(list(itertools.product([False, True], repeat=5)))
    p = probabilities(1, 5).expand(32, -1)
    assert method.log_likelihood(p, every, ALL).exp().sum().item() == pytest.approx(1)


def test_entropy_is_that_of_independent_bernoulli_draws() -> None:
    p = probabilities(30, 5)
    expected = Bernoulli(p).entropy()
    torch.testing.assert_close(method.entropy(p, ALL), expected.sum(1))
    torch.testing.assert_close(method.entropy(p, method.open_blocks(2, 5)), expected[:, 3:].sum(1))
    halves = torch.full((1, 5), 0.5)
    assert method.entropy(halves, ALL).item() == pytest.approx(5 * math.log(2))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_certain_decisions_give_finite_numbers_and_gradients(value: float) -> None:
    p = torch.full((2, 5), value, requires_grad=True)
    impossible = torch.full((2, 5), value == 0.0)
    loss = method.log_likelihood(p, impossible, ALL).sum() + method.entropy(p, ALL).sum()
    assert torch.isfinite(loss)
    assert method.entropy(p, ALL).abs().max() == 0
    loss.backward()
    assert p.grad is not None
    assert torch.isfinite(p.grad).all()


# --- the policy gradient


def test_no_gradient_passes_through_the_advantage() -> None:
    advantage = torch.tensor([2.0, -3.0], requires_grad=True)
    log_likelihood = torch.tensor([-0.5, -1.5], requires_grad=True)
    loss = method.self_critical_loss(advantage, log_likelihood)
    assert loss.tolist() == [1.0, -4.5]
    loss.sum().backward()
    assert advantage.grad is None
    assert log_likelihood.grad is not None
    assert log_likelihood.grad.tolist() == [-2.0, 3.0]


@pytest.mark.parametrize("alpha", [0.8, 1.0])
@pytest.mark.parametrize("num_open", [3, 2])
def test_its_expectation_is_the_gradient_of_the_expected_reward(alpha: float, num_open: int) -> None:
    """Three blocks, eight policies, each with its own outcome: the expectation is a sum, so nothing is estimated."""
    every = torch.tensor(list(itertools.product([False, True], repeat=3)))
    decided = method.open_blocks(num_open, 3)
    possible = every[(every | decided).all(1)]  # closed blocks are kept
    assert len(possible) == 2**num_open
    correct = torch.tensor([index in (1, 2, 4, 7) for index in range(len(possible))])
    rewards = method.reward(correct, possible, penalty=-2.0).double()

    def bounded(logits: Tensor) -> Tensor:
        return method.bounded(torch.sigmoid(logits), alpha).expand(len(possible), -1)

    logits = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64, requires_grad=True)
    # Written out, not by the function under test.
    factors = torch.where(possible, bounded(logits), 1 - bounded(logits))
    factors = torch.where(decided, factors, 1.0)
    chances = factors.prod(1)
    assert chances.sum().item() == pytest.approx(1)
    (expected,) = torch.autograd.grad((chances * rewards).sum(), logits)
    assert (expected.abs() > 0).sum() == num_open

    baseline = rewards[(possible == (method.greedy(bounded(logits)) | ~decided)).all(1)]
    assert len(baseline) == 1
    losses = method.self_critical_loss(rewards - baseline, method.log_likelihood(bounded(logits), possible, decided))
    (found,) = torch.autograd.grad((chances.detach() * losses).sum(), logits)
    torch.testing.assert_close(-found, expected)
