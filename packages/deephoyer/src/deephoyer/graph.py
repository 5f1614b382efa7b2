"""A network as torch.fx sees it: its operations in order, and what each does to channels."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from resless.errors import InputError
from resless.models import shrunk
from torch import Tensor, fx, nn


class Kind(Enum):
    """What an operation does to the channels of [N, C, ...]."""

    INPUT = auto()
    OUTPUT = auto()
    LAYER = auto()
    """It has weights or indices for its channels, and can be exchanged for a smaller one."""
    ACTIVATION = auto()
    """The same function of every element."""
    PASSING = auto()
    """A constant channel stays the constant that it is: dropout, pooling, means over pixels."""
    PADDED = auto()
    """Of constant channels only zero stays constant: average pooling with padding."""
    FLATTEN = auto()
    """Every channel becomes as many columns as it has pixels."""
    ADDITION = auto()
    CONCATENATION = auto()


_RECTIFIERS = {nn.ReLU, nn.ReLU6, F.relu, F.relu6, torch.relu, "relu", "relu_"}
_ACTIVATIONS = _RECTIFIERS | {nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Hardswish, nn.Tanh, nn.Sigmoid}
_ACTIVATIONS |= {F.gelu, F.silu, F.elu, F.leaky_relu, F.hardswish, torch.tanh, torch.sigmoid}
_AVERAGES = {nn.AvgPool2d, F.avg_pool2d}
_PASSING = {nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, F.dropout2d, "contiguous", shrunk.Subsample}
_PASSING |= {nn.MaxPool2d, F.max_pool2d, nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d, nn.AdaptiveMaxPool2d}
_MEANS = {torch.mean, "mean"}
_FLATTENING = {nn.Flatten, torch.flatten, "flatten"}
_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_CONCATENATIONS = {torch.cat, torch.concat}


@dataclass(frozen=True)
class Node:
    """One operation: what it reads and gives, and where in the network it is."""

    name: str
    kind: Kind
    sources: tuple[str, ...]
    """Names of the nodes whose values it reads, in order."""
    shape: torch.Size
    """Of its value for one image, [1, C, ...]."""
    path: str
    """Of the module that it is, or is in."""
    inside: tuple[str, ...]
    """Paths of the modules that it is in, its own included, from outside to inside."""
    function: Callable[[Tensor], Tensor]
    """An activation, on tensors of any shape."""
    rectifies: bool
    """Whether it gives nothing negative, whatever it reads."""


def trace(model: nn.Module, example: Tensor) -> list[Node]:
    """The operations of a network in eval mode, in order of execution, for the first image of `example` [N, C, H, W].

    Raises:
        CannotFollow: a module or an operation that this cannot follow; it is named.
    """
    try:
        traced = fx.GraphModule(model, _Tracer().trace(model))
        traced.graph.eliminate_dead_code()
        with torch.no_grad():
            _Shapes(traced).run(example[:1])
    except Exception as error:  # whatever a forward does that only works with real tensors
        raise cannot_follow(f"a {type(model).__name__}", f"torch.fx cannot trace it ({error})") from error
    modules = dict(model.named_modules())
    return [_node(node, modules) for node in traced.graph.nodes]


class CannotFollow(InputError):
    """A network holds something that this package cannot follow: it can be pruned, but not made smaller."""


def cannot_follow(what: str, why: str) -> CannotFollow:
    """The error that names what cannot be followed."""
    return CannotFollow(f"compact cannot follow {what}: {why}; use the network as it is")


class _Tracer(fx.Tracer):
    """Goes into all modules but torch's own and those that can be exchanged."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, shrunk.Subsample) or shrunk.exchangeable(m)
        return own or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Notes the shape of every node's value. torch's own pass that does it imports sympy, for seconds."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["shape"] = value.shape if isinstance(value, Tensor) else None
        return value


def _node(node: fx.Node, modules: Mapping[str, nn.Module]) -> Node:
    module = modules[str(node.target)] if node.op == "call_module" else None
    inside = tuple(path for path, _ in node.meta.get("nn_module_stack", {}).values())
    path = inside[-1] if inside else ""
    where = f"{path or 'the network'} ({type(modules[path]).__name__})"
    operation: Any = node.target if module is None else type(module)
    kind = _kind(node, module, operation)
    shape = node.meta["shape"]
    if kind is None or shape is None:
        what = getattr(operation, "__name__", operation)
        raise cannot_follow(where, f"it does not know what {what} does to channels")
    sources = tuple(source.name for source in node.all_input_nodes)
    function = module if module is not None else _function(node)
    return Node(node.name, kind, sources, shape, path, inside, function, operation in _RECTIFIERS)


def _kind(node: fx.Node, module: nn.Module | None, operation: Any) -> Kind | None:
    """None for what is not known."""
    if node.op in ("placeholder", "output"):
        return Kind.INPUT if node.op == "placeholder" else Kind.OUTPUT
    if module is not None and shrunk.exchangeable(module):
        return Kind.LAYER
    if operation in _CONCATENATIONS:
        return Kind.CONCATENATION if _argument(node, 1, "dim", 0) in (1, 1 - _dimensions(node)) else None
    shapes = [source.meta["shape"] for source in node.all_input_nodes]
    if operation in _ADDITIONS:
        return Kind.ADDITION if len(shapes) == 2 and shapes[0] == shapes[1] and not node.kwargs else None
    if len(shapes) != 1:
        return None
    if operation in _ACTIVATIONS:
        return Kind.ACTIVATION
    if operation in _AVERAGES:
        padding = _argument(node, 3, "padding", 0) if module is None else module.padding
        return Kind.PASSING if padding in (0, (0, 0)) else Kind.PADDED
    if operation in _PASSING or (operation in _MEANS and _is_over_pixels(node)):
        return Kind.PASSING
    if operation in _FLATTENING:
        start = _argument(node, 1, "start_dim", 0) if module is None else module.start_dim
        end = _argument(node, 2, "end_dim", -1) if module is None else module.end_dim
        return Kind.FLATTEN if (start, end) == (1, -1) else None
    return None


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a function or method, wherever it stands."""
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)


def _dimensions(node: fx.Node) -> int:
    return len(node.meta["shape"])


def _is_over_pixels(node: fx.Node) -> bool:
    dims = _argument(node, 1, "dim", ())
    dims = {dims} if isinstance(dims, int) else set(dims or ())
    return bool(dims) and dims <= {2, 3, -1, -2}


def _function(node: fx.Node) -> Callable[[Tensor], Tensor]:
    """A function or method of one tensor, with its other arguments."""

    def function(x: Tensor) -> Tensor:
        called = getattr(torch, node.target) if isinstance(node.target, str) else node.target
        return called(x, *node.args[1:], **node.kwargs)

    return function
