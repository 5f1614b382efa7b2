"""The dense zoo: sizes of every network of the published tables, derived here from the papers, and what all have in
common."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from resless import costs, models, weights
from resless.errors import InputError
from resless.models import densenet, options, wide_resnet
from resless.testing import assert_every_parameter_gets_gradient
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Conv:
    """A convolution that gives `size` x `size` pixels, a linear layer if they are 1; with what it carries along."""

    inputs: int
    outputs: int
    kernel: int = 1
    size: int = 1
    groups: int = 1
    bias: bool = False
    norm: int = 0
    """Channels of the batch norm before or after it."""

    @property
    def weights(self) -> int:
        return self.inputs // self.groups * self.outputs * self.kernel**2

    @property
    def parameters(self) -> int:
        return self.weights + (self.outputs if self.bias else 0) + 2 * self.norm

    @property
    def macs(self) -> int:
        return self.weights * self.size**2


def alexnet() -> Iterator[Conv]:
    """32 pixels: 8 after the first convolution, halved after the first, the second and the last."""
    yield Conv(3, 64, 11, 8, bias=True)
    yield Conv(64, 192, 5, 4, bias=True)
    yield Conv(192, 384, 3, 2, bias=True)
    yield Conv(384, 256, 3, 2, bias=True)
    yield Conv(256, 256, 3, 2, bias=True)
    yield Conv(256, 10, bias=True)


def vgg(convolutions: tuple[int, ...], norm: bool) -> Iterator[Conv]:
    channels = 3
    for group, (width, number) in enumerate(zip((64, 128, 256, 512, 512), convolutions, strict=True)):
        for _ in range(number):
            yield Conv(channels, width, 3, 32 // 2**group, bias=True, norm=width if norm else 0)
            channels = width
    yield Conv(512, 10, bias=True)


def wrn(blocks: int, widening: int) -> Iterator[Conv]:
    """The norm before each convolution, but the first; the last one, before the head, is the linear layer's here."""
    yield Conv(3, 16, 3, 32)
    channels = 16
    for width, size in ((16 * widening, 32), (32 * widening, 16), (64 * widening, 8)):
        if channels != width or size < 32:
            yield Conv(channels, width, 1, size)
        for _ in range(blocks):
            yield Conv(channels, width, 3, size, norm=channels)
            yield Conv(width, width, 3, size, norm=width)
            channels = width
    yield Conv(channels, 10, bias=True, norm=channels)


def resnext(blocks: int, cardinality: int, width: int, expansion: int = 4) -> Iterator[Conv]:
    """The 3x3 convolution has the stride, so the 1x1 before it sees the larger image."""
    yield Conv(3, 64, 3, 32, norm=64)
    channels = 64
    for stage, size in enumerate((32, 16, 8)):
        inner, outputs = cardinality * width * 2**stage, 64 * expansion * 2**stage
        if channels != outputs or stage > 0:
            yield Conv(channels, outputs, 1, size, norm=outputs)
        for position in range(blocks):
            yield Conv(channels, inner, 1, 2 * size if stage > 0 and position == 0 else size, norm=inner)
            yield Conv(inner, inner, 3, size, groups=cardinality, norm=inner)
            yield Conv(inner, outputs, 1, size, norm=outputs)
            channels = outputs
    yield Conv(channels, 10, bias=True)


def dense(layers: int, growth: int, bottleneck: bool, kept: float) -> Iterator[Conv]:
    channels = 2 * growth if bottleneck else 16
    yield Conv(3, channels, 3, 32)
    for size in (32, 16, 8):
        if size < 32:  # the transition computes before it pools
            yield Conv(channels, int(kept * channels), 1, 2 * size, norm=channels)
            channels = int(kept * channels)
        for _ in range(layers):
            if bottleneck:
                yield Conv(channels, 4 * growth, 1, size, norm=channels)
                yield Conv(4 * growth, growth, 3, size, norm=4 * growth)
            else:
                yield Conv(channels, growth, 3, size, norm=channels)
            channels += growth
    yield Conv(channels, 10, bias=True, norm=channels)


def on_meta(name: str, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return models.create(name, **kwargs)


def counted(name: str, **kwargs: Any) -> tuple[int, int]:
    """Parameters, and MACs of one image of 32 x 32, without memory for either."""
    model = on_meta(name, **kwargs)
    return costs.count_parameters(model), costs.macs(model, torch.zeros(1, 3, 32, 32, device="meta"))


FEATURES = {
    **{"alexnet": 256, "vgg19_bn": 512, "resnet110": 64, "resnet164": 256, "preresnet110": 64, "preresnet164": 256},
    **{"wrn28_10": 640, "resnext29_8x64": 1024, "resnext29_16x64": 1024},
    **{"densenet_bc_100_12": 342, "densenet_bc_190_40": 2190},
}
"""What the classifier reads of an image."""


def assert_counted_for_100_classes(name: str, published: tuple[int, int]) -> None:
    """As for 10 classes, with 90 outputs more, each of as many multiply-adds as features, and of a bias."""
    parameters, macs = published
    assert counted(name, num_classes=100) == (parameters + 90 * (FEATURES[name] + 1), macs + 90 * FEATURES[name])


@pytest.mark.parametrize(
    ("name", "layers", "published"),
    [
        ("alexnet", alexnet(), (2_472_266, 14_957_056)),
        ("vgg19_bn", vgg((2, 2, 4, 4, 4), norm=True), (20_040_522, 398_136_320)),
        ("wrn28_10", wrn(4, 10), (36_479_194, 5_243_328_768)),
        ("resnext29_8x64", resnext(3, 8, 64), (34_426_698, 5_387_266_048)),
        ("resnext29_16x64", resnext(3, 16, 64), (68_155_210, 10_688_866_304)),
        ("densenet_bc_100_12", dense(16, 12, True, 0.5), (769_162, 287_929_692)),
        ("densenet_bc_190_40", dense(31, 40, True, 0.5), (25_624_430, 9_301_945_740)),
    ],
)
def test_networks_have_the_published_sizes(name: str, layers: Iterator[Conv], published: tuple[int, int]) -> None:
    derived = list(layers)
    assert (sum(layer.parameters for layer in derived), sum(layer.macs for layer in derived)) == published
    assert counted(name) == published
    assert_counted_for_100_classes(name, published)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet110", (1_730_714, 253_149_824)),
        ("resnet164", (1_704_154, 247_646_720)),
        ("preresnet110", (1_730_522, 253_149_824)),
        ("preresnet164", (1_703_258, 247_646_720)),
    ],
)
def test_resnets_have_the_published_sizes(name: str, published: tuple[int, int]) -> None:
    assert counted(name) == published
    assert_counted_for_100_classes(name, published)


@pytest.mark.parametrize(
    ("name", "kwargs", "layers"),
    [
        ("vgg11", {}, vgg((1, 1, 2, 2, 2), norm=False)),
        ("vgg13_bn", {}, vgg((2, 2, 2, 2, 2), norm=True)),
        ("vgg16", {}, vgg((2, 2, 3, 3, 3), norm=False)),
        ("wrn16_1", {}, wrn(2, 1)),
        ("wrn10_3", {"dropout": 0.3}, wrn(1, 3)),
        ("resnext11_3x5", {}, resnext(1, 3, 5)),
        ("resnext20_4x8", {"expansion": 1}, resnext(2, 4, 8, 1)),
        ("densenet_40_12", {}, dense(12, 12, False, 1.0)),
        ("densenet_bc_16_5", {"compression": 1, "dropout": 0.2}, dense(2, 5, True, 1.0)),
        ("densenet_bc_16_5", {"compression": 1 / 3}, dense(2, 5, True, 1 / 3)),
    ],
)
def test_networks_of_other_sizes_are_those_of_the_papers(
    name: str, kwargs: dict[str, Any], layers: Iterator[Conv]
) -> None:
    derived = list(layers)
    assert counted(name, **kwargs) == (
        sum(layer.parameters for layer in derived),
        sum(layer.macs for layer in derived),
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wrn29_10", r"depth is 29, but must be 6n\+4, .* nearest are \[22, 28, 34, 40\]$"),
        ("wrn4_10", r"depth is 4, .* nearest are \[10, 16, 22, 28\]$"),
        ("densenet_bc_101_12", r"depth is 101, but must be 6n\+4, .* \[94, 100, 106, 112\]$"),
        ("densenet_41_12", r"depth is 41, but must be 3n\+4, .* \[37, 40, 43, 46\]$"),
        ("resnext30_8x64", r"depth is 30, but must be 9n\+2, .* \[20, 29, 38, 47\]$"),
        ("resnext99999_8x64", r"depth is 99999, .* at most 10000: nearest are \[9965, 9974, 9983, 9992\]$"),
        ("vgg14", "unknown model 'vgg14': did you mean vgg1"),
        ("wrn28_1025", r"the widening factor is 1025, but must be a whole number in 1\.\.1024$"),
        ("resnext29_129x128", r"cardinality x width is 16512, but must be a whole number in 1\.\.16384$"),
        ("densenet_bc_100_99999", "depth x growth rate is 9999900, but must be a whole number in"),
        ("wrn28_0", "unknown model 'wrn28_0': did you mean wrn28_10"),
        ("resnext29_8", "unknown model 'resnext29_8': did you mean resnext29_8x"),
        ("torchvision/vgg12", "unknown model 'torchvision/vgg12': did you mean torchvision/vgg1"),
    ],
)
def test_numbers_in_a_name_that_no_network_has_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        models.check_name(name)


@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        *(("wrn10_1", {"dropout": bad}, f"dropout is {bad}, but must be") for bad in (1, -0.1, True, float("nan"))),
        *(("densenet_7_2", {"compression": bad}, f"compression is {bad}, but") for bad in (0, 1.5, False)),
        *(("densenet_7_2", {"kept_layers": bad}, "kept_layers must be") for bad in (1, "", "01", {}, {"0": 1})),
        ("densenet_7_2", {"kept_layers": [3]}, r"kept_layers\[0\] is 3, but must be a whole number in 0\.\.2$"),
        ("densenet_bc_10_2", {"kept_layers": [-1]}, r"kept_layers\[0\] is -1"),
        ("densenet_bc_10_2", {"kept_layers": [1, 1]}, r"kept_layers\[1\] is 1, but must be greater than .* it, 1"),
        *(("densenet_bc_10_2", {"kept_layers": [bad]}, r"kept_layers\[0\] is") for bad in (True, 0.0, None, [], {})),
        ("densenet_bc_10_2", {"dropout": "0.2"}, "dropout is '0.2', but must be a number of at least 0 and below 1"),
        *(("resnext11_2x2", {"expansion": bad}, f"expansion is {bad}, but") for bad in (0, 257, 4.0)),
        ("vgg11", {"dropout": 0.5}, "unknown option of vgg11 'dropout'"),
        ("torchvision/vit_b_16", {"image_size": 100}, "image_size is 100, but must be a multiple of 16"),
        ("torchvision/alexnet", {"in_channels": 1}, "in_channels is 1, but must be 3 for torchvision's networks"),
    ],
)
def test_options_out_of_range_are_refused(name: str, kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        on_meta(name, **kwargs)


SMALL: dict[str, dict[str, Any]] = {
    "lenet_300_100": {"image_size": 8, "widths": (5, 7)},
    "lenet5": {"image_size": 16, "widths": (3, 4, 5)},
    "alexnet": {},
    "vgg11": {},
    "vgg11_bn": {},
    "resnet8": {"shortcut": "subsample"},
    "resnet11": {"shortcut": "avgpool", "kept_blocks": (0, 2)},
    "preresnet11": {"stem": "conv_bn_relu"},
    "wrn10_2": {"dropout": 0.3, "kept_blocks": (0, 2)},
    "resnext11_2x4": {"kept_blocks": (1,)},
    "densenet_7_4": {"dropout": 0.2},
    "densenet_bc_10_4": {"dropout": 0.2, "compression": 0.7, "kept_layers": (0, 2)},
}
"""One small network of each family for images of any size, with some options."""


def small(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network and images for it."""
    torch.manual_seed(0)
    size = SMALL[name].get("image_size", 12)
    return models.create(name, num_classes=3, **SMALL[name]), torch.randn(4, 3, size, size)


def test_every_family_has_a_small_network_here() -> None:
    families = {models._parse(name)[0].form for name in SMALL}
    own = {family.form for family in models._FAMILIES if "/" not in family.form}
    assert len(own) >= 11
    assert families == own - {"shrunk", "folded"}  # what became of one of the others


@pytest.mark.parametrize("name", SMALL)
def test_networks_are_traced_and_compute_the_same(name: str) -> None:
    model, images = small(name)
    with torch.no_grad():
        model(images)
        model.eval()
        traced = torch.fx.symbolic_trace(model)
    # With gradients: without, a network pools with other roundings than its trace, see `pooling.average`.
    assert torch.equal(traced(images), model(images))
    kinds = {type(model.get_submodule(str(node.target))) for node in traced.graph.nodes if node.op == "call_module"}
    assert nn.Linear in kinds
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    assert sum(isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear) for m in traced.modules()) == len(layers)


@pytest.mark.parametrize("name", SMALL)
def test_networks_train_every_parameter(name: str) -> None:
    model, images = small(name)
    assert_every_parameter_gets_gradient(model, F.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])))


@pytest.mark.parametrize("name", SMALL)
def test_model_folders_hold_the_same_network(name: str, tmp_path: Path) -> None:
    model, images = small(name)
    with torch.no_grad():
        model(images)
        weights.save_pretrained(model, tmp_path / "model")
        again = weights.from_pretrained(tmp_path / "model")
        assert again.spec == model.spec
        assert torch.equal(again(images), model.eval()(images))


@pytest.mark.parametrize(
    "name", ["alexnet", "vgg11_bn", "wrn10_1", "resnext11_1x4", "densenet_7_4", "densenet_bc_10_4"]
)
def test_networks_take_images_of_any_size(name: str) -> None:
    model = models.create(name, num_classes=5, in_channels=1).eval()
    with torch.no_grad():
        for size in (1, 8, 13, 33):
            assert model(torch.randn(2, 1, size, size)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("wrn10_1025", {}, "the widening factor is 1025"),
        ("wrn10_-1", {}, "unknown model 'wrn10_-1'"),
        ("wrn10_1024", {}, "does not match the network"),
        ("resnext29_16384x1", {}, "does not match the network"),
        ("densenet_bc_100_655", {}, "does not match the network"),
        ("torchvision/vit_h_14", {"image_size": 4088}, "does not match the network"),
        ("wrn10_1", {"dropout": -1}, "dropout is -1, but must be"),
        ("wrn10_1", {"widths": [1]}, "unknown option of wrn10_1 'widths'"),
        ("resnext11_1x1", {"expansion": 10**9}, "expansion is 1000000000, but must be"),
        ("densenet_7_2", {"kept_layers": [0, 10**9]}, r"kept_layers\[1\] is 1000000000, but must be"),
        ("densenet_7_2", {"kept_layers": [{}]}, r"kept_layers\[0\] is \{\}, but must be"),
        ("densenet_bc_10_2", {"kept_layers": {"0": 1}}, "kept_layers must be"),
    ],
)
def test_hostile_configurations_are_refused_before_anything_is_allocated(
    name: str, options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    weights.save_pretrained(models.create("wrn10_1"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"] |= {"name": name, "options": options}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=sentence):
        weights.from_pretrained(folder)


def test_dropout_drops_in_training_only() -> None:
    torch.manual_seed(0)
    block = wide_resnet.Block(4, 4, 1, dropout=0.5)
    x = torch.randn(2, 4, 6, 6)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))
    without = wide_resnet.Block(4, 4, 1, dropout=0.0)
    without.load_state_dict(block.state_dict())
    assert torch.equal(block(x), without.eval()(x))


def test_a_wide_block_passes_on_its_input_or_projects_the_activated_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    for block in (wide_resnet.Block(4, 4, 1, 0.0).eval(), wide_resnet.Block(4, 6, 2, 0.0).eval()):
        nn.init.zeros_(block.conv2.weight)
        activated = x.clamp(min=0) / (1 + block.bn1.eps) ** 0.5
        unchanged = isinstance(block.shortcut, nn.Identity)
        expected = x if unchanged else F.conv2d(activated, block.shortcut.weight, stride=2)
        torch.testing.assert_close(block(x), expected)


def shortcut_of(block: Any) -> nn.Module:
    """What a block is without its residual branch."""
    if isinstance(block, wide_resnet.Block) and not isinstance(block.shortcut, nn.Identity):
        return nn.Sequential(block.bn1, nn.ReLU(), block.shortcut)
    return block.shortcut


@pytest.mark.parametrize("kept", [(), (1, 2), (0, 3, 5)], ids=str)
@pytest.mark.parametrize("name", ["wrn16_1", "wrn16_2", "resnext20_2x4"])
def test_kept_blocks_are_those_of_the_full_network(name: str, kept: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    full, few = models.create(name), models.create(name, kept_blocks=list(kept)).eval()
    images = torch.randn(3, 3, 9, 9)
    with torch.no_grad():
        full(images)
        full.eval()
        few.load_state_dict({key: full.state_dict()[key] for key in few.state_dict()})
        macs, blocks = costs.macs(full, images[:1]), iter(range(6))
        for stage in full.stages():
            for position, block in enumerate(stage):
                if next(blocks) not in kept:
                    stage[position] = shortcut_of(block)
        torch.testing.assert_close(few(images), full(images))
    assert costs.macs(few, images[:1]) == costs.macs(full, images[:1]) < macs
    assert models.spec_of(few).options["kept_blocks"] == kept


def read_no_others(full: nn.Module, kept: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Set to zero all weights that read channels of layers but `kept`; the state without those weights."""
    state, layers = full.state_dict(), iter(range(99))
    there = torch.ones(len(full.conv1.weight), dtype=torch.bool)
    parts = densenet.Layer | densenet.BottleneckLayer | densenet.Transition
    for path in [*(path for path, module in full.named_modules() if isinstance(module, parts)), ""]:
        norm, mixing = (f"{path}.bn1", f"{path}.conv1") if path else ("bn", "linear")
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{name}"] = state[f"{norm}.{name}"][there]
        weight = state[f"{mixing}.weight"]
        weight[:, ~there] = 0
        state[f"{mixing}.weight"] = weight[:, there]
        if path.startswith("transition"):
            there = torch.ones(len(weight), dtype=torch.bool)
        else:
            there = torch.cat((there, torch.full((4,), next(layers) in kept)))
    return state


@pytest.mark.parametrize("kept", [(), (0, 3), (1, 2, 4, 5), tuple(range(6))], ids=str)
@pytest.mark.parametrize("name", ["densenet_10_4", "densenet_bc_16_4"])
def test_kept_layers_are_those_of_the_full_network(name: str, kept: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    full, few = models.create(name), models.create(name, kept_layers=list(kept)).eval()
    images = torch.randn(3, 3, 9, 9)
    with torch.no_grad():
        full(images)
        full.eval()
        for norm in full.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.bias)
        state = read_no_others(full, kept)
        few.load_state_dict({key: state[key] for key in few.state_dict()})
        torch.testing.assert_close(few(images), full(images))
    assert sum(len(block) for block in few.stages()) == len(kept)
    assert models.spec_of(few).options["kept_layers"] == kept


def test_layers_that_stay_keep_their_names_and_transitions_their_widths() -> None:
    full, few = (models.create("densenet_bc_16_4", kept_layers=kept) for kept in (None, (1, 2)))
    assert [[name for name, _ in block.named_children()] for block in few.stages()] == [["1"], ["0"], []]
    assert few.dense1[0].conv1.in_channels == 8
    assert few.transition1.conv1.in_channels == full.transition1.conv1.in_channels - 4
    for net in (full, few):
        assert (net.transition1.conv1.out_channels, net.transition2.conv1.out_channels) == (8, 8)
    assert few.linear.in_features == 8


@pytest.mark.parametrize("layer", [densenet.Layer, densenet.BottleneckLayer])
def test_a_dense_layer_gives_what_it_read_and_its_own(layer: type[nn.Module]) -> None:
    x = torch.randn(2, 5, 6, 6)
    out = layer(5, 3, 0.0)(x)
    assert out.shape == (2, 8, 6, 6)
    assert torch.equal(out[:, :5], x)


# --- torchvision's networks

ARCHITECTURES = (
    *("alexnet", "googlenet", "mobilenet_v2", "mobilenet_v3_small", "vgg11_bn", "densenet121", "resnext50_32x4d"),
    *("squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny"),
    *("swin_t", "swin_v2_t", "vit_b_32", "inception_v3", "wide_resnet50_2"),
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_torchvisions_networks_are_theirs_and_traced(name: str) -> None:
    model = on_meta(f"torchvision/{name}", num_classes=7)
    kwargs = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None, num_classes=7, **kwargs)
    assert [(key, tensor.shape) for key, tensor in model.state_dict().items()] == [
        (key, tensor.shape) for key, tensor in theirs.state_dict().items()
    ]
    assert type(model) is type(theirs)
    torch.fx.symbolic_trace(model)


def test_torchvision_has_every_network_that_is_listed() -> None:
    listed = options.TORCHVISION_NETWORKS + options.TORCHVISION_TRANSFORMERS
    assert len(listed) > 50
    assert {*listed} <= {*torchvision.models.list_models(module=torchvision.models)}


def test_torchvisions_networks_start_as_theirs() -> None:
    torch.manual_seed(0)
    own = models.create("torchvision/squeezenet1_1")
    torch.manual_seed(0)
    theirs = torchvision.models.squeezenet1_1(num_classes=10)
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in own.state_dict().items())


def test_images_that_are_too_small_are_refused_by_size() -> None:
    model = on_meta("torchvision/alexnet")
    assert model(torch.zeros(1, 3, 63, 63, device="meta")).shape == (1, 10)
    with pytest.raises(InputError, match="the images are 62 x 70, but torchvision/alexnet takes 63 x 63 or more"):
        model(torch.zeros(1, 3, 62, 70, device="meta"))


# --- options of the command line


def test_families_take_what_their_builders_take() -> None:
    named = [family for family in models._FAMILIES if family.takes]
    assert len(named) >= 6
    for family in named:
        assert {*family.takes} <= models.option_defaults(family.names[0]).keys()


def test_an_option_of_other_networks_is_refused_with_those_that_take_it() -> None:
    models.check_options("wrn16_2", ["dropout"])
    models.check_options("vgg11", [])
    with pytest.raises(InputError) as error:
        models.check_options("vgg19_bn", ["compression"])
    assert str(error.value) == (
        "--compression does not fit vgg19_bn: networks that take it are densenet_DEPTH_GROWTH, densenet_bc_DEPTH_GROWTH"
    )
