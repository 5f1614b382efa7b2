"""Several things timed in turns, in one process, and ratios formed turn by turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from resless import costs, latency
from resless.errors import check
from resless.folding import fold
from resless.precision import computes_in_bf16
from torch import nn

PRECISIONS = ("fp32", "bf16") if computes_in_bf16() else ("fp32",)
"""float32, and bf16 autocast with channels_last where the machine computes in it."""
FOLDED = tuple(f"{precision}-folded" for precision in PRECISIONS)
"""The same as networks are deployed: batch norms in the convolutions before them, and channels_last."""
NOT_FOLDED = ", not folded"


def against_the_first(
    networks: Mapping[str, nn.Module],
    image_shape: Sequence[int],
    *,
    batches: Sequence[int],
    precisions: Sequence[str] = PRECISIONS,
    repeats: int,
    warmup: int = 5,
    device: str = "cpu",
    peers: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Every network against the first one, in turns, on random images: speed-up, and how much of that by MACs it is.

    Of a network that `peers` has another one for, the speed-up over that one too.
    """
    for precision in precisions:
        known = precision.removesuffix("-folded") in ("fp32", "bf16")
        check(known, "--precisions", precision, "fp32 or bf16, each with -folded or without")
    first, image = next(iter(networks)), torch.zeros(1, *image_shape)
    macs = {name: costs.macs(network, image) for name, network in networks.items()}
    found = []
    for precision in precisions:
        on_cpu = {name: network.cpu() for name, network in networks.items()}
        timed = as_deployed(on_cpu, image) if precision.endswith("-folded") else on_cpu
        layout = torch.contiguous_format if precision == "fp32" else torch.channels_last
        for network in timed.values():
            network.to(device, memory_format=layout)
        for batch_size in batches:
            images = torch.randn(batch_size, *image_shape, generator=torch.Generator().manual_seed(0))
            images = images.to(device, memory_format=layout)
            with torch.autocast(device, torch.bfloat16) if "bf16" in precision else nullcontext():
                timings = latency.compare(timed, images, repeats=repeats, warmup=warmup)
            for name, timing in timings.items():
                left = macs[name.removesuffix(NOT_FOLDED)]
                faster, ideal = latency.speedup(timings[first], timing), macs[first] / left
                found.append(
                    {
                        "network": name,
                        "precision": precision,
                        "batch_size": batch_size,
                        "macs": left,
                        "median_ms": timing.median_ms,
                        "speedup": vars(faster),
                        "ideal_speedup": ideal,
                        "share_of_ideal": faster.median / ideal,
                        "environment": timing.environment,
                    }
                )
                if peers and name in peers:
                    found[-1]["over_peer"] = vars(latency.speedup(timings[peers[name]], timing))
    return found


def as_deployed(networks: Mapping[str, nn.Module], image: torch.Tensor) -> dict[str, nn.Module]:
    """All of them folded; and the first once more as it was, which tells what folding is worth by itself."""
    first = next(iter(networks))
    return {name: fold(network, image) for name, network in networks.items()} | {first + NOT_FOLDED: networks[first]}


def call(function: Callable[[], None], count: int) -> None:
    """Call so many times."""
    for _ in range(count):
        function()


def take_turns(runs: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds of each run in every turn, after one turn that does not count; whoever is first goes round."""
    names, seconds = list(runs), {name: [] for name in runs}
    for name in names:
        runs[name]()
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(0.05)  # workers that still prefetch for another run come to rest
            started = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ms(seconds: list[float], calls: int) -> float:
    """Median milliseconds a call."""
    return 1000 * statistics.median(seconds) / calls


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratios, turn by turn."""
    return summary([a / b for a, b in zip(above, below, strict=True)])


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q25": low, "q75": high}
