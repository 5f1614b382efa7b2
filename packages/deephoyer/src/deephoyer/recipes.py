"""Recipes."""

from __future__ import annotations

from resless.config import DataConfig, OptimConfig, RunConfig

from deephoyer.config import PruneConfig, TrainConfig

TRAIN: dict[str, TrainConfig] = {
    "smoke": TrainConfig(
        reg="hoyer_square", strength=3e-4, optim=OptimConfig(optimizer="adam", lr=3e-3, batch_size=64, epochs=12)
    ),
}
PRUNE: dict[str, PruneConfig] = {
    "smoke": PruneConfig(
        model=("runs/deephoyer-smoke/model",),
        sensitivity=0.3,
        optim=OptimConfig(optimizer="adam", lr=1e-3, batch_size=64, epochs=4),
    ),
}
