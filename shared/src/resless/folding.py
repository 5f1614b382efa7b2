"""Batch norms folded into the convolutions before them, for faster inference; and `resless-fold`.

In eval mode a batch norm multiplies each channel by one number and adds another. A convolution before it can do both
at no cost: y = γ (W x + b - μ) / √(σ² + ε) + β has the weights γ W / √(σ² + ε) and the bias
γ (b - μ) / √(σ² + ε) + β. No multiply-adds are saved, but the passes over memory that a batch norm is.
"""

from __future__ import annotations

import copy
from collections import Counter
from inspect import Parameter, signature
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from resless import costs, latency, models, onnx, weights
from resless.config import FoldConfig
from resless.errors import InputError
from resless.models import folded
from resless.models.shrunk import Mixing, Norm, Slim, core_of, widths
from resless.outputs import check_equal
from resless.report import table

TOLERANCE = 1e-4
IDLE = nn.Dropout | nn.Dropout2d | nn.Identity
"""What does nothing in eval mode, between a layer and its batch norm too."""


@torch.no_grad()
def fold(model: nn.Module, example: Tensor) -> nn.Module:
    """The network with its batch norms in the convolutions or linear layers before them, for inference, in eval mode.

    A batch norm stays where anything else reads that convolution too, or where it follows none, as the first one of
    pre-activation blocks does.

    Args:
        model: any network that torch.fx can trace, or of which it can trace the parts whose paths it names as
            `plain_parts`, because it runs them block by block; it is not changed.
        example: images [N, C, H, W] on which both outputs are compared.

    Raises:
        InputError: there is nothing to fold, torch.fx cannot trace the network, or it has batch norms that it does not
            always use.
        RuntimeError: the outputs differ by more than 1e-4 of the largest logit.
    """
    folded.check_unfolded(model, "folded again")
    if command := getattr(model, "made_plain_by", None):
        kind = type(model).__name__
        raise InputError(f"the {kind} does not always do the same: write a plain network with {command}, and fold that")
    small = copy.deepcopy(model).eval()
    norms = _followed(small)
    state = {layer: _absorbed(small.get_submodule(layer), small.get_submodule(norm)) for layer, norm in norms.items()}
    folded.replace(small, norms)
    for layer, (weight, bias) in state.items():
        small.get_submodule(layer).load_state_dict({"weight": weight, "bias": bias})
    if isinstance(spec := getattr(model, "spec", None), models.Spec):
        options = {"base": spec.name, "base_options": spec.options, "norms": norms}
        small.spec = models.Spec(folded.NAME, spec.num_classes, spec.in_channels, options)  # type: ignore[assignment]
    check_equal(model, small, example, TOLERANCE, "folded")
    return small


class _Tracer(fx.Tracer):
    """Goes into all modules but torch's own, and those that were exchanged for smaller ones."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Slim) or super().is_leaf_module(m, module_qualified_name)


def _followed(model: nn.Module) -> dict[str, str]:
    """The layers with batch norms that nothing but they read: path -> path of the batch norm."""
    found: dict[str, str] = {}
    for part in getattr(model, "plain_parts", ("",)):
        prefix = part and f"{part}."
        pairs = _pairs(model.get_submodule(part))
        found |= {f"{prefix}{layer}": f"{prefix}{norm}" for layer, norm in pairs.items()}
    if not found:
        kind = type(model).__name__
        raise InputError(
            f"the {kind} has nothing to fold: no batch norm directly follows a convolution or linear layer"
        )
    return found


def _pairs(net: nn.Module) -> dict[str, str]:
    """Those of one network, or part of one, that always does the same."""
    graph = _traced(net)
    calls = [node for node in graph.nodes if node.op == "call_module"]
    modules = {node: net.get_submodule(node.target) for node in calls}
    used = Counter(_path_of_core(net, node.target) for node in calls)
    _check_one_path(net, used)
    found = {}
    for node in calls:
        layer = node.all_input_nodes[0]
        while isinstance(modules.get(layer), IDLE) and len(layer.users) == 1:
            layer = layer.all_input_nodes[0]
        if layer not in modules or len(layer.users) > 1 or not _fits(modules[layer], modules[node]):
            continue
        path = _path_of_core(net, layer.target)
        if used[path] == 1:
            found[path] = _path_of_core(net, node.target)
    return found


def _traced(net: nn.Module) -> fx.Graph:
    """What a plain pass does, with the defaults of what else a pass may be given."""
    parameters = signature(net.forward).parameters.values()
    given = {known.name: known.default for known in parameters if known.default is not Parameter.empty}
    try:
        return _Tracer().trace(net, given)
    except Exception as error:  # whatever a forward does that only works with real tensors
        kind, reason = type(net).__name__, str(error).partition("\n")[0].partition(". ")[0]
        raise InputError(f"the {kind} cannot be folded: torch.fx cannot trace it ({reason})") from error


def _check_one_path(net: nn.Module, used: Counter[str]) -> None:
    """Refuse a network with batch norms that a pass does not use just once: they may belong to other passes."""
    for path, module in net.named_modules():
        if isinstance(module, Norm) and used[path] != 1:
            kind = type(net).__name__
            raise InputError(f"the {kind} cannot be folded: a pass uses {path} {used[path]} times, not once")


def _fits(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether a module is a batch norm with fixed statistics of just what another writes."""
    if isinstance(layer, Slim) and layer.part.outputs is not None:
        return False
    if isinstance(norm, Slim) and norm.part.inputs is not None:
        return False
    mixing, batch_norm = core_of(layer), core_of(norm)
    if not isinstance(mixing, Mixing) or not isinstance(batch_norm, Norm):
        return False
    return batch_norm.track_running_stats and batch_norm.num_features == widths(mixing)[1]


def _path_of_core(model: nn.Module, path: str) -> str:
    """Of what computes in a layer."""
    return f"{path}.core" if isinstance(model.get_submodule(path), Slim) else path


def _absorbed(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that does what it and the batch norm did, computed in double precision."""
    assert isinstance(layer, Mixing)
    assert isinstance(norm, Norm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    bias = torch.zeros_like(mean) if layer.bias is None else layer.bias.double()
    scale = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    weight, bias = fuse(layer.weight.double(), bias, mean, variance, norm.eps, scale, shift)
    return weight.to(layer.weight), bias.to(layer.weight)


def main(config: FoldConfig) -> nn.Module:
    """What `resless-fold` does: write the folded network, and time it against the one that was given."""
    output = Path(config.output)
    weights.check_target(output, config.overwrite)
    model, described = weights.from_pretrained(config.model), weights.read_config(config.model)
    if config.export == "onnx" and hasattr(model, "plain_parts"):
        kind = type(model).__name__
        raise InputError(f"--export is onnx, which cannot hold what a {kind} decides for each image: leave it out")
    exported = onnx.beside(output, config.overwrite) if config.export == "onnx" else None
    shape = described["costs"].get("image_shape")
    if shape is None:
        raise InputError(f"{config.model} does not tell the size of its images: save it again with an `example`")
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    small = fold(model, images)
    weights.save_pretrained(
        small,
        output,
        preprocessing=described["preprocessing"],
        metrics=described["metrics"],
        description=f"{described['description']} For inference: batch norms are folded into the layers before them, "
        "with equal outputs.".lstrip(),
        example=images[:1],
        class_names=described.get("class_names"),
        overwrite=config.overwrite,
    )
    networks = {"as given": model, "folded": small}
    _print_sizes(networks, output, images[:1])
    if exported is not None:
        onnx.export(small, images, exported)
        print(f"wrote {exported}, whose outputs onnxruntime finds equal")
    if config.repeats:
        latency.show(networks, shape, (1, config.batch_size), config.repeats, channels_last=config.channels_last)
    return small


def _print_sizes(networks: dict[str, nn.Module], output: Path, example: Tensor) -> None:
    rows = [
        [name, str(_norms(network)), f"{costs.count_parameters(network):,}", f"{costs.macs(network, example):,}"]
        for name, network in networks.items()
    ]
    table(f"wrote {output}", ["network", "batch norms", "parameters", "MACs"], rows)


def _norms(network: nn.Module) -> int:
    return sum(isinstance(module, Norm) for module in network.modules())


if __name__ == "__main__":
    from resless.cli import fold as script

    script()
