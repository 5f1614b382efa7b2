"""The registry and the networks: names, options, sizes, and what their parts compute."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torchvision
from resless import models, weights
from resless.errors import InputError
from resless.models import options
from resless.models.blocks import ShortcutOnly
from resless.models.lenet import LeNet5
from resless.models.resnet import AvgPoolShortcut, ResNet, SubsampleShortcut
from resless.models.torchvision_resnet import DownsampleOnly, of_layers
from resless.testing import assert_every_parameter_gets_gradient
from torch import Tensor, nn
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


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution that adds a network."""
    info = tmp_path / "added-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: added\nVersion: 1.0\n")
    added = "".join(f"{name} = added_module:build\n" for name in ("added_net", "resnet20", "resnet33", "lenet5"))
    (info / "entry_points.txt").write_text(f"[{models.ENTRY_POINTS}]\n{added}")
    (tmp_path / "added_module.py").write_text(
        "from torch import nn\n"
        "def build(*, num_classes, in_channels, width, options=None, deep=False):\n"
        "    return nn.Linear(in_channels * width, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "added_module", raising=False)


@pytest.mark.usefixtures("added")
def test_other_distributions_add_networks() -> None:
    model = models.create("added_net", num_classes=7, width=2, options={"kept": [1, [2]], "name": None})
    assert isinstance(model, nn.Linear)
    assert (model.in_features, model.out_features) == (6, 7)
    options = {"width": 2, "options": {"kept": (1, (2,)), "name": None}, "deep": False}
    assert model.spec == models.Spec("added_net", 7, 3, options)
    # As from JSON, where tuples are lists.
    again = models.Spec("added_net", 7, 3, options | {"options": {"kept": [1, [2]], "name": None}})
    assert models.build(again).spec == model.spec
    assert "added_net" not in models.names()


@pytest.mark.usefixtures("added")
def test_an_added_networks_options_are_checked_as_well() -> None:
    with pytest.raises(InputError, match=r"^added_net cannot be built without the option width$"):
        models.create("added_net")
    with pytest.raises(InputError, match="unknown option of added_net 'wide'"):
        models.create("added_net", width=2, wide=True)
    with pytest.raises(InputError, match="num_classes is 0"):
        models.create("added_net", num_classes=0, width=2)


@pytest.mark.usefixtures("added")
def test_a_model_folder_of_an_added_network_is_loaded(tmp_path: Path) -> None:
    model = models.create("added_net", width=2, options={"kept": [1, [2]]})
    weights.save_pretrained(model, tmp_path / "model")
    loaded = weights.from_pretrained(tmp_path / "model")
    assert loaded.spec == model.spec
    assert torch.equal(loaded.weight, model.weight)


@pytest.mark.usefixtures("added")
def test_added_networks_do_not_take_the_names_of_those_that_are_here() -> None:
    assert isinstance(models.create("resnet20"), ResNet)
    assert isinstance(models.create("lenet5"), LeNet5)
    assert "width" not in models.option_defaults("resnet20")
    with pytest.raises(InputError, match="depth is 33"):
        models.create("resnet33", width=2)


def test_without_its_distribution_an_added_network_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown model 'added_net'"):
        models.create("added_net")
    weights.save_pretrained(models.create("resnet8"), tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"resnet8"', '"added_net"'))
    with pytest.raises(
        InputError, match=r"unknown model 'added_net'.*; if it comes with another package, install that$"
    ):
        weights.from_pretrained(tmp_path / "model")


def test_only_unknown_names_may_come_with_another_package(tmp_path: Path) -> None:
    weights.save_pretrained(models.create("resnet8"), tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    written = config.read_text()
    for old, new in (('"resnet8"', '"resnet33"'), ('"num_classes": 10', '"num_classes": 0')):
        assert old in written
        config.write_text(written.replace(old, new))
        with pytest.raises(InputError) as error:
            weights.from_pretrained(tmp_path / "model")
        assert "another package" not in str(error.value)


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


@pytest.mark.parametrize(
    ("name", "kept", "stages"),
    [("resnet14", None, [2, 2, 2]), ("resnet14", (1, 2, 3), [1, 2, 1]), ("torchvision/resnet34", None, [3, 4, 6, 3])],
)
def test_stages_hold_the_blocks_in_order(name: str, kept: tuple[int, ...] | None, stages: list[int]) -> None:
    with torch.device("meta"):
        model = models.create(name, kept_blocks=kept)
    assert [len(stage) for stage in model.stages()] == stages
    assert [block for stage in model.stages() for block in stage] == list(model.blocks())


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


# --- ResNets without some of their blocks


def skipping(model: nn.Module, x: Tensor, kept: Sequence[int]) -> Tensor:
    """The whole network, of whose blocks only `kept` add their residual."""
    x = model.stem(x)
    for index, block in enumerate(model.blocks()):
        x = (block.shortcut(x) + block.residual(x)).clamp(min=0) if index in kept else block.shortcut(x)
    return model.head(x)


@pytest.mark.parametrize("kept", [(), (0,), (1, 2), (0, 3, 5), (2, 4), tuple(range(6))], ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet14", {"shortcut": "conv"}),
        ("resnet14", {"shortcut": "subsample"}),
        ("resnet14", {"shortcut": "avgpool"}),
        ("resnet20", {"block": "bottleneck"}),
    ],
    ids=["conv", "subsample", "avgpool", "bottleneck"],
)
def test_kept_blocks_are_those_of_the_full_network(name: str, options: dict[str, str], kept: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    full, small = models.create(name, **options), models.create(name, **options, kept_blocks=list(kept))
    images = torch.randn(3, 3, 9, 9)
    with torch.no_grad():
        full(images)
        full.eval()
        small.eval().load_state_dict({key: full.state_dict()[key] for key in small.state_dict()})
        torch.testing.assert_close(small(images), skipping(full, images, kept))
    assert small.spec.options["kept_blocks"] == kept
    assert sum(hasattr(block, "residual") for block in small.blocks()) == len(kept)
    left = [block for block in small.blocks() if not hasattr(block, "residual")]
    assert all(isinstance(block, ShortcutOnly) and not isinstance(block.shortcut, nn.Identity) for block in left)
    again = models.build(small.spec)
    assert list(again.state_dict()) == list(small.state_dict())


def test_all_blocks_kept_is_the_plain_network() -> None:
    full, same = models.create("resnet8"), models.create("resnet8", kept_blocks=(0, 1, 2))
    assert full.spec.options["kept_blocks"] is None
    assert list(same.state_dict()) == list(full.state_dict())
    assert not any(isinstance(block, ShortcutOnly) for block in same.blocks())


def test_blocks_that_stay_keep_their_names() -> None:
    model = models.create("resnet14", kept_blocks=(1, 4))
    assert [name for name, _ in model.layer1.named_children()] == ["1"]
    assert [name for name, _ in model.layer2.named_children()] == ["0"]
    assert [name for name, _ in model.layer3.named_children()] == ["0"]
    assert [key for key in model.state_dict() if key.startswith("layer2")] == [
        f"layer2.0.shortcut.{key}"
        for key in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")
    ]


def test_a_dropped_block_has_no_relu() -> None:
    model = models.create("resnet8", shortcut="conv", kept_blocks=(0, 2)).eval()
    x = torch.randn(1, 16, 4, 4)
    found = model.layer2(x)
    torch.testing.assert_close(found, model.layer2[0].shortcut(x))
    assert found.min() < 0


@pytest.mark.parametrize("name", ["resnet8", "torchvision/resnet18"])
@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (3, "kept_blocks must be"),
        ("", "kept_blocks must be"),
        ("01", "kept_blocks must be"),
        ({}, "kept_blocks must be"),
        ([8], r"kept_blocks\[0\] is 8, but must be a whole number in 0\.\.[27]$"),
        ([-1], r"kept_blocks\[0\] is -1"),
        ([1, 1], r"kept_blocks\[1\] is 1, but must be greater than the index before it, 1"),
        ([1, 0], r"kept_blocks\[1\] is 0"),
        ([True], r"kept_blocks\[0\] is True"),
        ([0.0], r"kept_blocks\[0\] is 0\.0"),
    ],
)
def test_kept_blocks_out_of_range_are_refused(name: str, kept: object, message: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=message):
        models.create(name, kept_blocks=kept)


# --- torchvision's ResNets


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_torchvisions_networks_are_named_and_shaped_as_theirs(depth: int) -> None:
    with torch.device("meta"):
        own = models.create(f"torchvision/resnet{depth}", num_classes=1000)
        theirs = getattr(torchvision.models, f"resnet{depth}")()
    assert [(key, tensor.shape) for key, tensor in own.state_dict().items()] == [
        (key, tensor.shape) for key, tensor in theirs.state_dict().items()
    ]
    # Layers of a residual branch, with stem and classifier, give the network its name.
    layers = [2 if depth < 50 else 3 for _ in own.blocks()]
    assert sum(layers) + 2 == depth


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvisions_networks_compute_the_same(depth: int) -> None:
    torch.manual_seed(0)
    own = models.create(f"torchvision/resnet{depth}", num_classes=10)
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=10)
    images = torch.randn(3, 3, 40, 40)
    with torch.no_grad():
        theirs(images)  # running statistics that are not the initial ones
        own.load_state_dict(theirs.state_dict())
        assert torch.equal(own(images), theirs(images)), "in training mode"
        own, theirs = own.eval(), theirs.eval()
        assert torch.equal(own(images), theirs(images))
        x = own.stem(images)
        for block in own.blocks():
            out = block(x)
            torch.testing.assert_close(out, (block.shortcut(x) + block.residual(x)).clamp(min=0))
            x = out
        torch.testing.assert_close(own.head(x), theirs(images))


def test_torchvisions_networks_start_as_theirs_and_train_every_parameter() -> None:
    torch.manual_seed(0)
    own = models.create("torchvision/resnet18", num_classes=10)
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10)
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in own.state_dict().items())
    logits = own(torch.randn(4, 3, 40, 40))
    assert_every_parameter_gets_gradient(own, F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])))


@pytest.mark.parametrize("kept", [(), (1, 2), (0, 1, 3), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_kept_blocks_are_those_of_torchvisions_network(kind: str, kept: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    size = {"num_classes": 10, "in_channels": 3}
    full = of_layers(kind, (1, 1, 1, 1), **size)
    small = of_layers(kind, (1, 1, 1, 1), **size, kept_blocks=kept)
    images = torch.randn(3, 3, 33, 33)
    with torch.no_grad():
        full(images)
        full.eval()
        small.eval().load_state_dict({key: full.state_dict()[key] for key in small.state_dict()})
        torch.testing.assert_close(small(images), skipping(full, images, kept))
    # Only where ResNet-18's first stage begins does the shortcut change nothing.
    removed = set(range(4)) - set(kept) - ({0} if kind == "basic" else set())
    assert sum(isinstance(block, DownsampleOnly) for block in small.blocks()) == len(removed)


def test_torchvisions_networks_take_colour_only() -> None:
    with pytest.raises(InputError, match="in_channels is 1, but must be 3 for torchvision's networks"):
        models.create("torchvision/resnet18", in_channels=1)


@pytest.mark.parametrize("name", ["torchvision/resnet20", "torchvision/resnet", "torchvision/resnet18\n", "resnet/18"])
def test_other_names_of_torchvisions_are_unknown(name: str) -> None:
    with pytest.raises(InputError, match="unknown model"):
        models.check_name(name)


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


def test_what_a_network_needs_is_imported_off_the_meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model folder is checked on the meta device; modules first imported there may read tensors of their own."""
    with torch.device("meta"):
        net = models.create("resnet8")
    assert net.conv1.weight.is_meta
    imported, load = [], models.import_module

    def noting(name: str) -> ModuleType:
        imported.append(torch.empty(0).device.type)
        return load(name)

    monkeypatch.setattr(models, "import_module", noting)
    with torch.device("meta"):
        assert models.create("torchvision/alexnet").features[0].weight.is_meta
    assert set(imported) == {"cpu"}
