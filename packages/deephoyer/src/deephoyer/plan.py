"""What is left of a network's layers when its zeros go: which channels each of them reads and writes.

Forwards, every channel of every value is constant (zero above all) or varies. Backwards, every layer keeps the outputs
that somebody wants, and wants the inputs that these read with a weight that is not zero. Values that an addition ties
together share their channels one by one: a channel is there for all of them once it is wanted of any. Where a value has
more channels than a layer writes or reads, the layer puts its own where they belong, or takes them from there.

A constant that is not zero is folded into the bias of a layer that reads it, if that is exact: at the borders of a
padded convolution the constant ends. There the channel stays.

Taking channels out of a value or putting them where they belong is a pass over memory. So all this is done twice: the
first time tells which channels there have to be, and the second time a layer that would skip few of those reads or
writes them all, zeros included, if the pass would take longer than the zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod

import torch
from resless.errors import InputError
from resless.models import shrunk
from resless.models.blocks import BranchingNetwork, branching
from resless.models.shrunk import Mixing, Norm, Part
from torch import Tensor, nn

from deephoyer.channels import Atoms, Layer
from deephoyer.graph import Kind, Node, cannot_follow

SHORTCUTS = ("shortcut", "downsample")
"""Names under which blocks hold what runs beside their residual branch."""
SLOWER = "slower without"
"""Why a layer keeps zeros that only a copy could leave out."""
LANES = 16
"""Filters that a processor computes at once: fewer take as long. AVX-512 has 16 floats in a register."""
COPY = 24
"""Multiply-adds that take as long as copying one channel of one pixel. Measured on such a processor: 5 to 10 in the
usual layout, 20 in channels_last, 30 to 100 there in bf16, where multiply-adds take less time and copies do not."""


class EmptyLayer(InputError):
    """Nothing would be left of a layer."""


@dataclass(frozen=True)
class Kept:
    """What is left of one layer."""

    rows: Tensor
    """[O] bool: of the outputs that the layer computes, those that it keeps."""
    columns: Tensor
    """[I] bool: of the inputs that it reads, those that it keeps."""
    groups: int
    """Groups that a convolution had; 1 for others."""
    folded: Tensor
    """[O]: what it no longer reads, being constant, adds to its bias."""
    part: Part
    """Its place in the smaller network."""
    why: str
    """Why it is not smaller, where it keeps what is zero; else empty."""
    changed: bool
    """Whether anything of the layer, or of what it is given or gives, goes."""

    @property
    def share(self) -> Fraction:
        """Of the layer's products of an input and an output, the part that stays."""
        rows, columns = (Fraction(int(mask.sum()), len(mask)) for mask in (self.rows, self.columns))
        return rows * columns if self.groups == 1 else rows  # outputs of whole groups, which read as much as ever


@dataclass(frozen=True)
class Plan:
    """What is left of every layer, by its path, and of blocks."""

    layers: dict[str, Kept]
    dropped: tuple[str, ...]
    """Paths of blocks, or layers of a DenseNet, that lose their branch."""
    rectified: tuple[str, ...]
    """Paths of the shortcuts of such blocks that a ReLU is to follow."""


@dataclass
class _Value:
    """The channels of one value; C of them."""

    atoms: Tensor
    """[C]: channels of several values that are one and the same have one number, see `Atoms`."""
    constant: Tensor
    """[C] float64: what a channel is everywhere; NaN where it varies."""
    blank: Tensor
    """[C] bool: what is zero even if nothing is written where nothing is wanted. A constant below zero before a ReLU
    is not: without it, something else may be left of a sum."""
    alive: Tensor
    """[C] bool: what depends on the image. Beside a border even a constant varies."""
    rectified: bool
    """Whether nothing in it is negative."""
    wanted: Tensor = field(init=False)
    """[C] bool."""

    def __post_init__(self) -> None:
        self.wanted = torch.zeros(len(self.atoms), dtype=torch.bool)


def _joined(values: Sequence[_Value]) -> _Value:
    """Concatenated along the channels."""
    rows = [(value.atoms, value.constant, value.blank, value.alive) for value in values]
    atoms, constant, blank, alive = map(torch.cat, zip(*rows, strict=True))
    return _Value(atoms, constant, blank, alive, all(value.rectified for value in values))


@torch.no_grad()
def plan(nodes: Sequence[Node], model: nn.Module, round_to: int = 1) -> Plan:
    """What is left of each layer of `model`.

    Args:
        nodes: its operations, or those of a network of the same structure, see `graph.trace`.
        model: the network; it is not changed.
        round_to: convolutions and linear layers keep so many zeros that their widths are multiples of this, or whole.

    Raises:
        EmptyLayer: no input leads to the logits, for nothing is left of a layer.
    """
    return _Planner(nodes, model, round_to).plan()


class _Planner:
    def __init__(self, nodes: Sequence[Node], model: nn.Module, round_to: int) -> None:
        self._nodes, self._round_to = nodes, round_to
        self._by_name = {node.name: node for node in nodes}
        self._modules = dict(model.named_modules())
        self._blocks = set(branching(model)) if isinstance(model, BranchingNetwork) else set[str]()
        self._atoms = Atoms()
        self._values: dict[str, _Value] = {}
        self._layers: dict[str, Layer] = {}
        self._needed: dict[str, Tensor] = {}
        self._whole: set[str] = set()
        self._lone: set[str] = set()

    def plan(self) -> Plan:
        for node in self._nodes:
            self._values[node.name] = self._forwards(node)
        self._check_alive()
        self._want()
        self._needed = self._readable()
        self._want()
        there = self._there()
        layers = {node.path: self._kept(node, there) for node in self._nodes if node.path in self._found}
        return Plan(layers, tuple(reversed(self._dropped)), tuple(reversed(self._rectified)))

    def _want(self) -> None:
        """From the logits backwards, what is wanted of every value and found of every layer."""
        self._found: dict[str, tuple[Tensor, Tensor, Tensor, str]] = {}
        self._dropped: list[str] = []
        self._rectified: list[str] = []
        for node in self._nodes:
            self._values[node.name].wanted[:] = node.kind is Kind.INPUT  # a network is given all channels of its images
        for node in reversed(self._nodes):
            self._backwards(node)

    def _there(self) -> dict[str, Tensor]:
        """Of each value, [C] bool, the channels that are there, since it or one tied to it is wanted."""
        roots, present = self._atoms.roots(), torch.zeros(len(self._atoms.roots()), dtype=torch.bool)
        for value in self._values.values():
            present[roots[value.atoms[value.wanted]]] = True
        return {name: present[roots[value.atoms]] for name, value in self._values.items()}

    def _readable(self) -> dict[str, Tensor]:
        """The same with those that a batch norm could give as well: it takes no time to speak of."""
        there = self._there()
        for node in self._nodes:
            layer = self._layers.get(node.path)
            if node.kind in (Kind.ACTIVATION, Kind.PASSING):
                there[node.name] = there[node.name] | there[node.sources[0]]
            elif node.kind is Kind.LAYER and layer is not None and isinstance(layer.core, Norm):
                there[node.name][layer.outputs] |= there[node.sources[0]][layer.inputs]
        return there

    # -- forwards: what is constant

    def _forwards(self, node: Node) -> _Value:
        sources = [self._values[name] for name in node.sources]
        if node.kind is Kind.INPUT:
            return self._input_forwards(node.shape[1])
        if node.kind is Kind.LAYER:
            return self._layer_forwards(node, *sources)
        if node.kind is Kind.CONCATENATION:
            return _joined(sources)
        first = sources[0]
        atoms, constant, blank, alive = first.atoms, first.constant, first.blank, first.alive
        rectified = all(source.rectified for source in sources)
        if node.kind is Kind.ADDITION:
            self._atoms.tie(atoms, sources[1].atoms)
            constant, blank = constant + sources[1].constant, blank & sources[1].blank
            alive = alive | sources[1].alive
        elif node.kind is Kind.FLATTEN:
            columns = node.shape[1] // len(atoms)
            vectors = (atoms, constant, blank, alive)
            atoms, constant, blank, alive = (vector.repeat_interleave(columns) for vector in vectors)
        elif node.kind is Kind.ACTIVATION:
            constant, rectified = node.function(constant.clone()), node.rectifies
            blank = blank & (constant == 0)
        elif node.kind is Kind.PADDED:
            constant = constant.where(constant == 0, torch.nan)
        return _Value(atoms, constant, blank, alive, rectified)

    def _input_forwards(self, channels: int) -> _Value:
        constant, blank = (
            torch.full((channels,), torch.nan, dtype=torch.double),
            torch.zeros(channels, dtype=torch.bool),
        )
        return _Value(self._atoms.new(channels), constant, blank, ~blank, False)

    def _layer_forwards(self, node: Node, source: _Value) -> _Value:
        if node.path in self._layers:
            raise cannot_follow(node.path, "it runs more than once")
        layer = self._layers[node.path] = Layer.of(self._modules[node.path], len(source.atoms))
        constant = torch.zeros(layer.out_width, dtype=torch.double)
        constant[layer.outputs] = _constants(layer, source.constant[layer.inputs])
        alive = torch.zeros(layer.out_width, dtype=torch.bool)
        alive[layer.outputs] = _alive(layer, source.alive[layer.inputs])
        rectified = source.rectified and isinstance(layer.core, shrunk.Spatial)
        return _Value(self._atoms.new(layer.out_width), constant, constant == 0, alive, rectified)

    def _check_alive(self) -> None:
        alive = {name: bool(value.alive.any()) for name, value in self._values.items()}
        if not alive[self._nodes[-1].name]:
            dead = [node.path for node in self._nodes if node.kind is Kind.LAYER and not alive[node.name]]
            ends = [node.path for node in self._nodes if node.path in dead and alive[node.sources[0]]]
            raise EmptyLayer(
                f"nothing is left of layer {ends[-1]}, and no image leads to the logits: cut less, or regularise less"
            )

    # -- backwards: what is wanted

    def _backwards(self, node: Node) -> None:
        value, sources = self._values[node.name], [self._values[name] for name in node.sources]
        if node.kind is Kind.OUTPUT:
            sources[0].wanted[:] = True
        elif node.kind is Kind.LAYER:
            if value.wanted.any() or not self._is_dropped(node):
                self._layer_backwards(node, value, *sources)
        elif node.kind is Kind.ADDITION:
            for name, source in zip(node.sources, sources, strict=True):
                source.wanted |= self._written(node, self._by_name[name], value.wanted & ~source.blank)
            self._drop(node)
        elif node.kind is Kind.CONCATENATION:
            widths = [len(source.atoms) for source in sources]
            for source, wanted in zip(sources, value.wanted.split(widths), strict=True):
                source.wanted |= wanted
            self._drop(node)
        elif node.kind is Kind.FLATTEN:
            sources[0].wanted |= value.wanted.view(len(sources[0].atoms), -1).any(dim=1)
        elif node.kind is not Kind.INPUT:
            sources[0].wanted |= value.wanted

    def _layer_backwards(self, node: Node, value: _Value, source: _Value) -> None:
        layer, why = self._layers[node.path], []
        rows = value.wanted[layer.outputs]
        if not rows.any():
            rows[0] = True  # a layer of no width cannot be built
            self._lone.add(node.name)
        if node.name in self._lone:  # the second time somebody may read it, since it is there
            why.append("one stays")
        if node.name in self._whole:
            why.append(SLOWER)
        if isinstance(layer.core, Mixing):
            rows, columns, folded = self._mixing_backwards(node, layer, layer.core, rows, source, why)
        else:
            if isinstance(layer.core, Norm):
                rows = self._rounded(rows, (~source.wanted[layer.inputs]).int(), why)
                self._whole |= {node.sources[0]} if node.name in self._whole else set()
            columns, folded = rows, torch.zeros(len(rows), dtype=torch.double)
        value.wanted[layer.outputs] = rows
        source.wanted[layer.inputs[columns]] = True
        self._found[node.path] = rows, columns, folded, ", ".join(dict.fromkeys(why))

    def _mixing_backwards(
        self, node: Node, layer: Layer, core: nn.Conv2d | nn.Linear, rows: Tensor, source: _Value, why: list[str]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and columns that stay, and what is folded into the bias."""
        constant, used = source.constant[layer.inputs], layer.used  # [I], [g, O/g, I/g]
        groups = len(used)
        if node.name not in self._whole and not used.any(dim=2).flatten()[rows].all():
            why.append("constants")
        if groups > 1:
            kept = rows.view(groups, -1).any(dim=1)  # [g]
            expanded, columns = kept.repeat_interleave(used.shape[1]), kept.repeat_interleave(used.shape[2])
            why += ["whole groups"] if (expanded & ~rows).any() else []
            return expanded, columns, torch.zeros(len(rows), dtype=torch.double)
        rows = self._rounded(rows, torch.zeros(len(rows)), why)
        read = constant.isnan() if _folds(core) else constant != 0
        columns = used[0][rows].any(dim=0) & read
        if not columns.any():
            columns[0] = True
        # Rather what is computed anyway, for somebody else, than zeros, which somebody would have to compute.
        cost = 2 * source.blank[layer.inputs].int() + (~source.wanted[layer.inputs]).int()
        columns = self._rounded(self._read(node, layer, rows, columns, why), cost, why)
        left_out = constant.nan_to_num().masked_fill(columns, 0.0)
        folded = _effect(core, left_out) if _folds(core) else torch.zeros(len(rows), dtype=torch.double)
        return rows, columns, folded

    def _written(self, addition: Node, operand: Node, wanted: Tensor) -> Tensor:
        """What an operand of an addition gives of its channels: what is wanted, or all that are there if that takes as
        many lanes."""
        there = self._needed.get(addition.name)
        layer = self._layers.get(operand.path) if operand.kind is Kind.LAYER else None
        writes = layer is not None and isinstance(layer.core, Mixing | Norm)
        if there is None or not writes or _lanes(wanted) < _lanes(there) or not wanted.any():
            return wanted
        self._whole |= {operand.name} if (there & ~wanted).any() else set()
        return wanted | there

    def _read(self, node: Node, layer: Layer, rows: Tensor, columns: Tensor, why: list[str]) -> Tensor:
        """What a layer reads: the columns that it uses, or all that are there if the others' products take less time
        than a copy without them."""
        if not self._needed:
            return columns
        whole = columns | self._needed[node.sources[0]][layer.inputs]
        products = int((whole & ~columns).sum()) * _lanes(rows) * _taps(layer.core)
        if not products or products >= COPY * int(columns.sum()):
            return columns
        why.append(SLOWER)
        return whole

    def _rounded(self, chosen: Tensor, cost: Tensor, why: list[str]) -> Tensor:
        """`chosen` with more, those of the least `cost`, up to a multiple of --round-to, or all."""
        missing = -int(chosen.sum()) % self._round_to
        more = (~chosen).nonzero().flatten()
        if not missing or not len(more):
            return chosen
        why.append(f"multiple of {self._round_to}")
        order = cost[more].argsort(stable=True)
        return chosen.index_fill(0, more[order[:missing]], True)

    # -- blocks without a branch: residual blocks, and layers of DenseNets

    def _drop(self, joining: Node) -> None:
        """Note the block of an addition or concatenation as dropped if nothing is wanted of its branch, and that is
        exact."""
        block = next((path for path in reversed(joining.inside) if path in self._blocks), None)
        operands = [self._by_name[name] for name in joining.sources]
        branch = [operand for operand in operands if block is not None and _is_in_branch(operand, block)]
        if block is None or len(branch) != 1 or self._values[branch[0].name].wanted.any():
            return
        # A block that ends in a ReLU is its shortcut and that ReLU, which is nothing where nothing is negative.
        ends = [node for node in self._nodes if joining.name in node.sources and block in node.inside]
        passed_on = next(operand for operand in operands if operand is not branch[0])
        if any(node.rectifies for node in ends) and not self._values[passed_on.name].rectified:
            shortcuts = [f"{block}.{name}" for name in SHORTCUTS]
            found = [path for path in shortcuts if isinstance(self._modules.get(path), nn.Sequential)]
            if not found:
                return
            self._rectified += found
        self._dropped.append(block)

    def _is_dropped(self, node: Node) -> bool:
        return any(_is_in_branch(node, block) for block in self._dropped)

    # -- the result

    def _kept(self, node: Node, there: Mapping[str, Tensor]) -> Kept:
        rows, columns, folded, why = self._found[node.path]
        layer = self._layers[node.path]
        in_width, inputs = _positions(there[node.sources[0]], layer.inputs[columns])
        out_width, outputs = _positions(there[node.name], layer.outputs[rows])
        has_bias = isinstance(layer.core, Mixing) and (layer.core.bias is not None or bool(folded.any()))
        whole = all(mask.all() for mask in (rows, columns, there[node.sources[0]], there[node.name]))
        part = Part(in_width, inputs, out_width, outputs, has_bias)
        groups = layer.core.groups if isinstance(layer.core, nn.Conv2d) else 1
        return Kept(rows, columns, groups, folded, part, why, not whole or bool(folded.any()))


def _lanes(rows: Tensor) -> int:
    """Filters that are computed if these [O] bool are wanted."""
    return -(-int(rows.sum()) // LANES) * LANES


def _taps(core: nn.Module) -> float:
    """How often a filter uses an element that it reads."""
    return prod(core.kernel_size) / prod(core.stride) if isinstance(core, nn.Conv2d) else 1.0


def _is_in_branch(node: Node, block: str) -> bool:
    """Whether a node belongs to the branch of a block."""
    return block in node.inside and not any(f"{block}.{name}" in node.inside for name in SHORTCUTS)


def _positions(there: Tensor, channels: Tensor) -> tuple[int, tuple[int, ...] | None]:
    """How many channels are there, and which of those these ones are; None for all."""
    width = int(there.sum())
    if len(channels) == width:
        return width, None
    positions = there.cumsum(dim=0) - 1
    return width, tuple(positions[channels].tolist())


def _constants(layer: Layer, constant: Tensor) -> Tensor:
    """Constants [I] of what a layer reads -> those of what it computes, [O]."""
    core, used = layer.core, layer.used
    if isinstance(core, Norm):
        return _norm_constants(core, constant)
    if not isinstance(core, Mixing):
        return constant
    groups = len(used)
    varies = constant.isnan() if _folds(core) else constant != 0
    found = _effect(core, constant.nan_to_num())
    if core.bias is not None:
        found = found + core.bias
    return found.masked_fill((used & varies.view(groups, 1, -1)).any(dim=2).flatten(), torch.nan)


def _alive(layer: Layer, alive: Tensor) -> Tensor:
    """Which inputs [I] depend on the image -> which outputs do, [O]."""
    core, used = layer.core, layer.used
    if isinstance(core, Norm):
        return alive if core.weight is None else alive & (core.weight != 0)
    if not isinstance(core, Mixing):
        return alive
    return (used & alive.view(len(used), 1, -1)).any(dim=2).flatten()


def _effect(core: nn.Conv2d | nn.Linear, constant: Tensor) -> Tensor:
    """What constant inputs [I] add to the outputs, [O] float64, away from padded borders."""
    if not constant.any():
        return torch.zeros(len(core.weight), dtype=torch.double)
    weight = core.weight.reshape(*core.weight.shape[:2], -1).sum(dim=2, dtype=torch.double)  # [O, I/g]
    groups = core.groups if isinstance(core, nn.Conv2d) else 1
    return (weight.unflatten(0, (groups, -1)) @ constant.view(groups, -1, 1)).flatten()


def _norm_constants(core: Norm, constant: Tensor) -> Tensor:
    """A batch norm in eval mode."""
    if core.running_mean is None or core.running_var is None:
        return torch.full_like(constant, torch.nan)
    found = (constant - core.running_mean.double()) / (core.running_var.double() + core.eps).sqrt()
    if core.weight is not None:
        found = torch.where(core.weight == 0, 0.0, found * core.weight.double())
        found += core.bias.double()
    return found


def _folds(core: nn.Conv2d | nn.Linear) -> bool:
    """Whether a constant input adds a constant to every output: without padding, all see all of the kernel."""
    return isinstance(core, nn.Linear) or core.padding in ("valid", (0, 0))
