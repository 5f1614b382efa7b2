"""The networks: what they are made of, single policies as plain networks, and model folders."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blockdrop.config import MODELS
from blockdrop.execute import EXECUTORS
from blockdrop.model import BlockDropNet, PolicyNetwork, SkippingResNet, load_original
from resless import costs, models, weights
from resless.config import EvalConfig, SourceConfig
from resless.errors import InputError
from resless.evaluate import main as evaluate
from resless.folding import fold
from resless.models.torchvision_resnet import of_layers
from resless.testing import assert_every_parameter_gets_gradient
from torch import Tensor, nn
from torch.nn import functional as F


def trained(name: str = "resnet14", *, seed: int = 0, **options: Any) -> BlockDropNet:
    """In eval mode, with running statistics that have moved; its policies differ from image to image."""
    torch.manual_seed(seed)
    net = BlockDropNet(name, **options)
    x = images(32, channels=net.spec.in_channels)
    with torch.no_grad():
        net.resnet.net(x)
        net.policy(x)
        net.policy.eval()
        probabilities = net.policy(x)
        net.policy.logit.bias -= torch.logit(probabilities).median(dim=0).values
    return net.eval()


def images(count: int, size: int = 16, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(2))


def assert_equal_states(net: nn.Module, other: nn.Module) -> None:
    own, others = net.state_dict(), other.state_dict()
    assert own.keys() == others.keys()
    assert len(own) > 0
    assert all(torch.equal(own[name], others[name]) for name in own)


# --- the paper's models


@pytest.mark.parametrize(
    ("name", "blocks", "classes", "policy"),
    [
        ("R32_C10", 15, 10, "resnet8"),
        ("R110_C10", 54, 10, "resnet8"),
        ("R32_C100", 15, 100, "resnet8"),
        ("R110_C100", 54, 100, "resnet8"),
        ("R101_ImgNet", 33, 1000, "resnet10"),
    ],
)
def test_the_papers_models(name: str, blocks: int, classes: int, policy: str) -> None:
    assert len(MODELS) == 5
    with torch.device("meta"):
        net = BlockDropNet(name)
    assert (net.num_blocks, net.spec.num_classes, net.spec.options["policy"]) == (blocks, classes, policy)
    assert net.policy.logit.out_features == blocks
    assert net.policy.pool == (2 if name == "R101_ImgNet" else 1)
    if name != "R101_ImgNet":
        assert net.spec.options["backbone_options"]["shortcut"] == "avgpool"


def test_options_take_the_place_of_a_models_own() -> None:
    with torch.device("meta"):
        net = BlockDropNet("R32_C10", num_classes=7, in_channels=1, shortcut="conv", policy_pool=2)
    assert (net.spec.num_classes, net.spec.in_channels, net.policy.pool) == (7, 1, 2)
    assert net.resnet.net.spec.options["shortcut"] == "conv"
    assert net.policy.features.conv1.in_channels == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "resnet33"}, "depth is 33, but must be"),
        ({"name": "R32"}, "unknown model 'R32'"),
        ({"name": "lenet5"}, "^the backbone is lenet5, but must be a CIFAR ResNet or one of torchvision's, such as "),
        ({"name": "wrn10_1"}, "^the backbone is wrn10_1, but must be a CIFAR ResNet"),
        ({"name": "resnext11_2x2"}, "^the backbone is resnext11_2x2, but must be a CIFAR ResNet"),
        ({"name": "resnet8", "kept_blocks": ()}, "the number of residual blocks is 0, but must be 1 or more"),
        ({"name": "resnet8", "shortcuts": "conv"}, "unknown option of resnet8 'shortcuts'"),
        ({"name": "resnet8", "policy": "resnet9"}, "unknown policy network 'resnet9': did you mean resnet8"),
        ({"name": "resnet8", "num_classes": 0}, "num_classes is 0"),
        ({"name": "resnet8", "in_channels": 0}, "in_channels is 0"),
        ({"name": "resnet8", "policy": "resnet10", "in_channels": 1}, "in_channels is 1, but must be 3"),
    ],
)
def test_networks_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BlockDropNet(**given)


def test_a_network_that_came_from_elsewhere_is_refused() -> None:
    with pytest.raises(InputError, match="a Linear has no spec"):
        SkippingResNet(nn.Linear(2, 2))


# --- the policy network


def test_a_policy_network_gives_a_probability_for_each_block() -> None:
    torch.manual_seed(0)
    net = PolicyNetwork("resnet8", 15, in_channels=1).eval()
    found = net(images(4, 8, channels=1))
    assert found.shape == (4, 15)
    assert found.dtype == torch.float32
    assert 0 < found.min() < found.max() < 1
    x = F.relu(net.features.bn1(net.features.conv1(images(4, 8, channels=1))))
    for stage in (net.features.layer1, net.features.layer2, net.features.layer3):
        assert len(stage) == 1
        x = stage[0](x)
    expected = torch.sigmoid(x.mean((2, 3)) @ net.logit.weight.T + net.logit.bias)
    torch.testing.assert_close(found, expected)
    assert "features.linear.weight" not in net.state_dict()


def test_the_imagenet_policy_network_has_one_basic_block_a_stage() -> None:
    with torch.device("meta"):
        net = PolicyNetwork("resnet10", 33, in_channels=3, pool=2)
        resnet18 = of_layers("basic", (2, 2, 2, 2), num_classes=1000, in_channels=3)
    expected = {
        name: value.shape
        for name, value in resnet18.state_dict().items()
        if not name.startswith("fc.") and ".1." not in name.removeprefix("layer").replace("downsample.1", "")
    }
    assert {name: value.shape for name, value in net.features.state_dict().items()} == expected
    assert net.logit.weight.shape == (33, 512)


@pytest.mark.parametrize("size", [8, 9])
def test_pooling_averages_squares_of_pixels(size: int) -> None:
    torch.manual_seed(0)
    pooled = PolicyNetwork("resnet8", 3, in_channels=3, pool=2).eval()
    plain = PolicyNetwork("resnet8", 3, in_channels=3).eval()
    plain.load_state_dict(pooled.state_dict())
    x = images(2, size)
    side = (size + 1) // 2
    small = torch.stack(
        [
            torch.stack([x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3)) for j in range(side)], dim=-1)
            for i in range(side)
        ],
        dim=-2,
    )
    torch.testing.assert_close(pooled(x), plain(small))


def test_probabilities_stay_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    net = PolicyNetwork("resnet8", 3, in_channels=3).eval()
    with torch.no_grad():
        net.logit.bias.fill_(7.0)  # 0.999: bf16 would round this to 1
        net.logit.weight.zero_()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = net(images(2))
    assert found.dtype == torch.float32
    assert found.max().item() == pytest.approx(1 / (1 + np.exp(-7.0)), abs=1e-6)


@pytest.mark.parametrize("kind", ["resnet8", "resnet10"])
def test_every_parameter_of_a_policy_network_gets_a_gradient(kind: str) -> None:
    torch.manual_seed(0)
    net = PolicyNetwork(kind, 5, in_channels=3)
    assert_every_parameter_gets_gradient(net, net(images(4, 32)).log().mean())


# --- both together


def test_each_image_runs_the_blocks_of_probability_one_half_or_more() -> None:
    net, x = trained(), images(12)
    with torch.no_grad():
        policy = net.decide(x)
        assert policy.dtype == torch.bool
        assert torch.equal(policy, net.policy(x) >= 0.5)
        assert len(policy.unique(dim=0)) > 1
        assert torch.equal(net(x), net.resnet(x, policy))
        assert (net(x) - net.resnet(x, policy, "masked")).abs().max() < 1e-5


def test_a_copy_is_a_network_of_its_own() -> None:
    net, x = trained(), images(3)
    other = copy.deepcopy(net)
    with torch.no_grad():
        expected = net(x)
        for parameter in net.resnet.parameters():
            parameter.zero_()
        assert torch.equal(other(x), expected)
        assert not torch.equal(net(x), expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet14", {"shortcut": "avgpool", "policy_pool": 2}), ("torchvision/resnet18", {"policy": "resnet10"})],
)
def test_batch_norms_of_both_networks_can_be_folded(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    net, x = trained(name, **options), images(12)
    small = fold(net, x)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in small.modules())
    weights.save_pretrained(small, tmp_path / "fast")
    loaded = weights.from_pretrained(tmp_path / "fast")
    with torch.no_grad():
        torch.testing.assert_close(loaded.policy(x), net.policy(x), rtol=0, atol=1e-5)
        for policy in (net.decide(x), torch.rand(12, net.num_blocks) < 0.5):
            for executor in EXECUTORS:
                found, expected = loaded.resnet(x, policy, executor), net.resnet(x, policy, executor)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="it cannot be specialised; give the one from before"):
        loaded.specialised([True] * net.num_blocks)


# --- the network of one policy


@pytest.mark.parametrize(
    "options",
    [
        {"shortcut": "conv"},
        {"shortcut": "avgpool"},
        {"shortcut": "subsample", "kept_blocks": (1, 2, 5)},
        {"shortcut": "conv", "kept_blocks": (0, 3, 4)},
    ],
    ids=str,
)
def test_a_specialised_network_equals_the_skipping_one_under_its_policy(options: dict[str, Any]) -> None:
    net, x = trained("resnet14", **options), images(5)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    blocks = net.num_blocks
    policies = [np.arange(blocks) % 2 == 0, np.arange(blocks) == 1, np.zeros(blocks, dtype=bool), [1] * blocks]
    for kept in policies:
        plain = net.specialised(kept)
        assert not plain.training
        with torch.no_grad():
            assert torch.equal(plain(x), net.resnet(x, torch.tensor(np.array([kept] * 5)), "auto"))
        assert sum(hasattr(block, "residual") for block in plain.blocks()) == sum(kept)
        assert costs.count_parameters(plain) <= costs.count_parameters(net.resnet)
    assert net.specialised([1] * blocks).spec.options["kept_blocks"] == options.get("kept_blocks", tuple(range(6)))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items()), "not a copy"


def test_an_imagenet_network_can_be_specialised() -> None:
    net = trained("torchvision/resnet18", policy="resnet10")
    kept = [False, True, False, True, True, False, False, False]
    plain = net.specialised(kept)
    with torch.no_grad():
        assert torch.equal(plain(images(2, 32)), net.resnet(images(2, 32), torch.tensor([kept] * 2)))
    assert list(plain.layer4.state_dict()) == [
        f"0.downsample.{name}"
        for name in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")
    ]


def test_a_policy_of_another_length_cannot_be_specialised_to() -> None:
    with pytest.raises(InputError, match="the length of the policy is 5, but must be 6, one a block"):
        trained().specialised([True] * 5)


# --- model folders


def test_model_folders_load_in_a_fresh_process(tmp_path: Path) -> None:
    """The whole network, by its entry point, and a specialised one, for which BlockDrop is not needed."""
    net, x = trained(policy_pool=2), images(3)
    kept = [True, False, False, True, False, True]
    weights.save_pretrained(net, tmp_path / "net", example=x)
    weights.save_pretrained(net.specialised(kept), tmp_path / "plain", example=x)
    torch.save(x, tmp_path / "images.pt")
    code = (
        "import sys, torch; from resless.weights import from_pretrained\n"
        "x = torch.load('images.pt', weights_only=True)\n"
        "with torch.no_grad(): plain = from_pretrained('plain')(x)\n"
        "assert 'blockdrop' not in sys.modules\n"
        "with torch.no_grad(): net = from_pretrained('net')(x)\n"
        "torch.save([plain, net], 'logits.pt')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    plain, whole = torch.load(tmp_path / "logits.pt", weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(plain, net.resnet(x, torch.tensor([kept] * 3)), rtol=0, atol=1e-6)
        torch.testing.assert_close(whole, net(x), rtol=0, atol=1e-6)
    cost = weights.read_config(tmp_path / "plain")["costs"]
    assert cost["macs_per_image"] == costs.macs(net.resnet, x[:1], torch.tensor([kept]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet8", {"in_channels": 1, "num_classes": 7, "shortcut": "subsample"}),
        ("resnet14", {"kept_blocks": (1, 4, 5), "policy_pool": 4}),
        ("torchvision/resnet18", {"policy": "resnet10", "policy_pool": 2}),
    ],
)
def test_round_trip_is_exact(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    net = trained(name, **options)
    weights.save_pretrained(net, tmp_path / "model")
    loaded = weights.from_pretrained(tmp_path / "model")
    assert isinstance(loaded, BlockDropNet)
    assert loaded.spec == net.spec
    assert not loaded.training
    assert_equal_states(loaded, net)
    x = images(2, channels=net.spec.in_channels)
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))


def test_a_network_of_the_papers_is_saved_under_its_plain_name(tmp_path: Path) -> None:
    net = BlockDropNet("R32_C10")
    weights.save_pretrained(net, tmp_path / "model")
    assert weights.read_config(tmp_path / "model")["model"] == {
        "name": "blockdrop",
        "num_classes": 10,
        "in_channels": 3,
        "options": {
            "backbone": "resnet32",
            "backbone_options": {"shortcut": "avgpool", "block": None, "kept_blocks": None},
            "policy": "resnet8",
            "policy_pool": 1,
        },
    }
    assert weights.from_pretrained(tmp_path / "model").spec == net.spec


def test_the_shared_evaluation_takes_a_model_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = trained("resnet8", in_channels=1)
    weights.save_pretrained(net, tmp_path / "model", preprocessing={"mean": [0.5], "std": [0.25]})
    output = tmp_path / "result.json"
    found = evaluate(EvalConfig(str(tmp_path / "model"), output=str(output), data=SourceConfig(dataset="digits")))
    assert found.images == 360
    assert json.loads(output.read_text())["parameters"] == costs.count_parameters(net)
    assert "360" in capsys.readouterr().out


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A function that applies `change` to the options in the config.json of a folder."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config["model"]["options"])
        (folder / "config.json").write_text(json.dumps(config))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda o: o.clear(), "blockdrop cannot be built without the option backbone"),
        (lambda o: o.pop("backbone_options"), "blockdrop cannot be built without the option backbone_options"),
        (lambda o: o.update(backbone="lenet5", backbone_options={}), "the backbone is lenet5, but must be"),
        (lambda o: o.update(backbone="resnet9"), "depth is 9, but must be"),
        (lambda o: o.update(backbone="blockdrop"), "backbone is 'blockdrop', but must be a plain residual network"),
        (lambda o: o.update(backbone="R32_C10"), "backbone is 'R32_C10', but must be a plain residual network"),
        (lambda o: o.update(backbone=3), "backbone is 3, but must be the name of a residual network"),
        (lambda o: o.update(backbone_options=[]), r"backbone_options is \[\], but must be options by name"),
        (lambda o: o["backbone_options"].update(shortcut="x"), "unknown shortcut 'x'"),
        (lambda o: o["backbone_options"].update(kept_blocks=[3]), r"kept_blocks\[0\] is 3"),
        (lambda o: o["backbone_options"].update(kept_blocks=3), "kept_blocks must be"),
        (lambda o: o["backbone_options"].update(name="x"), "unknown option of resnet8 'name'"),
        (lambda o: o["backbone_options"].update(num_classes=3), "unknown option of resnet8 'num_classes'"),
        (lambda o: o["backbone_options"].update(policy="resnet10"), "unknown option of resnet8 'policy'"),
        (lambda o: o.update(policy="resnet9"), "unknown policy 'resnet9'"),
        (lambda o: o.update(policy=None), "policy is None, but must be one of resnet8, resnet10"),
        (lambda o: o.update(policy_pool=0), "policy_pool is 0, but must be a whole number in 1..64"),
        (lambda o: o.update(policy_pool=65), "policy_pool is 65"),
        (lambda o: o.update(backbone="resnet14"), "safetensors does not match the network: it lacks"),
        (lambda o: o.update(hook="x"), "unknown option of blockdrop 'hook'"),
    ],
)
def test_damaged_folder_is_refused(damage: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    weights.save_pretrained(BlockDropNet("resnet8"), tmp_path / "model")
    edited(damage)(tmp_path / "model")
    with pytest.raises(InputError, match=message) as error:
        weights.from_pretrained(tmp_path / "model")
    assert str(tmp_path / "model") in str(error.value)


def test_a_network_can_be_made_by_its_entry_point() -> None:
    with torch.device("meta"):
        net = models.create("blockdrop", num_classes=3, backbone="resnet8", backbone_options={"shortcut": "conv"})
    assert isinstance(net, BlockDropNet)
    assert net.num_blocks == 3
    assert "blockdrop" not in models.names()  # these are what a BlockDrop network can be made of


# --- the authors' checkpoints


def test_authors_checkpoints_without_both_parts_or_of_another_model_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.t7"
    state = models.create("resnet8").state_dict()
    for content, message in [
        ({"resnet": state}, "a.t7 holds resnet, but a checkpoint with the parts resnet and agent is needed"),
        ({"agent": state, "epoch": 1}, "a.t7 holds agent, epoch, but"),
        ({}, "a.t7 holds dict, but"),
        ([1, 2], "a.t7 holds list, but"),
        ({"resnet": state, "agent": torch.zeros(1)}, "a.t7, agent holds a Tensor, but a dict of tensors is needed"),
        ({"resnet": state, "agent": state}, "a.t7, agent does not match the network: it lacks features.bn1.bias"),
    ]:
        torch.save(content, file)
        with pytest.raises(InputError, match=message):
            load_original("R32_C10", file)
    with pytest.raises(InputError, match="unknown model 'R32': did you mean R32_C10"):
        load_original("R32", file)
    with pytest.raises(InputError, match="there is no file"):
        load_original("R32_C10", tmp_path / "b.t7")


def test_parts_may_come_from_data_parallel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = BlockDropNet("R32_C10")
    parts = {
        part: {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
        for part, module in (("resnet", net.resnet.net), ("agent", net.policy))
    }
    torch.save(parts, tmp_path / "a.t7")
    assert_equal_states(load_original("R32_C10", tmp_path / "a.t7"), net)
    with pytest.raises(InputError, match=r"a\.t7, agent does not match .*logit\.weight \[15, 64\] .* has \[54, 64\]"):
        load_original("R110_C10", tmp_path / "a.t7")
    with pytest.raises(InputError, match=r"a\.t7, resnet does not match .*linear\.bias \[10\] .* has \[100\]"):
        load_original("R32_C100", tmp_path / "a.t7")
