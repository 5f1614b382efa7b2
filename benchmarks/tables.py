"""Turn the files in `benchmarks/results/` into the tables and pictures of the README files.

    python benchmarks/tables.py

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; nothing else of a README is touched.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from _results import FOLDER, read
from resless import report

ROOT = FOLDER.parent.parent
READMES = (ROOT / "README.md", ROOT / "packages" / "deephoyer" / "README.md")

# The paper's own numbers, and those of the best other method that it lists: accuracy %, weights or MACs.
PAPER = {
    "lenet-300-100-element": ("98.4 %, 4.6k weights", 98.4, 4_600),
    "lenet5-element": ("99.2 %, 3.5k weights", 99.2, 3_500),
    "lenet-300-100-structural": ("98.2 %, 16.5k MACs, 353-45-11", 98.2, 16_500),
    "lenet5-structural": ("99.0 %, 169.9k MACs, 5-12-139-13; best other 153.4k MACs", 99.0, 169_900),
}


def main() -> None:
    """Make every table and picture that there are results for."""
    tables = {}
    if mnist := read("deephoyer-mnist"):
        tables["deephoyer-mnist"] = deephoyer_mnist(mnist["results"])
        draw_deephoyer_mnist(mnist["results"])
    if sweep := read("deephoyer-sweep"):
        draw_deephoyer_sweep(sweep)
    if measured := read("speed"):
        tables["speed"] = speed(measured)
    for path in READMES:
        path.write_text(filled(path.read_text(encoding="utf-8"), tables), encoding="utf-8")


def filled(text: str, tables: dict[str, str]) -> str:
    """The text with every table that it asks for."""

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- table: {name} -->\n{tables.get(name, '')}<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL)


# -- DeepHoyer on MNIST


def deephoyer_mnist(runs: Sequence[dict[str, Any]]) -> str:
    """One row a recipe: the paper's numbers beside the mean and standard deviation of ours."""
    rows = []
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


def draw_deephoyer_mnist(runs: Sequence[dict[str, Any]]) -> None:
    """Accuracy against what is left, ours and the paper's, one picture for weights and one for MACs."""
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
    for model, cost in found.get("regulariser", {}).items():
        if isinstance(cost, dict):
            what = f"training step of {model} with {cost['regulariser']}, against the step without"
            rows.append([what, f"{times(cost['overhead'])} as long", ""])
    if "help_text" in found:
        slowest = max(found["help_text"]["seconds"].items(), key=lambda item: item[1]["median"])
        rows.append([f"`--help`, slowest of the scripts ({slowest[0]})", f"{slowest[1]['median']:.2f} s", ""])
    for name in ("train_lenet_mnist", "train_resnet20_cifar10"):
        if name in found:
            rows.append([f"`{found[name]['command']}`", f"{found[name]['epoch_s']:.0f} s", peak(found[name])])
    environment = file["environment"]
    where = f"{environment['device']}, {environment['threads']} threads, torch {environment['versions']['torch']}"
    return report.markdown([f"measured on {where}", "median (quartiles)", "peak memory"], rows)


def spread(values: Iterable[float], form: str) -> str:
    """Mean and standard deviation."""
    values = list(values)
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{form.format(statistics.mean(values))} ± {form.format(sd)}"


def times(ratio: dict[str, float]) -> str:
    """A ratio with its quartiles."""
    return f"{ratio['median']:.2f} x ({ratio['q25']:.2f}-{ratio['q75']:.2f})"


def peak(measurement: dict[str, Any]) -> str:
    """Peak resident memory."""
    return f"{measurement['peak_rss_mib']:,} MiB"


if __name__ == "__main__":
    main()
