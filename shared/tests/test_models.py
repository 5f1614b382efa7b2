"""The registry and the networks: names, options, sizes, and what their parts compute."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from resless import models
from resless.errors import InputError
from resless.models import options
from resless.models.resnet import AvgPoolShortcut, SubsampleShortcut
from resless.testing import assert_every_parameter_gets_gradient
from torch import nn
from torch.nn import functional as F


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def expected_resnet_parameters(kernels: list[int], blocks: int, shortcut_parameters: bool) -> int:
    """Parameters of a CIFAR ResNet written down from the paper; `kernels` of one block, widths 16, 32, 64."""

    def conv_bn(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**2 + 2 * outputs

    total, channels = conv_bn(3, 16, 3), 16
    for width in (16, 32, 64):
        widths = [width] * len(kernels) if len(kernels) == 2 else [width, width, 4 * width]
        for position in range(blocks):
            if position == 0 and channels != widths[-1] and shortcut_parameters:
                total += conv_bn(channels, widths[-1], 1)
            for kernel, outputs in zip(kernels, widths, strict=True):
                total += conv_bn(channels, outputs, kernel)
                channels = outputs
    return total + channels * 10 + 10


# --- registry


def test_every_listed_name_can_be_created() -> None:
    listed = models.names()
    assert {"lenet_300_100", "lenet5", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet164"} <= {
        *listed
    }
    with torch.device("meta"):
        for name in listed:
            assert models.create(name).spec.name == name


def test_checking_a_name_does_not_import_torch() -> None:
    code = "import sys; from resless import models; models.check_name('resnet20'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown model 'resnt20': did you mean resnet20"):
        models.create("resnt20")


@pytest.mark.parametrize("name", ["resnet", "resnet020", "resnet20\n", "xresnet20", "resnet-20", "resnet999999"])
def test_names_match_as_a_whole(name: str) -> None:
    with pytest.raises(InputError, match="unknown model"):
        models.check_name(name)


def test_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown option of resnet20 'shortcuts': did you mean shortcut"):
        models.create("resnet20", shortcuts="conv")
    with pytest.raises(InputError, match="unknown option of resnet20 'depth'"):
        models.build(models.Spec("resnet20", options={"depth": 32}))


@pytest.mark.parametrize("value", [0, -1, 65_537, 10.0, "10", True, None])
def test_numbers_of_classes_and_channels_are_checked(value: object) -> None:
    with pytest.raises(InputError, match="num_classes is"):
        models.create("lenet5", num_classes=value)
    with pytest.raises(InputError, match="in_channels is"):
        models.create("lenet5", in_channels=value)


def test_spec_holds_all_options_and_builds_the_same_network() -> None:
    model = models.create("lenet5", num_classes=7, in_channels=1, widths=[3, 8, 13])
    assert model.spec == models.Spec("lenet5", 7, 1, {"image_size": 28, "widths": (3, 8, 13), "features": None})
    again = models.build(model.spec)
    assert again.spec == model.spec
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_a_network_for_images_takes_their_classes_channels_and_size() -> None:
    images = SimpleNamespace(image_shape=(1, 8, 8), num_classes=7)
    assert models.create_for("lenet_300_100", images, shortcut=None).spec.options["image_size"] == 8
    resnet = models.create_for("resnet8", images, shortcut="avgpool")
    assert (resnet.spec.num_classes, resnet.spec.in_channels, resnet.spec.options["shortcut"]) == (7, 1, "avgpool")
    with pytest.raises(InputError, match="unknown option of lenet_300_100 'shortcut'"):
        models.create_for("lenet_300_100", images, shortcut="conv")


# --- ResNets


@pytest.mark.parametrize(
    ("depth", "block", "expected"),
    [
        (8, None, ("basic", 1)),
        (110, None, ("basic", 18)),
        (164, None, ("bottleneck", 18)),
        (29, None, ("bottleneck", 3)),
        (1001, None, ("bottleneck", 111)),
        (164, "basic", ("basic", 27)),
        (110, "bottleneck", ("bottleneck", 12)),
    ],
)
def test_depth_gives_kind_and_number_of_blocks(depth: int, block: str | None, expected: tuple[str, int]) -> None:
    assert options.cifar_depth(depth, block) == expected


def test_impossible_depth_lists_the_nearest_valid_ones() -> None:
    with pytest.raises(InputError, match=r"depth is 21, .* nearest are \[14, 20, 26, 29\]"):
        models.check_name("resnet21")
    with pytest.raises(InputError, match=r"depth is 29, but must be 6n\+2 \(basic blocks\).*\[20, 26, 32, 38\]"):
        models.create("resnet29", block="basic")
    with pytest.raises(InputError, match="depth is 2,"):
        models.check_name("resnet2")


@pytest.mark.parametrize(
    ("name", "shortcut", "kernels", "blocks", "published"),
    [
        ("resnet110", "conv", [3, 3], 18, 1_730_714),
        ("resnet164", "conv", [1, 3, 1], 18, 1_704_154),
        ("resnet20", "subsample", [3, 3], 3, 269_722),
        ("resnet20", "avgpool", [3, 3], 3, 269_722),
    ],
)
def test_resnets_have_the_published_parameters(
    name: str, shortcut: str, kernels: list[int], blocks: int, published: int
) -> None:
    assert expected_resnet_parameters(kernels, blocks, shortcut == "conv") == published
    assert num_parameters(models.create(name, shortcut=shortcut)) == published


@pytest.mark.parametrize("shortcut", ["conv", "subsample", "avgpool"])
@pytest.mark.parametrize("depth", [8, 11])
def test_resnet_works_on_any_image_size_and_trains_every_parameter(depth: int, shortcut: str) -> None:
    torch.manual_seed(0)
    model = models.create(f"resnet{depth}", num_classes=5, in_channels=1, shortcut=shortcut)
    for size in (8, 13, 30):
        assert model(torch.randn(2, 1, size, size)).shape == (2, 5)
    logits = model(torch.randn(4, 1, 8, 8))
    assert_every_parameter_gets_gradient(model, F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])))


@pytest.mark.parametrize(("depth", "shapes"), [(8, [(16, 8), (32, 4), (64, 2)]), (11, [(64, 8), (128, 4), (256, 2)])])
def test_blocks_add_shortcut_and_residual(depth: int, shapes: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    model = models.create(f"resnet{depth}").eval()
    images = torch.randn(2, 3, 8, 8)
    x = model.stem(images)
    assert len(list(model.blocks())) == len(shapes)
    for block, (channels, size) in zip(model.blocks(), shapes, strict=True):
        out = block(x)
        assert out.shape == (2, channels, size, size)
        torch.testing.assert_close(out, (block.shortcut(x) + block.residual(x)).clamp(min=0))
        x = out
    torch.testing.assert_close(model.head(x), model(images))


def test_subsample_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    out = SubsampleShortcut(2, 6, 2)(x)
    assert out.shape == (1, 6, 2, 2)
    assert out[0, 2].tolist() == [[0, 2], [8, 10]]
    assert out[0, 3].tolist() == [[16, 18], [24, 26]]
    assert out[0, [0, 1, 4, 5]].abs().sum() == 0


def test_avgpool_averages_and_appends_channels() -> None:
    x = torch.arange(4 * 4.0).view(1, 1, 4, 4)
    out = AvgPoolShortcut(1, 3, 2)(x)
    assert out[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert out.shape == (1, 3, 2, 2)
    assert out[0, 1:].abs().sum() == 0


def test_convolutions_start_from_he_normal_over_fan_out() -> None:
    torch.manual_seed(0)
    weight = models.create("resnet20").layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)


def test_unknown_shortcut_and_block_are_refused() -> None:
    with pytest.raises(InputError, match="unknown shortcut 'convs': did you mean conv"):
        models.create("resnet20", shortcut="convs")
    with pytest.raises(InputError, match="shortcut is 1, but must be one of conv, subsample, avgpool"):
        models.create("resnet20", shortcut=1)
    with pytest.raises(InputError, match="unknown block 'wide'"):
        models.create("resnet20", block="wide")


# --- LeNets


def test_lenets_have_the_published_parameters() -> None:
    assert num_parameters(models.create("lenet_300_100", in_channels=1)) == 784 * 300 + 300 * 100 + 100 * 10 + 410
    lenet5 = 20 * 25 + 20 + 50 * 20 * 25 + 50 + 800 * 500 + 500 + 5000 + 10
    assert num_parameters(models.create("lenet5", in_channels=1)) == lenet5 == 431_080


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet5"])
def test_lenets_train_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = models.create(name, in_channels=3, image_size=16)
    logits = model(torch.randn(64, 3, 16, 16))
    assert_every_parameter_gets_gradient(model, F.cross_entropy(logits, torch.arange(64) % 10))


@pytest.mark.parametrize(("name", "option", "total"), [("lenet_300_100", "inputs", 784), ("lenet5", "features", 800)])
def test_kept_indices_equal_zero_columns_of_the_full_network(name: str, option: str, total: int) -> None:
    torch.manual_seed(0)
    kept = sorted(torch.randperm(total)[:97].tolist())
    full, small = models.create(name, in_channels=1), models.create(name, in_channels=1, **{option: kept})
    state = full.state_dict()
    small.load_state_dict(state | {"fc1.weight": state["fc1.weight"][:, kept]})
    with torch.no_grad():
        dropped = torch.ones(total, dtype=torch.bool)
        dropped[kept] = False
        full.fc1.weight[:, dropped] = 0
    images = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(small(images), full(images))
    assert small.spec.options[option] == tuple(kept)


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet5"])
def test_lenets_refuse_images_of_another_size(name: str) -> None:
    with pytest.raises(InputError, match=r"images are \(1, 32, 32\), but this network takes .* \(1, 28, 28\)"):
        models.create(name, in_channels=1)(torch.zeros(1, 1, 32, 32))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("lenet5", {"image_size": 15}, r"image_size is 15, but must be a whole number in 16\.\.4096"),
        ("lenet5", {"widths": (20, 50)}, "widths is .* a list of 3 whole numbers"),
        ("lenet5", {"widths": (20, 0, 500)}, r"widths\[1\] is 0"),
        ("lenet5", {"features": [800]}, r"features\[0\] is 800, but must be a whole number in 0\.\.799"),
        ("lenet_300_100", {"widths": (300.0, 100)}, r"widths\[0\] is 300\.0"),
        ("lenet_300_100", {"widths": "12"}, "widths is '12'"),
        ("lenet_300_100", {"image_size": 5000}, "image_size is 5000"),
        ("lenet_300_100", {"inputs": []}, "inputs must be a non-empty list"),
        ("lenet_300_100", {"inputs": 3}, "inputs must be a non-empty list"),
        ("lenet_300_100", {"inputs": [2, 2]}, r"inputs\[1\] is 2, but must be greater than .* 2"),
        ("lenet_300_100", {"inputs": [784]}, r"inputs\[0\] is 784"),
        ("lenet_300_100", {"inputs": [True]}, r"inputs\[0\] is True"),
    ],
)
def test_lenet_options_out_of_range_are_refused(name: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        models.create(name, in_channels=1, **given)
