"""All methods on CIFAR-10 in one schema: what each network loses against its own dense one, and what it saves.

The methods were measured on networks of different size and training, so accuracies themselves cannot be compared. What
can is each network's distance from the dense network that was trained, or given, in the same way.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import cycle
from typing import Any

from _deephoyer import LABELS, accuracy
from _results import FOLDER, read
from resless import report

TABLE = FOLDER / "methods-cifar.csv"
BASELINES = ("shallower, trained as long", "thinner, trained as long")


@dataclass(frozen=True)
class Point:
    """One network on the 10,000 test images of CIFAR-10."""

    method: str
    network: str
    setting: str
    seed: int
    top1: float
    macs: float
    """An image, on average; of BlockDrop with its policy network."""
    dense_top1: float
    dense_macs: float
    source: str
    """Benchmark whose result file holds it, with settings, commit and times."""

    @property
    def share(self) -> float:
        """Of the dense network's MACs."""
        return self.macs / self.dense_macs

    @property
    def lost(self) -> float:
        """Percentage points below the dense network."""
        return 100 * (self.dense_top1 - self.top1)


def of_deephoyer(file: Mapping[str, Any], network: str) -> Iterator[Point]:
    """Compacted networks, and thinner ones trained from fresh weights."""
    names = {name: label.replace("Group-HS", "DeepHoyer") for name, label in LABELS.items()}
    dense = file["latency"][0]["macs"]
    for run in file["networks"]:
        setting = f"strength {run['strength']:g}" if "strength" in run else f"{100 * run['budget']:.0f} % of the MACs"
        seed = run["training"]["settings"]["run"]["seed"]
        cost = (accuracy(run), run["macs"], file["dense"]["top1"], dense)
        yield Point(names[run["name"]], network, setting, seed, *cost, file["benchmark"])


def of_blockdrop(file: Mapping[str, Any], network: str) -> Iterator[Point]:
    """Networks and policies that were fine-tuned together; the dense one is the backbone that they started from."""
    dense = file["finetuned"][0]["result"]["controls"]["dense"]
    for run in file["finetuned"]:
        found = run["result"]
        setting = f"penalty {run['settings']['penalty']:g}"
        if "first_penalty" in run:
            setting = f"penalty {run['first_penalty']:g}, then {run['settings']['penalty']:g}"
        cost = (found["top1"], found["macs"], dense["top1"], dense["macs"])
        yield Point("BlockDrop", network, setting, run["settings"]["run"]["seed"], *cost, file["benchmark"])


def of_epsilon(file: Mapping[str, Any], network: str) -> Iterator[Point]:
    """Networks that discarded blocks; the dense one is that of the same training without a gate."""
    plain = file["networks"]["plain"]
    for name, run in file["networks"].items():
        if name.startswith("epsilon "):
            cost = (run["result"]["top1"], run["macs"], plain["result"]["top1"], plain["macs"])
            setting, seed = f"ε {run['settings']['epsilon']:g}", run["settings"]["run"]["seed"]
            yield Point("ε-ResNet", network, setting, seed, *cost, file["benchmark"])


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
            cost = (found["top1"], found["macs"], dense["top1"], dense["macs"])
            yield Point(method, network, setting, run["seed"], *cost, file["benchmark"])


READERS: dict[str, tuple[Callable[[Mapping[str, Any], str], Iterator[Point]], str]] = {
    "deephoyer-cifar": (of_deephoyer, "resnet20"),
    "deephoyer-cifar-resnet56": (of_deephoyer, "resnet56"),
    "blockdrop-cifar": (of_blockdrop, "resnet32"),
    "blockdrop-cifar-r110": (of_blockdrop, "resnet110"),
    "epsilon-cifar": (of_epsilon, "preresnet32"),
    "epsilon-cifar-n18": (of_epsilon, "preresnet110"),
    "adn-cifar": (of_adn, "resnet20"),
    "adn-cifar-resnet56": (of_adn, "resnet56"),
}
"""By benchmark: what reads its results, and the network that it starts from."""


def points() -> list[Point]:
    """Every network of every result file that is there."""
    found: list[Point] = []
    for name, (points_of, network) in READERS.items():
        if file := read(name):
            found += points_of(file, network)
    return found


def write_points(found: Sequence[Point]) -> None:
    """One line a network."""
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(point) for point in found)


def draw_points(found: Sequence[Point]) -> None:
    """Points of accuracy lost against the share of MACs that is left, of every method and baseline."""
    drawing, axes = report.figure()
    colours, markers = cycle(report.COLOURS), cycle("x+1^")
    for method in dict.fromkeys(point.method for point in found):
        mine = sorted((100 * point.share, -point.lost) for point in found if point.method == method)
        marker, colour = (next(markers), "dimgray") if method in BASELINES else ("o", next(colours))
        axes.plot(*zip(*mine, strict=True), marker, color=colour, label=method, markersize=5)
    axes.plot(100, 0, "k*", markersize=10, label="the dense network of each")
    axes.set(xlabel="MACs, % of the dense network's", ylabel="accuracy above the dense network's, points")
    axes.legend(frameon=False, fontsize=8)
    report.save(drawing, FOLDER / "methods-cifar.png")
