"""Dense baselines: one named configuration per published row. Errors are those published, in %.

| recipe | CIFAR-10 | CIFAR-100 |
|---|---|---|
| alexnet | 22.78 | 56.13 |
| vgg19_bn | 6.66 | 28.05 |
| resnet110, or resnet164 of as many parameters as published | 6.11 | 28.86 |
| preresnet110, preresnet164 likewise | 4.94 | 23.65 |
| wrn28_10, dropout 0.3 | 3.79 | 18.14 |
| resnext29_8x64 | 3.69 | 17.38 |
| resnext29_16x64 | 3.53 | 17.30 |
| densenet_bc_100_12 | 4.54 | 22.88 |
| densenet_bc_190_40 | 3.32 | 17.17 |
| lenet_300_100, on MNIST | about 1.6 | |
| lenet5, on MNIST | about 0.8 | |

All but the LeNets are for CIFAR-10 and, with `--dataset cifar100`, CIFAR-100: SGD with momentum, pad-crop and flip. For
SVHN (`--dataset svhn --no-flip --train-split train+extra`) nothing was published with them.

`resnet110_short` is minutes of a GPU: 32 epochs along a cosine, with larger batches. `smoke` is a few seconds on the
embedded digits, for tests; `smoke_resnet` is ResNet-20 on them, a network with blocks.
"""

from __future__ import annotations

from dataclasses import replace

from resless.config import DataConfig, NetworkOptions, OptimConfig, RunConfig, TrainConfig

_MNIST = TrainConfig(
    data=DataConfig(dataset="mnist"),
    optim=OptimConfig(optimizer="adam", lr=1e-3, batch_size=100, epochs=40, schedule="cosine"),
    run=RunConfig(checkpoint_epochs=5),
)
_STEP = OptimConfig(lr=0.1, weight_decay=5e-4, batch_size=128, epochs=164, milestones=(81, 122))
_LONG = replace(_STEP, epochs=300, milestones=(150, 225))


def _cifar(model: str, optim: OptimConfig) -> TrainConfig:
    """Training on CIFAR-10, in bf16 where there are units for it, which halves its time."""
    return TrainConfig(
        model=model,
        data=DataConfig(dataset="cifar10", pad=4, flip=True),
        optim=optim,
        run=RunConfig(mixed_precision="auto", channels_last=True),
    )


_RESNETS = (
    *(f"resnet{depth}" for depth in (20, 32, 44, 56, 110, 164)),
    *(f"preresnet{depth}" for depth in (110, 164)),
)
_CIFAR = (
    _cifar("alexnet", _STEP),
    _cifar("vgg19_bn", _STEP),
    *(_cifar(name, replace(_STEP, weight_decay=1e-4)) for name in _RESNETS),
    replace(
        _cifar("wrn28_10", replace(_STEP, epochs=200, milestones=(60, 120, 160), gamma=0.2)),
        network=NetworkOptions(dropout=0.3),
    ),
    _cifar("resnext29_8x64", _LONG),
    _cifar("resnext29_16x64", _LONG),
    *(
        _cifar(name, replace(_LONG, weight_decay=1e-4, batch_size=64))
        for name in ("densenet_bc_100_12", "densenet_bc_190_40")
    ),
)

TRAIN: dict[str, TrainConfig] = {
    "smoke": TrainConfig(optim=OptimConfig(optimizer="adam", lr=3e-3, batch_size=64, epochs=8)),
    "smoke_resnet": TrainConfig(
        model="resnet20",
        data=DataConfig(pad=1),
        optim=OptimConfig(optimizer="adam", lr=3e-3, batch_size=64, epochs=10, schedule="cosine"),
        run=RunConfig(run_dir="runs/smoke_resnet"),
    ),
    "lenet_300_100": replace(_MNIST, model="lenet_300_100"),
    "lenet5": replace(_MNIST, model="lenet5", run=replace(_MNIST.run, mixed_precision="auto", channels_last=True)),
    **{recipe.model: recipe for recipe in _CIFAR},
    "resnet110_short": _cifar(
        "resnet110",
        OptimConfig(lr=0.1, nesterov=True, weight_decay=5e-4, batch_size=256, epochs=32, schedule="cosine"),
    ),
}
