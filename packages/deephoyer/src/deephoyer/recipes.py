"""Recipes: one named pair of configurations, for `deephoyer-train` and `deephoyer-prune`, for each published row.

| recipe | the paper (Tables 1 to 4) | settings found here |
|---|---|---|
| lenet-300-100-element | 98.4 %, 4.6k weights | Hoyer-Square 1e-4, weight decay 1e-4, cut at 0.4 standard deviations |
| lenet-300-100-structural | 98.2 %, 16.5k MACs | Group-HS 2e-3, weight decay 1e-3, cut at group norm 0.08 |

Strengths were not published; these were found by sweeps on 10,000 images held out of the training set. The recipes
themselves hold out nothing and select nothing: they train on all 60,000 images and report the last epoch.
`smoke` is seconds on the embedded digits: Group-HS takes LeNet-300-100 from 64-300-100 to about 56-23-17.
"""

from __future__ import annotations

from dataclasses import replace

from resless.config import DataConfig, OptimConfig, RunConfig

from deephoyer.config import PruneConfig, TrainConfig

_SPARE_CHECKPOINTS = RunConfig(checkpoint_epochs=5)
# Deviation: images move by up to one pixel, and epochs are 40 + 30 on a cosine instead of 250 + 100 at a constant rate.
_MNIST = DataConfig(dataset="mnist", pad=1)
_TRAIN = OptimConfig("adam", lr=1e-3, batch_size=100, epochs=40, schedule="cosine")
_TUNE = OptimConfig("adam", lr=2e-3, batch_size=100, epochs=30, schedule="cosine")
_ELEMENT = TrainConfig(
    reg="hoyer_square", strength=1e-4, data=_MNIST, optim=replace(_TRAIN, weight_decay=1e-4), run=_SPARE_CHECKPOINTS
)
_STRUCTURAL = TrainConfig(
    reg="group_hoyer_square",
    structural=True,
    strength=2e-3,
    data=_MNIST,
    optim=replace(_TRAIN, weight_decay=1e-3),
    run=_SPARE_CHECKPOINTS,
)

TRAIN: dict[str, TrainConfig] = {
    "lenet-300-100-element": replace(_ELEMENT, model="lenet_300_100"),
    "lenet-300-100-structural": replace(_STRUCTURAL, model="lenet_300_100"),
    "smoke": TrainConfig(
        reg="group_hoyer_square",
        structural=True,
        strength=3e-2,
        optim=OptimConfig("adam", lr=3e-3, weight_decay=1e-4, batch_size=64, epochs=40, schedule="cosine"),
        run=_SPARE_CHECKPOINTS,
    ),
}
PRUNE: dict[str, PruneConfig] = {
    "lenet-300-100-element": PruneConfig(
        model=("runs/lenet-300-100-element/model",),
        rule="elementwise",
        threshold="std",
        sensitivity=0.4,
        data=_MNIST,
        optim=_TUNE,
        run=_SPARE_CHECKPOINTS,
    ),
    "lenet-300-100-structural": PruneConfig(
        model=("runs/lenet-300-100-structural/model",),
        rule="group",
        threshold="fixed",
        sensitivity=0.08,
        data=_MNIST,
        optim=_TUNE,
        run=_SPARE_CHECKPOINTS,
    ),
    "smoke": PruneConfig(
        model=("runs/smoke/model",),
        rule="group",
        threshold="fixed",
        sensitivity=0.1,
        optim=OptimConfig("adam", lr=1e-3, batch_size=64, epochs=10),
        run=_SPARE_CHECKPOINTS,
    ),
}
