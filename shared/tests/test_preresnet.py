"""Pre-activation ResNets: sizes and costs from formulas, forward passes by hand, shortcuts, dropped blocks, errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from resless import costs, models, weights
from resless.errors import InputError
from resless.models.blocks import ShortcutOnly
from resless.models.preresnet import (
    BasicBlock,
    Block,
    BottleneckBlock,
    CentredAvgPoolShortcut,
    PreResNet,
    imagenet_preresnet,
)
from resless.testing import assert_every_parameter_gets_gradient
from torch import Tensor, nn
from torch.nn import functional as F

SHORTCUTS = ["conv", "subsample", "avgpool", "avgpool_centred"]
STEMS = ["conv", "conv_bn_relu"]
CIFAR, IMAGENET = (16, 32, 64), (64, 128, 256, 512)
# depth: kind of block, blocks of each stage.
IMAGENET_DEPTHS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
KEPT = [(), (0,), (1, 2), (0, 3, 5), (2, 4), (1, 3, 5), tuple(range(6))]


def cost(
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    kind: str,
    *,
    size: int,
    stem_kernel: int = 3,
    activated: bool,
    conv_shortcut: bool,
    classes: int = 10,
    colours: int = 3,
    kept: tuple[int, ...] | None = None,
) -> tuple[int, int]:
    """Parameters and MACs, written down from the paper: a batch norm has two numbers a channel, and comes first.

    `size` is the side of the features of the first stage; in an ImageNet stem (7x7) those of the convolution are twice
    as large.
    """
    stem_size = size * 2 if stem_kernel == 7 else size
    parameters = colours * widths[0] * stem_kernel**2 + (2 * widths[0] if activated else 0)
    macs = colours * widths[0] * stem_kernel**2 * stem_size**2
    channels, index = widths[0], 0
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for position in range(depth):
            before, strided = size, stage > 0 and position == 0
            size = (size + 1) // 2 if strided else size
            layers = [(3, width), (3, width)] if kind == "basic" else [(1, width), (3, width), (1, 4 * width)]
            outputs = layers[-1][1]
            if conv_shortcut and (strided or outputs != channels):
                parameters += channels * outputs
                macs += channels * outputs * size**2
            inputs = channels
            for number, (kernel, out) in enumerate(layers):
                if kept is not None and index not in kept:
                    break
                first_of_all = stage == position == number == 0
                parameters += 0 if first_of_all and activated else 2 * inputs
                # A bottleneck's first convolution still sees the larger features.
                side = before if kind == "bottleneck" and number == 0 else size
                parameters += inputs * out * kernel**2
                macs += inputs * out * kernel**2 * side**2
                inputs = out
            channels, index = outputs, index + 1
    return parameters + 2 * channels + channels * classes + classes, macs + channels * classes


def measured(model: nn.Module, size: int) -> tuple[int, int]:
    """Parameters and MACs of a network on the meta device."""
    example = torch.zeros(1, models.spec_of(model).in_channels, size, size, device="meta")
    return costs.count_parameters(model), costs.macs(model, example)


def created(name: str, **options: Any) -> PreResNet:
    model = models.create(name, **options)
    assert isinstance(model, PreResNet)
    return model


def blocks_of(model: PreResNet) -> list[Block]:
    """All blocks of a network that lacks none."""
    found = list(model.blocks())
    assert found
    return cast("list[Block]", found)


def trained(name: str, **options: Any) -> PreResNet:
    """With running statistics, scales and shifts that are not the initial ones; in eval mode."""
    torch.manual_seed(0)
    model = created(name, **options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
        model(images(8, 16))
    return model.eval()


def images(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def by_hand(model: PreResNet, x: Tensor, kept: tuple[int, ...] | None = None, training: bool = False) -> Tensor:
    """The forward pass by functions of torch, from the state dict alone; blocks that are not kept add nothing."""
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    options = models.spec_of(model).options

    def activated(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], training).clamp(min=0)

    def changed(x: Tensor, block: str, channels: int) -> Tensor:
        """The shortcut where size or channels change, of images of an even side."""
        stride = 1 if block == "0.0" else 2
        if options.get("shortcut", "conv") == "conv":
            return F.conv2d(x, state[f"layers.{block}.shortcut.weight"], stride=stride)
        added = channels - x.shape[1]
        before = 0 if options["shortcut"] == "avgpool" else added // 2
        if stride == 2 and options["shortcut"] == "subsample":
            x = x[:, :, ::2, ::2]
        elif stride == 2:
            x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
        n, _, h, w = x.shape
        return torch.cat([torch.zeros(n, before, h, w), x, torch.zeros(n, added - before, h, w)], dim=1)

    if models.spec_of(model).name.startswith("imagenet"):
        x = F.conv2d(x, state["stem.0.weight"], stride=2, padding=3)
        x = F.max_pool2d(activated(x, "stem.1"), 3, 2, 1)
    else:
        x = F.conv2d(x, state["stem.0.weight"], padding=1)
        x = activated(x, "stem.1") if options["stem"] == "conv_bn_relu" else x
    blocks = [key.split(".")[1:3] for key in state if key.startswith("layers.") and key.endswith(".conv1.weight")]
    for index, (stage, position) in enumerate(blocks):
        name, strided = f"layers.{stage}.{position}", int(stage) > 0 and position == "0"
        convs = [number for number in (1, 2, 3) if f"{name}.conv{number}.weight" in state]
        response, channels = x, x.shape[1]
        for number in convs:
            weight = state[f"{name}.conv{number}.weight"]
            if f"{name}.bn{number}.weight" in state:
                response = activated(response, f"{name}.bn{number}")
            # The first 3x3 convolution of a stage strides.
            stride = 2 if strided and number == len(convs) - 1 else 1
            response = F.conv2d(response, weight, stride=stride, padding=weight.shape[-1] // 2)
            channels = weight.shape[0]
        if strided or channels != x.shape[1]:
            x = changed(x, f"{stage}.{position}", channels)
        if kept is None or index in kept:
            x = x + response
    return activated(x, "bn").mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


# --- sizes and costs


@pytest.mark.parametrize(
    ("name", "kind", "n", "parameters", "macs"),
    [
        ("preresnet110", "basic", 18, 1_730_522, 253_149_824),
        ("preresnet164", "bottleneck", 18, 1_703_258, 247_646_720),
    ],
)
def test_published_sizes_and_costs(name: str, kind: str, n: int, parameters: int, macs: int) -> None:
    assert cost(CIFAR, (n,) * 3, kind, size=32, activated=False, conv_shortcut=True) == (parameters, macs)
    with torch.device("meta"):
        model = created(name)
    assert measured(model, 32) == (parameters, macs)


@pytest.mark.parametrize(
    ("depth", "block", "kind", "n", "shortcut", "stem"),
    [
        *((8, None, "basic", 1, shortcut, stem) for shortcut in SHORTCUTS for stem in STEMS),
        *((20, "bottleneck", "bottleneck", 2, shortcut, stem) for shortcut in SHORTCUTS for stem in STEMS),
        (20, None, "basic", 3, "avgpool_centred", "conv_bn_relu"),
        (29, None, "bottleneck", 3, "subsample", "conv"),
        (56, None, "basic", 9, "conv", "conv_bn_relu"),
        (56, "bottleneck", "bottleneck", 6, "avgpool", "conv"),
        (164, "basic", "basic", 27, "avgpool_centred", "conv_bn_relu"),
    ],
)
def test_sizes_and_costs_of_other_networks(
    depth: int, block: str | None, kind: str, n: int, shortcut: str, stem: str
) -> None:
    options = {"shortcut": shortcut, "stem": stem, "block": block}
    with torch.device("meta"):
        model = created(f"preresnet{depth}", num_classes=7, in_channels=1, **options)
    activated, convolved = stem == "conv_bn_relu", shortcut == "conv"
    given: dict[str, Any] = {"activated": activated, "conv_shortcut": convolved, "classes": 7, "colours": 1}
    for size in (28, 9) if depth < 50 else (32,):
        assert measured(model, size) == cost(CIFAR, (n,) * 3, kind, size=size, **given)
    assert len(blocks_of(model)) == 3 * n
    assert {type(each) for each in blocks_of(model)} == {BasicBlock if kind == "basic" else BottleneckBlock}


@pytest.mark.parametrize("depth", IMAGENET_DEPTHS)
def test_imagenets_networks_have_the_sizes_of_their_formula(depth: int) -> None:
    kind, depths = IMAGENET_DEPTHS[depth]
    with torch.device("meta"):
        model = created(f"imagenet/preresnet{depth}", num_classes=1000)
    given: dict[str, Any] = {"stem_kernel": 7, "activated": True, "conv_shortcut": True, "classes": 1000}
    parameters, macs = cost(IMAGENET, depths, kind, size=56, **given)
    if depth > 50:
        assert costs.count_parameters(model) == parameters
    else:
        assert measured(model, 224) == (parameters, macs)
    layers = sum((2 if kind == "basic" else 3) * blocks for blocks in depths)
    assert layers + 2 == depth
    assert [len(stage) for stage in model.stages()] == list(depths)


def test_imagenets_networks_are_as_large_as_torchvisions_less_norms() -> None:
    """The same convolutions in another order; norms sit elsewhere, and none after a shortcut."""
    with torch.device("meta"):
        for depth in IMAGENET_DEPTHS:
            own, theirs = models.create(f"imagenet/preresnet{depth}"), models.create(f"torchvision/resnet{depth}")
            shapes = [
                sorted(tuple(part.weight.shape) for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear))
                for model in (own, theirs)
            ]
            assert shapes[0] == shapes[1]
            assert len(shapes[0]) > depth


@pytest.mark.parametrize(("depth", "channels"), [(18, (64, 128, 256, 512)), (50, (256, 512, 1024, 2048))])
def test_shapes_of_imagenets_features(depth: int, channels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = created(f"imagenet/preresnet{depth}", num_classes=1000)
        x = model.stem(torch.zeros(2, 3, 224, 224))
        assert x.shape == (2, 64, 56, 56)
        for stage, width, size in zip(model.stages(), channels, (56, 28, 14, 7), strict=True):
            x = stage(x)
            assert x.shape == (2, width, size, size)
        assert model.head(x).shape == (2, 1000)


def test_imagenets_networks_take_images_of_other_channels() -> None:
    model = created("imagenet/preresnet18", num_classes=4, in_channels=1)
    assert model(torch.randn(2, 1, 40, 33)).shape == (2, 4)


# --- forward passes


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("name", ["preresnet14", "preresnet11"])
def test_a_forward_pass_is_norm_relu_convolution(name: str, shortcut: str, stem: str) -> None:
    model = trained(name, shortcut=shortcut, stem=stem)
    x = images(3, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(x), by_hand(model, x), rtol=1e-4, atol=1e-5)
        model.train()
        expected = by_hand(model, x, training=True)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [18, 50])
def test_an_imagenet_forward_pass_is_norm_relu_convolution(depth: int) -> None:
    model, x = trained(f"imagenet/preresnet{depth}"), images(2, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), by_hand(model, x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["preresnet14", "preresnet11"])
def test_blocks_add_shortcut_and_residual_without_a_relu(name: str) -> None:
    model, x = trained(name), images(2, 8)
    with torch.no_grad():
        features = model.stem(x)
        for block in blocks_of(model):
            out = block(features)
            torch.testing.assert_close(out, block.shortcut(features) + block.residual(features), rtol=0, atol=0)
            assert out.min() < 0
            features = out
        assert torch.equal(model.head(features), model(x))


@pytest.mark.parametrize(("stem", "activate"), [("conv", True), ("conv_bn_relu", False)])
def test_only_the_first_block_behind_an_activated_stem_has_no_norm_in_front(stem: str, activate: bool) -> None:
    for name in ("preresnet14", "preresnet20"):
        block = "bottleneck" if name == "preresnet20" else None
        with torch.device("meta"):
            model = created(name, stem=stem, block=block)
        assert [each.bn1 is not None for each in blocks_of(model)] == [activate] + [True] * 5
    assert isinstance(blocks_of(model)[0].shortcut, nn.Conv2d), "16 channels become 64 in the first bottleneck"


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("depth", [8, 11])
def test_any_image_size_and_a_gradient_for_every_parameter(depth: int, shortcut: str, stem: str) -> None:
    torch.manual_seed(0)
    model = created(f"preresnet{depth}", num_classes=5, in_channels=1, shortcut=shortcut, stem=stem)
    for height, width in ((8, 8), (13, 30), (1, 1), (2, 3)):
        assert model(torch.randn(2, 1, height, width)).shape == (2, 5)
    logits = model(torch.randn(4, 1, 8, 8))
    assert_every_parameter_gets_gradient(model, F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])))


def test_imagenets_networks_train_every_parameter() -> None:
    torch.manual_seed(0)
    model = created("imagenet/preresnet18", num_classes=5)
    assert_every_parameter_gets_gradient(model, F.cross_entropy(model(images(4, 64)), torch.tensor([0, 1, 2, 3])))


def test_convolutions_start_from_he_normal_over_fan_out() -> None:
    torch.manual_seed(0)
    model = created("preresnet20")
    found = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            weight, found = module.weight, found + 1
            assert weight.std().item() == pytest.approx((2 / weight[:, 0].numel()) ** 0.5, rel=0.15)
    assert found == 1 + 2 * 9 + 2


# --- the centred average


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 4), (7, 3), (1, 5), (1, 1)])
@pytest.mark.parametrize(("inputs", "outputs", "before"), [(16, 32, 8), (1, 4, 1), (2, 5, 1), (3, 3, 0)])
def test_the_centred_average_is_that_of_the_pixels_there_are(
    height: int, width: int, inputs: int, outputs: int, before: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, inputs, height, width, generator=generator, dtype=torch.float64)
    found = CentredAvgPoolShortcut(inputs, outputs, 2)(x)
    assert found.shape == (2, outputs, (height + 1) // 2, (width + 1) // 2)
    for i in range((height + 1) // 2):
        for j in range((width + 1) // 2):
            square = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
            torch.testing.assert_close(found[:, before : before + inputs, i, j], square)
    assert found[:, :before].abs().sum() == 0
    assert found[:, before + inputs :].abs().sum() == 0


def test_without_a_stride_the_centred_average_adds_channels_only() -> None:
    x = torch.randn(1, 2, 3, 3)
    found = CentredAvgPoolShortcut(2, 4, 1)(x)
    assert torch.equal(found[:, 1:3], x)
    assert found[:, [0, 3]].abs().sum() == 0


# --- networks without some of their blocks


def with_zeroed_residuals(model: PreResNet, kept: tuple[int, ...]) -> PreResNet:
    """A copy in which the last convolutions of all blocks but `kept` are zero."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for index, block in enumerate(blocks_of(other)):
            if index not in kept:
                convs = [part for name, part in block.named_children() if name.startswith("conv")]
                convs[-1].weight.zero_()  # type: ignore[operator]
    return other


def without(model: PreResNet, kept: tuple[int, ...]) -> PreResNet:
    """The same network with the blocks `kept` only."""
    spec = models.spec_of(model)
    small = models.build(models.Spec(spec.name, options=spec.options | {"kept_blocks": list(kept)}))
    assert isinstance(small, PreResNet)
    small.load_state_dict({key: model.state_dict()[key] for key in small.state_dict()})
    return small.eval()


@pytest.mark.parametrize("kept", KEPT, ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("preresnet14", {"shortcut": shortcut, "stem": STEMS[i % 2]}) for i, shortcut in enumerate(SHORTCUTS)),
        ("preresnet20", {"block": "bottleneck", "stem": "conv_bn_relu"}),
    ],
    ids=["conv", "subsample", "avgpool", "avgpool_centred", "bottleneck"],
)
def test_dropped_blocks_are_their_shortcuts_only(name: str, options: dict[str, str], kept: tuple[int, ...]) -> None:
    full = trained(name, **options)
    small = without(full, kept)
    for x in (images(3, 12), images(3, 9)):
        with torch.no_grad():
            assert torch.equal(small(x), with_zeroed_residuals(full, kept)(x))
    with torch.no_grad():
        torch.testing.assert_close(small(images(3, 12)), by_hand(full, images(3, 12), kept), rtol=1e-4, atol=1e-5)
    assert models.spec_of(small).options["kept_blocks"] == kept
    assert sum(hasattr(block, "residual") for block in small.blocks()) == len(kept)
    left = [block for block in small.blocks() if not hasattr(block, "residual")]
    assert all(isinstance(block, ShortcutOnly) and not isinstance(block.shortcut, nn.Identity) for block in left)
    assert list(models.build(models.spec_of(small)).state_dict()) == list(small.state_dict())
    if name == "preresnet14":
        given = {"activated": options["stem"] == "conv_bn_relu", "conv_shortcut": options["shortcut"] == "conv"}
        assert measured(small.to("meta"), 12) == cost(CIFAR, (2,) * 3, "basic", size=12, kept=kept, **given)


@pytest.mark.parametrize("kept", [(), (0, 1, 3, 4, 6, 7), (1, 2, 5, 7)], ids=str)
def test_dropped_blocks_of_imagenets_networks_are_their_shortcuts_only(kept: tuple[int, ...]) -> None:
    full, x = trained("imagenet/preresnet18"), images(2, 40)
    small = without(full, kept)
    with torch.no_grad():
        assert torch.equal(small(x), with_zeroed_residuals(full, kept)(x))
    left = [block for block in small.blocks() if isinstance(block, ShortcutOnly)]
    # The first stage begins without a change of size or channels: its first block leaves nothing behind.
    assert len(left) == len({2, 4, 6} - set(kept))


def test_all_blocks_kept_is_the_plain_network() -> None:
    full, same = created("preresnet8"), created("preresnet8", kept_blocks=(0, 1, 2))
    assert models.spec_of(full).options["kept_blocks"] is None
    assert list(same.state_dict()) == list(full.state_dict())
    assert not any(isinstance(block, ShortcutOnly) for block in same.blocks())


def test_blocks_that_stay_keep_their_names() -> None:
    model = created("preresnet14", kept_blocks=(1, 4))
    assert [[name for name, _ in stage.named_children()] for stage in model.stages()] == [["1"], ["0"], ["0"]]
    assert [key for key in model.state_dict() if key.startswith("layers.1")] == ["layers.1.0.shortcut.weight"]


def test_stages_hold_the_blocks_in_order() -> None:
    with torch.device("meta"):
        for name, kept, stages in [
            ("preresnet14", None, [2, 2, 2]),
            ("preresnet14", (1, 2, 3), [1, 2, 1]),
            ("imagenet/preresnet34", None, [3, 4, 6, 3]),
            ("imagenet/preresnet34", (), [0, 1, 1, 1]),
        ]:
            model = created(name, kept_blocks=kept)
            assert [len(stage) for stage in model.stages()] == stages
            assert [block for stage in model.stages() for block in stage] == list(model.blocks())


@pytest.mark.parametrize("name", ["preresnet8", "imagenet/preresnet18"])
def test_a_model_folder_keeps_the_network(name: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"shortcut": "avgpool_centred", "stem": "conv_bn_relu"} if name == "preresnet8" else {}
    model = trained(name, kept_blocks=(0, 2), **given)
    weights.save_pretrained(model, tmp_path / "model")
    loaded = weights.from_pretrained(tmp_path / "model")
    assert loaded.spec == model.spec
    with torch.no_grad():
        assert torch.equal(loaded(images(2, 16)), model(images(2, 16)))


# --- names and options


def test_options_and_their_defaults() -> None:
    assert models.option_defaults("preresnet20") == {
        "shortcut": "conv",
        "stem": "conv",
        "block": None,
        "kept_blocks": None,
    }
    assert models.option_defaults("imagenet/preresnet50") == {"kept_blocks": None}
    assert {"preresnet110", "preresnet164", "imagenet/preresnet18", "imagenet/preresnet152"} <= set(models.names())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("preresnet21", {}, r"^depth is 21, .* nearest are \[14, 20, 26, 29\]"),
        ("preresnet2", {}, "^depth is 2,"),
        ("preresnet29", {"block": "basic"}, r"^depth is 29, but must be 6n\+2 \(basic blocks\).*\[20, 26, 32, 38\]"),
        ("preresnet20", {"shortcut": "centred"}, "^unknown shortcut 'centred': .*avgpool_centred"),
        (
            "preresnet20",
            {"shortcut": 1},
            "^shortcut is 1, but must be one of conv, subsample, avgpool, avgpool_centred",
        ),
        ("preresnet20", {"stem": "conv_bn"}, "^unknown stem 'conv_bn': did you mean conv_bn_relu"),
        ("preresnet20", {"stem": None}, "^stem is None, but must be one of conv, conv_bn_relu"),
        ("preresnet20", {"stem": True}, "^stem is True"),
        ("preresnet20", {"block": "wide"}, "^unknown block 'wide'"),
        ("preresnet20", {"depth": 8}, "^unknown option of preresnet20 'depth'"),
        ("preresnet20", {"activated": True}, "^unknown option of preresnet20 'activated'"),
        ("preresnet20", {"num_classes": 0}, "^num_classes is 0"),
        ("preresnet20", {"kept_blocks": [9]}, r"^kept_blocks\[0\] is 9, but must be a whole number in 0\.\.8$"),
        ("preresnet20", {"kept_blocks": [-1]}, r"^kept_blocks\[0\] is -1"),
        ("preresnet20", {"kept_blocks": [1, 0]}, r"^kept_blocks\[1\] is 0"),
        ("preresnet20", {"kept_blocks": [1, 1]}, r"^kept_blocks\[1\] is 1"),
        ("preresnet20", {"kept_blocks": [True]}, r"^kept_blocks\[0\] is True"),
        ("preresnet20", {"kept_blocks": 3}, "^kept_blocks must be"),
        (
            "imagenet/preresnet18",
            {"kept_blocks": [8]},
            r"^kept_blocks\[0\] is 8, but must be a whole number in 0\.\.7$",
        ),
        ("imagenet/preresnet18", {"shortcut": "conv"}, "^unknown option of imagenet/preresnet18 'shortcut'"),
        ("imagenet/preresnet18", {"stem": "conv"}, "^unknown option of imagenet/preresnet18 'stem'"),
        ("imagenet/preresnet20", {}, "^unknown model 'imagenet/preresnet20': did you mean imagenet/preresnet"),
        ("imagenet/preresnet18\n", {}, "^unknown model"),
        ("imagenet/resnet18", {}, "^unknown model 'imagenet/resnet18': did you mean"),
        ("preresnet020", {}, "^unknown model"),
        ("preresnt20", {}, "^unknown model 'preresnt20': did you mean preresnet20"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=message):
        created(name, **options)


def test_the_builder_alone_builds_the_named_network() -> None:
    with torch.device("meta"):
        model = imagenet_preresnet(34, num_classes=3, in_channels=2, kept_blocks=(0,))
        named = created("imagenet/preresnet34", num_classes=3, in_channels=2, kept_blocks=(0,))
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == {
        key: tensor.shape for key, tensor in named.state_dict().items()
    }
