"""The networks: what skips, at what cost, and that nothing else changes."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adn import backbones
from adn.convert import mandatory
from adn.extract import extract
from adn.model import AdaptiveNet, compiled, create, load_plain
from resless import costs, models, weights
from resless.errors import InputError
from resless.models.resnet import ResNet
from resless.modes import in_eval_mode
from resless.testing import assert_every_parameter_gets_gradient, shared_data
from torch import Tensor, nn
from torchvision.models import get_model

Make = Callable[[str], AdaptiveNet]
Randomised = Callable[..., nn.Module]
FAMILIES = ["resnet", "mobilenet", "swin", "swin_v2", "vit", "cifar"]
CLASSES = 10


def images(count: int = 2, size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(7))


# --- what skips


@pytest.mark.parametrize(
    ("name", "stages", "parameters", "super_macs", "base_macs"),
    [
        ("resnet50", 4, 25_583_144, 4_089_184_256, 2_560_622_592),
        ("resnet101", 4, 44_602_920, 7_801_405_440, 4_525_916_160),
        ("mobilenet_v2", 5, 3_527_544, 300_774_272, 205_254_848),
        ("swin_t", 4, 28_302_562, 4_490_566_656, 2_339_596_800),
        ("vit_b_16", 4, 86_592_232, 17_563_828_224, 11_748_009_984),
    ],
)
def test_the_papers_models_have_its_parameters_and_costs(
    name: str, stages: int, parameters: int, super_macs: int, base_macs: int
) -> None:
    with torch.device("meta"):
        model, x = create(name), torch.empty(1, 3, 224, 224)
    assert model.num_skippable_stages == stages
    assert costs.count_parameters(model) == parameters
    assert costs.macs(model, x) == super_macs
    assert costs.macs(model, x, model.super_skip) == super_macs
    assert costs.macs(model, x, model.base_skip) == base_macs


@pytest.mark.parametrize(
    ("name", "skipped"),
    [
        ("resnet50", "layer1.2; layer2.2 to layer2.3; layer3.3 to layer3.5; layer4.2"),
        ("resnet101", "layer1.2; layer2.2 to layer2.3; layer3.12 to layer3.22; layer4.2"),
        ("resnet101d", "layer1.2; layer2.2 to layer2.3; layer3.12 to layer3.22; layer4.2"),
        (
            "mobilenet_v2",
            "features.3; features.6; features.9 to features.10; features.13; features.16",
        ),
        ("swin_t", "features.1.1; features.3.1; features.5.3 to features.5.5; features.7.1"),
        ("swin_v2_t", "features.1.1; features.3.1; features.5.3 to features.5.5; features.7.1"),
        ("vit_b_32", "; ".join(f"encoder.layers.encoder_layer_{layer}" for layer in (2, 5, 8, 11))),
        ("resnet20", "layer1.2; layer2.2; layer3.2"),
        ("resnet56", "layer1.5 to layer1.8; layer2.5 to layer2.8; layer3.5 to layer3.8"),
    ],
)
def test_the_last_blocks_of_each_stage_are_skipped(name: str, skipped: str) -> None:
    with torch.device("meta"):
        model = create(name)
    with pytest.raises(InputError, match=r"^skip is \(\), but must be \d times True or False") as refusal:
        model.check_skip(())
    assert str(refusal.value).endswith(f"they skip {skipped}")


@pytest.mark.parametrize(("blocks", "kept"), [(2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (23, 12)])
def test_a_stage_keeps_its_first_half_but_never_all(blocks: int, kept: int) -> None:
    assert mandatory(blocks) == kept


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_variant_d_has_a_deep_stem_and_averages_in_its_shortcuts(name: str) -> None:
    with torch.device("meta"):
        plain, model, x = create(name), create(f"{name}d"), torch.empty(1, 3, 224, 224)
    # Stem: 3x3 convolutions 3 -> 32 -> 32 -> 64 for one of 7x7, and two more norms, all at 112 x 112.
    stem, before = 9 * (3 * 32 + 32 * 32 + 32 * 64), 49 * 3 * 64
    assert costs.count_parameters(model) - costs.count_parameters(plain) == stem + 4 * 32 - before
    assert costs.macs(model, x) - costs.macs(plain, x) == 112 * 112 * (stem - before)
    names = dict(model.net.named_modules())
    assert isinstance(names["layer1.0.downsample.0"], nn.Identity)
    assert isinstance(names["layer2.0.downsample.0"], nn.AvgPool2d)
    assert names["layer2.0.downsample.1"].stride == (1, 1)


def test_variant_d_runs_on_odd_sizes() -> None:
    torch.manual_seed(0)
    model = create("resnet50d", num_classes=CLASSES).eval()
    with torch.inference_mode():
        assert model(images(1, 75), (True, False, True, False)).shape == (1, CLASSES)


# --- nothing skipped is the plain network


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "swin_t", "swin_v2", "vit"])
def test_with_nothing_skipped_it_is_torchvisions_network(
    name: str, plain: dict[str, Callable[[], nn.Module]], randomised: Randomised, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    small = name in plain  # the others take long to make
    theirs = randomised(plain[name]() if small else get_model(name, weights=None, num_classes=CLASSES)).eval()
    torch.save({"model": theirs.state_dict()}, tmp_path / "theirs.pth")
    ours = (AdaptiveNet(plain[name]()) if small else create(name, num_classes=CLASSES)).eval()
    load_plain(ours, tmp_path / "theirs.pth")
    x = images(2, 32)
    with torch.inference_mode():
        expected = theirs(x)
        assert expected.std() > 0.01
        assert torch.equal(ours(x), expected)
        assert torch.equal(ours(x, list(ours.super_skip)), expected)
        assert not torch.allclose(ours(x, ours.base_skip), expected)
    back = extract(ours, ours.super_skip).state_dict()
    theirs.load_state_dict(back)
    assert len(back) == len(theirs.state_dict())
    # The second norms start as the first.
    second = {key: tensor for key, tensor in ours.state_dict().items() if key.startswith("skip_norms.")}
    assert len(second) > 4
    assert all(torch.equal(tensor, back[key.removeprefix("skip_norms.")]) for key, tensor in second.items())


def test_with_nothing_skipped_it_is_resless_network(randomised: Randomised, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = randomised(models.create("resnet20", in_channels=1, shortcut="subsample")).eval()
    weights.save_pretrained(plain, tmp_path / "plain")
    model = create("resnet20", num_classes=10, in_channels=1, shortcut="subsample").eval()
    load_plain(model, tmp_path / "plain")
    x = images(2, 32, channels=1)
    with torch.inference_mode():
        assert torch.equal(model(x), plain(x))


def test_real_weights_of_a_cifar_resnet_are_imported() -> None:
    model = create("resnet20", num_classes=10, shortcut="subsample")
    file = next(shared_data("weights").glob("resnet20-*.th"))
    plain = models.create("resnet20", shortcut="subsample")
    load_plain(model, file)
    weights.load(plain, file)
    x = images(4)
    with torch.inference_mode():
        assert torch.equal(model.eval()(x), plain.eval()(x))


# --- paths


@pytest.mark.parametrize("family", FAMILIES)
def test_all_configurations_differ_and_leave_no_trace(family: str, make: Make) -> None:
    model, x = make(family), images()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert len(model.configurations()) == 2**model.num_skippable_stages
    with torch.inference_mode():
        first = [model(x, skip) for skip in model.configurations()]
        again = [model(x, skip) for skip in reversed(model.configurations())]
    for one, other in zip(first, reversed(again), strict=True):
        assert torch.equal(one, other), "switching back gives what it gave"
    for one, other in itertools.combinations(first, 2):
        assert not torch.allclose(one, other, atol=1e-4), "two configurations do the same"
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_each_path_trains_its_own_norms_and_shares_the_rest(family: str, make: Make) -> None:
    model = make(family)
    skip = tuple(stage % 2 == 1 for stage in range(model.num_skippable_stages))
    model(images(), skip).square().sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    expected = {name for name, _ in model.net.named_parameters(prefix="net")}
    for unit in model.units:
        if skip[unit.stage] and unit.skippable:
            expected -= {name for name in expected if name.startswith(f"net.{unit.path}.")}
        elif skip[unit.stage]:
            second = [f"{unit.path}.{name}" for name, _ in model.skip_norms.get_submodule(unit.path).named_parameters()]
            assert second
            expected -= {f"net.{name}" for name in second}
            expected |= {f"skip_norms.{name}" for name in second}
    assert trained == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_super_net_and_base_net_together_train_every_parameter(family: str, make: Make) -> None:
    model, x = make(family), images()
    assert_every_parameter_gets_gradient(model, (model(x).square() + model(x, model.base_skip).square()).sum())


def test_second_norms_hold_the_statistics_of_the_skipping_path(make: Make) -> None:
    model = make("resnet").train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items() if key.endswith("running_mean")}
    model(images(4), (True, False, False, True))
    moved = {key for key, mean in before.items() if not torch.equal(mean, model.state_dict()[key])}
    assert {"skip_norms.layer1.0.bn1.running_mean", "skip_norms.layer4.0.bn3.running_mean"} <= moved
    assert {"net.bn1.running_mean", "net.layer1.0.downsample.1.running_mean", "net.layer2.1.bn1.running_mean"} <= moved
    assert not moved & {"net.layer1.0.bn1.running_mean", "net.layer1.2.bn1.running_mean"}
    assert not any(key.startswith(("skip_norms.layer2", "skip_norms.layer3")) for key in moved)


def test_each_layer_is_there_once(make: Make) -> None:
    model = make("resnet")
    plain, second = model.net.state_dict(), model.skip_norms.state_dict()
    assert len(model.state_dict()) == len(plain) + len(second)
    assert all(plain[key].shape == tensor.shape and ".bn" in key for key, tensor in second.items())
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert all(name.startswith("net.") for name in convolutions)


@pytest.mark.parametrize("copied", ["deepcopy", "pickle"])
def test_a_copy_is_another_network(copied: str, make: Make) -> None:
    model, x = make("cifar"), images()
    other = copy.deepcopy(model) if copied == "deepcopy" else pickle.loads(pickle.dumps(model))
    with torch.inference_mode():
        for skip in model.configurations():
            assert torch.equal(model(x, skip), other(x, skip))
        expected = model(x, model.base_skip)
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(model(x, model.base_skip), expected)
        assert all(other(x, skip).abs().max() == 0 for skip in model.configurations())


def test_a_replaced_layer_serves_all_paths_once_they_are_linked_again(make: Make) -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(make("resnet"))
    model.relink()
    for skip in model.configurations():
        norms = [module for module in model.path(skip).modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        assert len(norms) >= 19
        assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


class WithDropout(ResNet):
    """A network of one's own that asks for its own mode."""

    def head(self, x: Tensor) -> Tensor:
        return F.dropout(super().head(x), 0.5, self.training)


def test_all_paths_of_an_own_network_are_in_its_mode() -> None:
    def dropped() -> list[bool]:
        return [not torch.equal(model(x, skip), model(x, skip)) for skip in model.configurations()]

    plain = models.create("resnet14", in_channels=1)
    plain.__class__ = WithDropout
    model, x = AdaptiveNet(plain.eval()), images(channels=1)
    assert dropped() == [False] * 8
    assert model.train() is model
    for module in model.modules():
        module.training = not isinstance(module, nn.BatchNorm2d)  # which use their statistics
    assert dropped() == [True] * 8
    with in_eval_mode(model):
        assert dropped() == [False] * 8
    assert dropped() == [True] * 8


def test_features_of_the_stages_are_those_that_the_logits_come_from(make: Make) -> None:
    model, x = make("resnet"), images(2, 64)
    with torch.inference_mode():
        for skip in (model.super_skip, (True, False, True, False)):
            features, logits = model.features(x, skip)
            assert [tuple(feature.shape) for feature in features] == [(2, 256, 16, 16), (2, 512, 8, 8), (2, 1024, 4, 4)]
            assert torch.equal(logits, model(x, skip))
            assert torch.equal(model.path(skip).head(model.path(skip).layer4(features[-1])), logits)
    assert len(make("cifar").features(images())[0]) == 2
    with pytest.raises(
        InputError, match=r"distilled in ResNets with stem, stages and head, .* not in this VisionTransformer"
    ):
        make("vit").features(images())


# --- precision, layout, compilation


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_and_channels_last(family: str, make: Make) -> None:
    model, x = make(family), images()
    skip = tuple(stage % 2 == 0 for stage in range(model.num_skippable_stages))
    with torch.inference_mode():
        expected = model(x, skip)
        model = model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        assert torch.allclose(model(x, skip), expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(x, skip)
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - expected).norm() / expected.norm()
    assert 0 < error < 0.1


def test_each_configuration_is_compiled_once(make: Make) -> None:
    model, x, graphs = make("cifar"), images(), []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    chosen = [model.super_skip, model.base_skip, (True, False, False)]
    torch._dynamo.reset()
    with torch._dynamo.config.patch(cache_size_limit=2), torch.inference_mode():
        fast = compiled(model, backend=count, fullgraph=True)
        for _ in range(2):
            for skip in chosen:
                assert torch.equal(fast(x, skip), model(x, skip))
        assert len(graphs) == len(chosen), "one graph a configuration, none twice"
    torch._dynamo.reset()


# --- model folders


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet14", {"in_channels": 1, "shortcut": "avgpool"}), ("mobilenet_v2", {}), ("resnet50d", {})],
)
def test_a_model_folder_rebuilds_the_network(
    name: str, options: dict[str, Any], randomised: Randomised, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = randomised(create(name, num_classes=7, **options)).eval()
    weights.save_pretrained(model, tmp_path / "model")
    loaded = weights.from_pretrained(tmp_path / "model")
    assert isinstance(loaded, AdaptiveNet)
    assert loaded.spec == model.spec
    x = images(1, 32, channels=options.get("in_channels", 3))
    skip = tuple(stage % 2 == 0 for stage in range(model.num_skippable_stages))
    with torch.inference_mode():
        assert torch.equal(loaded(x, skip), model(x, skip))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "adn"}, "unknown model 'adn'"),
        ({"backbone": "lenet5"}, "unknown model 'lenet5'"),
        ({"backbone": "preresnet20"}, "unknown model 'preresnet20': did you mean"),
        ({"backbone": 3}, "the model is 3, but must be one of"),
        ({"backbone": "resnet8"}, "stage 0 of the ResNet has one block, but must have 2 or more"),
        ({"backbone": "resnet100000"}, "depth is 100000|unknown model"),
        ({"backbone_options": ["conv"]}, "backbone_options is \\('conv',\\)|backbone_options is \\['conv'\\]"),
        ({"backbone_options": {"kept_blocks": [0]}}, "unknown option of resnet14 'kept_blocks'"),
        ({"backbone_options": {"weights": "DEFAULT"}}, "unknown option of resnet14 'weights'"),
        ({"backbone_options": {"shortcut": "none"}}, "unknown shortcut 'none'"),
        ({"backbone": "swin_t", "backbone_options": {"weights": "DEFAULT"}}, "swin_t has no option 'weights'"),
        ({"backbone": "vit_b_16", "backbone_options": {"image_size": 10**9}}, "image_size is 1000000000"),
    ],
    ids=str,
)
def test_hostile_configs_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    weights.save_pretrained(create("resnet14", num_classes=10), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["options"] |= changes
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        weights.from_pretrained(tmp_path / "model")


# --- bad input


@pytest.mark.parametrize(
    ("skip", "said"),
    [
        ((True,), "(True,)"),
        ((True, False, 1), "(True, False, 1)"),
        ("TTF", "'TTF'"),
        ([None] * 3, "[None, None, None]"),
    ],
)
def test_flags_that_cannot_be(skip: Any, said: str, make: Make) -> None:
    with pytest.raises(InputError) as refusal:
        make("cifar")(images(), skip)
    assert str(refusal.value) == (
        f"skip is {said}, but must be 3 times True or False, one for each stage; they skip layer1.1; layer2.1; layer3.1"
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet5", {}, "depth is 5, but must be"),
        ("resnet_50", {}, "unknown model 'resnet_50': did you mean resnet50"),
        ("swin_s", {}, "unknown model 'swin_s': did you mean swin_t"),
        ("resnet8", {}, "^stage 0 of the ResNet has one block, but must have 2 or more for one to be skipped$"),
        ("resnet50", {"num_classes": 0}, "num_classes is 0, but must be a whole number"),
        ("swin_t", {"num_classes": 2.5}, "num_classes is 2.5"),
        ("mobilenet_v2", {"in_channels": 1}, "in_channels is 1, but must be 3 for mobilenet_v2"),
        ("vit_b_16", {"image_size": 100}, "image_size is 100, but must be a multiple of 16"),
        ("vit_b_32", {"image_sise": 64}, "unknown option of vit_b_32 'image_sise': did you mean image_size"),
        ("swin_t", {"image_size": 64}, "swin_t has no option 'image_size'"),
        ("resnet20", {"kept_blocks": (0,)}, "unknown option of resnet20 'kept_blocks'"),
    ],
)
def test_networks_that_cannot_be(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create(name, **options)


def test_every_name_that_is_listed_can_be_created() -> None:
    names = backbones.names()
    assert {"resnet50", "resnet101d", "mobilenet_v2", "swin_v2_t", "vit_b_32", "resnet20"} <= set(names)
    cifar = [name for name in names if name not in (*backbones.IMAGENET_RESNETS, *backbones.OTHERS)]
    assert "resnet8" in cifar, "it has one block a stage"
    for name in {*names} - {*cifar} | {"resnet14", "resnet20", "resnet164"}:
        with torch.device("meta"):
            assert create(name).num_skippable_stages == {"mobilenet_v2": 5}.get(name, 3 if name in cifar else 4)


def test_sizes_that_a_transformer_cannot_take(make: Make) -> None:
    with pytest.raises(InputError, match=r"^the size of the images is 48 x 48, but must be 32 x 32 for this vision"):
        make("vit")(images(1, 48))
    with pytest.raises(InputError, match=r"^the size of the images is 3 x 3, but must be at least 4 x 4"):
        make("swin")(images(1, 3))
    with torch.inference_mode():
        assert make("swin")(images(1, 37), (True, False, True, False)).shape == (1, CLASSES)


def test_a_network_of_another_family_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^a Linear has no rule for what can be skipped: the families are MobileNetV2,"
    ):
        AdaptiveNet(nn.Linear(2, 2))


def test_plain_weights_of_another_network_are_refused(make: Make, tmp_path: Path) -> None:
    model = make("cifar")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    torch.save(models.create("resnet14", num_classes=3).state_dict(), tmp_path / "classes.pth")
    torch.save(models.create("resnet20").state_dict(), tmp_path / "deeper.pth")
    with pytest.raises(InputError, match=r"linear.bias \[3\] float32 where the network has \[10\]"):
        load_plain(model, tmp_path / "classes.pth")
    with pytest.raises(InputError, match="unknown to the network"):
        load_plain(model, tmp_path / "deeper.pth")
    with pytest.raises(InputError, match="a ResNet is no network of adaptive depth"):
        load_plain(models.create("resnet14"), tmp_path / "classes.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
