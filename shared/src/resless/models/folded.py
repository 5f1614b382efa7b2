"""Networks whose batch norms went into the convolutions before them: for inference, described by data.

A folded network is an instance of the class of the network that it is made of. Each convolution (or linear layer) that
took a batch norm in has a bias, and in place of that batch norm stands an identity, `Absent`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from resless import models
from resless.errors import InputError, check, unknown_name
from resless.models.shrunk import Mixing, Norm, widths

NAME = "folded"


class Absent(nn.Identity):
    """What stands in the place of a batch norm that went into the layer before it."""


def folded(
    *,
    num_classes: int,
    in_channels: int,
    base: str,
    base_options: Mapping[str, Any],
    norms: Mapping[str, str],
) -> nn.Module:
    """A network without some of its batch norms.

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        base: name of the network.
        base_options: its options.
        norms: path of a convolution or linear layer in it -> path of the batch norm that went into it.

    Raises:
        InputError: an unknown network, option or layer, or a batch norm that does not fit its layer.
    """
    check(base != NAME, "base", base, "the network that was folded at first")
    check(isinstance(base_options, Mapping), "base_options", base_options, "an object")
    net = models.build(models.Spec(base, num_classes, in_channels, dict(base_options)))
    _check_norms(net, norms, base)
    replace(net, norms)
    return net


def check_unfolded(model: nn.Module, wish: str) -> None:
    """Refuse a network that is folded, or of which a part is, for what needs its batch norms: it cannot be `wish`."""
    if any(isinstance(module, Absent) for module in model.modules()):
        raise InputError(
            f"the network is folded, for inference only: it cannot be {wish}; give the one from before it was folded"
        )


def _check_norms(net: nn.Module, norms: Any, base: str) -> None:
    check(isinstance(norms, Mapping), "norms", norms, "an object: path of a layer -> path of the batch norm behind it")
    layers = {path: layer for path, layer in net.named_modules() if isinstance(layer, Mixing)}
    known = {path: norm for path, norm in net.named_modules() if isinstance(norm, Norm)}
    for layer, norm in norms.items():
        if layer not in layers:
            raise unknown_name(f"layer of {base}", str(layer), layers)
        if not isinstance(norm, str) or norm not in known:
            raise unknown_name(f"batch norm of {base}", str(norm), known)
        given, taken = widths(layers[layer])[1], widths(known[norm])[0]
        check(given == taken, f"norms[{layer}]", norm, f"a batch norm of {given} channels, but it has {taken}")
    twice = len(set(norms.values())) < len(norms)
    check(not twice, "norms", norms, "an object that names each batch norm once")


def replace(net: nn.Module, norms: Mapping[str, str]) -> None:
    """Give these layers a bias, and take away the batch norms behind them, under all names that they have; in place.

    Weights stay as they are, and new biases are zero.
    """
    gone = {net.get_submodule(norm) for norm in norms.values()}
    for path, module in list(net.named_modules(remove_duplicate=False)):
        if module in gone:
            parent, _, name = path.rpartition(".")
            setattr(net.get_submodule(parent), name, Absent())
    for layer in norms:
        mixing = net.get_submodule(layer)
        if mixing.bias is None:
            bias = torch.zeros(widths(mixing)[1], dtype=mixing.weight.dtype, device=mixing.weight.device)
            mixing.bias = nn.Parameter(bias, mixing.weight.requires_grad)
