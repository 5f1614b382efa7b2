"""Pictures of how a network lost its blocks, epoch by epoch.

| file | shows |
|---|---|
| `blocks.png` | of each block and epoch, the share of the steps in which the block was discarded |
| `learning_rate.png` | the learning rate, and the blocks for which it started anew |
| `errors.png` | error on the training images, of the side head too, and on held-out images |
| `responses.png` | largest response of each block, against ε |

Epochs are counted from 1 and blocks from 0, as in all messages. What happens at the end of an epoch t is drawn at
t + 0.5, where the next one begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from resless.report import COLOURS, canvas, figure, save, style

from epsilon_resnet.blocks import blocks_named
from epsilon_resnet.method import mostly

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

BLUE, ORANGE, _, _, _, LIGHT_BLUE, BLACK = COLOURS
GREY = "#777777"
RETIRED: dict[str, Any] = {"facecolor": "#d4d4d4", "edgecolor": "#a8a8a8", "hatch": "////"}
LABELS, PLACES = 40, 60  # labels of restarts, and how many would fit beside each other: they stay near their restarts
LOWEST = 1e-4  # values below this part of the largest run out of a picture: responses go to 0 without retirement


def draw(folder: Path, blocks: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write all pictures of a run into a folder; a run without epochs gives none.

    Args:
        folder: where to write, made where there is none.
        blocks: the run's `blocks.json`.
        history: the lines of its `metrics.jsonl`.

    Returns:
        The files written.
    """
    if not blocks["epochs"] or not history:
        return []
    names = ("blocks", "learning_rate", "errors", "responses")
    paths = [folder / f"{name}.png" for name in names]
    draw_blocks(blocks, paths[0])
    draw_learning_rate(history, blocks["restarts"], paths[1])
    draw_errors(history, blocks["restarts"], paths[2])
    draw_responses(blocks, paths[3])
    return paths


def draw_blocks(blocks: Mapping[str, Any], path: Path) -> None:
    """Map of K blocks x epochs: how often each was discarded; hatched from where it was not computed any more."""
    from matplotlib.markers import CARETDOWN
    from matplotlib.patches import Patch

    fractions = discarded_fractions(blocks)
    num_blocks, epochs = fractions.shape
    height = min(6.5, max(1.9, 0.28 * num_blocks, 0.55 * len(blocks["stages"])))
    drawing = canvas(min(11, max(6.8, 2.4 + 0.12 * epochs)), 1.7 + height)
    axes = drawing.add_subplot()
    # Retired cells are transparent: the hatching behind the map shows through.
    axes.patch.set(linewidth=0, **RETIRED)
    extent = (0.5, epochs + 0.5, num_blocks - 0.5, -0.5)
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, aspect="auto", extent=extent)
    _mark_stages(axes, blocks["stages"])
    if ends := restart_ends(blocks["restarts"]):
        above = axes.get_xaxis_transform()
        (marks,) = axes.plot(ends, [1] * len(ends), color=BLACK, linestyle="", transform=above, clip_on=False)
        marks.set(marker=CARETDOWN, markersize=5, label="learning rate starts anew")
    axes.set(xlabel="epoch", ylabel="block, by depth")
    axes.set_title(_title_of_blocks(blocks), pad=10)
    for axis in (axes.xaxis, axes.yaxis):
        _count(axis)
    scale = drawing.colorbar(image, ax=axes, shrink=min(1, 3 / height), aspect=25)
    scale.set_label("share of the epoch's steps\nin which it was discarded")
    handles = axes.get_legend_handles_labels()[0]
    if blocks["retired"]:
        handles.append(Patch(label="not computed any more", **RETIRED))
    if handles:
        drawing.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save(drawing, path)


def draw_learning_rate(history: Sequence[Mapping[str, Any]], restarts: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The learning rate by epoch; above it, for which blocks it started anew."""
    labels = restart_labels(restarts, LABELS)
    drawing = canvas(10, 3.6 + 0.055 * max((len(text) for _, text in labels), default=0))
    axes = drawing.add_subplot()
    style(axes)
    rates, first = np.array([record["lr"] for record in history], float), history[0]["epoch"]
    edges = np.arange(len(rates) + 1) + first - 0.5
    axes.stairs(np.where(rates > 0, rates, np.nan), edges, baseline=None, color=BLUE, linewidth=1.8)
    _logarithmic(axes, rates)
    axes.set(xlabel="epoch", ylabel="learning rate", xlim=(edges[0], edges[-1]))
    _count(axes.xaxis)
    _mark_restarts(axes, restarts)

    places = spread([end for end, _ in labels], edges[0], edges[-1], len(rates) / PLACES)
    above: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    for (end, text), place in zip(labels, places, strict=True):
        axes.plot([end, end, place, place], [1, 1.01, 1.05, 1.06], color=GREY, linewidth=0.7, **above)
        axes.text(place, 1.075, text, rotation=90, ha="center", va="bottom", fontsize=7.5, **above)
    drawing.suptitle(f"The learning rate {_starts_anew(restarts)}", fontsize=12)
    save(drawing, path)


def draw_errors(history: Sequence[Mapping[str, Any]], restarts: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Error on training images, by the side head too, and on held-out images; restarts as thin lines."""
    drawing, axes = figure(9, 4.4)
    first, last = history[0]["epoch"], history[-1]["epoch"]
    marker = "." if len(history) < 20 else ""
    colours = (BLUE, LIGHT_BLUE, ORANGE)
    series = error_series(history)
    for (name, (epochs, errors)), colour in zip(series.items(), colours[: len(series)], strict=True):
        label = f"{name}: {errors[-1]:.2f} %"
        axes.plot(epochs, errors, color=colour, linewidth=1.4, marker=marker, label=label, zorder=3)
    _mark_restarts(axes, restarts)
    axes.set(xlabel="epoch", ylabel="error, %", xlim=(first - 0.5, last + 0.5))
    axes.set_ylim(0, 1.05 * max([1, *(max(errors) for _, errors in series.values())]))
    _count(axes.xaxis)
    axes.set_title(f"Errors by epoch; the learning rate {_starts_anew(restarts)}{' (grey)' if restarts else ''}")
    drawing.legend(title="error at the end", loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save(drawing, path)


def draw_responses(blocks: Mapping[str, Any], path: Path) -> None:
    """Largest response of each of K blocks by epoch, coloured by depth, and ε in the epochs in which it acts."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    responses = largest_responses(blocks)
    num_blocks, epochs = responses.shape
    drawing, axes = figure(9, 4.8)
    by_depth = ListedColormap(colormaps["viridis"](np.linspace(0, 0.92, num_blocks)))  # yellow is too light a line
    width, marker = (1.4 if num_blocks <= 20 else 0.6), ("." if epochs < 20 else "")
    for block, response in enumerate(responses):
        (line,) = axes.plot(np.arange(1, epochs + 1), response, color=by_depth(block), linewidth=width, marker=marker)
        line.set_zorder(2 + 0.618 * block % 1)  # as good as at random, so that no end of the network covers the other
    epsilon, start = blocks["epsilon"], blocks["epsilon_start"]
    acts = epsilon > 0 and start < epochs
    if acts:
        label = f"ε = {epsilon:g}; a block whose response stays below it is discarded"
        stop = min(epochs, blocks.get("epsilon_stop") or epochs)  # runs of earlier versions do not tell
        axes.plot([start + 0.5, stop + 0.5], [epsilon] * 2, "--", color=ORANGE, linewidth=2.5, label=label, zorder=4)
        drawing.legend(loc="outside lower center", frameon=False, fontsize=9)
    _logarithmic(axes, np.append(responses, epsilon if acts else np.nan))
    axes.set(xlabel="epoch", ylabel="max |F(x)|, mean of the epoch's steps", xlim=(0.5, epochs + 0.5))
    axes.set_title(f"Largest response of {'each of ' * (num_blocks > 1)}{_number(num_blocks, 'block')}")
    _count(axes.xaxis)
    scale = ScalarMappable(Normalize(-0.5, num_blocks - 0.5), by_depth)
    bar = drawing.colorbar(scale, ax=axes, label="block, by depth")
    bar.ax.invert_yaxis()
    _count(bar.ax.yaxis)
    save(drawing, path)


def discarded_fractions(blocks: Mapping[str, Any]) -> np.ndarray:
    """Share of each epoch's steps in which each block was discarded, [K, epochs]; NaN from its retirement on."""
    fractions = np.array([epoch["discarded"] for epoch in blocks["epochs"]], float).T
    for block, last in blocks["retired"].items():
        fractions[int(block), last + 1 :] = np.nan
    return fractions


def largest_responses(blocks: Mapping[str, Any]) -> np.ndarray:
    """max|F| of each block, mean over each epoch's steps, [K, epochs]; NaN where a block was not computed."""
    largest = np.array([epoch["largest"] for epoch in blocks["epochs"]], float).T
    return np.where(largest > 0, largest, np.nan)


def error_series(history: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Epochs, counted from 1, and error in % in each of them, of what was measured at all, by what it is."""
    accuracies = {
        "training images": "train_accuracy",
        "training images, side head": "train_side_accuracy",
        "held-out images": "held_out_top1",
    }
    series = {}
    for name, key in accuracies.items():
        if found := [record for record in history if key in record]:
            series[name] = [record["epoch"] for record in found], [100 * (1 - record[key]) for record in found]
    return series


def restart_ends(restarts: Sequence[Mapping[str, Any]]) -> list[float]:
    """Where on an axis of epochs from 1 the epochs end in which blocks were lost."""
    return [restart["epoch"] + 1.5 for restart in restarts]


def restart_labels(restarts: Sequence[Mapping[str, Any]], most: int) -> list[tuple[float, str]]:
    """Place on the axis of epochs, and label, of restarts; of more than `most`, the nearest share a label."""
    groups = [[restart] for restart in restarts]
    while len(groups) > most:
        spans = [second[-1]["epoch"] - first[0]["epoch"] for first, second in itertools.pairwise(groups)]
        nearest = int(np.argmin(spans))
        groups[nearest : nearest + 2] = [groups[nearest] + groups[nearest + 1]]
    return [(float(np.mean(restart_ends(group))), _label(group)) for group in groups]


def spread(places: Sequence[float], low: float, high: float, gap: float) -> np.ndarray:
    """Increasing places moved as little as is needed for a gap between them, within `low` and `high`.

    A place that must give way moves to the middle between what pushes from the left and what pushes from the right.
    """
    gaps = gap * np.arange(len(places))
    free = np.array(places, float) - gaps
    pushed_right, pushed_left = np.maximum.accumulate(free), np.minimum.accumulate(free[::-1])[::-1]
    return np.clip((pushed_right + pushed_left) / 2, low, high - gaps[-1:].sum()) + gaps


def _label(group: Sequence[Mapping[str, Any]]) -> str:
    """When the learning rate started anew, once or several times in a row, and for which blocks."""
    first, last = group[0]["epoch"] + 1, group[-1]["epoch"] + 1
    when = f"epoch {first}" if len(group) == 1 else f"epochs {first} to {last}, {_times(len(group))}"
    return f"{when}: {blocks_named(sorted({block for restart in group for block in restart['blocks']}))}"


def _title_of_blocks(blocks: Mapping[str, Any]) -> str:
    """How many blocks are discarded at the end, by the same rule as in `metrics.jsonl`, and how many for good."""
    last = blocks["epochs"][-1]["discarded"]
    title = f"Discarded in epoch {len(blocks['epochs'])}: {sum(map(mostly, last))} of {_number(len(last), 'block')}"
    return title + (f", {len(blocks['retired'])} for good" if blocks["retired"] else "")


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _starts_anew(restarts: Sequence[Any]) -> str:
    return f"starts anew {_times(len(restarts))}" if restarts else "never starts anew"


def _mark_stages(axes: Axes, stages: Sequence[int]) -> None:
    """Lines between stages, and their numbers beside them."""
    ends = np.cumsum(stages)
    width = 1.4 if ends[-1] <= 100 else 0.8
    for number, (end, size) in enumerate(zip(ends, stages, strict=True), 1):
        if end < ends[-1]:
            axes.axhline(end - 0.5, color=ORANGE, linewidth=width)
        beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "rotation": 270, "va": "center"}
        axes.text(1.01, end - size / 2 - 0.5, f"stage {number}", color=GREY, fontsize=8, **beside)


def _mark_restarts(axes: Axes, restarts: Sequence[Mapping[str, Any]]) -> None:
    """Thin lines where the learning rate starts anew, and no others upright."""
    axes.grid(not restarts, axis="x")
    for end in restart_ends(restarts):
        axes.axvline(end, color=GREY, linewidth=0.7, alpha=0.7 if len(restarts) <= 40 else 0.35)


def _count(axis: Axis) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def _logarithmic(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic y axis for the positive ones of these values: a decade at least, and plain numbers."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    positive = values[values > 0]
    if not positive.size:
        return
    high = positive.max()
    low = max(positive.min(), LOWEST * high)
    middle, reach = (low * high) ** 0.5, 1.25 * max(10, high / low) ** 0.5
    axes.set_ylim(middle / reach, middle * reach)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter("{x:g}" if high / low < 100 else "")
