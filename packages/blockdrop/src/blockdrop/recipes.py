"""Recipes: the paper's five models, each with both stages, and two that fit a small machine.

| recipe | the paper, cost as 2 x MACs | curriculum | joint fine-tuning |
|---|---|---|---|
| R32_C10, R110_C10 | R110: 93.6 %, 16.93 of 54 blocks, 1.81E+08 | 5,000 epochs, batch 2048 | 2,000, batch 256, γ -10 |
| R32_C100, R110_C100 | | likewise | likewise |
| R101_ImgNet | 76.4 %, 24.77 of 33 blocks, 1.25E+10 | 45 epochs, batch 2048 | 10, batch 320, γ -5 |

All use Adam, at 1e-3 (curriculum) and 1e-4 (fine-tuning, x0.1 at epoch 1,600 on CIFAR). They train on all training
images, select nothing, and report the last epoch. The curriculum needs a trained network: `--backbone`.
`R32_C10_short` is a schedule of 35 to 42 minutes on one core with bf16 units, `R32_C10_short_again` 21 to 23 more of
fine-tuning; those of R110_C10 need a GPU to be short. `smoke` is half a minute on the embedded digits, after
`resless-train --recipe smoke_resnet`.
"""

from __future__ import annotations

from dataclasses import replace

from resless.config import DataConfig, SourceConfig

from blockdrop.config import MODELS, EvalConfig, FinetuneConfig, Optim, Run, TrainConfig


def _data(model: str) -> DataConfig:
    dataset = MODELS[model].dataset
    return DataConfig(dataset, stream=True) if dataset == "imagenet" else DataConfig(dataset, pad=4, flip=True)


def _run(name: str, checkpoint_epochs: int = 1) -> Run:
    """Folders by name, so that the two stages find each other; in the precision and layout that are fastest."""
    return Run(run_dir=f"runs/{name}", mixed_precision="auto", channels_last=True, checkpoint_epochs=checkpoint_epochs)


def _train(model: str) -> TrainConfig:
    epochs = 45 if MODELS[model].dataset == "imagenet" else 5000
    return TrainConfig(
        model=model,
        data=_data(model),
        optim=Optim("adam", lr=1e-3, batch_size=2048, epochs=epochs),
        run=_run(f"{model}-curriculum", 1 if epochs < 100 else 10),
    )


def _finetune(model: str) -> FinetuneConfig:
    imagenet = MODELS[model].dataset == "imagenet"
    optim = Optim("adam", lr=1e-4, batch_size=256, epochs=2000, milestones=(1600,))
    return FinetuneConfig(
        model=model,
        pretrained=f"runs/{model}-curriculum/model",
        penalty=-5.0 if imagenet else -10.0,
        data=_data(model),
        optim=replace(optim, batch_size=320, epochs=10, milestones=()) if imagenet else optim,
        run=_run(f"{model}-finetuned", 1 if imagenet else 10),
    )


# Deviation: fewer epochs, in which more blocks are opened at a time and both networks learn at Adam's usual rate; a
# policy network that sees smaller images; decisions that are nearer to certain while fine-tuning, for a trained
# ResNet-32 that drops three blocks at random is wrong on half of the images.
_SHORT_TRAIN = replace(
    _train("R32_C10"),
    policy_pool=2,
    curriculum_step=3,
    optim=Optim("adam", lr=1e-3, batch_size=256, epochs=6),
    run=_run("R32_C10_short-curriculum"),
)
_SHORT_FINETUNE = replace(
    _finetune("R32_C10"),
    pretrained="runs/R32_C10_short-curriculum/model",
    penalty=-1.0,
    alpha=0.9,
    optim=Optim("adam", lr=1e-3, batch_size=128, epochs=12, milestones=(9,)),
    run=_run("R32_C10_short-finetuned"),
)
# The policies are found by then: this round is for accuracy, by the optimiser with which such networks generalise best.
_SHORT_AGAIN = replace(
    _SHORT_FINETUNE,
    pretrained="runs/R32_C10_short-finetuned/model",
    penalty=-1.5,
    alpha=0.98,
    policy_reduction="mean",
    optim=Optim("sgd", lr=0.03, weight_decay=1e-4, batch_size=128, epochs=10, schedule="cosine"),
    run=_run("R32_C10_short-again"),
)

# The same for a ResNet-110, whose 54 blocks are opened in eleven epochs.
_DEEP_TRAIN = replace(
    _SHORT_TRAIN,
    model="R110_C10",
    curriculum_step=5,
    optim=replace(_SHORT_TRAIN.optim, epochs=14),
    run=_run("R110_C10_short-curriculum"),
)
_DEEP_FINETUNE = replace(
    _SHORT_FINETUNE,
    model="R110_C10",
    pretrained="runs/R110_C10_short-curriculum/model",
    optim=replace(_SHORT_FINETUNE.optim, batch_size=256, epochs=8, milestones=(6,)),
    run=_run("R110_C10_short-finetuned"),
)
_DEEP_AGAIN = replace(
    _SHORT_AGAIN,
    model="R110_C10",
    pretrained="runs/R110_C10_short-finetuned/model",
    optim=replace(_SHORT_AGAIN.optim, lr=0.06, batch_size=256),
    run=_run("R110_C10_short-again"),
)

TRAIN: dict[str, TrainConfig] = {
    **{model: _train(model) for model in MODELS},
    "R32_C10_short": _SHORT_TRAIN,
    "R110_C10_short": _DEEP_TRAIN,
    "smoke": TrainConfig(
        model="resnet20",
        backbone="runs/smoke_resnet/model",
        policy_pool=2,
        data=DataConfig(pad=1),
        optim=Optim("adam", lr=3e-3, batch_size=64, epochs=10),
        run=Run(run_dir="runs/blockdrop-smoke"),
    ),
}

FINETUNE: dict[str, FinetuneConfig] = {
    **{model: _finetune(model) for model in MODELS},
    "R32_C10_short": _SHORT_FINETUNE,
    "R32_C10_short_again": _SHORT_AGAIN,
    "R110_C10_short": _DEEP_FINETUNE,
    "R110_C10_short_again": _DEEP_AGAIN,
    "smoke": FinetuneConfig(
        model="resnet20",
        pretrained="runs/blockdrop-smoke/model",
        penalty=-1.0,
        alpha=0.9,
        data=DataConfig(pad=1),
        optim=Optim("adam", lr=3e-3, batch_size=64, epochs=14, schedule="cosine"),
        run=Run(run_dir="runs/blockdrop-smoke-finetuned"),
    ),
}

EVAL: dict[str, EvalConfig] = {
    model: EvalConfig(model=model, data=SourceConfig(_data(model).dataset, stream=_data(model).stream))
    for model in MODELS
}
