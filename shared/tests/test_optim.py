from __future__ import annotations

import math

import pytest
import torch
from resless import optim
from resless.config import OptimConfig


def test_learning_rate_falls_by_gamma_after_each_milestone():
    config = OptimConfig(lr=0.5, epochs=9, milestones=(2, 5), gamma=0.1)
    rates = [optim.learning_rate(config, epoch) for epoch in range(9)]
    assert rates == pytest.approx([0.5] * 2 + [0.05] * 3 + [0.005] * 4)


def test_learning_rate_follows_half_a_cosine():
    config = OptimConfig(lr=0.5, epochs=4, schedule="cosine", milestones=(1,))
    root = math.sqrt(0.5)
    expected = [0.5, 0.25 * (1 + root), 0.25, 0.25 * (1 - root)]
    assert [optim.learning_rate(config, epoch) for epoch in range(4)] == pytest.approx(expected)


def test_learning_rate_of_a_run_without_epochs_is_that_of_the_start():
    assert optim.learning_rate(OptimConfig(lr=0.5, epochs=0, schedule="cosine"), 0) == 0.5


def test_sgd_takes_momentum_and_decay():
    weight = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
    optimizer = optim.build([weight], OptimConfig(lr=0.1, momentum=0.9, weight_decay=0.01))
    gradient, velocity, expected = torch.tensor([1.0, 0.5]), torch.zeros(2), weight.detach().clone()
    for _ in range(3):
        weight.grad = gradient.clone()
        optimizer.step()
        velocity = 0.9 * velocity + gradient + 0.01 * expected
        expected = expected - 0.1 * velocity
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize(("name", "decays_weight_itself"), [("adam", False), ("adamw", True)])
def test_the_first_step_of_adam_is_the_sign_of_the_gradient(name, decays_weight_itself):
    weight = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
    optimizer = optim.build([weight], OptimConfig(optimizer=name, lr=0.1, weight_decay=0.5))
    before = weight.detach().clone()
    weight.grad = torch.tensor([1.0, 4.0])
    optimizer.step()
    # Adam adds the decay to the gradient (2, 2.5: both positive), AdamW to the weight.
    decayed = before * (1 - 0.1 * 0.5) if decays_weight_itself else before
    torch.testing.assert_close(weight.detach(), decayed - 0.1, rtol=0, atol=1e-6)


def test_the_learning_rate_is_set_in_every_group():
    first, second = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = optim.build([{"params": [first]}, {"params": [second], "lr": 3.0}], OptimConfig())
    optim.set_learning_rate(optimizer, 0.025)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]
