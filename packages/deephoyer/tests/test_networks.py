"""Compaction of convolution networks: random zeros everywhere, borders, blocks, and what cannot be followed."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from deephoyer import plan
from deephoyer.compact import compact, explained, mac_counter
from deephoyer.plan import EmptyLayer
from deephoyer.prune import structure
from deephoyer.report import prunable, sparsity
from resless import costs, models
from resless.data import load
from resless.errors import InputError
from resless.models import shrunk
from resless.models.blocks import ResidualBlock, branching
from resless.models.densenet import DenseNet
from resless.testing import assert_every_parameter_gets_gradient
from torch import Tensor, nn
from torch.nn import functional as F

# Odd sides and small ones: most of a feature map is border.
NETWORKS = [
    ("resnet8", {"shortcut": "conv"}, 9),
    ("resnet8", {"shortcut": "subsample"}, 8),
    ("resnet14", {"shortcut": "avgpool"}, 7),
    ("resnet11", {"block": "bottleneck"}, 8),
    ("preresnet8", {"shortcut": "conv"}, 8),
    ("preresnet8", {"shortcut": "avgpool_centred", "stem": "conv_bn_relu"}, 9),
    ("preresnet11", {"shortcut": "subsample", "block": "bottleneck"}, 8),
    ("torchvision/resnet18", {}, 33),
    ("vgg11_bn", {}, 16),
    ("vgg11", {}, 16),
    ("alexnet", {}, 32),
    ("wrn10_1", {}, 8),
    ("resnext11_4x4", {}, 8),
    ("densenet_13_4", {}, 8),
    ("densenet_bc_16_4", {}, 9),
]
LARGE = ("torchvision/resnet18", "vgg11_bn", "vgg11")
"""Networks of ten million weights, which take a second a cut."""
CUTS = [(*network, seed) for network in NETWORKS for seed in ((1,) if network[0] in LARGE else (1, 2))]
OF_TORCHVISION = [
    ("alexnet", 63, "group"),
    ("googlenet", 32, "group"),
    ("inception_v3", 75, "group"),
    ("mnasnet0_5", 32, "tied"),  # layers of 8 channels, of which nothing is left if each is cut by itself
    ("mobilenet_v2", 32, "group"),
    ("squeezenet1_1", 32, "group"),
]
"""torchvision's networks that the README names, sides of small images (the smallest, if there is one), and rules."""


def images(size: int, count: int = 3, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(3))


@cache
def digits(size: int, count: int = 8) -> Tensor:
    """Real images, [N, 3, H, W]: the embedded digits, enlarged, from -1 (their background) to 1."""
    pixels = load("digits", "test").images[:count] / 127.5 - 1
    return F.interpolate(pixels, (size, size), mode="bilinear").repeat(1, 3, 1, 1)


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics, scales, shifts and biases as after training, large enough to matter where a filter is zero."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3, generator=random)
                module.running_var.uniform_(0.5, 1.5, generator=random)
                module.weight.uniform_(0.5, 1.5, generator=random)
                module.bias.normal_(0, 0.5, generator=random)
            elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.normal_(0, 0.3, generator=random)
    return model.requires_grad_(False).eval()


def network(name: str, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    return lively(models.create(name, **options), seed)


def empty_layers(model: nn.Module, seed: int) -> list[str]:
    """Of a third of a DenseNet's layers at random, one of their convolutions; of other networks none."""
    random, chosen = torch.Generator().manual_seed(seed), []
    for path in branching(model) if isinstance(model, DenseNet) else ():
        convolutions = [name for name, _ in model.get_submodule(path).named_children() if name.startswith("conv")]
        if torch.rand((), generator=random) < 0.33:
            chosen.append(f"{path}.{convolutions[int(torch.randint(len(convolutions), (), generator=random))]}")
    return chosen


def zero_groups(model: nn.Module, seed: int, shifts: bool) -> None:
    """Zero random filters and input channels; with `shifts` a third of the channels of batch norms too."""
    random = torch.Generator().manual_seed(seed)
    for weight in prunable(model).values():
        for dim in (0, 1):
            if len(weight) != 10:  # not the logits
                zeros = torch.rand(weight.shape[dim], generator=random) < 0.4
                zeros[0] = False
                weight.index_fill_(dim, zeros.nonzero().flatten(), 0)
    for name in empty_layers(model, seed):
        model.get_submodule(name).weight.zero_()
    for module in model.modules():
        if shifts and isinstance(module, nn.BatchNorm2d):
            zeros = torch.rand(module.num_features, generator=random) < 0.3
            module.weight[zeros] = module.bias[zeros] = 0


def zero_elements(model: nn.Module, seed: int) -> None:
    """Zero random weights: more of some filters and input channels than of others, and all of some."""
    random = torch.Generator().manual_seed(seed)
    for weight in prunable(model).values():
        chances = [(1.5 * torch.rand(width, generator=random) - 0.4).clamp(0, 1) for width in weight.shape[:2]]
        for chance in chances:
            chance[0] = 1
        kept = torch.outer(*chances).view(*weight.shape[:2], *[1] * (weight.dim() - 2))
        weight.mul_(torch.rand(weight.shape, generator=random) < kept)
    for name in empty_layers(model, seed):
        model.get_submodule(name).weight.zero_()


def zero_tied(model: nn.Module, seed: int, example: Tensor) -> None:
    """Zero random channels, with all that writes and reads them and what follows their filters."""
    random, known = torch.Generator().manual_seed(seed), structure(model, example, "tied")
    assert known.coupling is not None
    kept = torch.rand(known.coupling.count, generator=random) < 0.6
    kept[known.coupling.fixed] = True
    for channels, _ in known.coupling.values:
        kept[channels[0]] = True
    for name in empty_layers(model, seed):
        kept[known.coupling.rows[f"{name}.weight"]] = False
    vectors = dict(model.named_parameters())
    for name, weight in prunable(model).items():
        filters = kept[known.coupling.rows[name]]
        for tensor in (weight, *(vectors[vector] for vector in known.followers.get(name, ()))):
            tensor[~filters] = 0
        if name in known.coupling.columns:
            weight[:, ~kept[known.coupling.columns[name]]] = 0


def zero_by(rule: str, model: nn.Module, seed: int, example: Tensor) -> None:
    """Zero at random what a rule of `deephoyer-prune` may cut."""
    if rule == "elementwise":
        zero_elements(model, seed)
    elif rule == "group":
        zero_groups(model, seed, shifts=seed % 2 == 0)
    else:
        zero_tied(model, seed, example)


def assert_equal_outputs(small: nn.Module, model: nn.Module, example: Tensor) -> None:
    expected = model(example)
    assert torch.allclose(small(example), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


def skip_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let compaction leave out every zero, as if copies took no time."""
    monkeypatch.setattr(plan, "LANES", 1)
    monkeypatch.setattr(plan, "COPY", 0)


@pytest.mark.parametrize(("shifts", "skipping"), [(True, "all"), (False, "all"), (True, "what pays")])
@pytest.mark.parametrize(("name", "options", "size"), NETWORKS)
def test_random_zeros_change_no_output(
    name: str, options: dict, size: int, shifts: bool, skipping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if skipping == "all":
        skip_all(monkeypatch)
    model, example = network(name, **options), images(size)
    zero_groups(model, 0, shifts)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    small = compact(model, example)
    assert_equal_outputs(small, model, example)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items()), "input was changed"
    macs = costs.macs(small, example[:1])
    assert macs < 0.9 * costs.macs(model, example[:1])
    assert mac_counter(model, example[:1])(model) == macs
    again = compact(small, example)
    assert again.spec == small.spec, "a compacted network has nothing left to take away"
    rounded = compact(model, example, round_to=8)
    assert_equal_outputs(rounded, model, example)
    assert macs <= costs.macs(rounded, example[:1]) <= costs.macs(model, example[:1])


@pytest.mark.parametrize("rule", ["elementwise", "group", "tied"])
@pytest.mark.parametrize(("name", "options", "size", "seed"), CUTS)
def test_random_cuts_by_any_rule_change_no_output_of_noise_and_real_images(
    name: str, options: dict, size: int, seed: int, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed % 2:
        skip_all(monkeypatch)
    model, example = network(name, seed, **options), digits(size)
    zero_by(rule, model, seed, example)
    small = compact(model, example)
    assert costs.count_parameters(small) < costs.count_parameters(model)
    assert_equal_outputs(small, model, images(size))
    assert_equal_outputs(small, model, example)


@pytest.mark.parametrize(("name", "size", "rule"), OF_TORCHVISION)
def test_torchvisions_networks_are_followed(name: str, size: int, rule: str) -> None:
    model, example = network(f"torchvision/{name}"), digits(size, 2)
    zero_by(rule, model, 0, example)
    small = compact(model, example)
    assert costs.count_parameters(small) < 0.9 * costs.count_parameters(model)
    assert_equal_outputs(small, model, images(size, 2))
    assert_equal_outputs(small, model, example)


@pytest.mark.parametrize(("name", "options", "size"), NETWORKS)
def test_dense_network_is_left_as_it_is(name: str, options: dict, size: int) -> None:
    model = network(name, **options)
    small = compact(model, images(size))
    assert small.spec == model.spec
    assert str(small) == str(model)
    assert torch.equal(small(images(size)), model(images(size)))


def test_a_compacted_network_goes_on_as_any_other() -> None:
    model, example = network("resnet8", shortcut="subsample"), images(8)
    zero_groups(model, 0, shifts=True)
    small = compact(model, example)
    assert isinstance(small, type(model))
    assert len(list(small.blocks())) == 3
    small.requires_grad_(True).train()
    assert_every_parameter_gets_gradient(small, small(images(8, 16)).square().sum())


def test_a_compacted_network_is_trained_as_it_is_saved() -> None:
    torch.manual_seed(0)
    model, example = models.create("resnet8"), images(8, 16)
    with torch.no_grad():
        zero_groups(model, 1, shifts=True)
    small = compact(model, example).train()
    before = {name: parameter.detach().clone() for name, parameter in small.named_parameters()}
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    F.cross_entropy(small(example), torch.arange(16) % 10).backward()
    optimizer.step()
    changed = [name for name, parameter in small.named_parameters() if not torch.equal(parameter, before[name])]
    assert len(changed) == len(before)


# -- what exactly is left


def test_a_block_reads_what_it_uses_and_adds_what_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_all(monkeypatch)
    model = network("resnet8", shortcut="subsample")
    block = model.layer1[0]
    with torch.no_grad():
        for kept, layer, norm in ((5, block.conv1, block.bn1), (3, block.conv2, block.bn2)):
            layer.weight[kept:] = 0
            norm.weight[kept:] = norm.bias[kept:] = 0
        block.conv1.weight[:, 4:] = 0
    small = compact(model, images(8))
    conv1, conv2 = small.layer1[0].conv1, small.layer1[0].conv2
    assert conv1.part == shrunk.Part(16, (0, 1, 2, 3), 5, None)
    assert (conv1.core.in_channels, conv1.core.out_channels) == (4, 5)
    assert (conv2.in_channels, conv2.out_channels) == (5, 3)
    assert small.layer1[0].bn2.part == shrunk.Part(3, None, 16, (0, 1, 2))
    saved = 64 * 9 * (16 * 16 - 4 * 5 + 16 * 16 - 5 * 3)
    assert costs.macs(small, images(8, 1)) == costs.macs(model, images(8, 1)) - saved


@pytest.mark.parametrize(("read", "copied"), [(14, False), (13, True)])
def test_a_block_reads_all_where_a_copy_takes_longer(read: int, copied: bool) -> None:
    """A channel that is copied takes 24 multiply-adds; every one left out saves 9 for each of 16 filters."""
    model = network("resnet8", shortcut="subsample")
    with torch.no_grad():
        model.layer1[0].conv1.weight[:, read:] = 0
    assert copied == ((16 - read) * 9 * 16 >= 24 * read)
    small, reasons = explained(model, images(8))
    conv1 = shrunk.core_of(small.layer1[0].conv1)
    assert conv1.in_channels == (read if copied else 16)
    assert reasons["layer1.0.conv1"] == ("" if copied else "slower without")
    assert_equal_outputs(small, model, images(8))


@pytest.mark.parametrize(("written", "filters"), [(50, 64), (40, 40), (0, 0)])
def test_a_block_writes_all_that_take_as_many_lanes(written: int, filters: int) -> None:
    model = network("resnet8", shortcut="conv")
    block = model.layer3[0]
    with torch.no_grad():
        block.conv2.weight[written:] = block.bn2.weight[written:] = block.bn2.bias[written:] = 0
    small, reasons = explained(model, images(8))
    assert_equal_outputs(small, model, images(8))
    left = small.layer3[0]
    assert (left.conv2.out_channels if hasattr(left, "conv2") else 0) == filters
    if filters:
        assert reasons["layer3.0.conv2"] == reasons["layer3.0.bn2"] == ("slower without" if filters > written else "")


@pytest.mark.parametrize(
    ("name", "classifier", "unread"),
    [("resnet8", "linear", 24), ("densenet_13_4", "linear", 3), ("vgg11", "classifier", 200)],
)
def test_a_classifier_reads_what_is_left_of_the_features(name: str, classifier: str, unread: int) -> None:
    """Of a DenseNet, some of the last layer's: the others are read by layers too."""
    model = network(name)
    layer = model.get_submodule(classifier)
    with torch.no_grad():
        layer.weight[:, -unread:] = 0
    small = compact(model, images(8))
    smaller = small.get_submodule(classifier)
    assert isinstance(smaller, nn.Linear)
    assert smaller.in_features == layer.in_features - unread
    assert torch.equal(smaller.weight, layer.weight[:, :-unread])
    assert_equal_outputs(small, model, digits(8))


def test_what_all_blocks_of_a_stage_leave_untouched_is_never_computed() -> None:
    model = network("resnet14", shortcut="subsample")
    with torch.no_grad():
        for layer, norm in ((model.conv1, model.bn1), *((block.conv2, block.bn2) for block in model.layer1)):
            layer.weight[10:] = norm.weight[10:] = norm.bias[10:] = 0
    small = compact(model, images(8))
    assert small.conv1.out_channels == 10
    assert [block.conv1.in_channels for block in small.layer1] == [10, 10]
    assert [block.conv2.out_channels for block in small.layer1] == [10, 10]
    assert small.layer2[0].conv1.in_channels == 10


def test_a_constant_is_folded_without_padding_and_kept_with_it() -> None:
    model = network("resnet11", block="bottleneck")
    block = model.layer1[0]
    with torch.no_grad():
        block.conv1.weight[:3] = block.conv2.weight[:3] = 0
        for norm in (block.bn1, block.bn2):
            norm.running_mean.zero_()
            norm.bias[:3] = torch.tensor([1.0, -1.0, 2.0])  # relu makes the second zero
    small, reasons = explained(model, images(8))
    assert (small.layer1[0].conv1.out_channels, reasons["layer1.0.conv1"]) == (15, "constants")
    assert (small.layer1[0].conv2.out_channels, small.layer1[0].conv2.in_channels) == (13, 15)
    assert small.layer1[0].conv3.in_channels == 13
    folded = model.layer1[0].conv3.weight[:, [0, 2], 0, 0] @ torch.tensor([1.0, 2.0])
    assert torch.allclose(small.layer1[0].conv3.bias, folded, atol=1e-6)


def test_a_constant_that_a_relu_hides_still_counts_in_the_sum_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_all(monkeypatch)
    model = network("resnet8", shortcut="subsample")
    block = model.layer1[0]
    with torch.no_grad():
        model.conv1.weight[0] = block.conv2.weight[0] = 0
        model.bn1.bias[0], block.bn2.bias[0] = 1.0, -3.0
        for norm in (model.bn1, block.bn2):
            norm.running_mean[0] = 0
    small = compact(model, images(9))  # refused there, where outputs differ
    assert small.layer2[0].conv1.core.in_channels == 15


def test_rounded_widths_are_multiples() -> None:
    model = network("resnet8", shortcut="conv")
    zero_groups(model, 0, shifts=True)
    small, reasons = explained(model, images(8), round_to=8)
    convolutions = {name: module for name, module in small.named_modules() if isinstance(module, nn.Conv2d)}
    assert len(convolutions) == 9
    assert all(layer.out_channels % 8 == 0 for layer in convolutions.values())
    assert all(layer.in_channels % 8 == 0 for name, layer in convolutions.items() if name != "conv1")
    assert any("multiple of 8" in why for why in reasons.values())


# -- blocks


def empty(block: nn.Module) -> None:
    """Cut the residual branch of a block."""
    with torch.no_grad():
        last = max((name for name, _ in block.named_children() if name.startswith("conv")))
        block.get_submodule(last).weight.zero_()
        norm = getattr(block, last.replace("conv", "bn"), None)
        if norm is not None and norm.num_features == block.get_submodule(last).out_channels:
            norm.bias.zero_()
            norm.weight.zero_()


@pytest.mark.parametrize(
    ("name", "options", "rectified"),
    [
        ("resnet14", {"shortcut": "subsample"}, ()),
        ("resnet14", {"shortcut": "avgpool"}, ()),
        # A projection may be negative, where the block's ReLU is still needed.
        ("resnet14", {}, ("layer2.0.shortcut",)),
        ("resnext20_2x4", {}, ("layer2.0.shortcut",)),
        ("wrn16_1", {}, ()),
        ("wrn16_2", {}, ()),
    ],
)
def test_a_block_without_a_residual_branch_is_its_shortcut(name: str, options: dict, rectified: tuple) -> None:
    model = network(name, **options)
    for block in (model.layer1[1], model.layer2[0], model.layer3[1]):
        empty(block)
    small = compact(model, images(9))
    assert [isinstance(block, ResidualBlock) for block in small.blocks()] == [True, False, True, True]
    assert small.spec.options.get("rectified", ()) == rectified
    assert models.origin(small.spec).options["kept_blocks"] == (0, 3, 4)
    assert_equal_outputs(small, model, digits(9))
    again = models.build(small.spec)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again.eval()(images(9)), small(images(9)))
    assert compact(small, images(9)).spec == small.spec


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet14", {}),
        ("resnet20", {"block": "bottleneck"}),
        ("preresnet14", {}),
        ("preresnet20", {"block": "bottleneck"}),
        ("torchvision/resnet18", {}),
        ("torchvision/resnet50", {}),
        ("resnext20_2x4", {}),
        ("wrn16_2", {}),
    ],
)
def test_all_blocks_of_a_stage_emptied(name: str, options: dict) -> None:
    model = network(name, **options)
    stage = model.stages()[1]
    for block in stage:
        empty(block)
    size = 33 if name.startswith("torchvision") else 8
    small = compact(model, images(size))
    assert len(small.stages()[1]) == 1
    assert not isinstance(small.stages()[1][0], ResidualBlock)
    assert costs.macs(small, images(size, 1)) < costs.macs(model, images(size, 1))
    assert_equal_outputs(small, model, digits(size))


@pytest.mark.parametrize("name", ["wrn16_2", "resnext20_2x4"])
def test_networks_of_shortcuts_are_made_smaller_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_all(monkeypatch)
    model, example = network(name), digits(9)
    for block in list(model.blocks())[1:]:
        empty(block)
    zero_tied(model, 0, example)
    small = compact(model, example)
    assert models.origin(small.spec).options["kept_blocks"] == (0,)
    assert costs.macs(small, example[:1]) < 0.9 * costs.macs(models.create(name, kept_blocks=(0,)), example[:1])
    assert_equal_outputs(small, model, example)
    assert_equal_outputs(small, model, images(9))
    assert mac_counter(model, example[:1])(model) == costs.macs(small, example[:1])
    again = models.build(small.spec)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again.eval()(example), small(example))


# -- layers of DenseNets


@pytest.mark.parametrize(
    ("name", "zeros", "readers"),
    [
        ("densenet_13_4", ["conv1.weight"], ["dense1.2", "transition1"]),
        ("densenet_bc_16_4", ["conv2.weight"], ["transition1"]),
        ("densenet_bc_16_4", ["conv1.weight", "bn2.weight", "bn2.bias"], ["transition1"]),
    ],
)
def test_an_empty_layer_of_a_densenet_vanishes(name: str, zeros: list[str], readers: list[str]) -> None:
    """Where nobody reads its channels, exactly the network without it is left."""
    model = network(name)
    first = model.dense1[0].conv1.in_channels + 4  # of its channels
    gone = range(first, first + 4)
    for parameter in zeros:
        model.dense1[1].get_parameter(parameter).zero_()
    for reader in readers:
        model.get_submodule(reader).conv1.weight[:, gone] = 0
    small, reasons = explained(model, images(9))
    layers = sum(map(len, model.stages()))
    assert small.spec == models.create(name, kept_layers=[0, *range(2, layers)]).spec
    assert not any(reasons.values())
    assert not any("dense1.1." in key for key in small.state_dict())
    left = [channel for channel in range(model.transition1.conv1.in_channels) if channel not in gone]
    assert torch.equal(small.transition1.conv1.weight, model.transition1.conv1.weight[:, left])
    assert torch.equal(small.transition1.bn1.running_mean, model.transition1.bn1.running_mean[left])
    assert_equal_outputs(small, model, digits(9))
    assert_equal_outputs(small, model, images(9))
    assert mac_counter(model, images(9, 1))(model) == costs.macs(small, images(9, 1))


def test_what_an_empty_layer_shifts_is_folded_without_padding_and_kept_with_it() -> None:
    """Its channels are zero, but not what the batch norms behind it make of them."""
    folded, padded = network("densenet_bc_16_4"), network("densenet_13_4")
    folded.dense1[0].conv2.weight.zero_()
    padded.dense1[0].conv1.weight.zero_()
    small, reasons = explained(folded, images(9))
    assert models.origin(small.spec).options["kept_layers"] == (1, 2, 3, 4, 5)
    assert set(small.spec.options["layers"]) == {"dense1.1.conv1", "transition1.conv1"}
    norm, weight = folded.dense1[1].bn1, folded.dense1[1].conv1.weight[:, 8:, 0, 0]
    shifts = norm.bias - norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(small.get_parameter("dense1.1.conv1.bias"), weight @ shifts[8:].relu())
    assert_equal_outputs(small, folded, digits(9))
    small, reasons = explained(padded, images(9))
    assert models.origin(small.spec).options["kept_layers"] is None
    assert shrunk.core_of(small.dense1[0].conv1).in_channels == 1
    assert reasons["dense1.0.conv1"] == "constants"
    assert_equal_outputs(small, padded, digits(9))


def test_all_layers_of_a_dense_block_vanish_one_after_the_other() -> None:
    small, example = network("densenet_bc_22_4"), digits(9)
    for left in ((0, 1, 2, 4, 5, 6, 7, 8), (0, 1, 2, 5, 6, 7, 8), (0, 1, 2, 6, 7, 8)):
        for layer in list(small.dense2)[:1]:
            layer.conv2.weight.zero_()
        small, model = compact(small, example), small
        assert models.origin(small.spec).options["kept_layers"] == left
        assert_equal_outputs(small, model, example)
    assert len(small.dense2) == 0
    again = models.build(small.spec)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again.eval()(example), small(example))
    small.requires_grad_(True).train()
    assert_every_parameter_gets_gradient(small, small(images(9, 16)).square().sum())


def test_of_an_empty_layer_of_other_concatenations_one_channel_stays() -> None:
    model = lively(Forks())
    model.left.weight.zero_()
    model.right.weight.zero_()
    model.right.bias.zero_()
    with pytest.raises(EmptyLayer):
        compact(model, images(6))
    model = lively(Forks())
    model.right.weight.zero_()
    model.right.bias.zero_()
    model.depthwise.bias.zero_()
    small, reasons = explained(model, images(6))
    right = shrunk.core_of(small.right)
    assert (right.out_channels, right.in_channels) == (1, 1)
    assert reasons["right"] == "one stays, constants"
    assert_equal_outputs(small, model, images(6))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vgg11_bn", "features.8"),
        ("resnet8", "conv1"),
        ("resnet8", "linear"),
        ("densenet_bc_16_4", "transition1.conv1"),
    ],
)
def test_a_network_with_nothing_left_of_a_layer_is_refused_by_its_name(name: str, layer: str) -> None:
    model = network(name)
    with torch.no_grad():
        model.get_submodule(layer).weight.zero_()
    with pytest.raises(EmptyLayer, match=f"nothing is left of layer {layer}, .*: cut less"):
        compact(model, images(16))


# -- any module that torch.fx can trace


class Forks(nn.Module):
    """Concatenation, grouped convolutions and flattened features, as toys."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 3, groups=4, padding=1, bias=False)
        self.right = nn.Conv2d(8, 6, 1)
        self.depthwise = nn.Conv2d(14, 14, 3, groups=14, padding=1)
        self.pool = nn.AvgPool2d(3, 2, padding=1)
        self.hidden = nn.Linear(14 * 9, 12)
        self.linear = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([self.left(x), F.relu(self.right(x))], dim=1)
        x = self.pool(F.relu(self.depthwise(x)))
        return self.linear(F.relu(self.hidden(torch.flatten(x, 1))))


@pytest.mark.parametrize("seed", range(12))
def test_concatenation_groups_and_flattened_features(seed: int) -> None:
    torch.manual_seed(seed)
    model = lively(Forks(), seed)
    zero_groups(model, seed, shifts=False)
    with torch.no_grad():
        model.hidden.weight[:, torch.rand(14 * 9) < 0.5] = 0
    small = compact(model, images(6))
    assert_equal_outputs(small, model, images(6))
    assert costs.macs(small, images(6, 1)) < costs.macs(model, images(6, 1))
    assert_equal_outputs(compact(model, images(6), round_to=4), model, images(6))


def test_whole_groups_go() -> None:
    model = lively(Forks())
    with torch.no_grad():
        model.left.weight[2:5] = 0  # a group, and half of the next one
        model.depthwise.bias.zero_()
    small, reasons = explained(model, images(6))
    left = shrunk.core_of(small.left)
    assert (left.groups, left.in_channels, left.out_channels) == (3, 6, 6)
    assert "whole groups" in reasons["left"]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.gate = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.conv(x)).mean(dim=(2, 3))


class Branching(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else x


class Multiplied(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.conv(x).sigmoid()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Gated(),
            r"cannot follow gate \(PReLU\): it does not know what PReLU does to channels; use the network as it is",
        ),
        (Branching(), r"cannot follow a Branching: torch\.fx cannot trace it"),
        (Multiplied(), r"cannot follow .*"),
    ],
)
def test_what_cannot_be_followed_is_named_and_stays_usable(model: nn.Module, message: str) -> None:
    before = model.eval()(images(5))
    with pytest.raises(InputError, match=message):
        compact(model, images(5))
    assert torch.equal(model(images(5)), before)


def test_sparsity_counts_filters_channels_and_what_they_come_to() -> None:
    model = network("resnet8", shortcut="subsample")
    empty(model.layer1[0])
    with torch.no_grad():
        model.layer2[0].conv1.weight[20:] = 0
    report = sparsity(model, images(8, 1))
    by_name = {layer.name: layer for layer in report.layers}
    gone, half = by_name["layer1.0.conv1.weight"], by_name["layer2.0.conv1.weight"]
    assert (gone.compact_filters, gone.compact_channels, gone.macs) == (0, 0, 0)
    assert (half.filters, half.channels) == (20, 16)
    assert half.compact_filters >= 20
    assert half.why == ("constants" if half.compact_filters > 20 else "")
    assert half.macs == 16 * 9 * half.compact_filters * 16
    assert report.macs == costs.macs(compact(model, images(8)), images(8, 1))
