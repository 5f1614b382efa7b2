"""Eval mode for a while."""

from __future__ import annotations

import pytest
from resless.modes import in_eval_mode
from torch import nn


def test_each_module_gets_its_own_mode_back_even_after_an_error() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)).train()
    net[0].eval()

    def fail() -> None:
        with in_eval_mode(net):
            assert not any(module.training for module in net.modules())
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert [module.training for module in net.modules()] == [True, False, True]


def test_what_follows_a_network_without_being_one_of_its_modules_gets_its_mode_back() -> None:
    class Followed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._follower = [nn.Dropout(0.5)]

        def train(self, mode: bool = True) -> Followed:
            self._follower[0].train(mode)
            return super().train(mode)

    net = Followed()
    for training in (True, False):
        net.train(training)
        with in_eval_mode(net):
            assert not net._follower[0].training
        assert net._follower[0].training == training
