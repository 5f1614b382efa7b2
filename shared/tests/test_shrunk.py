"""Shrunk networks: exchanged layers, rebuilt from their description alone; and what of a description is refused."""

from __future__ import annotations

import pytest
import torch
from resless import models, weights
from resless.errors import InputError
from resless.models import shrunk
from resless.models.shrunk import Part
from torch import nn

IMAGES = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def part(in_width: int, out_width: int, inputs=None, outputs=None, bias: bool = False) -> dict:
    return {"in_width": in_width, "inputs": inputs, "out_width": out_width, "outputs": outputs, "bias": bias}


# A ResNet-8 whose first block reads channels 1 and 3 of 16, has 5 inner channels and writes channels 0 and 2.
LAYERS = {
    "layer1.0.conv1": part(16, 5, inputs=(1, 3)),
    "layer1.0.bn1": part(5, 5),
    "layer1.0.conv2": part(5, 2),
    "layer1.0.bn2": part(2, 16, outputs=(0, 2)),
}


def create(**changes) -> nn.Module:
    return models.create("shrunk", **({"base": "resnet8", "base_options": {}, "layers": LAYERS} | changes))


def test_layers_read_and_write_the_channels_that_they_are_told() -> None:
    torch.manual_seed(0)
    net = create().eval()
    block = net.layer1[0]
    x = torch.randn(2, 16, 5, 5)
    inner = torch.relu(block.bn1(block.conv1.core(x[:, [1, 3]])))
    found = block.residual(x)
    assert torch.equal(found[:, [0, 2]], block.bn2.core(block.conv2(inner)))
    assert torch.equal(found[:, [1, *range(3, 16)]], torch.zeros(2, 14, 5, 5))
    assert net(IMAGES).shape == (3, 10)


@pytest.mark.parametrize("outputs", [(0, 1, 2), (2, 3, 4), (3, 4, 5), (0, 2, 5), (1, 2, 5), None])
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3)])
def test_channels_are_put_where_they_belong(outputs, shape) -> None:
    x, width = torch.randn(shape), 3 if outputs is None else 6
    slim = shrunk.Slim(nn.Identity(), Part(3, None, width, outputs))
    expected = torch.zeros(2, width, *shape[2:])
    expected[:, list(outputs or range(3))] = x
    assert torch.equal(slim(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [6, shrunk.MAX_MULTIPLIED + 1])
def test_channels_last_stays(width: int, dtype: torch.dtype) -> None:
    slim = shrunk.Slim(nn.Identity(), Part(width, (0, 2, 5), width, (0, 2, 5)))
    x = torch.randn(2, width, 4, 4).to(dtype)
    found = slim(x.to(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, slim(x))


def test_shortcuts_of_zero_channels_become_slim_ones() -> None:
    for shortcut, pooled in (("subsample", IMAGES[:, :, ::2, ::2]), ("avgpool", None)):
        net = create(base_options={"shortcut": shortcut}, layers={"layer2.0.shortcut": part(3, 5, (0, 2), (1, 4))})
        found = net.layer2[0].shortcut(IMAGES)
        if pooled is None:
            pooled = nn.functional.avg_pool2d(IMAGES, 2, ceil_mode=True)
        assert found.shape[1] == 5
        assert torch.equal(found[:, [1, 4]], pooled[:, [0, 2]])
        assert not found[:, [0, 2, 3]].any()


def test_a_rectified_shortcut_ends_in_a_relu() -> None:
    net = create(base_options={"kept_blocks": (0, 2)}, layers={}, rectified=("layer2.0.shortcut",)).eval()
    x = torch.randn(2, 16, 4, 4)
    assert not hasattr(net.layer2[0], "residual")
    assert net.layer2[0](x).min() == 0
    assert torch.equal(net.layer2[0](x), net.layer2[0].shortcut[:2](x).relu())


def test_model_folder_rebuilds_it(tmp_path) -> None:
    net = create(base_options={"shortcut": "avgpool"}).eval()
    weights.save_pretrained(net, tmp_path / "model", example=IMAGES)
    loaded = weights.from_pretrained(tmp_path / "model")
    assert loaded.spec == net.spec
    assert type(loaded) is type(net)
    assert torch.equal(loaded(IMAGES), net(IMAGES))


def test_the_wide_network_is_never_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = models.build

    def noted(spec: models.Spec) -> nn.Module:
        net = build(spec)
        built.append((spec.name, {tensor.is_meta for tensor in net.state_dict().values()}))
        return net

    monkeypatch.setattr(models, "build", noted)
    models.create("shrunk", base="resnet8", base_options={}, layers=LAYERS)
    assert built == [("resnet8", {True}), ("shrunk", {False})]


def test_fresh_weights_are_those_of_the_family() -> None:
    torch.manual_seed(0)
    weight = create().layer3[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


def test_groups_stay_whole() -> None:
    layers = {
        "layer1.0.conv1": part(64, 8),
        "layer1.0.bn1": part(8, 8),
        "layer1.0.conv2": part(8, 8),
        "layer1.0.bn2": part(8, 8),
        "layer1.0.conv3": part(8, 256),
    }
    net = create(base="resnext11_4x4", layers=layers)
    assert (net.layer1[0].conv2.groups, tuple(net.layer1[0].conv2.weight.shape)) == (2, (8, 4, 3, 3))
    with pytest.raises(InputError, match="but must be whole groups of 4 inputs and 4 outputs"):
        create(base="resnext11_4x4", layers=layers | {"layer1.0.conv2": part(6, 6)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "shrunk"}, "base is 'shrunk'"),
        ({"base": "resnet9"}, "depth is 9"),
        ({"base_options": {"width": 3}}, "unknown option of resnet8 'width'"),
        ({"base_options": []}, "base_options is"),
        ({"layers": []}, "layers is"),
        ({"layers": {"layer9": part(1, 1)}}, "unknown layer of resnet8 'layer9'"),
        ({"layers": {"layer1.0.conv1": {"in_width": 3}}}, "an object of in_width, inputs, out_width, outputs, bias"),
        ({"layers": {"layer1.0.conv1": part(17, 5)}}, r"in_width is 17, but must be a whole number in 1\.\.16"),
        ({"layers": {"layer1.0.conv1": part(16, 0)}}, "out_width is 0"),
        ({"layers": {"layer1.0.conv1": part(16, 5, inputs=(3, 1))}}, "greater than the index before it, 3"),
        ({"layers": {"layer1.0.conv1": part(4, 5, inputs=(1, 4))}}, r"inputs\[1\] is 4"),
        ({"layers": {"layer1.0.conv1": part(16, 5, outputs=())}}, "outputs must be a non-empty list"),
        ({"layers": {"layer1.0.conv1": part(16, 5, bias=1)}}, "bias is 1, but must be true or false"),
        ({"layers": {"layer1.0.bn1": part(16, 5)}}, "as many outputs as inputs"),
        ({"rectified": "layer1"}, "rectified is 'layer1'"),
        ({"rectified": ("layer2.0.conv1",)}, "unknown shortcut of resnet8"),
        ({"rectified": ([],)}, r"unknown shortcut of resnet8 '\[\]'"),
        ({"base": "torchvision/convnext_tiny", "layers": {}}, "cannot be shrunk: .* is of no convolution"),
    ],
)
def test_bad_descriptions_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create(**changes)
