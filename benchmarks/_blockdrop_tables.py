"""BlockDrop's throughput as a table and as a picture of speed-up against keep rate, one for each network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resless import report

PRECISIONS = {"fp32": "float32", "bf16": "bf16"}
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


def draw_blockdrop_throughput(file: dict[str, Any], folder: Path) -> None:
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
        report.save(drawing, folder / f"blockdrop-throughput-{model.lower()}.png")


def quartiles(line: Sequence[dict[str, Any]], ratio: str) -> dict[str, Any]:
    """Medians and the distances to the quartiles, as `errorbar` takes them."""
    found = [point[ratio] for point in line]
    below = [r["median"] - r["q25"] for r in found]
    above = [r["q75"] - r["median"] for r in found]
    return {"y": [r["median"] for r in found], "yerr": (below, above)}
