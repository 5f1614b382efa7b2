"""What ε-ResNet's gates cost while training, and what retired blocks save: ResNets on CIFAR-sized images, batch 128.

    python benchmarks/epsilon_speed.py

A training step of the plain network, of the gated one, and of the gated one with a third and two thirds of its blocks
retired take turns; ratios are formed turn by turn. Then, on two processes, the reduction of one number that each block
which is not retired costs a step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
import tyro
from _results import write
from _timing import call, ms, ratio, take_turns
from epsilon_resnet import method
from epsilon_resnet.config import TrainConfig
from epsilon_resnet.model import EpsilonResNet, create
from resless import costs
from resless.memory import keep_freed_memory
from torch.multiprocessing import spawn


@dataclass(frozen=True)
class Options:
    """What is measured."""

    n: tuple[int, ...] = (5, 18)
    """Blocks in each of the three stages."""
    batch_size: int = 128
    """Images in a step."""
    precisions: tuple[str, ...] = ("fp32", "bf16")
    """fp32, and bf16 autocast with channels_last."""
    threads: int = 1
    """Threads that a step may use."""
    turns: int = 9
    """Turns that each of the things compared gets."""
    calls: int = 2
    """Steps in a turn."""


def main(options: Options) -> None:
    """Measure everything, and write one result file."""
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    steps = [training_step(n, precision, options) for n in options.n for precision in options.precisions]
    write("epsilon-speed", {"settings": vars(options), "steps": steps, "reduction": reduction()})


def training_step(n: int, precision: str, options: Options) -> dict[str, Any]:
    """Steps of the plain, the gated and the partly retired network, in turns."""
    num_blocks = 3 * n
    networks = {
        "plain": gated(n, epsilon=0.0, retired=0),
        "gated": gated(n, epsilon=1e-6, retired=0),  # no response is that small: all blocks run, and all are looked at
        "a third retired": gated(n, epsilon=1e-6, retired=num_blocks // 3),
        "two thirds retired": gated(n, epsilon=1e-6, retired=2 * num_blocks // 3),
    }
    images = torch.randn(options.batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    steps: dict[str, Callable[[], None]] = {"plain": step_of(networks["plain"].resnet, images, precision)}
    steps |= {name: step_of(network, images, precision) for name, network in networks.items() if name != "plain"}
    found = take_turns({name: partial(call, step, options.calls) for name, step in steps.items()}, options.turns)
    macs = {name: costs.macs(network.eval(), images[:1]) for name, network in networks.items()}
    result = {
        "n": n,
        "precision": precision,
        "plain_step_ms": ms(found["plain"], options.calls),
        "gated_over_plain": ratio(found["gated"], found["plain"]),
        "retired": {},
    }
    for name in ("a third retired", "two thirds retired"):
        faster, ideal = ratio(found["gated"], found[name]), macs["gated"] / macs[name]
        result["retired"][name] = {"speedup": faster, "ideal_speedup": ideal}
    print(result, flush=True)
    return result


def gated(n: int, *, epsilon: float, retired: int) -> EpsilonResNet:
    """A network of 3n blocks without side head; of those retired as many in every stage, the last ones."""
    config = TrainConfig(n=n)
    network = create(
        config.backbone, num_classes=10, in_channels=3, epsilon=epsilon, side=False, **config.backbone_options
    )
    chosen = [stage * n + position for position in range(n - retired // 3, n) for stage in range(3)]
    network.retire(chosen)
    return network


def step_of(network: torch.nn.Module, images: torch.Tensor, precision: str) -> Callable[[], None]:
    """One training step on fixed images."""
    bf16 = precision == "bf16"
    layout = torch.channels_last if bf16 else torch.contiguous_format
    network, images = network.to(memory_format=layout).train(), images.contiguous(memory_format=layout)
    labels = torch.arange(len(images)) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=True)

    def step() -> None:
        network.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found = network(images)
        logits = found if isinstance(found, torch.Tensor) else found.logits
        method.loss(logits.float(), None, labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def reduction() -> dict[str, float]:
    """Microseconds that the maximum of one number over two processes of this machine takes (gloo)."""
    with TemporaryDirectory() as folder:
        spawn(_reduce, (f"file://{folder}/meeting", f"{folder}/found"), nprocs=2)
        microseconds = torch.load(f"{folder}/found", weights_only=True)
    return {"processes": 2, "median_us": statistics.median(microseconds), "repeats": len(microseconds)}


def _reduce(rank: int, meeting: str, target: str, repeats: int = 500) -> None:
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    number, microseconds = torch.zeros(()), []
    for _ in range(repeats):
        started = time.perf_counter()
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        microseconds.append(1e6 * (time.perf_counter() - started))
    if rank == 0:
        torch.save(microseconds[repeats // 10 :], target)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
