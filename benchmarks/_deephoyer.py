"""Tables and pictures of DeepHoyer's results on convolution networks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from _form import in_ms, layers, spread, times
from _results import FOLDER
from resless import report

PICTURED_BATCH = 256
LABELS = {
    "group_hoyer_square": "Group-HS",
    "group_hoyer_square-8s": "Group-HS, widths in 8s",
    "group_hoyer_square-memory": "Group-HS, memory counted",
    "group_hoyer_square-own": "Group-HS, each tensor by itself",
    "group_lasso": "group lasso",
    "thinner": "thinner, from fresh weights",
}
FORMS = {
    "fp32": "float32",
    "bf16": "bf16, channels_last",
    "fp32-folded": "float32, channels_last, folded",
    "bf16-folded": "bf16, channels_last, folded",
}


def deephoyer_speed(file: Mapping[str, Any]) -> str:
    """One row a network and how it was cut: MACs that are left, and speed-ups."""
    rows = []
    timings = file["timings"]
    precisions = list(dict.fromkeys(found["precision"] for found in timings))
    for model in dict.fromkeys(found["model"] for found in timings):
        mine = [found for found in timings if found["model"] == model]
        for name in dict.fromkeys(found["network"] for found in mine):
            found = {timing["precision"]: timing for timing in mine if timing["network"] == name}
            one = next(iter(found.values()))
            left = f"{one['macs'] / 1e6:,.1f} M" if name == "dense" else f"{100 / one['ideal_speedup']:.1f} %"
            label = f"{model}, batch {one['batch_size']}" if name == "dense" else name
            shown = in_ms if name == "dense" else faster
            cells = [shown(found[precision]) if precision in found else "" for precision in precisions]
            rows.append([f"**{label}**" if name == "dense" else label, left, *cells])
    return report.markdown(["network", "MACs", *(FORMS[precision] for precision in precisions)], rows)


def deephoyer_peer(file: Mapping[str, Any]) -> str:
    """One row a network and how it was cut: speed-ups over Torch-Pruning's, at as many MACs and the same rounding."""
    cells: dict[str, dict[str, str]] = {}
    for found in file["timings"]:
        if "over_peer" in found:
            row = cells.setdefault(f"{found['model']}, {found['network'].removeprefix('compacted, ')}", {})
            row[found["precision"]] = times(found["over_peer"])
    precisions = list(dict.fromkeys(precision for row in cells.values() for precision in row))
    rows = [[name, *(row[precision] for precision in precisions)] for name, row in cells.items()]
    return report.markdown(["speed-up over Torch-Pruning's", *(FORMS[precision] for precision in precisions)], rows)


def faster(found: Mapping[str, Any]) -> str:
    """A speed-up with quartiles, and how much it is of what the MACs promise."""
    return f"{times(found['speedup'])}, {100 * found['share_of_ideal']:.0f} %"


def deephoyer_strengths(file: Mapping[str, Any]) -> str:
    """One row a strength: held-out images before the cut, after it and after fine-tuning, for the first seed; test
    images for all seeds, where held-out images chose it."""
    first, dense = file["settings"]["options"]["seeds"][0], file["dense"]
    shares = [f"{100 * share:.2f} %" for share in (dense["epochs"][-1]["held_out_top1"], dense["result"]["top1"])]
    rows = [["dense", "", "", "", *shares, ""]]
    for network in file["networks"]:
        if network["seed"] == first:
            held_out = [network["result"][f"held_out_top1_{stage}"] for stage in ("before", "cut", "tuned")]
            same = [other for other in file["networks"] if _strength(other) == _strength(network)]
            tested = [100 * other["test_top1"] for other in same if "test_top1" in other]
            test = [f"{spread(tested, '{:.2f}')} %", str(len(tested))] if tested else ["", ""]
            shares = [f"{100 * share:.2f} %" for share in held_out]
            rows.append([LABELS[network["regulariser"]], f"{network['strength']:g}", *shares, *test])
    held_out_stages = ["held out: before the cut", "after it", "fine-tuned"]
    return report.markdown(["ResNet-20, half of its MACs", "strength", *held_out_stages, "test", "seeds"], rows)


def _strength(network: Mapping[str, Any]) -> tuple[str, float]:
    return network["regulariser"], network["strength"]


def deephoyer_cifar(file: Mapping[str, Any]) -> str:
    """One row a network: what is left, what it can (mean and standard deviation over seeds), how fast that of the first
    seed is; the dense one first."""
    timings = {(t["network"], t["precision"], t["batch_size"]): t for t in file["latency"]}
    timed = list(dict.fromkeys((precision, batch) for _, precision, batch in timings))
    dense = next(iter(timings.values()))
    start = [f"{timings[('dense', *how)]['median_ms']:.1f} ms" for how in timed]
    rows = [["dense", "", f"{dense['macs'] / 1e6:.1f} M", f"{100 * file['dense']['top1']:.2f} %", "", *start]]
    for network, runs in by_network(file["networks"]).items():
        first = runs[0]
        cells = [faster(timings[(network, *how)]) for how in timed]
        strength = f"{first['strength']:g}" if "strength" in first else ""
        left = f"{100 * first['macs'] / dense['macs']:.1f} %"
        top1 = spread([100 * accuracy(run) for run in runs], "{:.2f}")
        rows.append([LABELS[first["name"]], strength, left, f"{top1} %", len(runs), *cells])
    name = layers(file["networks"][0]["training"]["settings"]["model"])
    columns = [f"{FORMS[precision]}, batch {batch}" for precision, batch in timed]
    return report.markdown([name, "strength", "MACs", "test accuracy", "seeds", *columns], rows)


def draw_deephoyer_cifar(file: Mapping[str, Any]) -> None:
    """Accuracy against MACs and against measured latency at batch 1 and 256, a line a way to get there."""
    drawing = report.canvas(11, 3.8)
    precision = file["latency"][-1]["precision"]
    panels: dict[str, dict[str, float]] = {
        "MACs an image, millions": {t["network"]: t["macs"] / 1e6 for t in file["latency"]}
    }
    for batch in (1, PICTURED_BATCH):
        panels[f"{FORMS[precision]}, batch {batch}, ms"] = {
            t["network"]: t["median_ms"]
            for t in file["latency"]
            if (t["precision"], t["batch_size"]) == (precision, batch)
        }
    for axes, (label, costs) in zip(drawing.subplots(1, 3, sharey=True), panels.items(), strict=True):
        report.style(axes)
        for number, way in enumerate(dict.fromkeys(run["name"] for run in file["networks"])):
            mine = by_network(run for run in file["networks"] if run["name"] == way)
            line = sorted((costs[name], 100 * statistics.mean(map(accuracy, runs))) for name, runs in mine.items())
            axes.plot(*zip(*line, strict=True), "o-", color=report.COLOURS[number], label=LABELS[way])
        axes.plot(costs["dense"], 100 * file["dense"]["top1"], "k*", markersize=10, label="dense")
        axes.set(xlabel=label)
    drawing.axes[0].set(ylabel="test accuracy, %")
    axes.legend(frameon=False, fontsize=8)
    report.save(drawing, FOLDER / f"{file['benchmark']}.png")


def by_network(runs: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The runs of each network, one a seed, by the name under which that of the first seed was timed."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        found.setdefault(f"{run['name']} {run['budget']:g}", []).append(run)
    return found


def accuracy(run: Mapping[str, Any]) -> float:
    """On the test images, at the end."""
    found: float = run["tuning"]["result"]["test_top1_tuned"] if "tuning" in run else run["training"]["result"]["top1"]
    return found
