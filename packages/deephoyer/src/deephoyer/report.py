"""What is left of a network: per layer, per structure, in MACs; as plain data, as a table, as a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from resless import costs
from resless.report import histogram, table
from torch import nn

from deephoyer import method
from deephoyer.compact import base_name, explained, structure
from deephoyer.graph import CannotFollow
from deephoyer.plan import EmptyLayer


@dataclass(frozen=True)
class LayerReport:
    """One weight tensor [O, I, ...]: how many weights, filters (rows) and channels (columns) are not zero.

    `compact_filters`, `compact_channels` and `macs` are those of the layer in the compacted network, 0 where it is
    gone; `dense_macs` those in the network as given. `why` says why the compacted layer holds zeros, where it does.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    filters: int
    channels: int
    compact_filters: int
    compact_channels: int
    macs: int
    dense_macs: int
    why: str

    @property
    def size(self) -> int:
        """Number of weights, zero or not."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class SparsityReport:
    """A network's layers and totals.

    `weights` are those that are not zero, biases not counted; `compact_weights` those of them that the compacted
    network still has: the others lead nowhere. MACs are those of one image, compacted and as given. Of a network that
    cannot be compacted, `not_compacted` says why, and the numbers of the compacted one are its own.
    """

    layers: tuple[LayerReport, ...]
    weights: int
    compact_weights: int
    total_weights: int
    macs: int
    dense_macs: int
    structure: str
    not_compacted: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def prunable(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that are cut: weights of convolutions and linear layers, by name."""
    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    return {f"{name}.weight": layer.weight for name, layer in layers}


def sparsity(model: nn.Module, example: torch.Tensor, round_to: int = 1) -> SparsityReport:
    """Count what is left of `model`.

    Args:
        model: a network.
        example: one image [1, C, H, W].
        round_to: as of `compact`.
    """
    not_compacted = ""
    try:
        small, reasons = explained(model, example, round_to)
    except (CannotFollow, EmptyLayer) as error:
        small, reasons, not_compacted = model, {}, str(error)
    macs = {base_name(name): count for name, count in costs.layer_macs(small, example).items()}
    sizes = {base_name(name.removesuffix(".weight")): weight.shape for name, weight in prunable(small).items()}
    dense_macs = costs.layer_macs(model, example)
    layers = []
    for name, weight in prunable(model).items():
        layer = name.removesuffix(".weight")
        path = base_name(layer)
        filters, channels = sizes.get(path, (0, 0))[:2]
        sizes_left = (*_left(weight), filters, channels, macs.get(path, 0), dense_macs[layer])
        layers.append(LayerReport(name, tuple(weight.shape), *sizes_left, why=reasons.get(path, "")))
    return SparsityReport(
        layers=tuple(layers),
        weights=sum(layer.weights for layer in layers),
        compact_weights=sum(int((weight != 0).sum()) for weight in prunable(small).values()),
        total_weights=sum(layer.size for layer in layers),
        macs=sum(macs.values()),
        dense_macs=sum(dense_macs.values()),
        structure=structure(small),
        not_compacted=not_compacted,
    )


def print_sparsity(report: SparsityReport, title: str) -> None:
    """The table of a network's layers, then one line of totals."""
    rows = [
        [
            layer.name,
            "x".join(map(str, layer.shape)),
            f"{layer.weights:,}",
            f"{100 * layer.weights / layer.size:.2f}",
            f"{layer.filters}/{layer.shape[0]}",
            f"{layer.channels}/{layer.shape[1]}",
            f"{layer.compact_filters}x{layer.compact_channels}",
            f"{layer.macs:,}/{layer.dense_macs:,}",
            layer.why,
        ]
        for layer in report.layers
    ]
    columns = ["layer", "shape", "non-zero weights", "%", "filters (rows)", "channels (columns)", "compacted", "MACs"]
    table(title, [*columns, "zeros kept"], rows)
    print(
        f"weights {report.weights:,} of {report.total_weights:,} "
        f"(compression {report.total_weights / max(1, report.weights):.1f} x); compacted: {report.structure}, "
        f"{report.compact_weights:,} weights, {report.macs:,} of {report.dense_macs:,} MACs",
        flush=True,
    )
    if report.not_compacted:
        print(f"not compacted: {report.not_compacted}", flush=True)


def draw_histogram(model: nn.Module, rule: str, thresholds: dict[str, float], path: Path) -> None:
    """Picture, around each layer's threshold, of what the rule compares with it."""
    sizes, by_group = {}, rule != "elementwise"
    for name, weight in prunable(model).items():
        groups = torch.cat([method.filter_norms(weight), method.channel_norms(weight)])
        sizes[name] = (groups if by_group else weight.detach().abs().flatten()).cpu().numpy()
    what = "L2 norm of filters and channels" if by_group else "magnitude of weights"
    histogram(sizes, thresholds, path, xlabel=f"log10 of {what}", title=f"{what}; dashed: threshold of the cut")


def _left(weight: torch.Tensor) -> tuple[int, int, int]:
    """Weights, filters and channels that are not all zero."""
    kept = weight.detach() != 0
    rows, columns = kept.flatten(1).any(dim=1), kept.transpose(0, 1).flatten(1).any(dim=1)
    return int(kept.sum()), int(rows.sum()), int(columns.sum())
