"""Make zeros disappear: a smaller dense network with the same outputs; and `deephoyer-compact`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from resless import costs, latency, models, onnx, weights
from resless.errors import InputError
from resless.models import shrunk
from resless.models.blocks import BranchingNetwork, branching, drop_branch
from resless.models.folded import check_unfolded
from resless.models.lenet import LeNet5, LeNet300100
from resless.models.shrunk import Mixing, Norm
from resless.outputs import check_equal
from resless.report import table
from torch import Tensor, nn

from deephoyer import loading
from deephoyer.config import CompactConfig
from deephoyer.graph import Kind, trace
from deephoyer.lenets import compact_lenet
from deephoyer.plan import Kept, Plan, plan

TOLERANCE = 1e-5
LENETS = (LeNet300100, LeNet5)
MAX_LISTED = 10
"""Layers of a network whose widths are listed one by one."""


@torch.no_grad()
def compact(model: nn.Module, example: Tensor, round_to: int = 1) -> nn.Module:
    """The network without its zeros, in eval mode, with outputs equal to 1e-5 (of the largest logit) in float32.

    Args:
        model: a network, pruned or not; it is not changed.
        example: an input of it, [N, C, H, W], on which both outputs are compared.
        round_to: keep so many zeros that convolutions and linear layers have multiples of this as widths, or all;
            LeNets do not.

    Raises:
        InputError: the network holds something that this cannot follow, which is named, or it is folded; it stays
            usable as it is.
        EmptyLayer: nothing is left of a layer.
        RuntimeError: the outputs differ.
    """
    return explained(model, example, round_to)[0]


@torch.no_grad()
def explained(model: nn.Module, example: Tensor, round_to: int = 1) -> tuple[nn.Module, dict[str, str]]:
    """What `compact` gives; and for layers that keep some zeros, by their paths, why."""
    check_unfolded(model, "compacted")
    reasons: dict[str, str] = {}
    if isinstance(model, LENETS):
        small = compact_lenet(model)
    else:
        large = copy.deepcopy(model).cpu().eval()
        what = plan(trace(large, example.cpu()), large, round_to)
        reasons = {path: kept.why for path, kept in what.layers.items()}
        small = _smaller(large, what)
    small = small.to(example.device).eval()
    check_equal(model, small, example, TOLERANCE, "compacted")
    return small, reasons


def _smaller(net: nn.Module, what: Plan) -> nn.Module:
    """The network that a plan leaves of `net`, which is used up."""
    changed = {path: kept for path, kept in what.layers.items() if kept.changed}
    cores = {path: shrunk.core_of(net.get_submodule(path)) for path in changed}
    for path in what.dropped:
        holder, _, name = path.rpartition(".")
        drop_branch(net.get_submodule(holder), name)
    shrunk.exchange(net, {path: kept.part for path, kept in changed.items()})
    for path, kept in changed.items():
        _fill(shrunk.core_of(net.get_submodule(path)), cores[path], kept)
    for path in what.rectified:
        shortcut = net.get_submodule(path)
        assert isinstance(shortcut, nn.Sequential)
        shortcut.append(nn.ReLU())
    if hasattr(net, "spec"):
        net.spec = _spec(net, changed, what.rectified)  # type: ignore[assignment]
    return net


def _fill(small: nn.Module, large: nn.Module, kept: Kept) -> None:
    """Give a smaller layer the rows and columns that it keeps of the larger one's tensors."""
    tensors = large.state_dict()
    if not tensors:
        return
    small.to(next(iter(tensors.values())).dtype)
    rows = {name: tensor[kept.rows] if tensor.dim() else tensor for name, tensor in tensors.items()}
    if isinstance(large, Mixing):
        if not isinstance(large, nn.Conv2d) or large.groups == 1:
            rows["weight"] = rows["weight"][:, kept.columns]
        if kept.part.bias:
            rows["bias"] = rows.get("bias", 0) + kept.folded[kept.rows]
    small.load_state_dict(rows)
    small.requires_grad_(all(parameter.requires_grad for parameter in large.parameters()))


def _spec(net: nn.Module, changed: Mapping[str, Kept], rectified: tuple[str, ...]) -> models.Spec:
    """What rebuilds a network some of whose layers have just been exchanged."""
    spec = models.spec_of(net)
    base, layers = models.origin(spec), {}
    if spec.name == shrunk.NAME:
        layers, rectified = spec.options["layers"], (*spec.options["rectified"], *rectified)
    layers = layers | {path: vars(kept.part) for path, kept in changed.items()}
    there = dict(net.named_modules())
    layers = {path: part for path, part in layers.items() if path in there}
    option = net.kept_option if isinstance(net, BranchingNetwork) else None
    if option in base.options:
        base = replace(base, options=base.options | {option: _kept_branches(net, base, option)})
        layers = _narrower(layers, base)
    if not layers and not rectified:
        return base
    options = {"base": base.name, "base_options": base.options, "layers": layers, "rectified": rectified}
    return replace(spec, name=shrunk.NAME, options=options)


def _kept_branches(net: nn.Module, base: models.Spec, option: str) -> tuple[int, ...] | None:
    """Which modules of the base network still have their branch, as its `option` lists them; None for all."""
    whole = _on_meta(replace(base, options=base.options | {option: None}))
    left, branches = set(branching(net)), branching(whole)
    kept = tuple(index for index, path in enumerate(branches) if path in left)
    return None if len(kept) == len(branches) else kept


def _narrower(layers: Mapping[str, Mapping[str, Any]], base: models.Spec) -> dict[str, Mapping[str, Any]]:
    """Those of the layers that are not as the base network's, which without some branches is narrower itself."""
    own = {path: layer for path, layer in _on_meta(base).named_modules() if isinstance(layer, Mixing | Norm)}
    return {path: part for path, part in layers.items() if path not in own or part != vars(shrunk.whole(own[path]))}


def _on_meta(spec: models.Spec) -> nn.Module:
    """The network of a spec, without values."""
    with torch.device("meta"):
        return models.build(spec)


def mac_counter(model: nn.Module, example: Tensor, round_to: int = 1) -> Callable[[nn.Module], int]:
    """A function that tells the MACs of one image which `compact` would leave of networks of the structure of `model`.

    It is for many networks that differ in their weights: none is made smaller. It raises as `compact` does.
    """
    if isinstance(model, LENETS):
        return lambda network: costs.macs(compact(network, example), example)
    evaluated = copy.deepcopy(model).cpu().eval()
    nodes, dense = trace(evaluated, example.cpu()), costs.layer_macs(evaluated, example)
    each = {base_name(name): macs for name, macs in dense.items()}

    def left(network: nn.Module) -> int:
        layers = plan(nodes, network, round_to).layers
        return sum(int(macs * layers[path].share) for path, macs in each.items() if path in layers)

    return left


def normalised(model: nn.Module, example: Tensor) -> dict[str, tuple[nn.Conv2d, Norm | None]]:
    """Every convolution, by its name, with the batch norm that directly follows it, filter by filter."""
    nodes = [node for node in trace(copy.deepcopy(model).cpu().eval(), example.cpu()) if node.kind is Kind.LAYER]
    modules = {node.name: model.get_submodule(node.path) for node in nodes}
    names = {module: name for name, module in model.named_modules()}
    readers = {node.sources[0]: shrunk.core_of(modules[node.name]) for node in nodes}
    found = {}
    for name, module in modules.items():
        convolution = shrunk.core_of(module)
        if isinstance(convolution, nn.Conv2d):
            found[names[convolution]] = convolution, _norm_of(convolution, readers.get(name))
    return found


def _norm_of(convolution: nn.Conv2d, reader: nn.Module | None) -> Norm | None:
    """What reads a convolution, if that is a batch norm of just its filters."""
    follows = isinstance(reader, Norm) and reader.num_features == convolution.out_channels
    return cast("Norm", reader) if follows else None


def base_name(name: str) -> str:
    """Of a layer that was exchanged, its path in the network in which it was exchanged."""
    return name.removesuffix(".core")


def main(config: CompactConfig) -> nn.Module:
    """What `deephoyer-compact` does: write the smaller network, compare sizes, and time both."""
    output = Path(config.output)
    weights.check_target(output, config.overwrite)
    exported = onnx.beside(output, config.overwrite) if config.export == "onnx" else None
    source = loading.of(config.model, config.pretrained, config.foreign)
    shape, classes = source.image_shape, 10 if config.num_classes is None else config.num_classes
    if source.folder is not None:
        side = None if shape is None else config.image_size
        loading.check_left_to_folder(source.folder, num_classes=config.num_classes, image_size=side)
    model = source.network(partial(models.create, config.model, num_classes=classes))
    if shape is None:
        if config.image_size is None:
            raise InputError(f"{source.name} does not tell the size of its images: give --image-size")
        shape = (models.spec_of(model).in_channels, config.image_size, config.image_size)
    images = torch.randn(config.batch_size, *shape, generator=torch.Generator().manual_seed(0))
    small = compact(model, images, config.round_to)
    weights.save_pretrained(
        small,
        output,
        preprocessing=source.preprocessing,
        metrics={name: value for name, value in source.metrics.items() if "top1" in name},
        description="Compacted: zeros removed, outputs unchanged. The accuracies are those of the run that pruned it, "
        "in its precision.",
        example=images[:1],
        class_names=source.class_names,
        overwrite=config.overwrite,
    )
    networks = {"as given": model, "compacted": small}
    rows = [
        [
            name,
            structure(network),
            f"{costs.count_parameters(network):,}",
            f"{costs.macs(network, images[:1]):,}",
            f"{_bytes(network):,}",
        ]
        for name, network in networks.items()
    ]
    table(f"wrote {config.output}", ["network", "structure", "parameters", "MACs", "bytes"], rows)
    if rows[0][2:4] == rows[1][2:4]:
        print(f"nothing could be removed: no whole channel of {source.name} is zero, which deephoyer-prune sees to")
    if exported is not None:
        onnx.export(small, images[:3], exported)
        print(f"wrote {exported}, whose outputs onnxruntime finds equal")
    if config.repeats:
        latency.show(networks, shape, (1, config.batch_size), config.repeats)
    return small


def structure(model: nn.Module) -> str:
    """Widths in the paper's notation: 353-45-11 for LeNet-300-100 (inputs, hidden units), 5-12-139-13 for LeNet-5; of
    networks of many layers, how many filters there are."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    filters = [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)]
    inputs = [layer.in_features for layer in layers if isinstance(layer, nn.Linear)]
    if len(layers) > MAX_LISTED:
        return f"{sum(filters):,} filters in {len(filters)} convolutions"
    return "-".join(str(width) for width in filters + inputs)


def _bytes(network: nn.Module) -> int:
    """Of all tensors that a model folder holds."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())


if __name__ == "__main__":
    from deephoyer.cli import compact as script

    script()
