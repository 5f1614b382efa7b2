"""Measured throughput of a network, its policy network included, beside the dense network's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from resless.errors import check
from resless.latency import Speedup, compare, speedup
from resless.report import table
from torch import Tensor

from blockdrop.costs import BlockCosts
from blockdrop.model import BlockDropNet

IMAGES = 1024
"""Several batches are timed in a row: kernels are prepared for numbers of images, which differ from batch to batch."""


def some(batches: Iterable[tuple[Tensor, Tensor]], count: int = IMAGES) -> Tensor:
    """The first `count` images of some batches, [n, C, H, W], as they are normalised and laid out there."""
    found: list[Tensor] = []
    for images, _ in batches:
        found.append(images)
        if sum(map(len, found)) >= count:
            break
    return torch.cat(found)[:count]


def measure(
    net: BlockDropNet,
    images: Tensor,
    batch_size: int,
    cost: BlockCosts,
    repeats: int,
    executor: str = "auto",
    policies: Tensor | None = None,
) -> dict[str, Any]:
    """Time the dense network, the masked one and the one that skips, interleaved; JSON values.

    Args:
        net: in eval mode, on the device of the images; the caller sets autocast, threads and layout.
        images: normalised, [n, C, H, W]; timed in batches of `batch_size`.
        cost: of one image.
        repeats: timings of each, 2 or more.
        executor: how blocks are skipped.
        policies: of the images, bool [n, K], in place of the policy network's, which runs all the same.

    Raises:
        InputError: policies of another shape than the images and blocks ask for.
    """
    with torch.inference_mode():
        if policies is None:
            policies = torch.cat([net.decide(batch) for batch in images.split(batch_size)])
    found, wanted = list(policies.shape), [len(images), net.num_blocks]
    check(found == wanted, "the shape of the policies", found, f"{wanted}: an image a row, a block a column")
    policies = policies.to(images.device)
    kept = policies.cpu().numpy()
    batches = list(zip(images.split(batch_size), policies.split(batch_size), strict=True))

    def skipping(executor: str) -> Callable[[Tensor], None]:
        def run(_: Tensor) -> None:
            for batch, policy in batches:
                net.decide(batch)  # its answer is known, its time is not
                net.resnet(batch, policy, executor)

        return run

    def dense(_: Tensor) -> None:
        for batch, _policy in batches:
            net.resnet.net(batch)

    runs = {"dense": dense, "masked": skipping("masked"), "skipping": skipping(executor)}
    timings = compare(runs, images, repeats=repeats, warmup=1)
    faster = speedup(timings["dense"], timings["skipping"])
    ideal = cost.dense / float(cost.per_image(kept).mean())
    return {
        "batch_size": batch_size,
        "images": len(images),
        "environment": timings["dense"].environment | {"batch_size": batch_size},
        "images_per_second": {name: timing.images_per_second for name, timing in timings.items()},
        "speedup": vars(faster),
        "masked_speedup": vars(speedup(timings["dense"], timings["masked"])),
        "ideal_speedup": ideal,
        "share_of_ideal": faster.median / ideal,
        "blocks_used": float(np.mean(kept.sum(axis=1))),
    }


def show(timed: dict[str, Any]) -> None:
    """Print a measurement."""
    names = {
        "dense": "dense",
        "masked": "masked: all blocks computed",
        "skipping": "skipping, policy network included",
    }
    ratios = {"dense": Speedup(1, 1, 1), "masked": Speedup(**timed["masked_speedup"])}
    ratios["skipping"] = Speedup(**timed["speedup"])
    rows = [
        [names[name], f"{rate:,.0f}", f"{ratios[name].median:.2f} ({ratios[name].q25:.2f}-{ratios[name].q75:.2f})"]
        for name, rate in timed["images_per_second"].items()
    ]
    environment = timed["environment"]
    title = f"{environment['device']}, {environment['threads']} threads, batch {timed['batch_size']}"
    table(title, ["network", "images/s", "speed-up, median (quartiles)"], rows)
    print(
        f"by MACs it could be {timed['ideal_speedup']:.2f}: {100 * timed['share_of_ideal']:.0f} % of that is measured"
    )
