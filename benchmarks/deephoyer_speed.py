"""Networks cut to a share of their MACs and compacted: how fast, against the dense ones and against Torch-Pruning's.

    pip install torch-pruning
    python benchmarks/deephoyer_speed.py

Nothing is trained: the speed of a network does not depend on how good it is. The groups of each tensor get norms spread
like those of a trained network (log-normal). Torch-Pruning cuts the networks by magnitude, uniformly over the layers,
as little as meets the budget, once with widths as they come, then rounded to 8 and to 16, where its steps are coarse:
up to 5.3 points below the budget. `deephoyer-prune`'s rules then cut to as many multiply-adds as it has left at the
same rounding; to the budget where it found nothing. It cannot follow shortcuts that pad with zeros, so those here are
projections. All of one network's versions take turns in one process.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import torch
import tyro
from _results import write
from _timing import FOLDED, PRECISIONS, against_the_first
from deephoyer.channels import coupling
from deephoyer.compact import compact
from deephoyer.config import PruneConfig
from deephoyer.plan import EmptyLayer
from deephoyer.prune import cut_as_asked, prunable
from resless import costs, models
from torch import nn

SPREAD = 0.7
"""Standard deviation of the logarithms of the factors that groups are scaled with."""
ROUNDED = (1, 8, 16)
"""Widths are multiples of this."""
PEER = "Torch-Pruning"
MEMORY = ", memory counted"
"""End of the names of rules that count what layers move, too."""
STEPS = 200
"""Pruning ratios of Torch-Pruning that are tried, from none to all."""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    networks: tuple[str, ...] = ("resnet20", "resnet56", "vgg19_bn", "torchvision/resnet50")
    """Networks; CIFAR's get images of 32 x 32 pixels, torchvision's of 224 x 224."""
    share: float = 0.5
    """MACs that are left."""
    batch_size: int = 256
    """CIFAR images in a batch."""
    large_batch_size: int = 16
    """Images of 224 x 224 pixels in a batch."""
    rules: tuple[Literal["tied", "tied, memory counted", "group"], ...] = ("tied", f"tied{MEMORY}", "group")
    """Rules of `deephoyer-prune`."""
    memory_cost: float = 128.0
    """Multiply-adds in whose time a value is read or written."""
    precisions: tuple[str, ...] = (*PRECISIONS, *FOLDED)
    """fp32, and bf16 autocast with channels_last; `-folded`: batch norms folded into the convolutions before them, and
    channels_last."""
    threads: int = 2
    """Threads of the timed networks."""
    repeats: int = 15
    """Turns that each network gets."""
    warmup: int = 3
    """Calls of each network before the first turn."""
    peer: bool = True
    """Compare with Torch-Pruning, which must be installed."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where networks are timed."""


def main(options: Options) -> None:
    """Measure all networks, and write one result file."""
    torch.set_num_threads(options.threads)
    found = [row for name in options.networks for row in measured(name, options)]
    peer = version("torch-pruning") if options.peer else None
    content = {"settings": vars(options), "torch_pruning": peer, "timings": found}
    write("deephoyer-speed", content, options.device)


def measured(name: str, options: Options) -> list[dict[str, Any]]:
    """Every version of one network against the dense one."""
    large = name.startswith("torchvision/")
    side = 224 if large else 32
    example = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    dense = as_if_trained(name, example)
    budget = round(options.share * costs.macs(dense, example[:1]))
    others = dict(theirs(dense, example[:1], budget)) if options.peer else {}
    versions, peers = {"dense": dense}, {}
    for round_to in ROUNDED:
        other = others.get(round_to)
        left = budget if other is None else costs.macs(other, example[:1])
        mine = dict(ours(dense, example, left, round_to, options))
        versions |= mine
        if other is not None:
            versions[label(PEER, round_to)] = other
            peers |= dict.fromkeys(mine, label(PEER, round_to))
    batch_size = options.large_batch_size if large else options.batch_size
    rows = against_the_first(
        versions,
        (3, side, side),
        batches=(batch_size,),
        precisions=options.precisions,
        repeats=options.repeats,
        warmup=options.warmup,
        device=options.device,
        peers=peers,
    )
    for row in rows:
        against = f", {row['over_peer']['median']:.2f} x {PEER}'s" if "over_peer" in row else ""
        share = f"{row['share_of_ideal']:.2f} of the ideal"
        print(f"{name}, {row['network']}, {row['precision']}: {share}{against}", flush=True)
    return [{"model": name} | row for row in rows]


@torch.no_grad()
def as_if_trained(name: str, example: torch.Tensor) -> nn.Module:
    """A fresh network whose channels matter more and less, to what writes and to what reads them, and vary besides."""
    torch.manual_seed(0)
    model = models.create(name, **({"shortcut": "conv"} if name.startswith("resnet") else {})).eval()
    coupled = coupling(model, example)
    common = SPREAD * torch.randn(coupled.count)
    for tensor, weight in prunable(model).items():
        norm = weight.norm()
        for dim, numbers in ((0, coupled.rows[tensor]), (1, coupled.columns[tensor])):
            factors = torch.exp(common[numbers] + SPREAD / 2 * torch.randn(len(numbers)))
            weight.mul_(factors.view(-1, *[1] * (weight.dim() - 1 - dim)))
        weight.mul_(norm / weight.norm())
    for _ in range(30):  # or the values grow from block to block
        model.train()(example)
    return model.eval()


def ours(
    dense: nn.Module, example: torch.Tensor, budget: int, round_to: int, options: Options
) -> Iterator[tuple[str, nn.Module]]:
    """Cut to a budget by all rules, and compacted; without what would leave nothing of a layer."""
    for rule in options.rules:
        config = PruneConfig(
            ("dense",),
            rule=rule.removesuffix(MEMORY),
            threshold="rms",
            memory_cost=options.memory_cost if rule.endswith(MEMORY) else 0.0,
            target_macs=budget,
            round_to=round_to,
        )
        pruned, name = copy.deepcopy(dense), label(f"compacted, {rule}", round_to)
        try:
            cut_as_asked(pruned, config, example[:1])
        except EmptyLayer as error:
            print(f"{name}, {budget:,} MACs: {error}", flush=True)
            continue
        yield name, compact(pruned, example, round_to)


def theirs(dense: nn.Module, example: torch.Tensor, budget: int) -> Iterator[tuple[int, nn.Module]]:
    """The least pruned of Torch-Pruning's networks within the budget, by what their widths are multiples of."""
    import torch_pruning

    for round_to in ROUNDED:
        for step in range(STEPS):
            model = copy.deepcopy(dense)
            logits = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
            pruner = torch_pruning.pruner.MagnitudePruner(
                model,
                example,
                importance=torch_pruning.importance.MagnitudeImportance(p=2),
                pruning_ratio=step / STEPS,
                ignored_layers=[logits],
                round_to=round_to,
            )
            pruner.step()
            if costs.macs(model, example) <= budget:
                yield round_to, model
                break


def label(tool: str, round_to: int) -> str:
    """What a version is called."""
    return tool if round_to == 1 else f"{tool}, widths in {round_to}s"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
