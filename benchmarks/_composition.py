"""The table of methods on top of each other."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from _form import spread
from resless import report

BATCHES = ("1", "256")


def composition(file: Mapping[str, Any]) -> str:
    """One row a network, over the seeds: what it can, what it costs, how fast it is beside the dense one."""
    runs = [run["networks"] for run in file["runs"]]
    rows = []
    for mine in zip(*runs, strict=True):
        share = statistics.mean(one["macs"] / networks[0]["macs"] for one, networks in zip(mine, runs, strict=True))
        rows.append(
            [
                mine[0]["name"],
                f"{spread([100 * one['accuracy']['top1'] for one in mine], '{:.2f}')} %",
                f"{100 * share:.1f} %",
                *(faster([one["latencies"][batch] for one in mine]) for batch in BATCHES),
                f"{statistics.mean(one['parameters'] for one in mine):,.0f}",
                len(mine),
            ]
        )
    speed = [f"speed-up, batch {batch}" for batch in BATCHES]
    return report.markdown(["network", "test accuracy", "MACs", *speed, "parameters", "seeds"], rows)


def faster(latencies: Sequence[Mapping[str, Any]]) -> str:
    """The median speed-up over the seeds, and how much it is of what the MACs promise."""
    speedup = statistics.median(one["speedup"]["median"] for one in latencies)
    share = statistics.median(one["speedup"]["median"] / one["ideal_speedup"] for one in latencies)
    return f"{speedup:.2f} x ({100 * share:.0f} %)"
