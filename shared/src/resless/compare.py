"""Networks side by side: accuracy, cost, size on disk and latency, measured in one process; and `resless-compare`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from resless import costs, latency, report, weights
from resless.config import CompareConfig, SourceConfig
from resless.data.pipeline import Pipeline, check_fit
from resless.data.shards import Shards
from resless.environment import environment
from resless.errors import check
from resless.evaluate import Evaluation, Shares, evaluate
from resless.files import write_text
from resless.run import accelerator as new_accelerator


@dataclass(frozen=True)
class Measured:
    """One network."""

    name: str
    accuracy: Evaluation
    macs: float
    """Multiply-adds of an image, on average over those of the largest batch."""
    parameters: int
    file_bytes: int
    """Size of the tensor file."""
    latencies: dict[int, Latency]
    """By the number of images in a batch."""


@dataclass(frozen=True)
class Latency:
    """Time of a batch, and how many times faster than the first network that is, interleaved with it."""

    median_ms: float
    q25_ms: float
    q75_ms: float
    speedup: latency.Speedup
    ideal_speedup: float
    """What the multiply-adds say."""


@dataclass(frozen=True)
class _Loaded:
    """A network with images as it wants them."""

    net: nn.Module
    accuracy: Evaluation
    images: Tensor
    """[N, C, H, W], as many as the largest batch; the same ones of every network, in its normalisation."""
    macs: dict[int, float]
    """Multiply-adds of an image, on average over each batch that is timed."""


def compare(
    folders: Mapping[str, str | Path],
    data: SourceConfig,
    *,
    batch_sizes: Sequence[int] = (1, 256),
    repeats: int = 30,
    mixed_precision: str = "no",
    channels_last: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> list[Measured]:
    """Evaluate networks on the test images, then time them in turns, each on the same real images.

    What a network executes may depend on its images, so cost and latency are of the first test images, repeated where
    there are too few for a batch.

    Args:
        folders: name -> model folder; the others are compared with the first.
        data: where the images come from.
        batch_sizes: images in the batches that are timed.
        repeats: turns that each network gets.
        mixed_precision: no, bf16, fp16 or auto.
        channels_last: layout of images and convolution weights.
        say: is told what is being done.

    Raises:
        InputError: a folder that cannot be read, or images that do not fit its network.
    """
    accelerator = new_accelerator(mixed_precision)
    check(accelerator.num_processes == 1, "the number of processes", accelerator.num_processes, "1 for a comparison")
    shards = Shards.of(accelerator, channels_last)

    def prepared(folder: str | Path) -> tuple[nn.Module, Shares]:
        net = weights.from_pretrained(folder)
        pipeline = Pipeline(data, 0, shards, **weights.expected_of(folder))
        check_fit(net, pipeline.test)
        return net, pipeline.evaluation(pipeline.test)

    def loaded(number: int, name: str) -> _Loaded:
        say(f"network {number} of {len(folders)}, {name}: evaluating")
        net, batches = ready.pop(name)  # not kept: the processes that decode streamed images end with the batches
        images = _first(max(batch_sizes), batches)
        macs = {size: costs.macs(net, images[:size].cpu()) / size for size in batch_sizes}
        net = net.to(accelerator.device)
        net = net.to(memory_format=torch.channels_last) if channels_last else net
        return _Loaded(net, evaluate(net, batches, accelerator), images, macs)

    # All before the first is evaluated: a folder that cannot be used is told at once.
    ready = {name: prepared(folder) for name, folder in folders.items()}
    networks = {name: loaded(number, name) for number, name in enumerate(folders, 1)}
    first = next(iter(networks))
    timings = {}
    for size in batch_sizes:
        say(f"timing all of them in turns, {repeats} times: batch {size}")
        with accelerator.autocast():
            forwards = {name: partial(_on_own, each.net, each.images[:size]) for name, each in networks.items()}
            timings[size] = latency.compare(forwards, networks[first].images[:size], repeats=repeats)
    return [
        Measured(
            name,
            network.accuracy,
            network.macs[max(batch_sizes)],
            costs.count_parameters(network.net),
            (Path(folders[name]) / weights.TENSORS_NAME).stat().st_size,
            {
                size: _latency(
                    timings[size][first], timings[size][name], networks[first].macs[size] / network.macs[size]
                )
                for size in batch_sizes
            },
        )
        for name, network in networks.items()
    ]


def _first(count: int, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """So many images from the start, and again from there if there are not enough."""
    found: list[Tensor] = []
    for images, _ in batches:
        found.append(images)
        if sum(map(len, found)) >= count:
            break
    there = sum(map(len, found))
    return torch.cat(found * -(-count // there))[:count]  # which keeps channels_last, as indexing would not


def _on_own(net: nn.Module, own: Tensor, _: Tensor) -> Tensor:
    """The network on images in its own normalisation, whatever it is given."""
    return net(own)


def _latency(baseline: latency.Timing, timing: latency.Timing, ideal: float) -> Latency:
    faster = latency.speedup(baseline, timing)
    return Latency(timing.median_ms, timing.q25_ms, timing.q75_ms, faster, ideal)


def show(measured: Sequence[Measured]) -> None:
    """Print one table, a network a row; the speed-ups by MACs are those of the largest batch, whose MACs are shown."""
    sizes = list(measured[0].latencies)
    rows = []
    for network in measured:
        row = [network.name, f"{100 * network.accuracy.top1:.2f}", f"{network.macs:,.0f}", f"{network.parameters:,}"]
        row.append(f"{network.file_bytes / 1000:,.0f}")
        for size in sizes:
            time = network.latencies[size]
            spread = f"{_digits(time.q25_ms)}-{_digits(time.q75_ms)}"
            row += [f"{_digits(time.median_ms)} ({spread})", f"{time.speedup.median:.2f}"]
        rows.append([*row, f"{network.latencies[max(sizes)].ideal_speedup:.2f}"])
    timed = [column for size in sizes for column in (f"batch {size}, ms", "speed-up")]
    title = f"{measured[0].accuracy.images:,} test images; speed-ups over {measured[0].name}; times with quartiles"
    report.table(title, ["network", "top-1 %", "MACs", "parameters", "file, kB", *timed, "by MACs"], rows)


def _digits(milliseconds: float) -> str:
    """With three digits, or as many as are before the point."""
    return f"{milliseconds:,.{max(0, 2 - math.floor(math.log10(milliseconds)))}f}"


def draw(measured: Sequence[Measured], path: Path) -> None:
    """Accuracy against MACs, and against the latency at each batch size."""
    sizes = list(measured[0].latencies)
    drawing = report.canvas(4 * (1 + len(sizes)), 3.8)
    panels = drawing.subplots(1, 1 + len(sizes), sharey=True)
    costs_of: list[tuple[str, Callable[[Measured], float]]] = [("MACs an image, millions", lambda one: one.macs / 1e6)]
    costs_of += [
        (f"ms a batch of {size}", partial(lambda size, one: one.latencies[size].median_ms, size)) for size in sizes
    ]
    for axes, (label, cost) in zip(panels, costs_of, strict=True):
        report.style(axes)
        for number, network in enumerate(measured):
            marker, colour = "os^Dv<>*"[number // len(report.COLOURS) % 8], report.COLOURS[number % len(report.COLOURS)]
            axes.plot(
                cost(network), 100 * network.accuracy.top1, marker, color=colour, markersize=8, label=network.name
            )
        axes.set(xlabel=label)
        axes.set_xlim(left=0)
    panels[0].set(ylabel="test accuracy, %")
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    report.save(drawing, path)


def main(config: CompareConfig) -> list[Measured]:
    """What `resless-compare` does: print one table; write numbers and picture where that is asked for."""
    measured = compare(
        config.folders,
        config.data,
        batch_sizes=config.batch_sizes,
        repeats=config.repeats,
        mixed_precision=config.mixed_precision,
        channels_last=config.channels_last,
        say=partial(print, flush=True),
    )
    show(measured)
    used = new_accelerator(config.mixed_precision)
    found = environment(device=used.device.type)
    where = f"{found['device']}, {found['threads']} thread(s), torch {found['versions']['torch']}"
    precision = "float32" if used.mixed_precision == "no" else used.mixed_precision
    print(f"timed on {where}, {precision}{', channels_last' if config.channels_last else ''}")
    if config.output is not None:
        written = {
            "environment": found | {"mixed_precision": used.mixed_precision},
            "settings": asdict(config),
            "networks": [asdict(network) for network in measured],
        }
        write_text(Path(config.output), json.dumps(written, indent=1) + "\n")
        print(f"wrote {config.output}")
    if config.picture is not None:
        draw(measured, Path(config.picture))
        print(f"wrote {config.picture}")
    return measured


if __name__ == "__main__":
    from resless.cli import compare as script

    script()
