"""Accuracy of a network's configurations against what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resless.report import COLOURS, canvas, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(configurations: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """One point a configuration: against MACs, and against latency at each batch size, where it was measured.

    Args:
        configurations: by their letters (T for a stage that skips), see `evaluate.described`.
        path: the picture to write.
    """
    first = next(iter(configurations.values()))
    panels = [("MACs an image, millions", {name: found["macs"] / 1e6 for name, found in configurations.items()})]
    for index, time in enumerate(first.get("latency", ())):
        label = f"latency at batch {time['batch_size']}, ms"
        panels.append((label, {name: found["latency"][index]["median_ms"] for name, found in configurations.items()}))
    drawing = canvas(1 + 4.6 * len(panels), 4)
    for axes, (label, cost) in zip(drawing.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _points(axes, configurations, cost)
        axes.set(xlabel=label, ylabel="accuracy, %")
    drawing.suptitle("A letter a stage: T skips its last blocks, F runs them", fontsize=10)
    save(drawing, path)


def _points(axes: Axes, configurations: Mapping[str, Mapping[str, Any]], cost: Mapping[str, float]) -> None:
    style(axes)
    axes.margins(x=0.12)  # room for the letters of the last one
    for name, found in configurations.items():
        trained = len(set(name)) == 1
        accuracy = 100 * found["top1"]
        axes.plot(cost[name], accuracy, "o" if trained else ".", color=COLOURS[1 if trained else 0], markersize=7)
        if len(configurations) <= 16:
            axes.annotate(name, (cost[name], accuracy), xytext=(4, -9), textcoords="offset points", fontsize=7)
