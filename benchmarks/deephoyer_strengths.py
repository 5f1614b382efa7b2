"""Group-HS and group lasso on ResNet-20 at half of its MACs, each with the strength that held-out images choose.

    python benchmarks/deephoyer_strengths.py --data-dir FOLDER_WITH_CIFAR10

A network that somebody else trained has seen all training images, so that none can be held out of what follows. Here a
ResNet-20 is trained without a tenth of them; from it, each strength of each regulariser is trained, cut, compacted and
fine-tuned, and judged on that tenth. The best strength of each is taken again with further seeds; of those networks,
and of no others, the test images are read. Whatever is finished below `--runs` is not repeated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from _results import write
from _runs import finished
from deephoyer import recipes
from deephoyer.prune import prune
from deephoyer.train import train
from resless import weights
from resless.config import EvalConfig, OptimConfig, SourceConfig, as_dict
from resless.config import TrainConfig as DenseConfig
from resless.evaluate import main as evaluate
from resless.files import read_json
from resless.train import train as train_dense

RECIPE = "resnet20_short"
HELD_OUT = 0.1
PUSH = {"group_hoyer_square": (0.0075, 0.015, 0.03, 0.06), "group_lasso": (0.00125, 0.0025, 0.005)}
"""Strength times epochs: what a regulariser moves grows with both."""


@dataclass(frozen=True)
class Options:
    """What to search, and where."""

    data_dir: str | None = None
    """Folder that holds CIFAR-10; None looks it up on the hub."""
    dense_epochs: int = 12
    """Epochs of the dense network's training, along a cosine from 0.1."""
    epochs: tuple[int, int] = (2, 3)
    """Epochs of training with a regulariser, and of fine-tuning."""
    share: float = 0.5
    """MACs that are left, as a share of the dense network's."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the chosen strengths; strengths are searched with the first, by which the held-out images are drawn."""
    runs: str = "runs/deephoyer-strengths"
    """Folder of the runs."""


def main(options: Options) -> None:
    """Train, search, take the best again, and write one result file."""
    dense = dense_network(options)
    first = options.seeds[0]
    searched = {name: [pruned(name, push, first, dense, options) for push in pushes] for name, pushes in PUSH.items()}
    networks = []
    for name, found in searched.items():
        best = max(found, key=lambda network: network["result"]["held_out_top1_tuned"])
        again = [pruned(name, best["push"], seed, dense, options) for seed in options.seeds[1:]]
        for network in (best, *again):
            network["test_top1"] = tested(network, options)
        networks += [*found, *again]
    settings = {"options": as_dict(options), "train": as_dict(recipes.TRAIN[RECIPE])}
    settings["prune"] = as_dict(recipes.PRUNE[RECIPE])
    dense_facts = {**outcome(dense.parent), "macs": macs_of(dense)}
    write("deephoyer-strengths", {"dense": dense_facts, "networks": networks, "settings": settings})


def dense_network(options: Options) -> Path:
    """The model folder of a ResNet-20 that has not seen the held-out images."""
    short, folder = recipes.TRAIN[RECIPE], Path(options.runs) / "dense"
    config = DenseConfig(
        model="resnet20",
        data=replace(short.data, data_dir=options.data_dir, holdout=HELD_OUT),
        optim=OptimConfig(lr=0.1, weight_decay=5e-4, batch_size=128, epochs=options.dense_epochs, schedule="cosine"),
        run=replace(short.run, run_dir=str(folder), resume="auto", seed=options.seeds[0]),
    )
    if not finished(folder):
        train_dense(config)
    return folder / "model"


def pruned(regulariser: str, push: float, seed: int, dense: Path, options: Options) -> dict[str, Any]:
    """Train with a strength, cut, compact and fine-tune, without a look at the test images; what came out."""
    folder = Path(options.runs) / f"{regulariser}-{push:g}-seed{seed}"
    sparse, small = folder / "sparse", folder / "pruned"
    training, pruning = recipes.TRAIN[RECIPE], recipes.PRUNE[RECIPE]
    data = replace(training.data, data_dir=options.data_dir, holdout=HELD_OUT)
    run = replace(training.run, resume="auto", seed=seed)
    strength = push / options.epochs[0]
    if not finished(sparse):
        optim = replace(training.optim, epochs=options.epochs[0])
        run_there = replace(run, run_dir=str(sparse))
        given = {"reg": regulariser, "strength": strength, "pretrained": str(dense)}
        train(replace(training, **given, data=data, optim=optim, run=run_there), read_test=False)
    if not finished(small):
        optim = replace(pruning.optim, epochs=options.epochs[1])
        run_there = replace(run, run_dir=str(small))
        given = {"model": (str(sparse / "model"),), "target_macs": round(options.share * macs_of(dense))}
        given |= {"round_to": 1, "compact": True}
        prune(replace(pruning, **given, data=data, optim=optim, run=run_there), read_test=False)
    facts = {"regulariser": regulariser, "push": push, "strength": strength, "seed": seed}
    return {**facts, "folder": str(small), "training": outcome(sparse), **outcome(small)}


def outcome(folder: Path) -> dict[str, Any]:
    """What a run ended with, its epochs, and where it ran."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "result": read_json(folder / "result.json"),
        "epochs": [json.loads(line) for line in lines],
        "environment": read_json(folder / "env.json")["starts"],
    }


def macs_of(model: Path) -> int:
    """Of one image, as a model folder says."""
    return int(weights.read_config(model)["costs"]["macs_per_image"])


def tested(network: dict[str, Any], options: Options) -> float:
    """Accuracy on the test images."""
    data = SourceConfig(dataset="cifar10", data_dir=options.data_dir)
    return evaluate(EvalConfig(model=f"{network['folder']}/model", data=data)).top1


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
