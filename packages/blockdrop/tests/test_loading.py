"""Where networks come from, and one sentence for each that does not fit."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from blockdrop import loading
from blockdrop.config import MODELS, BackboneConfig
from blockdrop.model import BlockDropNet, PolicyNetwork
from resless import models, weights
from resless.errors import InputError
from resless.models.torchvision_resnet import of_layers
from resless.testing import shared_data
from torch import Tensor, nn

IMAGES = SimpleNamespace(num_classes=10, image_shape=(3, 32, 32))
State = dict[str, Tensor]


def made(name: str, seed: int = 1, **options: Any) -> nn.Module:
    """A network whose running statistics have moved."""
    torch.manual_seed(seed)
    net = models.create(name, **options)
    net(torch.randn(4, net.spec.in_channels, 32, 32))
    return net.eval()


def in_folder(net: nn.Module, folder: Path, **preprocessing: Any) -> str:
    weights.save_pretrained(net, folder, preprocessing=preprocessing)
    return str(folder)


def in_file(content: Any, file: Path) -> str:
    torch.save(content, file)
    return str(file)


def flat(state: State) -> State:
    """The authors' layout of a CIFAR network, by the rule of their names."""

    def name(key: str) -> str:
        if match := re.fullmatch(r"(features\.)?layer(\d)\.(.+)", key):
            return f"{match[1] or ''}blocks.{int(match[2]) - 1}.{match[3]}"
        return key.replace("linear.", "fc.")

    return {name(key): tensor for key, tensor in state.items()}


def agent(policy: PolicyNetwork) -> State:
    return flat(policy.state_dict()) | {"vnet.weight": torch.zeros(1, 64), "vnet.bias": torch.zeros(1)}


def prefixed(state: State) -> State:
    return {f"module.{key}": tensor for key, tensor in state.items()}


def assert_equal_states(net: nn.Module, other: nn.Module | State) -> None:
    own, others = net.state_dict(), other.state_dict() if isinstance(other, nn.Module) else other
    assert own.keys() == others.keys()
    assert len(own) > 0
    assert all(torch.equal(own[name], others[name]) for name in own)


def refused(config: BackboneConfig, images: Any = IMAGES) -> str:
    """The one sentence with which a backbone is refused."""
    with pytest.raises(InputError) as error:
        loading.with_backbone(config, images)
    return str(error.value)


# --- backbones that fit


def test_a_model_folder_is_loaded_as_it_is(tmp_path: Path) -> None:
    backbone = made("resnet14", shortcut="subsample")
    config = BackboneConfig("resnet14", backbone=in_folder(backbone, tmp_path / "m"))
    net = loading.with_backbone(config, IMAGES, policy_pool=2)
    assert_equal_states(net.resnet.net, backbone)
    assert net.resnet.net.spec == backbone.spec
    assert (net.num_blocks, net.policy.pool) == (6, 2)


def test_a_network_made_smaller_goes_by_its_old_name(tmp_path: Path) -> None:
    """Three of a block's inner channels are left, and blocks 1 and 2 of nine have gone: seven are decided on."""

    def part(in_width: int, out_width: int) -> dict[str, Any]:
        return {"in_width": in_width, "inputs": None, "out_width": out_width, "outputs": None, "bias": False}

    layers = {"conv1": part(16, 3), "bn1": part(3, 3), "conv2": part(3, 16)}
    options = {"shortcut": "avgpool", "kept_blocks": (0, 3, 4, 5, 6, 7, 8)}
    small = made(
        "shrunk",
        base="resnet20",
        base_options=options,
        layers={f"layer1.0.{name}": fields for name, fields in layers.items()},
    )
    folder = in_folder(small, tmp_path / "small")
    net = loading.with_backbone(BackboneConfig("resnet20", folder), IMAGES).eval()
    assert net.num_blocks == 7
    assert_equal_states(net.resnet.net, small)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net.resnet(images, torch.ones(4, 7)), small(images))
    with pytest.raises(InputError, match="a shrunk network cannot lose blocks"):
        net.specialised([True] * 7)
    kept_in_a_folder = weights.from_pretrained(in_folder(net, tmp_path / "whole"))
    assert_equal_states(kept_in_a_folder, net)
    assert "--model is resnet32, but" in refused(BackboneConfig("resnet32", folder))
    assert "holds a resnet20 of 7 blocks" in refused(BackboneConfig("R32_C10", folder))


def test_a_model_folder_knows_its_own_shortcut(tmp_path: Path) -> None:
    backbone = made("resnet32", shortcut="subsample")
    config = BackboneConfig("R32_C10", backbone=in_folder(backbone, tmp_path / "m"))
    net = loading.with_backbone(config, IMAGES).eval()
    assert net.resnet.net.spec.options["shortcut"] == "subsample"
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net.resnet(x, torch.ones(2, 15)), backbone(x))


def test_a_folder_of_blockdrops_own_gives_its_residual_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = BlockDropNet("resnet14", kept_blocks=(0, 2, 5))
    net = loading.with_backbone(
        BackboneConfig("resnet14", backbone=in_folder(source, tmp_path / "m")), IMAGES, policy_pool=None
    )
    assert_equal_states(net.resnet, source.resnet)
    assert net.num_blocks == 3
    assert not torch.equal(net.policy.logit.weight, source.policy.logit.weight), "the policy network is a fresh one"


@pytest.mark.parametrize(
    "layout",
    [
        dict,
        prefixed,
        flat,
        lambda state: prefixed(flat(state)),
        lambda state: {"state_dict": prefixed(state), "epoch": 3},
        lambda state: {"resnet": flat(state), "agent": {"x": torch.zeros(1)}},
        lambda state: {"resnet": {"state_dict": prefixed(flat(state))}},
    ],
    ids=["own", "module.", "authors'", "authors' module.", "wrapped", "authors' with agent", "authors' wrapped"],
)
def test_checkpoint_files_of_any_layout_are_loaded(layout: Any, tmp_path: Path) -> None:
    backbone = made("resnet32", shortcut="avgpool")
    file = in_file(layout(backbone.state_dict()), tmp_path / "a.t7")
    net = loading.with_backbone(BackboneConfig("R32_C10", backbone=file), IMAGES)
    assert_equal_states(net.resnet.net, backbone)


def test_a_safetensors_file_is_loaded(tmp_path: Path) -> None:
    backbone = made("resnet8")
    in_folder(backbone, tmp_path / "m")
    config = BackboneConfig("resnet8", backbone=str(tmp_path / "m" / "model.safetensors"))
    assert_equal_states(loading.with_backbone(config, IMAGES).resnet.net, backbone)


@pytest.mark.parametrize(("name", "blocks"), [("resnet20", 9), ("R32_C10", 15)])
def test_published_weights_are_loaded_with_their_shortcut(name: str, blocks: int) -> None:
    files = {"resnet20": "resnet20-12fca82f.th", "R32_C10": "resnet32-d509ac18.th"}
    path = shared_data("weights", files[name])
    net = loading.with_backbone(BackboneConfig(name, backbone=str(path), shortcut="subsample"), IMAGES)
    plain = models.create("resnet20" if name == "resnet20" else "resnet32", shortcut="subsample")
    weights.load(plain, path)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net.eval().resnet(x, torch.ones(2, blocks)), plain.eval()(x))


def test_torchvisions_files_are_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    file = in_file(theirs.state_dict(), tmp_path / "resnet18.pth")
    net = loading.with_backbone(BackboneConfig("torchvision/resnet18", backbone=file), IMAGES).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net.resnet(x, torch.ones(2, 8)), theirs(x), rtol=0, atol=1e-5)


def test_the_papers_imagenet_network_has_the_tensors_of_torchvisions_file() -> None:
    with torch.device("meta"):
        own = BlockDropNet("R101_ImgNet").resnet.net.state_dict()
        theirs = torchvision.models.resnet101().state_dict()
    assert len(theirs) > 500
    assert [(name, tensor.shape) for name, tensor in own.items()] == [(n, t.shape) for n, t in theirs.items()]


# --- backbones that do not fit


def test_without_a_backbone_it_says_where_to_get_one() -> None:
    assert refused(BackboneConfig("R32_C10")) == (
        "--backbone is missing: BlockDrop starts from a trained resnet32. Give a model folder, or a checkpoint of that "
        "network, or the authors' file; or train one (resless-train --model resnet32 --dataset cifar10 "
        "--shortcut avgpool, then --backbone RUN_FOLDER/model)"
    )
    assert "take torchvision's file of resnet101 weights" in refused(BackboneConfig("R101_ImgNet"))
    assert "resless-train --model resnet20 --dataset ..., then" in refused(BackboneConfig("resnet20"))


@pytest.mark.parametrize(
    ("model", "name", "options", "message"),
    [
        ("R32_C10", "resnet20", {}, "a resnet20 of 9 blocks for 10 classes, but R32_C10 is a resnet32 of 15 blocks"),
        ("R110_C10", "resnet164", {}, "a resnet164 of 54 blocks for 10 classes, but R110_C10 is a resnet110 of 54"),
        ("R32_C10", "resnet32", {"kept_blocks": (0, 3)}, "a resnet32 of 2 blocks for 10 classes, but R32_C10 is"),
        ("R32_C10", "resnet32", {"num_classes": 7}, "a resnet32 of 15 blocks for 7 classes, but R32_C10 is"),
        ("resnet20", "resnet14", {}, "^--model is resnet20, but .*/m holds a resnet14$"),
        ("resnet14", "resnet14", {"num_classes": 7}, "^the data set is '10 classes in 3 channels', but must be '?7 "),
        ("resnet14", "resnet14", {"in_channels": 1}, "^the data set is .*, but must be 10 classes in 1 channels, as"),
        ("R32_C10", "lenet5", {"image_size": 32}, "^the backbone is lenet5, but must be a CIFAR ResNet"),
    ],
)
def test_model_folders_of_another_network_are_refused(
    model: str, name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    folder = in_folder(models.create(name, **options), tmp_path / "m")
    assert re.search(message, refused(BackboneConfig(model, backbone=folder)))


def test_a_model_folder_of_another_shortcut_is_refused(tmp_path: Path) -> None:
    folder = in_folder(models.create("resnet14", shortcut="conv"), tmp_path / "m")
    found = refused(BackboneConfig("resnet14", backbone=folder, shortcut="avgpool"))
    assert found == f"--shortcut is 'avgpool', but must be conv, as in {folder}, or left out"
    same = BackboneConfig("resnet14", backbone=folder, shortcut="conv")
    assert loading.with_backbone(same, IMAGES).num_blocks == 6


@pytest.mark.parametrize(
    ("model", "name", "options", "messages"),
    [
        ("resnet14", "resnet20", {}, ["a.pth does not match the network: it has layer1.2.bn1.bias", "unknown to"]),
        ("resnet20", "resnet14", {}, ["a.pth does not match the network: it lacks layer1.2.bn1.bias"]),
        ("resnet14", "resnet14", {"num_classes": 7}, ["linear.weight [7, 64] float32 where the network has [10, 64]"]),
        (
            "resnet14",
            "resnet14",
            {"in_channels": 1},
            ["conv1.weight [16, 1, 3, 3] float32 where the network has [16, 3"],
        ),
        ("resnet14", "resnet14", {"shortcut": "avgpool"}, ["lacks layer2.0.shortcut.0.weight"]),
        ("R32_C10", "resnet32", {"shortcut": "conv"}, ["has layer2.0.shortcut.0.weight", "unknown to the network"]),
        ("torchvision/resnet18", "resnet14", {}, ["it lacks fc.bias, fc.weight", "it has layer2.0.shortcut"]),
    ],
)
def test_checkpoints_of_another_network_are_refused_by_keys_and_shapes(
    model: str, name: str, options: dict[str, Any], messages: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    file = in_file(models.create(name, **options).state_dict(), tmp_path / "a.pth")
    found = refused(BackboneConfig(model, backbone=file))
    assert all(message in found for message in messages), found


def test_the_authors_file_of_another_depth_is_refused(tmp_path: Path) -> None:
    file = in_file(flat(made("resnet20", shortcut="avgpool").state_dict()), tmp_path / "a.t7")
    assert "a.t7 does not match the network: it lacks layer1.3.bn1.bias" in refused(
        BackboneConfig("R32_C10", backbone=file)
    )


def test_data_of_another_kind_is_refused() -> None:
    grey = SimpleNamespace(num_classes=10, image_shape=(1, 28, 28))
    found = refused(BackboneConfig("R32_C10", backbone=__file__), grey)
    assert found == ("the data set is '10 classes in 1 channels', but must be 10 classes in 3 channels for R32_C10")
    many = SimpleNamespace(num_classes=100, image_shape=(3, 32, 32))
    assert "must be 10 classes" in refused(BackboneConfig("R32_C10", backbone=__file__), many)
    assert "but must be 100 classes" in refused(BackboneConfig("R32_C100", backbone=__file__))


def test_missing_files_and_folders_that_are_no_model_folders_are_refused(tmp_path: Path) -> None:
    assert "but nothing is there" in refused(BackboneConfig("resnet8", backbone=str(tmp_path / "nowhere.pth")))
    assert "has no config.json" in refused(BackboneConfig("resnet8", backbone=str(tmp_path)))
    (tmp_path / "a.pth").write_bytes(b"x" * 100)
    assert "is damaged, or holds" in refused(BackboneConfig("resnet8", backbone=str(tmp_path / "a.pth")))


class Attack:
    """Unpickled without care, this would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_pickles_with_anything_but_tensors_are_refused(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    file = in_file({"resnet": models.create("resnet8").state_dict(), "agent": Attack(mark)}, tmp_path / "evil.t7")
    message = "evil.t7 is damaged, or holds Python objects other than tensors"
    assert message in refused(BackboneConfig("resnet8", backbone=file))
    with pytest.raises(InputError, match=message):
        loading.trained(BackboneConfig("R32_C10"), file)
    with pytest.raises(InputError, match=message):
        loading.load_policy_features(PolicyNetwork("resnet8", 3, 3), file)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        *((name, model.num_blocks) for name, model in MODELS.items()),
        ("resnet20", 9),
        ("resnet26", 12),
        ("torchvision/resnet50", 16),
    ],
)
def test_names_of_models_that_can_be_asked_for(name: str, blocks: int) -> None:
    loading.check_model(name)
    with torch.device("meta"):
        assert BlockDropNet(name).num_blocks == blocks


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="unknown model 'R32_C11'"):
        loading.check_model("R32_C11")
    with pytest.raises(InputError, match="depth is 33"):
        loading.check_model("resnet33")


# --- what the policy network starts from


@pytest.mark.parametrize("prefix", ["", "module."])
def test_policy_features_are_the_first_blocks_of_a_resnet18(prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    resnet18 = of_layers("basic", (2, 2, 2, 2), num_classes=1000, in_channels=3).state_dict()
    file = in_file({prefix + key: tensor for key, tensor in resnet18.items()}, tmp_path / "resnet18.pth")
    policy = PolicyNetwork("resnet10", 33, in_channels=3, pool=2)
    logit = policy.logit.weight.clone()
    loading.load_policy_features(policy, file)
    assert_equal_states(policy.features, {name: resnet18[name] for name in policy.features.state_dict()})
    assert torch.equal(policy.logit.weight, logit)


def test_cifar_policy_features_can_come_from_any_deeper_network(tmp_path: Path) -> None:
    deeper = made("resnet20", shortcut="avgpool")
    policy = PolicyNetwork("resnet8", 15, in_channels=3)
    loading.load_policy_features(policy, in_folder(deeper, tmp_path / "m"))
    state = deeper.state_dict()
    assert_equal_states(policy.features, {name: state[name] for name in policy.features.state_dict()})


def test_policy_features_of_another_kind_are_refused(tmp_path: Path) -> None:
    policy = PolicyNetwork("resnet10", 33, in_channels=3)
    file = in_file(models.create("resnet20").state_dict(), tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth does not match the network: it lacks .*layer"):
        loading.load_policy_features(policy, file)
    with torch.device("meta"):
        bottleneck = torchvision.models.resnet50(num_classes=2).state_dict()
    state = {name: torch.zeros(tensor.shape) for name, tensor in bottleneck.items() if "layer4" not in name}
    with pytest.raises(InputError, match=r"b\.pth does not match .* layer1\.0\.conv3\.weight"):
        loading.load_policy_features(policy, in_file(state, tmp_path / "b.pth"))


# --- trained networks


def test_nothing_to_start_from_is_named() -> None:
    with pytest.raises(InputError, match=r"^--pretrained is missing: give the model folder of a blockdrop-train run"):
        loading.trained(BackboneConfig("R32_C10"), None)


def test_a_trained_folder_is_loaded_with_its_preprocessing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = BlockDropNet("resnet14")
    folder = in_folder(source, tmp_path / "m", mean=[0.1] * 3, std=[0.2] * 3, image_size=32)
    net, preprocessing = loading.trained(BackboneConfig("resnet14"), folder)
    assert not net.training
    assert_equal_states(net, source)
    assert preprocessing == {"mean": [0.1] * 3, "std": [0.2] * 3, "image_size": 32}
    _, given = loading.trained(BackboneConfig("resnet14", mean=(0.3,) * 3, std=(0.4,) * 3), folder)
    assert given == {"mean": [0.3] * 3, "std": [0.4] * 3, "image_size": 32}


def test_the_shortcut_of_a_trained_network_is_its_own(tmp_path: Path) -> None:
    folder = in_folder(BlockDropNet("resnet14", shortcut="conv"), tmp_path / "m")
    assert loading.trained(BackboneConfig("resnet14", shortcut="conv"), folder)[0].num_blocks == 6
    source = BlockDropNet("R32_C10")
    parts = {"resnet": flat(source.resnet.net.state_dict()), "agent": agent(source.policy)}
    file = in_file(parts, tmp_path / "a.t7")
    for config, place, own in (
        (BackboneConfig("resnet14", shortcut="avgpool"), folder, "conv"),
        (BackboneConfig("R32_C10", shortcut="conv"), file, "avgpool"),
    ):
        with pytest.raises(InputError) as refusal:
            loading.trained(config, place)
        given = config.shortcut
        assert str(refusal.value) == f"--shortcut is {given!r}, but must be {own}, as in {place}, or left out"


def test_a_network_without_such_shortcuts_takes_none(tmp_path: Path) -> None:
    folder = in_folder(BlockDropNet("torchvision/resnet18", num_classes=10), tmp_path / "m")
    with pytest.raises(InputError, match=r"^--shortcut is 'conv', but must be left out$"):
        loading.trained(BackboneConfig("torchvision/resnet18", shortcut="conv"), folder)


def test_a_batch_of_one_small_image_has_no_variance_for_the_policy_network() -> None:
    net, small = BlockDropNet("resnet14", policy_pool=2), torch.zeros(1, 3, 8, 8)  # 4, 2, 1 pixels wide
    with pytest.raises(InputError, match="--batch-size is 1, but must be 2 or more: on images as small as these"):
        loading.check_policy_batch(net, small, 1)
    with pytest.raises(InputError, match="--batch-size is 3, but must be 4 or more: on images as small as these"):
        loading.check_policy_batch(net, small, 3, processes=2)
    loading.check_policy_batch(net, small, 2)
    loading.check_policy_batch(net, torch.zeros(1, 3, 16, 16), 1)
    assert net.policy.training


def test_folders_without_a_policy_network_or_of_another_model_are_refused(tmp_path: Path) -> None:
    plain = in_folder(models.create("resnet8"), tmp_path / "plain")
    with pytest.raises(InputError, match="holds a plain resnet8: give it to blockdrop-train as --backbone first"):
        loading.trained(BackboneConfig("resnet8"), plain)
    folder = in_folder(BlockDropNet("resnet8"), tmp_path / "m")
    with pytest.raises(InputError, match="/m holds a resnet8 of 3 blocks for 10 classes, but R32_C10 is a resnet32"):
        loading.trained(BackboneConfig("R32_C10"), folder)


@pytest.mark.parametrize("wrap", [dict, prefixed])
def test_an_authors_checkpoint_is_loaded(wrap: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = BlockDropNet("R32_C10")
    parts = {"resnet": wrap(flat(source.resnet.net.state_dict())), "agent": wrap(agent(source.policy))}
    net, preprocessing = loading.trained(BackboneConfig("R32_C10"), in_file(parts, tmp_path / "a.t7"))
    assert not net.training
    assert_equal_states(net, source)
    assert preprocessing["mean"] == pytest.approx([125.3 / 255, 123.0 / 255, 113.9 / 255])
    assert preprocessing["std"] == pytest.approx([63.0 / 255, 62.1 / 255, 66.7 / 255])


@pytest.mark.parametrize("kind", ["file", "authors' file", "folder", "blockdrop folder"])
def test_an_agent_alone_goes_with_a_backbone(kind: str, tmp_path: Path) -> None:
    """As the authors' curriculum writes it: the residual network is the one that it was trained for."""
    torch.manual_seed(0)
    source = BlockDropNet("R32_C10")
    plain = source.resnet.net
    backbone = {
        "file": lambda: in_file(plain.state_dict(), tmp_path / "b.pth"),
        "authors' file": lambda: in_file(flat(plain.state_dict()), tmp_path / "b.pth"),
        "folder": lambda: in_folder(plain, tmp_path / "b"),
        "blockdrop folder": lambda: in_folder(source, tmp_path / "b"),
    }[kind]()
    file = in_file({"agent": agent(source.policy), "epoch": 3}, tmp_path / "a.t7")
    net, _ = loading.trained(BackboneConfig("R32_C10", backbone=backbone), file)
    assert not net.training
    assert_equal_states(net, source)


def test_an_agents_backbone_keeps_its_shortcut(tmp_path: Path) -> None:
    """Networks with `subsample` and `avgpool` shortcuts have the same tensors: only the folder tells."""
    torch.manual_seed(0)
    backbone = made("resnet32", shortcut="subsample")
    policy = PolicyNetwork("resnet8", 15, in_channels=3)
    file = in_file({"agent": agent(policy)}, tmp_path / "a.t7")
    folder = in_folder(backbone, tmp_path / "m", mean=[0.1] * 3, std=[0.2] * 3)
    net, preprocessing = loading.trained(BackboneConfig("R32_C10", backbone=folder), file)
    assert net.resnet.net.spec.options["shortcut"] == "subsample"
    assert preprocessing == {"mean": [0.1] * 3, "std": [0.2] * 3}
    with pytest.raises(InputError, match="--shortcut is 'avgpool', but must be subsample"):
        loading.trained(BackboneConfig("R32_C10", backbone=folder, shortcut="avgpool"), file)
    with pytest.raises(InputError, match="holds a resnet32 of 15 blocks for 10 classes, but R32_C100 is"):
        loading.trained(BackboneConfig("R32_C100", backbone=folder), file)


def test_checkpoints_with_missing_parts_are_refused(tmp_path: Path) -> None:
    state = made("resnet32", shortcut="avgpool").state_dict()
    for config, content, message in [
        (BackboneConfig("R32_C10"), {"resnet": flat(state)}, "a.t7 holds resnet, but a checkpoint with the parts"),
        (BackboneConfig("R32_C10"), state, "a.t7 holds no policy network: give a model folder, or a checkpoint with"),
        (BackboneConfig("R32_C10"), [1], "a.t7 holds no policy network"),
        (BackboneConfig("R32_C10"), {"agent": {}}, "a.t7 holds only the policy network: give the residual network"),
        (BackboneConfig("R32_C10", backbone="x"), {"resnet": {}, "agent": {}}, "--backbone is x, but .* leave it out"),
        (BackboneConfig("resnet32", backbone="x"), {"agent": {}}, "unknown model of an authors' checkpoint 'resnet32'"),
    ]:
        with pytest.raises(InputError, match=message):
            loading.trained(config, in_file(content, tmp_path / "a.t7"))
    backbone = in_file(state, tmp_path / "b.pth")
    broken = agent(PolicyNetwork("resnet8", 15, 3))
    del broken["logit.bias"]
    with pytest.raises(InputError, match=r"a\.t7, agent does not match the network: it lacks logit\.bias"):
        loading.trained(BackboneConfig("R32_C10", backbone=backbone), in_file({"agent": broken}, tmp_path / "a.t7"))
    with pytest.raises(InputError, match="there is no "):
        loading.trained(BackboneConfig("R32_C10"), str(tmp_path / "nowhere.t7"))


# --- statistics of the images


def test_statistics_are_those_given_or_the_folders_or_the_models(tmp_path: Path) -> None:
    folder = in_folder(models.create("resnet8"), tmp_path / "m", mean=[0.1] * 3, std=[0.2] * 3)
    given = BackboneConfig("R32_C10", backbone=folder, mean=(0.3,) * 3, std=(0.4,) * 3)
    assert loading.preprocessing(given) == {"mean": [0.3] * 3, "std": [0.4] * 3}
    assert loading.preprocessing(BackboneConfig("R32_C10", backbone=folder)) == {"mean": [0.1] * 3, "std": [0.2] * 3}
    sized = in_folder(models.create("resnet8"), tmp_path / "sized", image_size=24, mean=[0.1] * 3, std=[0.2] * 3)
    given = BackboneConfig("resnet8", backbone=sized, mean=(0.3,) * 3, std=(0.4,) * 3)
    assert loading.preprocessing(given) == {"image_size": 24, "mean": [0.3] * 3, "std": [0.4] * 3}
    for name in ("R110_C10", "R32_C100", "R110_C100"):
        assert loading.preprocessing(BackboneConfig(name)) == {"mean": [0.0] * 3, "std": [1.0] * 3}
    assert loading.preprocessing(BackboneConfig("R101_ImgNet"))["mean"] == [0.485, 0.456, 0.406]
    assert loading.preprocessing(BackboneConfig("resnet20")) == {}
    assert loading.preprocessing(BackboneConfig("resnet20", backbone=str(tmp_path / "a.pth"))) == {}
