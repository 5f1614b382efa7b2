"""Tables and pictures of ε-ResNet's results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _form import PRECISIONS, spread, times
from _results import FOLDER
from epsilon_resnet.plot import draw
from resless import report

PICTURED_BATCH = 256


def epsilon_cifar(file: Mapping[str, Any]) -> str:
    """One row a network: error, blocks, size and cost, and its speed beside the plain network's."""
    rows = []
    for name, run in file["networks"].items():
        found = run["result"]
        timings = [timing for timing in file["latency"] if timing["network"] == name]
        rows.append(
            [
                shown(name),
                f"{100 * (1 - found['top1']):.2f} %",
                f"{len(found['discarded'])} of {found['num_blocks']}",
                f"{run['parameters']:,}",
                f"{run['macs'] / 1e6:.1f} M",
                *(against_ideal(timing) for timing in timings),
            ]
        )
    columns = [
        f"n = {file['networks']['plain']['settings']['n']}",
        "test error",
        "blocks discarded",
        "parameters",
        "MACs",
    ]
    columns += [f"speed-up, {PRECISIONS[timing['precision']]}, batch {timing['batch_size']}" for timing in timings]
    return report.markdown(columns, rows)


def epsilon_seeds(file: Mapping[str, Any]) -> str:
    """One row a network: means over its seeds, with standard deviations."""
    rows, networks = [], file["networks"]
    for name in dict.fromkeys(name.partition(", seed ")[0] for name in networks):
        runs = [run for each, run in networks.items() if each.partition(", seed ")[0] == name]
        errors = [100 * (1 - run["result"]["top1"]) for run in runs]
        discarded = ", ".join(str(len(run["result"]["discarded"])) for run in runs)
        macs = spread({run["macs"]: run["macs"] / 1e6 for run in runs}.values(), "{:.1f}")
        rows.append([shown(name), f"{spread(errors, '{:.2f}')} %", discarded, f"{macs} M", len(runs)])
    return report.markdown(["", "test error", "blocks discarded", "MACs", "seeds"], rows)


def shown(name: str) -> str:
    """A network's name with the Greek letter, and the layers of a shallower one."""
    kind, _, number = name.partition(" ")
    return f"plain, {2 + 6 * int(number)} layers" if kind == "shallower" else name.replace("epsilon", "ε")


def against_ideal(timing: Mapping[str, Any]) -> str:
    """The median speed-up, and how much it is of what the MACs promise; nothing of the plain network itself."""
    if timing["network"] == "plain":
        return ""
    return f"{timing['speedup']['median']:.2f} x ({100 * timing['share_of_ideal']:.0f} %)"


def draw_epsilon_cifar(file: Mapping[str, Any]) -> None:
    """Error against MACs and against measured latency; and the story of the run that lost the most blocks."""
    drawing = report.canvas(9, 3.8)
    precision = file["latency"][-1]["precision"]
    points = {
        "MACs an image, millions": {name: run["macs"] / 1e6 for name, run in file["networks"].items()},
        f"latency in {PRECISIONS[precision]}, batch {PICTURED_BATCH}, ms": {
            t["network"]: t["median_ms"]
            for t in file["latency"]
            if (t["precision"], t["batch_size"]) == (precision, PICTURED_BATCH)
        },
    }
    for axes, (label, costs) in zip(drawing.subplots(1, 2, sharey=True), points.items(), strict=True):
        report.style(axes)
        for number, (network, run) in enumerate(file["networks"].items()):
            error, shallower = 100 * (1 - run["result"]["top1"]), network.startswith("shallower")
            marker, colour = ("x", "dimgray") if shallower else ("o", report.COLOURS[number])
            axes.plot(costs[network], error, marker, color=colour, label=shown(network))
        axes.set(xlabel=label)
    axes.figure.axes[0].set(ylabel="test error, %")
    axes.legend(frameon=False, fontsize=8)
    report.save(drawing, FOLDER / f"{file['benchmark']}.png")
    most = max(file["networks"].values(), key=lambda run: len(run["result"]["discarded"]))
    draw(FOLDER / file["benchmark"].replace("cifar", "blocks"), most["blocks"], most["epochs"])


def epsilon_speed(file: Mapping[str, Any]) -> str:
    """One row a network and precision: what gates cost a training step, and what retired blocks save."""
    rows = []
    for step in file["steps"]:
        retired = step["retired"].values()
        rows.append(
            [
                f"n = {step['n']}, {'float32' if step['precision'] == 'fp32' else step['precision']}",
                f"{step['plain_step_ms']:.0f} ms",
                times(step["gated_over_plain"]),
                *(f"{times(found['speedup'])}, by MACs {found['ideal_speedup']:.2f} x" for found in retired),
            ]
        )
    columns = ["training step", "plain", "gated over plain"]
    return report.markdown([*columns, *(f"speed-up with {name}" for name in file["steps"][0]["retired"])], rows)
