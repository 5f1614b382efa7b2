"""Tables and pictures of ADN's results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from _form import PRECISIONS, in_ms, layers, spread, times
from _results import FOLDER
from resless import report

PICTURED_BATCH = 256


def adn_accuracy(file: Mapping[str, Any]) -> str:
    """One row a network: accuracy of its ends, over the seeds, and of all mixtures of them."""
    rows = []
    for network in dict.fromkeys(run["network"] for run in file["runs"]):
        mine = [run["result"]["configurations"] for run in file["runs"] if run["network"] == network]
        if network.endswith("alone"):
            alone = accuracy(mine, "alone")
            rows.append([network, *((alone, "") if network.startswith("super") else ("", alone)), "", len(mine)])
        else:
            ends = sorted(mine[0], key=lambda name: mine[0][name]["macs"])
            mixed = [f"{name} {accuracy(mine, name)}" for name in reversed(ends[1:-1])]
            rows.append([network, accuracy(mine, ends[-1]), accuracy(mine, ends[0]), ", ".join(mixed), len(mine)])
    return report.markdown(
        [layers(file["runs"][0]["settings"]["model"]), "nothing skipped", "all skipped", "between", "seeds"], rows
    )


def adn_alpha(file: Mapping[str, Any]) -> str:
    """One row a network: accuracy of its ends on held-out images, after the last epoch."""
    alone = {"super-net alone": ("alone", None), "base-net alone": (None, "alone")}
    rows = []
    for run in file["runs"]:
        last, names = run["epochs"][-1], alone.get(run["network"], ("FFF", "TTT"))
        ends = ("" if name is None else f"{100 * last[f'held_out_{name}_top1']:.2f} %" for name in names)
        rows.append([run["network"], *ends])
    return report.markdown(["ResNet-20, held-out images", "nothing skipped", "all skipped"], rows)


def adn_cifar_speed(file: Mapping[str, Any]) -> str:
    """One row a configuration: its cost, and how fast it is beside the one with nothing skipped."""
    rows = []
    for name in dict.fromkeys(found["network"] for found in file["latency"]):
        mine = [found for found in file["latency"] if found["network"] == name]
        rows.append([name, f"{mine[0]['macs'] / 1e6:.1f} M", *(faster(found) for found in mine)])
    columns = [f"{found['precision']}, batch {found['batch_size']}" for found in mine]
    return report.markdown(["skips", "MACs", *columns], rows)


def draw_adn_cifar(file: Mapping[str, Any]) -> None:
    """Accuracy against MACs and against measured latency: all configurations, and the networks trained alone."""
    drawing = report.canvas(9, 3.8)
    precision = file["latency"][-1]["precision"]
    latencies = {
        found["network"]: found["median_ms"]
        for found in file["latency"]
        if (found["precision"], found["batch_size"]) == (precision, PICTURED_BATCH)
    }
    macs = {found["network"]: found["macs"] / 1e6 for found in file["latency"]}
    panels = {
        "MACs an image, millions": macs,
        f"latency in {PRECISIONS[precision]}, batch {PICTURED_BATCH}, ms": latencies,
    }
    for axes, (label, costs) in zip(drawing.subplots(1, 2, sharey=True), panels.items(), strict=True):
        report.style(axes)
        for number, network in enumerate(dict.fromkeys(run["network"] for run in file["runs"])):
            points = [
                (costs[place_of(skips, run["network"], costs)], 100 * found["top1"])
                for run in file["runs"]
                if run["network"] == network
                for skips, found in run["result"]["configurations"].items()
            ]
            form = "x" if network.endswith("alone") else "."
            axes.plot(*zip(*points, strict=True), form, color=report.COLOURS[number], label=network, markersize=7)
        axes.set(xlabel=label)
    axes.figure.axes[0].set(ylabel="test accuracy, %")
    axes.legend(frameon=False, fontsize=8)
    report.save(drawing, FOLDER / f"{file['benchmark']}.png")


def place_of(name: str, network: str, costs: Iterable[str]) -> str:
    """Which configuration costs as much as this one: of a network trained alone, one of the ends."""
    if name != "alone":
        return name
    letter = "F" if network.startswith("super") else "T"
    return next(other for other in costs if set(other) == {letter})


def accuracy(runs: Iterable[Mapping[str, Any]], name: str) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{spread([100 * run[name]['top1'] for run in runs], '{:.2f}')} %"


def faster(found: Mapping[str, Any]) -> str:
    """A speed-up, and how much it is of what the MACs promise."""
    return f"{found['speedup']['median']:.2f} x ({100 * found['share_of_ideal']:.0f} %)"


def adn_latency(file: Mapping[str, Any]) -> str:
    """One row a network and configuration in which the skipping stages are the last ones, and the base-net."""
    rows = []
    for network in dict.fromkeys(found["network"] for found in file["latency"]):
        of_network = [found for found in file["latency"] if found["network"] == network]
        for name in dict.fromkeys(found["configuration"] for found in of_network):
            mine = [found for found in of_network if found["configuration"] == name]
            if name == "F" * len(name):
                cells = [in_ms(found) for found in mine]
            elif name in ("T" * len(name), "T" * (len(name) // 2) + "F" * (len(name) - len(name) // 2)):
                cells = [faster(found) for found in mine]
            else:
                continue
            rows.append([network, name, f"{mine[0]['macs'] / 1e9:.2f} G", *cells])
    columns = [f"{found['precision']}, batch {found['batch_size']}" for found in mine]
    return report.markdown(["network", "skips", "MACs", *columns], rows)


def adn_steps(file: Mapping[str, Any]) -> str:
    """One row a network and way of training it: time and memory of a step."""
    rows = [
        [
            f"{step['network']}, batch {step['batch_size']}",
            way,
            f"{found['step_ms']:.0f} ms",
            times(found["over_together"]),
            f"{found['peak_rss_mib']:,} MiB",
        ]
        for step in file["steps"]
        for way, found in step["ways"].items()
    ]
    return report.markdown(["training step in bf16", "paths", "time", "over both together", "peak of memory"], rows)
