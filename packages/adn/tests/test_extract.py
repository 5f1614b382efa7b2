"""One configuration as a plain network: the same outputs, less of everything, no need of this package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adn.extract import extract
from adn.model import AdaptiveNet, create
from resless import costs, models, weights
from resless.errors import InputError
from resless.models.torchvision_resnet import of_layers
from torch import Tensor, nn
from torchvision.models import MobileNetV2, ResNet, SwinTransformer, VisionTransformer
from torchvision.models.resnet import Bottleneck
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

Make = Callable[[str], AdaptiveNet]
FAMILIES = ["resnet", "mobilenet", "swin", "swin_v2", "vit", "cifar"]


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def mixed(model: AdaptiveNet) -> list[tuple[bool, ...]]:
    odd = tuple(stage % 2 == 1 for stage in range(model.num_skippable_stages))
    return [model.super_skip, odd, tuple(not flag for flag in odd), model.base_skip]


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_equal_and_costs_are_those_that_ran(family: str, make: Make) -> None:
    model, x = make(family), images()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for skip in mixed(model):
        plain = extract(model, skip)
        assert not plain.training
        with torch.inference_mode():
            assert torch.allclose(plain(x), model(x, skip), rtol=0, atol=1e-5)
        assert costs.macs(plain, x) == costs.macs(model, x, skip)
        assert costs.count_parameters(plain) < costs.count_parameters(model)
        assert (costs.count_parameters(plain) < costs.count_parameters(model.net)) == any(skip)
        for parameter in plain.parameters():  # a copy
            parameter.data.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def swin(depths: list[int], **options: Any) -> nn.Module:
    return SwinTransformer([4, 4], 16, depths, [1, 2, 4, 8], [4, 4], num_classes=10, **options)


def mobilenet(blocks: list[int]) -> nn.Module:
    settings = [[1, 16, 1], [6, 24, 2], [6, 32, 2], [6, 64, 2], [6, 96, 1], [6, 160, 2], [6, 320, 1]]
    return MobileNetV2(10, 0.25, [[t, c, n, s] for (t, c, s), n in zip(settings, blocks, strict=True)])


@pytest.mark.parametrize(
    ("family", "skip", "shorter"),
    [
        ("resnet", (True, False, True, True), lambda: ResNet(Bottleneck, [2, 2, 2, 1], num_classes=10)),
        ("mobilenet", (False,) * 5, lambda: MobileNetV2(10, 0.25)),
        ("mobilenet", (True, False, True, False, True), lambda: mobilenet([1, 1, 3, 2, 3, 2, 1])),
        ("swin", (True, False, True, False), lambda: swin([1, 2, 3, 2])),
        (
            "swin_v2",
            (False, True, True, True),
            lambda: swin([2, 1, 3, 1], block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
        ),
        ("vit", (True, False), lambda: VisionTransformer(32, 8, 5, 2, 32, 64, num_classes=10)),
    ],
)
def test_torchvisions_own_class_takes_the_state_dict(
    family: str, skip: tuple[bool, ...], shorter: Callable[[], nn.Module], make: Make
) -> None:
    model, x = make(family), images()
    plain, theirs = extract(model, skip), shorter().eval()
    assert isinstance(plain, type(theirs))
    theirs.load_state_dict(plain.state_dict(), strict=True)
    with torch.inference_mode():
        assert torch.equal(theirs(x), plain(x))
        assert torch.allclose(theirs(x), model(x, skip), rtol=0, atol=1e-5)


def load_without_adn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    with monkeypatch.context() as patch:
        patch.setattr(models, "entry_points", lambda **_: ())
        return weights.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "options", "written"),
    [
        ("resnet14", {"shortcut": "subsample"}, "resnet14"),
        ("resnet50", {}, "torchvision/resnet50"),
        ("resnet50d", {}, "adn_extracted"),
        ("mobilenet_v2", {}, "adn_extracted"),
    ],
)
def test_model_folders(
    name: str, options: dict[str, Any], written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = create(name, num_classes=7, **options).train(), images(4, 64)
    with torch.no_grad():
        model(x, model.base_skip)  # the two sets of norms have other statistics now
    weights.save_pretrained(model.eval(), tmp_path / "adaptive")
    whole = (tmp_path / "adaptive" / "model.safetensors").stat().st_size
    for skip in mixed(model)[:2] if name == "resnet14" else mixed(model)[1:2]:  # writing takes long
        plain = extract(model, skip)
        weights.save_pretrained(plain, tmp_path / "plain", overwrite=True)
        assert weights.read_config(tmp_path / "plain")["model"]["name"] == written
        if written == "adn_extracted":
            loaded = weights.from_pretrained(tmp_path / "plain")
            with pytest.raises(InputError, match="if it comes with another package, install that"):
                load_without_adn(tmp_path / "plain", monkeypatch)
        else:
            loaded = load_without_adn(tmp_path / "plain", monkeypatch)
        assert loaded.spec == plain.spec
        with torch.inference_mode():
            assert torch.equal(loaded(x), plain(x))
            assert torch.allclose(loaded(x), model(x, skip), rtol=0, atol=1e-5)
        assert (tmp_path / "plain" / "model.safetensors").stat().st_size < whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip": [True]}, "but must be 5 times true or false, one for each stage of mobilenet_v2"),
        ({"skip": [True, 0, 0, 0, 0]}, "but must be 5 times true or false"),
        ({"skip": None}, "skip is None, but must be 5 times true or false"),
        ({"backbone": "adn_extracted"}, "unknown model 'adn_extracted'"),
        ({"backbone_options": 3}, "backbone_options is 3"),
    ],
    ids=str,
)
def test_hostile_configs_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with torch.device("cpu"):
        plain = extract(create("mobilenet_v2", num_classes=7), (True,) * 5)
    weights.save_pretrained(plain, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["options"] |= changes
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        weights.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("family", ["resnet", "mobilenet", "swin", "vit", "cifar"])
def test_it_can_be_exported(family: str, make: Make) -> None:
    model, x = make(family), images()
    plain = extract(model, model.base_skip)
    exported = torch.export.export(plain, (x,))
    with torch.inference_mode():
        assert torch.allclose(exported.module()(x), plain(x), rtol=0, atol=1e-5)


def test_other_networks_and_flags_are_refused(make: Make) -> None:
    with pytest.raises(InputError, match="a ResNet is no network of adaptive depth: there is nothing to extract"):
        extract(of_layers("basic", (1, 1, 1, 1), num_classes=2, in_channels=3), (True,) * 4)
    with pytest.raises(InputError, match="but must be 2 times True or False"):
        extract(make("vit"), (True,) * 4)


def test_a_network_that_was_not_made_by_name_is_extracted_but_not_saved(make: Make, tmp_path: Path) -> None:
    plain = extract(make("vit"), (True, True))
    with pytest.raises(InputError, match="has no spec to rebuild it from"):
        weights.save_pretrained(plain, tmp_path / "model")
