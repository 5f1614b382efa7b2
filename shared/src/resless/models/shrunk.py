"""Networks whose layers were exchanged for smaller ones: what compaction leaves, described by data.

A shrunk network is an instance of its own class: its forward, its blocks and its stages are those of the network that
it is made of. Only layers are exchanged: each reads some of the channels that it is given and writes its own, fewer
channels into what the layers after it share.

Letters: N images, C channels (or columns, of flattened features), H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from resless import models
from resless.errors import InputError, check, unknown_name
from resless.models import options
from resless.models.resnet import AvgPoolShortcut, SubsampleShortcut, initialise_convolutions

NAME = "shrunk"
MAX_MULTIPLIED = 32
"""Channels of which some are taken by a multiplication, in channels_last and bf16 on a CPU; of more, a gather is
faster."""
Indices = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """How a smaller layer reads and writes. Indices increase and count channels of the shrunk network."""

    in_width: int
    """Channels of what the layer is given."""
    inputs: Indices | None
    """Those of them that it reads; None: all."""
    out_width: int
    """Channels of what it returns; those that it does not write are zero."""
    outputs: Indices | None
    """Those of them that it writes; None: all."""
    bias: bool = False
    """Whether a convolution or linear layer has a bias, even if the layer in whose place it stands had none."""

    @property
    def num_inputs(self) -> int:
        """Channels read."""
        return self.in_width if self.inputs is None else len(self.inputs)

    @property
    def num_outputs(self) -> int:
        """Channels written."""
        return self.out_width if self.outputs is None else len(self.outputs)


class Subsample(nn.Module):
    """Every `stride`-th pixel, [N, C, H, W] -> [N, C, H/stride, W/stride]."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride]


class Slim(nn.Module):
    """A layer, `core`, that reads some channels and writes some: [N, in_width, ...] -> [N, out_width, ...]."""

    inputs: Tensor | None
    sources: Tensor | None

    def __init__(self, core: nn.Module, part: Part) -> None:
        super().__init__()
        self.part = part
        self.core = core
        inputs = None if part.inputs is None else torch.tensor(part.inputs)
        self.register_buffer("inputs", inputs, persistent=False)
        # Where the core's channels are an unbroken run, padding is faster than gathering.
        first = 0 if part.outputs is None else part.outputs[0]
        run = part.outputs is None or part.outputs == tuple(range(first, first + part.num_outputs))
        self.padding = (first, part.out_width - first - part.num_outputs) if run else None
        self.register_buffer("sources", None if run else self._sources(part), persistent=False)

    @staticmethod
    def _sources(part: Part) -> Tensor:
        """For each channel that is returned the one of the core's; where there is none, the one after them all."""
        assert part.outputs is not None
        sources = torch.full((part.out_width,), part.num_outputs)
        return sources.index_copy(0, torch.tensor(part.outputs), torch.arange(part.num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.inputs is not None:
            x = _gathered(x, self.inputs)
        x = self.core(x)
        if self.sources is not None:
            return _gathered(_padded(x, 0, 1), self.sources)
        return x if self.padding in (None, (0, 0)) else _padded(x, *self.padding)


def _gathered(x: Tensor, channels: Tensor) -> Tensor:
    """These channels of x, in the memory layout of x."""
    if x.dim() != 4 or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return x.index_select(1, channels)
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.shape[1] <= MAX_MULTIPLIED:
        # Two to four times as fast as a gather, and exact for finite values: what is added to a channel are zeros.
        return F.conv2d(x, F.one_hot(channels, x.shape[1]).to(x)[:, :, None, None])
    # In channels_last, index_select takes three times as long, and leaves the layout.
    count, width, height, columns = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(-1, width)
    taken = pixels.gather(1, channels.expand(pixels.shape[0], -1))
    return taken.view(count, height, columns, -1).permute(0, 3, 1, 2)


def _padded(x: Tensor, before: int, after: int) -> Tensor:
    """x with so many zero channels on both sides."""
    return F.pad(x, (*[0, 0] * (x.dim() - 2), before, after))


# --- exchanging layers -----------------------------------------------------------------------------------------------

Mixing = nn.Conv2d | nn.Linear
"""Layers of which every output channel depends on many inputs."""
Norm = _BatchNorm
Padding = SubsampleShortcut | AvgPoolShortcut
"""Shortcuts that pool, and add zero channels."""
Spatial = Subsample | nn.AvgPool2d
"""What is left of them without those channels."""


def exchangeable(module: nn.Module) -> bool:
    """Whether `exchange` knows a smaller layer for this one, or has made it."""
    return isinstance(module, Mixing | Norm | Padding | Slim)


def core_of(layer: nn.Module) -> nn.Module:
    """What computes in a layer that was exchanged or may be."""
    if isinstance(layer, Slim):
        return layer.core
    if isinstance(layer, SubsampleShortcut):
        return Subsample(layer.stride)
    if isinstance(layer, AvgPoolShortcut):
        return nn.AvgPool2d(layer.stride, ceil_mode=True)
    return layer


def exchange(net: nn.Module, parts: Mapping[str, Part]) -> None:
    """Put smaller layers, with fresh weights, in place of those of any network; in place.

    Args:
        net: the network; its layers may be on the meta device, the new ones are on the default device.
        parts: path of a layer -> how the new one reads and writes.
    """
    for path, part in parts.items():
        layer = net.get_submodule(path)
        core = _smaller(core_of(layer), part)
        whole = part.inputs is None and part.outputs is None
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, core if whole else Slim(core, part))


def _smaller(core: nn.Module, part: Part) -> nn.Module:
    """A layer of the same kind that takes and gives as many channels as `part` reads and writes."""
    if isinstance(core, nn.Linear):
        return nn.Linear(part.num_inputs, part.num_outputs, bias=part.bias)
    if isinstance(core, nn.Conv2d):
        return nn.Conv2d(
            part.num_inputs,
            part.num_outputs,
            core.kernel_size,  # type: ignore[arg-type]
            core.stride,  # type: ignore[arg-type]
            core.padding,  # type: ignore[arg-type]
            core.dilation,  # type: ignore[arg-type]
            1 if core.groups == 1 else part.num_inputs * core.groups // core.in_channels,
            part.bias,
            core.padding_mode,
        )
    if isinstance(core, Norm):
        return type(core)(part.num_inputs, core.eps, core.momentum, core.affine, core.track_running_stats)
    return core


def widths(layer: nn.Module) -> tuple[int, int]:
    """Channels that a layer takes and gives; the largest allowed ones for a shortcut, which takes any number."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, Norm):
        return layer.num_features, layer.num_features
    return options.MAX_SIZE, options.MAX_SIZE


def whole(layer: nn.Conv2d | nn.Linear | Norm) -> Part:
    """The part that changes nothing."""
    taken, given = widths(layer)
    return Part(taken, None, given, None, isinstance(layer, Mixing) and layer.bias is not None)


# --- the network of a description ------------------------------------------------------------------------------------


def shrunk(
    *,
    num_classes: int,
    in_channels: int,
    base: str,
    base_options: Mapping[str, Any],
    layers: Mapping[str, Mapping[str, Any]],
    rectified: Sequence[str] = (),
) -> nn.Module:
    """A network with some layers exchanged for smaller ones. The larger network is never allocated.

    Fresh weights are those of the CIFAR ResNets: He's for convolutions, torch's own for linear layers.

    Args:
        num_classes: number of logits.
        in_channels: C of the images.
        base: name of the network whose layers are exchanged.
        base_options: its options.
        layers: path of a convolution, linear layer, batch norm or zero-padding shortcut in it -> fields of a `Part`.
            The others stay as they are.
        rectified: paths of projection shortcuts after which a ReLU follows: what is left of a block that ends in one
            and lost its residual branch.

    Raises:
        InputError: an unknown network, option or layer; widths or indices of a wrong type or out of range; layers that
            cannot be built smaller.
    """
    check(base not in (NAME, "folded"), "base", base, "the network that was shrunk at first, not folded")
    check(isinstance(base_options, Mapping), "base_options", base_options, "an object")
    with torch.device("meta"):
        net = models.build(models.Spec(base, num_classes, in_channels, dict(base_options)))
    parts = _checked_parts(net, layers, base)
    shortcuts = _checked_shortcuts(net, rectified, base)
    kept = {path: whole(layer) for path, layer in net.named_modules() if isinstance(layer, Mixing | Norm)}
    exchange(net, kept | parts)
    for shortcut in shortcuts:
        shortcut.append(nn.ReLU())
    _check_allocated(net, base)
    initialise_convolutions(net)
    return net


def _checked_parts(net: nn.Module, layers: Any, base: str) -> dict[str, Part]:
    check(isinstance(layers, Mapping), "layers", layers, "an object: path of a layer -> its widths and indices")
    known = {path: layer for path, layer in net.named_modules() if exchangeable(layer)}
    parts = {}
    for path, fields in layers.items():
        if path not in known:
            raise unknown_name(f"layer of {base}", str(path), known)
        parts[path] = _checked_part(f"layers[{path}]", fields, known[path])
    return parts


def _checked_part(field: str, fields: Any, layer: nn.Module) -> Part:
    names = tuple(Part.__dataclass_fields__)
    check(isinstance(fields, Mapping) and set(fields) == set(names), field, fields, f"an object of {', '.join(names)}")
    taken, given = widths(layer)
    in_width = options.whole_number(f"{field}.in_width", fields["in_width"], 1, taken)
    out_width = options.whole_number(f"{field}.out_width", fields["out_width"], 1, given)
    inputs = options.kept_indices(f"{field}.inputs", fields["inputs"], in_width)
    outputs = options.kept_indices(f"{field}.outputs", fields["outputs"], out_width)
    bias = fields["bias"]
    check(isinstance(bias, bool), f"{field}.bias", bias, "true or false")
    part = Part(in_width, inputs, out_width, outputs, bias)
    counts = f"{part.num_inputs} inputs and {part.num_outputs} outputs"
    if not isinstance(layer, Mixing):
        check(part.num_inputs == part.num_outputs, field, counts, "as many outputs as inputs")
    elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
        inputs_each, outputs_each = taken // layer.groups, given // layer.groups
        groups, rest = divmod(part.num_inputs, inputs_each)
        fits = rest == 0 and part.num_outputs == groups * outputs_each
        check(fits, field, counts, f"whole groups of {inputs_each} inputs and {outputs_each} outputs")
    return part


def _checked_shortcuts(net: nn.Module, rectified: Any, base: str) -> list[nn.Sequential]:
    check(isinstance(rectified, list | tuple), "rectified", rectified, "a list of paths")
    known = {path: module for path, module in net.named_modules() if isinstance(module, nn.Sequential)}
    for path in rectified:
        if not isinstance(path, str) or path not in known:
            raise unknown_name(f"shortcut of {base}", str(path), known)
    return [known[path] for path in rectified]


def _check_allocated(net: nn.Module, base: str) -> None:
    tensors = [*net.named_parameters(), *net.named_buffers()]
    left = [name for name, tensor in tensors if tensor.is_meta]
    # Where a whole network is asked for without its values, all are.
    if left and len(left) < len(tensors):
        raise InputError(f"{base} cannot be shrunk: {left[0]} is of no convolution, linear layer or batch norm")
