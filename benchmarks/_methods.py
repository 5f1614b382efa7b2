"""All methods on CIFAR-10 in one schema: what each network loses against its own dense one, and what it saves.

The methods were measured on networks of different size and training, so accuracies themselves cannot be compared. What
can is each network's distance from the dense network that was trained, or given, in the same way.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import cycle
from typing import Any

from _deephoyer import LABELS, accuracy
from _results import FOLDER, read
from blockdrop.model import BlockDropNet
from resless import costs, report

TABLE = FOLDER / "methods-cifar.csv"
BASELINES = ("shallower, trained as long", "thinner, from fresh weights")


@dataclass(frozen=True)
class Point:
    """One network on the 10,000 test images of CIFAR-10."""

    method: str
    network: str
    setting: str
    seed: int
    epochs: int
    """Over the training images in all; the method's own where it starts from a network that was given."""
    top1: float
    parameters: int
    macs: float
    """An image, on average; of BlockDrop with its policy network."""
    speedup_1: float | None
    """Measured over the dense network, on a processor in float32, one image at a time; None where it was not timed. Of
    BlockDrop that of a trained network which keeps as many blocks: they decide."""
    speedup_256: float | None
    """The same, 256 images at a time."""
    dense_top1: float
    dense_macs: float
    source: str
    """Benchmark whose result file holds it, with settings, commit and times."""

    @property
    def share(self) -> float:
        """Of the dense network's MACs."""
        return self.macs / self.dense_macs

    @property
    def time(self) -> float | None:
        """Of a batch of 256, as a share of the dense network's; None where it was not timed."""
        return None if self.speedup_256 is None else 1 / self.speedup_256

    @property
    def lost(self) -> float:
        """Percentage points below the dense network."""
        return 100 * (self.dense_top1 - self.top1)


def speedups(latency: Sequence[Mapping[str, Any]], network: str) -> tuple[float | None, float | None]:
    """Of a network, in float32, for batches of 1 and of 256."""
    found = {row["batch_size"]: row for row in latency if (row["network"], row["precision"]) == (network, "fp32")}
    one, many = (found[size]["speedup"]["median"] if size in found else None for size in (1, 256))
    return one, many


def of_deephoyer(file: Mapping[str, Any], network: str) -> Iterator[Point]:
    """Compacted networks, and thinner ones trained from fresh weights."""
    names = {name: label.replace("Group-HS", "DeepHoyer") for name, label in LABELS.items()}
    dense = file["latency"][0]["macs"]
    for run in file["networks"]:
        setting = f"strength {run['strength']:g}" if "strength" in run else f"{100 * run['budget']:.0f} % of the MACs"
        seed = run["training"]["settings"]["run"]["seed"]
        epochs = sum(len(run[stage]["epochs"]) for stage in ("training", "tuning") if stage in run)
        faster = speedups(file["latency"], f"{run['name']} {run['budget']:g}") if seed == 0 else (None, None)
        facts = (seed, epochs, accuracy(run), run["parameters"], run["macs"], *faster)
        yield Point(names[run["name"]], network, setting, *facts, file["dense"]["top1"], dense, file["benchmark"])


def of_blockdrop(file: Mapping[str, Any], network: str) -> Iterator[Point]:
    """Networks and policies that were fine-tuned together; the dense one is the backbone that they started from."""
    dense = file["finetuned"][0]["result"]["controls"]["dense"]
    # Of both networks; shortcuts and pooling have none.
    parameters = costs.count_parameters(BlockDropNet(file["finetuned"][0]["settings"]["model"]))
    throughput = (read("blockdrop-throughput") or {"results": []})["results"]
    rounds = {run["settings"]["penalty"]: len(run["epochs"]) for run in file["finetuned"] if "first_penalty" not in run}
    for run in file["finetuned"]:
        found = run["result"]
        setting, epochs = f"penalty {run['settings']['penalty']:g}", len(file["curriculum"]["epochs"])
        if "first_penalty" in run:
            setting = f"penalty {run['first_penalty']:g}, then {run['settings']['penalty']:g}"
            epochs += rounds[run["first_penalty"]]
        faster = (skipping(throughput, network, found["blocks_used"], size) for size in (1, 256))
        facts = (run["settings"]["run"]["seed"], epochs + len(run["epochs"]), found["top1"], parameters, found["macs"])
        yield Point("BlockDrop", network, setting, *facts, *faster, dense["top1"], dense["macs"], file["benchmark"])


def skipping(throughput: Sequence[Mapping[str, Any]], network: str, blocks: float, size: int) -> float | None:
    """How much faster a trained network is that keeps as many blocks; None if none was timed."""
    trained = [row for row in throughput if (row["model"], row["keep_rate"]) == (network, None)]
    alike = [row for row in trained if row["precision"] == "fp32" and abs(row["blocks_used"] - blocks) < 0.5]
    return next((row["speedup"]["median"] for row in alike if row["batch_size"] == size), None)


def of_epsilon(file: Mapping[str, Any], network: str) -> Iterator[Point]:
    """Networks that discarded blocks, and shallower ones; the dense one is that of the same training without a gate."""
    for name, run in file["networks"].items():
        kind, seed = name.partition(" ")[0], run["settings"]["run"]["seed"]
        if kind not in ("epsilon", "shallower"):
            continue
        dense = file["networks"][f"plain, seed {seed}" if seed else "plain"]
        setting = f"ε {run['settings']['epsilon']:g}" if kind == "epsilon" else f"{2 + 6 * run['settings']['n']} layers"
        facts = (seed, len(run["epochs"]), run["result"]["top1"], run["parameters"])
        cost = (run["macs"], *speedups(file["latency"], name), dense["result"]["top1"], dense["macs"])
        method = "ε-ResNet" if kind == "epsilon" else BASELINES[0]
        yield Point(method, network, setting, *facts, *cost, file["benchmark"])


def of_adn(file: Mapping[str, Any], network: str) -> Iterator[Point]:
    """All configurations; the dense one is the super-net that was trained alone with the same seed."""
    alone = {
        run["seed"]: run["result"]["configurations"] for run in file["runs"] if run["network"] == "super-net alone"
    }
    for run in file["runs"]:
        dense = alone.get(run["seed"], {}).get("alone")
        if dense is None or run["network"] not in ("adaptive", "base-net alone"):
            continue
        method = "ADN" if run["network"] == "adaptive" else BASELINES[0]
        for name, found in run["result"]["configurations"].items():
            setting = f"skips {name}" if method == "ADN" else "the base-net"
            faster = speedups(file.get("latency", []), name if method == "ADN" else "TTT")  # the same layers
            facts = (run["seed"], len(run["epochs"]), found["top1"], found["parameters"], found["macs"], *faster)
            yield Point(method, network, setting, *facts, dense["top1"], dense["macs"], file["benchmark"])


def of_given(file: Mapping[str, Any], _: str) -> Iterator[Point]:
    """Shallower networks that were trained elsewhere, beside each deeper one."""
    started_from = {network for points_of, network in READERS.values() if points_of is not of_given}
    for network in sorted(started_from & set(file["latency"])):
        dense, latency = file["networks"][network], file["latency"][network]
        for name in dict.fromkeys(row["network"] for row in latency if row["network"] != network):
            one = file["networks"][name]
            facts = (0, 0, one["result"]["top1"], one["parameters"], one["macs"], *speedups(latency, name))
            cost = (dense["result"]["top1"], dense["macs"])
            yield Point(BASELINES[0], network, f"{name}, given", *facts, *cost, file["benchmark"])


READERS: dict[str, tuple[Callable[[Mapping[str, Any], str], Iterator[Point]], str]] = {
    "deephoyer-cifar": (of_deephoyer, "resnet20"),
    "deephoyer-cifar-resnet56": (of_deephoyer, "resnet56"),
    "deephoyer-cifar-seeds": (of_deephoyer, "resnet20"),
    "blockdrop-cifar": (of_blockdrop, "resnet32"),
    "blockdrop-cifar-r110": (of_blockdrop, "resnet110"),
    "blockdrop-cifar-seeds": (of_blockdrop, "resnet32"),
    "epsilon-cifar": (of_epsilon, "preresnet32"),
    "epsilon-cifar-n18": (of_epsilon, "preresnet110"),
    "epsilon-cifar-seeds": (of_epsilon, "preresnet32"),
    "adn-cifar": (of_adn, "resnet20"),
    "adn-cifar-resnet56": (of_adn, "resnet56"),
    "given-cifar": (of_given, ""),
}
"""By benchmark: what reads its results, and the network that it starts from; of several, these tell it."""


def points() -> list[Point]:
    """Every network of every result file that is there."""
    found: list[Point] = []
    for name, (points_of, network) in READERS.items():
        if file := read(name):
            found += points_of(file, network)
    return found


def table_of_points(found: Sequence[Point]) -> str:
    """One line a network, comma-separated."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Point)], lineterminator="\n")
    writer.writeheader()
    for point in found:
        rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in vars(point).items()}
        writer.writerow(rounded)
    return text.getvalue()


def draw_points(found: Sequence[Point]) -> None:
    """Points of accuracy lost, of every method and baseline, against what is left of the MACs and of a batch's time."""
    drawing = report.canvas(9, 4.4)
    panels = drawing.subplots(1, 2, sharey=True)
    for axes, left, what in zip(panels, ("share", "time"), ("MACs", "time of a batch of 256"), strict=True):
        report.style(axes)
        colours, markers = cycle(report.COLOURS), cycle("x+1^")
        for method in dict.fromkeys(point.method for point in found):
            mine = [(getattr(point, left), -point.lost) for point in found if point.method == method]
            line = sorted((100 * share, above) for share, above in mine if share is not None)
            marker, colour = (next(markers), "dimgray") if method in BASELINES else ("o", next(colours))
            axes.plot([x for x, _ in line], [y for _, y in line], marker, color=colour, label=method, markersize=5)
        axes.plot(100, 0, "k*", markersize=10, label="the dense network of each")
        axes.set(xlabel=f"{what}, % of the dense network's")
    panels[0].set(ylabel="accuracy above the dense network's, points")
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    report.save(drawing, FOLDER / "methods-cifar.png")


def one_setting_each(found: Sequence[Point]) -> str:
    """A table: of each method on each network, the setting with the most seeds, of several the one whose MACs are
    nearest to half of the dense network's, to a percent, then the one that was trained for longest; what is left of the
    MACs and points lost are means over its seeds."""
    rows, settings = [], alike(found)
    for method, network in dict.fromkeys((point.method, point.network) for point in found):
        mine = [runs for runs in settings if (runs[0].method, runs[0].network) == (method, network)]
        runs = min(mine, key=by_seeds_share_epochs)
        one = runs[0]
        faster = (f"{each:.2f} x" if each else "" for each in (one.speedup_1, one.speedup_256))
        epochs = f"{one.epochs}" if one.epochs else "given"
        left, lost = f"{100 * share_of(runs):.0f} %", f"{statistics.mean(run.lost for run in runs):.2f}"
        row = [network, method, one.setting, epochs, left, lost, len(runs), *faster]
        rows.append((network, method in BASELINES, row))
    columns = ["network", "method", "setting", "epochs", "MACs left", "points lost", "seeds"]
    columns += ["faster, batch 1", "batch 256"]
    return report.markdown(columns, [row for *_, row in sorted(rows, key=lambda found: found[:2])])


def by_seeds_share_epochs(runs: Sequence[Point]) -> tuple[float, float, float]:
    """First what has the most seeds; a given network was trained in full."""
    return -len(runs), round(abs(share_of(runs) - 0.5), 2), -(runs[0].epochs or math.inf)


def share_of(runs: Sequence[Point]) -> float:
    """What is left of the dense network's MACs, a mean over the seeds."""
    return statistics.mean(run.share for run in runs)


def alike(found: Sequence[Point]) -> list[list[Point]]:
    """The points of each setting, one a seed."""
    settings: dict[tuple[str, ...], list[Point]] = {}
    for point in found:
        settings.setdefault((point.method, point.network, point.setting, point.source), []).append(point)
    return list(settings.values())
