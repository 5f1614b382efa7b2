"""The gated network: switched off, against a loop written by hand, its gradients, averages, retired blocks, folders."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from epsilon_resnet import method
from epsilon_resnet.config import TrainConfig
from epsilon_resnet.model import EpsilonResNet, Responses, create
from resless import models, weights
from resless.errors import InputError
from resless.models.preresnet import PreResNet
from resless.testing import assert_every_parameter_gets_gradient, done, forked
from torch import Tensor, nn
from torch.nn import functional as F

AUTHORS = TrainConfig(n=2).backbone_options
EPSILON = 0.4
SMALL = 1e-3
"""What the last convolution of a block is multiplied with to close it."""
LABELS = torch.arange(6) % 5
NETWORKS = [
    ("preresnet14", AUTHORS),
    ("preresnet8", {"shortcut": "conv"}),
    ("preresnet11", {"shortcut": "subsample", "stem": "conv_bn_relu"}),
]


def gated(
    name: str = "preresnet14",
    options: dict[str, Any] = AUTHORS,
    *,
    closed: tuple[int, ...] = (),
    epsilon: float = EPSILON,
    side: bool = True,
) -> EpsilonResNet:
    """A network, in training mode, whose blocks `closed` respond too little."""
    torch.manual_seed(0)
    net = create(name, num_classes=5, in_channels=3, epsilon=epsilon, side=side, **options)
    with torch.no_grad():
        for index, block in enumerate(net.blocks()):
            if index in closed:
                last_convolution(block).weight.mul_(SMALL)
    return net


def last_convolution(block: nn.Module) -> nn.Conv2d:
    return [part for name, part in block.named_children() if name.startswith("conv")][-1]  # type: ignore[return-value]


def images(count: int = 6, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def same(tensor: Tensor | None, other: Tensor | None) -> bool:
    """Both there, and equal bit for bit."""
    return tensor is not None and other is not None and torch.equal(tensor, other)


def by_hand(net: EpsilonResNet, x: Tensor) -> tuple[Tensor, Tensor | None, list[float], list[float]]:
    """Logits, side logits, max|F| and S of the network in training mode, by the paper's formula."""
    blocks = list(net.blocks())
    x, side_logits, largest, gates = net.resnet.stem(x), None, [], []
    for index, block in enumerate(blocks):
        if index == len(blocks) // 2 and net.side is not None:
            features = F.relu(net.side.bn(x)).flatten(2).mean(2)
            side_logits = features @ net.side.linear.weight.T + net.side.linear.bias
        response = block.residual(x)
        largest.append(response.abs().max().item())
        gates.append(1.0 if largest[-1] >= net.epsilon else 0.0)
        x = block.shortcut(x) + response if gates[-1] else block.shortcut(x)
    return net.resnet.head(x), side_logits, largest, gates


def loss_of(found: Responses) -> Tensor:
    return method.loss(found.logits, found.side_logits, LABELS[: len(found.logits)])


def gradients(net: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def states_equal(net: nn.Module, other: nn.Module) -> bool:
    own, others = net.state_dict(), other.state_dict()
    assert len(own) > 0
    assert own.keys() == others.keys()
    return all(torch.equal(tensor, others[name]) for name, tensor in own.items())


def calls(net: EpsilonResNet) -> list[int]:
    """How often each block's residual runs from now on, forward and backward together."""
    counts = [0] * net.num_blocks

    def count(index: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            counts[index] += 1

        return hook

    for index, block in enumerate(net.blocks()):
        for part in block.modules():
            if isinstance(part, nn.Conv2d) and part is not block.shortcut:
                part.register_forward_pre_hook(count(index))
                part.register_full_backward_hook(count(index))
    return counts


# --- switched off


@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=str)
def test_switched_off_it_is_the_plain_network_exactly(name: str, options: dict[str, Any]) -> None:
    net = gated(name, options, epsilon=0.0, side=False)
    torch.manual_seed(0)
    plain = models.create(name, num_classes=5, **options)
    assert isinstance(plain, PreResNet)
    assert states_equal(net.resnet, plain), "from the same seed they start with the same weights"
    optimizers = [torch.optim.SGD(each.parameters(), 0.05, 0.9, weight_decay=1e-3) for each in (net, plain)]
    for step in range(2):
        x = images(size=24) * (step + 1)
        found, expected = net(x), plain(x)
        assert found.side_logits is None
        assert torch.equal(found.logits, expected)
        assert found.gates.tolist() == [1] * net.num_blocks
        for logits, optimizer in zip((found.logits, expected), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(logits, LABELS).backward()
        own, others = gradients(net.resnet), gradients(plain)
        assert len(own) == len(others) > 0
        assert all(same(gradient, others[key]) for key, gradient in own.items())
        for optimizer in optimizers:
            optimizer.step()
        assert states_equal(net.resnet, plain), "weights and running statistics"
    assert net.discarded.tolist() == [0] * net.num_blocks
    with torch.no_grad():
        assert torch.equal(net.eval()(x), plain.eval()(x))


def test_the_side_head_changes_neither_the_networks_weights_nor_its_logits() -> None:
    with_side, without = gated(epsilon=0.0), gated(epsilon=0.0, side=False)
    assert with_side.side is not None
    assert without.side is None
    assert states_equal(with_side.resnet, without.resnet)
    assert torch.equal(with_side(images()).logits, without(images()).logits)
    assert torch.equal(with_side.eval()(images()), without.eval()(images()))


# --- a training step


@pytest.mark.parametrize("closed", [(), (0,), (2, 4), (0, 1, 2, 3, 4, 5), (1, 3, 5)], ids=str)
@pytest.mark.parametrize("side", [True, False])
def test_a_step_is_the_papers_formula(closed: tuple[int, ...], side: bool) -> None:
    net = gated(closed=closed, side=side)
    other, x = copy.deepcopy(net), images()
    found = net(x)
    logits, side_logits, largest, gates = by_hand(other, x)
    assert isinstance(found, Responses)
    assert found.gates.tolist() == gates == [float(index not in closed) for index in range(6)]
    assert found.largest.tolist() == largest
    assert (found.gates.dtype, found.largest.dtype) == (torch.float32, torch.float32)
    assert not found.gates.requires_grad
    assert not found.largest.requires_grad
    assert torch.equal(found.logits, logits)
    assert (found.side_logits is None) == (side_logits is None) == (not side)
    if found.side_logits is not None and side_logits is not None:
        torch.testing.assert_close(found.side_logits, side_logits)
    # Statistics of closed blocks move too, as in the authors' code: their responses are computed.
    for key, tensor in net.resnet.state_dict().items():
        assert torch.equal(tensor, other.resnet.state_dict()[key]), key
    loss_of(found).backward()
    method.loss(logits, side_logits, LABELS).backward()
    for key, gradient in gradients(other).items():
        own = net.get_parameter(key).grad
        assert own is not None
        torch.testing.assert_close(own, torch.zeros_like(own) if gradient is None else gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), [*NETWORKS, ("imagenet/preresnet18", {})], ids=str)
def test_closed_blocks_get_no_gradient_and_all_else_gets_one(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        total = create(name, num_classes=5, in_channels=3, epsilon=EPSILON, **options).num_blocks
    closed = (0, total // 2, total - 1)
    net = gated(name, options, closed=closed)
    found = net(images(size=32))
    assert [index for index, gate in enumerate(found.gates.tolist()) if gate == 0] == list(closed)
    loss_of(found).backward()
    silent = {f"resnet.layers.{key}." for key in names_of_blocks(net, closed)}
    assert len(silent) == len(closed)
    for key, gradient in gradients(net).items():
        assert gradient is not None, key
        # Where it has weights, a closed block's shortcut learns on.
        if any(key.startswith(prefix) for prefix in silent) and ".shortcut." not in key:
            assert gradient.abs().max() == 0, key
        else:
            assert gradient.isfinite().all(), key
            assert gradient.abs().max() > 0, key


def names_of_blocks(net: EpsilonResNet, indices: tuple[int, ...]) -> list[str]:
    names = [f"{s}.{b}" for s, stage in enumerate(net.resnet.stages()) for b, _ in enumerate(stage)]
    return [names[index] for index in indices]


def test_open_every_parameter_learns_the_side_heads_too() -> None:
    net = gated()
    assert_every_parameter_gets_gradient(net, loss_of(net(images())))


def test_epsilon_can_be_set_between_steps() -> None:
    net = gated(closed=(1, 3))
    assert net(images()).gates.tolist() == [1, 0, 1, 0, 1, 1]
    net.epsilon = 0.0
    assert net(images()).gates.tolist() == [1] * 6
    net.epsilon = 1e30
    assert net(images()).gates.tolist() == [0] * 6


def test_with_all_blocks_closed_only_stem_shortcuts_and_head_are_left() -> None:
    net = gated(epsilon=1e30, side=False)
    x = net.resnet.stem(images())
    for channels in (32, 64):
        added = (channels - x.shape[1]) // 2
        x = F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, added, added))
    assert torch.equal(net(images()).logits, net.resnet.head(x))


def test_what_is_no_number_reaches_the_loss() -> None:
    net = gated()
    with torch.no_grad():
        last_convolution(list(net.blocks())[2]).weight.fill_(math.nan)
    assert loss_of(net(images())).isnan()


# --- the side head


@pytest.mark.parametrize(
    ("name", "options", "half", "channels"),
    [
        ("preresnet8", AUTHORS, 1, 16),
        ("preresnet14", AUTHORS, 3, 32),
        ("preresnet20", AUTHORS, 4, 32),
        ("preresnet11", {}, 1, 64),
        ("imagenet/preresnet18", {}, 4, 128),
        ("imagenet/preresnet50", {}, 8, 1024),
    ],
)
def test_the_side_head_sees_what_half_of_the_blocks_give(
    name: str, options: dict[str, Any], half: int, channels: int
) -> None:
    net = gated(name, options, epsilon=0.0)
    total = net.num_blocks
    assert half == total // 2
    seen: list[Tensor] = []
    assert net.side is not None
    net.side.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    plain, x = copy.deepcopy(net.resnet), images(size=32)
    found = net(x)
    x = plain.stem(x)
    for block in list(plain.blocks())[:half]:
        x = block(x)
    assert len(seen) == 1
    assert torch.equal(seen[0], x)
    assert x.shape[1] == net.side.bn.num_features == net.side.linear.in_features == channels
    # Alone, it teaches what lies before it, and nothing behind.
    assert found.side_logits is not None
    F.cross_entropy(found.side_logits, LABELS).backward()
    for index, block in enumerate(net.blocks()):
        taught = [parameter.grad is not None for parameter in block.parameters()]
        assert taught == [index < half] * len(taught), index
        assert taught
    assert net.resnet.linear.weight.grad is None


def test_in_eval_mode_the_side_head_does_not_run() -> None:
    net = gated().eval()
    assert net.side is not None
    net.side.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    assert isinstance(net(images()), Tensor)


# --- moving averages, and eval mode


def test_averages_move_by_a_twentieth_of_the_indicators() -> None:
    net, expected = gated(closed=(1, 3)), [0.0] * 6
    assert method.AVERAGE_DECAY == 0.95
    for epsilon in [EPSILON] * 20 + [0.0] * 7 + [1e30] * 3 + [EPSILON] * 2:
        net.epsilon = epsilon
        with torch.no_grad():
            gates = net(images(2, 8)).gates.tolist()
        expected = [0.95 * old + 0.05 * (1 - gate) for old, gate in zip(expected, gates, strict=True)]
    assert net.discarded.tolist() == pytest.approx(expected, abs=1e-6)
    assert 0 < min(expected) < max(expected) < 1
    before = net.discarded.clone()
    net.eval()(images(2, 8))
    assert torch.equal(net.discarded, before)


def test_in_eval_mode_blocks_discarded_in_most_steps_are_closed() -> None:
    net = gated(epsilon=1e30)
    net(images())  # statistics that are not the initial ones
    averages = [0.0, 0.5, 0.4999, 1.0, 0.51, 0.4]
    net.discarded.copy_(torch.tensor(averages))
    net.eval()
    assert net.closed() == [False, True, False, True, True, False]
    counts, before = calls(net), copy.deepcopy(net.state_dict())
    with torch.no_grad():
        x = net.resnet.stem(images())
        for block, average in zip(net.blocks(), averages, strict=True):
            x = block.shortcut(x) if average >= 0.5 else block.shortcut(x) + block.residual(x)
        expected = net.resnet.head(x)
        counts[:] = [0] * 6
        assert torch.equal(net(images()), expected), "by the averages, whatever ε"
    assert counts == [2, 0, 2, 0, 0, 2]
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_in_eval_mode_an_image_does_not_depend_on_those_beside_it() -> None:
    net = gated(closed=(1,))
    for _ in range(20):
        net(images())
    net.eval()
    assert net.closed() == [False, True, False, False, False, False]
    with torch.no_grad():
        together = net(images())
        apart = torch.cat([net(image) for image in images().split(1)])
        torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)
        # In the same batch, images a thousand times as large, which would open any gate, change nothing.
        beside = net(torch.cat([images(), 1000 * images()]))[:6]
        torch.testing.assert_close(beside, together, rtol=1e-5, atol=1e-5)
        assert not torch.equal(together[0], together[1])


# --- retired blocks


@pytest.mark.parametrize("retired", [(0,), (1, 3), (2, 4), (0, 1, 2, 3, 4, 5)], ids=str)
def test_a_closed_block_can_be_retired_without_a_difference(retired: tuple[int, ...]) -> None:
    """First blocks of stages (0, 2, 4) included: of these the shortcut stays."""
    closed = tuple(sorted({1, *retired}))
    net = gated(closed=closed)
    # The gradient of the images runs all backward hooks, the first block's too.
    x = images().requires_grad_()
    other = copy.deepcopy(net)
    other.retire(retired)
    counts = calls(other)
    for step in range(2):
        found, expected = other(x), net(x)
        assert torch.equal(found.logits, expected.logits)
        assert same(found.side_logits, expected.side_logits)
        assert torch.equal(found.gates, expected.gates)
        is_retired = torch.tensor([index in retired for index in range(6)])
        assert torch.equal(found.largest, expected.largest.where(~is_retired, 0))
        for each in (other, net):
            each.zero_grad()
        loss_of(found).backward()
        loss_of(expected).backward()
        silent = tuple(f"resnet.layers.{key}." for key in names_of_blocks(other, retired))
        for key, gradient in gradients(other).items():
            if key.startswith(silent):
                assert gradient is None, key
            else:
                assert same(gradient, net.get_parameter(key).grad), key
        assert counts == [0 if index in retired else 4 * (step + 1) for index in range(6)]
    assert (other.retired.nonzero().flatten().tolist()) == list(retired)
    open_blocks = [index for index in range(6) if index not in retired]
    assert torch.equal(other.discarded[open_blocks], net.discarded[open_blocks])


def test_blocks_are_retired_one_after_the_other() -> None:
    net = gated(epsilon=0.0)
    net.retire([3])
    net.retire([])
    net.retire([1, 3])
    assert net.retired.tolist() == [False, True, False, True, False, False]
    assert net(images()).gates.tolist() == [1, 0, 1, 0, 1, 1], "whatever ε"


def test_retired_blocks_are_not_computed_in_eval_mode_either() -> None:
    """However short the averages' past: epochs may have few steps."""
    net = gated(closed=(1, 4))
    net.retire([1, 4])
    counts = calls(net)
    net(images(2, 8))
    net.eval()
    with torch.no_grad():
        net(images(2, 8))
    assert net.closed() == [False, True, False, False, True, False]
    assert counts[1] == counts[4] == 0


# --- states and folders


def used() -> EpsilonResNet:
    """After some steps: averages between 0 and 1, two blocks retired."""
    net = gated(closed=(1, 3, 4))
    with torch.no_grad():
        for _ in range(20):
            net(images())
        net.retire([1, 4])
        net.epsilon = 0.0
        net(images())
    assert 0 < net.discarded[3] < net.discarded[1] <= 1
    return net


@pytest.mark.parametrize("kind", ["state_dict", "copy"])
def test_a_networks_state_holds_averages_and_retired_blocks(kind: str) -> None:
    net = used()
    other = copy.deepcopy(net) if kind == "copy" else gated(epsilon=0.0)
    if kind == "state_dict":
        other.load_state_dict(net.state_dict())
    assert states_equal(other, net)
    counts = calls(other)
    found, expected = other(images()), net(images())
    assert torch.equal(found.logits, expected.logits)
    assert found.gates.tolist() == expected.gates.tolist() == [1, 0, 1, 1, 0, 1]
    assert counts[1] == counts[4] == 0
    assert torch.equal(other.eval()(images()), net.eval()(images()))
    if kind == "state_dict":
        other.load_state_dict(gated().state_dict())
        assert other.train()(images()).gates.tolist() == [1] * 6, "no block is retired any more"


@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=str)
@pytest.mark.parametrize("side", [True, False])
def test_a_model_folder_keeps_the_network(name: str, options: dict[str, Any], side: bool, tmp_path: Path) -> None:
    net = gated(name, options, epsilon=2.25, side=side)
    net(images())
    net.discarded.copy_(torch.linspace(0, 1, net.num_blocks))
    net.retire([net.num_blocks - 1])
    weights.save_pretrained(net, tmp_path / "model", example=images(1))
    loaded = weights.from_pretrained(tmp_path / "model")
    assert isinstance(loaded, EpsilonResNet)
    assert not loaded.training
    assert loaded.spec == net.spec == models.spec_of(net)
    assert loaded.epsilon == net.epsilon == 2.25
    assert models.spec_of(loaded.resnet) == models.spec_of(net.resnet)
    assert states_equal(loaded, net)
    with torch.no_grad():
        assert torch.equal(loaded(images()), net.eval()(images()))
    assert loaded.closed() == net.closed() == [average >= 0.5 for average in net.discarded.tolist()]
    counts = calls(loaded)
    loaded.train()(images())
    assert counts[-1] == 0 < counts[0]


def test_a_fresh_network_is_saved_with_all_that_it_was_made_of() -> None:
    with torch.device("meta"):
        net = create("preresnet110", num_classes=100, in_channels=3, epsilon=2.5, **TrainConfig(n=18).backbone_options)
    assert net.num_blocks == 54
    assert net.spec == models.Spec(
        "epsilon_resnet",
        100,
        3,
        {"backbone": "preresnet110", "options": AUTHORS, "epsilon": 2.5, "side": True},
    )
    assert net.discarded.shape == net.retired.shape == (54,)
    assert "epsilon_resnet" not in models.names()  # these are what it can be made of


# --- ImageNet, other precisions, several processes


@pytest.mark.parametrize(("depth", "blocks", "kernels"), [(18, 8, 2), (50, 16, 3)])
def test_imagenets_networks_are_gated_too(depth: int, blocks: int, kernels: int) -> None:
    closed = (1, blocks - 2)
    net = gated(f"imagenet/preresnet{depth}", {}, closed=closed, epsilon=0.0)
    assert net.num_blocks == blocks
    other, counts = copy.deepcopy(net), calls(net)
    assert torch.equal(net(images(size=33)).logits, other.resnet(images(size=33))), "switched off"
    net.epsilon = other.epsilon = 0.05
    counts[:] = [0] * blocks
    found = net(images(size=33))
    logits, _, largest, gates = by_hand(other, images(size=33))
    assert torch.equal(found.logits, logits)
    assert found.largest.tolist() == largest
    assert found.gates.tolist() == gates == [float(index not in closed) for index in range(blocks)]
    assert counts == [kernels] * blocks
    net.retire(closed)
    assert torch.equal(net(images(size=33)).logits, other(images(size=33)).logits)
    assert counts == [kernels * (1 if index in closed else 2) for index in range(blocks)]


@pytest.mark.parametrize("channels_last", [False, True])
def test_bf16_autocast_works(channels_last: bool) -> None:
    net, x = gated(closed=(1, 4)), images()
    exact = copy.deepcopy(net)(x)
    if channels_last:
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    passed_on: list[torch.dtype] = []
    for block in net.blocks():
        block.get_submodule("conv1").register_forward_pre_hook(lambda _, given: passed_on.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = net(x)
        loss = loss_of(found)
    assert found.logits.dtype == torch.bfloat16
    assert passed_on == [torch.bfloat16] * 6, "a float32 gate would make all that follows float32"
    assert found.gates.dtype == found.largest.dtype == net.discarded.dtype == torch.float32
    assert found.gates.tolist() == exact.gates.tolist() == [1, 0, 1, 1, 0, 1]
    # bf16 has 8 bits, and each block adds its rounding.
    torch.testing.assert_close(found.largest, exact.largest, rtol=0.05, atol=1e-3)
    loss.backward()
    silent = tuple(f"resnet.layers.{key}." for key in names_of_blocks(net, (1, 4)))
    for key, gradient in gradients(net).items():
        assert gradient is not None
        assert gradient.isfinite().all()
        assert (gradient.abs().max() == 0) == key.startswith(silent), key
    net.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert net(x).isfinite().all()


def test_over_processes_the_gate_is_that_of_the_global_batch() -> None:
    net = gated("preresnet8")
    parts = images(12).split(6)
    alone = [copy.deepcopy(net)(part).largest for part in parts]
    # Of the first block, whose response depends on no other gate; one of the two processes alone would close it.
    net.epsilon = (alone[0][0] + alone[1][0]).item() / 2
    assert sorted(copy.deepcopy(net)(part).gates[0].item() for part in parts) == [0, 1]

    def task() -> None:
        torch.distributed.init_process_group("gloo")
        found = net(parts[torch.distributed.get_rank()])
        assert found.largest[0] == torch.maximum(*alone)[0]
        assert found.gates[0] == 1
        for values in (found.largest, found.gates, net.discarded):
            every = [torch.empty(3), torch.empty(3)]
            torch.distributed.all_gather(every, values)
            assert torch.equal(*every)
        torch.distributed.destroy_process_group()

    done(forked(task, 2))


# --- bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backbone": "resnet20"}, "^the backbone is resnet20, but must be a pre-activation ResNet such as preresnet1"),
        ({"backbone": "lenet5"}, "^the backbone is lenet5, but must be"),
        ({"backbone": "torchvision/resnet18"}, "^the backbone is torchvision/resnet18, but must be"),
        ({"backbone": "epsilon_resnet"}, "^the backbone is epsilon_resnet, but must be"),
        ({"backbone": "preresnet9"}, "^depth is 9, but must be 6n"),
        ({"backbone": "imagenet/preresnet20"}, "^unknown model 'imagenet/preresnet20': did you mean"),
        ({"backbone": "preresnet14", "kept_blocks": (1, 2, 3)}, "^the backbone is preresnet14 without some of its"),
        ({"backbone": "preresnet14", "kept_blocks": ()}, "^the backbone is preresnet14 without some of its blocks"),
        # Only blocks that leave no shortcut behind are missing.
        ({"backbone": "preresnet14", "kept_blocks": (0, 2, 4)}, "^the backbone is preresnet14 without some of its"),
        ({"backbone": "preresnet14", "kept_blocks": (1, 2, 3, 4, 5)}, "^the backbone is preresnet14 without some of"),
        ({"backbone": "preresnet8", "kept_blocks": [3]}, r"^kept_blocks\[0\] is 3"),
        ({"backbone": "preresnet8", "shortcut": "x"}, "^unknown shortcut 'x'"),
        ({"backbone": "preresnet8", "hook": "x"}, "^unknown option of preresnet8 'hook'"),
        ({"epsilon": -0.1}, r"^--epsilon is -0\.1, but must be 0 .* or more, and finite$"),
        ({"epsilon": math.nan}, "^--epsilon is nan, but must be 0"),
        ({"epsilon": math.inf}, "^--epsilon is inf, but must be 0"),
        ({"epsilon": True}, "^--epsilon is True, but must be 0"),
        ({"epsilon": "2.5"}, r"^--epsilon is '2\.5', but must be 0"),
        ({"epsilon": None}, "^--epsilon is None, but must be 0"),
        ({"num_classes": 0}, "^num_classes is 0"),
        ({"in_channels": 0}, "^in_channels is 0"),
    ],
)
def test_networks_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"backbone": "preresnet8", "num_classes": 10, "in_channels": 3, "epsilon": 2.5}
    with torch.device("meta"), pytest.raises(InputError, match=message):
        create(**usual | given)


def test_a_whole_number_will_do_for_epsilon() -> None:
    assert gated("preresnet8", {}, epsilon=2)(images()).gates.shape == (3,)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda o: o.clear(), "epsilon_resnet cannot be built without the option backbone"),
        (lambda o: o.pop("epsilon"), "epsilon_resnet cannot be built without the option epsilon"),
        (
            lambda o: o.update(backbone="resnet8", options={}),
            "the backbone is resnet8, but must be a pre-activation ResNet",
        ),
        (lambda o: o.update(backbone="lenet5", options={}), "the backbone is lenet5, but must be"),
        (lambda o: o.update(backbone="epsilon_resnet"), "the backbone is epsilon_resnet, but must be"),
        (lambda o: o.update(backbone="preresnet14"), "safetensors does not match the network: it lacks"),
        (lambda o: o.update(backbone="preresnet9"), "depth is 9"),
        (lambda o: o.update(backbone=3), "backbone is 3"),
        (lambda o: o.update(backbone=None), "backbone is None"),
        (lambda o: o.update(backbone=["preresnet8"]), "backbone is "),
        (lambda o: o.update(options=[1]), "options is "),
        (lambda o: o.update(options="x"), "options is 'x'"),
        (lambda o: o["options"].update(shortcut="x"), "unknown shortcut 'x'"),
        (lambda o: o["options"].update(stem=1), "stem is 1"),
        (lambda o: o["options"].update(kept_blocks=[0]), "preresnet8 without some of its blocks"),
        (lambda o: o["options"].update(name="x"), "unknown option of preresnet8 'name'"),
        (lambda o: o["options"].update(num_classes=3), "unknown option of preresnet8 'num_classes'"),
        (lambda o: o["options"].update(depth=8), "unknown option of preresnet8 'depth'"),
        (lambda o: o.update(epsilon=-1), "--epsilon is -1"),
        (lambda o: o.update(epsilon=math.nan), "--epsilon is nan"),
        (lambda o: o.update(epsilon=True), "--epsilon is True"),
        (lambda o: o.update(epsilon="2.5"), r"--epsilon is '2\.5'"),
        (lambda o: o.update(epsilon=10**400), "--epsilon is 1000"),
        (lambda o: o.update(side=False), r"does not match the network: it .*side\.bn"),
        (lambda o: o.update(side="no"), "side is 'no'"),
        (lambda o: o.update(hook="x"), "unknown option of epsilon_resnet 'hook'"),
    ],
)
def test_a_hostile_folder_is_refused(damage: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    weights.save_pretrained(gated("preresnet8"), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    damage(config["model"]["options"])
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message) as refused:
        weights.from_pretrained(tmp_path / "model")
    assert str(tmp_path / "model") in str(refused.value)
