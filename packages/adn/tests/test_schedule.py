"""Learning rates against torch's own schedulers, weight decay by kind, and the moving average by hand."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from adn.config import Optim
from adn.model import AdaptiveNet, create
from adn.recipes import TRAIN
from adn.schedule import MovingAverage, learning_rate, parameter_groups
from torch import Tensor, nn
from torch.optim import lr_scheduler

# --- learning rate


def torchs_rates(config: Optim) -> list[float]:
    """The rates of all epochs by torch's schedulers, chained as torchvision's reference training does."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], config.lr)
    warmup: Any = None
    if config.lr_warmup_epochs:
        length = {"total_iters": config.lr_warmup_epochs}
        if config.lr_warmup_method == "linear":
            warmup = lr_scheduler.LinearLR(optimizer, start_factor=config.lr_warmup_decay, **length)
        else:
            warmup = lr_scheduler.ConstantLR(optimizer, factor=config.lr_warmup_decay, **length)
    main: Any
    if config.schedule in ("cosine", "cosineannealinglr"):
        epochs = config.epochs - config.lr_warmup_epochs
        main = lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=config.lr_min)
    else:
        main = lr_scheduler.MultiStepLR(optimizer, milestones=list(config.milestones), gamma=config.gamma)
    chained = main
    if warmup is not None:
        chained = lr_scheduler.SequentialLR(optimizer, [warmup, main], milestones=[config.lr_warmup_epochs])
    rates = []
    for _ in range(config.epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        chained.step()
    return rates


@pytest.mark.parametrize(
    "config",
    [
        Optim(lr=0.1, epochs=15, schedule="multisteplr", milestones=(6, 10, 14)),
        Optim(lr=0.1, epochs=12, milestones=(3, 7), gamma=0.3, lr_warmup_epochs=2, lr_warmup_decay=0.2),
        Optim(lr=0.5, epochs=20, schedule="cosineannealinglr"),
        Optim(lr=1e-3, epochs=30, schedule="cosineannealinglr", lr_min=1e-5, lr_warmup_epochs=20),
        Optim(lr=0.2, epochs=9, schedule="cosine", lr_warmup_epochs=3, lr_warmup_method="constant", lr_min=0.01),
        Optim(lr=0.2, epochs=9, lr_warmup_epochs=4, lr_warmup_method="constant", lr_warmup_decay=0.5, milestones=(2,)),
        *(TRAIN[name].optim for name in ("resnet50", "resnet50_v2", "mobilenet_v2", "swin_t", "vit_b_16", "resnet20")),
    ],
)
def test_the_rate_is_that_of_torchs_schedulers(config: Optim) -> None:
    expected = torchs_rates(config)
    assert len(expected) == config.epochs
    assert len(set(expected)) > 2
    assert [learning_rate(config, epoch) for epoch in range(config.epochs)] == pytest.approx(expected, rel=1e-9)


# --- weight decay


@pytest.mark.parametrize("family", ["resnet", "mobilenet", "swin", "swin_v2", "vit", "cifar"])
def test_every_parameter_is_in_one_group_and_decays_by_its_kind(
    family: str, make: Callable[[str], AdaptiveNet]
) -> None:
    """Of these networks all vectors are biases or weights of norms."""
    net = make(family)
    config = Optim(weight_decay=0.4, norm_weight_decay=0.3, bias_weight_decay=0.2, transformer_embedding_decay=0.1)
    found: dict[int, float] = {}
    for group in parameter_groups(net, config):
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = group["weight_decay"]
    names = dict(net.named_parameters())
    assert len(found) == len(names) > 20
    kinds = set()
    for name, parameter in names.items():
        own = name.rpartition(".")[2]
        if own in ("class_token", "pos_embedding", "relative_position_bias_table"):
            expected = 0.1
        elif parameter.dim() == 1:
            expected = 0.2 if own.endswith("bias") else 0.3
        else:
            expected = 0.4
        assert found[id(parameter)] == expected, name
        kinds.add(expected)
    assert kinds == ({0.1, 0.2, 0.3, 0.4} if family in ("swin", "vit") else {0.2, 0.3, 0.4})


def test_what_is_not_given_is_the_decay_of_all(make: Callable[[str], AdaptiveNet]) -> None:
    net = make("vit")
    everything = {id(parameter) for parameter in net.parameters()}
    (group,) = parameter_groups(net, Optim(weight_decay=0.4))
    assert {id(parameter) for parameter in group["params"]} == everything
    # As in the reference: a norm's bias is a norm's, unless biases have a decay of their own.
    groups = {group["weight_decay"]: group for group in parameter_groups(net, Optim(norm_weight_decay=0.3))}
    norms = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) > 10
    assert {id(p) for p in groups[0.3]["params"]} == {id(p) for norm in norms for p in (norm.weight, norm.bias)}
    assert groups.keys() == {0.0, 0.3}


# --- moving average


def walk(net: nn.Module, seed: int) -> None:
    """Move all weights and statistics, as a step does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))


def floats(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items() if tensor.is_floating_point()}


EMA = Optim(batch_size=50, epochs=4, model_ema_decay=0.998, model_ema_steps=2, lr_warmup_epochs=1)


@pytest.mark.parametrize("warmup_epochs", [0, 1, 2])
def test_the_average_is_the_one_by_hand(warmup_epochs: int) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = MovingAverage(net, replace(EMA, lr_warmup_epochs=warmup_epochs), torch.device("cpu"))
    share = 0.002 * 50 * 2 / 4  # (1 - decay) · batch · steps between updates / epochs
    expected = floats(net)
    for epoch in range(4):
        for step in range(5):
            walk(net, 10 * epoch + step)
            average.after_step(net, epoch, step)
            if step in (0, 2, 4):
                now = floats(net)
                # During the warm-up the network as it is, and so at the first update after it.
                copied = epoch < warmup_epochs or (epoch, step) == (warmup_epochs, 0)
                mixed = {name: (1 - share) * expected[name] + share * now[name] for name in now}
                expected = now if copied else mixed
        found = floats(average.module)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    last = floats(net)
    assert all(not torch.allclose(expected[name], last[name], atol=1e-2) for name in last), "an average, not the last"


def test_one_image_an_epoch_cannot_have_a_share_above_one() -> None:
    net = nn.Linear(3, 4)
    average = MovingAverage(net, replace(EMA, model_ema_decay=0.5, epochs=1), torch.device("cpu"))
    for step in range(6):
        walk(net, step)
        average.after_step(net, 1, step)
        if step % 2 == 0:
            assert all(torch.equal(floats(average.module)[name], tensor) for name, tensor in floats(net).items())


@pytest.mark.parametrize("warmup_epochs", [0, 3])
def test_how_much_of_the_start_is_left_in_the_average(warmup_epochs: int) -> None:
    net = nn.Linear(1, 1, bias=False)
    average = MovingAverage(net, replace(EMA, lr_warmup_epochs=warmup_epochs), torch.device("cpu"))
    net.weight.data.fill_(1.0)
    for epoch in range(4):
        for step in range(20):  # an update every second one
            average.after_step(net, epoch, step)
            if epoch >= warmup_epochs:
                net.weight.data.zero_()  # from now on nothing but the start is in the average
    updates = (4 - warmup_epochs) * 10
    assert average.share_of_start(20, 4) == pytest.approx((1 - 0.05) ** updates)
    # The first of them copies the network.
    assert average.module.weight.item() == pytest.approx((1 - 0.05) ** (updates - 1), rel=1e-5)


def test_its_state_can_be_saved_and_taken_up() -> None:
    net = create("resnet14", num_classes=4)
    average = MovingAverage(net, EMA, torch.device("cpu"))
    for step in range(4):
        walk(net, step)
        average.after_step(net, 2, step)
    saved = io.BytesIO()
    torch.save(average.state_dict(), saved)
    other = MovingAverage(create("resnet14", num_classes=4), EMA, torch.device("cpu"))
    saved.seek(0)
    other.load_state_dict(torch.load(saved, weights_only=True))
    walk(net, 9)
    for each in (average, other):
        each.after_step(net, 3, 0)
    first, second = average.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert first["n_averaged"] == 3
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("family", ["resnet", "mobilenet", "swin", "vit", "cifar"])
def test_the_average_of_an_adaptive_network_is_one(
    family: str, make: Callable[[str], AdaptiveNet], randomised: Callable[..., nn.Module]
) -> None:
    """All its configurations use the averaged layers, and none of the network's."""
    net = make(family)
    average = MovingAverage(net, EMA, torch.device("cpu"))
    ours, theirs = average.module, copy.deepcopy(net)
    randomised(net, seed=1)
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        for skip in (net.super_skip, net.base_skip):
            assert torch.equal(ours(x, skip), theirs(x, skip))
    average.after_step(net, 1, 0)  # the first copies
    with torch.inference_mode():
        for skip in (net.super_skip, net.base_skip):
            assert torch.equal(ours(x, skip), net(x, skip))
            assert not torch.equal(ours(x, skip), theirs(x, skip))
