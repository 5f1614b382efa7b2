"""Turn the files in `benchmarks/results/` into the tables and pictures of the README files, and into a gallery.

    python benchmarks/tables.py
    python benchmarks/tables.py --check     # writes nothing; says what is not as the results say, and ends with 1

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; nothing else of a README is touched. Pictures are not
checked.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro
from _adn import adn_accuracy, adn_alpha, adn_cifar_speed, adn_latency, adn_steps, draw_adn_cifar
from _at_work import draw_methods_at_work
from _composition import composition
from _deephoyer import (
    deephoyer_cifar,
    deephoyer_peer,
    deephoyer_speed,
    deephoyer_strengths,
    draw_deephoyer_cifar,
)
from _epsilon import draw_epsilon_cifar, epsilon_cifar, epsilon_seeds, epsilon_speed
from _form import PRECISIONS, layers, peak, quartiles, spread, timed_in_bf16, times
from _gallery import PAGE as GALLERY
from _gallery import gallery
from _methods import TABLE as POINTS
from _methods import Point, draw_points, one_setting_each, points, table_of_points
from _results import FOLDER, HERE, read
from blockdrop.analyse import CONTROLS
from resless import report

ROOT = HERE.parent
READMES = (
    ROOT / "README.md",
    ROOT / "shared" / "README.md",
    *(ROOT / "packages" / paper / "README.md" for paper in ("deephoyer", "blockdrop", "epsilon_resnet", "adn")),
)

# The paper's own numbers, and those of the best other method that it lists: accuracy %, weights or MACs.
PAPER = {
    "lenet-300-100-element": ("98.4 %, 4.6k weights", 98.4, 4_600),
    "lenet5-element": ("99.2 %, 3.5k weights", 99.2, 3_500),
    "lenet-300-100-structural": ("98.2 %, 16.5k MACs, 353-45-11", 98.2, 16_500),
    "lenet5-structural": ("99.0 %, 169.9k MACs, 5-12-139-13; best other 153.4k MACs", 99.0, 169_900),
}


def main(check: bool = False) -> None:
    """Make every table and picture that there are results for.

    Args:
        check: only compare the tables and pages that are there with those that would be made.
    """
    if FOLDER != HERE / "results":
        sys.exit("$RESLESS_RESULTS is set: pages and pictures are made from what was measured in full; unset it")
    found = points()
    if check:
        old = [str(path.relative_to(ROOT)) for path, text in pages(found).items() if read_text(path) != text]
        if old:
            sys.exit(f"not as the results say: {', '.join(old)}; run python benchmarks/tables.py")
        return
    for result, draw in PICTURES.items():
        if file := read(result):
            draw(file)
    draw_methods_at_work()
    draw_points(found)
    for path, text in pages(found).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")


def pages(found: Sequence[Point]) -> dict[Path, str]:
    """Every text that is made, and where it belongs."""
    made = tables() | {"methods-cifar": one_setting_each(found)}
    texts = {path: filled(path.read_text(encoding="utf-8"), made) for path in READMES}
    return texts | {POINTS: table_of_points(found), GALLERY: gallery()}


def read_text(path: Path) -> str:
    """What a file holds, its line ends as they are; nothing if it is not there."""
    return path.read_bytes().decode("utf-8") if path.exists() else ""


def tables() -> dict[str, str]:
    """Name -> table of one result, of those that there are."""
    found = {}
    for name, table in TABLES.items():
        if file := read(SOURCES.get(name, name), CHOSEN.get(name, lambda _: True)):
            found[name] = table(file)
    return found


def filled(text: str, tables: dict[str, str]) -> str:
    """The text with every table that it asks for."""

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- table: {name} -->\n{tables.get(name, '')}<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL)


# -- DeepHoyer on MNIST


def deephoyer_mnist(file: dict[str, Any]) -> str:
    """One row a recipe: the paper's numbers beside the mean and standard deviation of ours."""
    runs, rows = file["results"], []
    for recipe, (published, _, _) in PAPER.items():
        mine = [run for run in runs if run["recipe"] == recipe]
        if not mine:
            continue
        accuracy = spread([100 * run["test_top1"]["tuned"] for run in mine], "{:.2f}")
        size = "weights" if recipe.endswith("element") else "MACs"
        left = spread([run[size.lower()] for run in mine], "{:,.0f}")
        batch = [time for run in mine for time in run["latency"] if time["batch_size"] == 256]
        ideal = statistics.mean(run["dense_macs"] / run["macs"] for run in mine)
        faster = f"{statistics.median(time['speedup'] for time in batch):.1f} x (MACs {ideal:.1f} x)"
        structures = ", ".join(run["structure"] for run in mine)
        rows.append([recipe, published, f"{accuracy} %", f"{left} {size}", structures, faster, len(mine)])
    columns = ["recipe", "paper", "test accuracy", "what is left", "compacted", "speed-up, batch 256", "seeds"]
    return report.markdown(columns, rows)


def draw_deephoyer_mnist(file: dict[str, Any]) -> None:
    """Accuracy against what is left, ours and the paper's, one picture for weights and one for MACs."""
    runs = file["results"]
    for kind, size, label in (("element", "weights", "non-zero weights"), ("structural", "macs", "MACs an image")):
        drawing, axes = report.figure()
        for number, recipe in enumerate(name for name in PAPER if name.endswith(kind)):
            mine = [run for run in runs if run["recipe"] == recipe]
            points = [(run[size], 100 * run["test_top1"]["tuned"]) for run in mine]
            colour, (_, accuracy, published) = report.COLOURS[number], PAPER[recipe]
            if points:
                axes.plot(*zip(*points, strict=True), "o", color=colour, label=f"{recipe}, ours")
            axes.plot(published, accuracy, "x", color=colour, markersize=9, label=f"{recipe}, paper")
        axes.set(xlabel=label, ylabel="test accuracy, %", xscale="log" if kind == "structural" else "linear")
        axes.legend(frameon=False, fontsize=8)
        report.save(drawing, FOLDER / f"deephoyer-mnist-{kind}.png")


def draw_deephoyer_sweep(sweep: dict[str, Any]) -> None:
    """Held-out error against MACs, a line a strength; on logarithmic axes, or the deepest cuts would hide the rest."""
    drawing, axes = report.figure()
    for strength in dict.fromkeys(point["strength"] for point in sweep["points"]):
        line = sorted((p["macs"], 100 - 100 * p["top1"]) for p in sweep["points"] if p["strength"] == strength)
        axes.plot(*zip(*line, strict=True), marker="o", label=f"strength {strength:g}")
    axes.set(xscale="log", yscale="log", xlabel="MACs an image", ylabel="error on held-out images, %")
    axes.legend(frameon=False, fontsize=8)
    report.save(drawing, FOLDER / "deephoyer-sweep.png")


# -- BlockDrop


def blockdrop_cifar(file: dict[str, Any]) -> str:
    """One row a penalty, the controls beside it; and the dense network."""
    rows = []
    for run in file["finetuned"]:
        found, controls = run["result"], run["result"]["controls"]
        rows.append(
            [
                label(run),
                f"{100 * found['top1']:.2f} %",
                f"{found['blocks_used']:.2f} ± {found['blocks_used_sd']:.2f} of {found['num_blocks']}",
                f"{found['macs'] / 1e6:.1f} ± {found['macs_sd'] / 1e6:.1f} M",
                f"{100 * found['cost_fraction']:.1f} %",
                f"{found['unique_policies']:,}",
                *(at_cost(controls[name]) for name in ("most_frequent", "random", "all_blocks")),
            ]
        )
    dense = file["finetuned"][0]["result"]["controls"]["dense"]
    accuracy, macs = f"{100 * dense['top1']:.2f} %", f"{dense['macs'] / 1e6:.1f} M"
    rows.append(["dense", accuracy, f"{dense['blocks_used']:.0f}", macs, "100 %", *[""] * 4])
    policy = file["finetuned"][0]["result"]["policy_macs"]
    columns = [
        layers(file["finetuned"][0]["settings"]["model"]),
        "test accuracy",
        "blocks",
        f"MACs, with {policy / 1e6:.1f} M of policy",
        "of dense",
        "policies",
    ]
    return report.markdown(
        [*columns, *(f"control: {CONTROLS[n]}" for n in ("most_frequent", "random", "all_blocks"))], rows
    )


def blockdrop_seeds(file: dict[str, Any]) -> str:
    """One row a penalty: means over its seeds, with standard deviations; how many policies each seed is left with."""
    rows, names = [], ("most_frequent", "random", "all_blocks")
    for name in dict.fromkeys(map(label, file["finetuned"])):
        found = [run["result"] for run in file["finetuned"] if label(run) == name]
        cost, blocks = ([each[value] for each in found] for value in ("cost_fraction", "blocks_used"))
        rows.append(
            [
                name,
                in_percent(found),
                f"{spread(blocks, '{:.2f}')} of {found[0]['num_blocks']}",
                f"{spread((100 * share for share in cost), '{:.1f}')} %",
                ", ".join(f"{each['unique_policies']:,}" for each in found),
                *(in_percent([each["controls"][control] for each in found]) for control in names),
                len(found),
            ]
        )
    network = layers(file["finetuned"][0]["settings"]["model"])
    controls = [f"control: {CONTROLS[name]}" for name in names]
    columns = [network, "test accuracy", "blocks", "MACs of dense", "policies", *controls, "seeds"]
    return report.markdown(columns, rows)


def in_percent(results: list[dict[str, Any]]) -> str:
    """Accuracies, as a mean with its standard deviation."""
    return f"{spread((100 * found['top1'] for found in results), '{:.2f}')} %"


def label(run: dict[str, Any]) -> str:
    """The penalty; of a network that was fine-tuned a second time, both."""
    first = f"γ {run['first_penalty']:g}, then " if "first_penalty" in run else ""
    return f"{first}γ {run['settings']['penalty']:g}"


def at_cost(control: dict[str, Any]) -> str:
    """Accuracy and cost of a control."""
    return f"{100 * control['top1']:.2f} % at {100 * control['cost_fraction']:.0f} %"


def draw_blockdrop_cifar(file: dict[str, Any]) -> None:
    """Accuracy against cost: the policy networks' and the controls', a point a penalty."""
    drawing, axes = report.figure()
    runs = file["finetuned"]
    points = [(100 * run["result"]["cost_fraction"], 100 * run["result"]["top1"]) for run in runs]
    axes.plot(*zip(*points, strict=True), "o", label="policy network, its own cost included")
    for (x, y), run in zip(points, runs, strict=True):
        axes.annotate(label(run), (x, y), xytext=(5, -10), textcoords="offset points", fontsize=8)
    for control, marker in (("most_frequent", "s"), ("random", "^"), ("all_blocks", "D")):
        controls = [run["result"]["controls"][control] for run in runs]
        line = sorted((100 * found["cost_fraction"], 100 * found["top1"]) for found in controls)
        axes.plot(*zip(*line, strict=True), marker, linestyle="none", label=CONTROLS[control])
    dense = runs[0]["result"]["controls"]["dense"]
    axes.plot(100, 100 * dense["top1"], "k*", markersize=10, label="dense, the backbone")
    axes.set(xlabel="MACs, % of the dense network's", ylabel="test accuracy, %")
    axes.legend(frameon=False, fontsize=8)
    report.save(drawing, FOLDER / f"{file['benchmark']}.png")


PICTURED_BATCH = 256


def blockdrop_throughput(file: dict[str, Any]) -> str:
    """One row a network, precision and batch size; one column a keep rate, and one for the trained network's own."""
    results = file["results"]
    rates = sorted({found["keep_rate"] for found in results if found["keep_rate"] is not None})
    columns = [f"{100 * rate:.0f} % kept" for rate in rates]
    rows: dict[tuple[str, str, int], dict[str, str]] = {}
    for found in results:
        row = rows.setdefault((found["model"], PRECISIONS[found["precision"]], found["batch_size"]), {})
        trained = found["keep_rate"] is None
        row["trained" if trained else f"{100 * found['keep_rate']:.0f} % kept"] = against_ideal(found)
    if any("trained" in row for row in rows.values()):
        columns.append("trained")
    lines = [
        [f"{model}, {how}, batch {batch}", *(row.get(c, "") for c in columns)]
        for (model, how, batch), row in rows.items()
    ]
    environment = file["results"][0]["environment"]
    where = f"{environment['device']}, {environment['threads']} threads, torch {environment['torch']}"
    return report.markdown([f"speed-up (share of the ideal), measured on {where}", *columns], lines)


def against_ideal(found: dict[str, Any]) -> str:
    """The median speed-up, and how much it is of what the MACs promise."""
    return f"{found['speedup']['median']:.2f} x ({100 * found['share_of_ideal']:.0f} %)"


def draw_blockdrop_throughput(file: dict[str, Any]) -> None:
    """Speed-up against keep rate at batch 256: measured medians with quartiles, masked, and the ideal."""
    pictured = [found for found in file["results"] if found["batch_size"] == PICTURED_BATCH]
    random = [found for found in pictured if found["keep_rate"] is not None]
    for model in dict.fromkeys(found["model"] for found in random):
        drawing, axes = report.figure()
        mine = [found for found in random if found["model"] == model]
        for number, (precision, name) in enumerate(PRECISIONS.items()):
            line = sorted((f for f in mine if f["precision"] == precision), key=lambda found: found["keep_rate"])
            if line:
                kept = [100 * found["keep_rate"] for found in line]
                colour = report.COLOURS[number]
                axes.errorbar(
                    kept, **quartiles(line, "speedup"), fmt="o-", capsize=3, color=colour, label=f"skipping, {name}"
                )
                axes.errorbar(
                    kept, **quartiles(line, "masked_speedup"), fmt=".:", color=colour, label=f"masked, {name}"
                )
        ideal = sorted({(100 * found["keep_rate"], found["ideal_speedup"]) for found in mine})
        axes.plot(*zip(*ideal, strict=True), "k--", linewidth=1, label="ideal, by MACs")
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(
            xlabel="blocks kept, %", ylabel="speed-up over the dense network", title=f"{model}, batch {PICTURED_BATCH}"
        )
        axes.legend(frameon=False, fontsize=8)
        report.save(drawing, FOLDER / f"{file['benchmark']}-{model.lower().replace('_', '-')}.png")


# -- speed


def speed(file: dict[str, Any]) -> str:
    """One row a comparison, each a ratio measured in one process."""
    found, rows = file["results"], []
    if "input_pipeline" in found:
        pipeline = found["input_pipeline"]
        what = "CIFAR-10 batches of 128, crop + flip + normalise, against torchvision + PIL + 2 workers"
        rows.append([what, f"{times(pipeline['speedup'])} as fast", peak(pipeline)])
        rows.append(
            ["the same, as a share of a ResNet-20 training step", f"{100 * pipeline['share_of_step']:.1f} %", ""]
        )
    if "mnist_epoch" in found:
        epoch = found["mnist_epoch"]
        what = f"MNIST epoch of LeNet-300-100, batch 100 ({epoch['epoch_s']['ours']:.1f} s), against the same"
        rows.append([what, f"{times(epoch['speedup'])} as fast", peak(epoch)])
    for name, cost in found.get("regulariser", {}).items():
        if isinstance(cost, dict):
            model = cost.get("model", name)
            what = f"training step of {model} with {cost['regulariser']}, against the step without"
            rows.append([what, f"{times(cost['overhead'])} as long", ""])
    if "help_text" in found:
        seconds = sorted((took["median"], name) for name, took in found["help_text"]["seconds"].items())
        for which, (median, name) in (("slowest", seconds[-1]), ("median", seconds[len(seconds) // 2])):
            rows.append([f"`--help`, {which} of the {len(seconds)} scripts ({name})", f"{median:.2f} s", ""])
    for name in ("train_lenet_mnist", "train_resnet20_cifar10"):
        if name in found:
            rows.append([f"`{found[name]['command']}`", f"{found[name]['epoch_s']:.0f} s", peak(found[name])])
    environment = file["environment"]
    where = f"{environment['device']}, {environment['threads']} threads, torch {environment['versions']['torch']}"
    return report.markdown([f"measured on {where}", "median (quartiles)", "peak memory"], rows)


def demo(file: dict[str, Any]) -> str:
    """One row a network: what it can, what it costs, how fast it is beside the dense one; and where, and how long."""
    environment, rows = file["timed_in"], []
    for network in file["networks"]:
        small, large = network["latencies"].values()
        milliseconds = (f"{one['median_ms']:.2f} ({one['q25_ms']:.2f}-{one['q75_ms']:.2f})" for one in (small, large))
        faster = (f"{one['speedup']['median']:.2f} x" for one in (small, large))
        sizes = (f"{network[size]:,.0f}" for size in ("macs", "parameters"))
        row = [network["name"], f"{100 * network['accuracy']['top1']:.2f}", *sizes]
        row.append(f"{network['file_bytes'] / 1000:,.0f}")
        for time, ratio in zip(milliseconds, faster, strict=True):
            row += [time, ratio]
        rows.append([*row, f"{large['ideal_speedup']:.2f}"])
    threads = f"{environment['threads']} thread{'s' if environment['threads'] > 1 else ''}"
    where = f"{environment['device']}, {threads}, torch {environment['versions']['torch']}"
    columns = [f"{where}; all in {file['seconds']['total']:.0f} s", "top-1 %", "MACs", "parameters", "file, kB"]
    return report.markdown([*columns, "batch 1, ms", "faster", "batch 256, ms", "faster", "by MACs"], rows)


Result = dict[str, Any]


TABLES: dict[str, Callable[[Result], str]] = {
    "deephoyer-cifar": deephoyer_cifar,
    "deephoyer-cifar-resnet56": deephoyer_cifar,
    "deephoyer-cifar-seeds": deephoyer_cifar,
    "deephoyer-strengths": deephoyer_strengths,
    "deephoyer-mnist": deephoyer_mnist,
    "deephoyer-speed": deephoyer_speed,
    "deephoyer-speed-bf16": deephoyer_speed,
    "deephoyer-peer": deephoyer_peer,
    "blockdrop-cifar": blockdrop_cifar,
    "blockdrop-cifar-r110": blockdrop_cifar,
    "blockdrop-cifar-seeds": blockdrop_seeds,
    "blockdrop-throughput": blockdrop_throughput,
    "blockdrop-throughput-bf16": blockdrop_throughput,
    "blockdrop-throughput-pooled": blockdrop_throughput,
    "blockdrop-throughput-cuda": blockdrop_throughput,
    "epsilon-cifar": epsilon_cifar,
    "epsilon-cifar-n18": epsilon_cifar,
    "epsilon-cifar-seeds": epsilon_seeds,
    "epsilon-speed": epsilon_speed,
    "adn-cifar": adn_accuracy,
    "adn-cifar-resnet56": adn_accuracy,
    "adn-cifar-speed": adn_cifar_speed,
    "adn-ablation": adn_accuracy,
    "adn-alpha": adn_alpha,
    "adn-latency": adn_latency,
    "adn-latency-cuda": adn_latency,
    "adn-steps": adn_steps,
    "composition": composition,
    "demo": demo,
    "speed": speed,
    "speed-steps": speed,
    "speed-help": speed,
}
"""By its name in a README: what makes a table."""

SOURCES = {
    "deephoyer-peer": "deephoyer-speed",
    "deephoyer-speed-bf16": "deephoyer-speed",
    "blockdrop-throughput-bf16": "blockdrop-throughput",
    "adn-cifar-speed": "adn-cifar",
    "adn-latency": "adn-speed",
    "adn-latency-cuda": "adn-speed-cuda",
    "adn-steps": "adn-speed",
    "speed-steps": "speed",
    "speed-help": "speed",
}
"""The result that it is made of, where that has another name."""

CHOSEN: dict[str, Callable[[Result], bool]] = {
    "deephoyer-speed-bf16": lambda file: timed_in_bf16(file["timings"]),
    "blockdrop-throughput-bf16": lambda file: timed_in_bf16(file["results"]),
    "speed": lambda file: "input_pipeline" in file["results"],
    "speed-steps": lambda file: list(file["results"]) == ["regulariser", "help_text"],
    "speed-help": lambda file: list(file["results"]) == ["help_text"],
}
"""Which of the result's files, where it is not just the newest."""

PICTURES: dict[str, Callable[[Result], None]] = {
    "deephoyer-cifar": draw_deephoyer_cifar,
    "deephoyer-cifar-resnet56": draw_deephoyer_cifar,
    "deephoyer-mnist": draw_deephoyer_mnist,
    "deephoyer-sweep": draw_deephoyer_sweep,
    "blockdrop-cifar": draw_blockdrop_cifar,
    "blockdrop-cifar-r110": draw_blockdrop_cifar,
    "blockdrop-throughput": draw_blockdrop_throughput,
    "blockdrop-throughput-pooled": draw_blockdrop_throughput,
    "epsilon-cifar": draw_epsilon_cifar,
    "epsilon-cifar-n18": draw_epsilon_cifar,
    "adn-cifar": draw_adn_cifar,
    "adn-cifar-resnet56": draw_adn_cifar,
}
"""By result: what draws its pictures."""


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
