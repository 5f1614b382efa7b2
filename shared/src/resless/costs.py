"""Costs in MACs (1 multiply-add = 1) and parameters.

MACs are those of convolutions and linear layers, computed per layer from the shapes that really ran, and of matrix
products outside such layers (attention). Norms, activations, pooling and additions are not counted. Every count is
checked against the operators that torch executed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from resless.modes import in_eval_mode

# Products that FlopCounterMode takes for free.
_UNCOUNTED = frozenset({"mv", "addmv", "dot", "vdot", "addr", "_trilinear", "_cdist_forward", "_euclidean_dist"})


@dataclass(frozen=True)
class LayerCost:
    """What one layer cost for the inputs it was counted with."""

    name: str
    """The module's name in the network, or `<operator>` for matrix products outside convolutions and linear layers."""
    parameters: int
    """Weights and biases of the layer."""
    macs: int
    """Multiply-adds over all images and calls; 0 for a layer that did not run."""
    values: int = 0
    """Numbers in its inputs and outputs, likewise: what passes memory besides weights."""


def layer_costs(model: nn.Module, *inputs: Any) -> list[LayerCost]:
    """Cost of every convolution and linear layer for one forward pass `model(*inputs)`, in order of registration.

    Counted in eval mode without gradients; the modes of all modules are restored. Layers that ran on a part of the
    batch, several times or not at all count accordingly.

    Raises:
        RuntimeError: the operators executed do not agree with the shapes of the layers, or a matrix product ran that
            cannot be counted; layers or operators are named.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _LAYERS)}
    expected: Counter[str] = Counter()
    values: Counter[str] = Counter()
    executed: dict[str, Counter[Any]] = {name: Counter() for name in layers}
    operators, uncounted = FlopCounterMode(display=False), _UncountedOperators()

    def counts() -> Counter[Any]:
        return Counter(operators.get_flop_counts().get("Global", {}))

    def watch(name: str, layer: nn.Module) -> list[Any]:
        before: list[Counter[Any]] = []

        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            before.append(counts())

        def leave(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            expected[name] += _macs_of(layer, output)
            values[name] += sum(value.numel() for value in (*args, output))
            executed[name] += counts() - before.pop()

        return [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]

    handles = [handle for name, layer in layers.items() for handle in watch(name, layer)]
    try:
        with _counting(model), uncounted, operators:
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()

    wrong = [
        f"{name} has {expected[name]} by its shapes, {executed[name].total() // 2} by its operators"
        for name in layers
        if 2 * expected[name] != executed[name].total()
    ]
    if wrong:
        raise RuntimeError(f"MACs of layers and of the operators that ran disagree: {'; '.join(wrong)}")
    if uncounted.names:
        raise RuntimeError(f"MACs of these operators cannot be counted: {', '.join(sorted(uncounted.names))}")
    outside = counts()
    for layer_counts in executed.values():
        outside -= layer_counts
    return [
        *(LayerCost(name, count_parameters(layer), expected[name], values[name]) for name, layer in layers.items()),
        *(LayerCost(f"<{operator}>", 0, flops // 2) for operator, flops in outside.items()),
    ]


def layer_macs(model: nn.Module, *inputs: Any) -> dict[str, int]:
    """MACs per layer name of one forward pass; see `layer_costs`."""
    return {cost.name: cost.macs for cost in layer_costs(model, *inputs)}


def macs(model: nn.Module, *inputs: Any) -> int:
    """MACs of one forward pass `model(*inputs)`, summed over the batch; see `layer_costs`."""
    return sum(cost.macs for cost in layer_costs(model, *inputs))


def count_parameters(model: nn.Module) -> int:
    """Numbers in all parameters, shared ones once; buffers such as running means do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYERS = (*_CONVOLUTIONS, nn.Linear)


def _macs_of(layer: nn.Module, output: Tensor) -> int:
    """Multiply-adds that a layer took to compute `output`."""
    if isinstance(layer, _CONVOLUTIONS):
        return output.numel() * layer.in_channels // layer.groups * prod(layer.kernel_size)
    assert isinstance(layer, nn.Linear)
    return output.numel() * layer.in_features


class _UncountedOperators(TorchDispatchMode):
    """Notes products that FlopCounterMode would leave out silently."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _UNCOUNTED:
            self.names.add(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def _counting(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, attention as plain matrix products; everything is put back afterwards."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with in_eval_mode(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
