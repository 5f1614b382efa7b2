"""Tables and pictures of DeepHoyer's results on convolution networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _form import times
from resless import report


def deephoyer_speed(file: Mapping[str, Any]) -> str:
    """One row a network and how it was cut: MACs that are left, and speed-ups."""
    rows = []
    timings = file["timings"]
    precisions = list(dict.fromkeys(found["precision"] for found in timings))
    for model in dict.fromkeys(found["model"] for found in timings):
        mine = [found for found in timings if found["model"] == model]
        for name in dict.fromkeys(found["network"] for found in mine):
            found = {timing["precision"]: timing for timing in mine if timing["network"] == name}
            one = found[precisions[0]]
            left = f"{one['macs'] / 1e6:,.1f} M" if name == "dense" else f"{100 / one['ideal_speedup']:.1f} %"
            label = f"{model}, batch {one['batch_size']}" if name == "dense" else name
            cells = [
                f"{found[precision]['median_ms']:.0f} ms" if name == "dense" else faster(found[precision])
                for precision in precisions
            ]
            rows.append([f"**{label}**" if name == "dense" else label, left, *cells])
    names = {"fp32": "float32", "bf16": "bf16, channels_last"}
    return report.markdown(["network", "MACs", *(names[precision] for precision in precisions)], rows)


def faster(found: Mapping[str, Any]) -> str:
    """A speed-up with quartiles, and how much it is of what the MACs promise."""
    return f"{times(found['speedup'])}, {100 * found['share_of_ideal']:.0f} %"
