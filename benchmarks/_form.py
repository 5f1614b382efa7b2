"""Numbers as the tables and pictures show them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PRECISIONS = {"fp32": "float32", "bf16": "bf16"}
"""What tables call a precision."""


def layers(model: str) -> str:
    """ResNet-110, for resnet110 and for R110_C10."""
    return re.sub(r"^(?:resnet|R)(\d+).*", r"ResNet-\1", model)


def spread(values: Iterable[float], form: str) -> str:
    """Mean and, of more than one value, standard deviation."""
    values = list(values)
    mean = form.format(statistics.mean(values))
    return f"{mean} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else mean


def times(ratio: dict[str, float]) -> str:
    """A ratio with its quartiles."""
    return f"{ratio['median']:.2f} x ({ratio['q25']:.2f}-{ratio['q75']:.2f})"


def in_ms(found: Mapping[str, Any]) -> str:
    """Median time of a call."""
    return f"{found['median_ms']:.{0 if found['median_ms'] >= 10 else 1}f} ms"


def timed_in_bf16(measurements: Iterable[Mapping[str, Any]]) -> bool:
    """Whether anything was, as is done where a processor computes in it."""
    return any(found["precision"] == "bf16" for found in measurements)


def peak(measurement: dict[str, Any]) -> str:
    """Peak resident memory."""
    return f"{measurement['peak_rss_mib']:,} MiB"


def quartiles(line: Sequence[dict[str, Any]], ratio: str) -> dict[str, Any]:
    """Medians and the distances to the quartiles, as `errorbar` takes them."""
    found = [point[ratio] for point in line]
    below = [r["median"] - r["q25"] for r in found]
    above = [r["q75"] - r["median"] for r in found]
    return {"y": [r["median"] for r in found], "yerr": (below, above)}
