"""A CIFAR ResNet on CIFAR-10 at several budgets of MACs: Group-HS, group lasso, and thinner networks trained as long.

    python benchmarks/deephoyer_cifar.py --data-dir FOLDER_WITH_CIFAR10 --backbone resnet20-12fca82f.th
    python benchmarks/deephoyer_cifar.py --data-dir FOLDER_WITH_CIFAR10 --model resnet56 \\
        --backbone resnet56-4bfd9763.th   # where a GPU is at hand

The recipe `resnet20_short`, run as a user would run it: from the checkpoint, trained with a regulariser, cut to a
budget, compacted, fine-tuned. Larger strengths go with smaller budgets; the regularisers see whole channels, those that
end in `-own` the groups of each tensor by itself, as in the paper; `-8s` goes on from the same network, but cuts to
widths in multiples of 8, `-memory` more where layers move much for what they compute. The thinner networks have the
same share of every width, start from fresh weights and train for the epochs of both stages together. Each run is a
process of its own; finished runs below `--runs` are not repeated, so that several processes can do some `--names` or
`--seeds` each, and one more collect them; the networks of the first seed are timed. `--quick` is a try of everything on
the embedded digits, which takes minutes and writes no result file.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from _results import write
from _runs import Start, data, finished, of_seed
from _runs import run as run_recipe
from _timing import FOLDED, PRECISIONS, against_the_first
from deephoyer import recipes
from deephoyer.compact import compact
from resless import costs, models, weights
from resless.config import Precision
from resless.files import read_json
from torch import nn

BUDGETS = (0.7, 0.5, 0.35, 0.25)
"""MACs that are left, as shares of the dense network's."""
PUSH = {
    "group_hoyer_square": (0.04, 0.06, 0.08, 0.1),
    "group_hoyer_square-8s": (0.04, 0.06, 0.08, 0.1),
    "group_hoyer_square-memory": (0.04, 0.06, 0.08, 0.1),
    "group_hoyer_square-own": (0.04, 0.06, 0.08, 0.1),
    "group_lasso": (6e-3, 1e-2, 1.4e-2, 2e-2),
}
"""Strength times epochs, for each budget: what a regulariser moves grows with both, so fewer epochs need more of it."""
NAMES = (*PUSH, "thinner")
MEMORY_COST = 128.0
"""Of `-memory`: multiply-adds in whose time a value is read or written."""
THINNER_LR = 0.1


@dataclass(frozen=True)
class Options(Start):
    """What to run, and where; the trained network is that of the model."""

    model: Literal["resnet20", "resnet56", "resnet110"] = "resnet20"
    """Residual network."""
    names: tuple[str, ...] = NAMES
    """Regularisers, and `thinner`."""
    budgets: tuple[float, ...] = BUDGETS
    """Budgets to do, of 0.7, 0.5, 0.35 and 0.25."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to train each network with."""
    epochs: tuple[int, int] | None = None
    """Epochs of training with a regulariser, and of fine-tuning; None leaves the recipe's."""
    mixed_precision: Precision | None = None
    """Precision of training; None leaves the recipe's."""
    called: str | None = None
    """Name of the results, as deephoyer-cifar-seeds; None takes deephoyer-cifar and, but for ResNet-20, the model."""
    runs: str | None = None
    """Folder of the runs; None takes runs/ and the name of the results."""
    train: bool = True
    """Train what is not finished; without it, only what is finished is collected."""
    collect: bool = True
    """Time the networks and write the result file once they are there."""
    threads: int = 1
    """Threads of the timed networks."""
    repeats: int = 30
    """Turns that each timed network gets."""
    quick: bool = False
    """Try everything with one epoch on the embedded digits."""

    @property
    def recipe(self) -> str:
        """Recipe of all runs."""
        return "smoke_resnet" if self.quick else "resnet20_short"

    @property
    def results(self) -> str:
        """Name of the results."""
        usual = "deephoyer-cifar" if self.model == "resnet20" else f"deephoyer-cifar-{self.model}"
        return self.called or usual

    @property
    def root(self) -> Path:
        """Folder of the runs."""
        runs = self.runs or f"runs/{self.results}"
        return Path(f"{runs}-quick" if self.quick else runs)

    @property
    def stages(self) -> tuple[int, int]:
        """Epochs of training with a regulariser, and of fine-tuning."""
        if self.quick:
            return 1, 1
        return self.epochs or (recipes.TRAIN[self.recipe].optim.epochs, recipes.PRUNE[self.recipe].optim.epochs)

    @property
    def image(self) -> torch.Tensor:
        """A blank image [1, C, H, W]."""
        return torch.zeros(1, 1, 8, 8) if self.quick else torch.zeros(1, 3, 32, 32)


@dataclass(frozen=True)
class Point:
    """A network at a budget."""

    name: str
    budget: float
    seed: int


def main(options: Options) -> None:
    """Train and cut, then compare, and write one result file."""
    dense = dense_network(options)
    found = []
    for point in wanted(options):
        train = thinner if point.name == "thinner" else pruned
        found.append(vars(point) | train(point, dense, options))
    if options.collect:
        torch.set_num_threads(options.threads)
        results = {"networks": found, "dense": evaluated(options), "latency": timed(dense, options)}
        if options.quick:
            print(json.dumps(results["latency"][-1], indent=1))
        else:
            write(options.results, results)


def wanted(options: Options) -> list[Point]:
    """The networks to train, or those of them that are there."""
    points = [Point(*of) for of in itertools.product(options.names, options.budgets, options.seeds)]
    return [point for point in points if options.train or finished(folder_of(point, options))]


def dense_network(options: Options) -> nn.Module:
    """The network that all others are compared with."""
    if options.quick:
        return models.create("resnet8", in_channels=1).eval()
    start = trained(options)
    if options.backbone is None:
        return weights.from_pretrained(start)
    model = models.create(options.model, shortcut=options.shortcut)
    weights.load(model, start)
    return model.eval()


def trained(options: Options) -> str:
    """Where the trained network is; where none is given, one is trained first."""
    return options.network(options.model, "subsample", options.root)


def backbone(options: Options) -> list[str]:
    """The arguments that name the trained network."""
    if options.quick:
        return []
    return ["--model", options.model, "--pretrained", trained(options), *options.foreign]


def pruned(point: Point, dense: nn.Module, options: Options) -> dict[str, Any]:
    """Train with a regulariser, cut to the budget, compact and fine-tune."""
    regulariser, *variants = point.name.split("-")
    strength = PUSH[point.name][BUDGETS.index(point.budget)] / options.stages[0]
    groups, own = ("--no-tied", "-own") if "own" in variants else ("--tied", "")
    sparse = options.root / f"{regulariser}{own}-{strength:g}{of_seed(point.seed)}"
    arguments = ["--reg", regulariser, groups, "--strength", str(strength), *backbone(options)]
    training = run("deephoyer.train", sparse, options, point, [*arguments, "--epochs", str(options.stages[0])])
    target = round(point.budget * costs.macs(dense, options.image))
    arguments = ["--model", str(sparse / "model"), "--target-macs", str(target), "--compact"]
    arguments += ["--round-to", "8" if "8s" in variants else "1"]
    arguments += ["--memory-cost", str(MEMORY_COST)] if "memory" in variants else []
    folder = folder_of(point, options)
    tuning = run("deephoyer.prune", folder, options, point, [*arguments, "--epochs", str(options.stages[1])])
    return {"strength": strength, "training": training, "tuning": tuning} | size(folder / "model", options)


def thinner(point: Point, dense: nn.Module, options: Options) -> dict[str, Any]:
    """Train a network with the same share of every width from fresh weights, for as many epochs in all."""
    folder = folder_of(point, options)
    start = folder.with_name(f"{folder.name}-fresh")
    if not start.exists():
        torch.manual_seed(point.seed)
        weights.save_pretrained(thinned(dense, point.budget, options.image), start, example=options.image)
    arguments = ["--pretrained", str(start), "--reg", "none", "--lr", str(THINNER_LR)]
    arguments += ["--epochs", str(sum(options.stages))]
    arguments += [] if options.quick else ["--model", options.model, *options.statistics]
    training = run("deephoyer.train", folder, options, point, arguments)
    return {"training": training} | size(folder / "model", options)


def thinned(dense: nn.Module, budget: float, image: torch.Tensor) -> nn.Module:
    """A fresh network whose widths are so large a share of the dense one's that the budget is just met."""
    shares = (step / 64 for step in range(64, 0, -1))
    return next(net for net in (with_share(dense, share, image) for share in shares) if fits(net, dense, budget, image))


def fits(net: nn.Module, dense: nn.Module, budget: float, image: torch.Tensor) -> bool:
    """Whether a network is within the budget."""
    return costs.macs(net, image) <= budget * costs.macs(dense, image)


@torch.no_grad()
def with_share(dense: nn.Module, share: float, image: torch.Tensor) -> nn.Module:
    """A fresh network of the first channels of every layer."""
    wide = models.build(dense.spec)
    for module in wide.modules():
        if isinstance(module, nn.Conv2d):
            module.weight[max(1, round(share * module.out_channels)) :] = 0
        elif isinstance(module, nn.BatchNorm2d):
            kept = max(1, round(share * module.num_features))
            module.weight[kept:] = module.bias[kept:] = 0
    return models.build(compact(wide, image).spec)


def run(module: str, folder: Path, options: Options, point: Point, arguments: list[str]) -> dict[str, Any]:
    """One command of the recipe, in the precision, on the images and with the seed that are asked for."""
    precision = [] if options.mixed_precision is None else ["--mixed-precision", options.mixed_precision]
    images = data(None if options.quick else options.data_dir)
    return run_recipe(module, options.recipe, folder, ["--seed", str(point.seed), *precision, *images, *arguments])


def evaluated(options: Options) -> dict[str, Any] | None:
    """Accuracy of the dense network on the test images; nothing for a try."""
    if options.quick:
        return None
    output = options.root / "dense.json"
    if not output.exists():
        images = ["--dataset", "cifar10", *data(options.data_dir)]
        arguments = [*backbone(options), *images, "--output", str(output)]
        subprocess.run([sys.executable, "-m", "deephoyer.evaluate", *arguments], check=True)
    return read_json(output)


def timed(dense: nn.Module, options: Options) -> list[dict[str, Any]]:
    """Every network against the dense one."""
    small = {
        f"{point.name} {point.budget:g}": weights.from_pretrained(folder_of(point, options) / "model")
        for point in wanted(options)
        if point.seed == options.seeds[0]
    }
    networks = {"dense": dense} | small
    precisions = (*PRECISIONS, *FOLDED)
    return against_the_first(
        networks, options.image.shape[1:], batches=(1, 256), precisions=precisions, repeats=options.repeats
    )


def size(folder: Path, options: Options) -> dict[str, int]:
    """Parameters and MACs of a model folder."""
    network = weights.from_pretrained(folder)
    return {"parameters": costs.count_parameters(network), "macs": costs.macs(network, options.image)}


def folder_of(point: Point, options: Options) -> Path:
    """The run folder in which a network of a budget ends."""
    return options.root / f"{point.name}-at-{point.budget:g}{of_seed(point.seed)}"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
