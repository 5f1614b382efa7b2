"""Throughput of BlockDrop against the dense network: random policies of several keep rates, and trained networks.

    python benchmarks/blockdrop_throughput.py --data-dir FOLDER_WITH_CIFAR10 --model-dir RUN/model

The policy network's time is included everywhere but in the dense network, which has none. Of random policies every
image has its own, each block kept with the same probability; the policy network runs, and its answer is replaced.
Several batches are timed in a row, so that a block sees another number of images from batch to batch. Dense, masked
and skipping take turns, and ratios are formed turn by turn; the ideal is the ratio of the MACs.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import tyro
from _results import write
from _timing import PRECISIONS
from blockdrop import costs, speed
from blockdrop.model import BlockDropNet
from resless import models, weights
from resless.config import as_dict
from resless.data.images import load
from resless.data.loaders import EvalBatches
from resless.data.shards import Shards
from resless.errors import InputError, check
from torch import Tensor

IMAGES = {1: 16, 32: 256, 256: 768, 2048: 4096}
"""How many images are timed in a row, by batch size."""


@dataclass(frozen=True)
class Options:
    """What is measured, and with which images."""

    data_dir: str | None = None
    """Folder that holds the data set; None takes random pixels, which takes as long."""
    dataset: str = "cifar10"
    """Data set whose test images are taken."""
    model_dir: tuple[str, ...] = ()
    """Model folders of trained networks, whose own policies are measured too; they need --data-dir."""
    models: tuple[str, ...] = ("R32_C10", "R110_C10")
    """Networks that get random policies."""
    pool: int = 1
    """How many pixels, along each side, are averaged to one before their policy networks see them: 1 is the paper's; a
    trained network has its own."""
    keep_rates: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    """Probabilities with which a block is kept."""
    batches: tuple[int, ...] = (1, 32, 256)
    """Batch sizes, of 1, 32, 256 and 2048."""
    precisions: tuple[str, ...] = PRECISIONS
    """fp32, bf16 or both."""
    repeats: int = 7
    """Turns that each of the networks compared gets."""
    threads: int = 2
    """Threads that a network may use."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where networks are timed."""
    quick: bool = False
    """A trial of about a minute: ResNet-32 in bf16 (in float32 where that would be emulated) at batch 256, three rates,
    three turns; nothing is written."""

    def __post_init__(self) -> None:
        for size in self.batches:
            check(size in IMAGES, "--batches", size, f"of {', '.join(map(str, IMAGES))}")
        for precision in self.precisions:
            check(precision in ("fp32", "bf16"), "--precisions", precision, "fp32 or bf16")


def main(options: Options) -> None:
    """Measure everything, and write one result file."""
    if options.model_dir and options.data_dir is None:
        raise InputError("--data-dir is missing: the policies of a trained network are those of real images")
    if options.quick:
        few = {"models": ("R32_C10",), "precisions": PRECISIONS[-1:], "batches": (256,), "keep_rates": (0.2, 0.6, 1.0)}
        options = replace(options, repeats=3, **few)
    torch.set_num_threads(options.threads)
    found = [found for precision in options.precisions for found in of_precision(precision, options)]
    if not options.quick:
        settings = {name: value for name, value in as_dict(options).items() if name not in ("data_dir", "model_dir")}
        name = "blockdrop-throughput" if options.pool == 1 else "blockdrop-throughput-pooled"
        write(name, {"settings": settings, "results": found}, options.device)


def of_precision(precision: str, options: Options) -> list[dict[str, Any]]:
    """Every network in one precision: random policies by keep rate, then trained networks with their own."""
    found = []
    for name in options.models:
        net = BlockDropNet(name, policy_pool=options.pool).eval()
        images, policies = some_images({}, precision, options), random_policies(net, options)
        for rate, kept in policies.items():
            found += timed(net, images, precision, {"model": name, "keep_rate": rate}, options, kept)
    for folder in options.model_dir:
        trained = weights.from_pretrained(folder)
        if not isinstance(trained, BlockDropNet):
            raise InputError(f"{folder} holds no BlockDrop network")
        images = some_images(weights.read_config(folder)["preprocessing"], precision, options)
        described = models.origin(trained.spec).options
        facts = {"model": described["backbone"], "keep_rate": None, "options": described}
        found += timed(trained, images, precision, facts, options)
    return found


def timed(
    net: BlockDropNet,
    images: Tensor,
    precision: str,
    facts: dict[str, Any],
    options: Options,
    policies: Tensor | None = None,
) -> list[dict[str, Any]]:
    """A measurement for each batch size; `policies` [n, K] in place of the network's own."""
    cost = costs.count(net, torch.zeros(1, *images.shape[1:]))
    bf16 = precision == "bf16"
    net = net.to(options.device, memory_format=torch.channels_last if bf16 else torch.contiguous_format)
    images = images.to(options.device)
    results = []
    for batch_size in options.batches:
        count = IMAGES[batch_size]
        own = None if policies is None else policies[:count]
        with torch.autocast(options.device, torch.bfloat16) if bf16 else nullcontext():
            result = speed.measure(net, images[:count], batch_size, cost, options.repeats, policies=own)
        print({**facts, "precision": precision})
        speed.show(result)
        results.append({**facts, "precision": precision, "blocks": net.num_blocks, **result})
    return results


def random_policies(net: BlockDropNet, options: Options) -> dict[float, Tensor]:
    """Keep rate -> policies, bool [n, K], each block of each image kept with that probability; always the same."""
    shape = (count_of_images(options), net.num_blocks)
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return {rate: uniform < rate for rate in options.keep_rates}


def count_of_images(options: Options) -> int:
    """As many as the largest batch size needs."""
    return max(IMAGES[batch_size] for batch_size in options.batches)


def some_images(preprocessing: dict[str, Any], precision: str, options: Options) -> Tensor:
    """Images [n, 3, H, W] as the network expects them, real ones where there are any."""
    count, channels_last = count_of_images(options), precision == "bf16"
    if options.data_dir is None:
        pixels = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return pixels.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    data = load(options.dataset, "test", options.data_dir)
    mean, std = preprocessing.get("mean", (0.0,) * 3), preprocessing.get("std", (1.0,) * 3)
    return speed.some(EvalBatches(data, 256, mean=mean, std=std, shards=Shards(channels_last=channels_last)), count)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
