"""Latency of several models side by side: interleaved in one process, warmed up, synchronised, with spread."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from resless import costs
from resless.environment import device_name
from resless.errors import check
from resless.memory import keep_freed_memory
from resless.modes import in_eval_mode
from resless.report import table

MIN_MEASUREMENT_MS = 5.0
"""Faster calls are repeated within one measurement until it takes this long, so that the clock's own cost vanishes."""


@dataclass(frozen=True)
class Timing:
    """Measured times of one model."""

    times_ms: tuple[float, ...]
    """Milliseconds per call, one for each repeat, in order."""
    environment: dict[str, Any] = field(repr=False)
    """Where it was measured, see `environment`."""

    @property
    def median_ms(self) -> float:
        return statistics.median(self.times_ms)

    @property
    def q25_ms(self) -> float:
        return _quartiles(self.times_ms)[0]

    @property
    def q75_ms(self) -> float:
        return _quartiles(self.times_ms)[1]

    @property
    def images_per_second(self) -> float:
        return 1000.0 * self.environment["batch_size"] / self.median_ms


@dataclass(frozen=True)
class Speedup:
    """How many times faster one model is than another: median and quartiles of the ratios repeat by repeat."""

    median: float
    q25: float
    q75: float


def compare(
    models: Mapping[str, Callable[[Tensor], Any]], inputs: Tensor, *, repeats: int = 30, warmup: int = 5
) -> dict[str, Timing]:
    """Time `model(inputs)` of every model, in inference mode, interleaved so that all meet the same disturbances.

    Each repeat measures every model once, beginning with another one each time. Modules are switched to eval mode
    and back. Threads, autocast and memory format are the caller's to set.

    Args:
        models: name -> network or function; a network must be on the device of `inputs`.
        inputs: images [N, C, H, W].
        repeats: measurements per model, 2 or more.
        warmup: calls of every model before the first measurement, 1 or more.

    Raises:
        InputError: no models, or repeats or warmup out of range.
    """
    check(len(models) > 0, "models", dict(models), "at least one model")
    if inputs.device.type == "cpu":
        keep_freed_memory()
    check(repeats >= 2, "repeats", repeats, "2 or more")
    check(warmup >= 1, "warmup", warmup, "1 or more")
    names = list(models)
    times: dict[str, list[float]] = {name: [] for name in names}
    networks = [model for model in models.values() if isinstance(model, nn.Module)]
    with in_eval_mode(*networks), torch.inference_mode():
        for model in models.values():
            _milliseconds(model, inputs, warmup)
        calls = {name: _calls_per_measurement(model, inputs) for name, model in models.items()}
        for repeat in range(repeats):
            first = repeat % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(_milliseconds(models[name], inputs, calls[name]))
    measured_in = environment(inputs)
    return {name: Timing(tuple(times[name]), measured_in) for name in names}


def speedup(baseline: Timing, model: Timing) -> Speedup:
    """How many times faster `model` is than `baseline`, both from one call of `compare`.

    Raises:
        InputError: the two have different numbers of repeats, so that they cannot be paired.
    """
    same = len(baseline.times_ms) == len(model.times_ms)
    check(same, "repeats of the model", len(model.times_ms), f"those of the baseline, {len(baseline.times_ms)}")
    ratios = [slow / fast for slow, fast in zip(baseline.times_ms, model.times_ms, strict=True)]
    q25, q75 = _quartiles(ratios)
    return Speedup(statistics.median(ratios), q25, q75)


def show(
    networks: Mapping[str, nn.Module],
    image_shape: Sequence[int],
    batch_sizes: Sequence[int],
    repeats: int,
    *,
    channels_last: bool = False,
) -> None:
    """Time two networks at some batch sizes, and print how many times faster the second is, beside what its MACs say.

    Args:
        networks: the larger, then the smaller one, by name.
        image_shape: (C, H, W) of the random images that they get.
        batch_sizes: images in a batch.
        repeats: as of `compare`.
        channels_last: layout of images and convolution weights; the networks keep it.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.randn(max(batch_sizes), *image_shape, generator=torch.Generator().manual_seed(0))
    images = images.to(memory_format=layout)
    networks = {name: network.to(memory_format=layout) for name, network in networks.items()}
    print(f"timing {' and '.join(networks)} in turns, {repeats} times", flush=True)
    large, small = (costs.macs(network, images[:1]) for network in networks.values())
    rows = []
    for batch_size in batch_sizes:
        before, after = compare(networks, images[:batch_size], repeats=repeats).values()
        faster = speedup(before, after)
        spread = f"{faster.median:.2f} ({faster.q25:.2f}-{faster.q75:.2f})"
        times = f"{before.median_ms:.3f}", f"{after.median_ms:.3f}"
        rows.append([f"batch {batch_size}", *times, spread, f"{large / small:.2f}"])
    title = f"latency, {before.environment['device']}, {before.environment['threads']} threads, float32"
    title += ", channels_last" if channels_last else ""
    table(title, ["batch", *(f"{name}, ms" for name in networks), "speed-up, median (quartiles)", "by MACs"], rows)


def environment(inputs: Tensor) -> dict[str, Any]:
    """What a latency depends on besides the model: device, threads, precision, layout, batch, versions (JSON-ready)."""
    device = inputs.device
    autocast = torch.is_autocast_enabled(device.type)
    return {
        "device": device_name(device.type),
        "threads": torch.get_num_threads(),
        "dtype": _name(inputs.dtype),
        "autocast": _name(torch.get_autocast_dtype(device.type)) if autocast else None,
        "channels_last": inputs.dim() == 4 and _is_channels_last(inputs),
        "batch_size": inputs.shape[0],
        "input_shape": list(inputs.shape[1:]),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "python": platform.python_version(),
    }


def _milliseconds(model: Callable[[Tensor], Any], inputs: Tensor, calls: int) -> float:
    """Time per call, over `calls` calls in a row."""
    _synchronise(inputs.device)
    start = time.perf_counter()
    for _ in range(calls):
        model(inputs)
    _synchronise(inputs.device)
    return 1000.0 * (time.perf_counter() - start) / calls


def _calls_per_measurement(model: Callable[[Tensor], Any], inputs: Tensor) -> int:
    return max(1, round(MIN_MEASUREMENT_MS / _milliseconds(model, inputs, 3)))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _quartiles(values: tuple[float, ...] | list[float]) -> tuple[float, float]:
    q25, _, q75 = statistics.quantiles(values, n=4, method="inclusive")
    return q25, q75


def _is_channels_last(images: Tensor) -> bool:
    # Images of one channel are contiguous in both layouts.
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
