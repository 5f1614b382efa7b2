"""Accuracy, cost and latency of the configurations of a network: the end of a run, and what `adn-eval` does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from resless import costs, latency, models, weights
from resless.calibrate import calibration_batches, check_recalibration, recalibrate
from resless.config import check_choices
from resless.data import Images, Stream
from resless.data.pipeline import Pipeline, check_fit
from resless.data.shards import Shards
from resless.errors import InputError, check, check_agrees
from resless.evaluate import Evaluation, evaluate_each
from resless.files import write_text
from resless.report import table
from resless.run import Run
from resless.run import accelerator as new_accelerator
from torch import Tensor, nn

from adn import backbones
from adn.config import EvalConfig
from adn.extract import extract
from adn.model import AdaptiveNet, Skip, create_for, load_original
from adn.plot import draw


def letters(skip: Sequence[bool]) -> str:
    """A configuration as the paper writes it: T for a stage that skips, F for one that does not."""
    return "".join("T" if flag else "F" for flag in skip)


def flags(name: str) -> Skip:
    """The configuration of these letters."""
    return tuple(letter == "T" for letter in name)


def described(net: nn.Module, found: Mapping[str, Evaluation], example: Tensor) -> dict[str, dict[str, Any]]:
    """Accuracy and cost of configurations, by their letters: JSON values."""
    result = {}
    for name, evaluation in found.items():
        plain = extract(net, flags(name)) if isinstance(net, AdaptiveNet) else net
        macs, parameters = costs.macs(plain, example.to(device_of(plain))), costs.count_parameters(plain)
        result[name] = {**asdict(evaluation), "macs": macs, "parameters": parameters}
    for name in pareto(result, "macs"):
        result[name]["pareto"] = True
    return result


def device_of(net: nn.Module) -> torch.device:
    """Where a network is."""
    return next(net.parameters()).device


def pareto(configurations: Mapping[str, Mapping[str, Any]], cost: str) -> list[str]:
    """Those than which no other is both cheaper and as accurate, the cheapest first."""
    best, chosen = -1.0, list[str]()
    for name, found in sorted(configurations.items(), key=lambda item: (item[1][cost], -item[1]["top1"])):
        if found["top1"] > best:
            best, chosen = found["top1"], [*chosen, name]
    return chosen


def show(configurations: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Print one row a configuration."""
    rows = [
        [
            name,
            f"{100 * found['top1']:.2f}",
            f"{100 * found['top5']:.2f}",
            f"{found['loss']:.4f}",
            f"{found['macs']:,}",
            f"{found['parameters']:,}",
            *(f"{time['median_ms']:.3f}" for time in found.get("latency", ())),
            "yes" if found.get("pareto") else "",
        ]
        for name, found in configurations.items()
    ]
    first = next(iter(configurations.values()))
    timed = [f"batch {time['batch_size']}, ms" for time in first.get("latency", ())]
    columns = ["skips", "top-1 %", "top-5 %", "loss", "MACs", "parameters", *timed, "none better is cheaper"]
    table(title, columns, rows)


def report(run: Run, net: nn.Module, data: Pipeline, found: Mapping[str, Evaluation]) -> Path:
    """Write what a run ends with; returns its model folder."""
    configurations = described(net, found, data.example)
    first = next(iter(found.values()))
    description = (
        "One network of several depths (ADN): `model(images, skip=(False, True, ...))`, a flag for each stage; the "
        "accuracy and the MACs below are those with nothing skipped."
    )
    folder = run.finish(
        net,
        data,
        metrics={**asdict(first), "configurations": configurations},
        description=description if isinstance(net, AdaptiveNet) else "",
    )
    if run.accelerator.is_main_process:
        with run.writing("pictures"):
            draw(configurations, run.folder / "configurations.png")
        show(configurations, "test images")
    return folder


def main(config: EvalConfig) -> dict[str, dict[str, Any]]:
    """What `adn-eval` does: print, draw and write the configurations of a network; returns the JSON values."""
    check_choices(config)
    accelerator = new_accelerator(config.mixed_precision)
    folder = config.model if config.weights is None else None
    preprocessing = weights.read_config(folder)["preprocessing"] if folder else {}
    shards = Shards.of(accelerator, config.channels_last)
    data = Pipeline(config.data, 0, shards, preprocessing, weights.class_names_of(folder))
    images = data.train if config.split == "train" else data.test
    net = loaded(config, images)
    check_fit(net, images)
    net.check_size(*images.image_shape[-2:])
    check_recalibration(net, config.recalibrate_bn, config.model)
    wanted = net.configurations() if config.skip_cfg is None else [net.check_skip(config.skip_cfg)]
    net = net.to(accelerator.device)
    if config.channels_last:
        net = net.to(memory_format=torch.channels_last)
    batches, found = data.evaluation(images, config.batch_size), dict[str, Evaluation]()
    if config.recalibrate_bn:
        drawn = calibration_batches(data, config.recalibrate_bn, config.batch_size)
        for skip in wanted:  # configurations share norms, each is to have statistics of its own: a copy
            plain = extract(net, skip)
            recalibrate(plain, drawn, accelerator)
            found |= evaluate_each(plain, {letters(skip): plain}, batches, accelerator)
    else:
        found = evaluate_each(net, {letters(skip): partial(net, skip=skip) for skip in wanted}, batches, accelerator)
    configurations = described(net, found, torch.zeros(1, *images.image_shape))
    if accelerator.is_main_process:
        if config.repeats:
            with accelerator.autocast():
                add_latency(net, configurations, images.image_shape, config)
        show(configurations, f"{config.weights or config.model}, {image_count(found):,} {config.split} images")
        if config.output is not None:
            write_text(Path(config.output), json.dumps(configurations, indent=1) + "\n")
            print(f"wrote {config.output}")
        if config.plot is not None:
            draw(configurations, Path(config.plot))
            print(f"wrote {config.plot}")
    return configurations


def loaded(config: EvalConfig, images: Images | Stream) -> AdaptiveNet:
    """The network of a model folder, or of the authors' checkpoint for the network that `--model` names.

    Raises:
        InputError: there is no such network, or it is another kind.
    """
    if config.weights is None:
        net = weights.from_pretrained(config.model)
        if not isinstance(net, AdaptiveNet):
            kind = type(net).__name__
            raise InputError(f"{config.model} holds a {kind}, which has one depth: evaluate it with resless-eval")
        check_options(config, net)
        return net
    adaptive = create_for(config.model, images, shortcut=config.shortcut, second_norms=config.second_norms)
    load_original(adaptive, config.weights, ema=config.ema)
    return adaptive.eval()


def check_options(config: EvalConfig, net: AdaptiveNet) -> None:
    """Raise InputError for options of the network that its model folder contradicts."""
    options = models.spec_of(net).options
    found = {**backbones.option_defaults(options["backbone"]), **options["backbone_options"]}.get("shortcut")
    check_agrees("--shortcut", config.shortcut, found, config.model)
    alike = config.second_norms or net.skip_norms is None
    check(alike, "--second-norms", config.second_norms, f"left out: {config.model} has second norms")


def add_latency(
    net: AdaptiveNet, configurations: dict[str, dict[str, Any]], image_shape: Sequence[int], config: EvalConfig
) -> None:
    """Time the plain network of every configuration, interleaved, and write what came out beside its accuracy."""
    networks = {name: extract(net, flags(name)) for name in configurations}
    for found in configurations.values():
        found["latency"] = []
    for batch_size in config.latency_batches:
        images = torch.randn(batch_size, *image_shape, generator=torch.Generator().manual_seed(0))
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        images = images.to(device_of(net), memory_format=layout)
        timings = latency.compare(networks, images, repeats=config.repeats)
        for name, timing in timings.items():
            times = {"median_ms": timing.median_ms, "q25_ms": timing.q25_ms, "q75_ms": timing.q75_ms}
            configurations[name]["latency"].append(
                {**times, "batch_size": batch_size, "environment": timing.environment}
            )


def image_count(found: Mapping[str, Evaluation]) -> int:
    """How many images were evaluated, the same for each configuration."""
    return next(iter(found.values())).images


if __name__ == "__main__":
    from adn.cli import evaluate as script

    script()
