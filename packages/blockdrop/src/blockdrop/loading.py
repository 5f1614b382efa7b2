"""Where networks come from: model folders, checkpoints of plain networks, the authors' files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from resless import models, weights
from resless.data import Images
from resless.data.stream import Stream
from resless.errors import InputError, check, check_agrees, unknown_name
from resless.models.folded import check_unfolded
from resless.modes import in_eval_mode
from torch import Tensor, nn

from blockdrop.config import MODELS, BackboneConfig
from blockdrop.model import BlockDropNet, PolicyNetwork, load_agent, load_original
from blockdrop.original import is_original, resnet_keys


def check_model(name: str) -> None:
    """Raise InputError unless this is one of the paper's models or a residual network of resless."""
    if name in MODELS:
        return
    if "resnet" not in name:
        residual = [known for known in models.names() if "resnet" in known]
        raise unknown_name("model", name, [*MODELS, *residual])
    models.check_name(name)


def check_backbone(config: BackboneConfig) -> None:
    """Raise InputError, saying where to get one, unless there is a backbone."""
    if config.backbone is None:
        raise InputError(f"--backbone is missing: {where_to_get_one(config.model)}")
    if not Path(config.backbone).exists():
        raise InputError(f"--backbone is {config.backbone}, but nothing is there: {where_to_get_one(config.model)}")


def preprocessing(config: BackboneConfig) -> dict[str, Any]:
    """What the backbone expects of its images: `mean` and `std`, of a model folder `image_size` too; nothing where that
    is the data set's affair."""
    if config.backbone is not None and Path(config.backbone).is_dir():
        return weights.read_config(config.backbone)["preprocessing"] | _statistics(config)
    known = MODELS.get(config.model)
    return ({"mean": list(known.mean), "std": list(known.std)} if known else {}) | _statistics(config)


def with_backbone(config: BackboneConfig, images: Images | Stream, **policy: Any) -> BlockDropNet:
    """A network with the weights of `--backbone` and a fresh policy network, for which `policy` are options.

    Raises:
        InputError: no backbone is given, it cannot be read, or it is of another depth, shortcut or number of classes.
    """
    check_backbone(config)
    assert config.backbone is not None
    known = MODELS.get(config.model)
    if known is not None:
        fits = (known.num_classes, 3) == (images.num_classes, images.image_shape[0])
        found = f"{images.num_classes} classes in {images.image_shape[0]} channels"
        check(fits, "the data set", found, f"{known.num_classes} classes in 3 channels for {config.model}")
    if Path(config.backbone).is_dir():
        net = _from_folder(config, config.backbone, policy)
        check_size(net.spec, images)
        return net
    size = {"num_classes": images.num_classes, "in_channels": images.image_shape[0]}
    net = BlockDropNet(config.model, **{**size, **policy, **_shortcut(config)})
    load_backbone(net.resnet.net, config.backbone)
    return net


def load_backbone(net: nn.Module, path: str) -> None:
    """Load a checkpoint file into a plain network: its own names, or the authors'. Raises InputError on mismatch."""
    content = weights.read_checkpoint(path)
    if isinstance(content, Mapping) and isinstance(content.get("resnet"), Mapping):
        content = content["resnet"]
    state = weights.unwrapped(content, path)
    weights.load_state(net, state, path, resnet_keys(state) if is_original(state) else None)


def load_policy_features(policy: PolicyNetwork, path: str) -> None:
    """Start a policy network's features from a checkpoint of a network with more blocks a stage, and the same stem.

    ImageNet's ResNet-10 so takes the first block of each stage of a ResNet-18 (section 4.1). Raises InputError on
    mismatch.
    """
    state = weights.unwrapped(weights.read_checkpoint(path), path)
    later_block = re.compile(r"layer\d+\.[1-9]\d*\.")
    unused = {key: None for key in state if later_block.match(key) or key.startswith(("fc.", "linear."))}
    weights.load_state(policy.features, state, path, unused)


def trained(config: BackboneConfig, source: str | None) -> tuple[BlockDropNet, dict[str, Any]]:
    """A network with a trained policy network, in eval mode, and what it expects of its images.

    Args:
        config: name of the model, for an authors' checkpoint; backbone, for one without; statistics.
        source: model folder or authors' checkpoint.

    Raises:
        InputError: it cannot be read, or is of another model.
    """
    if source is None:
        raise InputError(
            "--pretrained is missing: give the model folder of a blockdrop-train run, or an authors' checkpoint"
        )
    if not Path(source).exists():
        raise InputError(
            f"there is no {source}: give the model folder of a finished run of blockdrop-train or blockdrop-finetune, "
            "or an authors' checkpoint"
        )
    if Path(source).is_dir():
        net = weights.from_pretrained(source)
        if not isinstance(net, BlockDropNet):
            name = models.spec_of(net).name
            raise InputError(f"{source} holds a plain {name}: give it to blockdrop-train as --backbone first")
        _check_alone(config, source)
        _check_name(config, net, source)
        _check_shortcut(config, net.resnet.net, source)
        return net, weights.read_config(source)["preprocessing"] | _statistics(config)
    content = weights.read_checkpoint(source)
    if isinstance(content, Mapping) and "resnet" in content:
        _check_alone(config, source)
        net = load_original(config.model, source)
        _check_shortcut(config, net.resnet.net, source)
        return net, preprocessing(config)
    if not isinstance(content, Mapping) or "agent" not in content:
        raise InputError(f"{source} holds no policy network: give a model folder, or a checkpoint with the part agent")
    if config.backbone is None:
        raise InputError(f"{source} holds only the policy network: give the residual network with --backbone")
    if config.model not in MODELS:
        raise unknown_name("model of an authors' checkpoint", config.model, MODELS)
    if Path(config.backbone).is_dir():
        net = _from_folder(config, config.backbone, {})
    else:
        net = BlockDropNet(config.model, **_shortcut(config))
        load_backbone(net.resnet.net, config.backbone)
    load_agent(net, content["agent"], f"{source}, agent")
    return net.eval(), preprocessing(config)


def _check_alone(config: BackboneConfig, source: str) -> None:
    """Refuse a --backbone beside a policy network that comes with its residual network."""
    if config.backbone is not None:
        raise InputError(f"--backbone is {config.backbone}, but {source} has a residual network: leave it out")


def _check_shortcut(config: BackboneConfig, backbone: nn.Module, source: str) -> None:
    """Refuse another --shortcut than that of a residual network that says it itself."""
    found = models.origin(models.spec_of(backbone)).options.get("shortcut")
    check_agrees("--shortcut", config.shortcut, found, source)


def check_size(spec: models.Spec, images: Images | Stream) -> None:
    """Raise InputError unless a backbone knows as many classes and channels as the images have."""
    found = f"{images.num_classes} classes in {images.image_shape[0]} channels"
    fits = (spec.num_classes, spec.in_channels) == (images.num_classes, images.image_shape[0])
    check(fits, "the data set", found, f"{spec.num_classes} classes in {spec.in_channels} channels, as the backbone's")


@torch.no_grad()
def check_policy_batch(net: BlockDropNet, example: Tensor, batch_size: int, processes: int = 1) -> None:
    """Refuse batches of which batch norms of the policy network see one value a channel in a process's share: there is
    no variance of it."""
    with in_eval_mode(net.policy):
        values = batch_size // processes * net.policy.maps(example)[0, 0].numel()
    wanted = f"{2 * processes} or more: on images as small as these the policy network ends in one pixel"
    check(values != 1, "--batch-size", batch_size, wanted)


def _from_folder(config: BackboneConfig, folder: str, policy: dict[str, Any]) -> BlockDropNet:
    """The residual network of a model folder, of BlockDrop's own too, and a fresh policy network."""
    known = MODELS.get(config.model)
    backbone = weights.from_pretrained(folder)
    check_unfolded(backbone, "a backbone")
    if isinstance(backbone, BlockDropNet):
        backbone = backbone.resnet.net
    spec = models.spec_of(backbone)
    _check_shortcut(config, backbone, folder)
    options: dict[str, Any] = {"num_classes": spec.num_classes, "in_channels": spec.in_channels, **spec.options}
    if known is not None:
        options |= {"policy": known.policy, "policy_pool": known.policy_pool}
    net = BlockDropNet(spec.name, **(options | _given(policy)))
    _check_name(config, net, folder)
    net.resnet.net.load_state_dict(backbone.state_dict())
    return net


def _statistics(config: BackboneConfig) -> dict[str, Any]:
    """`--mean` and `--std`, where they are given."""
    return {"mean": list(config.mean), "std": list(config.std)} if config.mean and config.std else {}


def _shortcut(config: BackboneConfig) -> dict[str, Any]:
    return {} if config.shortcut is None else {"shortcut": config.shortcut}


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check_name(config: BackboneConfig, net: BlockDropNet, source: str) -> None:
    """Raise InputError unless a folder's network is the one that --model names; a folder's own name fits too."""
    options = models.origin(net.spec).options
    name = models.origin(models.Spec(options["backbone"], options=options["backbone_options"])).name
    known = MODELS.get(config.model)
    if known is None:
        if config.model != name and not Path(config.model).is_dir():
            raise InputError(f"--model is {config.model}, but {source} holds a {name}")
        return
    # R110 and ResNet-164 both have 54 blocks: the name counts too.
    found, wanted = (name, net.num_blocks, net.spec.num_classes), (known.backbone, known.num_blocks, known.num_classes)
    if found != wanted:
        phrase = "a {} of {} blocks for {} classes"
        raise InputError(f"{source} holds {phrase.format(*found)}, but {config.model} is {phrase.format(*wanted)}")


def where_to_get_one(model: str) -> str:
    """What to do without a backbone, as a sentence."""
    known = MODELS.get(model)
    name, dataset = (known.backbone, known.dataset) if known else (model, "...")
    shortcut = "".join(f" --{key} {value}" for key, value in known.options.items()) if known else ""
    how = f"train one (resless-train --model {name} --dataset {dataset}{shortcut}, then --backbone RUN_FOLDER/model)"
    if name.startswith("torchvision/"):
        how = f"take torchvision's file of {name.removeprefix('torchvision/')} weights"
    return (
        f"BlockDrop starts from a trained {name}. Give a model folder, or a checkpoint of that "
        f"network, or the authors' file; or {how}"
    )
