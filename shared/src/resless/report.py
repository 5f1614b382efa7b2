"""Rich tables and matplotlib pictures: how results are shown, never what they are."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from resless.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; the first column is text, the others are numbers."""
    result = Table()
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        result.add_row(*(str(cell) for cell in row))
    console = Console()
    # A narrow terminal wraps lines that are too long for it; cut to its width, columns would lose digits.
    unbounded = console.options.update(max_width=10_000)
    console.width = max(console.width, console.measure(result, options=unbounded).maximum)
    # As a part of the table it would be wrapped.
    console.print(title, style="italic", markup=False, highlight=False, soft_wrap=True)
    console.print(result, crop=False)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The same as a Markdown table, for README files."""
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def figure(width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """An empty picture and its axes, sizes in inches; drawn without a display and without global state."""
    drawing = canvas(width, height)
    axes = drawing.add_subplot()
    style(axes)
    return drawing, axes


def canvas(width: float, height: float) -> Figure:
    """A picture without axes yet, laid out so that nothing overlaps; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, since a run starts a second sooner without
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing


def style(axes: Axes) -> None:
    """A light grid, no frame on the right and above, and our colours."""
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_prop_cycle(color=COLOURS)


def save(drawing: Figure, path: Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    drawing.savefig(content, dpi=150, format="png")
    write_bytes(path, content.getvalue())


def curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Training curves from the lines of `metrics.jsonl`: losses on the left, accuracies on the right.

    Metrics whose name ends in `loss` or in `accuracy` or `top1` are drawn; a run without epochs gives no picture.
    """
    if not records:
        return
    names = {name: None for record in records for name in record}  # in order of appearance
    losses = [name for name in names if name.endswith("loss")]
    accuracies = [name for name in names if name.endswith(("accuracy", "top1"))]
    drawing = canvas(9, 3.6)
    for axes, group, label in zip(drawing.subplots(1, 2), (losses, accuracies), ("loss", "accuracy"), strict=True):
        style(axes)
        for name in group:
            points = [(record["epoch"], record[name]) for record in records if name in record]
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), marker="." if len(points) < 20 else "")
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if group:
            axes.legend(frameon=False)
    save(drawing, path)


MOST_NUMBERS = 20  # classes up to which the cells of a confusion matrix hold numbers
MOST_NAMES = 150  # classes up to which its axes name each


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """A row a class, a column a predicted class: which part of the row's images was taken for the column's class.

    Args:
        counts: images, [class, predicted class].
        class_names: of both axes; shown for 150 classes at most.
        path: of the picture.
    """
    from matplotlib.colors import PowerNorm

    classes = len(class_names)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))  # a class may have no images
    inches = 0.55 if classes <= MOST_NUMBERS else 0.13 if classes <= MOST_NAMES else 0.0
    side = max(5.0, 3.5 + inches * classes)
    drawing = canvas(side + 0.8, side)
    axes = drawing.add_subplot()
    # Beside a good diagonal, the rest would hardly be seen on a linear scale.
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    drawing.colorbar(picture, ax=axes, aspect=40, pad=0.02, label="fraction of the class")
    right = counts.trace() / max(1, counts.sum())
    axes.set(xlabel="predicted class", ylabel="class", title=f"{counts.sum():,} images, {100 * right:.2f} % right")
    if classes <= MOST_NAMES:
        size = 9 if classes <= MOST_NUMBERS else 6
        axes.set_xticks(range(classes), class_names, rotation=90, fontsize=size)
        axes.set_yticks(range(classes), class_names, fontsize=size)
    if classes <= MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:,}" if count else "", ha="center", va="center", fontsize=8, color=colour)
    save(drawing, path)


def histogram(
    values: Mapping[str, np.ndarray], thresholds: Mapping[str, float], path: Path, *, xlabel: str, title: str
) -> None:
    """One row a layer: a histogram of log10 of `values`, with the layer's threshold as a dashed line.

    Exact zeros have no logarithm; their number stands in the row's corner.
    """
    drawing = canvas(7, 1.2 + 1.3 * len(values))
    rows = np.atleast_1d(drawing.subplots(len(values), 1, sharex=True))
    for axes, (name, layer) in zip(rows, values.items(), strict=True):
        style(axes)
        positive = layer[layer > 0]
        if positive.size:
            # One outline a layer: networks have a hundred layers, and a bar is drawn 80 times as slowly.
            axes.stairs(*np.histogram(np.log10(positive), bins=80), fill=True, color=COLOURS[0])
            axes.set_yscale("log")
            axes.minorticks_off()
        if thresholds[name] > 0:
            axes.axvline(np.log10(thresholds[name]), color=COLOURS[1], linestyle="--")
        kept = int((layer > thresholds[name]).sum())
        note = f"{name}: {kept:,} of {layer.size:,} kept, {layer.size - positive.size:,} exactly 0"
        axes.set_title(note, fontsize=8, loc="left")
    rows[-1].set_xlabel(xlabel)
    drawing.suptitle(title, fontsize=10)
    save(drawing, path)
