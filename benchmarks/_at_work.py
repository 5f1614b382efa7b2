"""One picture of what each method does to a network, from the results on CIFAR-10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from _results import FOLDER, read
from adn.model import create as adaptive
from epsilon_resnet.plot import discarded_fractions
from resless import models, report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PATH = FOLDER / "methods-at-work.png"
LEFT, BORDER, *_ = report.COLOURS
GONE = "#dfe7ee"
BUDGET = 0.5


def draw_methods_at_work() -> None:
    """Four panels, a method each; nothing where a result is missing."""
    files = [read(name) for name in ("deephoyer-cifar", "blockdrop-cifar-r110", "epsilon-cifar", "adn-cifar")]
    if not all(files):
        return
    drawing = report.canvas(11, 6.4)
    panels = (draw_widths, draw_keep_rates, draw_discarded, draw_configurations)
    for axes, draw, file in zip(drawing.subplots(2, 2).flat, panels, files, strict=True):
        draw(axes, file)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set(fontsize=10)
    report.save(drawing, PATH)


def draw_widths(axes: Axes, file: Mapping[str, Any]) -> None:
    """DeepHoyer: the filters of every convolution that are left."""
    run = next(run for run in file["networks"] if (run["name"], run["budget"]) == ("group_hoyer_square", BUDGET))
    layers = {layer["name"].removesuffix(".weight"): layer for layer in run["tuning"]["result"]["layers"]}
    convolutions = {name: layer["compact_filters"] for name, layer in layers.items() if "conv" in name}
    dense = dict(models.create("resnet20").named_modules())
    places = np.arange(len(convolutions))
    axes.bar(places, [dense[name].out_channels for name in convolutions], width=0.8, color=GONE)
    axes.bar(places, list(convolutions.values()), width=0.8, color=LEFT)
    axes.set(xlabel="convolution, by depth", ylabel="filters", xticks=[])
    axes.set_title(
        f"DeepHoyer: ResNet-20, narrower, {100 * run['macs'] / file['latency'][0]['macs']:.0f} % of the MACs"
    )


def draw_keep_rates(axes: Axes, file: Mapping[str, Any]) -> None:
    """BlockDrop: on how many images each block runs, after the first round, when policies still differ."""
    result = file["finetuned"][0]["result"]
    places = np.arange(result["num_blocks"])
    axes.bar(places, [100] * len(places), width=0.8, color=GONE)
    axes.bar(places, [100 * rate for rate in result["keep_rates"]], width=0.8, color=LEFT)
    mark_stages(axes, result["stages"])
    axes.margins(x=0.01)
    axes.set(xlabel="block, by depth", ylabel="images that run it, %", xticks=[])
    axes.set_title(f"BlockDrop: ResNet-110, {result['blocks_used']:.1f} blocks an image on average")


def draw_discarded(axes: Axes, file: Mapping[str, Any]) -> None:
    """ε-ResNet: when each block was discarded, in the run that discarded the most."""
    run = max(file["networks"].values(), key=lambda run: len(run["result"]["discarded"]))
    there = 1 - np.nan_to_num(discarded_fractions(run["blocks"]), nan=1.0)
    axes.set_title(f"ε-ResNet: 32 layers, {len(run['result']['discarded'])} of {len(there)} blocks discard themselves")
    tiles(axes, there.T)
    mark_stages(axes, run["blocks"]["stages"])
    axes.set(xlabel="block, by depth", ylabel="epoch", xticks=[], yticks=range(there.shape[1]))
    axes.set_yticklabels([str(epoch + 1) for epoch in range(there.shape[1])])


def draw_configurations(axes: Axes, file: Mapping[str, Any]) -> None:
    """ADN: the blocks that each configuration of one network runs."""
    found = next(run for run in file["runs"] if run["network"] == "adaptive")["result"]["configurations"]
    units = [unit for unit in adaptive("resnet20").units if "layer" in unit.path]
    order = sorted(found, key=lambda name: -found[name]["macs"])
    runs = [[0.0 if unit.skippable and name[unit.stage] == "T" else 1.0 for unit in units] for name in order]
    tiles(axes, np.array(runs))
    mark_stages(axes, [sum(unit.stage == stage for unit in units) for stage in range(len(order[0]))])
    axes.set(xlabel="block, by depth", ylabel="stages skipped", xticks=[], yticks=range(len(order)))
    axes.set_yticklabels(order, family="monospace")
    for row, name in enumerate(order):
        text = f"{100 * found[name]['top1']:.1f} %, {found[name]['macs'] / 1e6:.0f} M"
        axes.text(len(units) - 0.35, row, text, va="center", fontsize=8)
    axes.set_title("ADN: one ResNet-20, eight depths, chosen at run time")


def tiles(axes: Axes, there: np.ndarray) -> None:
    """A map of what runs, [rows, blocks], 0 to 1."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("left", [GONE, LEFT])
    rows, columns = (np.arange(size + 1) - 0.5 for size in there.shape)  # blocks are counted at their middles
    axes.pcolormesh(columns, rows, there, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
    axes.invert_yaxis()


def mark_stages(axes: Axes, stages: Sequence[int]) -> None:
    """Lines between the stages."""
    for end in list(accumulate(stages))[:-1]:
        axes.axvline(end - 0.5, color=BORDER, linewidth=1)
