"""LeNets without their zeros: what is left is a plain LeNet again, of smaller widths, that reads fewer inputs.

A unit (a filter, or a row of a linear layer) goes if nothing reads it, or if it reads nothing. One that reads nothing
still puts out a constant, relu(bias): that constant is folded into the biases of the layer that reads it, which is
exact here because LeNet's convolutions have no padding. Taking a unit away can leave others without readers or
inputs, so the rules are applied until nothing changes.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

from resless import models
from resless.models.lenet import LeNet5, LeNet300100, lenet5_pooled_size
from torch import Tensor, nn

from deephoyer.plan import EmptyLayer


def compact_lenet(model: LeNet5 | LeNet300100) -> nn.Module:
    """The LeNet without its zeros. Raises EmptyLayer where nothing is left of a layer."""
    layers = _layers(model)
    _silence(layers)
    return _compact_lenet5(model, layers) if isinstance(model, LeNet5) else _compact_lenet_300_100(model, layers)


@dataclass
class _Layer:
    """A copy of one layer: weight [O, I, ...] and bias [O], zeroed in place where units are taken away."""

    name: str
    weight: Tensor
    bias: Tensor

    def rows(self) -> Tensor:
        """[O] bool: the units that read anything."""
        return (self.weight != 0).flatten(1).any(dim=1)

    def columns(self) -> Tensor:
        """[I] bool: the inputs that are read."""
        return (self.weight != 0).transpose(0, 1).flatten(1).any(dim=1)


def _silence(layers: list[_Layer]) -> None:
    """Zero every unit that is not read or reads nothing, until each unit left does both."""
    pairs = list(itertools.pairwise(layers))
    while sum(_silence_between(layer, reader) for layer, reader in pairs):
        pass


def _silence_between(layer: _Layer, reader: _Layer) -> int:
    """One pass over the units of `layer`, which `reader` reads after a ReLU (and pooling): how many went."""
    positions = reader.weight.shape[1] // layer.weight.shape[0]  # columns of the reader for each unit: 16 after flatten
    by_unit = reader.weight.unflatten(1, (-1, positions))  # [O', O, positions, ...]
    reads, is_read = layer.rows(), reader.columns().view(-1, positions).any(dim=1)
    constant, unread = is_read & ~reads, reads & ~is_read
    if constant.any():
        # Pooling keeps a constant, and without padding every output position sees all of the kernel.
        effect = by_unit[:, constant].sum(dim=tuple(range(2, by_unit.dim())))  # [O', constant units]
        reader.bias += effect @ layer.bias[constant].relu()
        by_unit[:, constant] = 0
    layer.weight[unread] = 0
    layer.bias[~(reads & is_read)] = 0
    return int(constant.sum() + unread.sum())


def _compact_lenet_300_100(model: LeNet300100, layers: list[_Layer]) -> nn.Module:
    fc1, fc2, fc3 = layers
    inputs, hidden1, hidden2 = fc1.columns(), fc1.rows(), fc2.rows()
    tensors = {
        "fc1.weight": fc1.weight[hidden1][:, inputs],
        "fc1.bias": fc1.bias[hidden1],
        "fc2.weight": fc2.weight[hidden2][:, hidden1],
        "fc2.bias": fc2.bias[hidden2],
        "fc3.weight": fc3.weight[:, hidden2],
        "fc3.bias": fc3.bias,
    }
    return _rebuilt(model, tensors, widths=(hidden1, hidden2), inputs=inputs)


def _compact_lenet5(model: LeNet5, layers: list[_Layer]) -> nn.Module:
    conv1, conv2, fc1, fc2 = layers
    filters1, filters2, features, hidden = conv1.rows(), conv2.rows(), fc1.columns(), fc1.rows()
    positions = len(features) // len(filters2)
    left = features.view(-1, positions)[filters2].flatten()  # of the features that the smaller network computes
    tensors = {
        "conv1.weight": conv1.weight[filters1],
        "conv1.bias": conv1.bias[filters1],
        "conv2.weight": conv2.weight[filters2][:, filters1],
        "conv2.bias": conv2.bias[filters2],
        "fc1.weight": fc1.weight[hidden][:, features],
        "fc1.bias": fc1.bias[hidden],
        "fc2.weight": fc2.weight[:, hidden],
        "fc2.bias": fc2.bias,
    }
    return _rebuilt(model, tensors, widths=(filters1, filters2, hidden), features=left)


def _layers(model: LeNet300100 | LeNet5) -> list[_Layer]:
    """Copies of the layers; the first linear one reads all inputs again, zeros where the network left some out."""
    layers = [_Layer(name, *layer.parameters()) for name, layer in copy.deepcopy(model).named_children()]
    fc1 = next(layer for layer in layers if layer.name == "fc1")
    if isinstance(model, LeNet5):
        indices, inputs = model.features, model.conv2.out_channels * lenet5_pooled_size(model.image_shape[1]) ** 2
    else:
        indices, inputs = model.inputs, math.prod(model.image_shape)
    if indices is not None:
        fc1.weight = fc1.weight.new_zeros(len(fc1.weight), inputs).index_copy_(1, indices, fc1.weight)
    return layers


def _rebuilt(model: nn.Module, tensors: dict[str, Tensor], widths: tuple[Tensor, ...], **columns: Tensor) -> nn.Module:
    """A network of the same kind that has the units which are True in `widths`, and reads the columns that are."""
    kept: dict[str, Any] = {"widths": tuple(int(units.sum()) for units in widths)}
    for name, read in columns.items():
        kept[name] = None if read.all() else tuple(read.nonzero().flatten().tolist())
    if 0 in kept["widths"] or any(not read.any() for read in columns.values()):
        raise EmptyLayer(f"nothing is left of a layer: widths {kept['widths']}; cut less, or use the network as it is")
    spec = models.spec_of(model)
    small = models.build(replace(spec, options=spec.options | kept))
    small.load_state_dict(tensors)
    return small
