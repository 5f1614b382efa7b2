"""The plain network of one configuration as a model folder, and as an ONNX file: `adn-extract`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

import torch
from resless import costs, latency, onnx, weights
from resless.calibrate import batch_norms, calibration_batches, check_recalibration, recalibrate
from resless.data.pipeline import Pipeline, check_fit
from resless.data.shards import Shards
from resless.errors import InputError
from resless.report import table
from resless.run import accelerator as new_accelerator
from torch import Tensor, nn

from adn.config import EvalConfig, ExtractConfig
from adn.evaluate import letters
from adn.extract import extract
from adn.model import AdaptiveNet


def main(config: ExtractConfig) -> nn.Module:
    """Write the plain network, compare sizes, and time it against the one with nothing skipped.

    Raises:
        InputError: no network of adaptive depth, flags that do not fit it, an output folder that exists.
    """
    output = Path(config.output)
    if config.onnx is not None:
        onnx.check_installed("--onnx")
    weights.check_target(output, config.overwrite)
    net, described = weights.from_pretrained(config.model), weights.read_config(config.model)
    if not isinstance(net, AdaptiveNet):
        raise InputError(
            f"{config.model} holds a {type(net).__name__}, which has one depth: nothing is to be extracted"
        )
    name = letters(net.check_skip(config.skip_cfg))
    small, shape = extract(net, config.skip_cfg), described["costs"].get("image_shape")
    if shape is None:
        raise InputError(f"{config.model} does not tell the size of its images: save it again with an `example`")
    example = torch.zeros(1, *shape)
    measured = described["metrics"].get("configurations")
    known = measured.get(name) if isinstance(measured, dict) else None
    known = known if isinstance(known, dict) else {}
    if config.recalibrate_bn:
        recalibrate_as_evaluated(small, config, described["preprocessing"])
        known = {}  # measured with other statistics
    weights.save_pretrained(
        small,
        output,
        preprocessing=described["preprocessing"],
        metrics={key: known[key] for key in ("top1", "top5", "loss", "images") if key in known},
        description=f"The plain network of the configuration {name} of a network of several depths (ADN).",
        example=example,
        class_names=described.get("class_names"),
        overwrite=config.overwrite,
    )
    if config.onnx is not None:
        onnx.export(small, torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)), Path(config.onnx))
        print(f"wrote {config.onnx}")
    full = extract(net, net.super_skip)
    _print_sizes({"nothing skipped": full, name: small}, {"nothing skipped": net, name: small}, output, example)
    if config.repeats:
        latency.show({"nothing skipped": full, name: small}, shape, (1, config.batch_size), config.repeats)
    if batch_norms(small):
        print(f"next: resless-fold --model {quote(config.output)} --output {quote(f'{output}-fast')} --channels-last")
    return small


def recalibrate_as_evaluated(plain: nn.Module, config: ExtractConfig, preprocessing: dict[str, Any]) -> None:
    """Compute the statistics of an extracted network anew, in place, on the images and in the batches of `adn-eval`.

    Raises:
        InputError: it has no batch norm, or the images do not fit it.
    """
    check_recalibration(plain, config.recalibrate_bn, config.model)
    accelerator = new_accelerator("no")
    data = Pipeline(config.data, 0, Shards.of(accelerator, False), preprocessing, weights.class_names_of(config.model))
    check_fit(plain, data.train)
    drawn = calibration_batches(data, config.recalibrate_bn, EvalConfig.batch_size)
    recalibrate(plain.to(accelerator.device), drawn, accelerator)
    plain.cpu()


def _print_sizes(networks: dict[str, nn.Module], stored: dict[str, nn.Module], output: Path, example: Tensor) -> None:
    rows = [
        [name, f"{costs.count_parameters(stored[name]):,}", f"{costs.macs(network, example):,}"]
        for name, network in networks.items()
    ]
    table(f"wrote {output}", ["skips", "parameters", "MACs"], rows)


if __name__ == "__main__":
    from adn.cli import extract as script

    script()
