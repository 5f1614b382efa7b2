"""Which channels of a network's values are one and the same, and which of its weights come and go with them."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from resless.models import shrunk
from resless.models.shrunk import Mixing
from torch import Tensor, nn

from deephoyer import method
from deephoyer.graph import Kind, Node, cannot_follow, trace


class Atoms:
    """Numbers for channels; those of channels that have to be kept or dropped together become one (union-find)."""

    def __init__(self) -> None:
        self._parents: list[int] = []

    def new(self, count: int) -> Tensor:
        first = len(self._parents)
        self._parents += range(first, first + count)
        return torch.arange(first, first + count)

    def tie(self, these: Tensor, those: Tensor) -> None:
        for a, b in zip(these.tolist(), those.tolist(), strict=True):
            self._parents[self._root(a)] = self._root(b)

    def roots(self) -> Tensor:
        return torch.tensor([self._root(atom) for atom in range(len(self._parents))])

    def _root(self, atom: int) -> int:
        while self._parents[atom] != atom:
            self._parents[atom] = self._parents[self._parents[atom]]
            atom = self._parents[atom]
        return atom


@dataclass(frozen=True)
class Layer:
    """A layer that can be exchanged: what computes in it, and which channels around it that reads and writes."""

    core: nn.Module
    inputs: Tensor
    outputs: Tensor
    out_width: int
    used: Tensor
    """[g, O/g, I/g] bool: whether an output depends on an input, in each group; of convolutions and linear layers."""

    @classmethod
    def of(cls, module: nn.Module, in_width: int) -> Layer:
        core, inputs = shrunk.core_of(module), torch.arange(in_width)
        used = _used(core) if isinstance(core, Mixing) else torch.ones(1, 1, 1, dtype=torch.bool)
        if isinstance(module, shrunk.Slim):
            part = module.part
            inputs = inputs if part.inputs is None else torch.tensor(part.inputs)
            outputs = torch.arange(part.out_width) if part.outputs is None else torch.tensor(part.outputs)
            return cls(core, inputs, outputs, part.out_width, used)
        if isinstance(module, shrunk.Padding):
            before = getattr(module, "before", 0)
            return cls(core, inputs, inputs + before, before + in_width + module.after, used)
        _, out_width = shrunk.widths(module)
        return cls(core, inputs, torch.arange(out_width), out_width, used)


@dataclass(frozen=True)
class Coupling:
    """The channels of all values of a network, numbered: channels that only can come and go together have one number.

    An addition ties the channels that it adds, a batch norm those before it to those behind it, and a grouped
    convolution all of a group's inputs and outputs. Whatever writes such a channel goes with whatever reads it.
    """

    rows: dict[str, Tensor]
    """Name of a weight [O, I, ...] -> [O], the channels that its filters write."""
    columns: dict[str, Tensor]
    """The same -> [I], the channels that it reads; not of grouped convolutions."""
    values: tuple[tuple[Tensor, Tensor], ...]
    """The channels of every value, each once, and how many times it has each; narrow values first."""
    fixed: Tensor
    """Channels that cannot go: those of images, and logits."""

    def masks(
        self,
        weights: Mapping[str, Tensor],
        limits: Mapping[str, float],
        round_to: int = 1,
        fits: Callable[[dict[str, Tensor]], bool] | None = None,
    ) -> dict[str, Tensor]:
        """True, in the shape of each weight, for what is kept: a channel, for all of its filters and input channels, if
        the mean square of their norms, each divided by the limit of its weight, is above one.

        Channels of a value stand or fall by `round_to` at a time, those of the largest mean squares together, if their
        mean is above one, so that its width is a multiple, or whole. If `fits` tells of masks whether they keep few
        enough, as many more are kept as there is room for.
        """
        means = self._means(weights, limits)
        kept = self._above(means, round_to)
        if fits is not None:
            kept = self._filled(kept, means, round_to, lambda more: fits(self._spread(more, weights)))
        return self._spread(kept, weights)

    def _spread(self, kept: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which channels are kept, [channels] bool, in the shape of each weight."""
        masks = {}
        for name, weight in weights.items():
            if name not in self.rows:  # of a layer that does not run
                masks[name] = torch.ones_like(weight, dtype=torch.bool)
                continue
            mask = kept[self.rows[name]][:, None].expand(*weight.shape[:2])
            if name in self.columns:
                mask = mask & kept[self.columns[name]]
            masks[name] = mask.reshape(*mask.shape, *[1] * (weight.dim() - 2)).expand_as(weight).to(weight.device)
        return masks

    def ties(self, names: Sequence[str]) -> method.Ties:
        """What can only go together, of weights in this order."""
        can_go = torch.ones(self.count, dtype=torch.bool).index_fill(0, self.fixed, value=False)
        return method.Ties.of([self.rows[name] for name in names], [self.columns.get(name) for name in names], can_go)

    def _means(self, weights: Mapping[str, Tensor], limits: Mapping[str, float]) -> Tensor:
        """Of each channel the mean square of its norms, relative to the limits; infinite if it cannot go."""
        sums = torch.zeros(self.count, dtype=torch.double)
        counts = torch.zeros_like(sums)
        for name, weight in weights.items():
            for numbers, norms in (
                (self.rows.get(name), method.filter_norms(weight)),
                (self.columns.get(name), method.channel_norms(weight)),
            ):
                if numbers is not None:
                    relative = norms.double().cpu() / max(limits[name], torch.finfo(torch.float).tiny)
                    sums.index_add_(0, numbers, relative.square())
                    counts.index_add_(0, numbers, torch.ones_like(relative))
        return (sums / counts.clamp_min(1)).index_fill(0, self.fixed, torch.inf)

    def _above(self, means: Tensor, round_to: int) -> Tensor:
        """[channels] bool: of which the mean, over the bundle that they are in, is above one."""
        if round_to == 1:  # each is a bundle of its own
            return means > 1
        kept = means.isinf()
        for _, bundle in self._bundles(kept, means, round_to):
            kept[bundle] = means[bundle].mean() > 1
        return kept

    def _filled(self, kept: Tensor, means: Tensor, round_to: int, fits: Callable[[Tensor], bool]) -> Tensor:
        """[channels] bool: `kept` with bundles of others, those of the largest means first, where it still fits.

        More channels never fit better, so that the next bundle that does not fit is found in few trials.
        """
        found = self._bundles(kept, means, round_to)
        bundles = sorted(found, key=lambda bundle: float(means[bundle[1]].mean()), reverse=True)

        def first_fit(count: int) -> bool:
            return fits(_with_first(kept, bundles, count))

        while bundles:
            count = _most(len(bundles), first_fit)
            kept, full = _with_first(kept, bundles, count), {value for value, _ in bundles[count : count + 1]}
            # What comes of this value after the bundle that does not fit matters less and takes as much.
            bundles = [(value, bundle) for value, bundle in bundles[count:] if value not in full]
        return kept

    def _bundles(self, kept: Tensor, means: Tensor, round_to: int) -> Iterator[tuple[int, Tensor]]:
        """Channels that are not kept, the largest means of each value first, so many at a time that the value gets a
        multiple of `round_to`, or all; before each bundle, the number of the value. `kept` may grow between them."""
        done = torch.zeros_like(kept)
        for number, (value, times) in enumerate(self.values):  # a wide one may have all of a narrow one, not otherwise
            free, width = ~kept[value] & ~done[value], times[kept[value]].sum()
            done[value] = True
            order = means[value[free]].argsort(descending=True)
            ends = ((width + times[free][order].cumsum(dim=0)) % round_to == 0).nonzero().flatten() + 1
            yield from ((number, bundle) for bundle in value[free][order].tensor_split(ends) if len(bundle))

    @property
    def count(self) -> int:
        """Above all numbers."""
        return 1 + max(int(value.max()) for value, _ in self.values)


def _with_first(kept: Tensor, bundles: Sequence[tuple[int, Tensor]], count: int) -> Tensor:
    """[channels] bool: `kept` with the first of the bundles; before each, the number of its value."""
    first = [bundle for _, bundle in bundles[:count]]
    return kept.index_fill(0, torch.cat(first), True) if first else kept


def _most(count: int, holds: Callable[[int], bool]) -> int:
    """The largest number, `count` at most, for which `holds`, and which holds for all smaller ones; 0, untried, if it
    holds for none. Small ones take the fewest trials."""
    low, step = 0, 1
    while low + step <= count and holds(low + step):
        low, step = low + step, 2 * step
    between = range(low + 1, min(low + step, count + 1))
    return low + bisect_left(between, True, key=lambda number: not holds(number))


def coupling(model: nn.Module, example: Tensor) -> Coupling:
    """How the channels of a network are tied; `example` is an input of it, [N, C, H, W].

    Raises:
        InputError: a network that `compact` cannot follow.
    """
    modules, atoms = dict(model.named_modules()), Atoms()
    nodes = trace(copy.deepcopy(model).cpu().eval(), example.cpu())
    values: dict[str, Tensor] = {}
    layers: dict[str, tuple[Layer, Tensor, Tensor]] = {}
    for node in nodes:
        sources = [values[name] for name in node.sources]
        if node.kind is Kind.LAYER:
            if node.path in layers:
                raise cannot_follow(node.path, "it runs more than once")
            layer = Layer.of(modules[node.path], len(sources[0]))
            values[node.name] = _written(layer, sources[0], atoms)
            layers[node.path] = layer, sources[0][layer.inputs], values[node.name][layer.outputs]
        else:
            values[node.name] = _passed_on(node, sources, atoms)
    roots, names = atoms.roots(), {module: name for name, module in modules.items()}
    rows, columns = {}, {}
    for layer, reads, writes in layers.values():
        if isinstance(layer.core, Mixing):
            name = f"{names[layer.core]}.weight"
            rows[name] = roots[writes]
            if len(layer.used) == 1:
                columns[name] = roots[reads]
    fixed = torch.cat([values[node.name] for node in nodes if node.kind in (Kind.INPUT, Kind.OUTPUT)])
    distinct = {tuple(sorted(roots[value].tolist())) for value in values.values()}
    ordered = sorted(distinct, key=lambda value: (len(value), value))
    counted = tuple(torch.tensor(value).unique(return_counts=True) for value in ordered)
    return Coupling(rows, columns, counted, roots[fixed])


def _written(layer: Layer, source: Tensor, atoms: Atoms) -> Tensor:
    """The channels that a layer gives, tied to those that it reads if there is one for each, or by groups."""
    given, groups = atoms.new(layer.out_width), len(layer.used)
    reads, writes = source[layer.inputs], given[layer.outputs]
    if not isinstance(layer.core, Mixing):
        atoms.tie(reads, writes)
    elif groups > 1:
        for group in zip(reads.view(groups, -1), writes.view(groups, -1), strict=True):
            together = torch.cat(group)
            atoms.tie(together[:-1], together[1:])
    return given


def _passed_on(node: Node, sources: Sequence[Tensor], atoms: Atoms) -> Tensor:
    """The channels of what is no layer."""
    if node.kind is Kind.INPUT:
        return atoms.new(node.shape[1])
    if node.kind is Kind.CONCATENATION:
        return torch.cat(list(sources))
    if node.kind is Kind.FLATTEN:
        return sources[0].repeat_interleave(node.shape[1] // len(sources[0]))
    if node.kind is Kind.ADDITION:
        atoms.tie(*sources)
    return sources[0]


def _used(core: nn.Conv2d | nn.Linear) -> Tensor:
    """[g, O/g, I/g] bool: whether an output depends on an input, in each group."""
    groups = core.groups if isinstance(core, nn.Conv2d) else 1
    return core.weight.reshape(*core.weight.shape[:2], -1).ne(0).any(dim=2).unflatten(0, (groups, -1))
