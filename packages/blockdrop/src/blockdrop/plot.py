"""Pictures of what a network decided, and `blockdrop-plot`.

| file | shows |
|---|---|
| `keep_rates.png` | share of the images that keep each block, and the same for each class |
| `blocks_used.png` | distribution of blocks used, of right and of wrong predictions |
| `policies.png` | how often each policy occurs, and the most frequent ones with images that have them |
| `easy_hard.png` | correctly classified images that use the fewest blocks, and the most |
| `cost_accuracy.png` | accuracy against cost, of the policy network and of its controls |
| `rewards.png` | reward, accuracy and blocks used by epoch |
| `policies.json` | the numbers behind the pictures: every policy, every class (see `analyse.record`) |
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from resless import weights
from resless.config import DataConfig
from resless.data import Images, catalog
from resless.data.pipeline import Pipeline
from resless.data.shards import Shards
from resless.data.stream import Stream, eval_transform
from resless.errors import InputError, check
from resless.files import write_text
from resless.report import COLOURS, canvas, figure, save, style

from blockdrop import analyse
from blockdrop.analyse import CONTROLS, Decisions, Policies
from blockdrop.config import PlotConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, _, _, _, BLACK = COLOURS
GREY = "#777777"
POLICIES, SAMPLES = 8, 6  # policies drawn, and images of each
EASY, COLUMNS = 16, 8  # easy images drawn, and as many hard ones; images in a row

COMMANDS = "blockdrop-train or blockdrop-finetune"
RESULT = {"top1", "cost_fraction", "policy_macs", "dense_macs", "controls"}
"""Keys of a run's result.json that are used here."""
CONTROL_MARKERS = {
    "most_frequent": ("s", ORANGE),
    "random": ("^", GREEN),
    "all_blocks": ("D", BLACK),
    "dense": ("X", COLOURS[3]),
}


def draw(found: Decisions, images: Images | Stream, folder: Path, result: Mapping[str, Any]) -> None:
    """Write all pictures of decisions, and `policies.json`, into a folder, which is made where there is none.

    Args:
        found: what was decided for images of the data set.
        images: the data set; of a streamed one, the few images that are shown are decoded.
        folder: where to write.
        result: JSON values of `evaluate.summary`, with `controls` and, where stages are to be marked, `stages`: the
            number of blocks in each.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draw_keep_rates(found, images.class_names, folder / "keep_rates.png", result.get("stages", ()))
        draw_blocks_used(found, folder / "blocks_used.png")
        draw_policies(found, images, folder / "policies.png", result.get("stages", ()))
        draw_easy_and_hard(found, images, folder / "easy_hard.png")
        draw_cost_accuracy(result, folder / "cost_accuracy.png")
        write_text(folder / "policies.json", json.dumps(analyse.record(found, images.class_names), indent=1) + "\n")
    except OSError as error:
        raise InputError(f"cannot write pictures to {folder}: {error.strerror or error}") from error


def draw_keep_rates(found: Decisions, class_names: Sequence[str], path: Path, stages: Sequence[int] = ()) -> None:
    """Keep rate of each block as bars; below them, a row for each class.

    Args:
        found: of N images.
        class_names: of all classes, those without images too; their rows stay grey.
        path: where to write.
        stages: number of blocks in each stage, to mark their boundaries.
    """
    rates = 100 * analyse.keep_rates(found.kept)
    num_blocks, num_classes = len(rates), len(class_names)
    map_height = min(0.22 * num_classes, max(4.4, 0.1 * num_classes), 10)
    drawing = canvas(min(12, max(6.4, 2.4 + 0.3 * num_blocks)), 3.3 + map_height)
    bars, heat = drawing.subplots(2, 1, sharex=True, height_ratios=[1.8, map_height])
    style(bars)
    blocks = np.arange(1, num_blocks + 1)
    bars.bar(blocks, rates, color=BLUE, width=0.8)
    if num_blocks <= 20:
        for block, rate in zip(blocks, rates, strict=True):
            bars.text(block, rate + 2, f"{rate:.0f}", ha="center", va="bottom", fontsize=8)
    bars.set(ylabel="images that keep it, %", ylim=(0, 112), yticks=range(0, 101, 25))
    bars.tick_params(axis="x", length=0)
    bars.set_title(
        f"{len(found.correct):,} images keep {rates.sum() / 100:.2f} of {num_blocks} blocks on average",
        pad=18 if stages else 6,
    )

    per_class = 100 * analyse.keep_rates_per_class(found, num_classes)
    edges = np.arange(num_blocks + 1) + 0.5, np.arange(num_classes + 1) - 0.5
    mesh = heat.pcolormesh(*edges, np.ma.masked_invalid(per_class), cmap="Blues", vmin=0, vmax=100)
    heat.set_facecolor("#d9d9d9")
    step = math.ceil(num_classes / 100)  # more names than that could not be read
    heat.set_yticks(range(0, num_classes, step), [_short(name, 24) for name in class_names[::step]])
    heat.tick_params(axis="y", labelsize=min(8, max(5, 60 * map_height / (num_classes / step))), length=0)
    heat.set(xlabel="block", xlim=(0.5, num_blocks + 0.5), xticks=_block_ticks(num_blocks))
    heat.invert_yaxis()
    scale = drawing.colorbar(mesh, ax=heat, location="bottom", shrink=0.5, aspect=40, pad=0.1 / map_height)
    scale.set_label("images of the class that keep it, %")
    for axes in (bars, heat):
        _mark_stages(axes, stages)
    start = 0
    for number, size in enumerate(stages, 1):
        bars.text(start + (size + 1) / 2, 114, f"stage {number}", ha="center", va="bottom", fontsize=8, color=GREY)
        start += size
    save(drawing, path)


def draw_blocks_used(found: Decisions, path: Path) -> None:
    """Distribution of blocks used, of images with a right and with a wrong prediction, each adding up to 100 %."""
    num_blocks = found.kept.shape[1]
    drawing, axes = figure(min(11, max(6.4, 2 + 0.2 * num_blocks)), 4)
    wrong, right = analyse.blocks_used_counts(found)
    groups = {"right": (right, BLUE), "wrong": (wrong, ORANGE)}
    groups = {name: group for name, group in groups.items() if group[0].any()}
    blocks, width = np.arange(num_blocks + 1), 0.84 / len(groups)
    for number, (name, (counts, colour)) in enumerate(groups.items()):
        mean = float(counts @ blocks / counts.sum())
        label = f"{counts.sum():,} {name} predictions, mean {mean:.2f} blocks"
        axes.bar(blocks - 0.42 + width * (number + 0.5), 100 * counts / counts.sum(), width, color=colour, label=label)
    axes.set(xlabel=f"blocks used, of {num_blocks}", ylabel="share of these images, %", xlim=(-0.7, num_blocks + 0.7))
    axes.set_xticks(range(0, num_blocks + 1, 1 if num_blocks <= 20 else 5))
    axes.grid(False, axis="x")
    drawing.legend(loc="outside upper center", frameon=False)
    save(drawing, path)


def draw_policies(found: Decisions, images: Images | Stream, path: Path, stages: Sequence[int] = ()) -> None:
    """How often each policy occurs, by rank; below, the most frequent ones, each with images that have it.

    Args:
        found: of N images of `images`.
        images: the data set.
        path: where to write.
        stages: number of blocks in each stage, to mark their boundaries.
    """
    distinct = analyse.policies(found.kept)
    shown = min(POLICIES, len(distinct.counts))
    row_height, strip_inches = 0.78, min(6.0, max(2.4, 0.22 * found.kept.shape[1]))
    drawing = canvas(2.2 + strip_inches + row_height * SAMPLES, 3.4 + 0.9 + row_height * shown)
    above, below = drawing.subfigures(2, 1, squeeze=False, height_ratios=[3.4, 0.9 + row_height * shown]).flat
    _draw_ranks(above.subplots(), distinct, shown)
    below.suptitle(
        "The most frequent policies (black: the block runs) and images that have them (framed: wrong prediction)",
        fontsize=10,
    )
    widths = [1.7, strip_inches, *[row_height] * SAMPLES]
    cells = below.subplots(shown, 2 + SAMPLES, width_ratios=widths, squeeze=False)
    accuracies = distinct.accuracies(found.correct)
    for index, (text, strip, *pictures) in enumerate(cells):
        share, used = 100 * distinct.counts[index] / len(found.correct), int(distinct.kept[index].sum())
        note = f"{index + 1}.  {share:.3g} % of images\n{used} blocks, {100 * accuracies[index]:.1f} % right"
        text.text(0, 0.5, note, va="center", fontsize=8.5, linespacing=1.4)
        text.axis("off")
        _draw_strip(strip, distinct.kept[index], stages)
        rows = analyse.samples_of_policy(distinct, index, found.labels, SAMPLES)
        _draw_images(pictures, found, rows, images)
    cells[-1][1].set_xticks(_block_ticks(found.kept.shape[1]))
    cells[-1][1].tick_params(labelsize=7, length=2, labelbottom=True)
    save(drawing, path)


def draw_easy_and_hard(found: Decisions, images: Images | Stream, path: Path) -> None:
    """Correctly classified images of several classes that use the fewest blocks, and those that use the most."""
    per_class = max(2, math.ceil(EASY / images.num_classes))
    both = zip(("Fewest", "Most"), analyse.easy_and_hard(found, EASY, per_class), strict=True)
    groups = [(title, rows) for title, rows in both if len(rows)]
    if not groups:
        drawing, axes = figure(6.4, 1.2)
        axes.axis("off")
        used = found.blocks_used[found.correct]
        why = f"all correctly classified images use {used[0]} blocks" if len(used) else "no prediction is right"
        axes.text(0.5, 0.5, f"No image is easier than another: {why}.", ha="center", va="center")
        save(drawing, path)
        return
    lines = [math.ceil(len(rows) / COLUMNS) for _, rows in groups]
    heights = [0.5 + 1.5 * count for count in lines]
    drawing = canvas(1.2 * COLUMNS, sum(heights))
    parts = drawing.subfigures(len(groups), 1, squeeze=False, height_ratios=heights).flat
    for part, (title, rows), count in zip(parts, groups, lines, strict=True):
        part.suptitle(f"{title} blocks, among the correctly classified images", fontsize=11)
        cells = list(part.subplots(count, COLUMNS, squeeze=False).flat)
        _draw_images(cells, found, rows, images)
        for axes, row in zip(cells[: len(rows)], rows, strict=True):
            name = _short(images.class_names[found.labels[row]], 15)
            axes.set_title(f"{name}\n{found.blocks_used[row]} of {found.kept.shape[1]}", fontsize=8, pad=3)
    save(drawing, path)


def draw_cost_accuracy(result: Mapping[str, Any], path: Path) -> None:
    """Accuracy against cost as a fraction of the dense network, of the policy network and of its controls.

    The line to the left of the policy network's point is its own cost: the point where it starts is what the blocks
    alone take.

    Args:
        result: JSON values of `evaluate.summary`, with `controls`.
        path: where to write.
    """
    drawing, axes = figure(7.6, 4)
    cost, top1 = 100 * result["cost_fraction"], 100 * result["top1"]
    own = 100 * result["policy_macs"] / result["dense_macs"]
    axes.plot([cost - own, cost], [top1, top1], color=BLUE, linewidth=2, label="cost of the policy network itself")
    axes.plot(cost, top1, "o", color=BLUE, markersize=9, label=_point("policy network", top1, cost))
    accuracies = [top1]
    for name, (marker, colour) in CONTROL_MARKERS.items():
        if name in result["controls"]:
            label = CONTROLS[name]
            x, y = (100 * result["controls"][name][key] for key in ("cost_fraction", "top1"))
            axes.plot(x, y, marker, color=colour, markersize=8, alpha=0.85, label=_point(label, y, x))
            accuracies.append(y)
    axes.axvline(100, color=GREY, linestyle=":", linewidth=1.2)
    # A difference that is within the noise of a few images is not to look large.
    middle, reach = (min(accuracies) + max(accuracies)) / 2, max(1.0, 0.65 * (max(accuracies) - min(accuracies)))
    axes.set(
        xlabel="MACs, % of the dense network",
        ylabel="top-1 accuracy, %",
        ylim=(middle - reach, min(middle + reach, 100.4)),
    )
    costs = [cost, 100, *(100 * control["cost_fraction"] for control in result["controls"].values())]
    axes.set_xlim(0, 1.06 * max(costs))
    drawing.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save(drawing, path)


def draw_rewards(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Reward, accuracy and blocks used by epoch, from the lines of `metrics.jsonl`; without epochs, no picture.

    Means over the training images of an epoch, under the greedy policies and under the sampled ones; with the blocks,
    how many the curriculum has opened. Held-out images, where there are some, are decided on as far as the
    curriculum has opened blocks.
    """
    if not records:
        return
    panels = {
        "reward": ("reward", "reward"),
        "accuracy": ("accuracy", "top1"),
        "blocks used": ("blocks_used", "blocks_used"),
    }
    drawing = canvas(12, 4)
    marker = "." if len(records) < 20 else ""
    for axes, (label, (name, held_out)) in zip(drawing.subplots(1, 3), panels.items(), strict=True):
        style(axes)
        lines = {
            "greedy policies": (f"train_{name}", BLUE, "-"),
            "sampled policies": (f"train_sampled_{name}", ORANGE, "-"),
            "greedy policies, held-out images": (f"held_out_{held_out}", GREEN, "--"),
            "blocks open to decision": ("open_blocks" if name == "blocks_used" else "", BLACK, ":"),
        }
        for what, (key, colour, dashes) in lines.items():
            points = [(record["epoch"], record[key]) for record in records if key in record]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, linestyle=dashes, marker=marker, label=what)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    # The last panel has every line that the others have.
    handles, labels = axes.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    save(drawing, path)


def main(config: PlotConfig) -> None:
    """What `blockdrop-plot` does.

    Raises:
        InputError: the folder is no finished run; its data set cannot be found, or is another one; the pictures cannot
            be written.
    """
    folder = Path(config.run_dir)
    settings, result, records = _read_run(folder)
    found = Decisions.load(folder / "policies.npz")
    model = folder / "model"
    # How the images are normalised is the configuration's affair, and nothing that is drawn.
    preprocessing = {"image_size": weights.preprocessing_of(model).get("image_size")}
    images = _test_images(settings, config.data_dir, preprocessing, weights.class_names_of(model))
    labels = images.labels.numpy()
    if found.images.max() >= len(labels) or not np.array_equal(labels[found.images], found.labels):
        raise InputError(
            f"the {len(labels):,} test images are not those of {folder}: give their folder with --data-dir"
        )
    output = Path(config.output) if config.output is not None else folder
    draw(found, images, output, result)
    draw_rewards(records, output / "rewards.png")
    print(f"wrote pictures and policies.json to {output}")


def _read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """The configuration, the result and the epochs of a finished run."""
    names = ("config.json", "result.json", "metrics.jsonl", "policies.npz")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(f"--run-dir {folder} is no finished run of {COMMANDS}: it has no {missing[0]}")
    settings, result = (_parse(folder / name)[0] for name in names[:2])
    wanted = {"config.json": (settings, {"command", "data"}), "result.json": (result, RESULT)}
    for name, (content, keys) in wanted.items():
        if not isinstance(content, dict) or not keys <= content.keys():
            raise InputError(f"--run-dir {folder} is no run of {COMMANDS}: its {name} is another command's")
    return settings, result, _parse(folder / names[2], by_line=True)


def _parse(path: Path, *, by_line: bool = False) -> list[Any]:
    """The JSON values of a file: one, or one a line."""
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(part) for part in (text.splitlines() if by_line else [text])]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _test_images(
    settings: dict[str, Any], data_dir: str | None, preprocessing: dict[str, Any], class_names: Sequence[str] | None
) -> Images | Stream:
    """The test images of a run, in `data_dir` where they have moved, of the size and classes of its model folder."""
    try:
        data = settings["data"]
        if data_dir is not None:
            check(Path(data_dir).is_dir(), "--data-dir", data_dir, "a folder")
            # A data set without a name of its own is the folder.
            own = data["dataset"] in catalog.DATASETS
            moved = {"data_dir": data_dir} if own else {"dataset": str(Path(data_dir).resolve()), "data_dir": None}
            data = data | moved
        config = DataConfig(**data)
    except (TypeError, KeyError) as error:
        raise InputError(f"the run's config.json does not say which images it used: {error}") from error
    return Pipeline(config, 0, Shards(), preprocessing, class_names).test  # test images know no seed


def _draw_ranks(axes: Axes, distinct: Policies, shown: int) -> None:
    """Share of the images against rank, both logarithmic; the first `shown` stand out."""
    style(axes)
    shares, bits = 100 * distinct.counts / distinct.counts.sum(), distinct.entropy_bits
    ranks = np.arange(1, len(shares) + 1)
    axes.plot(ranks, shares, ".-", color=BLUE, markersize=5, linewidth=1)
    axes.plot(ranks[:shown], shares[:shown], "o", color=BLACK, markersize=5, label="drawn below")
    axes.set(xscale="log", yscale="log", xlabel="rank of the policy", ylabel="images that have it, %")
    # A decade at least, so that an axis has two numbers.
    axes.set(xlim=(0.85, max(10, len(shares)) * 1.15), ylim=(min(shares[-1] / 2, shares[0] / 20), 2 * shares[0]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.legend(frameon=False, loc="upper right")
    title = f"{len(shares):,} policies" if len(shares) > 1 else "1 policy"
    title += f" on {distinct.counts.sum():,} images, entropy {bits:.2f} bits"
    axes.set_title(title + (f" (that of {2**bits:,.1f} equally frequent ones)" if len(shares) > 1 else ""))


def _draw_strip(axes: Axes, kept: np.ndarray, stages: Sequence[int]) -> None:
    """A policy as a row of boxes, black for a block that runs."""
    edges = np.arange(len(kept) + 1) + 0.5
    axes.pcolormesh(edges, [0.28, 0.72], kept[None], cmap="Greys", vmin=0, vmax=1, edgecolors=GREY, linewidth=0.5)
    axes.set(xlim=(0, len(kept) + 1), ylim=(0, 1), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    _mark_stages(axes, stages, 0.16, 0.84)


def _draw_images(cells: Sequence[Axes], found: Decisions, rows: np.ndarray, images: Images | Stream) -> None:
    """The images of rows, those with a wrong prediction framed; cells that are left stay empty."""
    for axes in cells[len(rows) :]:
        axes.axis("off")
    for axes, row in zip(cells[: len(rows)], rows, strict=True):
        pixels = _pixels(images, int(found.images[row]))
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(not found.correct[row])
        axes.spines[:].set(color=ORANGE, linewidth=2.5)


def _pixels(images: Images | Stream, index: int) -> np.ndarray:
    """One image as uint8 [H, W, C], or [H, W] if it is grey; of a streamed one, the part that the network sees."""
    if isinstance(images, Images):
        image = images.images[index]
    else:
        transform = eval_transform(images.size, round(images.size * 256 / 224))
        image = transform(torch.from_numpy(images.samples.image(index)))
    pixels = image.permute(1, 2, 0).numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def _mark_stages(axes: Axes, stages: Sequence[int], bottom: float = 0, top: float = 1) -> None:
    """Lines between stages, from `bottom` to `top` of the axes' height."""
    for end in np.cumsum(stages)[:-1]:
        axes.axvline(end + 0.5, bottom, top, color=ORANGE, linewidth=1.4)


def _block_ticks(num_blocks: int) -> list[int]:
    """All blocks, or the first and every fifth."""
    return list(range(1, num_blocks + 1)) if num_blocks <= 20 else [1, *range(5, num_blocks + 1, 5)]


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _point(label: str, top1: float, cost: float) -> str:
    return f"{label}: {top1:.2f} % at {cost:.1f} %"


if __name__ == "__main__":
    from blockdrop.cli import plot as script

    script()
